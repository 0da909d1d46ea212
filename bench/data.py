"""Data to measure with: a Cost and Usage Report of any size, and a case for the kernel.

Both are functions of their arguments alone: no clock, no global random state.

    lines = write_cur(folder, resources=1050, days=30, files=8)     # 756,000 lines x 195 columns
    case = kernel_case(lines=1_000_000, identities=20, groups=1_000, days=1)
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import polars as pl

from engine.frames import BILLING, RULES, UNALLOCATED, WEIGHTS
from engine.money import AMOUNT, UNITS

HOURS = 24
START = date(2025, 9, 1)
"""First day of a generated report. It runs on into later months only in its dates: it is one bill."""
_MIDNIGHT = datetime(START.year, START.month, START.day, tzinfo=UTC)
TEAMS = 20
OWNED_PERCENT = 70

_FILLED = """
identity/LineItemId identity/TimeInterval bill/BillingEntity bill/BillType bill/PayerAccountId
bill/BillingPeriodStartDate bill/BillingPeriodEndDate lineItem/UsageAccountId lineItem/LineItemType
lineItem/UsageStartDate lineItem/UsageEndDate lineItem/ProductCode lineItem/UsageType lineItem/Operation
lineItem/AvailabilityZone lineItem/ResourceId lineItem/UsageAmount lineItem/CurrencyCode lineItem/UnblendedRate
lineItem/UnblendedCost lineItem/BlendedRate lineItem/BlendedCost lineItem/LineItemDescription lineItem/LegalEntity
product/ProductName product/instanceFamily product/instanceType product/licenseModel product/location
product/locationType product/memory product/networkPerformance product/operatingSystem product/operation
product/physicalProcessor product/preInstalledSw product/processorArchitecture product/processorFeatures
product/productFamily product/region product/servicecode product/servicename product/sku product/storage
product/tenancy product/usagetype product/vcpu pricing/RateId pricing/currency pricing/publicOnDemandCost
pricing/publicOnDemandRate pricing/term pricing/unit resourceTags/aws:createdBy resourceTags/user:app
resourceTags/user:environment resourceTags/user:team
"""
"""Columns with values in every line."""

_BLANK = """
bill/InvoiceId lineItem/NormalizationFactor lineItem/NormalizedUsageAmount lineItem/TaxType
pricing/LeaseContractLength pricing/OfferingClass pricing/PurchaseOption pricing/RateCode
reservation/AmortizedUpfrontCostForUsage reservation/AmortizedUpfrontFeeForBillingPeriod reservation/AvailabilityZone
reservation/EffectiveCost reservation/EndTime reservation/ModificationStatus
reservation/NormalizedUnitsPerReservation reservation/NumberOfReservations reservation/RecurringFeeForUsage
reservation/ReservationARN reservation/StartTime reservation/SubscriptionId reservation/TotalReservedNormalizedUnits
reservation/TotalReservedUnits reservation/UnitsPerReservation
reservation/UnusedAmortizedUpfrontFeeForBillingPeriod reservation/UnusedNormalizedUnitQuantity
reservation/UnusedQuantity reservation/UnusedRecurringFee reservation/UpfrontValue
savingsPlan/AmortizedUpfrontCommitmentForBillingPeriod savingsPlan/EndTime savingsPlan/InstanceTypeFamily
savingsPlan/OfferingType savingsPlan/PaymentOption savingsPlan/PurchaseTerm
savingsPlan/RecurringCommitmentForBillingPeriod savingsPlan/Region savingsPlan/SavingsPlanARN
savingsPlan/SavingsPlanEffectiveCost savingsPlan/SavingsPlanRate savingsPlan/StartTime
savingsPlan/TotalCommitmentToDate savingsPlan/UsedCommitment costCategory/Environment costCategory/Project
resourceTags/user:CostCenter resourceTags/user:version resourceTags/user:kubernetes.io/cluster
product/accountAssistance product/architecturalReview product/architectureSupport product/availability
product/availabilityZone product/bestPractices product/capacitystatus product/caseSeverityresponseTimes
product/classicnetworkingsupport product/clockSpeed product/comments product/contentType product/currentGeneration
product/customerServiceAndCommunities product/databaseEngine product/dedicatedEbsThroughput product/deploymentOption
product/description product/directorySize product/directoryType product/directoryTypeDescription product/durability
product/ebsOptimized product/ecu product/edition product/endpointType product/engineCode
product/enhancedNetworkingSupported product/feeCode product/feeDescription product/fromLocation
product/fromLocationType product/fromRegionCode product/group product/groupDescription product/includedServices
product/instanceTypeFamily product/intelAvx2Available product/intelAvxAvailable product/intelTurboAvailable
product/isshadow product/iswebsocket product/launchSupport product/marketoption product/maxIopsBurstPerformance
product/maxIopsvolume product/maxThroughputvolume product/maxVolumeSize product/memoryGib
product/messageDeliveryFrequency product/messageDeliveryOrder product/minVolumeSize product/normalizationSizeFactor
product/operationsSupport product/origin product/physicalCores product/platousagetype product/platovolumetype
product/proactiveGuidance product/programmaticCaseManagement product/protocol product/provisioned product/queueType
product/recipient product/regionCode product/requestDescription product/requestType product/resourceEndpoint
product/routingTarget product/routingType product/softwareType product/storageClass product/storageMedia
product/storageType product/subscriptionType product/technicalSupport product/thirdpartySoftwareSupport
product/toLocation product/toLocationType product/toRegionCode product/training product/transferType product/version
product/virtualInterfaceType product/volumeApiName product/volumeType product/vpcnetworkingsupport
product/whoCanOpenCases product/abdInstanceClass product/clientLocation product/equivalentondemandsku
product/gpuMemory product/inferenceType product/logsDestination product/pricingUnit product/throughputCapacity
"""
"""Columns that a report of mostly plain usage leaves empty."""

_CATEGORIES = (
    "identity", "bill", "lineItem", "product", "pricing", "reservation", "savingsPlan", "costCategory", "resourceTags",
)  # fmt: skip
_REGIONS = [
    ("us-east-1", "US East (N. Virginia)"),
    ("eu-west-1", "EU (Ireland)"),
    ("ap-south-1", "Asia Pacific (Mumbai)"),
]


class _Kind(NamedTuple):
    """What a resource is: service, usage type, operation, unit, price per unit in 1e-10 USD, units of 1e-10 an hour."""

    share: int
    service: str
    name: str
    family: str
    usage_type: str
    operation: str
    resource: str
    unit: str
    rate: int
    amount: int | None


_ARN = "arn:aws:{}:us-east-1:210987654321:"
_EC2, _S3, _RDS = "Amazon Elastic Compute Cloud", "Amazon Simple Storage Service", "Amazon Relational Database Service"
_INSTANCE, _ONE = "Compute Instance", 10**10
_KINDS = (
    _Kind(8, "AmazonEC2", _EC2, _INSTANCE, "BoxUsage:m5.large", "RunInstances", "i-{:08x}", "Hrs", 960_000_000, _ONE),
    _Kind(6, "AmazonEC2", _EC2, _INSTANCE, "BoxUsage:r5.large", "RunInstances", "i-{:08x}", "Hrs", 1_260_000_000, _ONE),
    _Kind(
        6, "AmazonEC2", _EC2, "Storage", "EBS:VolumeUsage.gp3", "CreateVolume-Gp3",
        "vol-{:017x}", "GB-Mo", 800_000_000, 1_388_888_888,
    ),
    _Kind(
        4, "AmazonEC2", _EC2, "NAT Gateway", "NatGateway-Bytes", "NatGateway",
        _ARN.format("ec2") + "natgateway/nat-{:017x}", "GB", 450_000_000, None,
    ),
    _Kind(
        6, "AmazonS3", _S3, "Storage", "TimedStorage-ByteHrs", "StandardStorage",
        "acme-bucket-{:06d}", "GB-Mo", 230_000_000, None,
    ),
    _Kind(
        4, "AmazonRDS", _RDS, "Database Instance", "InstanceUsage:db.t3.medium", "CreateDBInstance:0014",
        _ARN.format("rds") + "db:orders-{:06d}", "Hrs", 720_000_000, _ONE,
    ),
    _Kind(
        3, "AmazonCloudWatch", "AmazonCloudWatch", "Data Payload", "DataProcessing-Bytes", "PutLogEvents",
        _ARN.format("logs") + "log-group:/aws/lambda/fn-{:06d}", "GB", 5_000_000_000, None,
    ),
    _Kind(
        3, "AWSLambda", "AWS Lambda", "Serverless", "Lambda-GB-Second", "Invoke",
        _ARN.format("lambda") + "function:fn-{:06d}", "Lambda-GB-Second", 166_667, None,
    ),
)  # fmt: skip


def header(columns: int) -> list[str]:
    """The report's column names, in the order in which AWS puts categories."""
    filled, blank = _FILLED.split(), _BLANK.split()
    if not len(filled) <= columns <= len(filled) + len(blank):
        raise ValueError(f"columns: {columns}; expected {len(filled)} to {len(filled) + len(blank)}")
    chosen = [*filled, *blank[: columns - len(filled)]]
    return sorted(chosen, key=lambda name: (_CATEGORIES.index(name.split("/")[0]), name))


