-- One row is one file of billing or chargeback: whose day it holds after its folders and its name, and its rows.
--
-- `month` and `charge_date` are null for a file that does not lie where day files lie. Only footers are read, of
-- the files that the views billing and chargeback read.
CREATE OR REPLACE VIEW lake_files AS
WITH
footers AS (
    SELECT 'billing' AS table_name, file_name AS file, num_rows AS rows
    FROM parquet_file_metadata(
        list_transform(
            coalesce(getvariable('billing_files'), ['**/*.parquet']),
            lambda file: getvariable('lake') || '/billing/' || file
        )
    )

    UNION ALL

    SELECT 'chargeback' AS table_name, file_name AS file, num_rows AS rows
    FROM parquet_file_metadata(
        list_transform(
            coalesce(getvariable('chargeback_files'), ['**/*.parquet']),
            lambda file: getvariable('lake') || '/chargeback/' || file
        )
    )
),

places AS (
    SELECT
        table_name,
        file,
        rows,
        regexp_extract(file, '^.*/tenant_id=([^/]*)/', 1) AS tenant_id,
        regexp_extract(file, '/tenant_id=[^/]*/month=(\d{4}-\d\d)/\d{4}-\d\d-\d\d[.]parquet$', 1) AS month,
        regexp_extract(file, '/tenant_id=[^/]*/month=\d{4}-\d\d/(\d{4}-\d\d-\d\d)[.]parquet$', 1) AS charge_date
    FROM footers
)

SELECT
    table_name,
    tenant_id,
    nullif(month, '') AS month,
    try_cast(charge_date AS DATE) AS charge_date,
    rows,
    file
FROM places;
