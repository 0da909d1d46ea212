-- One row is what one identity bears of one product in one billing period, by kind of cost and currency.
--
-- `identity_name` and `team` are those of now (see chargeback_named): SELECT team, sum(amount) ... GROUP BY team.
CREATE OR REPLACE VIEW chargeback_monthly AS
SELECT
    tenant_id,
    month,
    billing_period,
    identity_id,
    -- Not keys: an identity has one of each, and who does not ask for them does not pay for finding them.
    any_value(identity_name) AS identity_name,
    any_value(team) AS team,
    product_category,
    product_type,
    cost_type,
    currency,
    sum(amount) AS amount,
    sum(effective_amount) AS effective_amount,
    sum(list_amount) AS list_amount,
    sum(contracted_amount) AS contracted_amount,
    count(*) AS rows
FROM chargeback_named
GROUP BY ALL;
