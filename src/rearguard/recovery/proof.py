"""The proof of a switch: golden predictions answered by the restored digest, and a whole window in which every SLO holds."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from decimal import Decimal
from typing import Any

from rearguard.checkpoints import golden, registry
from rearguard.errors import DependencyError, IntegrityError, RearguardError, TransientTargetError
from rearguard.model.outcome import Outcome
from rearguard.model.run import Run
from rearguard.model.service import Digest
from rearguard.model.time import NS_PER_S, Instant
from rearguard.ports import ProbeAnswer, Target
from rearguard.recovery.context import Deadline, RecoveryContext, keep_trying
from rearguard.recovery.effects import deadline_of, untried
from rearguard.rules.golden import GoldenSet, difference
from rearguard.rules.restored import GOLDEN_DIFFERS, GoldenProbe, breaches_too, first_good_window, verdict_at_deadline
from rearguard.watch.feed import Feed
from rearguard.watch.watcher import GRACE_NS

State = dict[str, Any]

NO_GOLDEN = GoldenSet(requests=(), answers=())
NEVER_ENOUGH = sys.maxsize
"""As the minimum of golden probes of a window: no number of looks that are none of its answers decides it."""
LEAST_SPARE_S = 3.0
"""Beyond one window, for the first probes and the last lines of telemetry. Chosen."""


ANSWER_S = 5.0
"""One golden request may take so long."""
LAST_ANSWER_S = 1.0
"""One that is asked at the deadline may still take this long. Chosen, as for an order."""
LEAST_PROBE_S = 5.0
"""For the probe of a switch that was made at the run's deadline, or found made after it. Chosen: one slow answer."""


def load_golden(context: RecoveryContext, digest: Digest | str) -> GoldenSet:
    """The recorded predictions of a checkpoint; an empty set for one that is proven by its state alone."""
    with context.database.reading() as connection:
        checkpoint = registry.get(connection, digest)
    assert checkpoint is not None
    if not checkpoint.golden_sha256:
        return NO_GOLDEN
    return golden.decode(context.store.get_bytes(checkpoint.golden_sha256))


def check_active(target: Target, digest: Digest | str) -> None:
    """Raises `TransientTargetError` `wrong_digest_answers` when the target says that it serves another digest."""
    serves = target.active()
    if serves != digest:
        raise TransientTargetError("wrong_digest_answers", f"the target serves {serves}, expected {digest}")


def check_golden(
    context: RecoveryContext, target: Target, recorded: GoldenSet, index: int, digest: Digest | str, timeout_s: float
) -> ProbeAnswer:
    """Ask the data plane one golden request.

    Raises `TransientTargetError` `wrong_digest_answers` when another digest answered, `IntegrityError`
    `golden_differs` when the right one answered something else.
    """
    answer = target.probe(recorded.requests[index], timeout_s)
    answered = answer.digest if answer.digest is not None else target.active()
    if answered != digest:
        raise TransientTargetError("wrong_digest_answers", f"{answered} answered, expected {digest}")
    why = difference(recorded.answers[index], answer.response.get("outputs", []), context.settings.checkpoints.golden)
    if why:
        raise IntegrityError(GOLDEN_DIFFERS, f"golden request {index + 1}: {why}")
    return answer


def check_every_golden(
    context: RecoveryContext, target: Target, recorded: GoldenSet, digest: Digest | str, deadline: Deadline
) -> None:
    """One round of all golden requests; but for the first, none is begun after the deadline.

    None may take much longer than what is left (`LAST_ANSWER_S`). Without any, the target is asked which digest it serves.
    Raises as `check_golden` and `check_active`, and `TransientTargetError`
    `target_timeout` when the deadline passed within the round.
    """
    for index in range(len(recorded.requests)):
        left_s = deadline.remaining_s()
        if left_s <= 0 and index > 0:  # the first one tells what is wrong, also when the round begins too late
            answered = f"{index} of {len(recorded.requests)} golden requests were answered before the deadline"
            raise TransientTargetError("target_timeout", answered)
        check_golden(context, target, recorded, index, digest, min(ANSWER_S, max(LAST_ANSWER_S, left_s)))
    if not recorded.requests:
        check_active(target, digest)


def probe(context: RecoveryContext, run: Run, state: State) -> State:
    """Repeat every golden prediction over the data plane; t5 is when the restored digest answered them all.

    A checkpoint without a golden set has nothing to repeat: t5 is then when the target said that it serves it.
    A second call asks again; t5 is then later, never earlier.
    """
    _, deadline = deadline_of(context, run, state, "probe")
    if deadline.remaining_s() < LEAST_PROBE_S:  # a switch that was made is given the time to prove itself
        deadline = Deadline(context.clock, context.clock.now(), LEAST_PROBE_S)
    target = context.target_of(run.place)
    recorded = load_golden(context, state["to_digest"])
    digest = state["to_digest"]
    keep_trying(context.pause, deadline, lambda: check_every_golden(context, target, recorded, digest, deadline))
    return {"t5": asdict(context.clock.now()), "golden_answered": len(recorded.requests)}


