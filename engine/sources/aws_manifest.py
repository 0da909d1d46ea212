"""Which files are the bill: the effective assembly of each month of AWS Cost and Usage Reports on disk.

A report lies at PREFIX/REPORT/YYYYMMDD-YYYYMMDD/[ASSEMBLY/]REPORT-N.csv[.gz], with REPORT-Manifest.json in the month's
folder and in each assembly's. Every delivery holds the whole month so far, so a month has one effective assembly, the
one that the month folder's manifest names, and it is read whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import SourceError, fault, shown
from engine.sources.csv_text import place

_MONTH_FOLDER = re.compile(r"[0-9]{8}-[0-9]{8}")
_MANIFEST_SUFFIX = "-Manifest.json"
_ASSEMBLY_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_MANIFEST_TIME = re.compile(r"[12][0-9]{7}T000000\.000Z")
_FILE_SUFFIXES = (".csv", ".csv.gz")


class Assembly(NamedTuple):
    """One delivery of one month: its files in manifest order; `period_end` is exclusive."""

    billing_period: str
    assembly_id: str
    manifest: Path
    files: tuple[Path, ...]
    period_start: date
    period_end: date
    warnings: tuple[str, ...]


class _Manifest(NamedTuple):
    path: Path
    report: str
    assembly_id: str
    keys: tuple[str, ...]
    start: date
    end: date
    warnings: tuple[str, ...]


def discover(path: Path, report: str | None) -> list[Assembly]:
    """The effective assembly of every billing period below `path`, by period.

    A month folder's manifest decides; where a report has none, its assembly manifest that was modified last (the
    greatest assembly id of several), with a warning. With `report` only manifests of that report count.

    Raises SourceError with all faults: no manifest, one that cannot be used, two reports for one period, missing files.
    """
    assemblies, faults = survey(path, report)
    if faults:
        raise SourceError(faults)
    return assemblies


def survey(path: Path, report: str | None) -> tuple[list[Assembly], list[str]]:
    """What `discover` gives, of the periods that can be read, and the faults of the others.

    Raises SourceError only where there is no report at all, or a folder cannot be read.
    """
    path = path.absolute()
    try:
        manifests, faults = _manifests(path, report)
        if not manifests and not faults:
            raise SourceError(_nothing_found(path, report))
        periods = Counter(manifest.start for manifest in manifests)
        faults += _several_for_a_period(manifests)
        assemblies = []
        for manifest in sorted(manifests, key=lambda manifest: manifest.start):
            files, missing = _files(manifest, path)
            faults += missing
            if not missing and periods[manifest.start] == 1:
                assemblies.append(_assembly(manifest, files))
    except OSError as error:
        named = place(Path(str(error.filename or path)))
        raise SourceError(fault(named, f"cannot be read ({error.strerror or error})", "a readable report")) from error
    return assemblies, faults


def _assembly(manifest: _Manifest, files: tuple[Path, ...]) -> Assembly:
    return Assembly(
        billing_period=f"{manifest.start:%Y-%m}",
        assembly_id=manifest.assembly_id,
        manifest=manifest.path,
        files=files,
        period_start=manifest.start,
        period_end=manifest.end,
        warnings=manifest.warnings,
    )


def _nothing_found(path: Path, report: str | None) -> str:
    of_report = f" of report {shown(report)}" if report is not None else ""
    expected = f"REPORT/YYYYMMDD-YYYYMMDD/REPORT{_MANIFEST_SUFFIX} below it"
    return fault(place(path), f"no manifest{of_report}", expected)


def _manifests(path: Path, report: str | None) -> tuple[list[_Manifest], list[str]]:
    """The manifest that decides for each month folder and report, and the faults of those that cannot be used."""
    manifests: list[_Manifest] = []
    faults: list[str] = []
    candidates = {month_folder: list(_candidates(month_folder)) for month_folder in _month_folders(path)}
    for candidate, warnings in chain.from_iterable(candidates.values()):
        document, broken = _document(candidate)
        named = document.get("reportName")
        name = named if isinstance(named, str) else candidate.name.removesuffix(_MANIFEST_SUFFIX)
        if report is None or name == report:
            manifest, wrong = (None, broken) if broken else _manifest(candidate, name, document, warnings)
            manifests += [manifest] if manifest else []
            faults += wrong
    return manifests, faults + _incomplete(candidates)


def _incomplete(candidates: Mapping[Path, Sequence[object]]) -> list[str]:
    """A fault for each month that has data but no manifest anywhere: its bill would be passed over in silence."""
    complete = {month_folder.name for month_folder, found in candidates.items() if found}
    expected = f"REPORT{_MANIFEST_SUFFIX}, with which a delivery is complete"
    return [
        fault(place(month_folder), "data files without a manifest", expected)
        for month_folder in candidates
        if month_folder.name not in complete and _holds_data(month_folder)
    ]


def _month_folders(path: Path) -> Iterator[Path]:
    """The month folders at or below `path`, without looking into them."""
    if _MONTH_FOLDER.fullmatch(path.name):
        yield path
        return
    for folder, names, _ in os.walk(path, onerror=_raise):
        names.sort()
        yield from (Path(folder, name) for name in names if _MONTH_FOLDER.fullmatch(name))
        names[:] = [name for name in names if not _MONTH_FOLDER.fullmatch(name)]


def _raise(error: OSError) -> None:
    raise error


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _candidates(month_folder: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The month's own manifests, and for reports that have none the newest of their assemblies, with a warning."""
    entries = _listed(month_folder)
    own = [entry.name for entry in entries if entry.name.endswith(_MANIFEST_SUFFIX)]
    yield from ((month_folder / name, ()) for name in own)
    newest: dict[str, tuple[int, str]] = {}
    for assembly in (entry for entry in entries if entry.is_dir()):
        for entry in _listed(Path(assembly)):
            if entry.name.endswith(_MANIFEST_SUFFIX) and entry.name not in own:
                age = (entry.stat().st_mtime_ns, assembly.name)
                newest[entry.name] = max(age, newest.get(entry.name, age))
    for name, (_, assembly_name) in sorted(newest.items()):
        said = f"no {name}; assembly {assembly_name} was taken, whose manifest was modified last"
        yield month_folder / assembly_name / name, (f"{place(month_folder)}: {said}",)


