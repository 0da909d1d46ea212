-- Tenants whose bill is made from a cost model: what each day was made from.

-- `cause` is a digest of what of the cost model holds on the day, and of the answers that its lines and usage were made
-- of; where it is the same, so are they. `rounding_residue`: exact amounts minus amounts, as exact decimal text.
CREATE TABLE constructed_days (
    tenant_id        TEXT NOT NULL,
    charge_date      TEXT NOT NULL,
    cause            TEXT NOT NULL,
    rounding_residue TEXT NOT NULL,
    PRIMARY KEY (tenant_id, charge_date)
) STRICT, WITHOUT ROWID;

PRAGMA user_version = 4;
