"""The command line: `prorata init | run | recalculate | plan | status | check | explain | report | sql`.

The only place that prints, exits, reads the environment or the clock. Results go to stdout, everything else to stderr.
What takes long to import is imported by the command that needs it, so `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import click

from engine.errors import ConfigError, ProrataError, StoppedError, StoreError, UsageError, fault, shown

if TYPE_CHECKING:
    from engine.check import Finding
    from engine.config import Config, Tenant
    from engine.query import Query
    from engine.work import Hooks, Request, Summary

INTERNAL_ERROR, INTERRUPTED, PIPE_CLOSED, SOME_FAILED = 70, 130, 141, 1
MEMORY_KEPT = {"_RJEM_MALLOC_CONF": "dirty_decay_ms:10000"}
"""How long Polars keeps memory that it has freed, which it looks up when it is imported: 10 s instead of half a second.

Days follow each other and take as much again each, which the system clears page by page: a fifteenth of a run's CPU.
"""


class _Commands(click.Group):
    """The group that turns what a command raises into lines on stderr and an exit code."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command; see README, exit codes."""
        for name, value in MEMORY_KEPT.items():
            os.environ.setdefault(name, value)
        try:
            return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, SystemExit):
            raise
        except BrokenPipeError:
            # Nobody reads any more (`| head`). What Python still holds for either stream must not complain at its end.
            for stream in (sys.stdout, sys.stderr):
                _let_go(stream)
            context.exit(PIPE_CLOSED)
        except KeyboardInterrupt:
            _say("prorata: interrupted")
            context.exit(INTERRUPTED)
        except BaseException as error:  # noqa: BLE001  # the last resort: a bug is one line too (Polars panics are BaseException)
            context.exit(_complain(error))


def _let_go(stream: TextIO) -> None:
    """What a stream still holds goes nowhere, if nobody reads it any more."""
    try:
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _of_tenant(text: str, tenant: Tenant | None) -> str:
    """A fault with its tenant. Faults of AWS name files; an API or a Prometheus may be that of several tenants."""
    if tenant is None or tenant.ecosystem == "aws" or f"tenant {tenant.id}" in text:
        return text
    return f"tenant {tenant.id}: {text}"


def _complain(error: BaseException, tenant: Tenant | None = None) -> int:
    """Say on stderr what is wrong, one line per fault; returns the exit code."""
    if isinstance(error, ProrataError):
        for text in error.faults:
            _say(f"prorata: {_of_tenant(text, tenant)}")
        return error.exit_code
    if click.get_current_context().find_root().params["debug"]:
        traceback.print_exception(error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    _say(f"prorata: internal error, a bug in prorata ({what}); `prorata --debug ...` or PRORATA_DEBUG=1 says where")
    return INTERNAL_ERROR


def _printable(text: str) -> str:
    from engine.text import printable

    return printable(text)


def _say(text: str) -> None:
    """One line on stderr; that nobody listens any more is no reason to stop a run."""
    with suppress(BrokenPipeError):
        click.echo(_printable(text), err=True)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("prorata")
    except PackageNotFoundError:
        return "(not installed)"


def _print_version(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        click.echo(f"prorata {_version()}")
        context.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
@click.option("--debug", is_flag=True, envvar="PRORATA_DEBUG", help="Show a traceback where prorata itself is wrong.")
def main(debug: bool) -> None:
    """Split the bills of shared infrastructure over the people who used it, exactly.

    Start with `prorata init`, then `check`, then `run`. Exit codes: 0 done, 1 some tenants or emitters failed, 2 usage,
    10 configuration, 11 source, 12 bad data, 13 money does not add up, 14 store, 70 bug, 75 tenant busy, 143 stopped.
    """


def _as_date(_context: click.Context, _parameter: click.Parameter, value: datetime | None) -> date | None:
    return value.date() if value else None


_CONFIG = click.option(
    "-c",
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    default=Path("prorata.yaml"),
    show_default=True,
    help="The configuration.",
)
_TENANT = click.option("--tenant", "tenant_ids", multiple=True, metavar="ID", help="Only this tenant (repeatable).")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
_DAY = click.DateTime(formats=["%Y-%m-%d"])
_FROM = click.option("--from", "first", type=_DAY, callback=_as_date, metavar="DATE", help="Days from this one.")
_TO = click.option("--to", "end", type=_DAY, callback=_as_date, metavar="DATE", help="Days before this one.")
_TODAY = click.option(
    "--today",
    type=_DAY,
    callback=_as_date,
    metavar="DATE",
    help="Take this date, at 00:00 UTC, as the time of all that is done: what is gathered goes by it, and is recorded.",
)
_BY = click.option(
    "--by",
    type=click.Choice(["identity", "team"]),
    default="identity",
    show_default=True,
    help="Whose costs the table at the end shows. Amounts do not depend on it; --json has both.",
)
_FORMAT = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "parquet"]),
    default="table",
    show_default=True,
    help="How rows are written.",
)
_OUTPUT = click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Where to, instead of stdout."
)


