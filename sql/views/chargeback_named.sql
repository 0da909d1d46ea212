-- One row is one row of the chargeback, with what its payer is called now and the team it belongs to now.
--
-- `cost_class` is what an amount is: by who bears it first (unallocated, operator), then by its kind of cost. A payer
-- without a name of its own (a resource that pays for itself, say) is named by its id and has the tenant's default team.
-- Every row of the chargeback is here once: the joins find one row or none.
CREATE OR REPLACE VIEW chargeback_named AS
SELECT
    chargeback.*,
    coalesce(payers.identity_name, chargeback.identity_id) AS identity_name,
    CASE
        WHEN chargeback.identity_id = 'UNALLOCATED' THEN 'UNALLOCATED'
        ELSE coalesce(payers.team, others.team, 'UNASSIGNED')
    END AS team,
    CASE
        WHEN chargeback.identity_id = 'UNALLOCATED' THEN 'unallocated'
        WHEN payers.type = 'operator' THEN 'operator'
        ELSE chargeback.cost_type
    END AS cost_class
FROM chargeback
LEFT JOIN payers
    ON payers.tenant_id = chargeback.tenant_id
    AND payers.identity_id = chargeback.identity_id
LEFT JOIN payers AS others
    ON others.tenant_id = chargeback.tenant_id
    AND others.identity_id = '';