def _holds_data(month_folder: Path) -> bool:
    entries = _listed(month_folder)
    below = [entry for folder in entries if folder.is_dir() for entry in _listed(Path(folder))]
    return any(entry.name.endswith(_FILE_SUFFIXES) for entry in entries + below)


def _document(path: Path) -> tuple[dict[str, Any], list[str]]:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        return {}, [fault(place(path), f"not JSON ({error})", "a manifest")]
    if not isinstance(document, dict):
        return {}, [fault(place(path), "not a JSON object", "a manifest")]
    return document, []


def _manifest(
    path: Path, report: str, document: Mapping[str, Any], warnings: tuple[str, ...]
) -> tuple[_Manifest | None, list[str]]:
    """The manifest, or None and all that is wrong with it."""
    assembly_id, keys, period = document.get("assemblyId"), document.get("reportKeys"), document.get("billingPeriod")
    start, end = _period(period)
    faults = [
        fault(f"{place(path)}: {name}", seen, expected)
        for name, seen, expected in (
            *_id_faults(assembly_id),
            *_compression_faults(document.get("compression")),
            *_keys_faults(keys),
            *_period_faults(period, start, end, path),
        )
    ]
    if faults or start is None or end is None:
        return None, faults
    return _Manifest(path, report, str(assembly_id), tuple(keys or ()), start, end, warnings), []


_Wrong = Iterator[tuple[str, str, str]]
"""A field of the manifest, what is wrong with it, and what was expected."""


def _id_faults(assembly_id: object) -> _Wrong:
    if not (isinstance(assembly_id, str) and _ASSEMBLY_ID.fullmatch(assembly_id)):
        yield "assemblyId", _seen(assembly_id), "letters, digits, '.', '_' and '-'"


def _compression_faults(compression: object) -> _Wrong:
    if not (isinstance(compression, str | None) and (compression or "none").lower() in {"gzip", "none", "csv"}):
        yield "compression", _seen(compression), "'GZIP', or none for plain CSV"