def _check_days(first: date | None, end: date | None) -> None:
    if first and end and first >= end:
        raise UsageError(fault("--to", f"{end}", f"a date after --from, {first}"))


def _configured(config_file: Path, tenant_ids: Sequence[str]) -> tuple[Config, list[Tenant]]:
    """The configuration, and the tenants that are meant: those named, or all."""
    from engine.pipeline import configured

    config = configured(config_file)
    known = [tenant.id for tenant in config.tenants]
    unknown = [name for name in dict.fromkeys(tenant_ids) if name not in known]
    if unknown:
        raise UsageError(
            fault("--tenant", f"unknown tenant {shown(name)}", f"one of {', '.join(known)}") for name in unknown
        )
    return config, [tenant for tenant in config.tenants if tenant.id in tenant_ids or not tenant_ids]


def _environment(config_file: Path) -> dict[str, str]:
    """What `${NAME}` in a configuration may stand for: a file .env beside it, under the process's environment."""
    from dotenv import dotenv_values

    file = config_file.absolute().parent / ".env"
    try:
        found = dotenv_values(file, interpolate=False) if file.exists() else {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(fault(str(file), "cannot be read", "lines NAME=value in UTF-8")) from error
    return {**{name: value for name, value in found.items() if value is not None}, **os.environ}


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(_printable(line))


def _json(document: object) -> None:
    click.echo(json.dumps(document, ensure_ascii=False, indent=2))


# init


_STARTERS = {
    "aws": ("starter.yaml", "source.path (where the reports are), owner.tags (the tag that names a team), operator"),
    "confluent_cloud": (
        "starter_confluent_cloud.yaml",
        "metrics (where the Prometheus is), teams, operator; and set the variables that ${...} names",
    ),
    "self_managed_kafka": (
        "starter_self_managed_kafka.yaml",
        "metrics (where the Prometheus is), source (the cluster and its rates), teams",
    ),
    "generic_metrics": (
        "starter_generic_metrics.yaml",
        "metrics (where the Prometheus is), source (what costs how much, and by which label it is split), teams",
    ),
}
"""Ecosystem -> the file that a configuration starts from, and what is to be edited first."""


@main.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path("prorata.yaml"))
@click.option(
    "--ecosystem", type=click.Choice(list(_STARTERS)), default="aws", show_default=True, help="Whose bill it is for."
)
def init(path: Path, ecosystem: str) -> None:
    """Write a commented configuration to PATH (./prorata.yaml), to be edited. Never overwrites a file."""
    file = path / "prorata.yaml" if path.is_dir() else path
    name, edit = _STARTERS[ecosystem]
    starter = Path(__file__).parent / "engine" / name
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(starter.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise UsageError(fault(str(file), "exists already", "a path without a file")) from error
    except OSError as error:
        expected = "a folder that this user may write"
        raise StoreError(fault(str(file), f"cannot be written ({error.strerror})", expected)) from error
    option = "" if file == Path("prorata.yaml") else f" -c {file}"
    click.echo(f"wrote {_printable(str(file))}")
    click.echo(f"edit next: {edit}")
    click.echo(_printable(f"then: prorata check{option}, prorata run{option}"))


# run and recalculate


class Outcome(NamedTuple):
    """What came of one tenant: its exit code and faults, or its summary.

    `days` are those asked for that are stored, `changed` those of them whose chargeback is another than before.
    """

    tenant_id: str
    exit_code: int
    faults: Sequence[str]
    summary: Summary
    seconds: float
    days: Sequence[tuple[str, str]]
    changed: Sequence[tuple[str, str]]

    @property
    def span(self) -> tuple[date, date]:
        """The first and the last day of the bills in which a day changed; where none did, of all that was asked for."""
        bills = {period for period, _ in self.changed}
        days = [day for period, day in self.days if period in bills or not bills]
        return date.fromisoformat(min(days)), date.fromisoformat(max(days))


@main.command()
@_CONFIG
@_TENANT
@_FROM
@_TO
@_TODAY
@click.option(
    "--force",
    is_flag=True,
    help="Gather tenants that are suspended, and ask again for what was given up, for what lacks values or samples, and"
    " for what Prometheus warned of. With --from and --to, make the days that they name of what there is, be"
    " it less than before.",
)
@_BY
@_JSON
def run(
    config_file: Path,
    tenant_ids: tuple[str, ...],
    first: date | None,
    end: date | None,
    today: date | None,
    force: bool,
    by: str,
    as_json: bool,
) -> None:
    """Gather bills, calculate what has changed, check it and emit it. Calculates nothing where nothing has changed.

    --from and --to limit the days that are calculated; bills are always gathered whole. Of a tenant without a bill they
    limit the days that are made, too: run it without them each night.
    """
    from engine.work import Request

    _work(config_file, tenant_ids, Request("run", first, end, lift=force), today, by=by, as_json=as_json)


@main.command()
@_CONFIG
@_TENANT
@_FROM
@_TO
@_TODAY
@click.option("--replay", is_flag=True, help="First read the landed answers of APIs again, all that are kept.")
@_BY
@_JSON
def recalculate(
    config_file: Path,
    tenant_ids: tuple[str, ...],
    first: date | None,
    end: date | None,
    today: date | None,
    replay: bool,
    by: str,
    as_json: bool,
) -> None:
    """Calculate days again from the bills that are stored, changed or not, and say whose outcome is another.

    Without a change of rules, key tables or prorata itself, no outcome is. Nothing is asked of the network.
    """
    from engine.work import Request

    request = Request("recalculate", first, end, force=True, replay=replay)
    _work(config_file, tenant_ids, request, today, by=by, as_json=as_json)


def _work(
    config_file: Path, tenant_ids: Sequence[str], request: Request, today: date | None, *, by: str, as_json: bool
) -> None:
    """One command for every tenant, some at a time; a tenant that fails does not keep the others from it.

    Outcomes are shown in the order of the configuration.
    """
    _check_days(request.first, request.end)
    config, tenants = _configured(config_file, tenant_ids)
    environment = _environment(config_file)
    outcomes: list[Outcome] = []
    unread: BrokenPipeError | None = None
    with _stopping() as stop, _telling() as tell:

        def outcome(tenant: Tenant) -> Outcome:
            return _tenant_outcome(config, tenant, request, _hooks(tenant.id, tell, stop, today, environment))

        for found in _each(outcome, tenants, config.max_parallel_tenants, stop):
            outcomes.append(found)
            try:
                if not as_json and unread is None:
                    with tell.apart():
                        _print_outcome(config, request, found, by)
            except BrokenPipeError as error:
                # The work goes on for those who read the lake.
                unread = error
    code = _exit_code([outcome.exit_code for outcome in outcomes], len(tenants))
    if unread is not None and not code:
        raise unread
    if as_json:
        _json({"tenants": [_outcome_json(config, outcome) for outcome in outcomes]})
    elif any(outcome.summary.rows_written for outcome in outcomes) and unread is None:
        _print_where(config.root)
    click.get_current_context().exit(code)


def _each(
    outcome: Callable[[Tenant], Outcome], tenants: Sequence[Tenant], workers: int, stop: threading.Event
) -> Iterator[Outcome]:
    """The outcomes in the order of the tenants; after a stop no further tenant is begun."""
    if len(tenants) == 1 or workers == 1:
        for tenant in tenants:
            found = outcome(tenant)
            yield found
            if found.exit_code == StoppedError.exit_code:
                return
        return
    from concurrent.futures import ThreadPoolExecutor

    # Each thread says its own errors, with the options of this command.
    context = click.get_current_context()

    def in_context(tenant: Tenant) -> Outcome | None:
        with context.scope(cleanup=False):
            return None if stop.is_set() else outcome(tenant)

    with ThreadPoolExecutor(min(workers, len(tenants)), thread_name_prefix="tenant") as pool:
        running = [pool.submit(in_context, tenant) for tenant in tenants]
        try:
            for future in running:
                found_or_none = future.result()
                if found_or_none is not None:
                    yield found_or_none
        except BaseException:
            # Interrupted, say: the others end at the next day, with what they have published.
            stop.set()
            raise


def _exit_code(codes: Sequence[int], tenants: int) -> int:
    failed = [code for code in codes if code]
    if StoppedError.exit_code in failed:
        return StoppedError.exit_code
    if failed and tenants > 1:
        return SOME_FAILED
    return failed[0] if failed else 0


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM sets. After SIGTERM or SIGINT, another of either ends the process at once."""
    stop = threading.Event()

    def at_once_from_now_on() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def terminate(_number: int, _frame: FrameType | None) -> None:
        at_once_from_now_on()
        stop.set()
        # Not click.echo: the signal may have come in the middle of one.
        os.write(sys.stderr.fileno(), b"prorata: stopping after the days in work; once more to end at once\n")

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        at_once_from_now_on()
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hooks(
    tenant_id: str, tell: Tell, stop: threading.Event, today: date | None, environment: dict[str, str]
) -> Hooks:  # fmt: skip
    from engine.work import Clock, Hooks

    def progress(stage: str, done: int, total: int) -> None:
        tell.progress(f"{tenant_id}: {stage}", done, total)

    return Hooks(lambda: _now(today), tell.log, progress, stop, environment, Clock(time.time, time.monotonic))


def _tenant_outcome(config: Config, tenant: Tenant, request: Request, hooks: Hooks) -> Outcome:
    from engine.pipeline import run_tenant
    from engine.work import Summary

    started, summary, faults, code = time.monotonic(), Summary(tenant.id), list[str](), 0
    before: dict[tuple[str, str], str | None] = {}
    after = before
    try:
        before = _outputs(config, tenant, request)
        summary = run_tenant(config, tenant, request, hooks, secrets.token_hex(8))
        after = _outputs(config, tenant, request)
        # The rest went well, and is shown.
        faults, code = list(summary.faults), summary.exit_code
        for text in faults:
            _say(f"prorata: {_of_tenant(text, tenant)}")
    except Exception as error:  # noqa: BLE001  # one tenant's failure, be it our own bug, is not another's
        code = _complain(error, tenant)
        faults = list(error.faults) if isinstance(error, ProrataError) else [f"{type(error).__name__}: {error}"]
    changed = [key for key, digest in after.items() if before.get(key) != digest]
    return Outcome(tenant.id, code, faults, summary, time.monotonic() - started, list(after), changed)


def _outputs(config: Config, tenant: Tenant, request: Request) -> dict[tuple[str, str], str | None]:
    """The output digest of every day that is stored and asked for."""
    from engine import state

    with state.open_state(config.root) as store:
        days = state.days(store, tenant.id)
    return {key: day.output_digest for key, day in days.items() if request.covers(key[1])}


def _print_outcome(config: Config, request: Request, outcome: Outcome, by: str) -> None:
    """Results of one tenant on stdout; what failed was said on stderr."""
    if outcome.exit_code and not outcome.summary.rows_written:
        return
    click.echo(f"{outcome.tenant_id}: {_done(request, outcome)}")
    if outcome.summary.rows_written:
        from engine import costs

        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        found = costs.costs(config.root, outcome.tenant_id, *outcome.span, by=(by,))
        _print_lines(costs.lines(found, columns, by))


def _done(request: Request, outcome: Outcome) -> str:
    """What was done, in one line."""
    summary = outcome.summary
    stored = _counted(len(outcome.days) - summary.days_pending - summary.days_kept, "day")
    waiting = f", {summary.days_pending} wait for inventory or metrics" if summary.days_pending else ""
    waiting += f", {summary.days_kept} stay as charged since their usage is lost" if summary.days_kept else ""
    if summary.rows_written:
        again = f" again, {_counted(len(outcome.changed), 'output')} changed" if request.force else ""
        speed = f"{int(summary.rows_written / outcome.seconds):,} rows/s"
        written = f"{summary.rows_written:,} rows written in {outcome.seconds:.1f} s, {speed}"
        return f"{_counted(summary.days_calculated, 'day')} calculated{again}{waiting}; {written}"
    if not any((summary.days_gathered, summary.days_removed, summary.days_unchanged, summary.days_emitted)):
        return f"nothing {'written' if waiting else 'to do'}: {stored} up to date{waiting}"
    return (
        f"nothing {'written' if waiting else 'to write'}: {stored} up to date,"
        f" {summary.days_unchanged} of them looked at again{waiting};"
        f" {summary.days_gathered} gathered, {summary.days_removed} withdrawn, {summary.days_emitted} emitted"
    )


def _counted(count: int, noun: str) -> str:
    from engine.text import counted

    return counted(count, noun)


def _outcome_json(config: Config, outcome: Outcome) -> dict[str, Any]:
    summary = outcome.summary
    document = {
        "tenant_id": outcome.tenant_id,
        "exit_code": outcome.exit_code,
        "errors": list(outcome.faults),
        "warnings": list(summary.warnings),
        "days": len(outcome.days),
        "days_gathered": summary.days_gathered,
        "days_removed": summary.days_removed,
        "days_calculated": summary.days_calculated,
        "days_unchanged": summary.days_unchanged,
        "days_emitted": summary.days_emitted,
        "days_pending": summary.days_pending,
        "days_kept": summary.days_kept,
        "requests": summary.requests,
        "outputs_changed": len(outcome.changed),
        "rows_written": summary.rows_written,
        "seconds": round(outcome.seconds, 3),
    }
    if not summary.rows_written:
        return document
    from engine import costs

    return document | costs.as_json(costs.costs(config.root, outcome.tenant_id, *outcome.span))


_QUERY = "SELECT identity_id, currency, sum(amount) AS amount FROM '{}' GROUP BY ALL ORDER BY ALL;"


def _print_where(root: Path) -> None:
    """Where the Parquet lies, and a query to paste."""
    folder = re.sub(r"[*?\[]", r"[\g<0>]", str(root / "lake" / "chargeback")).replace("'", "''")
    files = f"{folder}/**/*.parquet"
    click.echo()
    click.echo(_printable(f"Parquet:   {root / 'lake'}"))
    click.echo(_printable(f"in DuckDB: {_QUERY.format(files)}"))


def _now(today: date | None) -> str:
    """The time, or the start of the day that stands for it."""
    return f"{today}T00:00:00Z" if today else f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


class Tell(NamedTuple):
    """What a run calls to log a line, and to say how far a stage is; and `apart`, for what is printed in between."""

    log: Callable[[str], None]
    progress: Callable[[str, int, int], None]
    apart: Callable[[], AbstractContextManager[None]] = nullcontext


@contextmanager
def _telling() -> Iterator[Tell]:
    """Progress bars where somebody watches, else plain lines; both on stderr, of all tenants."""
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        with _bars() as tell:
            yield tell
        return

    def progress(stage: str, done: int, total: int) -> None:
        if done == total:
            _say(f"{stage}: {_counted(total, 'day')}")

    yield Tell(_say, progress)


@contextmanager
def _bars() -> Iterator[Tell]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("days"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bars:
        tasks: dict[str, TaskID] = {}

        def log(text: str) -> None:
            bars.console.print(_printable(text), soft_wrap=True)

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(_printable(stage), total=total)
            bars.update(tasks[stage], completed=done, total=total, visible=done < total)

        @contextmanager
        def apart() -> Iterator[None]:
            bars.stop()
            yield
            bars.start()

        yield Tell(log, progress, apart)


# plan


@main.command()
@_CONFIG
@_TENANT
@click.option("--explain", "each_day", is_flag=True, help="A line for every day, instead of one for days alike.")
@click.option(
    "--today", type=_DAY, callback=_as_date, metavar="DATE", help="The plan of a run on this date, instead of today."
)
@_JSON
def plan(
    config_file: Path, tenant_ids: tuple[str, ...], each_day: bool, today: date | None, as_json: bool
) -> None:  # fmt: skip
    """Show which days the next run will gather and calculate, which not, and why. Writes and fetches nothing."""
    from engine import plan as planning

    config, tenants = _configured(config_file, tenant_ids)
    found = planning.plan(config, tenants, today or datetime.now(UTC).date())
    if as_json:
        _json({"root": str(config.root), "tenants": [planning.as_json(one) for one in found]})
        return
    for number, one in enumerate(found):
        if number:
            click.echo()
        _print_lines(planning.lines(one, each_day=each_day))


# status


@main.command()
@_CONFIG
@_TENANT
@_JSON
def status(config_file: Path, tenant_ids: tuple[str, ...], as_json: bool) -> None:
    """Show bills, days, runs and emissions of every tenant, and what is still to do. Writes nothing."""
    from engine import status as standing

    config, tenants = _configured(config_file, tenant_ids)
    found = standing.status(config, tenants)
    if as_json:
        _json({"root": str(config.root), "tenants": [standing.as_json(one) for one in found]})
        return
    for number, one in enumerate(found):
        if number:
            click.echo()
        _print_lines(standing.lines(one))


# check


@main.command()
@_CONFIG
@_TENANT
@_JSON
def check(config_file: Path, tenant_ids: tuple[str, ...], as_json: bool) -> None:
    """Look at the configuration, bills, key tables and store, and say what is wrong. Writes nothing.

    Bills that no run has read yet are read whole. The exit code is that of the worst finding.
    """
    from engine import check as checking

    findings: list[Finding] = []

    def found(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            _print_finding(finding)

    try:
        config, tenants = _configured(config_file, tenant_ids)
        environment = _environment(config_file)
        found(checking.Finding("", "ok", f"{config_file}: {_counted(len(config.tenants), 'tenant')}"))
        for tenant in tenants:
            for finding in checking.check(config, tenant, environment):
                found(finding)
    except ConfigError as error:
        for text in error.faults:
            found(checking.Finding("", "error", text, error.exit_code))
    if as_json:
        _json({"findings": [finding._asdict() for finding in findings]})
    click.get_current_context().exit(max(finding.exit_code for finding in findings))


def _print_finding(finding: Finding) -> None:
    who = f"{finding.tenant_id}: " if finding.tenant_id else ""
    if finding.level == "error":
        _say(f"prorata: {who}{finding.text}")
    else:
        click.echo(_printable(f"{finding.level:<8} {who}{finding.text}"))


# explain


class _NumbersFirst(click.Command):
    """A command whose arguments may be negative numbers: they are no options, whatever letters follow."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Put words that start like a negative number behind `--`."""
        if "--" not in args:
            numbers = [word for word in args if word[:1] == "-" and word[1:2].isdigit()]
            args = [*(word for word in args if word not in numbers), "--", *numbers]
        return super().parse_args(context, args)


@main.command(cls=_NumbersFirst)
@click.argument("line_or_row")
@_CONFIG
@_TENANT
@_JSON
def explain(line_or_row: str, config_file: Path, tenant_ids: tuple[str, ...], as_json: bool) -> None:
    """Show the arithmetic of a charge, recompute it, and compare it with what is stored.

    LINE_OR_ROW is the line_id of a billing line (which may be negative), or one of its rows as LINE/PART/IDENTITY, for
    example 123/0/payments. Exit code 13 if anything does not add up.
    """
    from engine import explain as explaining
    from engine.errors import LedgerError

    wanted = explaining.address(line_or_row)
    explanation = explaining.explain(*_configured(config_file, tenant_ids), wanted)
    if as_json:
        _json(explaining.as_json(explanation))
    else:
        _print_lines(explaining.lines(explanation, wanted))
    if faults := explaining.faults(explanation):
        raise LedgerError(faults)


# report and sql


@main.command()
@click.argument("name", default="")
@_CONFIG
@click.option("--tenant", "tenant_id", metavar="ID", help="Only this tenant.")
@_FROM
@_TO
@_FORMAT
@_OUTPUT
def report(
    name: str,
    config_file: Path,
    tenant_id: str | None,
    first: date | None,
    end: date | None,
    form: str,
    output: Path | None,
) -> None:
    """Show one of the reports over all stored days, or some.

    NAME: billed_and_allocated, cost_by_identity, cost_by_team, empty_keys, pool_vs_allocated, unallocated_by_reason,
    untagged_by_service. In csv, a text that a spreadsheet would run as a formula gets an apostrophe in front.
    """
    from engine import query as querying

    _check_days(first, end)
    asked = querying.report(name, tenant_id, first, end)
    config, _ = _configured(config_file, () if tenant_id is None else (tenant_id,))
    _write_rows(config.root, asked, form, output)


@main.command()
@click.argument("query", required=False)
@_CONFIG
@_FORMAT
@_OUTPUT
@click.option("--print-views", is_flag=True, help="Print the SQL that gives a plain DuckDB session the same views.")
def sql(query: str | None, config_file: Path, form: str, output: Path | None, print_views: bool) -> None:
    """Ask the lake in SQL (DuckDB): QUERY, or what comes on stdin; one query, and before it what prepares it (SET).

    Views: chargeback, chargeback_named (with names and teams), chargeback_daily, chargeback_monthly, billing,
    unallocated, empty_keys, identities, payers, teams, tags, resources, chargeback_dimensions, chargeback_facts. In
    csv, a text that a spreadsheet would run as a formula gets an apostrophe in front.
    """
    from engine import query as querying
    from engine import warehouse

    config, _ = _configured(config_file, ())
    if print_views:
        click.echo(warehouse.views_script(config.root))
        return
    if query is None and sys.stdin.isatty():
        raise UsageError(fault("QUERY", "is missing", "a query, or one on stdin"))
    _write_rows(config.root, querying.Query(sys.stdin.read() if query is None else query), form, output)


def _write_rows(root: Path, query: Query, form: str, output: Path | None) -> None:
    """The rows of a query, in one of the forms, to a file or stdout."""
    from engine import query as querying

    if form == "parquet":
        if output is None:
            raise UsageError(fault("--format parquet", "without --output", "a file to write"))
        querying.write_parquet(root, query, output)
    elif output is not None:
        with querying.replaced(output) as part, part.open("w", encoding="utf-8", newline="") as target:
            querying.write_query(root, query, form, target)
    elif not querying.write_query(root, query, form, sys.stdout):
        _say(f"prorata: only {querying.ROWS_IN_TABLE} rows are shown; --format csv or json gives all")
    sys.stdout.flush()


if __name__ == "__main__":
    main(prog_name="prorata")
