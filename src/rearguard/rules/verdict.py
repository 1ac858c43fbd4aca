"""The verdict of a report: twelve named flags in, Ready, Partial or Failed out (R88), and the one action of each (R87).

Decides nothing about evidence: who sets a flag, and from what, is the report's business.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from rearguard.model.report import NextAction, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What stands against Ready, in the order of R88; all False is Ready."""

    chain_broken: bool = False
    """The evidence chain does not verify."""
    rollback_failed: bool = False
    """A real rollback of the window failed or was refused."""
    rto_over_limit: bool = False
    """An RTO of the window is above its objective, or censored."""
    rpo_over_limit: bool = False
    """An RPO of the window is above its objective."""
    no_validated_checkpoint: bool = False
    """A place has no checkpoint whose last verification passed."""
    at_risk: bool = False
    """A run of the window breached, failed, was refused, inconclusive, cancelled or not measured (10.9)."""
    path_untested: bool = False
    """A rollback path was not tested within 7 days, or no path is known."""
    environment_missing: bool = False
    """A required environment has no drill in the window."""
    guardrail_warning: bool = False
    """A required guardrail is not ✅."""
    value_at_limit: bool = False
    """An RTO or RPO of the window equals its objective."""
    telemetry_inconclusive: bool = False
    """Telemetry of a place is silent."""
    no_runs: bool = False
    """No drill and no real rollback in the window (n = 0)."""


FAILED_FLAGS = ("chain_broken", "rollback_failed", "rto_over_limit", "rpo_over_limit", "no_validated_checkpoint")
"""Any of these is Failed; any other flag is Partial (R88)."""

_ACTIONS = {
    Verdict.READY: NextAction.CONTINUE_MONITORING,
    Verdict.PARTIAL: NextAction.TRIGGER_FULL_AUDIT,
    Verdict.FAILED: NextAction.ALERT_OPS_COMMANDER,
}


def raised(flags: Flags) -> tuple[str, ...]:
    """The names of the flags that are set, in the order of R88."""
    return tuple(f.name for f in fields(flags) if getattr(flags, f.name))


def judge(flags: Flags) -> Verdict:
    """The verdict, first match wins (R88). Law: Ready iff no flag is set."""
    names = raised(flags)
    if any(name in FAILED_FLAGS for name in names):
        return Verdict.FAILED
    return Verdict.PARTIAL if names else Verdict.READY


def next_action(verdict: Verdict) -> NextAction:
    """The one action that belongs to a verdict (R87)."""
    return _ACTIONS[verdict]
