-- One row is one combination of labels that the chargeback has; chargeback_facts holds its amounts.
--
-- `identity_name` and `team` are those of now (see chargeback_named): the dimension_id does not change with them.
CREATE OR REPLACE VIEW chargeback_dimensions AS
SELECT DISTINCT * EXCLUDE (month, charge_date, amount)
FROM chargeback_star;
