"""The whole AWS allocation once more: plain Python, exact fractions, one line at a time, slow and obvious.

It starts from raw material (billing lines, tags, the tenant's YAML, key tables, all as text) and shares no code with
the product, so that an error in one of them shows as a difference between the two. Nothing here is clever on purpose:
read it beside the description of the rules.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

UNALLOCATED = "UNALLOCATED"
UNITS = 10**12
"""Units of one currency unit."""
WEIGHT_TOTAL_LIMIT = 2**62
POINTS = 2**60
"""What a `weighted` rung deals out."""

LABELS = {
    "direct": ("direct", "direct"),
    "usage": ("usage", "usage_ratio"),
    "even": ("shared", "even_split"),
    "cost": ("shared", "cost_ratio"),
    "fixed": ("shared", "fixed"),
    "weighted": ("shared", "weighted"),
    "operator": ("operator", "operator"),
    "resource": ("shared", "to_resource"),
    "unallocated": ("shared", "unallocated"),
}
"""Basis -> cost_type, allocation_method."""

TAX_POOL: dict[str, Any] = {
    "name": "tax",
    "match": {"line_item_type": "Tax"},
    "window": "month",
    "ladder": "tax_default",
}
TAX_LADDER: list[dict[str, Any]] = [
    {"basis": "cost", "scope": "service_account"},
    {"basis": "cost", "scope": "account"},
    {"basis": "cost", "scope": "all"},
    {"basis": "unallocated"},
]
MONTHLY_LINE_ITEM_TYPES = {"Tax", "Fee", "RIFee", "SavingsPlanRecurringFee", "SavingsPlanUpfrontFee"}

EMPTY_KEY = "empty_key"
ZERO_KEY_TOTAL = "zero_key_total"


class Line(NamedTuple):
    """What makes raw lines of one day one billing line."""

    charge_date: str
    billing_period: str
    account: str
    service: str
    usage_type: str
    operation: str
    region: str
    line_item_type: str
    resource: str
    tags: tuple[tuple[str, str], ...]
    currency: str
    invoice: str


class Charge(NamedTuple):
    """One row of the result. Amounts in units of 1e-12.

    `exact` is the payer's share of the line before any rounding, by the integer weights; `ideal` the same by the values
    as the user wrote them, and `slack` how far the integer weights may lead away from that, in units.
    """

    line: Line
    part: int
    identity_id: str
    units: int
    cost_type: str
    allocation_method: str
    allocation_detail: str
    rule_id: str
    rung: int
    part_units: int
    weight_before: int
    weight: int
    weight_total: int
    exact: Fraction
    ideal: Fraction
    slack: Fraction


class EmptyKey(NamedTuple):
    """A key, scope or population that weighed nothing when a line asked for it."""

    line: Line
    rule_id: str
    part: int
    rung: int
    basis: str
    metric: str
    reason: str


class Allocation(NamedTuple):
    """Everything the allocation of some raw lines yields."""

    lines: dict[Line, int]
    charges: list[Charge]
    empty_keys: list[EmptyKey]


class Weighing(NamedTuple):
    """What one rung found for one line.

    Integer weights of all candidates, the values they stand for, by how much of the total a weight may differ from its
    value, the metrics that were empty, and why the rung does not hold ('' if it does).
    """

    weights: dict[str, int]
    values: dict[str, Fraction]
    error: Fraction
    empty: list[tuple[str, str]]
    reason: str


# ------------------------------------------------------------------------------------------------ text and numbers


def half_even(value: Fraction) -> int:
    """The nearest integer; of two equally near ones the even one."""
    below = value.numerator // value.denominator
    rest = value - below
    if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2 == 1):
        return below + 1
    return below


def parse_units(text: str) -> int:
    """A decimal text as a count of 1e-12."""
    return half_even(Fraction(text) * UNITS)


WHITE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def normal(text: str) -> str:
    """What all spellings of a name have in common."""
    words, word = [], ""
    for letter in unicodedata.normalize("NFC", text):
        if letter in WHITE:
            words.append(word)
            word = ""
        else:
            word += letter
    words.append(word)
    return unicodedata.normalize("NFC", " ".join(word for word in words if word).lower())


def canonical_tag_key(text: str) -> str:
    """`CostCenter`, `cost-center` and `cost_center` are one key."""
    words, word = [], ""
    for letter in text:
        if not letter.isalnum():
            words.append(word)
            word = ""
        elif letter.isupper():
            words.append(word)
            word = letter.lower()
        else:
            word += letter.lower()
    words.append(word)
    return "_".join(word for word in words if word) or text


def glob(pattern: str, text: str) -> bool:
    """Whether the text fits the pattern: `*` is any text, `?` any one character, all else is itself."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(glob(pattern[1:], text[start:]) for start in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and glob(pattern[1:], text[1:])


