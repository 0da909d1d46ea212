-- One row is one tag that a user's table gives to an identity or a resource, as of now.
--
-- Needs one line before it: SET VARIABLE lake = '/path/to/lake'. The variable `tags_files` may name the files to
-- read, as a list of globs below the table's folder; without it all are read.
CREATE OR REPLACE VIEW tags AS
SELECT *
FROM read_parquet(
    list_transform(
        coalesce(getvariable('tags_files'), ['**/*.parquet']),
        lambda file: getvariable('lake') || '/tags/' || file
    ),
    union_by_name = true,
    hive_partitioning = true,
    hive_types = {'tenant_id': VARCHAR}
);
