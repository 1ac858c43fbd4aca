"""The effects of a rollback's steps: everything that touches the outside."""

from __future__ import annotations

from dataclasses import asdict, replace
from decimal import Decimal
from typing import Any

from rearguard.checkpoints import golden, registry
from rearguard.checkpoints.verification import verify
from rearguard.database import sql
from rearguard.errors import DependencyError, IntegrityError, RearguardError, RefusedError, TransientTargetError
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.outcome import Outcome
from rearguard.model.run import Run
from rearguard.model.service import Digest
from rearguard.model.settings import PlaceSettings
from rearguard.model.time import NS_PER_S, Instant, elapsed
from rearguard.ports import Activation, ProbeAnswer, Target
from rearguard.recovery.candidates import candidates
from rearguard.recovery.context import Deadline, RecoveryContext, keep_trying
from rearguard.rules.golden import GoldenSet, difference
from rearguard.rules.restored import GOLDEN_DIFFERS, GoldenProbe, breaches_too, first_good_window, verdict_at_deadline
from rearguard.watch.watcher import GRACE_NS

State = dict[str, Any]

LADDER_EXHAUSTED = "ladder_exhausted"
"""Every candidate was tried, and none of them restored the service."""
LOST = frozenset(
    {
        GOLDEN_DIFFERS,
        "golden_probe_failed",
        "slo_still_breached",
        "target_bad_answer",
        "target_failed",
        "target_refused",
        "target_timeout",
    }
)
"""Failures after which the next candidate may do better. Not so an unreachable target, one that goes on answering with
another digest, or one that obeys a newer order."""
ORDERS_A_RUNG = 3
"""Orders that the target answers with an error before the next candidate is tried, when there is one. Chosen."""
_ANSWERED_NO = ("target_bad_answer", "target_failed", "target_refused")

ORDER_TIMEOUT_S = 60.0
"""One activation order may take this long: twice the limit of a cold load (R16)."""
LEAST_SPARE_S = 3.0
"""Beyond one window, for the first probes and the last lines of telemetry. Chosen."""
LAST_ORDER_TIMEOUT_S = 1.0
"""An order that is given at the deadline may still take this long. Chosen: a warm switch takes milliseconds."""


def nothing(_context: RecoveryContext, _run: Run, _state: State) -> State:
    """This step only records."""
    return {}


def select_target(context: RecoveryContext, run: Run, _state: State) -> State:
    """Choose the candidates, best first; t2 is when that is done. A second call chooses again from what is then true.

    Raises `RefusedError` `no_verified_checkpoint` (R28).
    """
    now = context.clock.now()
    with context.database.reading() as connection:
        wanted = connection.execute(sql("SELECT wanted_digest FROM runs WHERE id = :id"), {"id": run.id}).scalar()
        selection = candidates(
            connection,
            run.place,
            active=run.from_digest,
            policy=context.settings.checkpoints,
            now=now,
            wanted=Digest(wanted) if wanted else None,
        )
    if not selection.candidates:
        why = ", ".join(f"{r.version}: {r.reason}" for r in selection.rejected) or "no checkpoint is registered"
        raise RefusedError("no_verified_checkpoint", f"nothing proven to roll {run.place} back to ({why})")
    return {
        "candidates": [
            {"digest": c.checkpoint.digest, "version": c.checkpoint.version, "stale": c.stale}
            for c in selection.candidates
        ],
        "rejected": [asdict(r) for r in selection.rejected],
        "t2": asdict(context.clock.now()),
    }


def _untried(state: State) -> list[State]:
    return [c for c in state["candidates"] if c["digest"] not in state.get("tried", ())]


def verify_target(context: RecoveryContext, run: Run, state: State) -> State:
    """Prove the bytes of the first untried candidate that holds; t3 begins, t4 ends it. A second call proves again.

    A stale candidate is verified in full, cold load and golden predictions included. A fresh one is hashed in full up to
    the policy's size, above it the stat receipt of its last verification is enough (`t4_proof`).
    When none holds the run is refused, `no_verified_checkpoint`; those that failed are named in `unusable` either way.
    """
    t3 = context.clock.now()
    policy = context.settings.checkpoints
    failures: list[State] = []
    for candidate in _untried(state):
        with context.database.reading() as connection:
            checkpoint = registry.get(connection, candidate["digest"])
            receipt = registry.receipt_of(connection, candidate["digest"])
        if checkpoint is None:
            continue
        renewed: State | None = None
        try:
            context.store.get_bytes(checkpoint.golden_sha256)  # without them nothing could be proven after the switch
            proof = "full_hash"
            if candidate["stale"]:
                outcome = verify(checkpoint, context.store, policy)
                if not outcome.ok:
                    raise IntegrityError(outcome.code, outcome.message)
                renewed = asdict(outcome)
            elif checkpoint.size_bytes > policy.receipt_above_bytes and receipt == context.store.receipt(
                checkpoint.files
            ):
                proof = "receipt"
            else:
                for file in checkpoint.files:
                    context.store.check_file(file)
        except IntegrityError as error:
            failures.append({"digest": checkpoint.digest, "code": error.code, "message": error.message[:300]})
            continue
        return {
            "to_digest": checkpoint.digest,
            "to_version": checkpoint.version,
            "t4_proof": proof,
            "renewed": renewed,
            "unusable": failures,
            "t3": asdict(t3),
            "t4": asdict(context.clock.now()),
        }
    why = ", ".join(f"{f['digest'][7:19]}: {f['code']}" for f in failures)
    if state.get("tried"):
        message = f"{len(state['tried'])} tried, and no other candidate is what was registered ({why})"[:500]
        failure = {"step": "verify", "state": "failed", "reason": LADDER_EXHAUSTED, "message": message}
    else:
        message = f"no candidate is what was registered ({why})"[:500]
        failure = {"step": "verify", "state": "refused", "reason": "no_verified_checkpoint", "message": message}
    return {"failure": failure, "unusable": failures}


