"""Random but fixed worlds as a user would bring them, all text: configuration, billing lines with odd tags, key tables.

Every world has days on which nobody owns anything, keys that have gaps or total nothing, two currencies, credits,
lines of the last month's end in this month's bill, pools of every basis and names in many spellings.
"""

from __future__ import annotations

import random
from itertools import product
from typing import Any, NamedTuple

from tests.reference.allocation import glob

Row = dict[str, Any]

SERVICES = ["AmazonEC2", "AmazonS3", "AmazonCloudWatch", "AmazonVPC", "AWSSupportBusiness"]
USAGE_TYPES = ["NatGateway-Bytes", "EUC1-NatGateway-Hours", "BoxUsage:m5.large", "Data[In].*", "natgateway-bytes", ""]
LINE_ITEM_TYPES = ["Usage", "Usage", "Usage", "Tax", "Credit", "Refund", "Fee", "RIFee", "SavingsPlanRecurringFee"]
ACCOUNTS = ["000000000001", "111111111111", "222222222222"]
REGIONS = ["eu-west-1", "eu-central-1", "us-east-1", ""]
DAYS = {
    "2025-09": ["2025-09-01", "2025-09-02", "2025-09-04", "2025-09-30"],
    "2025-10": ["2025-09-30", "2025-10-01", "2025-10-02"],
}
"""Days of each billing period; some lines of September's last day stand in October's bill."""
DAYS_WITHOUT_OWNERS = {"2025-09-04", "2025-10-02"}

OWNER_SPELLINGS = [
    "payments", "Payments ", "PAYMENTS", "pay", " Pay", "search", "\tSearch", "mobile", "data  platform",
    "Data\u00a0Platform", "e\u0301quipe", "\u00e9quipe", "\u00c9QUIPE", "unknown team", "J\u030c", "\u01f0",
    "Platform", "plat",
]  # fmt: skip
"""Spellings of eight identities, an unknown one and the operator among them."""
NOBODY_SPELLINGS = ["", "", "   ", "unallocated", "UNALLOCATED", " Unallocated", "Shared"]
PAYER_SPELLINGS = ["payments", "search ", "MOBILE", "data platform", "e\u0301quipe", "guests", "Donne\u0301es"]
"""Spellings in key tables and percentages: each identity once, the operator never."""
SAMPLE_SPELLINGS = {"payments": "Pay", "search ": "\u00a0SEARCH", "MOBILE": "mobile", "data platform": "Data  Platform"}
"""Other spellings in key tables: their values add up."""
ALIASES = {"Pay": "payments", "Donn\u00e9es": "warehouse", "plat": "platform", "shared": "Unallocated"}
LADDERS = ["by_gb", "direct", "untagged"]
"""Names of ladders, two of which are names of rules as well."""

DATED_KEYS = ["day_whole", "day_decimal", "day_gaps", "day_zero", "day_large"]
PERIOD_KEYS = ["month_whole", "month_zero"]
KEYS = [*DATED_KEYS, *PERIOD_KEYS, "absent"]


class World(NamedTuple):
    """What a user has on disk for one tenant; every scalar is text."""

    tenant: Row
    raw_lines: list[Row]
    key_rows: list[dict[str, str]]


def cost_text(random_: random.Random) -> str:
    """A cost as reports write it: exponents, many decimals, exact ties of the rounding, huge and negative numbers."""
    kind = random_.choices(["everyday", "tie", "long", "exponent", "zero", "huge", "unit"], [50, 10, 12, 10, 6, 6, 6])[
        0
    ]
    text = {
        "everyday": f"{random_.randrange(5000)}.{random_.randrange(10**6):06d}",
        "tie": f"{random_.randrange(3)}.{random_.randrange(10**12):012d}5",
        "long": f"{random_.randrange(100)}.{random_.randrange(10**20):020d}",
        "exponent": f"{random_.randrange(1, 10**4)}e-{random_.randrange(3, 14):02d}",
        "zero": random_.choice(["0", "0.0", "0e0", "0.0000000000005"]),
        "huge": f"{random_.randrange(10**20)}.{random_.randrange(10**12):012d}",
        "unit": "0.000000000001",
    }[kind]
    return f"-{text}" if random_.random() < 0.25 else text


def raw_lines_drawn(random_: random.Random, owner_tags: tuple[str, str]) -> list[Row]:
    """Lines, some of which are hours of one and the same billing line."""
    lines: list[Row] = []
    owned_rarely = random_.random() < 0.2
    for period, days in DAYS.items():
        nobody = random_.random() < 0.2
        for day in days:
            for _ in range(random_.randrange(6, 18)):
                line = raw_line_drawn(random_, period, day)
                owned = 0.1 if owned_rarely else 0.5
                if not nobody and day not in DAYS_WITHOUT_OWNERS and random_.random() < owned:
                    line["tags"][owner_tags[0]] = random_.choice(OWNER_SPELLINGS + NOBODY_SPELLINGS)
                    line["tags"][owner_tags[1]] = random_.choice(OWNER_SPELLINGS + NOBODY_SPELLINGS * 3)
                else:
                    line["tags"][owner_tags[0]] = random_.choice(NOBODY_SPELLINGS)
                lines += [{**line, "cost": cost_text(random_)} for _ in range(random_.choice([1, 1, 1, 3]))]
    random_.shuffle(lines)
    return lines


