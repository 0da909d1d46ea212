-- Who bears how much of each line of Kafka clusters, exactly: by what was measured (network), or evenly (all else).

create or replace temp view product_rows as
with
weights as (
    select resource_id, metric, principal as identity_id, value::hugeint as weight
    from usage

    union all

    select distinct resource_id, 'even', principal, 1::hugeint
    from usage
),

weighed as (
    select
        weights.*,
        coalesce(
            sum(weight) over (
                partition by resource_id, metric
                order by identity_id
                rows between unbounded preceding and 1 preceding
            ),
            0
        )::hugeint as weight_before,
        (sum(weight) over (partition by resource_id, metric))::hugeint as weight_total
    from weights
),

measured_lines as (
    select
        charge_date,
        line_id,
        resource_id,
        case product_type
            when 'KAFKA_NETWORK_WRITE' then 'bytes_in'
            when 'KAFKA_NETWORK_READ' then 'bytes_out'
            else 'even'
        end as metric,
        units_of(amount) as units,
        abs(units_of(amount)) as size
    from billing
),

apportioned as (
    select
        charge_date,
        line_id,
        identity_id,
        case when units < 0 then -1 else 1 end
        * (
            size // weight_total * weight
            + size % weight_total * (weight_before + weight) // weight_total
            - size % weight_total * weight_before // weight_total
        ) as share_units
    from measured_lines
    join weighed using (resource_id, metric)
)

select charge_date, line_id, identity_id, amount_of(share_units) as amount
from apportioned
where share_units <> 0;
