-- Amounts as whole counts of 1e-12 and back. By way of text: DECIMAL(38,12) times 10^12 does not fit a DECIMAL.

create or replace macro units_of(amount) as
    replace(amount::varchar, '.', '')::hugeint;

create or replace macro amount_of(units) as (
    case when units < 0 then '-' else '' end
    || (abs(units) // 1000000000000::hugeint)::varchar
    || '.'
    || lpad((abs(units) % 1000000000000::hugeint)::varchar, 12, '0')
)::decimal(38, 12);

-- How much of `units` a payer gets who weighs `weight`, comes after others who weigh `weight_before`, of `weight_total`.
-- Written with the quotient set aside, since units * weight does not fit 128 bits.
create or replace macro share_of(units, weight_before, weight, weight_total) as
    case when units < 0 then -1 else 1 end
    * (
        abs(units) // weight_total::hugeint * weight
        + (abs(units) % weight_total::hugeint) * (weight_before + weight) // weight_total::hugeint
        - (abs(units) % weight_total::hugeint) * weight_before // weight_total::hugeint
    );
