-- One row is one combination of labels that the chargeback has; chargeback_facts holds its amounts.
CREATE OR REPLACE VIEW chargeback_dimensions AS
SELECT DISTINCT
    dimension_id,
    tenant_id,
    ecosystem,
    identity_id,
    env_id,
    resource_id,
    product_category,
    product_type,
    line_item_type,
    region,
    sub_account_id,
    currency,
    cost_type,
    allocation_method,
    allocation_detail
FROM chargeback_star;
