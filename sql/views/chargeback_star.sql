-- One row is what one combination of labels cost on one day; chargeback_dimensions and chargeback_facts are its halves.
--
-- `dimension_id` is the first 16 hexadecimal digits of the SHA-256 of the labels in their order, each written as
-- `<length in bytes>:<text>`: the same for the same labels everywhere, in results.db too. `identity_name` and `team` are
-- those of now (see chargeback_named), and no labels.
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
        -- Not keys: an identity has one of each, and who does not ask for them does not pay for finding them.
        any_value(identity_name) AS identity_name,
        any_value(team) AS team,
        sum(amount) AS amount
    FROM chargeback_named
    GROUP BY ALL
)

SELECT
    left(sha256(array_to_string(
        list_transform(
            [*COLUMNS(* EXCLUDE (month, charge_date, identity_name, team, amount))],
            lambda label: strlen(label) || ':' || label
        ),
        ''
    )), 16) AS dimension_id,
    *
FROM sums;
