-- CHARGEBACK from billing_lines (BILLING + rule_id, weight_scope), rules (RULES) and weights (WEIGHTS), in HUGEINT throughout.
with

parts as (
    select
        rule_id,
        part,
        ladder,
        share::hugeint as share,
        coalesce(
            sum(share) over (partition by rule_id order by part rows between unbounded preceding and 1 preceding), 0
        )::hugeint as share_before,
        sum(share) over (partition by rule_id)::hugeint as share_total
    from (select distinct rule_id, part, ladder, share from rules)
),

line_parts as (
    select
        billing_lines.*,
        parts.part,
        parts.ladder || '@' || weight_scope as weight_group,
        share_of(units_of(amount), share_before, share, share_total) as amount_units,
        share_of(units_of(effective_amount), share_before, share, share_total) as effective_units,
        share_of(units_of(list_amount), share_before, share, share_total) as list_units,
        share_of(units_of(contracted_amount), share_before, share, share_total) as contracted_units
    from billing_lines
    join parts using (rule_id)
),

group_rungs as (
    select
        weight_group,
        rung,
        sum(weight)::hugeint as weight_total
    from weights
    group by weight_group, rung
),

-- One row for each rung that any line's part could stop at; the last one of a ladder always holds.
candidate_rungs as (
    select
        asked.weight_group,
        rules.*,
        rules.rung = max(rules.rung) over (partition by asked.weight_group, rules.rule_id, rules.part) as is_last,
        group_rungs.weight_total,
        case when group_rungs.weight_total is null then 'empty_key' else 'zero_key_total' end as reason
    from (select distinct rule_id, part, weight_group from line_parts) as asked
    join rules using (rule_id, part)
    left join group_rungs on group_rungs.weight_group = asked.weight_group and group_rungs.rung = rules.rung
),

first_reasons as (
    select weight_group, rule_id, part, reason
    from candidate_rungs
    where rung = 0
),

held_rungs as (
    select
        candidate_rungs.* exclude (allocation_detail, reason),
        case when allocation_detail = '' and is_last then first_reasons.reason else allocation_detail end as detail
    from candidate_rungs
    join first_reasons using (weight_group, rule_id, part)
    where weight_total > 0 or is_last
    qualify row_number() over (partition by weight_group, rule_id, part order by rung) = 1
),

payers as (
    select
        weight_group,
        rung,
        identity_id,
        weight::hugeint as weight,
        coalesce(
            sum(weight) over (
                partition by weight_group, rung
                order by identity_id
                rows between unbounded preceding and 1 preceding
            ),
            0
        )::hugeint as weight_before
    from weights
),

charges as (
    select
        line_parts.*,
        held_rungs.rung,
        held_rungs.version as rule_version,
        held_rungs.cost_type,
        held_rungs.detail as allocation_detail,
        payers.identity_id,
        held_rungs.allocation_method,
        payers.weight_before,
        payers.weight,
        held_rungs.weight_total
    from line_parts
    join held_rungs using (weight_group, rule_id, part)
    join payers using (weight_group, rung)
    where not held_rungs.is_last and payers.weight > 0

    union all by name

    select
        line_parts.*,
        held_rungs.rung,
        held_rungs.version as rule_version,
        held_rungs.cost_type,
        held_rungs.detail as allocation_detail,
        case
            when payer <> '' then payer
            when resource_id <> '' then resource_id
            else 'UNALLOCATED'
        end as identity_id,
        case when payer = '' and resource_id = '' then 'unallocated' else held_rungs.allocation_method end as allocation_method,
        0::hugeint as weight_before,
        1::hugeint as weight,
        1::hugeint as weight_total
    from line_parts
    join held_rungs using (weight_group, rule_id, part)
    where held_rungs.is_last
),

shares as (
    select
        *,
        share_of(amount_units, weight_before, weight, weight_total) as share_units,
        share_of(effective_units, weight_before, weight, weight_total) as effective_share_units,
        share_of(list_units, weight_before, weight, weight_total) as list_share_units,
        share_of(contracted_units, weight_before, weight, weight_total) as contracted_share_units
    from charges
),

stored as (
    select *
    from shares
    qualify
        share_units <> 0
        or coalesce(effective_share_units, 0) <> 0
        or coalesce(list_share_units, 0) <> 0
        or coalesce(contracted_share_units, 0) <> 0
        or (
            row_number() over (partition by tenant_id, charge_date, line_id order by part, identity_id) = 1
            and not bool_or(
                share_units <> 0
                or coalesce(effective_share_units, 0) <> 0
                or coalesce(list_share_units, 0) <> 0
                or coalesce(contracted_share_units, 0) <> 0
            ) over (partition by tenant_id, charge_date, line_id)
        )
)

select
    tenant_id,
    charge_date,
    line_id,
    part::smallint as part,
    identity_id,
    ecosystem,
    billing_period,
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
    amount_of(share_units) as amount,
    amount_of(effective_share_units) as effective_amount,
    amount_of(list_share_units) as list_amount,
    amount_of(contracted_share_units) as contracted_amount,
    cost_type,
    allocation_method,
    allocation_detail,
    rule_id,
    rule_version,
    rung::smallint as rung,
    amount_of(amount_units) as part_amount,
    weight_before::bigint as weight_before,
    weight::bigint as weight,
    weight_total::bigint as weight_total,
    $calculation_id as calculation_id
from stored
order by tenant_id, charge_date, line_id, part, identity_id
