-- Amounts as whole numbers of 1e-12, and back.

-- DECIMAL times DECIMAL is exact while both precisions total 38; so these hold for amounts below 1e13. (The general
-- way, through text, takes longer.)
create or replace temp macro units_of(amount) as
    (amount::decimal(25, 12) * 1000000000000::decimal(13, 0))::hugeint;

create or replace temp macro amount_of(units) as
    (units::decimal(26, 0) * 0.000000000001::decimal(12, 12))::decimal(38, 12);
