"""The configuration: pydantic models and the only YAML reader.

Every scalar stays text until a model parses it, so 0.10 is a decimal, 0123 an account, and no is not false by
accident. All faults are reported at once, each with file, line, path, value and expectation.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    field_validator,
)
from pydantic_core import ErrorDetails

from engine.errors import ConfigError, fault, shown

Basis = Literal["direct", "even", "cost", "fixed", "usage", "weighted", "operator", "resource", "unallocated"]
LAST_BASES = frozenset({"operator", "resource", "unallocated"})
"""Bases that always take the money; a ladder ends in exactly one of them."""
OPERANDS: dict[str, str] = {"cost": "scope", "fixed": "percentages", "usage": "key", "weighted": "keys"}
"""The one field that each basis needs, of those that need one."""

NODES_MAX = 200_000
"""How many values a configuration may have, names that stand for others (`*a`) written out."""
PORT_MAX = 65535
Path_ = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _plain_decimal(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?", value):
        raise ValueError("a decimal number")
    return value


def _plain_day(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        raise ValueError("a day, YYYY-MM-DD")
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise ValueError("a day that there is, YYYY-MM-DD") from None


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("a text that is not empty")
    return value


_LIKE_A_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/|//")


def _is_like_a_url(value: Any) -> bool:
    """Whether a value may be a URL, and so have a password in it, in whatever way."""
    return isinstance(value, str) and _LIKE_A_URL.match(value.strip()) is not None


def _plain_path(value: Any) -> Any:
    if isinstance(value, str) and re.match("[^/]+:/", value) and _is_like_a_url(value):
        # Else a folder of that name would be made.
        raise ValueError("a path on this machine, and no URL")
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a path")
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError("a path (a home folder that there is)") from None


def _variable(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}", value):
        raise ValueError("${NAME}, an environment variable (or a line of .env) that holds it")
    return value


def _url(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", value):
        raise ValueError("an http or https URL without user, password, query and fragment")
    # A user and a password without a host look like a host and its port.
    port = re.fullmatch(r"https?://(?:\[[0-9A-Fa-f:.]+\]|[^/\[\]:;]+)(?::([0-9]{1,5}))?(?:/.*)?", value)
    if port is None or int(port[1] or 0) > PORT_MAX:
        raise ValueError(f"a host, and behind a colon its port, a number up to {PORT_MAX}")
    return value


def _flink_url(value: str) -> str:
    if re.search("[{}]", value.replace("{region}", "").replace("{cloud}", "")):
        raise ValueError("a URL with no other braces than {region} and {cloud}")
    return value


def _currency(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Z]{3}", value):
        raise ValueError("three capital letters, such as USD")
    return value


FilePath = Annotated[Path, BeforeValidator(_plain_path)]
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
Name = Annotated[str, StringConstraints(pattern=_NAME)]
TenantId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Text = Annotated[str, StringConstraints(min_length=1)]
Identity = Annotated[str, AfterValidator(_not_blank)]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Patterns = Annotated[list[Pattern], BeforeValidator(_listed), Field(min_length=1)]
Texts = Annotated[list[Text], BeforeValidator(_listed), Field(min_length=1)]
Share = Annotated[Decimal, BeforeValidator(_plain_decimal), Field(gt=0, le=1, max_digits=13, decimal_places=12)]
Percentage = Annotated[Decimal, BeforeValidator(_plain_decimal), Field(ge=0, le=100, max_digits=15, decimal_places=12)]
Ratio = Annotated[Decimal, BeforeValidator(_plain_decimal), Field(gt=0, lt=10**6, max_digits=18, decimal_places=12)]
Window = Literal["day", "month"]
Population = Literal["owners", "resource_active", "metrics_derived", "active", "period_owners", "period_accounts"]
Metric = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$")]
"""What USAGE calls a metric; which ones there are depends on the ecosystem, and is checked with the rules."""
ProductType = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$")]
Currency = Annotated[str, BeforeValidator(_currency)]
Variable = Annotated[str, BeforeValidator(_variable)]
"""The name of an environment variable that holds a secret, written `${NAME}`: no secret stands in a configuration."""
Url = Annotated[str, BeforeValidator(_url)]
"""Without credentials, query and fragment."""
Count = Annotated[int, BeforeValidator(_plain_decimal), Field(ge=1, le=1_000_000)]
Seconds = Annotated[Decimal, BeforeValidator(_plain_decimal), Field(gt=0, le=3600)]
Rate = Annotated[Decimal, BeforeValidator(_plain_decimal), Field(ge=0, lt=10**9, max_digits=21, decimal_places=12)]
Fraction_ = Annotated[Decimal, BeforeValidator(_plain_decimal), Field(ge=0, le=1, max_digits=13, decimal_places=12)]
Day = Annotated[date, BeforeValidator(_plain_day)]
MetricName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]*$", max_length=256)]
LabelName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$", max_length=128)]
PromQL = Annotated[str, AfterValidator(_not_blank), StringConstraints(max_length=8192)]
Server = Annotated[str, StringConstraints(pattern=r"^[^\s,/@]+:[0-9]{1,5}$")]
"""A host and its port."""
IdentitySource = Literal["prometheus", "static", "both"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Credentialed(_Model):
    """What names credentials. A secret may stand in the place of anything in it, by mistake.

    So errors show no text in it, nor a key that is not one of its own (`Document`).
    """


class Rung(_Model):
    """One rung of a ladder: a basis and the one operand it needs; and, in a ladder of products, its labels.

    `population`: who shares alike. Of the line's resource: `resource_active` (whom the inventory names as owners),
    `metrics_derived` (who was seen in `metrics`), `active` (both); of the whole tenant: `period_owners` (every identity
    that may own something), `period_accounts` (those but principals that only metrics name). `metrics`: what was
    measured on the line's resource; a usage rung weighs by their sum. `cost_type` and `detail` take the place of the
    labels that the basis gives.
    """

    basis: Basis
    key: Name | None = None
    keys: dict[Name, Ratio] | None = Field(default=None, min_length=1)
    metrics: Annotated[list[Metric], BeforeValidator(_listed), Field(min_length=1)] | None = None
    population: Population | None = None
    percentages: dict[Identity, Percentage] | None = Field(default=None, min_length=1)
    scope: Literal["service_account", "account", "all"] | None = None
    cost_type: Literal["usage", "shared"] | None = None
    detail: Name | None = None


Ladder = Annotated[list[Rung], Field(min_length=1)]
LadderOrName = Annotated[
    Annotated[Name, Tag("<name>")] | Annotated[Ladder, Tag("<rungs>")],
    Discriminator(lambda value: "<name>" if isinstance(value, str) else "<rungs>"),
]
"""Rungs in place, or the name of a ladder of the tenant or the rulebook."""


class Part(_Model):
    """A fixed share of a line with a ladder of its own."""

    share: Share
    ladder: LadderOrName


class Match(_Model):
    """Conditions of a pool, all of which must hold; each is one pattern or a list of which one must fit.

    Patterns are globs (`*` any text, `?` one character), case-sensitive. No condition at all matches every line.
    """

    @field_validator("*", mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        """An empty condition would match every line, which nobody means who names one."""
        if value is None:
            raise ValueError("a pattern, or no such key")
        return value

    service: Patterns | None = None
    usage_type: Patterns | None = None
    line_item_type: Patterns | None = None
    account: Patterns | None = None
    region: Patterns | None = None
    tag: dict[Text, Patterns] | None = Field(default=None, min_length=1)


class Pool(_Model):
    """Untagged lines that match are split by a ladder (or by several, each for a part)."""

    name: Name
    match: Match
    window: Window | None = None
    ladder: LadderOrName | None = None
    parts: Annotated[list[Part], Field(min_length=1)] | None = None


class Product(_Model):
    """How lines of one product type are split: by a ladder, or by several, each for a part.

    `partial_life`: what becomes of a line whose resource lived for a part of the day. `whole`: it goes down the ladder
    like any other; `unallocated`: the fraction of the day in which there was no resource is borne by nobody.
    """

    ladder: LadderOrName | None = None
    parts: Annotated[list[Part], Field(min_length=1)] | None = None
    partial_life: Literal["whole", "unallocated"] = "whole"


class Owner(_Model):
    """How a tag names the identity that owns a line.

    `tags`: tag keys in order of preference. `identities`: the known ones; others are kept as they are and listed.
    `aliases`: other spellings. Case and blanks around and between words never matter.
    """

    tags: Texts
    identities: list[Identity] = []
    aliases: dict[Identity, Identity] = {}


class Credentials(_Credentialed):
    """A key and its secret, as names of environment variables."""

    api_key: Variable
    api_secret: Variable


class AwsCur(_Model):
    """AWS Cost and Usage Reports in a local folder, legacy layout with manifests."""

    kind: Literal["aws_cur"]
    path: FilePath
    report: Text | None = None


class Flink(_Credentialed):
    """Where Flink statements are read: a host per region and cloud, and a key for each region."""

    url: Annotated[Url, AfterValidator(_flink_url)] = "https://flink.{region}.{cloud}.confluent.cloud"
    keys: dict[Name, Credentials] = Field(min_length=1)


class ConfluentCloud(_Credentialed):
    """The Confluent Cloud APIs of one organization. Credentials are names of environment variables: `${NAME}`."""

    kind: Literal["confluent_cloud"]
    url: Url = "https://api.confluent.cloud"
    api_key: Variable
    api_secret: Variable
    flink: Flink | None = None
    currency: Currency = "USD"
    timeout_seconds: Seconds = Decimal(60)
    requests_per_second: Ratio = Decimal(5)
    attempts: Count = 6
    ca_bundle: FilePath | None = None


class Prometheus(_Credentialed):
    """A Prometheus that holds the metrics: its URL (a path prefix stays), and basic or bearer credentials if any."""

    url: Url
    username: Variable | None = None
    password: Variable | None = None
    bearer: Variable | None = None
    scrape_seconds: Count = 60
    days_per_query: Annotated[int, BeforeValidator(_plain_decimal), Field(ge=1, le=366)] = 31
    ids_per_query: Annotated[int, BeforeValidator(_plain_decimal), Field(ge=1, le=1000)] = 50
    timeout_seconds: Seconds = Decimal(120)
    requests_per_second: Ratio = Decimal(5)
    attempts: Count = 6
    ca_bundle: FilePath | None = None


class TeamRow(_Model):
    """One row of the table of teams: identities by id, or by a pattern of their display name."""

    team: Identity
    id: Patterns | None = None
    name: Patterns | None = None


class Teams(_Model):
    """Who belongs to which team; the first row that fits wins. Teams are joined when results are shown.

    `tags`: CSV files with the columns identity, key, value; the value of a key `team` counts where no row fits.
    """

    default: Identity = "UNASSIGNED"
    members: list[TeamRow] = []
    tags: Annotated[list[FilePath], BeforeValidator(_listed)] = []


class _TenantBase(_Model):
    """What tenants of all ecosystems have."""

    id: TenantId
    operator: Identity | None = None
    ladders: dict[Name, Ladder] = {}
    teams: Teams = Teams()
    emitters: list[Literal["sqlite"]] = ["sqlite"]


class AwsTenant(_TenantBase):
    """One AWS bill and its rules."""

    ecosystem: Literal["aws"]
    source: AwsCur
    owner: Owner
    keys: Annotated[list[FilePath], BeforeValidator(_listed)] = []
    pools: list[Pool] = []


class ConfluentTenant(_TenantBase):
    """One Confluent Cloud organization and its rules.

    Gathered are the days from `lookback_days` to before `cutoff_days` ago. `products` takes the place of the rulebook's
    entries. A deletion is believed once a kind came back empty `zero_gather_deletion_threshold` times (-1: never); a
    day whose metrics fail is given up after `allocation_retry_limit` attempts; a tenant whose gathers fail is suspended
    after `gather_failure_threshold`. Raw answers are kept for `retention_days`.
    """

    ecosystem: Literal["confluent_cloud"]
    source: ConfluentCloud
    metrics: Prometheus | None = None
    products: dict[ProductType, Product] = {}
    lookback_days: Count = 200
    cutoff_days: Annotated[int, BeforeValidator(_plain_decimal), Field(ge=0, le=3650)] = 5
    retention_days: Count = 250
    zero_gather_deletion_threshold: Annotated[int, BeforeValidator(_plain_decimal), Field(ge=-1, le=1000)] = -1
    allocation_retry_limit: Count = 3
    gather_failure_threshold: Count = 5


def _dated(key: str = "") -> BeforeValidator:
    """A mapping stands for a list of one, and so does a text, which is the value of `key`, if there is one."""

    def listed(value: Any) -> Any:
        if isinstance(value, str) and key:
            return [{key: value}]
        return [value] if isinstance(value, dict) else value

    return BeforeValidator(listed)


class Dated(_Model):
    """What holds on the days from `from` (else: ever since) to before `to` (else: until further notice)."""

    first: Day | None = Field(default=None, alias="from")
    end: Day | None = Field(default=None, alias="to")

    def covers(self, day: date) -> bool:
        """Whether it holds on a day."""
        return (self.first is None or self.first <= day) and (self.end is None or day < self.end)


class KafkaPrices(_Model):
    """What is paid for a broker's hour, a stored GiB's hour, and GiB in and out; what has no price has no line."""

    compute_hourly_rate: Rate | None = None
    storage_per_gib_hourly: Rate | None = None
    network_ingress_per_gib: Rate | None = None
    network_egress_per_gib: Rate | None = None


class KafkaRates(Dated, KafkaPrices):
    """Rates and the days on which they hold; a region's take the place of those that it names."""

    region_overrides: dict[Text, KafkaPrices] = {}


