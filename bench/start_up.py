"""How long a command takes that has nothing to do: `--help`, and `run` where nothing has changed for a year.

Nothing heavy is imported at the top: a process counts as its own the memory of the one that started it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bench.measure import CHECKOUT, Answer, Case, SizeName, Target, Variant, Watch, WrongResultError

SIZES = {"full": 12, "quick": 3, "tiny": 1}
"""Months of bills."""
TENANTS = ("acme", "zenith")
TEAMS = ("payments", "search", "mobile", "data-platform")
LINES = 24
PRORATA = ("-m", "cli")


def prepare(folder: Path, size: SizeName) -> None:
    """Two tenants with a bill a month, which a first run gathers and calculates; with bytecode, as if installed."""
    for tenant in TENANTS:
        for month in range(1, SIZES[size] + 1):
            _write_bill(folder / tenant, month)
    (folder / "keys.csv").write_text(_keys(SIZES[size]), encoding="utf-8")
    tenants = [_tenant(tenant) for tenant in TENANTS]
    (folder / "prorata.yaml").write_text(json.dumps({"root": "root", "tenants": tenants}), encoding="utf-8")
    # Compiled once here: else, where Python must not write bytecode, each process would compile what was changed.
    _python(folder, "-m", "compileall", "-q", "cli.py", "engine")
    _python(folder, *PRORATA, "run", "-c", str(folder / "prorata.yaml"))


def _tenant(name: str) -> dict[str, object]:
    ladder = [{"basis": "usage", "key": "bytes"}, {"basis": "even"}, {"basis": "unallocated"}]
    return {
        "id": name,
        "ecosystem": "aws",
        "source": {"kind": "aws_cur", "path": name},
        "owner": {"tags": ["team"], "identities": list(TEAMS)},
        "keys": ["keys.csv"],
        "pools": [{"name": "shared", "match": {"service": "AmazonMSK"}, "ladder": ladder}],
    }


def _dates(month: int) -> list[str]:
    from calendar import monthrange

    return [f"2025-{month:02d}-{day:02d}" for day in range(1, monthrange(2025, month)[1] + 1)]


def _keys(months: int) -> str:
    dates = [day for month in range(1, months + 1) for day in _dates(month)]
    rows = [f"{team},{day},bytes,{1000 + number}" for day in dates for number, team in enumerate(TEAMS)]
    return "\n".join(["identity,date,key,value", *rows, ""])


def _write_bill(folder: Path, month: int) -> None:
    """A month in the legacy layout, one small file: every day LINES lines, half of them with an owner."""
    following = f"{2025 + month // 12}{month % 12 + 1:02d}01"
    month_folder = folder / f"2025{month:02d}01-{following}"
    month_folder.mkdir(parents=True)
    manifest = {
        "assemblyId": "0001",
        "account": "111111111111",
        "charset": "UTF-8",
        "compression": "NONE",
        "contentType": "text/csv",
        "reportName": "cur",
        "bucket": "bills",
        "billingPeriod": {"start": f"2025{month:02d}01T000000.000Z", "end": f"{following}T000000.000Z"},
        "reportKeys": [f"bills/cur/{month_folder.name}/cur-1.csv"],
    }
    (month_folder / "cur-Manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    lines = [_line(day, number) for day in _dates(month) for number in range(LINES)]
    (month_folder / "cur-1.csv").write_text("\n".join([_HEADER, *lines, ""]), encoding="utf-8")


_HEADER = (
    "lineItem/UsageAccountId,lineItem/UsageStartDate,lineItem/LineItemType,lineItem/ProductCode,lineItem/UsageType,"
    "lineItem/UnblendedCost,lineItem/CurrencyCode,lineItem/ResourceId,resourceTags/user:team"
)


def _line(day: str, number: int) -> str:
    team = TEAMS[number % len(TEAMS)] if number % 2 else ""
    cost = f"{number}.{number:010d}"
    return f"111111111111,{day}T00:00:00Z,Usage,AmazonMSK,Kafka-{number:02d},{cost},USD,cluster-{number},{team}"


def _python(folder: Path, *arguments: str, watch: Watch | None = None) -> tuple[str, float]:
    """Run Python; what it says on stdout, and its peak memory in MB."""
    said, complained = folder / "stdout", folder / "stderr"
    with said.open("wb") as stdout, complained.open("wb") as stderr, (watch or Watch()).timed():
        process = subprocess.Popen([sys.executable, *arguments], stdout=stdout, stderr=stderr, cwd=CHECKOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        error = complained.read_text(encoding="utf-8", errors="replace")
        raise WrongResultError(f"{' '.join(arguments)}: exit code {process.returncode}\n{error}")
    return said.read_text(encoding="utf-8"), usage.ru_maxrss * 1024 / 1e6


def _timed(folder: Path, watch: Watch, *arguments: str) -> Answer:
    said, peak = _python(folder, *arguments, watch=watch)
    return Answer(1, lambda: said, peak)


def _help(folder: Path, watch: Watch) -> Answer:
    return _timed(folder, watch, *PRORATA, "--help")


def _run(folder: Path, watch: Watch) -> Answer:
    answer = _timed(folder, watch, *PRORATA, "run", "-c", str(folder / "prorata.yaml"))
    return answer._replace(found=lambda: _last_runs(folder))


def _last_runs(folder: Path) -> list[tuple[str, int, int, int]]:
    """What the last run of each tenant did: its command, days gathered and calculated, days it knows."""
    from engine import state

    with state.open_state(folder / "root", write=False) as store:
        last = [(state.runs(store, tenant)[0], len(state.days(store, tenant))) for tenant in TENANTS]
    return [(run.status, run.days_gathered, run.days_calculated, days) for run, days in last]


def _nothing(folder: Path, watch: Watch) -> Answer:
    return _timed(folder, watch, "-c", "pass")


def _click(folder: Path, watch: Watch) -> Answer:
    return _timed(folder, watch, "-c", "import click")


def _polars(folder: Path, watch: Watch) -> Answer:
    return _timed(folder, watch, "-c", "import polars, pyarrow.parquet, pydantic, yaml, sqlite3")


def check(folder: Path, variant: str, answer: Answer) -> None:
    """The help is the help; a run did nothing, with every day there is; what only starts says nothing."""
    found = answer.found()
    if variant == "prorata --help" and not (isinstance(found, str) and found.startswith("Usage: prorata")):
        raise WrongResultError(f"{found!r}; expected the help")
    if variant.startswith("python") and found != "":
        raise WrongResultError(f"{found!r}; expected nothing")
    if variant == "prorata run":
        days = sum(len(_dates(int(bill.name[4:6]))) for bill in (folder / TENANTS[0]).iterdir())
        if found != [("done", 0, 0, days)] * len(TENANTS):
            raise WrongResultError(f"{found}; expected nothing done, and {days} days each")


CASE = Case(
    "start_up",
    "Start-up, interpreter included: 2 tenants, each 365 days, nothing to do",
    "",
    prepare,
    {
        "prorata --help": Variant(_help, repeats=5),
        "prorata run": Variant(_run, repeats=3),
        "python, nothing": Variant(_nothing, "prorata --help", repeats=5),
        "python, import click": Variant(_click, "prorata --help", repeats=5),
        "python, import what a run needs": Variant(_polars, "prorata run", repeats=3),
    },
    check,
    (
        Target("prorata --help under 0.1 s", "prorata --help", "seconds", at_most=0.1),
        Target("prorata run under 0.5 s", "prorata run", "seconds", at_most=0.5),
    ),
)
