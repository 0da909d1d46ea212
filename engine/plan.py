"""What the next run will do with every day, and why: derived from what is stored, as the run itself derives it.

Writes nothing and asks nothing of the network. What an API has to say of a day is not known before it is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from itertools import groupby
from typing import Any, NamedTuple

from engine import cost_days, decide, gather_state, pipeline, rules, state, wanted
from engine.config import AwsTenant, Config, ConfluentTenant, CostModelTenant, Tenant
from engine.errors import ProrataError, shown
from engine.frames import USAGE, empty
from engine.sources import aws_cur
from engine.text import counted

GATHER = {
    "in_window": "lies in the window of lookback_days and cutoff_days",
    "gather_unfinished": "lies in the window of a gather that was not finished, which goes on",
    "before_window": "older than lookback_days; what is stored stays",
    "too_recent": "younger than cutoff_days",
    "suspended": "gathering is suspended",
    "model_changed": "its cost model changed, or the answers it is made of",
    "made": "is made of what its cost model and the answers say",
    "answers_poorer": "less is known of it now than it was made of; what is stored stays",
    "rates_gone": "no rate holds on it, and its answers are no longer kept; what is stored stays",
    "answers_gone": "its answers are no longer kept; what is stored stays",
    "bill_new": "its bill has not been read yet",
    "bill_changed": "its bill is another than the one that was read",
    "bill_unfinished": "not all days of its bill were published",
    "bill_unchanged": "its bill is the one that was read",
    "bill_absent": "its bill is no longer among the reports; what is stored stays",
    "bills_unreadable": "among the reports is one that cannot be read, maybe its own",
}
"""Why the billing of a day is gathered or not: codes and their words."""
CALCULATE = {
    "no_billing": "no lines are known",
    "never_calculated": "was never calculated",
    "billing_changed": "its billing changed since, or its calculation was cut short",
    "inputs_changed": "what it depends on changed (rules, owners, usage, prorata itself), or its file was lost",
    "calculation_failed": "its calculation failed",
    "made_anew": "is made first, and what comes out of it is charged",
    "metrics_wanted": "metrics are to be fetched first",
    "metrics_failed": "metrics failed and are to be fetched again first",
    "billing_lost": "its lines are lost; `prorata recalculate --replay` reads what is landed; what it charges stays",
    "usage_lost": "its usage is lost, and is read from landed answers, or asked for, first",
    "incomplete": "waits for samples that are missing",
    "inventory_failed": "waits until the inventory is gathered whole",
    "cannot_tell": "what it depends on cannot be read",
    "lost": "its lines or usage are lost, and cannot be made again from what is landed; what it charges stays",
    "rules_gone": "stays as calculated, since its cost model no longer has a product of its lines",
    "never_asked": "stays as calculated, since its ladders weigh by what nobody was asked for",
    "given_up": "up to date, without metrics that were given up",
    "up_to_date": "up to date",
}
"""Why the chargeback of a day is calculated or not: codes and their words."""
WAITING = frozenset({"metrics_wanted", "metrics_failed", "usage_lost", "incomplete", "inventory_failed"})
_GATHERED = frozenset(
    {"in_window", "model_changed", "gather_unfinished", "bill_new", "bill_changed", "bill_unfinished"}
)
_CALCULATED = frozenset({"never_calculated", "billing_changed", "inputs_changed", "calculation_failed", "made_anew"})


class DayPlan(NamedTuple):
    """What will become of a day. `detail` is what else is to be said: how often something failed, and how."""

    billing_period: str
    charge_date: str
    gather_reason: str
    calculate_reason: str
    detail: str = ""

    @property
    def gather(self) -> bool:
        """Whether the next run gathers its billing."""
        return self.gather_reason in _GATHERED

    @property
    def calculate(self) -> bool:
        """Whether the next run calculates it, if what it has to wait for comes."""
        return self.calculate_reason in _CALCULATED | WAITING


class TenantPlan(NamedTuple):
    """What the next run will do with a tenant; `notes` are of the tenant as a whole."""

    tenant_id: str
    ecosystem: str
    notes: tuple[str, ...]
    days: tuple[DayPlan, ...]


def plan(config: Config, tenants: Sequence[Tenant], today: date) -> list[TenantPlan]:
    """The plan of a run of today; StoreError if the state is there and cannot be read."""
    with state.open_state(config.root, write=False) as store:
        return [_of_tenant(config, one, store, today) for one in tenants]


def _of_tenant(config: Config, tenant: Tenant, store: state.State, today: date) -> TenantPlan:
    if isinstance(tenant, AwsTenant):
        return _of_bills(config, tenant, store)
    if isinstance(tenant, ConfluentTenant):
        return _of_products(config, tenant, store, today)
    return _of_cost_model(config, tenant, store, today)


def _of_bills(config: Config, tenant: AwsTenant, store: state.State) -> TenantPlan:
    days = state.days(store, tenant.id)
    bills, notes = _bills(tenant, store)
    reasons = _calculations(config, tenant, store, days, notes)
    plans = [DayPlan(*key, bills.get(key[0], bills["else"]), *reasons[key]) for key in days]
    new = sorted(period for period, reason in bills.items() if reason == "bill_new")
    notes += [f"bill {period}: {GATHER['bill_new']}; its days are known once it is" for period in new]
    return TenantPlan(tenant.id, tenant.ecosystem, tuple(notes), tuple(plans))


def _bills(tenant: AwsTenant, store: state.State) -> tuple[dict[str, str], list[str]]:
    """Billing period -> why it is read or not; `else` for those that are not on disk. And what cannot be read."""
    loaded, half = state.loaded_assemblies(store, tenant.id), state.half_published(store, tenant.id)
    delivered, faults = aws_cur.delivered(tenant.source.path, tenant.source.report)
    found = {"else": "bills_unreadable" if faults else "bill_absent"}
    for period, one in delivered.items():
        known = loaded.get(period)
        same = known is not None and known.fingerprint == one.fingerprint
        reason = "bill_new" if known is None else "bill_unchanged" if same else "bill_changed"
        found[period] = "bill_unfinished" if period in half else reason
    return found, faults


_Reason = tuple[str, str]
"""(code of CALCULATE, detail)"""


def _calculations(
    config: Config, tenant: Tenant, store: state.State, days: Mapping[state.DayKey, state.Day], notes: list[str]
) -> dict[state.DayKey, _Reason]:
    try:
        due = pipeline.days_due(config.root, store, tenant, dict(days))
    except ProrataError as error:
        notes += error.faults
        return dict.fromkeys(days, ("cannot_tell", ""))
    return {key: _why(day, key in due) for key, day in days.items()}


def _why(day: state.Day, due: bool) -> _Reason:
    if not due:
        return "up_to_date", ""
    if day.chargeback_calculated:
        return "inputs_changed", ""
    if day.error:
        return "calculation_failed", day.error.splitlines()[0]
    return "never_calculated" if day.output_digest is None else "billing_changed", ""


def _of_products(config: Config, tenant: ConfluentTenant, store: state.State, today: date) -> TenantPlan:
    days = {key[1]: day for key, day in state.days(store, tenant.id).items()}
    first, end = wanted.window(tenant, today)
    suspended = wanted.suspension(store, tenant.id)
    last = gather_state.last_gather(store, tenant.id)
    unfinished = [last] if last is not None and wanted.goes_on(last, (first, end), today) else []
    if last is not None and not unfinished:
        unfinished = wanted.gone_on_with(gather_state.gathers(store, tenant.id), last.gather_id + 1, today)
    notes = [suspended] if suspended else []
    by_key = {(day.billing_period, day.charge_date): day for day in days.values()}
    reasons = {key[1]: reason for key, reason in _calculations(config, tenant, store, by_key, notes).items()}
    for day, reason in _waiting(config, tenant, store, days, today).items():
        up_to_date = reasons[day][0] == "up_to_date"
        # One that is up to date is not held back by an inventory that was not gathered whole.
        if {"given_up": up_to_date, "inventory_failed": not up_to_date}.get(reason[0], True):
            reasons[day] = reason
    window = {str(first + timedelta(days=number)) for number in range((today - first).days + 1)}

    def gathering(day: str) -> str:
        if not str(first) <= day < str(end):
            return "before_window" if day < str(first) else "too_recent"
        if suspended:
            return "suspended"
        return "gather_unfinished" if any(one.first_day <= day < one.end_day for one in unfinished) else "in_window"

    unbilled = {day for _, day in wanted.lost_billing(config.root, tenant.id, by_key)}
    reasons |= {day: ("billing_lost", "") for day in unbilled if gathering(day) not in _GATHERED}
    plans = [
        DayPlan(day[:7], day, gathering(day), *reasons.get(day, ("no_billing", ""))) for day in sorted({*window, *days})
    ]
    return TenantPlan(tenant.id, tenant.ecosystem, tuple(notes), tuple(plans))


def _waiting(
    config: Config, tenant: ConfluentTenant, store: state.State, days: Mapping[str, state.Day], today: date
) -> dict[str, _Reason]:
    """Days that wait for something, or do no more, with what for."""
    given = decide.Inputs(tenant, rules.resolve(tenant), empty(USAGE))
    asked = wanted.needs(config.root, store, tenant, given)
    known = gather_state.day_metrics(store, tenant.id)
    lost = wanted.lost_usage(config.root, store, tenant.id)
    stays = wanted.out_of_reach(config.root, store, tenant, today)
    reasons: dict[str, _Reason] = {}
    for key, need in sorted(asked.items()):
        one = known.get(key)
        told = _told_failure(tenant, need, one) if one is not None else ""
        if need.charge_date in lost:
            # What a run did not find landed is asked for, if at all.
            reasons[need.charge_date] = (
                ("lost" if need.charge_date in stays and need.open_ids(one) else "usage_lost"),
                "",
            )
        elif not need.open_ids(one):
            if one is not None and one.status == "given_up" and need.charge_date not in reasons:
                reasons[need.charge_date] = "given_up", told
        elif one is not None and one.status == "failed":
            reasons[need.charge_date] = "metrics_failed", told
        elif reasons.get(need.charge_date, ("", ""))[0] != "metrics_failed":
            reasons[need.charge_date] = "metrics_wanted", ""
    errors = _inventory_errors(store, tenant)
    return reasons | {day: ("inventory_failed", errors) for day, row in days.items() if not row.resources_gathered}


def _told_failure(tenant: ConfluentTenant, need: wanted.Need, one: gather_state.DayMetric) -> str:
    lacking = sum(name not in one.fetches for name in need.ids)
    of = f"{lacking} of {counted(len(need.ids), 'resource')}"
    return f"{need.metric} of {of}, attempt {one.attempts} of {tenant.allocation_retry_limit}: {one.error}"


def _inventory_errors(store: state.State, tenant: ConfluentTenant) -> str:
    last = gather_state.last_gather(store, tenant.id)
    errors = list(last.inventory_errors.values()) if last else []
    # Others mostly follow from the first.
    return "; ".join([*errors[:1], *([f"{counted(len(errors) - 1, 'more kind')}"] if errors[1:] else [])])


def _of_cost_model(config: Config, tenant: CostModelTenant, store: state.State, today: date) -> TenantPlan:
    first, end = cost_days.window(tenant, today)
    known, notes = cost_days.Known(config.root, store, tenant, (first, end)), list[str]()
    known.recall()
    reasons = _reasons_of_cost_model(config, tenant, store, known, notes)
    window = {str(first + timedelta(days=number)) for number in range((today - first).days + 1)}

    def is_made_anew(day: str) -> bool:
        # Of a day before the window that was never made nothing is known, and nobody is asked.
        is_reached = day >= str(first) or day in known.made
        return day < str(end) and known.has_changed(day) and known.can_be_made(day) and is_reached

    def making(day: str) -> str:
        if day >= str(end):
            return "too_recent"
        if day >= str(first) and any(known.is_open(one, day) for one in known.questions.values()):
            return "in_window"
        if not known.has_changed(day):
            return "made"
        if kept := known.keeps(day):
            return kept.code
        return "model_changed" if is_made_anew(day) else "before_window"

    def calculating(day: str) -> _Reason:
        waits = known.waits(day) if day < str(end) and (day >= str(first) or day in known.billed) else None
        if waits or known.is_asked_anew(day):
            return waits or ("metrics_wanted", "")
        if is_made_anew(day) and known.has_charges(day):
            return "made_anew", ""
        return reasons.get(day, ("no_billing", ""))

    plans = [DayPlan(day[:7], day, making(day), *calculating(day)) for day in sorted({*window, *reasons, *known.made})]
    return TenantPlan(tenant.id, tenant.ecosystem, tuple(notes), tuple(plans))


def _reasons_of_cost_model(
    config: Config, tenant: CostModelTenant, store: state.State, known: cost_days.Known, notes: list[str]
) -> dict[str, _Reason]:
    """Why the stored days are calculated or not, as long as they are not made anew and wait for nothing."""
    limit = tenant.allocation_retry_limit
    # Of a day that waited, the error says for what, which may have come since.
    days = {
        key: day if day.metrics_gathered else day._replace(error=None)
        for key, day in state.days(store, tenant.id).items()
    }
    found = {key[1]: reason for key, reason in _calculations(config, tenant, store, days, notes).items()}
    for one in (*cost_days.made_without(tenant, known.day_metrics, known.made), *known.of_first_samples()):
        if found.get(one.charge_date, ("", ""))[0] == "up_to_date":
            told = f"{one.metric}, attempt {one.attempts} of {limit}: {cost_days.first_line(one)}"
            found[one.charge_date] = "given_up", told
    for day, products in cost_days.without_rules(config.root, store, tenant).items():
        found[day] = "rules_gone", ", ".join(map(shown, products))
    found |= {
        day: ("never_asked", ", ".join(held)) for day, held in pipeline.held_back(config.root, store, tenant).items()
    }
    return found | {day: ("lost", "") for day in known.lost & found.keys() if not known.can_be_made(day)}


def as_json(found: TenantPlan) -> dict[str, Any]:
    """A tenant's plan as JSON has it."""
    return {
        "tenant_id": found.tenant_id,
        "ecosystem": found.ecosystem,
        "notes": list(found.notes),
        "days": [{**day._asdict(), "gather": day.gather, "calculate": day.calculate} for day in found.days],
    }


