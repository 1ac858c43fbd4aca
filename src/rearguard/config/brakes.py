"""`brakes` and `approval` of an environment: what keeps automation from doing harm (R29).

Decides which keys they have, their units and defaults, and what must hold between them. A freeze window is written in
one of two forms: once, with `from` and `to`, or every week, with `weekly` and `for`. The normative form is
`docs/reference/rearguard-yaml.md`.
"""

from __future__ import annotations

import re

from rearguard.config.reader import MAX_DURATION_MS, Fields
from rearguard.model.settings import ApprovalPolicy, BrakePolicy, FreezeWindow
from rearguard.model.time import NS_PER_MS, NS_PER_S, parse_rfc3339

ONCE_KEYS = ("from", "to", "reason", "holds")
WEEKLY_KEYS = ("weekly", "for", "reason", "holds")
FREEZE_KEYS = (*ONCE_KEYS[:2], *WEEKLY_KEYS)
BRAKE_KEYS = ("cool_down", "max_rollbacks", "per", "freeze")
APPROVAL_KEYS = ("required", "expires")

_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_HOLDS = ("both", "deployments", "rollbacks")
_WEEK_S = 7 * 86_400
_INSTANT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2})")
_INSTANT_FORM = "an instant of RFC 3339 with its offset, for example 2026-12-24T00:00:00Z"
_WEEKLY = re.compile(rf"({'|'.join(_WEEKDAYS)}) ([01][0-9]|2[0-3]):([0-5][0-9])")
_WEEKLY_FORM = f'a day of {", ".join(_WEEKDAYS)} and a time in UTC, for example "fri 16:00"'
_FREEZE_FORM = "a list of sections with from and to, or with weekly and for"


def read_brakes(place: Fields) -> BrakePolicy:
    """The section `brakes` of an environment, or the defaults."""
    section = place.section("brakes", BRAKE_KEYS)
    default = BrakePolicy()
    return BrakePolicy(
        cool_down_s=section.duration_s("cool_down", default.cool_down_s, at_least_s=0, example="30 min"),
        max_rollbacks=section.integer(
            "max_rollbacks", "rollbacks", default.max_rollbacks, at_least=1, at_most=1_000_000, example="3"
        ),
        budget_period_s=section.duration_s("per", default.budget_period_s, example="24 h"),
        freeze_windows=_freeze_windows(section),
    )


def read_approval(place: Fields) -> ApprovalPolicy:
    """The section `approval` of an environment, or the defaults; where it stands, it says whether one is required."""
    section = place.section("approval", APPROVAL_KEYS)
    if not place.has("approval"):
        return ApprovalPolicy()
    expires_s = section.duration_s("expires", ApprovalPolicy().expires_s, example="15 min")
    return ApprovalPolicy(required=section.boolean("required"), expires_s=expires_s)


def _freeze_windows(brakes: Fields) -> tuple[FreezeWindow, ...]:
    if not brakes.has("freeze"):
        return ()
    return tuple(_freeze_window(item) for item in brakes.items("freeze", _FREEZE_FORM, FREEZE_KEYS))


def _freeze_window(item: Fields) -> FreezeWindow:
    weekly = item.has("weekly")
    item.only(WEEKLY_KEYS if weekly else ONCE_KEYS)
    reason = item.text("reason", "why nobody wants changes then")
    holds = item.choice("holds", _HOLDS, "both")
    if weekly:
        weekday, start_of_day_s = _weekly(item)
        duration_s = item.duration_s("for", example="64 h")
        if duration_s >= _WEEK_S:
            raise item.refuse("for", "a duration shorter than 7 d; what never ends is `rearguard disarm`")
        return FreezeWindow(
            reason=reason,
            weekday=weekday,
            start_of_day_s=start_of_day_s,
            duration_s=duration_s,
            deployments=holds != "rollbacks",
            rollbacks=holds != "deployments",
        )
    start_ns, end_ns = _instant_ns(item, "from"), _instant_ns(item, "to")
    if not 0 < end_ns - start_ns <= MAX_DURATION_MS * NS_PER_MS:
        raise item.refuse("to", "an instant after from, at most 366 d later", code="config_conflict")
    return FreezeWindow(
        reason=reason,
        start_wall_ns=start_ns,
        duration_s=(end_ns - start_ns) // NS_PER_S,
        deployments=holds != "rollbacks",
        rollbacks=holds != "deployments",
    )


def _weekly(item: Fields) -> tuple[int, int]:
    """Weekday and seconds after midnight."""
    match = _WEEKLY.fullmatch(item.text("weekly", _WEEKLY_FORM))
    if match is None:
        raise item.refuse("weekly", _WEEKLY_FORM)
    return _WEEKDAYS.index(match[1]), int(match[2]) * 3_600 + int(match[3]) * 60


def _instant_ns(item: Fields, key: str) -> int:
    """Wall clock nanoseconds; whole seconds, as the form has no fraction."""
    written = item.text(key, _INSTANT_FORM)
    if _INSTANT.fullmatch(written) is None:
        raise item.refuse(key, _INSTANT_FORM)
    try:
        return parse_rfc3339(written)
    except ValueError as error:
        raise item.refuse(key, _INSTANT_FORM) from error
