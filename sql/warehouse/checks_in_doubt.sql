-- The checks that have something to look at (sql/warehouse/doubts.sql).
SELECT DISTINCT check_name
FROM doubts;