def raw_line_drawn(random_: random.Random, period: str, day: str) -> Row:
    """One line without an owner and without a cost."""
    return {
        "date": day,
        "billing_period": period,
        "account": random_.choice(ACCOUNTS),
        "service": random_.choice(SERVICES),
        "usage_type": random_.choice(USAGE_TYPES),
        "operation": random_.choice(["", "RunInstances"]),
        "region": random_.choice(REGIONS),
        "line_item_type": random_.choice(LINE_ITEM_TYPES),
        "resource": random_.choice(["", "i-1", "arn:aws:s3:::b/'\"x", "z"]),
        "tags": {"App": random_.choice(["", "shared", "Shared", "shared-2", "=cmd()"])},
        "currency": random_.choice(["USD", "USD", "USD", "EUR"]),
        "invoice": random_.choice(["", "inv-1"]),
    }


def key_value_drawn(random_: random.Random, key: str) -> str:
    """A value of one key."""
    if key.endswith("_zero"):
        return random_.choice(["0", "0", "0.000"])
    if key == "day_large":
        # Not whole, and a total beyond 2**62 units: weights must be shifted.
        return f"{random_.randrange(10 ** random_.randrange(6, 15))}.{random_.randrange(10**12):012d}"
    if key == "day_decimal":
        return random_.choice(["0", "0.5", "1e-7", f"{random_.randrange(1000)}.{random_.randrange(1000):03d}"])
    return str(random_.randrange(10 ** random_.randrange(1, 8)))


def key_rows_drawn(random_: random.Random) -> list[dict[str, str]]:
    """Key tables: repeated rows are samples of one sum."""
    rows: list[dict[str, str]] = []
    dates = sorted({day for days in DAYS.values() for day in days} | {"2025-10-03"})
    for key in [*DATED_KEYS, *PERIOD_KEYS]:
        for window in dates if key in DATED_KEYS else DAYS:
            if random_.random() < (0.6 if key == "day_gaps" else 0.12):
                continue
            names = random_.sample(PAYER_SPELLINGS, random_.choice([1, 2, 4, len(PAYER_SPELLINGS)]))
            names += [SAMPLE_SPELLINGS.get(name, name) for name in names if random_.random() < 0.3]
            rows += [
                {"identity": name, "window": window, "key": key, "value": key_value_drawn(random_, key)}
                for name in names
            ]
    random_.shuffle(rows)
    return rows


def percentages_drawn(random_: random.Random) -> dict[str, str]:
    """Percentages that total 100."""
    names = random_.sample(PAYER_SPELLINGS, 3)
    return dict(
        zip(
            names,
            random_.choice(
                [
                    ("60", "40", "0"),
                    ("33.333333333333", "33.333333333333", "33.333333333334"),
                    ("99.999999999999", "0", "0.000000000001"),
                    ("12.5", "37.5", "50"),
                ]
            ),
            strict=True,
        )
    )


def rung_drawn(random_: random.Random) -> Row:
    """A rung that may weigh."""
    match random_.choice(["even", "cost", "cost", "fixed", "usage", "usage", "weighted", "weighted"]):
        case "cost":
            return {"basis": "cost", "scope": random_.choice(["service_account", "account", "all"])}
        case "fixed":
            return {"basis": "fixed", "percentages": percentages_drawn(random_)}
        case "usage":
            return {"basis": "usage", "key": random_.choice(KEYS)}
        case "weighted":
            # Keys that are empty together more often than chance would have it.
            keys = random_.choice([KEYS, ["day_gaps", "day_zero", "month_zero", "absent"], ["day_gaps", "absent"]])
            chosen = random_.sample(keys, random_.randrange(1, min(4, len(keys)) + 1))
            return {
                "basis": "weighted",
                "keys": {key: random_.choice(["0.5", "1", "3", "0.333333333333"]) for key in chosen},
            }
        case basis:
            return {"basis": basis}


def ladder_drawn(random_: random.Random, operator: bool) -> list[Row]:
    """Rungs, the last of which takes all."""
    last = random_.choice(["unallocated", "unallocated", "resource", *(["operator"] if operator else [])])
    return [*(rung_drawn(random_) for _ in range(random_.choice([0, 1, 1, 1, 2, 3]))), {"basis": last}]


