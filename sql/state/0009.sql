-- What gathers said of entities whose answers are no longer kept, so that the inventories after them can be read again.

-- Where a replay begins to fold inventories: with what was known once all gathers up to `gather_id` were folded. `types`:
-- the types of entities that they were told of, whole or not. `zero_counts`: as in zero_gathers, a JSON object by type.
-- A tenant all of whose gathers are kept has none.
CREATE TABLE bases (
    tenant_id   TEXT    NOT NULL PRIMARY KEY,
    gather_id   INTEGER NOT NULL,
    types       TEXT    NOT NULL CHECK (json_valid(types)),
    zero_counts TEXT    NOT NULL CHECK (json_valid(zero_counts))
) STRICT, WITHOUT ROWID;

CREATE TABLE base_resources (
    tenant_id     TEXT NOT NULL,
    id            TEXT NOT NULL,
    valid_from    TEXT NOT NULL,
    valid_to      TEXT NOT NULL CHECK (valid_to = '' OR valid_to > valid_from),
    type          TEXT NOT NULL,
    display_name  TEXT NOT NULL,
    parent        TEXT NOT NULL,
    owner         TEXT NOT NULL,
    scope         TEXT NOT NULL,
    created_at    TEXT,
    deleted_at    TEXT,
    first_seen_at TEXT,
    last_seen_at  TEXT,
    PRIMARY KEY (tenant_id, id, valid_from)
) STRICT, WITHOUT ROWID;

CREATE TABLE base_identities (
    tenant_id     TEXT NOT NULL,
    id            TEXT NOT NULL,
    valid_from    TEXT NOT NULL,
    valid_to      TEXT NOT NULL CHECK (valid_to = '' OR valid_to > valid_from),
    type          TEXT NOT NULL,
    display_name  TEXT NOT NULL,
    owner         TEXT NOT NULL,
    scope         TEXT NOT NULL,
    created_at    TEXT,
    deleted_at    TEXT,
    first_seen_at TEXT,
    last_seen_at  TEXT,
    PRIMARY KEY (tenant_id, id, valid_from)
) STRICT, WITHOUT ROWID;

PRAGMA user_version = 9;
