-- Who payers are now: what they are called, and to which team they belong. Amounts know nothing of it.

-- A tenant's are replaced as a whole. The row of identity_id '' has the team of every payer without a row of its own.
CREATE TABLE payers (
    tenant_id     TEXT NOT NULL,
    identity_id   TEXT NOT NULL,
    identity_name TEXT NOT NULL,
    team          TEXT NOT NULL,
    PRIMARY KEY (tenant_id, identity_id)
) STRICT, WITHOUT ROWID;

-- Every row of chargeback with the name and the team of its payer.
CREATE VIEW chargeback_named AS
SELECT
    chargeback.*,
    coalesce(own.identity_name, chargeback.identity_id) AS identity_name,
    CASE
        WHEN chargeback.identity_id = 'UNALLOCATED' THEN 'UNALLOCATED'
        ELSE coalesce(own.team, others.team, 'UNASSIGNED')
    END AS team
FROM chargeback
LEFT JOIN payers AS own ON own.tenant_id = chargeback.tenant_id AND own.identity_id = chargeback.identity_id
LEFT JOIN payers AS others ON others.tenant_id = chargeback.tenant_id AND others.identity_id = '';

-- What each team bears of each bill; `amount` is exact decimal text. The steps are those of chargeback_totals.
CREATE VIEW chargeback_team_totals AS
WITH
sums AS (
    SELECT
        tenant_id, billing_period, team, currency,
        sum(amount_whole)    AS whole,
        sum(amount_fraction) AS fraction
    FROM chargeback_named
    GROUP BY tenant_id, billing_period, team, currency
),
-- Fractions may sum past a whole; / and % both round towards zero.
carried AS (
    SELECT
        tenant_id, billing_period, team, currency,
        whole + fraction / 1000000000000 AS whole,
        fraction % 1000000000000         AS fraction
    FROM sums
),
-- A charge and its refund may leave the two with different signs: 2 and -0.5 is 1 and 0.5.
borrowed AS (
    SELECT
        tenant_id, billing_period, team, currency,
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
    team,
    currency,
    whole    AS amount_whole,
    fraction AS amount_fraction,
    iif(whole < 0 OR fraction < 0, '-', '')
        || ltrim(whole, '-') || '.' || printf('%012d', abs(fraction)) AS amount
FROM borrowed;

PRAGMA user_version = 2;
