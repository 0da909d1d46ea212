-- One row is what one combination of labels (see chargeback_dimensions) cost on one day.
CREATE OR REPLACE VIEW chargeback_facts AS
SELECT
    tenant_id,
    -- The folder and not the column, so that a filter on it leaves the other months' files unread.
    month AS billing_period,
    charge_date,
    dimension_id,
    amount
FROM chargeback_star;
