-- One row is the team of one identity, as of now; identity_id '' stands for every payer without a row of its own.
--
-- Needs one line before it: SET VARIABLE lake = '/path/to/lake'. The variable `teams_files` may name the files to
-- read, as a list of globs below the table's folder; without it all are read.
CREATE OR REPLACE VIEW teams AS
SELECT *
FROM read_parquet(
    list_transform(
        coalesce(getvariable('teams_files'), ['**/*.parquet']),
        lambda file: getvariable('lake') || '/teams/' || file
    ),
    union_by_name = true,
    hive_partitioning = true,
    hive_types = {'tenant_id': VARCHAR}
);
