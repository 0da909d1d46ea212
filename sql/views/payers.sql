-- One row is one identity as of now: its type, its display name (its id where it has none) and its team.
--
-- As of now means: of its last interval. The row of identity_id '' has the team of every payer that has no row. There is
-- one row per tenant and id whatever the tables hold, so that what is joined to it never becomes more.
CREATE OR REPLACE VIEW payers AS
WITH
known AS (
    SELECT tenant_id, id AS identity_id, coalesce(valid_from, DATE '0001-01-01') AS since, type, display_name
    FROM identities

    UNION ALL BY NAME

    SELECT tenant_id, identity_id, team
    FROM teams
)

SELECT
    tenant_id,
    identity_id,
    coalesce(arg_max(type, since), '') AS type,
    coalesce(nullif(arg_max(display_name, since), ''), identity_id) AS identity_name,
    min(team) AS team
FROM known
GROUP BY tenant_id, identity_id;
