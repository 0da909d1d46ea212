-- One row is one billing line of one day, as it was billed.
--
-- Needs one line before it: SET VARIABLE lake = '/path/to/lake'. `tenant_id` and `month` (the billing period) are
-- folders: a filter on them leaves the other files unread, and what they say counts, not what a file says. The variable
-- `billing_files` may name the files to read, as a list of globs below the table's folder; without it all are read.
CREATE OR REPLACE VIEW billing AS
SELECT *
FROM read_parquet(
    list_transform(
        coalesce(getvariable('billing_files'), ['**/*.parquet']),
        lambda file: getvariable('lake') || '/billing/' || file
    ),
    union_by_name = true,
    hive_partitioning = true,
    -- Without types a tenant '2024' would be a number, and a month a text or a date, as the lake happens to be.
    hive_types = {'tenant_id': VARCHAR, 'month': VARCHAR}
);
