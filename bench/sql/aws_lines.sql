-- Billing (a view of the day files), pools (rule_id, pattern), keys (identity, date, key, value) and rules
-- -> lines and weights, as the ladder takes them. Each usage type is matched once.

create or replace temp view owned as
select billing.*, lower(trim(coalesce(tags ->> '$.team', ''))) as owner
from billing;

create or replace temp table matched_types as
select product_type, rule_id
from (select distinct product_type from billing) as types
join pools on types.product_type glob pools.pattern;

create or replace temp view lines as
select
    owned.* exclude (owner),
    case when owner <> '' then 'direct' else coalesce(matched_types.rule_id, 'untagged') end as rule_id,
    case when owner <> '' then owner else charge_date::varchar end as weight_scope
from owned
left join matched_types using (product_type);

create or replace temp table weights as
with
owners as (
    select distinct charge_date::varchar as charge_date, owner
    from owned
    where owner <> ''
)

select distinct ladder || '@' || owner as weight_group, rung, owner as identity_id, 1::bigint as weight
from rules
cross join owners
where basis = 'direct'

union all

select ladder || '@' || date, rung, identity, sum(value)::bigint
from keys
join rules on rules.basis = 'usage' and rules.metric = keys.key
group by all

union all

select ladder || '@' || charge_date, rung, owner, 1
from rules
cross join owners
where basis = 'even';
