"""Eight days of the bundled organization, and what a Prometheus has measured of them; the fixtures are in conftest."""

from __future__ import annotations

from tests.doubles.confluent_metrics import Metrics
from tests.integration.confluent import FIRST, day, prometheus

DAYS = 8
TODAY = day(DAYS)
"""The day after the last."""
METRICS = Metrics(FIRST, days=DAYS, step_minutes=360)
NOWHERE = prometheus("http://127.0.0.1:9")
"""Where nobody answers."""
