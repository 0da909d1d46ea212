-- The lake that the views read, and of which of its tables a tenant has files.
SELECT
    getvariable('lake') AS lake,
    EXISTS (FROM glob(getvariable('lake') || '/billing/tenant_id=' || $tenant_id || '/**/*.parquet')) AS billing,
    EXISTS (FROM glob(getvariable('lake') || '/chargeback/tenant_id=' || $tenant_id || '/**/*.parquet')) AS chargeback,
    EXISTS (FROM glob(getvariable('lake') || '/identities/tenant_id=' || $tenant_id || '/**/*.parquet')) AS identities;
