-- One row is one amount charged to one identity for one part of one billing line, with the numbers that made it.
--
-- Needs one line before it: SET VARIABLE lake = '/path/to/lake'. `tenant_id` and `month` (the billing period) are
-- folders: a filter on them leaves the other files unread, and what they say counts, not what a file says. The variable
-- `chargeback_files` may name the files to read, as a list of globs below the table's folder; without it all are read.
CREATE OR REPLACE VIEW chargeback AS
SELECT *
FROM read_parquet(
    list_transform(
        coalesce(getvariable('chargeback_files'), ['**/*.parquet']),
        lambda file: getvariable('lake') || '/chargeback/' || file
    ),
    union_by_name = true,
    hive_partitioning = true,
    -- Without types a tenant '2024' would be a number, and a month a text or a date, as the lake happens to be.
    hive_types = {'tenant_id': VARCHAR, 'month': VARCHAR}
);