def is_lost(context: RecoveryContext, run: Run, state: State, failure: State) -> bool:
    """True when a failure speaks against the checkpoint and not against the target, and another one can still be tried.

    Another one is tried only while a whole window fits in before the run's deadline: traffic is never left on a
    checkpoint that nobody has time to prove.
    """
    if failure["reason"] not in LOST or failure["step"] == "verify":
        return False
    settings = context.settings.find(run.place)
    others = [c for c in _untried(state) if c["digest"] != state.get("to_digest")]
    if settings is None or not others:
        return False
    left_s = settings.recovery.deadline_s - elapsed(_begun(run, state), context.clock.now()).ns / NS_PER_S
    return left_s > settings.recovery.window_s


def _begun(run: Run, state: State) -> Instant:
    return Instant(**state["begun_at"]) if state.get("begun_at") else run.requested_at


def note_attempt(context: RecoveryContext, run: Run, step: str) -> None:
    """Count an attempt at an outside effect before it is made, so that one which kills the officer is counted too."""
    now = registry.encode_instant(context.clock.now())
    with context.database.transaction() as connection:
        connection.execute(
            sql(
                "INSERT INTO attempts (run_id, step, tries, first_at, last_at) VALUES (:run, :step, 1, :now, :now) "
                "ON CONFLICT (run_id, step) DO UPDATE SET tries = tries + 1, last_at = :now"
            ),
            {"run": run.id, "step": step, "now": now},
        )


def note_attempt_failed(context: RecoveryContext, run: Run, step: str, error: str) -> None:
    """Keep why an attempt came to nothing."""
    with context.database.transaction() as connection:
        connection.execute(
            sql("UPDATE attempts SET last_error = :error WHERE run_id = :run AND step = :step"),
            {"run": run.id, "step": step, "error": error[:500]},
        )


def activation(
    context: RecoveryContext, checkpoint: Checkpoint, *, epoch: int, key: str, timeout_s: float = ORDER_TIMEOUT_S
) -> Activation:
    """The order to serve a checkpoint from its view; a fresh process warms up on a golden request."""
    recorded = golden.decode(context.store.get_bytes(checkpoint.golden_sha256))
    return Activation(
        digest=checkpoint.digest,
        version=checkpoint.version,
        format=checkpoint.format,
        path=str(context.store.view(checkpoint.digest, checkpoint.files).resolve()),
        trusted_types=context.settings.checkpoints.trusted_types,
        epoch=epoch,
        key=key,
        timeout_s=timeout_s,
        warmup=recorded.requests[0],
    )


def _deadline(context: RecoveryContext, run: Run, state: State, step: str) -> tuple[PlaceSettings, Deadline]:
    """The earlier of the run's deadline (policy) and the step's own (playbook), which begins with this call."""
    settings = context.place_settings(run.place)
    declared = next(s.timeout_s for s in context.playbook.steps if s.name == step)
    now = context.clock.now()
    left_s = settings.recovery.deadline_s - elapsed(_begun(run, state), now).ns / NS_PER_S
    return settings, Deadline(context.clock, now, max(0.0, min(left_s, declared)))


def activate(context: RecoveryContext, run: Run, state: State) -> State:
    """Order the target to serve the checkpoint. A second call carries the same key, so the target changes nothing.

    An unreachable target is asked again until the run's deadline; it never loses what it serves meanwhile. No order
    outlasts the deadline by more than `LAST_ORDER_TIMEOUT_S`, so a target that hangs does not hold the run.
    Raises `RefusedError` `active_changed` when the target serves what this run knows nothing of: somebody else has
    moved it since, and for a target that compares no epochs this look is the only fence (residual window: limits.md).
    """
    _, deadline = _deadline(context, run, state, "activate")
    with context.database.reading() as connection:
        checkpoint = registry.get(connection, state["to_digest"])
    assert checkpoint is not None
    target = context.target_of(run.place)
    order = activation(context, checkpoint, epoch=state["epoch"], key=idempotency_key(run, state, "activate"))
    others = [c for c in _untried(state) if c["digest"] != state["to_digest"]]
    orders = 0

    def give_order() -> None:
        nonlocal orders
        context.still_in_office()
        _refuse_stranger(target, run, state)
        orders += 1
        timeout_s = min(ORDER_TIMEOUT_S, max(LAST_ORDER_TIMEOUT_S, deadline.remaining_s()))
        try:
            target.activate(replace(order, timeout_s=timeout_s))
        except DependencyError as error:
            if others and orders >= ORDERS_A_RUNG and error.code in _ANSWERED_NO:
                raise GivenUp(error) from error
            raise

    try:
        keep_trying(context.pause, deadline, give_order)
    except GivenUp as given_up:
        raise given_up.error from given_up
    return {"activated_at": asdict(context.clock.now()), "orders": orders}