class Brokers(Dated):
    """How many brokers a cluster has."""

    count: Annotated[int, BeforeValidator(_plain_decimal), Field(ge=0, le=1_000_000)]


class StaticIdentity(_Model):
    """An identity that the configuration names, whatever is measured."""

    id: Identity
    name: Text | None = None


StaticIdentities = list[
    Annotated[StaticIdentity, BeforeValidator(lambda value: {"id": value} if isinstance(value, str) else value)]
]


class KafkaSeries(_Model):
    """What the series and the labels are called as they are exported; `instance` names what was scraped."""

    log_size: MetricName = "kafka_log_log_size"
    bytes_in: MetricName = "kafka_server_brokertopicmetrics_bytesin_total"
    bytes_out: MetricName = "kafka_server_brokertopicmetrics_bytesout_total"
    broker: LabelName = "broker"
    topic: LabelName = "topic"
    principal: LabelName = "principal"
    instance: LabelName = "instance"


class KafkaAdmin(_Credentialed):
    """How a cluster's brokers are asked for its brokers and topics; needs the extra `kafka`.

    Credentials are names of environment variables: `${NAME}`. With them SASL is used, by this mechanism.
    """

    bootstrap_servers: Annotated[list[Server], BeforeValidator(_listed), Field(min_length=1)]
    security: Literal["plaintext", "tls"] = "tls"
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: Variable | None = None
    password: Variable | None = None
    ca_bundle: FilePath | None = None
    timeout_seconds: Seconds = Decimal(30)


