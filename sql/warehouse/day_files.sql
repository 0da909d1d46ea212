-- A tenant's day files in some billing periods and days: table, day, rows, and the file below the table's folder.
SELECT
    table_name,
    charge_date,
    rows,
    format('tenant_id={}/month={}/{}.parquet', tenant_id, month, charge_date) AS file
FROM lake_files
WHERE tenant_id = $tenant_id
    AND month BETWEEN $from_period AND $to_period
    AND charge_date BETWEEN $from_date AND $to_date;
