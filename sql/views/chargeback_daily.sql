-- One row is what one identity bears of one product on one day, by kind of cost and currency.
CREATE OR REPLACE VIEW chargeback_daily AS
SELECT
    tenant_id,
    month,
    billing_period,
    charge_date,
    identity_id,
    product_category,
    product_type,
    cost_type,
    currency,
    sum(amount) AS amount,
    sum(effective_amount) AS effective_amount,
    sum(list_amount) AS list_amount,
    sum(contracted_amount) AS contracted_amount,
    count(*) AS rows
FROM chargeback
GROUP BY
    tenant_id, month, billing_period, charge_date, identity_id, product_category, product_type, cost_type, currency;