class GivenUp(Exception):
    """Not a `DependencyError`, so that it ends the trying at once."""

    def __init__(self, error: DependencyError) -> None:
        super().__init__(str(error))
        self.error = error


def idempotency_key(run: Run, state: State, step: str) -> str:
    """`run id:step`, with the rung's number from the second rung on."""
    rung = state.get("rung", 1)
    return f"{run.id}:{step}" if rung == 1 else f"{run.id}:{step}#{rung}"


def _refuse_stranger(target: Target, run: Run, state: State) -> None:
    try:
        serving = target.active()
    except RearguardError:
        return  # the order itself will tell
    known = {run.from_digest, state["to_digest"], *state.get("tried", ())}
    if serving is not None and run.from_digest is not None and serving not in known:
        raise RefusedError(
            "active_changed",
            f"{run.place} serves {serving}, not {run.from_digest} that this run takes out of traffic",
            "somebody else moved it; look, then `rearguard rollback plan`",
        )


def load_golden(context: RecoveryContext, digest: Digest | str) -> GoldenSet:
    """The recorded predictions of a checkpoint."""
    with context.database.reading() as connection:
        checkpoint = registry.get(connection, digest)
    assert checkpoint is not None
    return golden.decode(context.store.get_bytes(checkpoint.golden_sha256))


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


def probe(context: RecoveryContext, run: Run, state: State) -> State:
    """Repeat every golden prediction over the data plane; t5 is when the restored digest answered them all.

    A second call asks again; t5 is then later, never earlier.
    """
    _, deadline = _deadline(context, run, state, "probe")
    target = context.target_of(run.place)
    recorded = load_golden(context, state["to_digest"])

    def all_answer() -> None:
        for index in range(len(recorded.requests)):
            check_golden(context, target, recorded, index, state["to_digest"], 5.0)

    keep_trying(context.pause, deadline, all_answer)
    return {"t5": asdict(context.clock.now()), "golden_answered": len(recorded.requests)}


def hold_window(context: RecoveryContext, run: Run, state: State) -> State:
    """Wait for the first window in which every SLO and golden prediction holds; t6 and t7 bound it.

    Telemetry is read from before t5, so a second call sees the traffic of the first; golden probes begin anew.
    """
    settings, deadline = _deadline(context, run, state, "window")
    policy = settings.recovery
    # A switch that was made is given the time to prove itself, also when its officer came too late (a host that was down).
    least_s = policy.window_s + LEAST_SPARE_S
    if deadline.remaining_s() < least_s:
        deadline = Deadline(context.clock, context.clock.now(), least_s)
    feed = context.feed_of(run.place)
    target = context.target_of(run.place)
    digest = Digest(state["to_digest"])
    recorded = load_golden(context, digest)
    ready = Instant(**state["t5"])
    probes: list[GoldenProbe] = []
    count = 0
    while True:
        probes.append(_golden_probe(context, target, recorded, count % len(recorded.requests), digest))
        count += 1
        now = context.clock.now()
        feed.catch_up(now)
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
        if found.outcome is Outcome.PASS:
            assert found.t6_mono_ns is not None
            assert found.t7_mono_ns is not None
            return {
                "t6": asdict(now.plus(found.t6_mono_ns - now.mono_ns)),
                "t7": asdict(now.plus(found.t7_mono_ns - now.mono_ns)),
                "judged_by": found.judged_by,
                "window_samples": found.samples,
                "window_probes": len(probes),
            }
        others = [c for c in _untried(state) if c["digest"] != digest]
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
            message = f"no good window of {policy.window_s} s within {policy.deadline_s} s"
            return {"failure": {"step": "window", "state": kind, "reason": verdict.reason, "message": message}}
        context.pause(policy.probe_every_ms / 1000)


def _golden_probe(
    context: RecoveryContext, target: Target, recorded: GoldenSet, index: int, digest: Digest
) -> GoldenProbe:
    try:
        answer = check_golden(context, target, recorded, index, digest, 5.0)
        return GoldenProbe(
            at_mono_ns=context.clock.now().mono_ns, ok=True, reason="", latency_ms=Decimal(str(answer.latency_ms))
        )
    except RearguardError as error:
        return GoldenProbe(at_mono_ns=context.clock.now().mono_ns, ok=False, reason=error.code, latency_ms=None)