def hold_window(context: RecoveryContext, run: Run, state: State) -> State:
    """Wait for the first window in which every SLO and golden prediction holds; t6 and t7 bound it.

    Telemetry is read from before t5, so a second call sees the traffic of the first; golden probes begin anew.
    Without a golden set only traffic can judge: asking the target what it serves says nothing of its answers.
    """
    settings, deadline = deadline_of(context, run, state, "window")
    policy = settings.recovery
    # A switch that was made is given the time to prove itself, also when its officer came too late (a host that was down).
    least_s = policy.window_s + LEAST_SPARE_S
    if deadline.remaining_s() < least_s:
        deadline = Deadline(context.clock, context.clock.now(), least_s)
    feed = context.feed_of(run.place)
    target = context.target_of(run.place)
    digest = Digest(state["to_digest"])
    recorded = load_golden(context, digest)
    if not recorded.requests:
        policy = replace(policy, min_probes=NEVER_ENOUGH)
    ready = Instant(**state["t5"])
    probes: list[GoldenProbe] = []
    count = 0
    while True:
        probes.append(_golden_probe(context, target, recorded, count, digest))
        count += 1
        now = context.clock.now()
        unreadable = _catch_up(feed, now)
        # After a reboot the monotonic clock began anew: the window then starts with this process.
        ready_ns = ready.mono_ns if ready.boot_id == now.boot_id else probes[0].at_mono_ns
        seconds = feed.counts.seconds(digest, ready_ns // NS_PER_S, now.mono_ns // NS_PER_S + 1)
        limits = feed.limits_of(digest)
        found = first_good_window(
            ready_mono_ns=ready_ns,
            now_mono_ns=now.mono_ns - GRACE_NS,
            seconds=seconds,
            probes=tuple(probes),
            policy=policy,
            limits=limits,
        )
        if found.outcome is Outcome.PASS and not unreadable:
            assert found.t6_mono_ns is not None
            assert found.t7_mono_ns is not None
            return {
                "t6": asdict(now.plus(found.t6_mono_ns - now.mono_ns)),
                "t7": asdict(now.plus(found.t7_mono_ns - now.mono_ns)),
                "judged_by": found.judged_by,
                "window_samples": found.samples,
                "window_probes": len(probes),
            }
        others = [c for c in untried(state) if c["digest"] != digest]
        lost = others and breaches_too(
            ready_mono_ns=ready_ns,
            now_mono_ns=now.mono_ns - GRACE_NS,
            seconds=seconds,
            probes=tuple(probes),
            policy=policy,
            limits=limits,
        )
        if lost:
            message = f"{state['to_version']} breaches too: the last two windows of {policy.window_s} s were bad"
            return {"failure": {"step": "window", "state": "failed", "reason": lost, "message": message}}
        if deadline.passed():
            verdict = verdict_at_deadline(
                ready_mono_ns=ready_ns,
                now_mono_ns=now.mono_ns,
                seconds=seconds,
                probes=tuple(probes),
                policy=policy,
                limits=limits,
            )
            kind = "failed" if verdict.outcome is Outcome.FAIL else "inconclusive"
            reason = unreadable if unreadable and kind != "failed" else verdict.reason
            message = f"no good window of {policy.window_s} s within {policy.deadline_s} s"
            return {"failure": {"step": "window", "state": kind, "reason": reason, "message": message}}
        context.pause(policy.probe_every_ms / 1000)


def _catch_up(feed: Feed, now: Instant) -> str:
    """Read what is new; the code of why it could not be read, or empty. A source may be away for a moment (a rotation)."""
    try:
        feed.catch_up(now)
    except DependencyError as error:
        return error.code
    return ""


def _golden_probe(
    context: RecoveryContext, target: Target, recorded: GoldenSet, index: int, digest: Digest
) -> GoldenProbe:
    """One look at the data plane, `index` counting them; without a golden set, at what the target says that it serves."""
    try:
        if not recorded.requests:
            check_active(target, digest)
            return GoldenProbe(at_mono_ns=context.clock.now().mono_ns, ok=True, reason="", latency_ms=None)
        answer = check_golden(context, target, recorded, index % len(recorded.requests), digest, ANSWER_S)
        return GoldenProbe(
            at_mono_ns=context.clock.now().mono_ns, ok=True, reason="", latency_ms=Decimal(str(answer.latency_ms))
        )
    except RearguardError as error:
        return GoldenProbe(at_mono_ns=context.clock.now().mono_ns, ok=False, reason=error.code, latency_ms=None)
