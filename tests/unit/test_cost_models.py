"""Cost models: what a configuration may say, what is asked for it, which rates hold on a day, and exact amounts."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
import yaml

from engine import cost_days, pipeline
from engine.config import CostModelTenant, GenericTenant, KafkaTenant
from engine.errors import ConfigError, ContractError
from engine.gather_state import ConstructedDay, DayMetric, MadeOf
from engine.sources import cost_model, cost_rates
from engine.sources.answers import Answer
from engine.sources.cost_questions import Question, matchers, questions
from engine.sources.prometheus import Samples
from engine.sources.promql import Query, quoted, regular_expression_fault

KAFKA = """
    ecosystem: self_managed_kafka
    metrics: {url: 'http://prometheus:9090'}
    source:
      kind: cost_model
      cluster_id: k
      broker_count: 3
      rates: {compute_hourly_rate: 0.1, network_ingress_per_gib: 0.01}
"""
GENERIC = """
    ecosystem: generic_metrics
    metrics: {url: 'http://prometheus:9090'}
    source:
      kind: cost_model
      cluster_id: g
      cost_types:
        - {name: A, product_category: c, rate: 1, quantity: {fixed: 1}, allocation: even_split}
"""
Configured = Callable[[str], CostModelTenant]


@pytest.fixture
def configured(tmp_path: Path) -> Configured:
    def read(*tenants: str) -> CostModelTenant:
        file = tmp_path / "prorata.yaml"
        listed = "".join(f"  - id: t{number}{text}" for number, text in enumerate(tenants))
        file.write_text(f"root: ./data\ntenants:\n{listed}", encoding="utf-8")
        tenant = pipeline.configured(file).tenants[0]
        assert isinstance(tenant, KafkaTenant | GenericTenant)
        return tenant

    return read


def faults(configured: Configured, *tenants: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        configured(*tenants)
    assert all(line.isprintable() and "; expected " in line for line in error.value.faults)
    return [line.partition("prorata.yaml:")[2] for line in error.value.faults]


def kafka(*changes: tuple[str, str]) -> str:
    text = KAFKA
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


RATES = "rates: {compute_hourly_rate: 0.1, network_ingress_per_gib: 0.01}"


def test_a_plain_model_has_defaults(configured: Configured) -> None:
    tenant = configured(KAFKA)
    assert isinstance(tenant, KafkaTenant)
    assert (tenant.incomplete_below, tenant.lookback_days, tenant.cutoff_days) == (0, 200, 5)
    [rates], [brokers] = tenant.source.rates, tenant.source.broker_count
    assert (rates.compute_hourly_rate, rates.first, rates.end, brokers.count) == (Decimal("0.1"), None, None, 3)
    assert (tenant.source.currency, tenant.teams.default) == ("USD", "UNASSIGNED")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("broker_count: 3", "broker_count: -1", "source.broker_count: value '-1'; expected greater than or equal to 0"),
        ("broker_count: 3", "broker_count: 1.5", "source.broker_count: value '1.5'; expected a valid integer"),
        ("broker_count: 3", "broker_count: []", "source.broker_count: value a list; expected at least one entry"),
        ("0.01", "1e-13", "value '1e-13'; expected no more than 12 decimal places"),
        ("0.01", "-1", "value '-1'; expected greater than or equal to 0"),
        ("0.01", "0_01", "value '0_01'; expected a decimal number"),
        ("0.01", "nan", "value 'nan'; expected a decimal number"),
        ("network_ingress_per_gib", "ingress", "unknown key 'ingress'; expected one of"),
        (RATES, "rates: 1", "value a text; expected a list"),
        (RATES, "rates: {from: 2025-02-30}", "value '2025-02-30'; expected a day that there is, YYYY-MM-DD"),
        (RATES, "rates: {from: 20250101}", "value '20250101'; expected a day, YYYY-MM-DD"),
        (
            RATES,
            "rates: {from: 2025-01-02, to: 2025-01-02, network_ingress_per_gib: 1}",
            "from 2025-01-02 to 2025-01-02, which is no day",
        ),
        (
            RATES,
            "rates: [{to: 2025-01-02}, {from: 2025-01-03, network_ingress_per_gib: 1}]",
            "one to 2025-01-02, the next from 2025-01-03",
        ),
        (
            RATES,
            "rates: [{to: 2025-01-04}, {from: 2025-01-03, network_ingress_per_gib: 1}]",
            "one to 2025-01-04, the next from 2025-01-03",
        ),
        (
            RATES,
            "rates: [{}, {from: 2025-01-03, network_ingress_per_gib: 1}]",
            "one to further notice, the next from 2025-01-03",
        ),
        ("broker_count: 3", "broker_count: {from: 2025-01-03, count: 3}", "days with rates, but no brokers"),
        (
            RATES,
            "rates: {region_overrides: {eu: {compute_hourly_rate: 1}}}",
            "rates by region, but the cluster has none",
        ),
        (RATES, f"{RATES}\n      selector: cluster", "selector, from 'cluster' on; expected matchers like"),
        (RATES, f"{RATES}\n      series: {{bytes_in: 'a b'}}", "source.series.bytes_in: value 'a b'"),
        (RATES, f"{RATES}\n      series: {{principal: value}}", "label 'value' is reserved"),
        (RATES, f"{RATES}\n      series: {{instance: points}}", "label 'points' is reserved"),
        (RATES, f"{RATES}\n      identity_source: static", "identity source static, and no identities"),
        (RATES, f"{RATES}\n      static_identities: [a]", "identities that are not looked at"),
        (
            RATES,
            f"{RATES}\n      identity_source: both\n      static_identities: [a, {{id: a}}]",
            "static_identities[1]: 'a' stands twice",
        ),
        (
            RATES,
            f"{RATES}\n      identity_source: both\n      static_identities: [UNALLOCATED]",
            "'UNALLOCATED' never weighs",
        ),
        ("metrics: {url: 'http://prometheus:9090'}", "operator: o", "to be measured, but no metrics"),
        ("9090'", "9090', scrape_seconds: 3601", "metrics.scrape_seconds: value '3601'; expected at most 3600, since"),
        (RATES, "rates: {}", "source.rates: no price at all; expected at least one of compute_hourly_rate, "),
        (RATES, "rates: [{to: 2025-01-02}, {from: 2025-01-02}]", "source.rates: no price at all"),
        (
            RATES,
            "region: eu\n      rates: {compute_hourly_rate: 1, region_overrides: {eu: {}, eu1: {}}}",
            "region 'eu1', which no tenant of a cost model is in; expected the region of one, such as 'eu'",
        ),
        (
            RATES,
            f"{RATES}\n      series: {{bytes_in: x, bytes_out: x}}",
            "source.series: bytes_in and bytes_out are both 'x'; expected a series of its own for each",
        ),
        (
            RATES,
            f"{RATES}\n      selector: 'cluster=~\"[\"'",
            "source.selector: regular expression '[', from '[' on; expected one that Prometheus reads",
        ),
        (
            RATES,
            f"{RATES}\n      admin: {{bootstrap_servers: ['k:9092'], username: '${{U}}'}}",
            "source.admin: username without password; expected both, or neither",
        ),
        ("9090'", "9090', username: '${U}'", "metrics: username without password; expected both, or neither"),
        ("9090'", "9090', password: '${P}'", "metrics: password without username; expected both, or neither"),
        (
            "9090'",
            "9090', username: '${U}', password: '${P}', bearer: '${B}'",
            "metrics: username and bearer; expected one way to say who asks",
        ),
        (
            "metrics:",
            "lookback_days: 200\n    retention_days: 199\n    metrics:",
            "retention_days: value '199'; expected at least lookback_days, 200",
        ),
        ("metrics:", "incomplete_below: 1.1\n    metrics:", "value '1.1'; expected less than or equal to 1"),
        ("metrics:", "products: {X: {ladder: even}}\n    metrics:", "unknown ladder 'even'"),
        (
            "metrics:",
            "products: {X: {ladder: [{basis: usage, metrics: flink_cfu}, {basis: unallocated}]}}\n    metrics:",
            "unknown metric 'flink_cfu'; expected one of bytes_in, bytes_out, static_identities",
        ),
    ],
)
def test_what_a_kafka_model_may_not_say(configured: Configured, old: str, new: str, told: str) -> None:
    [fault] = faults(configured, kafka((old, new)))
    assert told in fault


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("quantity: {fixed: 1}", "quantity: {}", "not one quantity"),
        ("quantity: {fixed: 1}", "quantity: {fixed: 1, storage_gib: x}", "not one quantity"),
        ("quantity: {fixed: 1}", "quantity: {storage_gib: ' '}", "a text that is not empty"),
        ("even_split", "usage_ratio", "allocation usage_ratio of 'A'; expected allocation_query and allocation_label"),
        ("even_split", "even_split, allocation_query: x", "allocation even_split of 'A'"),
        ("even_split", "half", "value 'half'; expected one of 'even_split' or 'usage_ratio'"),
        ("name: A", "name: identities", "cost type 'identities' stands twice"),
        ("cluster_id: g", "cluster_id: g\n      identity_source: {label: x}", "one of label and discovery_query"),
        ("allocation: even", "region_overrides: {}, allocation: even", "unknown key 'region_overrides'"),
    ],
)
def test_what_a_generic_model_may_not_say(configured: Configured, old: str, new: str, told: str) -> None:
    assert old in GENERIC
    [fault] = faults(configured, GENERIC.replace(old, new))
    assert told in fault


def test_clusters_in_one_prometheus_need_selectors(configured: Configured) -> None:
    [fault] = faults(configured, kafka((RATES, f"{RATES}\n      selector: 'cluster=\"a\"'")), KAFKA)
    assert "tenant t1 has no selector" in fault
    other = kafka(("prometheus:9090", "another:9090"))
    assert configured(KAFKA, other).id == "t0"


@pytest.mark.parametrize(
    ("url", "selector", "series"),
    [
        ("http://localhost:9090", "a='x',b!~'y'", ""),
        ("http://127.0.0.1:9090/", " b!~'y', a=\"x\"", ""),
        ("http://[::1]:9090", "a='x', b!~'y'", "bytes_out: other"),
        ("http://LOCALHOST:9090", "a='x', b!~'y'", ""),
    ],
)
def test_two_clusters_of_the_same_series_are_one_too_many(
    configured: Configured, url: str, selector: str, series: str
) -> None:
    def cluster(url: str, selector: str, series: str = "") -> str:
        chosen = f"{RATES}\n      selector: {json.dumps(selector)}\n      series: {{{series}}}"
        return kafka(("http://prometheus:9090", url), (RATES, chosen))

    here = cluster("http://localhost:9090", "a='x', b!~'y'")
    [fault] = faults(configured, here, cluster(url, selector, series))
    assert "tenant t1 has the selector of tenant t0, in the same Prometheus; expected" in fault
    [fault] = faults(configured, here, kafka(("http://prometheus:9090", url)))
    assert "tenant t1 has no selector" in fault
    for other in ("http://localhost:9091", "http://localhost:9090/eu", "https://localhost:9090"):
        assert configured(here, cluster(other, selector)).id == "t0"
    assert configured(here, cluster(url, "a='x', b!~'z'")).id == "t0"
    renamed = "log_size: l, bytes_in: i, bytes_out: o"
    assert configured(here, cluster(url, selector, renamed)).id == "t0"


def test_a_region_may_be_that_of_another_tenant(configured: Configured) -> None:
    prices = "rates: {compute_hourly_rate: 1, region_overrides: {eu: {}, us: {}}}"
    eu, us = (kafka((RATES, f"region: {name}\n      selector: r='{name}'\n      {prices}")) for name in ("eu", "us"))
    assert configured(eu, us).id == "t0"
    [fault] = faults(configured, GENERIC.replace("rate: 1", "rate: {rate: 1, region_overrides: {eu: 2}}"))
    assert "rates by region, but the cluster has none" in fault
    rate = "rate: {rate: 1, region_overrides: {us: 2}}"
    [fault] = faults(
        configured, GENERIC.replace("rate: 1", rate).replace("cluster_id: g", "cluster_id: g\n      region: eu")
    )
    assert "source.cost_types[0].rate: region 'us', which no tenant of a cost model is in" in fault


def test_all_that_is_wrong_is_told_at_once(configured: Configured) -> None:
    wrong = kafka(
        (RATES, "rates: {}\n      selector: a=~'('\n      series: {bytes_in: x, bytes_out: x}"),
        ("9090'", "9090', username: '${U}'"),
        ("metrics:", "retention_days: 1\n    metrics:"),
    )
    assert len(faults(configured, wrong)) == 5


WRONG_KAFKA = """
    ecosystem: self_managed_kafka
    ladders: {own: [{basis: operator}]}
    products: {SUPPORT: {ladder: other}}
    teams: {default: unallocated}
    lookback_days: 100
    cutoff_days: 100
    retention_days: 99
    metrics: {url: 'http://prometheus:9090', scrape_seconds: 3601, username: '${U}'}
    source:
      kind: cost_model
      cluster_id: k
      region: eu
      broker_count: {from: 2025-01-03, to: 2025-01-03, count: 3}
      rates: {compute_hourly_rate: 1, region_overrides: {us: {}}}
      selector: cluster
      series: {bytes_in: x, bytes_out: x, principal: value}
      admin: {bootstrap_servers: 'k:9092', username: '${U}'}
      identity_source: both
      static_identities: [a, a]
