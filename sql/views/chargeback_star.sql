-- One row is what one combination of labels cost on one day; chargeback_dimensions and chargeback_facts are its halves.
--
-- `dimension_id` is the first 16 hexadecimal digits of the SHA-256 of the labels in their order, each written as
-- `<length in bytes>:<text>`: the same for the same labels everywhere, in results.db too.
CREATE OR REPLACE VIEW chargeback_star AS
WITH
sums AS (
    SELECT
        month,
        charge_date,
        tenant_id,
        ecosystem,
        identity_id,
        env_id,
        resource_id,
        product_category,
        product_type,
        line_item_type,
        region,
        sub_account_id,
        currency,
        cost_type,
        allocation_method,
        allocation_detail,
        sum(amount) AS amount
    FROM chargeback
    GROUP BY
        month,
        charge_date,
        tenant_id,
        ecosystem,
        identity_id,
        env_id,
        resource_id,
        product_category,
        product_type,
        line_item_type,
        region,
        sub_account_id,
        currency,
        cost_type,
        allocation_method,
        allocation_detail
)

SELECT
    left(sha256(
        strlen(tenant_id) || ':' || tenant_id
        || strlen(ecosystem) || ':' || ecosystem
        || strlen(identity_id) || ':' || identity_id
        || strlen(env_id) || ':' || env_id
        || strlen(resource_id) || ':' || resource_id
        || strlen(product_category) || ':' || product_category
        || strlen(product_type) || ':' || product_type
        || strlen(line_item_type) || ':' || line_item_type
        || strlen(region) || ':' || region
        || strlen(sub_account_id) || ':' || sub_account_id
        || strlen(currency) || ':' || currency
        || strlen(cost_type) || ':' || cost_type
        || strlen(allocation_method) || ':' || allocation_method
        || strlen(allocation_detail) || ':' || allocation_detail
    ), 16) AS dimension_id,
    *
FROM sums;