def listed(value: Any) -> list[Any]:
    """A value or a list of values, as a list."""
    return list(value) if isinstance(value, list) else [value]


# ------------------------------------------------------------------------------------------------ lines and owners


def pooled(raw_lines: Iterable[Mapping[str, Any]]) -> dict[Line, int]:
    """Raw lines -> units of each billing line."""
    lines: dict[Line, int] = {}
    for raw in raw_lines:
        tags = {canonical_tag_key(key): value for key, value in raw["tags"].items() if value != ""}
        line = Line(
            charge_date=raw["date"],
            billing_period=raw["billing_period"],
            account=raw["account"],
            service=raw["service"],
            usage_type=raw["usage_type"],
            operation=raw["operation"],
            region=raw["region"],
            line_item_type=raw["line_item_type"],
            resource=raw["resource"],
            tags=tuple(sorted(tags.items())),
            currency=raw["currency"],
            invoice=raw["invoice"],
        )
        lines[line] = lines.get(line, 0) + parse_units(raw["cost"])
    return lines


def identity_of(name: str, tenant: Mapping[str, Any]) -> str:
    """The identity a name stands for; '' for nobody."""
    aliases = {normal(alias): normal(target) for alias, target in tenant["owner"].get("aliases", {}).items()}
    identity = aliases.get(normal(name), normal(name))
    return "" if identity == "unallocated" else identity


def owner_of(line: Line, tenant: Mapping[str, Any]) -> str:
    """Who the first telling owner tag names; '' for an untagged line."""
    tags = dict(line.tags)
    for key in listed(tenant["owner"]["tags"]):
        identity = identity_of(tags.get(canonical_tag_key(key), ""), tenant)
        if identity:
            return identity
    return ""


def operator_of(tenant: Mapping[str, Any]) -> str:
    """The operator's identity; '' if there is none."""
    return identity_of(tenant.get("operator") or "", tenant)


# ------------------------------------------------------------------------------------------------ pools


