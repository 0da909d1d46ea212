-- One row is one payer over one interval; open bounds (null) mean always.
--
-- Needs one line before it: SET VARIABLE lake = '/path/to/lake'. The variable `identities_files` may name the files to
-- read, as a list of globs below the table's folder; without it all are read.
CREATE OR REPLACE VIEW identities AS
SELECT *
FROM read_parquet(
    list_transform(
        coalesce(getvariable('identities_files'), ['**/*.parquet']),
        lambda file: getvariable('lake') || '/identities/' || file
    ),
    union_by_name = true,
    hive_partitioning = true,
    hive_types = {'tenant_id': VARCHAR}
);
