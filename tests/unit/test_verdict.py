"""The verdict table R88 over all combinations of its flags, and the actions of R87."""

from __future__ import annotations

from dataclasses import fields
from itertools import product

from rearguard.model.report import NextAction, Verdict
from rearguard.rules.verdict import Flags, judge, next_action, raised

# R88, written out again from the requirement: first match wins.
FAILED = {"chain_broken", "rollback_failed", "rto_over_limit", "rpo_over_limit", "no_validated_checkpoint"}
PARTIAL = {
    "at_risk",
    "path_untested",
    "environment_missing",
    "guardrail_warning",
    "value_at_limit",
    "telemetry_inconclusive",
    "no_runs",
}
NAMES = [f.name for f in fields(Flags)]
ALL = [Flags(**dict(zip(NAMES, bits, strict=True))) for bits in product((False, True), repeat=len(NAMES))]


def test_the_flags_are_the_twelve_of_the_requirement() -> None:
    assert set(NAMES) == FAILED | PARTIAL
    assert len(ALL) == 2**12


def test_every_combination_has_the_verdict_of_its_first_match() -> None:
    for flags in ALL:
        names = set(raised(flags))
        expected = Verdict.FAILED if names & FAILED else Verdict.PARTIAL if names & PARTIAL else Verdict.READY
        assert judge(flags) is expected


def test_ready_if_and_only_if_every_flag_is_clear() -> None:
    assert [flags for flags in ALL if judge(flags) is Verdict.READY] == [Flags()]


def test_the_raised_flags_are_named_in_the_order_of_the_requirement() -> None:
    assert raised(Flags(no_runs=True, chain_broken=True, at_risk=True)) == ("chain_broken", "at_risk", "no_runs")


def test_each_verdict_has_its_own_action() -> None:
    assert {v: next_action(v) for v in Verdict} == {
        Verdict.READY: NextAction.CONTINUE_MONITORING,
        Verdict.PARTIAL: NextAction.TRIGGER_FULL_AUDIT,
        Verdict.FAILED: NextAction.ALERT_OPS_COMMANDER,
    }
