-- What every identity bears, by kind of cost.
--
-- A row is one identity in one tenant and currency, with its name and team of now. UNALLOCATED and the operator's share
-- come in columns of their own: payer first, then kind of cost, so that the five columns add up to `total`. Parameters:
-- $tenant_id (null: all), $from_date, $to_date (null: open; to exclusive).
WITH
identities_charged AS (
    SELECT
        tenant_id,
        identity_id,
        any_value(identity_name) AS identity_name,
        any_value(team) AS team,
        currency,
        coalesce(sum(amount) FILTER (cost_class = 'direct'), 0) AS direct,
        coalesce(sum(amount) FILTER (cost_class = 'usage'), 0) AS usage,
        coalesce(sum(amount) FILTER (cost_class = 'shared'), 0) AS shared,
        coalesce(sum(amount) FILTER (cost_class = 'operator'), 0) AS operator,
        coalesce(sum(amount) FILTER (cost_class = 'unallocated'), 0) AS unallocated,
        sum(amount) AS total,
        count(*) AS rows
    FROM chargeback_named
    WHERE ($tenant_id IS NULL OR tenant_id = $tenant_id)
        AND ($from_date IS NULL OR charge_date >= $from_date)
        AND ($to_date IS NULL OR charge_date < $to_date)
    GROUP BY tenant_id, identity_id, currency
)

SELECT tenant_id, identity_id, identity_name, team, currency, direct, usage, shared, operator, unallocated, total, rows
FROM identities_charged
ORDER BY tenant_id, currency, identity_id = 'UNALLOCATED', total DESC, identity_id;
