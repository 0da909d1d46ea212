-- One row is one key, population or scope that weighed nothing on a day on which a line asked for it.
--
-- Needs one line before it: SET VARIABLE lake = '/path/to/lake'. The variable `empty_keys_files` may name the files to
-- read, as a list of globs below the table's folder; without it all are read.
CREATE OR REPLACE VIEW empty_keys AS
SELECT *
FROM read_parquet(
    list_transform(
        coalesce(getvariable('empty_keys_files'), ['**/*.parquet']),
        lambda file: getvariable('lake') || '/empty_keys/' || file
    ),
    union_by_name = true,
    hive_partitioning = true,
    hive_types = {'tenant_id': VARCHAR, 'month': VARCHAR}
);