def pools_of(tenant: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tenant's pools and then the built-in one, unless the tenant has one of its name."""
    own = list(tenant.get("pools", []))
    return own if any(pool["name"] == TAX_POOL["name"] for pool in own) else [*own, TAX_POOL]


def matches(match: Mapping[str, Any], line: Line) -> bool:
    """Whether every condition holds; a condition holds if one of its patterns fits."""
    seen = {
        "service": line.service,
        "usage_type": line.usage_type,
        "line_item_type": line.line_item_type,
        "account": line.account,
        "region": line.region,
    }
    for condition, text in seen.items():
        if condition in match and not any(glob(pattern, text) for pattern in listed(match[condition])):
            return False
    tags = dict(line.tags)
    for key, patterns in match.get("tag", {}).items():
        value = tags.get(canonical_tag_key(key))
        if value is None or not any(glob(pattern, value) for pattern in listed(patterns)):
            return False
    return True


def window_of(pool: Mapping[str, Any]) -> str:
    """`day` or `month`: as the pool says, else month for what AWS charges once a month."""
    if pool.get("window"):
        return str(pool["window"])
    types = listed(pool["match"].get("line_item_type", []))
    services = listed(pool["match"].get("service", []))
    if types and all(pattern in MONTHLY_LINE_ITEM_TYPES for pattern in types):
        return "month"
    if services and all(pattern.startswith("AWSSupport") for pattern in services):
        return "month"
    return "day"


def ladder_of(ladder: Any, tenant: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rungs in place, or those of a named ladder."""
    if isinstance(ladder, str):
        named = {"tax_default": TAX_LADDER, **tenant.get("ladders", {})}
        return list(named[ladder])
    return list(ladder)


def parts_of(pool: Mapping[str, Any], tenant: Mapping[str, Any]) -> list[tuple[int, list[Mapping[str, Any]]]]:
    """Share in 1e-12 and rungs of each part."""
    if pool.get("parts"):
        return [(parse_units(part["share"]), ladder_of(part["ladder"], tenant)) for part in pool["parts"]]
    return [(UNITS, ladder_of(pool["ladder"], tenant))]


# ------------------------------------------------------------------------------------------------ weights


def integer_weights(values: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Values in 1e-12 -> integer weights whose total is below 2**62, and by how many bits they were shifted."""
    whole = all(value % UNITS == 0 for value in values.values())
    weights = {name: value // UNITS if whole else value for name, value in values.items()}
    shift = 0
    while sum(weights.values()) >> shift >= WEIGHT_TOTAL_LIMIT:
        shift += 1
    return {name: weight >> shift for name, weight in weights.items()}, shift


def weighing(values: Mapping[str, int], metric: str) -> Weighing:
    """Weigh candidates by values in 1e-12."""
    weights, shift = integer_weights(values)
    total = sum(weights.values())
    # A shift takes less than one from each weight, so a share moves by less than (n + 1) of the total.
    error = Fraction(len(weights) + 1, total) if shift else Fraction(0)
    reason = "" if total else ZERO_KEY_TOTAL if values else EMPTY_KEY
    exact = {name: Fraction(value) for name, value in values.items()}
    return Weighing(weights, exact, error, [(metric, reason)] if reason else [], reason)


def shares_of(units: int, weights: Sequence[int]) -> list[int]:
    """An amount split by weights: each gets what the floor of the running share grows by. Signs are set aside."""
    total, before, shares = sum(weights), 0, []
    for weight in weights:
        upper = Fraction(abs(units) * (before + weight), total)
        lower = Fraction(abs(units) * before, total)
        share = upper.numerator // upper.denominator - lower.numerator // lower.denominator
        shares.append(-share if units < 0 else share)
        before += weight
    return shares


def key_values(rows: Iterable[Mapping[str, str]], key: str, line: Line, window: str, tenant: Any) -> dict[str, int]:
    """Summed values in 1e-12 of each identity in one key of the line's window."""
    rows = [row for row in rows if row["key"] == key]
    by_day = any(len(row["window"]) == len("YYYY-MM-DD") for row in rows)
    values: dict[str, int] = {}
    for row in rows:
        if by_day and window == "day":
            holds = row["window"] == line.charge_date
        elif by_day:
            holds = row["window"].startswith(line.billing_period + "-")
        else:
            holds = row["window"] == line.billing_period
        if holds:
            identity = identity_of(row["identity"], tenant)
            values[identity] = values.get(identity, 0) + parse_units(row["value"])
    return values


def weighted(keys: Mapping[str, str], tables: Mapping[str, Mapping[str, int]]) -> Weighing:
    """Deal 2**60 points to the keys that have a total, and each key's points to its identities."""
    left = [key for key in sorted(keys) if sum(tables[key].values())]
    empty = [(key, ZERO_KEY_TOTAL if tables[key] else EMPTY_KEY) for key in sorted(keys) if key not in left]
    candidates = sorted({identity for table in tables.values() for identity in table})
    if not left:
        return Weighing(
            dict.fromkeys(candidates, 0), {}, Fraction(0), empty, ZERO_KEY_TOTAL if candidates else EMPTY_KEY
        )
    ratios = [parse_units(keys[key]) for key in left]
    points = dict.fromkeys(candidates, 0)
    values = dict.fromkeys(candidates, Fraction(0))
    error = Fraction(0)
    for key, ratio, key_points in zip(left, ratios, shares_of(POINTS, ratios), strict=True):
        table = weighing(tables[key], key)
        identities = sorted(table.weights)
        for identity, share in zip(
            identities, shares_of(key_points, [table.weights[name] for name in identities]), strict=True
        ):
            points[identity] += share
            values[identity] += Fraction(ratio, sum(ratios)) * table.values[identity] / sum(table.values.values())
        error += Fraction(2, POINTS) + table.error
    return Weighing(points, values, error, empty, "")


class World:
    """The raw material of one tenant, and the questions the rungs ask of it."""

    def __init__(
        self, lines: dict[Line, int], tenant: Mapping[str, Any], key_rows: Sequence[Mapping[str, str]]
    ) -> None:
        self.lines, self.tenant, self.key_rows = lines, tenant, key_rows
        self.operator = operator_of(tenant)
        self.owners = {line: owner_of(line, tenant) for line in lines}

    def direct_lines(self, like: Line, window: str) -> Iterator[tuple[Line, str]]:
        """Lines of the same window that an identity other than the operator owns."""
        for line, owner in self.owners.items():
            same_day = window == "month" or line.charge_date == like.charge_date
            if owner and owner != self.operator and line.billing_period == like.billing_period and same_day:
                yield line, owner

    def even(self, line: Line, window: str) -> Weighing:
        """One each for everybody with a direct line."""
        return weighing({owner: UNITS for _, owner in self.direct_lines(line, window)}, "owners")

    def cost(self, scope: str, line: Line, window: str) -> Weighing:
        """Net direct cost in the line's currency, if it is above zero."""
        net: dict[str, int] = {}
        for other, owner in self.direct_lines(line, window):
            if other.currency != line.currency:
                continue
            if scope in ("account", "service_account") and other.account != line.account:
                continue
            if scope == "service_account" and other.service != line.service:
                continue
            net[owner] = net.get(owner, 0) + self.lines[other]
        return weighing({owner: max(units, 0) for owner, units in net.items()}, scope)

    def fixed(self, percentages: Mapping[str, str]) -> Weighing:
        """As the rule says."""
        return weighing({identity_of(name, self.tenant): parse_units(text) for name, text in percentages.items()}, "")

    def weigh(self, rung: Mapping[str, Any], line: Line, window: str) -> Weighing:
        """What one rung that is not the last finds for one line."""
        match rung["basis"]:
            case "even":
                return self.even(line, window)
            case "cost":
                return self.cost(rung["scope"], line, window)
            case "fixed":
                return self.fixed(rung["percentages"])
            case "usage":
                return weighing(key_values(self.key_rows, rung["key"], line, window, self.tenant), rung["key"])
            case "weighted":
                tables = {key: key_values(self.key_rows, key, line, window, self.tenant) for key in rung["keys"]}
                return weighted(rung["keys"], tables)
            case basis:
                raise ValueError(f"basis {basis} cannot weigh")


# ------------------------------------------------------------------------------------------------ charges


def last_rung(basis: str, line: Line, operator: str) -> tuple[str, str, str]:
    """Payer, cost_type and allocation_method of a rung that takes everything."""
    cost_type, method = LABELS[basis]
    if basis == "operator":
        return operator, cost_type, method
    if basis == "resource" and line.resource:
        return line.resource, cost_type, method
    return UNALLOCATED, cost_type, LABELS["unallocated"][1]


def part_charges(
    world: World, line: Line, pool: Mapping[str, Any], part: int, part_units: int, ideal_part: Fraction, rungs: Any
) -> tuple[list[Charge], list[EmptyKey]]:
    """One part of one line down its ladder: the first rung that weighs anything takes it, else the last."""
    rule_id, window = f"pool:{pool['name']}", window_of(pool)
    empty: list[EmptyKey] = []
    first_reason = ""
    for number, rung in enumerate(rungs[:-1]):
        found = world.weigh(rung, line, window)
        empty += [EmptyKey(line, rule_id, part, number, rung["basis"], key, why) for key, why in found.empty]
        if number == 0:
            first_reason = found.reason
        if found.reason:
            continue
        total, value_total = sum(found.weights.values()), sum(found.values.values())
        identities = sorted(found.weights, key=lambda name: name.encode())
        weights = [found.weights[identity] for identity in identities]
        charges = []
        for position, units in enumerate(shares_of(part_units, weights)):
            identity, weight = identities[position], weights[position]
            if weight == 0:
                continue
            charges.append(
                Charge(
                    line, part, identity, units, *LABELS[rung["basis"]], pool["name"], rule_id, number, part_units,
                    sum(weights[:position]), weight, total,
                    ideal_part * weight / total,
                    ideal_part * found.values[identity] / value_total,
                    abs(ideal_part) * found.error,
                )
            )  # fmt: skip
        return charges, empty
    detail = first_reason if rungs[-1]["basis"] == "unallocated" and len(rungs) > 1 else pool["name"]
    payer, cost_type, method = last_rung(rungs[-1]["basis"], line, world.operator)
    charge = Charge(
        line, part, payer, part_units, cost_type, method, detail, rule_id, len(rungs) - 1, part_units,
        0, 1, 1, ideal_part, ideal_part, Fraction(0),
    )  # fmt: skip
    return [charge], empty


def whole(line: Line, units: int, payer: str, labels: tuple[str, str], detail: str, rule_id: str) -> Charge:
    """A line that goes to one payer."""
    exact = Fraction(units)
    return Charge(line, 0, payer, units, *labels, detail, rule_id, 0, units, 0, 1, 1, exact, exact, Fraction(0))


def line_charges(world: World, line: Line) -> tuple[list[Charge], list[EmptyKey]]:
    """Everything one line is charged as."""
    units = world.lines[line]
    if world.owners[line]:
        return [whole(line, units, world.owners[line], LABELS["direct"], "owner_tag", "direct")], []
    pool = next((pool for pool in pools_of(world.tenant) if matches(pool["match"], line)), None)
    if pool is None:
        return [whole(line, units, UNALLOCATED, LABELS["unallocated"], "untagged", "untagged")], []
    parts = parts_of(pool, world.tenant)
    shares = [share for share, _ in parts]
    charges: list[Charge] = []
    empty: list[EmptyKey] = []
    for number, part_units in enumerate(shares_of(units, shares)):
        ideal_part = Fraction(units) * shares[number] / sum(shares)
        more, more_empty = part_charges(world, line, pool, number, part_units, ideal_part, parts[number][1])
        charges += more
        empty += more_empty
    kept = [charge for charge in charges if charge.units]
    return kept or charges[:1], empty


def allocate(
    raw_lines: Iterable[Mapping[str, Any]], tenant: Mapping[str, Any], key_rows: Sequence[Mapping[str, str]]
) -> Allocation:
    """Who pays for the raw lines of one tenant."""
    world = World(pooled(raw_lines), tenant, key_rows)
    charges: list[Charge] = []
    empty: list[EmptyKey] = []
    for line in world.lines:
        more, more_empty = line_charges(world, line)
        charges += more
        empty += more_empty
    return Allocation(world.lines, charges, empty)