class KafkaCostModel(_Model):
    """What a self-managed Kafka cluster costs, and who uses it.

    `selector`: matchers of labels, as Prometheus writes them (`cluster="eu", topic!=""`), that choose the cluster's
    series. `identity_source`: who pays is known from Prometheus (the label of principals), from `static_identities`, or
    from both.
    """

    kind: Literal["cost_model"]
    cluster_id: Identity
    display_name: Text | None = None
    region: Text | None = None
    currency: Currency = "USD"
    broker_count: Annotated[list[Brokers], _dated("count"), Field(min_length=1)]
    rates: Annotated[list[KafkaRates], _dated(), Field(min_length=1)]
    selector: PromQL | None = None
    series: KafkaSeries = KafkaSeries()
    admin: KafkaAdmin | None = None
    identity_source: IdentitySource = "prometheus"
    static_identities: StaticIdentities = []


class GenericRate(Dated):
    """A rate and the days on which it holds; a region's takes its place."""

    rate: Rate
    region_overrides: dict[Text, Rate] = {}


class Quantity(_Model):
    """How much of a cost type there is on a day; one of these.

    `fixed`: so many of it, each for 24 hours. `storage_gib`: a query for bytes, whose mean counts, for 24 hours.
    `network_gib`: a query for the bytes of an hour, which are summed.
    """

    fixed: Ratio | None = None
    storage_gib: PromQL | None = None
    network_gib: PromQL | None = None