CONDITIONS: dict[str, list[list[str]]] = {
    "service": [
        ["AmazonEC2"], ["Amazon*"], ["AmazonS3", "AmazonVPC"], ["AWSSupport*"], ["*3"], ["AWSSupportBusiness"],
    ],
    "usage_type": [
        ["*NatGateway*"], ["?atGateway-Bytes"], ["Data[In].*"], ["*:*"], ["BoxUsage:m?.large", "*-Hours"], ["?*"],
    ],
    "line_item_type": [
        ["Usage"], ["Tax"], ["Fee", "RIFee"], ["Credit", "Refund"], ["SavingsPlanRecurringFee"], ["Fee", "Usage"],
    ],
    "account": [[ACCOUNTS[0]], ["*1"], [ACCOUNTS[1], ACCOUNTS[2]]],
    "region": [["eu-*"], ["us-east-1"], ["*-1"], ["eu-????-1"]],
}  # fmt: skip
TAG_CONDITIONS = [{"app": ["shared"]}, {"App": ["shared*"]}, {"APP": ["*"]}, {"app": ["*cmd()"]}]


def covers(earlier: Row, later: Row) -> bool:
    """Whether `earlier` may take all lines of `later`: such a pool would be refused."""
    if "tag" in earlier:
        return "tag" in later
    return all(
        field in later and all(any(glob(wide, narrow) for wide in earlier[field]) for narrow in later[field])
        for field in earlier
    )


def is_taken(match: Row, earlier: list[Row]) -> bool:
    """Whether earlier pools together may take all lines of a match: one of them those of each choice of patterns."""
    patterns = {field: [[one] for one in given] for field, given in match.items() if field != "tag"}
    tag = {"tag": match["tag"]} if "tag" in match else {}
    chosen = (dict(zip(patterns, choice, strict=True)) for choice in product(*patterns.values()))
    return all(any(covers(other, {**one, **tag}) for other in earlier) for one in chosen)


def match_drawn(random_: random.Random, earlier: list[Row]) -> Row:
    """Conditions that no earlier pool covers."""
    while True:
        fields = random_.sample(sorted(CONDITIONS), random_.choice([1, 2, 2, 3]))
        match: Row = {field: random_.choice(CONDITIONS[field]) for field in fields}
        if random_.random() < 0.15:
            match["tag"] = random_.choice(TAG_CONDITIONS)
        if not is_taken(match, earlier):
            return match


def parts_drawn(random_: random.Random, ladders: list[str], operator: bool) -> list[Row]:
    """Shares that total 1."""
    shares = random_.choice(
        [
            ("0.7", "0.3"),
            ("0.333333333333", "0.333333333333", "0.333333333334"),
            ("0.999999999999", "0.000000000001"),
            ("1",),
        ]
    )
    return [
        {"share": share, "ladder": random_.choice([*ladders, ladder_drawn(random_, operator)])} for share in shares
    ]  # fmt: skip


def tenant_drawn(random_: random.Random, owner_tags: tuple[str, str]) -> Row:
    """A configuration without faults."""
    operator = random_.random() < 0.8
    ladders = {name: ladder_drawn(random_, operator) for name in LADDERS}
    matches: list[Row] = []
    pools: list[Row] = []
    for number in range(random_.randrange(6, 12)):
        match = match_drawn(random_, matches)
        matches.append(match)
        pool: Row = {"name": f"pool{number}", "match": match}
        if random_.random() < 0.5:
            pool["window"] = random_.choice(["day", "month"])
        if random_.random() < 0.3:
            pool["parts"] = parts_drawn(random_, sorted(ladders), operator)
        else:
            pool["ladder"] = random_.choice([random_.choice(sorted(ladders)), *[ladder_drawn(random_, operator)] * 3])
        pools.append(pool)
    if random_.random() < 0.2:
        # A pool of the tenant's own takes the place of the one that comes with prorata.
        free = {"line_item_type": ["Tax"]}
        if not is_taken(free, matches):
            pools.append({"name": "tax", "match": free, "ladder": ladder_drawn(random_, operator)})
    return {
        "id": "acme",
        "ecosystem": "aws",
        "source": {"kind": "aws_cur", "path": "./cur"},
        "owner": {
            "tags": [random_.choice([owner_tags[0], owner_tags[0].lower()]), owner_tags[1]],
            "identities": ["payments", "search", "mobile", "Data Platform"],
            "aliases": ALIASES,
        },
        **({"operator": random_.choice(["platform", "Platform ", "Plat"])} if operator else {}),
        "keys": ["keys.csv"],
        "ladders": ladders,
        "pools": pools,
    }


def world(seed: int) -> World:
    """The world of a seed; the same one, always."""
    random_ = random.Random(seed)
    owner_tags = random_.choice([("team", "owner"), ("Team", "CostCenter"), ("owner", "Team")])
    return World(tenant_drawn(random_, owner_tags), raw_lines_drawn(random_, owner_tags), key_rows_drawn(random_))
