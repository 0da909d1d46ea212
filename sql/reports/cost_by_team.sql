-- What every team bears, by kind of cost: cost_by_identity, summed by the teams of now.
--
-- A row is one team in one tenant and currency; UNALLOCATED is a team of its own. Columns and totals are those of
-- cost_by_identity. Parameters: $tenant_id (null: all), $from_date, $to_date (null: open; to exclusive).
WITH
teams_charged AS (
    SELECT
        tenant_id,
        team,
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
    GROUP BY tenant_id, team, currency
)

SELECT tenant_id, team, currency, direct, usage, shared, operator, unallocated, total, rows
FROM teams_charged
ORDER BY tenant_id, currency, team = 'UNALLOCATED', total DESC, team;