class CostType(_Model):
    """Something that costs, and how it is split: alike, or by a query's values for each value of a label."""

    name: ProductType
    product_category: Text
    rate: Annotated[list[GenericRate], _dated("rate"), Field(min_length=1)]
    quantity: Quantity
    allocation: Literal["even_split", "usage_ratio"]
    allocation_query: PromQL | None = None
    allocation_label: LabelName | None = None


class IdentitiesFound(_Model):
    """Who uses what is billed: the values of a label in the answers to a query, those that are named here, or both."""

    source: IdentitySource = "prometheus"
    label: LabelName | None = None
    discovery_query: PromQL | None = None
    static_identities: StaticIdentities = []


class GenericCostModel(_Model):
    """What something costs that Prometheus measures, and who uses it."""

    kind: Literal["cost_model"]
    cluster_id: Identity
    display_name: Text | None = None
    region: Text | None = None
    currency: Currency = "USD"
    identity_source: IdentitiesFound = IdentitiesFound()
    cost_types: Annotated[list[CostType], Field(min_length=1)]


class _CostModelTenant(_TenantBase):
    """What tenants have in common whose bill is made from a cost model.

    Made are the days from `lookback_days` to before `cutoff_days` ago. Of a day of which less than `incomplete_below`
    of the expected samples came, the day waits (0: none does). A day whose metrics fail is given up after
    `allocation_retry_limit` attempts. Raw answers are kept for `retention_days`.
    """

    metrics: Prometheus | None = None
    lookback_days: Count = 200
    cutoff_days: Annotated[int, BeforeValidator(_plain_decimal), Field(ge=0, le=3650)] = 5
    retention_days: Count = 250
    allocation_retry_limit: Count = 3
    incomplete_below: Fraction_ = Decimal(0)


class KafkaTenant(_CostModelTenant):
    """One self-managed Kafka cluster and its rules. `products` takes the place of the rulebook's entries."""

    ecosystem: Literal["self_managed_kafka"]
    source: KafkaCostModel
    products: dict[ProductType, Product] = {}


class GenericTenant(_CostModelTenant):
    """One cluster of anything that Prometheus measures. Its cost types have the ladders `even_split`, `usage_ratio`."""

    ecosystem: Literal["generic_metrics"]
    source: GenericCostModel


CostModelTenant: TypeAlias = KafkaTenant | GenericTenant
"""A tenant whose bill is made from a cost model and metrics."""
ProductTenant: TypeAlias = ConfluentTenant | KafkaTenant | GenericTenant
"""A tenant whose products have ladders."""
Tenant: TypeAlias = Annotated[AwsTenant | ConfluentTenant | KafkaTenant | GenericTenant, Discriminator("ecosystem")]
"""One bill and its rules, of one of the ecosystems."""


class Config(_Model):
    """The whole configuration. Relative paths are relative to the file."""

    root: FilePath
    max_parallel_days: Annotated[int, BeforeValidator(_plain_decimal), Field(ge=1, le=64)] = 2
    max_parallel_tenants: Annotated[int, BeforeValidator(_plain_decimal), Field(ge=1, le=64)] = 4
    tenants: Annotated[list[Tenant], Field(min_length=1)]


class Rulebook(_Model):
    """Ladders, pools, products and windows that come with prorata, of the same form as a tenant's.

    `default_product` is for lines whose product type is not in `products`.
    """

    ladders: dict[Name, Ladder] = {}
    pools: list[Pool] = []
    month_window: list[Match] = []
    products: dict[ProductType, Product] = {}
    default_product: Product | None = None