"""
WRONG_GENERIC = """
    ecosystem: generic_metrics
    ladders: {own: [{basis: operator}]}
    metrics: {url: 'http://prometheus:9090', bearer: '${B}', username: '${U}', password: '${P}'}
    source:
      kind: cost_model
      cluster_id: g
      region: eu
      identity_source: {label: window}
      cost_types:
        - {name: A, product_category: c, rate: {rate: 1, region_overrides: {us: 2}}, quantity: {},
           allocation: even_split, allocation_query: x}
        - {name: A, product_category: c, rate: {rate: 1, from: 2025-01-03, to: 2025-01-03}, quantity: {fixed: 1},
           allocation: usage_ratio, allocation_query: x}
"""


def places(told: list[str]) -> Counter[str]:
    return Counter(line.split(": ")[1].removeprefix("tenants[0]").removeprefix(".") for line in told)


@pytest.mark.parametrize(
    ("text", "key", "untold"),
    [
        (WRONG_KAFKA, "operator", "ladders.own[0]"),
        (WRONG_KAFKA, "ladders", "products.SUPPORT.ladder"),
        (WRONG_KAFKA, "lookback_days", "retention_days"),
        (WRONG_KAFKA, "cutoff_days", "lookback_days"),
        (WRONG_KAFKA, "retention_days", ""),
        (WRONG_KAFKA, "incomplete_below", ""),
        (WRONG_KAFKA, "metrics", ""),
        (WRONG_KAFKA, "metrics.url", ""),
        (WRONG_KAFKA, "metrics.username", ""),
        (WRONG_KAFKA, "metrics.attempts", ""),
        (WRONG_KAFKA, "source", ""),
        (WRONG_KAFKA, "source.kind", ""),
        (WRONG_KAFKA, "source.cluster_id", ""),
        (WRONG_KAFKA, "source.currency", ""),
        (WRONG_KAFKA, "source.region", "source.rates"),
        (WRONG_KAFKA, "source.broker_count", ""),
        (WRONG_KAFKA, "source.rates", "source.broker_count"),
        (WRONG_KAFKA, "source.selector", ""),
        (WRONG_KAFKA, "source.series", "source.selector"),
        (WRONG_KAFKA, "source.admin", ""),
        (WRONG_KAFKA, "source.identity_source", "source.static_identities[1]"),
        (WRONG_KAFKA, "source.static_identities", ""),
        (WRONG_GENERIC, "source", ""),
        (WRONG_GENERIC, "source.region", "source.cost_types[0].rate"),
        (WRONG_GENERIC, "source.identity_source", ""),
        (WRONG_GENERIC, "source.cost_types", ""),
        (WRONG_GENERIC, "source.cost_types.0", "source.cost_types[1].name"),
        (WRONG_GENERIC, "source.cost_types.0.name", "source.cost_types[1].name"),
        (WRONG_GENERIC, "source.cost_types.1.product_category", ""),
        (WRONG_GENERIC, "source.cost_types.0.rate", ""),
        (WRONG_GENERIC, "source.cost_types.0.quantity", ""),
        (WRONG_GENERIC, "source.cost_types.1.allocation", "source.cost_types[1]"),
        (WRONG_GENERIC, "source.cost_types.1.allocation_query", "source.cost_types[1]"),
    ],
)
def test_what_cannot_be_read_hides_only_what_is_compared_with_it(
    configured: Configured, text: str, key: str, untold: str
) -> None:
    """And no fault is told that there is only because it could not be read."""
    tenant = yaml.load(text, yaml.BaseLoader)
    inner = tenant
    *steps, last = key.split(".")
    for step in steps:
        inner = inner[int(step) if step.isdigit() else step]
    inner[int(last) if last.isdigit() else last] = [[{"a": "b"}]]
    before = places(faults(configured, text))
    after = places(
        faults(configured, "".join(f"\n    {name}: {json.dumps(value)}" for name, value in tenant.items()) + "\n")
    )
    at_key = re.sub(r"\.(\d+)", r"[\1]", key)
    assert any(name.startswith(at_key) for name in after)
    assert {name for name in after - before if not name.startswith(at_key)} == set()
    assert {name for name in before - after if not name.startswith(at_key)} == set(untold.split())


def test_a_region_that_cannot_be_read_may_be_any(configured: Configured) -> None:
    rates = "rates: {compute_hourly_rate: 1, region_overrides: {us: {}}}"
    eu, us = (
        kafka((RATES, f"region: {region}\n      selector: r='{number}'\n      {rates}"))
        for number, region in enumerate(("eu", "[us]"))
    )
    [fault] = faults(configured, eu, us)
    assert "tenants[1].source.region: value a list" in fault


def test_who_is_asked_for_identities_is_open_where_the_word_for_it_cannot_be_read(configured: Configured) -> None:
    rates = "rates: {compute_hourly_rate: 1}\n      identity_source: statics\n      static_identities: [a]"
    told = faults(configured, kafka(("metrics: {url: 'http://prometheus:9090'}", "operator: [o]"), (RATES, rates)))
    assert list(places(told)) == ["operator", "source.identity_source"]


@pytest.mark.parametrize(
    "text",
    [
        *("a", "a|b", "(a|b)+", "[]a]", "[^]a]", "[[:alpha:]]+", r"\[", r"\Q[(\E", r"[\]]", "(?i)a", "a(?i:b)", r"\pN"),
        *("", "a{2}", r"\x{10FFFF}", "^*", "(?P<a>b)", r"\Qa[", "[a[]", "é.*"),
    ],
)
def test_what_prometheus_reads_is_a_selector(text: str) -> None:
    assert regular_expression_fault(text) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[", "["),
        ("a[b", "[b"),
        ("[]", "[]"),
        ("(a", "(a"),
        ("a((b)", "((b)"),
        ("a)", ")"),
        ("a\\", "\\"),
        ("*a", "*a"),
    ],
)
def test_what_prometheus_cannot_read_is_none(text: str, told: str) -> None:
    assert regular_expression_fault(text) == told


def test_an_unknown_ecosystem_names_the_known_ones(configured: Configured) -> None:
    [fault] = faults(configured, kafka(("self_managed_kafka", "kafka")))
    assert "one of 'aws', 'confluent_cloud', 'self_managed_kafka', 'generic_metrics'" in fault


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ('cluster="eu"', 'cluster="eu"'),
        (" a = 'x' ,b!=\"\", c=~\"a|b\",d!~'z' ", 'a="x", b!="", c=~"a|b", d!~"z"'),
        (r'a="\"}"', r'a="\"}"'),
        ("a='\"}'", r'a="\"}"'),
        (r'a="\u00e9\\d"', r'a="é\\d"'),
        ('a=","', 'a=","'),
    ],
)
def test_a_selector_is_quoted_anew(selector: str, found: str) -> None:
    assert matchers(selector) == found
    assert matchers(found) == found


@pytest.mark.parametrize(
    "selector",
    [
        *("a", '="x"', 'a="x', 'a="x" b="y"', 'a="x",', ',a="x"', 'a=="x"', 'a="x"} or up{b="y"', "a=`x`", 'a="\n"'),
        *('a="{range}"', 'a="{matcher}"', r'a="\x"', '1a="x"', 'a-b="x"', 'a="x";'),
    ],
)
def test_what_is_no_selector(selector: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        matchers(selector)


def test_questions_are_of_what_is_priced_and_looked_at(configured: Configured) -> None:
    assert [one.name for one in questions(configured(KAFKA))] == [
        "ingress",
        "bytes_in",
        "bytes_out",
        "brokers",
        "topics",
    ]
    static = kafka(
        (RATES, "rates: {storage_per_gib_hourly: 1}\n      identity_source: static\n      static_identities: [a]")
    )
    assert [one.name for one in questions(configured(static))] == ["storage", "brokers", "topics"]
    later = kafka((RATES, "rates: [{to: 2025-01-02}, {from: 2025-01-02, network_egress_per_gib: 1}]"))
    assert next(one.name for one in questions(configured(later))) == "egress"


def test_no_question_depends_on_a_rate(configured: Configured) -> None:
    asked = [one.digest for one in questions(configured(KAFKA))]
    assert [one.digest for one in questions(configured(kafka(("0.01", "7"), ("0.1,", "9,"), ("3", "4"))))] == asked
    assert [one.digest for one in questions(configured(kafka((RATES, f"{RATES}\n      selector: a='b'"))))] != asked


@pytest.mark.parametrize(
    ("change", "days"),
    [
        (("0.1,", "0.2,"), "XXXX"),
        (("0.1,", "0.10,"), "...."),
        (("broker_count: 3", "broker_count: [{to: 2025-11-03, count: 3}, {from: 2025-11-03, count: 4}]"), "..XX"),
        ((RATES, "rates: [{to: 2025-11-02, compute_hourly_rate: 0.1, network_ingress_per_gib: 0.01}]"), ".XXX"),
        (("cluster_id: k", "cluster_id: k\n      display_name: The cluster"), "...."),
        (("cluster_id: k", "cluster_id: k\n      currency: EUR"), "XXXX"),
        (("cluster_id: k", "cluster_id: k\n      region: eu"), "XXXX"),
    ],
)
def test_a_change_touches_the_days_that_it_is_about(configured: Configured, change: tuple[str, str], days: str) -> None:
    dates = [date(2025, 11, number) for number in range(1, 5)]
    before, after = configured(KAFKA), configured(kafka(change))
    touched = [cost_rates.model_digest(before, day) != cost_rates.model_digest(after, day) for day in dates]
    assert "".join("X" if one else "." for one in touched) == days


def test_a_cluster_is_there_as_long_as_it_has_rates(configured: Configured) -> None:
    rates = "[{from: 2025-01-02, to: 2025-01-03}, {from: 2025-01-03, to: 2025-02-01, compute_hourly_rate: 1}]"
    tenant = configured(kafka((RATES, f"rates: {rates}")))
    created, deleted = cost_rates.cluster(tenant).select("created_at", "deleted_at").row(0)
    assert (str(created), str(deleted)) == ("2025-01-02 00:00:00", "2025-02-01 00:00:00")
    assert cost_rates.charges(tenant.source, date(2025, 1, 1)) == ()
    assert cost_rates.charges(tenant.source, date(2025, 2, 1)) == ()


def samples(rows: list[tuple[str, str, int]]) -> Samples:
    frame = pl.DataFrame(rows, schema={"window": pl.String, "value": pl.String, "points": pl.UInt32}, orient="row")
    values = frame.with_columns(pl.col("value").cast(pl.Decimal(38, 12)))
    return Samples(values, values.select("window", "points").clear(), ())


def test_an_exabyte_at_a_high_rate_is_exact(configured: Configured) -> None:
    """Its bytes times its rate, both in units, are beyond 128 bits."""
    tenant = configured(kafka(("0.01", "123456789.123456789123")))
    made = cost_model.bill(tenant, [date(2025, 11, 4)], {"ingress": samples([("2025-11-04", str(2**60 + 1), 24)])})
    [quantity, amount] = (
        made.billing.filter(pl.col("product_type") == "SELF_KAFKA_NETWORK_INGRESS").select("quantity", "amount").row(0)
    )
    assert quantity == 2**30 + Decimal("0.000000000931")
    assert amount == Decimal("132560717938603854.053091475052")


def test_what_rounding_took_is_what_is_missing(configured: Configured) -> None:
    tenant = configured(kafka(("0.01", "0.000000000001")))
    made = cost_model.bill(tenant, [date(2025, 11, 4)], {"ingress": samples([("2025-11-04", str(2**29), 24)])})
    [amount] = made.billing.filter(pl.col("product_type") == "SELF_KAFKA_NETWORK_INGRESS")["amount"]
    assert (amount, float(made.residues["2025-11-04"])) == (0, 5e-13)


def test_an_amount_out_of_range_is_a_line(configured: Configured) -> None:
    tenant = configured(kafka(("network_ingress_per_gib: 0.01", "storage_per_gib_hourly: 999999999")))
    told = r"tenant t0: SELF_KAFKA_STORAGE of 2025-11-04: .*; expected an amount below 1e26"
    with pytest.raises(ContractError, match=told):
        cost_model.bill(tenant, [date(2025, 11, 4)], {"storage": samples([("2025-11-04", "9" * 26, 1)])})


def test_ids_of_lines_are_what_they_say(configured: Configured) -> None:
    before, after = configured(KAFKA), configured(kafka(("0.1,", "0.2,")))
    day = [date(2025, 11, 4)]
    ids = [cost_model.bill(tenant, day, {}).billing["line_id"].to_list() for tenant in (before, after)]
    assert ids[0] == ids[1]


def test_resources_are_what_answers_name(configured: Configured) -> None:
    tenant = configured(KAFKA)
    question = next(one for one in questions(tenant) if one.name == "topics")
    result = [
        {"metric": {"topic": topic}, "values": [[1762300799.999 + 86400 * number, "1"] for number in days]}
        for topic, days in (("a/b", [0, 1]), ("ü", [1]))
    ]
    body = {"status": "success", "data": {"resultType": "matrix", "result": [*result, {"metric": {}, "values": []}]}}
    found = cost_model.parse(question, [Answer("", 200, json.dumps(body))], (date(2025, 11, 4), date(2025, 11, 6)))
    named = cost_model.resources(tenant, {"topics": found})
    assert named.select("id", "type", "parent", pl.col("first_seen_at", "last_seen_at").dt.date()).rows() == [
        ("k/topic/a/b", "topic", "k", date(2025, 11, 4), date(2025, 11, 5)),
        ("k/topic/ü", "topic", "k", date(2025, 11, 5), date(2025, 11, 5)),
    ]


def answered(*series: tuple[dict[str, str], list[str]], first: date = date(2025, 11, 4)) -> list[Answer]:
    """An answer with a value for each hour from the first day on."""
    start = (first - date(1970, 1, 1)).days * 86400
    result = [
        {"metric": labels, "values": [[start + 3600 * hour - 0.001, text] for hour, text in enumerate(values, start=1)]}
        for labels, values in series
    ]
    return [Answer("", 200, json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}}))]


def test_the_broker_of_which_fewest_samples_came_counts(configured: Configured) -> None:
    question = next(one for one in questions(configured(KAFKA)) if one.name == "ingress")
    days = (date(2025, 11, 4), date(2025, 11, 6))
    moved = [
        ({"broker": "1", "instance": "a"}, ["60"] * 30 + ["0"] * 18),
        ({"broker": "1", "instance": "b"}, ["0"] * 30 + ["60"] * 18),
    ]
    other = ({"broker": "2", "instance": "a"}, ["60"] * 24 + ["59.5"] * 24)
    nameless = [({"instance": "c"}, ["60"] * 48), ({"instance": "d"}, ["60"] * 40 + ["0"] * 8)]
    of = [[*moved], [*moved, other], [*moved, other, *nameless], []]
    found = [cost_model.parse_counts(question, answered(*series), days) for series in of]
    assert [one.fewest for one in found] == [
        {"2025-11-04": 1440, "2025-11-05": 1440},
        {"2025-11-04": 1440, "2025-11-05": 1428},
        {"2025-11-04": 1440, "2025-11-05": 960},
        {},
    ]
    assert [one.totals for one in found][1:] == [
        {"2025-11-04": "2880", "2025-11-05": "2868"},
        {"2025-11-04": "5760", "2025-11-05": "5268"},
        {},
    ]


def test_no_more_samples_came_than_of_the_hours_answered(configured: Configured) -> None:
    stored = kafka(("network_ingress_per_gib", "storage_per_gib_hourly"))
    question = next(one for one in questions(configured(stored)) if one.name == "storage")
    answers = samples([("2025-11-04", "1", 24), ("2025-11-05", "1", 22)])
    counts = {"2025-11-04": 1441, "2025-11-05": 1440, "2025-11-06": 1440}
    assert cost_model.came(question, answers, counts, 60) == {
        "2025-11-04": 1440,
        "2025-11-05": 1320,
        "2025-11-06": 0,
    }


def test_quoted_is_what_prometheus_reads() -> None:
    assert quoted('a"b\\') == r'"a\"b\\"'


@pytest.mark.parametrize(
    ("rows", "gaps", "points", "digest", "number", "is_poorer"),
    [
        (144, 144, 24, "same", 2, True),
        (288, 0, 24, "same", 2, False),
        (144, 144, 24, "same", 1, False),  # the same answer, of which less was expected before
        (144, 1296, 24, "same", 2, False),  # as many were never expected
        (0, 144, 24, "other", 2, False),
        (0, 288, 0, "other", 2, True),
    ],
)
def test_less_came_only_than_of_the_same_question(
    rows: int, gaps: int, points: int, digest: str, number: int, is_poorer: bool
) -> None:
    before = MadeOf(288, 0, 24, "same", 1)
    now = DayMetric("2025-10-01", "storage", "fetched", (digest,), "", number, rows, gaps=gaps, points=points)
    assert cost_days.is_poorer(now, before) == is_poorer


@pytest.mark.parametrize(
    ("rows", "points", "total", "is_less"),
    [
        (0, 24, "288", False),
        (0, 24, "432.5", False),
        (0, 24, "287.99999999999", False),  # added in another order
        (144, 24, "287.5", True),  # of whatever has fewest there are more, and of all together less
        (144, 23, "432", True),
        (0, 0, "0", True),
    ],
)
def test_less_is_told_by_all_samples_together(rows: int, points: int, total: str, is_less: bool) -> None:
    before = MadeOf(0, 288, 24, "same", 1, "288")
    now = DayMetric(
        *("2025-10-01", "storage", "fetched", ("same",), "", 2, rows), gaps=288 - rows, points=points, total=total
    )
    assert cost_days.is_less(now, before) == is_less


def test_totals_are_exact_however_large_values_are() -> None:
    values = samples([("2025-11-04", value, 1) for value in ("9" * 26, "9" * 26, "0.000000000001")]).values
    assert cost_model.totals(values) == {"2025-11-04": "199999999999999999999999998.000000000001"}


def test_what_a_day_was_made_of_is_found_by_the_question_and_else_by_its_name() -> None:
    storage = Question("quantity-STORAGE", "mean", Query("q", "sum(x)", ()))
    same, other = MadeOf(288, 0, 24, storage.digest, 1), MadeOf(288, 0, 24, "other", 2)
    found = [
        cost_days.made_of(ConstructedDay("2025-10-01", "cause", "0", answers=answers), storage)
        for answers in (
            {"quantity-STO": same, storage.name: other},
            {storage.name: other},
            {"quantity-STO": other},
        )
    ]
    assert found == [same, other, None]
