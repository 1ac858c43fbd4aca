"""A breach in the words of one line: what was observed, and the limit that it is compared with. Pure; decides nothing."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

from rearguard.model.breach import Trigger

_MOST_DECIMALS = 4


def worded(
    trigger: Trigger,
    *,
    observed: Decimal | None,
    limit: Decimal | None,
    p95_ms: Decimal | None = None,
    p95_limit_ms: Decimal | None = None,
) -> str:
    """`Error Rate 5.0 % (limit 1 %)`, `P95 Latency 143 ms (limit 105 ms)`, `Compliance Drop to 91.2 (limit 93)`.

    `observed` and `limit` are a judgement's. Without the p95 itself the share of slow answers is told; what is not known
    is left out. Law: a figure over its limit is not rounded to look equal to it.
    """
    label = trigger.label
    match trigger:
        case Trigger.ERRORS:
            return label + _compared(_percent(observed), _percent(limit), " %", " ")
        case Trigger.COMPLIANCE:
            return label + _compared(observed, limit, "", " to ")
        case Trigger.LATENCY:
            if p95_ms is not None:
                return label + _compared(p95_ms, p95_limit_ms, " ms", " ", decimals=0)
            share = _compared(_percent(observed), _percent(limit), " %", " ", what=" of answers are slow")
            return f"{label}:{share}" if share else label


def _percent(ratio: Decimal | None) -> Decimal | None:
    return None if ratio is None else ratio * 100


def _compared(
    observed: Decimal | None, limit: Decimal | None, unit: str, before: str, *, decimals: int = 1, what: str = ""
) -> str:
    if observed is None:
        return ""
    shown = _rounded(observed, decimals)
    while limit is not None and shown == limit != observed and decimals < _MOST_DECIMALS:
        decimals += 1
        shown = _rounded(observed, decimals)
    text = f"{before}{shown}{unit}{what}"
    return text if limit is None else f"{text} (limit {_short(limit)}{unit})"


def _rounded(value: Decimal, decimals: int) -> Decimal:
    return value.quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_HALF_UP)


def _short(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
