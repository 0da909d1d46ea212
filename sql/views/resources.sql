-- One row is one billed resource over one interval; open bounds (null) mean always.
--
-- Needs one line before it: SET VARIABLE lake = '/path/to/lake'. The variable `resources_files` may name the files to
-- read, as a list of globs below the table's folder; without it all are read.
CREATE OR REPLACE VIEW resources AS
SELECT *
FROM read_parquet(
    list_transform(
        coalesce(getvariable('resources_files'), ['**/*.parquet']),
        lambda file: getvariable('lake') || '/resources/' || file
    ),
    union_by_name = true,
    hive_partitioning = true,
    hive_types = {'tenant_id': VARCHAR}
);
