-- The lake's day files are those that the state logged, with as many rows.
--
-- A row of the result is one file without a log entry (`logged` null; also one that lies where no day file lies), one
-- entry without a file (`stored` null), or a pair whose counts differ. The log is the relation file_log (table_name,
-- billing_period, charge_date, rows) of the tenant, which the caller provides. Only footers of files are read.
WITH
files AS (
    SELECT table_name, month AS billing_period, charge_date, rows, file
    FROM lake_files
    WHERE tenant_id = $tenant_id
        AND coalesce(
            month BETWEEN $from_period AND $to_period AND charge_date BETWEEN $from_date AND $to_date,
            TRUE
        )
),

logged AS (
    SELECT table_name, billing_period, charge_date, rows
    FROM file_log
    WHERE billing_period BETWEEN $from_period AND $to_period
        AND charge_date BETWEEN $from_date AND $to_date
)

SELECT table_name, billing_period, charge_date, files.rows AS stored, logged.rows AS logged, files.file
FROM files
FULL JOIN logged USING (table_name, billing_period, charge_date)
WHERE files.rows IS DISTINCT FROM logged.rows
ORDER BY table_name, billing_period, charge_date, files.file;
