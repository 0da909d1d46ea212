-- Every column of a key has a value.
--
-- A row of the result is one row of billing or chargeback with a null in a column of its key. `tenant_id` is a folder
-- and cannot be null. Each column is asked by itself, since a single IS NULL is answered by a file's statistics. Asked
-- if there is a doubt (sql/warehouse/doubts.sql).
SELECT 'billing' AS table_name, 'charge_date' AS column_name, tenant_id, month, charge_date, line_id
FROM billing
WHERE tenant_id = $tenant_id
    AND month BETWEEN $from_period AND $to_period
    AND charge_date IS NULL

UNION ALL

SELECT 'billing' AS table_name, 'line_id' AS column_name, tenant_id, month, charge_date, line_id
FROM billing
WHERE tenant_id = $tenant_id
    AND month BETWEEN $from_period AND $to_period
    AND charge_date BETWEEN $from_date AND $to_date
    AND line_id IS NULL

UNION ALL

SELECT 'chargeback' AS table_name, 'charge_date' AS column_name, tenant_id, month, charge_date, line_id
FROM chargeback
WHERE tenant_id = $tenant_id
    AND month BETWEEN $from_period AND $to_period
    AND charge_date IS NULL

UNION ALL

SELECT 'chargeback' AS table_name, 'line_id' AS column_name, tenant_id, month, charge_date, line_id
FROM chargeback
WHERE tenant_id = $tenant_id
    AND month BETWEEN $from_period AND $to_period
    AND charge_date BETWEEN $from_date AND $to_date
    AND line_id IS NULL

UNION ALL

SELECT 'chargeback' AS table_name, 'part' AS column_name, tenant_id, month, charge_date, line_id
FROM chargeback
WHERE tenant_id = $tenant_id
    AND month BETWEEN $from_period AND $to_period
    AND charge_date BETWEEN $from_date AND $to_date
    AND part IS NULL

UNION ALL

SELECT 'chargeback' AS table_name, 'identity_id' AS column_name, tenant_id, month, charge_date, line_id
FROM chargeback
WHERE tenant_id = $tenant_id
    AND month BETWEEN $from_period AND $to_period
    AND charge_date BETWEEN $from_date AND $to_date
    AND identity_id IS NULL

ORDER BY table_name, column_name, tenant_id, month, charge_date, line_id;