def lines(found: TenantPlan, *, each_day: bool) -> Iterator[str]:
    """A tenant's plan for people: a line for each day, or for each stretch of days with the same reasons."""
    gathered, calculated = (sum(getattr(day, name) for day in found.days) for name in ("gather", "calculate"))
    yield f"{found.tenant_id} ({found.ecosystem}): {counted(gathered, 'day')} to gather, {calculated} to calculate"
    yield from (f"  {note}" for note in found.notes)
    if each_day:
        yield from (f"  {day.charge_date}  {_words(day)}" for day in found.days)
        return
    for _, group in groupby(_numbered(found.days), key=lambda one: one[:2]):
        days = [day for *_, day in group]
        first, last = days[0].charge_date, days[-1].charge_date
        span = f"{first} to {last}" if first != last else f"{first}{' ' * 14}"
        yield f"  {span}  {counted(len(days), 'day')}: {_words(days[0])}"


def _numbered(days: Sequence[DayPlan]) -> Iterator[tuple[int, tuple[str, str, str], DayPlan]]:
    """Days with what stretches of them have in common: successive dates, and reasons."""
    for number, day in enumerate(days):
        stretch = date.fromisoformat(day.charge_date).toordinal() - number
        yield stretch, (day.gather_reason, day.calculate_reason, day.detail), day


def _words(day: DayPlan) -> str:
    gathered, calculated = (
        "gathered" if day.gather else "not gathered",
        "calculated" if day.calculate else "not calculated",
    )
    detail = f" ({day.detail})" if day.detail else ""
    return (
        f"{gathered}: {GATHER[day.gather_reason]}; {calculated}: {CALCULATE[day.calculate_reason]}{detail}"
    )  # fmt: skip
