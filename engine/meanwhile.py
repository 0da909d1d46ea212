"""Checks of days that are written, some at once, while others are calculated: what these leave of the cores is used."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engine import state
from engine.errors import StoreError
from engine.frames import LINE_AS_ROWS

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

CHECKING = threading.Lock()
"""A DuckDB takes up to a gigabyte and all cores: tenants that run side by side are checked one after the other."""
CHECKED_AT_ONCE = 4_000_000
"""How many rows are checked at once while other days are calculated, about, and with `LINE_AS_ROWS` for each line.

A run of fewer is checked at its end.
"""


class ChecksMeanwhile:
    """The checks of one run: `begin`, then `add` each day that is done, then ask which days have `passed`.

    Of a day that does not pass, whatever keeps it from it, nothing is told: it is checked again at the end of the run,
    so that nothing that is said depends on what was done when.
    """

    def __init__(
        self, root: Path, tenant_id: str, stop: threading.Event, pool: ThreadPoolExecutor, until_end: ExitStack
    ) -> None:
        self._root, self._tenant_id, self._stop = root, tenant_id, stop
        self._pool, self._until_end = pool, until_end
        self._lake: DuckDBPyConnection | None = None
        self._days: Mapping[state.DayKey, state.Day] = {}
        self._of_one_bill, self._passed = set[str](), set[state.DayKey]()
        self._changing = threading.Lock()
        self._due, self._written, self._has_begun = 0, dict[state.DayKey, int](), False
        self._asked: Future[None] | None = None

    def begin(self, days: Mapping[state.DayKey, state.Day], due: int) -> None:
        """Tell of all days of the tenant, and how many of them are to be calculated."""
        self._days, self._due = days, due
        # The rows of a day that is in several bills belong together.
        self._of_one_bill = {date for date, bills in Counter(date for _, date in days).items() if bills == 1}

    def add(self, key: state.DayKey, rows: int | None) -> None:
        """Tell of a day that is done, and how many rows were written, if any were."""
        with self._changing:
            self._due -= 1
            if rows and key[1] in self._of_one_bill:
                self._written[key] = rows + LINE_AS_ROWS * self._days[key].billing_rows
            if not self._is_ready() or not (self._asked is None or self._asked.done()):
                return
        self.passed()
        self._asked = self._pool.submit(self._check)

    def passed(self) -> set[state.DayKey]:
        """The days that have met the checks of rows, when those that are checked are done."""
        if self._asked is not None:
            self._asked.result()
        return self._passed

    @contextmanager
    def opened(self) -> Iterator[DuckDBPyConnection]:
        """The lake as checks see it, on all cores, when nobody else checks: to open one takes as long as half a day."""
        from engine import warehouse  # noqa: PLC0415  # see `_check`

        self.passed()
        with CHECKING:
            if self._lake is not None:
                warehouse.use_all_cores(self._lake)
                yield self._lake
                return
            with warehouse.open_lake(self._root, views=warehouse.CHECKED) as lake:
                yield lake

    def _is_ready(self) -> bool:
        """Whether the days that are written are to be checked now.

        Towards the end days leave a core free. What takes longer to be checked than the last days to be calculated
        waits: in the end all cores are free for it.
        """
        is_enough = sum(self._written.values()) >= CHECKED_AT_ONCE or (self._has_begun and self._due == 1)
        return is_enough and 0 < len(self._written) <= self._due + 1 and self._due > 0

    def _next(self) -> list[state.DayKey]:
        with self._changing:
            if not self._is_ready():
                return []
            keys, self._has_begun = list(self._written), True
            self._written.clear()
        return keys

    def _check(self) -> None:
        # DuckDB takes as long to import as a run with nothing to do takes in all.
        from engine import warehouse  # noqa: PLC0415  # see above

        while keys := self._next():
            # Nobody waits for another tenant's checks here, nor for these where the run is to end.
            if self._stop.is_set() or not CHECKING.acquire(blocking=False):
                return
            try:
                if self._lake is None:
                    # A core of its own is enough: the others have days to calculate.
                    opened = warehouse.open_lake(self._root, views=warehouse.CHECKED, threads=1)
                    self._lake = self._until_end.enter_context(opened)
                if warehouse.add_up(self._lake, self._tenant_id, keys):
                    self._passed.update(keys)
            except StoreError:
                # After some errors a DuckDB answers no more.
                self._lake = None
            finally:
                CHECKING.release()


@contextmanager
def checks_meanwhile(root: Path, tenant_id: str, stop: threading.Event) -> Iterator[ChecksMeanwhile]:
    """What checks days of a run that may be stopped; in the end it waits for what is being checked."""
    # In this order: what is being checked ends before the lake is closed.
    with ExitStack() as until_end, ThreadPoolExecutor(1, thread_name_prefix="check") as pool:
        yield ChecksMeanwhile(root, tenant_id, stop, pool, until_end)
