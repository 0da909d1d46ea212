-- Tenants whose bill comes from an API: what was gathered, and what is known since.

-- One pass over the API: the days from first_day to before end_day, and the inventory. 'open' until all of it is landed
-- and published, so that the next run goes on with it; 'failed' says that it ended without a part of it. `folded`: its
-- inventory, as far as it was landed, is in the entities. `run_ended`: all that follows from it was done, too; the run
-- after one that died in between goes on with what is landed.
CREATE TABLE gathers (
    tenant_id        TEXT    NOT NULL,
    gather_id        INTEGER NOT NULL,
    started_at       TEXT    NOT NULL,
    ended_at         TEXT,
    first_day        TEXT    NOT NULL,
    end_day          TEXT    NOT NULL,
    status           TEXT    NOT NULL CHECK (status IN ('open', 'done', 'failed')),
    requests         INTEGER NOT NULL,
    error            TEXT,
    inventory_errors TEXT    NOT NULL CHECK (json_valid(inventory_errors)),
    folded           INTEGER NOT NULL CHECK (folded IN (0, 1)),
    run_ended        INTEGER NOT NULL CHECK (run_ended IN (0, 1)),
    PRIMARY KEY (tenant_id, gather_id)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX gathers_open ON gathers (tenant_id) WHERE status = 'open';

-- The costs that a gather landed for one window, and what was published of them.
CREATE TABLE landed_windows (
    tenant_id        TEXT    NOT NULL,
    gather_id        INTEGER NOT NULL,
    first_day        TEXT    NOT NULL,
    end_day          TEXT    NOT NULL,
    sha256           TEXT    NOT NULL,
    records          INTEGER NOT NULL,
    malformed        INTEGER NOT NULL,
    rounding_residue TEXT    NOT NULL,
    warnings         TEXT    NOT NULL CHECK (json_valid(warnings)),
    PRIMARY KEY (tenant_id, gather_id, first_day),
    FOREIGN KEY (tenant_id, gather_id) REFERENCES gathers (tenant_id, gather_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Why a tenant is not gathered: failures in a row, and since when they are too many.
CREATE TABLE gather_failures (
    tenant_id    TEXT    NOT NULL PRIMARY KEY,
    failures     INTEGER NOT NULL,
    error        TEXT    NOT NULL,
    suspended_at TEXT
) STRICT, WITHOUT ROWID;

-- One question to the metrics that was answered: a metric of some resources over the days from first_day to before
-- end_day. The answers are landed under its number.
CREATE TABLE metric_fetches (
    tenant_id  TEXT    NOT NULL,
    fetch_id   INTEGER NOT NULL,
    metric     TEXT    NOT NULL,
    first_day  TEXT    NOT NULL,
    end_day    TEXT    NOT NULL,
    ids        TEXT    NOT NULL CHECK (json_valid(ids)),
    fetched_at TEXT    NOT NULL,
    PRIMARY KEY (tenant_id, fetch_id)
) STRICT, WITHOUT ROWID;

-- What became of a metric that a day asks for, for the resources in `ids`. `attempts` are failures of the same question,
-- which is another one when ids or billing have changed.
CREATE TABLE day_metrics (
    tenant_id      TEXT    NOT NULL,
    charge_date    TEXT    NOT NULL,
    metric         TEXT    NOT NULL,
    status         TEXT    NOT NULL CHECK (status IN ('fetched', 'failed', 'given_up')),
    ids            TEXT    NOT NULL CHECK (json_valid(ids)),
    billing_digest TEXT    NOT NULL,
    fetch_id       INTEGER,
    rows           INTEGER NOT NULL,
    dropped        INTEGER NOT NULL,
    gaps           INTEGER NOT NULL,
    attempts       INTEGER NOT NULL,
    error          TEXT,
    PRIMARY KEY (tenant_id, charge_date, metric),
    CHECK (status <> 'fetched' OR fetch_id IS NOT NULL)
) STRICT, WITHOUT ROWID;

-- The day file of usage in the lake, as it was published.
CREATE TABLE usage_days (
    tenant_id   TEXT    NOT NULL,
    charge_date TEXT    NOT NULL,
    digest      TEXT    NOT NULL,
    rows        INTEGER NOT NULL,
    bytes       INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, charge_date)
) STRICT, WITHOUT ROWID;

-- What a tenant has, by intervals of days; '' bounds mean always. The lake's current.parquet is made of these.
CREATE TABLE resources (
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

CREATE TABLE identities (
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

-- How often in a row a type of entities came back empty although some are known. A type without a row never came whole.
CREATE TABLE zero_gathers (
    tenant_id TEXT    NOT NULL,
    type      TEXT    NOT NULL,
    count     INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, type)
) STRICT, WITHOUT ROWID;

PRAGMA user_version = 2;