def write_cur(folder: Path, *, resources: int, days: int, files: int, columns: int = 195) -> int:
    """A bill of `resources` x `days` x 24 hourly lines in the legacy layout, csv.gz with manifests; gives its lines.

    All a resource's attributes are stable, so its lines of a day pool to one. Lines come hour by hour, as they arise,
    so lines of one resource never stand together.
    """
    assembly = folder / f"{START:%Y%m%d}-{_next_month(START):%Y%m%d}" / "5f0b6a52-0000-4000-8000-000000000001"
    assembly.mkdir(parents=True, exist_ok=True)
    total = resources * days * HOURS
    attributes = _attributes(resources)
    names = [f"cur-{number:05d}.csv.gz" for number in range(1, files + 1)]
    bounds = [total * number // files for number in range(files + 1)]
    write = partial(_write_file, attributes=attributes, columns=header(columns))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, [assembly / name for name in names], bounds[:-1], bounds[1:]))
    _write_manifests(assembly, names)
    return total


def _next_month(day: date) -> date:
    return (day.replace(day=28) + timedelta(days=4)).replace(day=1)


def _attributes(resources: int) -> pl.DataFrame:
    """One row per resource: what its lines have in common, and `_rate`, `_amount` (in 1e-10; null varies)."""
    pick = random.Random(1)
    kinds = pick.choices(_KINDS, [kind.share for kind in _KINDS], k=resources)
    rows = [_attribute_row(number, kind, pick) for number, kind in enumerate(kinds)]
    # Null is written as nothing at all, '' as two quotes.
    return pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col(pl.String).replace({"": None}))


