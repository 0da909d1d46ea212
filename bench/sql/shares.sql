-- The ladder: lines (rule_id, weight_scope), rules and weights -> who bears how much of a line of each rule and scope.

create or replace temp view shares as
with
totals as (
    select weight_group, rung, sum(weight)::bigint as weight_total
    from weights
    group by all
),

scopes as (
    select distinct rule_id, weight_scope
    from lines
),

rungs as (
    select
        scopes.*,
        rules.* exclude (rule_id),
        rules.ladder || '@' || scopes.weight_scope as weight_group,
        basis in ('resource', 'operator', 'unallocated') as is_last
    from scopes
    join rules using (rule_id)
),

weighed_rungs as (
    select
        rungs.*,
        totals.weight_total,
        case when totals.weight_total is null then 'empty_key' else 'zero_key_total' end as reason
    from rungs
    left join totals using (weight_group, rung)
),

winners as (
    select
        weighed_rungs.* exclude (allocation_detail),
        case
            when is_last and allocation_detail = ''
                then first_value(reason) over (partition by rule_id, weight_scope, part order by rung)
            else allocation_detail
        end as allocation_detail
    from weighed_rungs
    qualify
        row_number() over (
            partition by rule_id, weight_scope, part
            order by not (is_last or coalesce(weight_total, 0) > 0), rung
        ) = 1
)

select
    winners.rule_id, winners.weight_scope, winners.part, winners.rung, winners.cost_type, winners.allocation_method,
    winners.allocation_detail, winners.version as rule_version, weights.identity_id,
    coalesce(
        sum(weights.weight) over (
            partition by winners.rule_id, winners.weight_scope, winners.part
            order by weights.identity_id
            rows between unbounded preceding and 1 preceding
        ),
        0
    )::bigint as weight_before,
    weights.weight,
    winners.weight_total
from winners
join weights using (weight_group, rung)
where weights.weight > 0 and not winners.is_last

union all by name

select
    rule_id, weight_scope, part, rung, cost_type, allocation_method, allocation_detail, version as rule_version,
    payer as identity_id, 0::bigint as weight_before, 1::bigint as weight, 1::bigint as weight_total
from winners
where is_last;
