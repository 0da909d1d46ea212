-- The columns of CHARGEBACK, exactly: 1e-12 units as HUGEINT, and the same arithmetic as the kernel's.

create or replace temp view exact_rows as
with
measured_lines as (
    select
        lines.* exclude (amount),
        lines.amount as part_amount,
        units_of(lines.amount) as units,
        abs(units_of(lines.amount)) as size
    from lines
),

divided as (
    select
        measured_lines.*,
        shares.* exclude (rule_id, weight_scope),
        size // weight_total::hugeint as quotient,
        size % weight_total::hugeint as remainder
    from measured_lines
    join shares using (rule_id, weight_scope)
),

apportioned as (
    select
        divided.*,
        case when units < 0 then -1 else 1 end
        * (
            quotient * weight
            + remainder * (weight_before + weight) // weight_total::hugeint
            - remainder * weight_before // weight_total::hugeint
        ) as share_units
    from divided
)

select
    tenant_id, charge_date, line_id, part, identity_id, ecosystem, billing_period, env_id, resource_id,
    product_category, product_type, line_item_type, region, operation, sub_account_id, invoice_id, currency,
    amount_of(share_units) as amount,
    null::decimal(38, 12) as effective_amount, null::decimal(38, 12) as list_amount,
    null::decimal(38, 12) as contracted_amount,
    cost_type, allocation_method, allocation_detail, rule_id, rule_version, rung, part_amount,
    weight_before, weight, weight_total, 'bench' as calculation_id
from apportioned
where share_units <> 0 or (units = 0 and weight_before = 0);
