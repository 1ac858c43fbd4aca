"""What should stand warm, whether it does, and when it is tried again."""

from __future__ import annotations

import pytest

from rearguard.model.checkpoint import Checkpoint
from rearguard.model.service import Digest, Place
from rearguard.model.standby import StandbyState, WarmStandby
from rearguard.model.time import NS_PER_S, Instant
from rearguard.rules import standby as rule
from rearguard.rules.selection import Candidate
from rearguard.rules.standby import BYTES_CHANGED, Finding, Tries, after_standing, after_try, is_due, pause_s

NOW = Instant(wall_ns=1_000 * NS_PER_S, mono_ns=1_000 * NS_PER_S, boot_id="b")
A, B = Digest("sha256:" + "a" * 64), Digest("sha256:" + "b" * 64)


def candidate(*, stale: bool = False) -> Candidate:
    checkpoint = Checkpoint(
        digest=A,
        service="fraud",
        version="v1",
        format="onnx",
        files=(),
        golden_sha256="",
        added_at=NOW,
        verified_at=NOW,
        load_ms=1,
        failure="",
    )
    return Candidate(checkpoint=checkpoint, stale=stale, served_before=True)


def was(state: StandbyState, digest: Digest = A, reason: str = "") -> WarmStandby:
    place = Place(service="fraud", env="prod")
    return WarmStandby(
        place=place, digest=digest, version="v1", state=state, reason=reason, detail="in words", since=NOW
    )


def judge(
    best: Candidate | None, held: dict[Digest, str], before: WarmStandby | None, *, untouched: bool = True
) -> Finding:
    return rule.judge(best, held, before, untouched=untouched)


def said(finding: Finding) -> tuple[StandbyState, str, bool]:
    return finding.state, finding.reason, finding.arm


def test_without_a_target_nothing_should_stand() -> None:
    assert said(judge(None, {A: ""}, None)) == (StandbyState.NONE, "no_verified_checkpoint", False)


def test_the_best_candidate_that_is_ready_stands() -> None:
    assert said(judge(candidate(), {B: "", A: ""}, None)) == (StandbyState.STANDING, "", False)


def test_another_checkpoint_that_stands_is_no_standby() -> None:
    assert said(judge(candidate(), {B: ""}, None)) == (StandbyState.NONE, "not_loaded", True)


def test_one_that_is_held_and_not_ready_is_lost_with_the_targets_reason() -> None:
    finding = judge(candidate(), {A: "the worker died"}, was(StandbyState.STANDING))
    assert (*said(finding), finding.detail) == (StandbyState.LOST, "standby_not_ready", True, "the worker died")


def test_one_that_stood_and_is_held_no_more_is_lost() -> None:
    assert said(judge(candidate(), {}, was(StandbyState.STANDING))) == (StandbyState.LOST, "standby_gone", True)


def test_one_that_was_lost_stays_lost_for_its_reason_until_it_stands() -> None:
    finding = judge(candidate(), {}, was(StandbyState.LOST, reason="standby_no_memory"))
    assert (*said(finding), finding.detail) == (StandbyState.LOST, "standby_no_memory", True, "in words")


def test_the_loss_of_another_digest_says_nothing_of_this_one() -> None:
    before = was(StandbyState.LOST, digest=B, reason="standby_no_memory")
    assert said(judge(candidate(), {}, before)) == (StandbyState.NONE, "not_loaded", True)


def test_a_stale_proof_loads_nothing() -> None:
    assert said(judge(candidate(stale=True), {}, None)) == (StandbyState.NONE, "proof_stale", False)


def test_what_stands_goes_on_standing_when_its_proof_becomes_stale() -> None:
    assert judge(candidate(stale=True), {A: ""}, was(StandbyState.STANDING)).state is StandbyState.STANDING


def test_one_that_is_ready_beside_files_that_were_written_is_lost() -> None:
    finding = judge(candidate(), {A: ""}, was(StandbyState.STANDING), untouched=False)
    assert said(finding) == (StandbyState.LOST, "standby_bytes_changed", True)


def test_a_later_proof_of_the_files_does_not_make_up_for_what_is_loaded() -> None:
    before = was(StandbyState.LOST, reason=BYTES_CHANGED)
    assert said(judge(candidate(), {A: ""}, before)) == (StandbyState.LOST, "standby_bytes_changed", True)


@pytest.mark.parametrize(
    ("count", "seconds"), [(0, 0), (1, 2), (2, 4), (3, 8), (7, 128), (8, 256), (9, 300), (10_000, 300)]
)
def test_the_pause_doubles_from_two_seconds_to_five_minutes(count: int, seconds: float) -> None:
    assert pause_s(count) == seconds


@pytest.mark.parametrize(("waited_s", "due"), [(0, False), (3, False), (4, True)])
def test_it_is_tried_again_once_the_pause_is_over(waited_s: int, due: bool) -> None:
    tries = Tries(digest=A, count=2, last_at=NOW)  # 2 s x 2
    assert is_due(tries, A, NOW.plus(waited_s * NS_PER_S)) is due


def test_another_digest_does_not_wait_for_the_pause_of_the_first() -> None:
    assert is_due(Tries(digest=A, count=9, last_at=NOW), B, NOW)


def test_tries_are_counted_for_one_digest() -> None:
    twice = after_try(after_try(None, A, NOW), A, NOW)
    assert (twice.count, after_try(twice, B, NOW).count) == (2, 1)


@pytest.mark.parametrize(("stood_s", "forgotten"), [(59, False), (60, True)])
def test_a_minute_of_standing_makes_up_for_earlier_tries(stood_s: int, forgotten: bool) -> None:
    tries = Tries(digest=A, count=5, last_at=NOW)
    assert (after_standing(tries, NOW.plus(stood_s * NS_PER_S)) is None) is forgotten