class Document:
    """A YAML document as plain lists, dicts and texts, and where each node stands in the file.

    By its model it knows what of it may be told: nothing that may be a secret.
    """

    def __init__(self, file: Path, model: type[BaseModel]) -> None:
        self.file, self.model = file, model
        self.value: Any = None
        self.lines: dict[Path_, int] = {}
        self.faults: list[str] = []

    def where(self, path: Path_, line: int | None = None) -> str:
        """`file:line: path` of a node, or of its nearest ancestor in the file; `*` is a key that is not shown."""
        known = next((path[:n] for n in range(len(path), -1, -1) if path[:n] in self.lines), ())
        steps = zip(path, self._are_hidden(path), strict=True)
        dotted = "".join(
            f"[{step}]" if isinstance(step, int) else ".*" if is_hidden else f".{_key(step)}"
            for step, is_hidden in steps
        ).lstrip(".")
        place = f"{self.file}:{line or self.lines.get(known, 1)}"
        return f"{place}: {dotted}" if dotted else place

    def key_at(self, path: Path_) -> str:
        """The key at the end of a path, as it may be told."""
        *_, is_hidden = self._are_hidden(path)
        return f"key {'(not shown, since it may be a secret)' if is_hidden else shown(str(path[-1]))}"

    def is_beside_credentials(self, path: Path_) -> bool:
        """Whether what stands at a path may be a secret."""
        return any(issubclass(model, _Credentialed) for models in self.models(path) for model in models)

    def models(self, path: Path_) -> Iterator[list[type[BaseModel]]]:
        """For every step of a path the models, of which one is that of the mapping in which it stands, or is near it.

        Of the models of a tenant the one of its ecosystem, if that is known already.
        """
        models, value = [self.model], self.value
        for step in path:
            yield models
            fields = [model.model_fields[step] for model in models if step in model.model_fields]
            if fields:
                models = [inner for field in fields for inner in _inner_models(field.annotation)]
            value = _child(value, step)
            kind = value.get("ecosystem") if isinstance(value, dict) else None
            models = [model for model in models if kind is not None and _tag(model) == kind] or models

    def _are_hidden(self, path: Path_) -> Iterator[bool]:
        """For every step of a path whether it is a key that may be, or have, a secret."""
        is_beside = False
        for step, models in zip(path, self.models(path), strict=True):
            is_beside = is_beside or any(issubclass(model, _Credentialed) for model in models)
            may_be_secret = isinstance(step, str) and (is_beside or _is_like_a_url(step))
            yield may_be_secret and not any(step in model.model_fields for model in models)


def _child(value: Any, step: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(step)
    return value[step] if isinstance(value, list) and isinstance(step, int) and step < len(value) else None


def _key(text: str) -> str:
    """A key as it may stand in a path of a message."""
    return text if text.isprintable() and len(text) <= 80 else shown(text)


def _without_names(text: str) -> str:
    """What is wrong with YAML, without the names that it quotes: only characters, and kinds of tokens as `<scalar>`."""
    return re.sub(r"'([^']*)'", lambda one: one[0] if re.match(r"[<\\]|.?\Z", one[1]) else "(not shown)", text)


def read_yaml(file: Path, model: type[BaseModel]) -> Document:
    """Read one YAML file; ConfigError if it cannot be read or is no YAML. Duplicate keys are faults of the document."""
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise ConfigError(fault(str(file), f"cannot be read ({error.strerror})", "a configuration file")) from error
    except UnicodeDecodeError as error:
        raise ConfigError(fault(str(file), f"byte {error.start} is not UTF-8", "a YAML file in UTF-8")) from error
    except RecursionError as error:
        raise ConfigError(fault(str(file), "nested too deeply", "plain mappings and lists")) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else str(file)
        problem = _without_names(str(getattr(error, "problem", None) or "not YAML"))
        # The error that it comes from quotes the line.
        raise ConfigError(fault(place, " ".join(problem.split()), "valid YAML")) from None
    document = Document(file, model)
    try:
        document.value = None if root is None else _value(root, (), document)
    except RecursionError as error:
        raise ConfigError(fault(str(file), "nested too deeply", "plain mappings and lists")) from error
    if document.value is None:
        document.lines.clear()
    return document


def _value(node: yaml.Node, path: Path_, document: Document) -> Any:
    document.lines[path] = node.start_mark.line + 1
    if len(document.lines) > NODES_MAX:
        # Nodes that name each other (`*a`) multiply: a few lines can stand for more than there is memory.
        raise ConfigError(fault(str(document.file), f"more than {NODES_MAX} values", "a smaller configuration"))
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, (*path, index), document) for index, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        result: dict[Hashable, Any] = {}
        for key_node, child in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None:
                document.faults.append(
                    fault(f"{document.file}:{key_node.start_mark.line + 1}", "a key that is not text", "a name")
                )
                continue
            if key in result:
                place = (*path, key)
                seen = f"{document.key_at(place)} stands twice (first in line {document.lines[place]})"
                where = document.where(place, key_node.start_mark.line + 1)
                document.faults.append(fault(where, seen, "every key once"))
                continue
            result[key] = _value(child, (*path, key), document)
            document.lines[(*path, key)] = key_node.start_mark.line + 1
        return result
    # An empty value (`pools:`) is nothing at all, not the text ''.
    plain = isinstance(node, yaml.ScalarNode) and node.style is None
    return None if plain and node.value in ("", "~", "null") else node.value


_EXPECTED: dict[str, str] = {
    "extra_forbidden": "no such key",
    "missing": "a value",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "too_short": "at least one entry",
    "string_too_short": "a text that is not empty",
}


def _expectation(error: Any) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "literal_error":
            return f"one of {context['expected']}"
        case "string_pattern_mismatch":
            return f"text like {context['pattern']}"
        case "value_error":
            return str(context["error"])
        case kind if kind in _EXPECTED:
            return _EXPECTED[str(kind)]
        case _:
            return str(error["msg"]).removeprefix("Input should be ").removeprefix("Decimal input should have ")


