-- What prorata has done, and what it may leave alone.

-- One day of one bill. A digest says what was stored; a day whose digests still fit is left as it is.
CREATE TABLE pipeline_state (
    ecosystem             TEXT    NOT NULL,
    tenant_id             TEXT    NOT NULL,
    billing_period        TEXT    NOT NULL CHECK (billing_period GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]'),
    charge_date           TEXT    NOT NULL CHECK (charge_date GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]'),
    billing_gathered      INTEGER NOT NULL CHECK (billing_gathered IN (0, 1)),
    resources_gathered    INTEGER NOT NULL CHECK (resources_gathered IN (0, 1)),
    metrics_gathered      INTEGER NOT NULL CHECK (metrics_gathered IN (0, 1)),
    chargeback_calculated INTEGER NOT NULL CHECK (chargeback_calculated IN (0, 1)),
    billing_digest        TEXT    NOT NULL,
    billing_rows          INTEGER NOT NULL,
    billing_bytes         INTEGER NOT NULL,
    cause_digest          TEXT,
    input_digest          TEXT,
    output_digest         TEXT,
    calculation_id        TEXT,
    chargeback_rows       INTEGER,
    chargeback_bytes      INTEGER,
    empty_key_rows        INTEGER,
    checked_digest        TEXT,
    attempts              INTEGER NOT NULL,
    error                 TEXT,
    PRIMARY KEY (tenant_id, billing_period, charge_date),
    CHECK (chargeback_calculated = 0 OR (input_digest IS NOT NULL AND output_digest IS NOT NULL))
) STRICT, WITHOUT ROWID;

-- What a tenant's identities and resources in the lake were last derived from; another digest, and they are made again.
CREATE TABLE tenant_entities (
    tenant_id    TEXT NOT NULL PRIMARY KEY,
    cause_digest TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- One run of one command for one tenant. 'died' is written by the next claim: the dead cannot.
CREATE TABLE pipeline_runs (
    run_id          TEXT    NOT NULL PRIMARY KEY,
    ecosystem       TEXT    NOT NULL,
    tenant_id       TEXT    NOT NULL,
    command         TEXT    NOT NULL,
    started_at      TEXT    NOT NULL,
    ended_at        TEXT,
    status          TEXT    NOT NULL CHECK (status IN ('running', 'done', 'failed', 'stopped', 'died')),
    stage           TEXT    NOT NULL,
    days_gathered   INTEGER NOT NULL,
    days_calculated INTEGER NOT NULL,
    days_removed    INTEGER NOT NULL,
    rows_written    INTEGER NOT NULL,
    error           TEXT
) STRICT;

CREATE INDEX pipeline_runs_by_tenant ON pipeline_runs (tenant_id, started_at);

-- One load of one bill. 'publishing' while its days are put into the lake, one by one: if that is what a run left
-- behind, the next one loads the bill again. History is kept: the load that counts is the one that is 'loaded'.
CREATE TABLE ingestion_assemblies (
    load_id             INTEGER NOT NULL PRIMARY KEY,
    tenant_id           TEXT    NOT NULL,
    billing_period      TEXT    NOT NULL CHECK (billing_period GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]'),
    assembly_id         TEXT    NOT NULL,
    fingerprint         TEXT    NOT NULL,
    manifest            TEXT    NOT NULL,
    lines               INTEGER NOT NULL,
    billing_rows        INTEGER NOT NULL,
    amounts             TEXT    NOT NULL CHECK (json_valid(amounts)),
    rounding_residue    TEXT    NOT NULL,
    days_outside_period INTEGER NOT NULL,
    schema_differences  TEXT    NOT NULL CHECK (json_valid(schema_differences)),
    warnings            TEXT    NOT NULL CHECK (json_valid(warnings)),
    loaded_at           TEXT    NOT NULL,
    status              TEXT    NOT NULL CHECK (status IN ('publishing', 'loaded', 'replaced'))
) STRICT;

CREATE UNIQUE INDEX ingestion_assemblies_loaded
    ON ingestion_assemblies (tenant_id, billing_period, status) WHERE status <> 'replaced';

CREATE TABLE ingestion_files (
    load_id  INTEGER NOT NULL REFERENCES ingestion_assemblies (load_id) ON DELETE CASCADE,
    path     TEXT    NOT NULL,
    size     INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    sha256   TEXT    NOT NULL,
    lines    INTEGER NOT NULL,
    PRIMARY KEY (load_id, path)
) STRICT, WITHOUT ROWID;

-- What an emitter was last given for a day. It outlives the day in pipeline_state, so that a withdrawn day is
-- withdrawn there too; hence no foreign key.
CREATE TABLE emission_records (
    tenant_id      TEXT    NOT NULL,
    emitter        TEXT    NOT NULL,
    billing_period TEXT    NOT NULL,
    charge_date    TEXT    NOT NULL,
    output_digest  TEXT,
    outcome        TEXT    NOT NULL CHECK (outcome IN ('emitted', 'failed', 'skipped', 'withdrawn')),
    rows           INTEGER NOT NULL,
    attempts       INTEGER NOT NULL,
    emitted_at     TEXT    NOT NULL,
    error          TEXT,
    PRIMARY KEY (tenant_id, emitter, billing_period, charge_date)
) STRICT, WITHOUT ROWID;

-- Who holds a tenant, to be named in messages. The truth is the lock on claims/<tenant_id>.lock.
CREATE TABLE claims (
    tenant_id   TEXT    NOT NULL PRIMARY KEY,
    host        TEXT    NOT NULL,
    boot_id     TEXT    NOT NULL,
    pid         INTEGER NOT NULL,
    start_ticks INTEGER NOT NULL,
    claimed_at  TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

PRAGMA user_version = 1;
