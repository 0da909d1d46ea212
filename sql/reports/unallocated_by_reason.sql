-- What nobody bears, and why.
--
-- A row is one reason and rule in one tenant and currency (see the view unallocated). Parameters: $tenant_id (null:
-- all), $from_date, $to_date (null: open; to exclusive).
WITH
rows AS (
    SELECT tenant_id, currency, reason, class, rule_id, charge_date, line_id, amount
    FROM unallocated
    WHERE ($tenant_id IS NULL OR tenant_id = $tenant_id)
        AND ($from_date IS NULL OR charge_date >= $from_date)
        AND ($to_date IS NULL OR charge_date < $to_date)
),

reasons AS (
    SELECT
        tenant_id,
        currency,
        class,
        reason,
        rule_id,
        sum(amount) AS amount,
        count(DISTINCT (charge_date, line_id)) AS lines,
        count(DISTINCT charge_date) AS days
    FROM rows
    GROUP BY tenant_id, currency, class, reason, rule_id
)

SELECT tenant_id, currency, class, reason, rule_id, amount, lines, days
FROM reasons
ORDER BY tenant_id, currency, abs(amount) DESC, reason, rule_id;
