-- One row is one amount that no identity bears, and why.
--
-- `reason` is the allocation's detail: `untagged` (no owner, and no pool takes the line), `empty_key` or
-- `zero_key_total` (the pool's first rung had no candidate, or none with weight), or the name of the pool whose ladder
-- sends the money here. `class` sums the reasons up: untagged, no_weight, by_rule.
CREATE OR REPLACE VIEW unallocated AS
SELECT
    tenant_id,
    month,
    billing_period,
    charge_date,
    line_id,
    part,
    rule_id,
    allocation_detail AS reason,
    CASE
        WHEN rule_id = 'untagged' THEN 'untagged'
        WHEN allocation_detail IN ('empty_key', 'zero_key_total') THEN 'no_weight'
        ELSE 'by_rule'
    END AS class,
    env_id,
    resource_id,
    product_category,
    product_type,
    line_item_type,
    region,
    operation,
    sub_account_id,
    invoice_id,
    currency,
    amount,
    effective_amount,
    list_amount,
    contracted_amount
FROM chargeback
WHERE identity_id = 'UNALLOCATED';
