"""A round of golden requests, with a clock that only the answers advance."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rearguard.errors import TransientTargetError
from rearguard.model.checkpoint import GoldenPolicy
from rearguard.model.service import Digest
from rearguard.model.time import NS_PER_S, Instant
from rearguard.ports import ProbeAnswer, Target
from rearguard.recovery.context import Deadline, RecoveryContext
from rearguard.recovery.proof import check_every_golden
from rearguard.rules.golden import GoldenSet

DIGEST = Digest(f"sha256:{'a' * 64}")


@dataclass
class SlowTarget:
    """Each answer takes so long; the clock of the test is its own."""

    takes_s: float
    says: Digest = DIGEST
    now_s: float = 0.0
    limits_s: list[float] = field(default_factory=list)

    def now(self) -> Instant:
        return Instant(wall_ns=0, mono_ns=int(self.now_s * NS_PER_S), boot_id="b")

    def probe(self, _request: dict[str, Any], timeout_s: float) -> ProbeAnswer:
        self.limits_s.append(timeout_s)
        self.now_s += min(self.takes_s, timeout_s)
        if self.takes_s > timeout_s:
            raise TransientTargetError("target_timeout", "no answer")
        return ProbeAnswer(digest=self.says, response={"outputs": []}, latency_ms=1.0)


def one_round(target: SlowTarget, *, requests: int, deadline_s: float) -> str:
    """Code of what it raised, or empty."""
    policy = GoldenPolicy(rtol=0.0, atol=0.0)
    settings = SimpleNamespace(checkpoints=SimpleNamespace(golden=policy))
    context = cast(RecoveryContext, SimpleNamespace(settings=settings))
    recorded = GoldenSet(requests=({},) * requests, answers=((),) * requests)
    deadline = Deadline(cast(Any, target), Instant(wall_ns=0, mono_ns=0, boot_id="b"), deadline_s)
    try:
        check_every_golden(context, cast(Target, target), recorded, DIGEST, deadline)
    except TransientTargetError as error:
        return error.code
    return ""


def test_no_golden_request_is_begun_after_the_deadline() -> None:
    target = SlowTarget(takes_s=4.5)
    assert one_round(target, requests=6, deadline_s=6.0) == "target_timeout"
    assert len(target.limits_s) == 2


@pytest.mark.parametrize(("deadline_s", "limits_s"), [(60.0, [5.0, 5.0]), (6.0, [5.0, 1.5]), (5.0, [5.0, 1.0])])
def test_a_golden_request_may_take_what_is_left_and_a_second_at_least(deadline_s: float, limits_s: list[float]) -> None:
    target = SlowTarget(takes_s=4.5)
    one_round(target, requests=2, deadline_s=deadline_s)
    assert target.limits_s == limits_s


def test_a_round_that_begins_after_the_deadline_still_tells_that_another_digest_answers() -> None:
    target = SlowTarget(takes_s=0.1, says=Digest(f"sha256:{'b' * 64}"), now_s=9.0)
    assert one_round(target, requests=3, deadline_s=6.0) == "wrong_digest_answers"