def _attribute_row(number: int, kind: _Kind, pick: random.Random) -> dict[str, str | int | None]:
    region, location = _REGIONS[number % len(_REGIONS)]
    account = f"{210987654321 + number % 7}"
    team = f"team-{pick.randrange(TEAMS):02d}" if pick.randrange(100) < OWNED_PERCENT else ""
    rate, compute = _decimal(kind.rate), kind.family == "Compute Instance"
    return {
        "bill/BillingEntity": "AWS",
        "bill/BillType": "Anniversary",
        "bill/PayerAccountId": "210987654321",
        "bill/BillingPeriodStartDate": f"{START}T00:00:00Z",
        "bill/BillingPeriodEndDate": f"{_next_month(START)}T00:00:00Z",
        "lineItem/UsageAccountId": account,
        "lineItem/LineItemType": "Usage",
        "lineItem/ProductCode": kind.service,
        "lineItem/UsageType": kind.usage_type,
        "lineItem/Operation": kind.operation,
        "lineItem/AvailabilityZone": f"{region}{'abc'[number % 3]}" if compute else "",
        "lineItem/ResourceId": kind.resource.format(number),
        "lineItem/CurrencyCode": "USD",
        "lineItem/UnblendedRate": rate,
        "lineItem/BlendedRate": rate,
        "lineItem/LineItemDescription": f"${rate} per {kind.unit} of {kind.usage_type}, {location}",
        "lineItem/LegalEntity": "Amazon Web Services, Inc.",
        "product/ProductName": kind.name,
        "product/instanceFamily": "General purpose" if compute else "",
        "product/instanceType": kind.usage_type.partition(":")[2],
        "product/licenseModel": "No License required" if compute else "",
        "product/location": location,
        "product/locationType": "AWS Region",
        "product/memory": "8 GiB" if compute else "",
        "product/networkPerformance": "Up to 10 Gigabit" if compute else "",
        "product/operatingSystem": "Linux" if compute else "",
        "product/operation": kind.operation,
        "product/physicalProcessor": "Intel Xeon Platinum 8175" if compute else "",
        "product/preInstalledSw": "NA" if compute else "",
        "product/processorArchitecture": "64-bit" if compute else "",
        "product/processorFeatures": "Intel AVX; Intel AVX2; Intel AVX512; Intel Turbo" if compute else "",
        "product/productFamily": kind.family,
        "product/region": region,
        "product/servicecode": kind.service,
        "product/servicename": kind.name,
        "product/sku": f"{kind.service[:6].upper()}{kind.rate % 10**10:010d}",
        "product/storage": "EBS only" if compute else "",
        "product/tenancy": "Shared" if compute else "",
        "product/usagetype": kind.usage_type,
        "product/vcpu": "2" if compute else "",
        "pricing/RateId": f"{10**9 + kind.rate % 10**9}",
        "pricing/currency": "USD",
        "pricing/publicOnDemandRate": rate,
        "pricing/term": "OnDemand",
        "pricing/unit": kind.unit,
        "resourceTags/aws:createdBy": f"AssumedRole:AROA{number % 50:012d}:deploy",
        "resourceTags/user:app": f"app-{number % 113:03d}",
        "resourceTags/user:environment": ("prod", "staging", "dev")[pick.randrange(3)],
        "resourceTags/user:team": team,
        "_rate": kind.rate,
        "_amount": kind.amount,
    }