def _model_faults(document: Document, error: ValidationError) -> Iterator[str]:
    seen: set[tuple[Path_, bool]] = set()
    for item in error.errors():
        path = _document_path(item, {} if document.value is None else document.value)
        if item["type"] == "extra_forbidden":
            yield fault(document.where(path), f"unknown {document.key_at(path)}", _known_keys(document, path))
        elif item["type"] == "missing":
            yield fault(document.where(path), "missing", "a value")
        elif item["type"].startswith("union_tag_"):
            yield _tag_fault(document, path, item)
        elif (path, _is_about_a_key(item)) not in seen:
            yield fault(document.where(path), _seen(document, path, item), _expectation(item))
        seen.add((path, _is_about_a_key(item)))


_WHOLES = frozenset({"list_type", "dict_type", "model_type", "model_attributes_type"})
"""Errors where a whole mapping or list is expected."""


def _seen(document: Document, path: Path_, item: Any) -> str:
    """The value that is wrong, as it may be shown; a text in the place of a whole mapping or list may be anything."""
    value = item["input"]
    if not isinstance(value, str):
        return f"value {'nothing' if value is None else _kind(value)}"
    if item["type"] in _WHOLES:
        return "value a text"
    return _told(value, is_hidden=document.is_beside_credentials(path))


def _told(value: str, *, is_hidden: bool = False) -> str:
    """A text of the configuration, if it can have no secret."""
    if is_hidden or _is_like_a_url(value):
        return "a value that may hold a secret, and is not shown"
    return f"value {shown(value)}"


def _tag_fault(document: Document, path: Path_, error: Any) -> str:
    """What is wrong with the value that says of which kind a mapping is."""
    path = (*path, error["ctx"]["discriminator"].strip("'"))
    value = error["input"].get(path[-1]) if isinstance(error["input"], dict) else None
    seen = "missing" if value is None else _told(value) if isinstance(value, str) else f"value {_kind(value)}"
    kinds = (get_args(model.model_fields["ecosystem"].annotation)[0] for model in _tenant_models())
    return fault(document.where(path), seen, f"one of {', '.join(map(repr, kinds))}")


def _tenant_models() -> tuple[type[_TenantBase], ...]:
    models: tuple[type[_TenantBase], ...] = get_args(get_args(Tenant)[0])
    return models


def _kind(value: Any) -> str:
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else type(value).__name__


def _is_about_a_key(error: ErrorDetails) -> bool:
    """Whether a key of a mapping is wrong, and not what stands at it: at `[key]`, which may be a key itself."""
    is_marked = error["loc"][-1:] == ("[key]",) and error["type"] != "extra_forbidden"
    return is_marked and error["input"] == error["loc"][-2]


def _document_path(error: ErrorDetails, value: Any) -> Path_:
    """The path of what is wrong: its location without the steps (union tags, `[key]`) that are not in the document.

    But the last one: a key may be missing.
    """
    location = error["loc"][:-1] if _is_about_a_key(error) else error["loc"]
    path: list[str | int] = []
    for index, step in enumerate(location):
        last = index == len(location) - 1
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        elif not (last and isinstance(value, dict)) or step in ("<name>", "<rungs>"):
            continue
        path.append(step)
    return tuple(path)


def _known_keys(document: Document, path: Path_) -> str:
    """The keys the mapping that holds `path` may have."""
    *_, models = document.models(path)
    if not models:
        return "no such key"
    return f"one of {', '.join(field.alias or name for name, field in models[0].model_fields.items())}"


def _inner_models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _inner_models(argument)


def _tag(model: type[BaseModel]) -> str | None:
    """The ecosystem that tells a tenant's model from the others'."""
    field = model.model_fields.get("ecosystem")
    return str(get_args(field.annotation)[0]) if field is not None else None


def _checked(document: Document, model: type[Model]) -> tuple[Model | None, list[str]]:
    """The model, if nothing but unknown keys, ladders and tenants are wrong with the document, and all faults.

    Unknown keys are set aside, as are ladders and products whose names are none. What cannot be read of a tenant is
    replaced by something to which no rule objects, and a tenant of which not even the ecosystem can be read as a whole;
    the rest is read again, so that the rules can be checked in the same go.
    """
    value: Any = {} if document.value is None else document.value
    faults: list[str] = []
    for _ in range(2):
        try:
            return model.model_validate(value), faults
        except ValidationError as error:
            faults += _model_faults(document, error)
            found = [(_document_path(item, value), item) for item in error.errors()]
            dropped = {path for path, item in found if _can_be_dropped(path, item)}
            replaced = {_replaced_path(path) for path, item in found if not _can_be_dropped(path, item)}
            if () in replaced:
                return None, faults
            # What lies in a part before the part.
            for path in sorted(dropped | replaced, key=len, reverse=True):
                (_drop if path in dropped else _replace)(value, path)
    return None, faults


def _can_be_dropped(path: Path_, error: ErrorDetails) -> bool:
    """Whether a key is wrong without which the rest can be read: an unknown one, or a ladder's or product's name."""
    is_unnamed = _is_about_a_key(error) and len(path) == 4 and path[2] in ("ladders", "products")
    return error["type"] == "extra_forbidden" or is_unnamed


