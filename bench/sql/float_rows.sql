-- The columns of CHARGEBACK with amounts in floating point: what one would write who does not count the cents.

create or replace temp view float_rows as
select
    lines.tenant_id, lines.charge_date, lines.line_id, shares.part, shares.identity_id, lines.ecosystem,
    lines.billing_period, lines.env_id, lines.resource_id, lines.product_category, lines.product_type,
    lines.line_item_type, lines.region, lines.operation, lines.sub_account_id, lines.invoice_id, lines.currency,
    lines.amount::double * shares.weight / shares.weight_total as amount,
    null::double as effective_amount, null::double as list_amount, null::double as contracted_amount,
    shares.cost_type, shares.allocation_method, shares.allocation_detail, lines.rule_id, shares.rule_version,
    shares.rung, lines.amount::double as part_amount,
    shares.weight_before, shares.weight, shares.weight_total, 'bench' as calculation_id
from lines
join shares using (rule_id, weight_scope);
