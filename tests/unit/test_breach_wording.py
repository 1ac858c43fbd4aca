"""A breach in words: what was observed and its limit."""

from __future__ import annotations

from decimal import Decimal

import pytest

from rearguard.model.breach import Trigger
from rearguard.rules.breach.wording import worded


@pytest.mark.parametrize(
    ("trigger", "observed", "limit", "p95_ms", "p95_limit_ms", "text"),
    [
        (Trigger.ERRORS, "0.05", "0.01", None, None, "Error Rate 5.0 % (limit 1 %)"),
        (Trigger.ERRORS, "0.0104", "0.01", None, None, "Error Rate 1.04 % (limit 1 %)"),
        (Trigger.ERRORS, None, "0.01", None, None, "Error Rate"),
        (Trigger.COMPLIANCE, "91.25", "93.00", None, None, "Compliance Drop to 91.3 (limit 93)"),
        (Trigger.LATENCY, "0.2", "0.05", "142.6", "105", "P95 Latency 143 ms (limit 105 ms)"),
        (Trigger.LATENCY, "0.2", "0.05", "105.2", "105", "P95 Latency 105.2 ms (limit 105 ms)"),
        (Trigger.LATENCY, "0.2", "0.05", None, "105", "P95 Latency: 20.0 % of answers are slow (limit 5 %)"),
    ],
)
def test_the_figures_of_a_breach_are_told_with_their_limit(
    trigger: Trigger, observed: str | None, limit: str, p95_ms: str | None, p95_limit_ms: str | None, text: str
) -> None:
    values = [None if v is None else Decimal(v) for v in (observed, limit, p95_ms, p95_limit_ms)]
    assert worded(trigger, observed=values[0], limit=values[1], p95_ms=values[2], p95_limit_ms=values[3]) == text