UNREAD = "\0"
"""Stands for a name that cannot be read. Nobody has it; a cost model's region that has it may be any."""
_OWNER_STAND_INS: dict[str, Any] = {"tags": ["owner"], "identities": [], "aliases": {}}
"""Of the parts of an owner. Names that are one without aliases are one with them: no fault comes of their absence."""
_COMPARED: dict[str, tuple[str, ...]] = {
    "lookback_days": ("retention_days",),
    "rates": ("broker_count",),
    "series": ("selector",),
    "identity_source": ("static_identities",),
    "static_identities": ("identity_source",),
    "allocation": ("allocation_query", "allocation_label"),
    "allocation_query": ("allocation", "allocation_label"),
    "allocation_label": ("allocation", "allocation_query"),
}
"""Key of a tenant, a cost model or a cost type -> keys that rules compare with it, and that are replaced with it."""


def _stand_ins(tenant: dict[Any, Any], number: int, place: Path_) -> dict[str, Any]:
    """Values to which no rule objects, for keys of a mapping at a place in a tenant.

    For those that are needed, and those whose absence may be a fault.
    """
    match place:
        case ():
            return _tenant_stand_ins(tenant, number)
        case ("metrics",):
            return {
                "url": f"http://set-aside-{number}",
                "username": "${NAME}",
                "password": "${NAME}",
                "bearer": "${NAME}",
            }
        case ("source",):
            return _source_stand_ins(tenant.get("ecosystem"), number)
        case ("source", "cost_types", int(entry)):
            return _cost_type_stand_ins(entry)
        case _:
            return _OWNER_STAND_INS


def _tenant_stand_ins(tenant: dict[Any, Any], number: int) -> dict[str, Any]:
    return {
        "id": f"set-aside-{number}",
        # There is an operator, who bears something.
        "operator": UNREAD,
        "ladders": _ladders_named(tenant),
        "owner": {"tags": ["owner"]},
        "keys": ["keys.csv"],
        "source": _source_stand_ins(tenant.get("ecosystem"), number),
        # Which is that of no other tenant.
        "metrics": {"url": f"http://set-aside-{number}"},
        "lookback_days": "1000000",
        "cutoff_days": "0",
        "retention_days": "1000000",
    }


def _ladders_named(tenant: dict[Any, Any]) -> dict[str, Any]:
    """A ladder for every name of one that is said in a tenant's pools and products."""
    found, left = dict[str, Any](), [tenant.get("pools"), tenant.get("products")]
    while left:
        match left.pop():
            case list(values):
                left += values
            case dict(values):
                left += values.values()
                if isinstance(name := values.get("ladder"), str) and re.fullmatch(_NAME, name):
                    found[name] = _RUNGS
    return found


def _source_stand_ins(ecosystem: Any, number: int) -> dict[str, Any]:
    cost_model = {"kind": "cost_model", "cluster_id": UNREAD, "region": UNREAD}
    # Who can be told from an operator that cannot be read.
    identities = {"static_identities": [f"{UNREAD}{number}"]}
    match ecosystem:
        case "aws":
            return {"kind": "aws_cur", "path": "."}
        case "confluent_cloud":
            return {"kind": "confluent_cloud", "api_key": "${KEY}", "api_secret": "${SECRET}"}
        case "self_managed_kafka":
            # Brokers and rates of all days, and series that no other cluster has. Nothing has to be asked for them.
            whole = {"broker_count": "1", "rates": {"compute_hourly_rate": "1"}, "selector": f'set_aside="{number}"'}
            return {**cost_model, **whole, "identity_source": "static", **identities}
        case _:
            found = {"source": "static", **identities}
            return {**cost_model, "identity_source": found, "cost_types": [_cost_type_stand_ins(0)]}


def _cost_type_stand_ins(number: int) -> dict[str, Any]:
    """Of the keys of a cost type. Its name says where it stands."""
    fixed = {"rate": "1", "quantity": {"fixed": "1"}, "allocation": "even_split"}
    return {"name": f"cost_types.{number}", "product_category": UNREAD, **fixed}


def _replaced_path(path: Path_) -> Path_:
    """The path of the smallest part of a tenant that can be replaced, and into which a path leads; () if elsewhere."""
    match path:
        case ("tenants", int(), "pools", int(), "match", "tag", *_):
            return path[:7]
        case ("tenants", int(), "pools", int(), "match", *_) | ("tenants", int(), "source", "cost_types", int(), *_):
            return path[:6]
        case ("tenants", int(), "pools", int(), *_) | ("tenants", int(), "products", str(), *_):
            return path[:5]
        case ("tenants", int(), "ladders" | "source" | "metrics", str(), *_):
            return path[:4]
        case ("tenants", int(), "owner", str(key), *_) if key in _OWNER_STAND_INS:
            return path[:4]
        case ("tenants", int(), *_):
            return path[:3]
        case _:
            return ()