def _keys_faults(keys: object) -> _Wrong:
    if not (isinstance(keys, list) and keys and all(isinstance(key, str) for key in keys)):
        yield "reportKeys", _seen(keys), "the keys of one file or more"
        return
    for key in keys:
        if not key.isprintable() or {".", ".."} & set(key.split("/")) or "\\" in key:
            yield "reportKeys", f"key {shown(key)}", "a key that stays in the folder of its report"
        elif not key.endswith(_FILE_SUFFIXES):
            yield "reportKeys", f"key {shown(key)}", f"a file that ends in {' or '.join(_FILE_SUFFIXES)}"


def _period_faults(period: object, start: date | None, end: date | None, path: Path) -> _Wrong:
    if start is None or end is None or _next_month(start) != end:
        yield "billingPeriod", _seen(period), "the start and end of one month, such as 20251001T000000.000Z"
    elif (folder := f"{start:%Y%m%d}-{end:%Y%m%d}") != _month_folder(path).name:
        yield "billingPeriod", f"is that of {folder}", "the month of its folder"


def _seen(value: object) -> str:
    return "is missing" if value is None else f"value {shown(value)}"


def _period(period: object) -> tuple[date | None, date | None]:
    named: Mapping[str, object] = period if isinstance(period, dict) else {}
    return _manifest_date(named.get("start")), _manifest_date(named.get("end"))


def _manifest_date(text: object) -> date | None:
    if not (isinstance(text, str) and _MANIFEST_TIME.fullmatch(text)):
        return None
    try:
        return date.fromisoformat(text[:8])
    except ValueError:
        return None


def _next_month(day: date) -> date | None:
    """The first day of the month after `day`, if that is the first of its month."""
    return date(day.year + day.month // 12, day.month % 12 + 1, 1) if day.day == 1 else None


def _several_for_a_period(manifests: Sequence[_Manifest]) -> list[str]:
    by_period: dict[date, list[_Manifest]] = {}
    for manifest in manifests:
        by_period.setdefault(manifest.start, []).append(manifest)
    faults = []
    for start, rivals in sorted(by_period.items()):
        if len(rivals) > 1:
            named = " and ".join(f"{place(rival.path)} (report {shown(rival.report)})" for rival in rivals)
            expected = "one manifest for a month: choose with `report:` in the source, or keep other copies elsewhere"
            faults.append(fault(f"billing period {start:%Y-%m}", f"{len(rivals)} manifests, {named}", expected))
    return faults


def _files(manifest: _Manifest, path: Path) -> tuple[tuple[Path, ...], list[str]]:
    """Where the files of a manifest lie, and a fault for each that is not there or is listed twice."""
    files: list[Path] = []
    faults = []
    for key in manifest.keys:
        found = next((candidate for candidate in _places(manifest, key, path) if candidate.is_file()), None)
        where = f"{place(manifest.path)}: reportKeys"
        if found is None:
            expected = f"all {len(manifest.keys)} files of the assembly: it is read whole or not at all"
            faults.append(fault(where, f"file {shown(key, limit=300)} is missing", expected))
        elif found in files:
            faults.append(fault(where, f"file {place(found)} is listed twice", "each file once"))
        else:
            files.append(found)
    return tuple(files), faults


def _places(manifest: _Manifest, key: str, path: Path) -> Iterator[Path]:
    """Where the file of a bucket key may lie, most likely first."""
    month_folder, parts = _month_folder(manifest.path), [part for part in key.split("/") if part]
    # A file of that name elsewhere is another bill's: what a key says of its folders has to hold.
    if manifest.assembly_id in parts[:-1]:
        yield month_folder / manifest.assembly_id / parts[-1]
    else:
        yield month_folder / parts[-1]
    folders = [place for place, part in enumerate(parts) if part in (manifest.assembly_id, month_folder.name)]
    yield from (path.joinpath(*parts[start:]) for start in range(min(folders, default=0) + 1))


def _month_folder(manifest: Path) -> Path:
    """The folder of the month that a manifest, its own or an assembly's, belongs to."""
    return next(folder for folder in manifest.parents if _MONTH_FOLDER.fullmatch(folder.name))