def _decimal(units: int) -> str:
    """1e-10 units as AWS writes them: ten decimals."""
    return f"{units // 10**10}.{units % 10**10:010d}"


def _write_file(file: Path, first: int, last: int, *, attributes: pl.DataFrame, columns: list[str]) -> None:
    lines = _lines(pl.int_range(first, last, dtype=pl.UInt64, eager=True), attributes)
    missing = {name: pl.lit(None, pl.String) for name in columns if name not in lines.columns}
    # Level 6 is what gzip does when nobody says anything, and what reports are delivered with.
    lines.with_columns(**missing).select(columns).write_csv(file, compression="gzip", compression_level=6)


def _lines(numbers: pl.Series, attributes: pl.DataFrame) -> pl.DataFrame:
    """Line number -> the line: hour by hour, in each hour one line per resource."""
    known = attributes[numbers % attributes.height]
    hour = pl.lit(_MIDNIGHT) + pl.duration(hours=pl.lit(numbers // attributes.height).cast(pl.Int64))
    # Up to 2 units an hour where the amount varies. Cost is cut to ten decimals, as AWS does.
    amount = pl.coalesce("_amount", (mixed(numbers, 1) % (2 * 10**10)).cast(pl.Int64))
    cost = ((amount // 10**5) * (pl.col("_rate") // 10) // 10**4).cast(pl.Int64)
    start, end = (moment.dt.to_string("%Y-%m-%dT%H:%M:%SZ") for moment in (hour, hour + pl.duration(hours=1)))
    return known.with_columns(
        pl.concat_str(mixed(numbers, 2).cast(pl.String), mixed(numbers, 3).cast(pl.String)).alias(
            "identity/LineItemId"
        ),
        pl.concat_str(start, pl.lit("/"), end).alias("identity/TimeInterval"),
        start.alias("lineItem/UsageStartDate"),
        end.alias("lineItem/UsageEndDate"),
        _decimals(amount).alias("lineItem/UsageAmount"),
        *(
            _decimals(cost).alias(name)
            for name in ("lineItem/UnblendedCost", "lineItem/BlendedCost", "pricing/publicOnDemandCost")
        ),
    )


def _decimals(units: pl.Expr) -> pl.Expr:
    """`_decimal` as an expression."""
    rest = (units % 10**10).cast(pl.String).str.zfill(10)
    return pl.concat_str((units // 10**10).cast(pl.String), pl.lit("."), rest)


def mixed(numbers: pl.Series, salt: int) -> pl.Series:
    """Numbers (UInt64) -> numbers that look random, all different if the numbers are: odd factors, folded halves.

    Polars' own hashes and samplers may change from version to version; these do not.
    """
    result = (numbers + salt * 0x9E3779B97F4A7C15 % 2**64) * pl.Series([0xBF58476D1CE4E5B9], dtype=pl.UInt64)
    for factor in (0x94D049BB133111EB, 0xD6E8FEB86659FD93):
        result = (result ^ (result // 2**32)) * pl.Series([factor], dtype=pl.UInt64)
    return result


def _write_manifests(assembly: Path, names: list[str]) -> None:
    month = assembly.parent
    start, end = month.name.split("-")
    manifest = {
        "assemblyId": assembly.name,
        "account": "210987654321",
        "charset": "UTF-8",
        "compression": "GZIP",
        "contentType": "text/csv",
        "reportName": "cur",
        "billingPeriod": {"start": f"{start}T000000.000Z", "end": f"{end}T000000.000Z"},
        "bucket": "acme-billing",
        "reportKeys": [f"acme/cur/{month.name}/{assembly.name}/{name}" for name in names],
    }
    for folder in (assembly, month):
        (folder / "cur-Manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")


class KernelCase(NamedTuple):
    """What the kernel takes: lines (BILLING with rule_id and weight_scope), RULES, WEIGHTS."""

    lines: pl.DataFrame
    rules: pl.DataFrame
    weights: pl.DataFrame


LADDER = "by_bytes"
RULE = "pool:kafka"


def kernel_case(lines: int, identities: int, groups: int, days: int, seed: int = 1) -> KernelCase:
    """`lines` billing lines over `days` days, each on one of `groups` clusters whose principals are weighed by bytes.

    Each cluster and day is a weight group of `identities` candidates at rung 0 (usage) and rung 1 (even). One in ten
    groups weighs nothing at rung 0 (half of these have no candidate, half only zeros) and falls to rung 1.
    """
    dates = [START + timedelta(days=number) for number in range(days)]
    clusters = [f"lkc-{number:06x}" for number in _distinct(random.Random(seed), groups, 2**24)]
    weights = pl.concat(_group_weights(dates, clusters, identities, seed)).sort(WEIGHTS.key)
    return KernelCase(_kernel_lines(lines, dates, clusters, seed), _kernel_rules(), weights)


def _distinct(pick: random.Random, count: int, below: int) -> list[int]:
    return pick.sample(range(below), count)


def _group_weights(dates: list[date], clusters: list[str], identities: int, seed: int) -> Iterator[pl.DataFrame]:
    names = pl.Series(
        "identity_id", sorted(f"sa-{n:06x}" for n in _distinct(random.Random(seed + 1), identities, 2**24))
    )
    scopes = pl.DataFrame({"date": dates}).join(pl.DataFrame({"cluster": clusters}), how="cross")
    candidates = (
        scopes.with_row_index("_group")
        .with_columns(weight_group=pl.concat_str(pl.lit(f"{LADDER}@"), "date", pl.lit(" "), "cluster"))
        .join(names.to_frame(), how="cross")
        .with_row_index("_candidate")
    )
    # From 1e6 to 1e10 bytes a day, as many principals in each power of ten.
    luck = mixed(candidates["_candidate"].cast(pl.UInt64), seed + 2)
    bytes_ = 10 ** (luck % 4) * (10**6 + luck // 2**8 % (9 * 10**6)) + luck // 2**40 % 1000
    fallen = pl.col("_group") % 10 == 9
    weighed = candidates.with_columns(_bytes=pl.when(fallen).then(0).otherwise(bytes_.cast(pl.Int64)))
    asked = weighed.filter(~fallen | (pl.col("_group") % 20 == 19))
    yield asked.select("weight_group", rung=pl.lit(0, pl.Int16), identity_id="identity_id", weight="_bytes")
    yield weighed.select(
        "weight_group", rung=pl.lit(1, pl.Int16), identity_id="identity_id", weight=pl.lit(1, pl.Int64)
    )


def _kernel_rules() -> pl.DataFrame:
    rungs = [
        ("usage", "bytes", "", "usage", "usage_ratio", "kafka"),
        ("even", "owners", "", "shared", "even_split", "kafka"),
        ("unallocated", "", UNALLOCATED, "shared", "unallocated", ""),
    ]
    rows = [(RULE, 0, UNITS, LADDER, number, *rung, "0" * 12) for number, rung in enumerate(rungs)]
    return pl.DataFrame(rows, schema=RULES.schema, orient="row")


def _kernel_lines(count: int, dates: list[date], clusters: list[str], seed: int) -> pl.DataFrame:
    numbers = pl.int_range(0, count, dtype=pl.UInt64, eager=True)
    luck = mixed(numbers, seed + 3)
    cluster = (luck % len(clusters)).cast(pl.UInt32)
    # Up to 50 a line, to the last decimal; one line in twenty is a credit.
    units = (mixed(numbers, seed + 5) % (50 * UNITS)).cast(pl.Int128)
    sign = pl.when(luck // 2**32 % 20 == 0).then(-1).otherwise(1).cast(pl.Int128)
    products = pl.Series(["KAFKA_NETWORK_WRITE", "KAFKA_NETWORK_READ", "KAFKA_STORAGE", "KAFKA_PARTITION"])
    environments = pl.Series([f"env-{number:05x}" for number in _distinct(random.Random(seed + 4), 12, 2**20)])
    text = {
        "tenant_id": "bench", "ecosystem": "confluent", "billing_period": f"{START:%Y-%m}", "product_category": "KAFKA",
        "line_item_type": "Usage", "region": "us-east-1", "operation": "", "sub_account_id": "", "invoice_id": "",
        "unit": "GB", "currency": "USD", "tags": "{}", "rule_id": RULE,
    }  # fmt: skip
    return (
        pl.DataFrame(
            {
                "charge_date": pl.Series(dates)[(numbers % len(dates)).cast(pl.UInt32)],
                "line_id": mixed(numbers, seed).reinterpret(signed=True),
                "resource_id": pl.Series(clusters)[cluster],
                "env_id": environments[cluster % environments.len()],
                "product_type": products[(luck // 2**40 % products.len()).cast(pl.UInt32)],
            }
        )
        .with_columns(_units=units * sign, **{name: pl.lit(value) for name, value in text.items()})
        .with_columns(
            quantity=pl.lit(None, AMOUNT),
            amount=pl.col("_units").reinterpret(dtype=AMOUNT),
            effective_amount=pl.lit(None, AMOUNT),
            list_amount=pl.lit(None, AMOUNT),
            contracted_amount=pl.lit(None, AMOUNT),
            weight_scope=pl.concat_str("charge_date", pl.lit(" "), "resource_id"),
        )
        .sort(BILLING.key)
        .select(*BILLING.schema, "rule_id", "weight_scope")
    )