def _replace(value: Any, path: Path_) -> None:
    """Put at a path something of its kind in which nothing is wrong."""
    holder = value
    for step in path[:-1]:
        holder = holder[step]
    match path:
        case (_, int(number)):
            plain = {"ecosystem": "aws"}
            own = _tenant_stand_ins(plain, number)
            holder[number] = {**plain, **{key: own[key] for key in ("id", "source", "owner")}}
        case (_, _, "pools", _, "match", _, *_):
            _drop(value, path)
        case (_, _, "ladders" | "pools" | "products", _, *_) | (_, _, "source", "cost_types", int()):
            holder[path[-1]] = _rule_stand_in(path)
        case (_, int(number), *place, str(key)):
            _put(holder, key, _stand_ins(value["tenants"][number], number, tuple(place)))


def _put(holder: dict[str, Any], key: str, stand_ins: dict[str, Any]) -> None:
    """Replace the value of a key, and those that rules compare with it; what has no stand-in is left out."""
    for one in (key, *_COMPARED.get(key, ())):
        holder.pop(one, None)
        if one in stand_ins:
            holder[one] = stand_ins[one]


_RUNGS: list[dict[str, str]] = [{"basis": "unallocated"}]
_PRODUCT_STAND_INS: dict[str, Any] = {
    "ladder": _RUNGS,
    "parts": [{"share": "1", "ladder": _RUNGS}],
    "partial_life": "whole",
}


def _rule_stand_in(path: Path_) -> Any:
    """What may take the place of a ladder, a cost type, a product, a pool, or a part of the latter two."""
    match path:
        case (_, _, "source", "cost_types", int(number)):
            return _cost_type_stand_ins(number)
        case (_, _, "pools", int(number)):
            return {key: _pool_stand_ins(number)[key] for key in ("name", "match", "ladder")}
        case (_, _, "pools", int(number), str(key)):
            return _pool_stand_ins(number)[key]
        case (_, _, "products", _):
            return {"ladder": _RUNGS}
        case (_, _, "products", _, str(key)):
            return _PRODUCT_STAND_INS[key]
        case _:
            return _RUNGS


def _pool_stand_ins(number: int) -> dict[str, Any]:
    """What may take the place of the keys of a pool. Its name says where it stands; no other pool has its match."""
    match_ = {"tag": {"\0": f"\0{number}"}}
    return {**_PRODUCT_STAND_INS, "name": f"pools.{number}", "match": match_, "window": None}


def _drop(value: Any, path: Path_) -> None:
    """Take out a key. In a pool's match a condition takes its place that no other pool has or covers.

    Without any the pool would match more lines than its author wanted, and take them from later pools.
    """
    holder = value
    for step in path[:-1]:
        holder = holder[step]
    del holder[path[-1]]
    match path:
        case ("tenants", int(tenant), "pools", int(number), "match", *_):
            match_ = value["tenants"][tenant]["pools"][number]["match"]
            if isinstance(tags := match_.setdefault("tag", {}), dict):
                tags |= _pool_stand_ins(number)["match"]["tag"]


def load(file: Path) -> tuple[Config | None, Document, list[str]]:
    """The configuration of a file, its document (to say where a value stands), and every fault of its form.

    The configuration is None where too little of it can be read. Paths in it are made absolute. The caller adds
    the faults that rules find and raises ConfigError with all of them (`rules.faults`).
    """
    document = read_yaml(file, Config)
    config, faults = _checked(document, Config)
    if config is None:
        return None, document, [*document.faults, *faults]
    return _resolved(config, file.absolute().parent), document, [*document.faults, *faults]


def load_rulebook(file: Path) -> Rulebook:
    """A rulebook that comes with prorata; ConfigError with all faults if it is wrong."""
    document = read_yaml(file, Rulebook)
    rulebook, faults = _checked(document, Rulebook)
    if rulebook is None or faults or document.faults:
        raise ConfigError([*document.faults, *faults])
    return rulebook


def _resolved(config: Config, folder: Path) -> Config:
    tenants = [_resolved_tenant(tenant, folder) for tenant in config.tenants]
    return config.model_copy(update={"root": _absolute(folder, config.root), "tenants": tenants})


def _resolved_tenant(tenant: Tenant, folder: Path) -> Tenant:
    teams = tenant.teams.model_copy(update={"tags": [_absolute(folder, path) for path in tenant.teams.tags]})
    if isinstance(tenant, AwsTenant):
        source = tenant.source.model_copy(update={"path": _absolute(folder, tenant.source.path)})
        keys = [_absolute(folder, path) for path in tenant.keys]
        return tenant.model_copy(update={"source": source, "keys": keys, "teams": teams})
    bundles = {
        name: given.model_copy(update={"ca_bundle": _absolute(folder, given.ca_bundle)})
        for name, given in (("source", tenant.source), ("metrics", tenant.metrics))
        if isinstance(given, ConfluentCloud | Prometheus) and given.ca_bundle is not None
    }
    if isinstance(tenant, KafkaTenant):
        return tenant.model_copy(update={**bundles, "source": _resolved_admin(tenant.source, folder), "teams": teams})
    return tenant.model_copy(update={**bundles, "teams": teams})


def _resolved_admin(source: KafkaCostModel, folder: Path) -> KafkaCostModel:
    if source.admin is None or source.admin.ca_bundle is None:
        return source
    bundle = {"ca_bundle": _absolute(folder, source.admin.ca_bundle)}
    return source.model_copy(update={"admin": source.admin.model_copy(update=bundle)})


def _absolute(folder: Path, path: Path) -> Path:
    return Path(os.path.normpath(folder / path))
