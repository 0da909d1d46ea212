-- The chargeback as a star: who and what in chargeback_dimensions, how much per day in chargeback_facts.
--
-- SQLite integers have 64 bits and its reals are floats, so an amount is two integers,
--     amount = amount_whole + amount_fraction * 1e-12,
-- both of the amount's sign: sum() of each is exact (SQLite raises an error rather than overflow).

CREATE TABLE chargeback_dimensions (
    dimension_id      TEXT NOT NULL PRIMARY KEY,
    tenant_id         TEXT NOT NULL,
    ecosystem         TEXT NOT NULL,
    identity_id       TEXT NOT NULL,
    env_id            TEXT NOT NULL,
    resource_id       TEXT NOT NULL,
    product_category  TEXT NOT NULL,
    product_type      TEXT NOT NULL,
    line_item_type    TEXT NOT NULL,
    region            TEXT NOT NULL,
    sub_account_id    TEXT NOT NULL,
    currency          TEXT NOT NULL,
    cost_type         TEXT NOT NULL,
    allocation_method TEXT NOT NULL,
    allocation_detail TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE chargeback_facts (
    tenant_id       TEXT    NOT NULL,
    billing_period  TEXT    NOT NULL,
    charge_date     TEXT    NOT NULL,
    dimension_id    TEXT    NOT NULL REFERENCES chargeback_dimensions (dimension_id),
    amount_whole    INTEGER NOT NULL,
    amount_fraction INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, billing_period, charge_date, dimension_id),
    CHECK (amount_fraction BETWEEN -999999999999 AND 999999999999),
    CHECK (amount_whole = 0 OR amount_fraction = 0 OR (amount_whole > 0) = (amount_fraction > 0))
) STRICT, WITHOUT ROWID;

-- Every fact with its labels; `amount` is exact decimal text.
CREATE VIEW chargeback AS
SELECT
    facts.tenant_id,
    dimensions.ecosystem,
    facts.billing_period,
    facts.charge_date,
    dimensions.identity_id,
    dimensions.env_id,
    dimensions.resource_id,
    dimensions.product_category,
    dimensions.product_type,
    dimensions.line_item_type,
    dimensions.region,
    dimensions.sub_account_id,
    dimensions.currency,
    dimensions.cost_type,
    dimensions.allocation_method,
    dimensions.allocation_detail,
    facts.amount_whole,
    facts.amount_fraction,
    -- One side alone may carry the sign (-0.5 is 0 and -500000000000), so it is taken from both.
    iif(facts.amount_whole < 0 OR facts.amount_fraction < 0, '-', '')
        || ltrim(facts.amount_whole, '-') || '.' || printf('%012d', abs(facts.amount_fraction)) AS amount
FROM chargeback_facts AS facts
JOIN chargeback_dimensions AS dimensions USING (dimension_id);

-- What each identity bears of each bill; `amount` is exact decimal text.
CREATE VIEW chargeback_totals AS
WITH
sums AS (
    SELECT
        facts.tenant_id,
        facts.billing_period,
        dimensions.identity_id,
        dimensions.currency,
        sum(facts.amount_whole)    AS whole,
        sum(facts.amount_fraction) AS fraction
    FROM chargeback_facts AS facts
    JOIN chargeback_dimensions AS dimensions USING (dimension_id)
    GROUP BY facts.tenant_id, facts.billing_period, dimensions.identity_id, dimensions.currency
),
-- Fractions may sum past a whole; / and % both round towards zero.
carried AS (
    SELECT
        tenant_id, billing_period, identity_id, currency,
        whole + fraction / 1000000000000 AS whole,
        fraction % 1000000000000         AS fraction
    FROM sums
),
-- A charge and its refund may leave the two with different signs: 2 and -0.5 is 1 and 0.5.
borrowed AS (
    SELECT
        tenant_id, billing_period, identity_id, currency,
        whole + CASE WHEN whole > 0 AND fraction < 0 THEN -1 WHEN whole < 0 AND fraction > 0 THEN 1 ELSE 0 END AS whole,
        fraction + CASE
            WHEN whole > 0 AND fraction < 0 THEN 1000000000000
            WHEN whole < 0 AND fraction > 0 THEN -1000000000000
            ELSE 0
        END AS fraction
    FROM carried
)
SELECT
    tenant_id,
    billing_period,
    identity_id,
    currency,
    whole    AS amount_whole,
    fraction AS amount_fraction,
    iif(whole < 0 OR fraction < 0, '-', '')
        || ltrim(whole, '-') || '.' || printf('%012d', abs(fraction)) AS amount
FROM borrowed;

PRAGMA user_version = 1;
