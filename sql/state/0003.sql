-- Tags that users give in tables of their own, and what teams are derived from.

-- One tag of an identity or a resource; a tenant's are replaced as a whole.
CREATE TABLE custom_tags (
    tenant_id TEXT NOT NULL,
    entity_id TEXT NOT NULL,
    key       TEXT NOT NULL,
    value     TEXT NOT NULL,
    PRIMARY KEY (tenant_id, entity_id, key)
) STRICT, WITHOUT ROWID;

-- What a tenant's tags and teams in the lake were last derived from; another digest, and they are made again.
CREATE TABLE tenant_teams (
    tenant_id    TEXT NOT NULL PRIMARY KEY,
    cause_digest TEXT NOT NULL
) STRICT, WITHOUT ROWID;

PRAGMA user_version = 3;
