"""The effects of a rollback's steps: everything that touches the outside."""

from __future__ import annotations

from dataclasses import asdict, replace
from decimal import Decimal
from typing import Any

from rearguard.checkpoints import golden, registry
from rearguard.checkpoints.verification import verify
from rearguard.database import Connection, sql
from rearguard.errors import IntegrityError, RearguardError, RefusedError, TransientTargetError
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.outcome import Outcome
from rearguard.model.run import Run
from rearguard.model.service import Digest, Place
from rearguard.model.settings import PlaceSettings
from rearguard.model.time import NS_PER_S, Instant, elapsed
from rearguard.ports import Activation, ProbeAnswer, Target
from rearguard.recovery.context import Deadline, RecoveryContext, keep_trying
from rearguard.rules.golden import GoldenSet, difference
from rearguard.rules.restored import GoldenProbe, first_good_window, verdict_at_deadline
from rearguard.rules.selection import select
from rearguard.watch.watcher import GRACE_NS

State = dict[str, Any]

ORDER_TIMEOUT_S = 60.0
"""One activation order may take this long: twice the limit of a cold load (R16)."""
LAST_ORDER_TIMEOUT_S = 1.0
"""An order that is given at the deadline may still take this long. Chosen: a warm switch takes milliseconds."""


def nothing(_context: RecoveryContext, _run: Run, _state: State) -> State:
    """This step only records."""
    return {}


def served_digests(connection: Connection, place: Place) -> tuple[Digest, ...]:
    """Digests whose newest deployment at a place served and was not rolled back, oldest first."""
    rows = connection.execute(
        sql(
            "SELECT digest FROM deployments WHERE id IN (SELECT MAX(id) FROM deployments WHERE service = :service "
            "AND env = :env AND state IN ('active', 'ended', 'rolled_back') GROUP BY digest) "
            "AND state IN ('active', 'ended') ORDER BY id"
        ),
        {"service": place.service, "env": place.env},
    )
    return tuple(Digest(row.digest) for row in rows)


def select_target(context: RecoveryContext, run: Run, _state: State) -> State:
    """Choose the candidates, best first; t2 is when that is done. A second call chooses again from what is then true.

    Raises `RefusedError` `no_verified_checkpoint` (R28).
    """
    now = context.clock.now()
    with context.database.reading() as connection:
        wanted = connection.execute(sql("SELECT wanted_digest FROM runs WHERE id = :id"), {"id": run.id}).scalar()
        selection = select(
            checkpoints=registry.list_all(connection, run.place.service),
            active=run.from_digest,
            quarantined=registry.quarantined(connection, run.place),
            served=served_digests(connection, run.place),
            wanted=Digest(wanted) if wanted else None,
            policy=context.settings.checkpoints,
            now=now,
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


def verify_target(context: RecoveryContext, run: Run, state: State) -> State:
    """Prove the bytes of the first candidate that holds; t3 begins, t4 ends it. A second call proves again.

    A stale candidate is verified in full, cold load and golden predictions included. A fresh one is hashed in full up to
    the policy's size, above it the stat receipt of its last verification is enough (`t4_proof`).
    When none holds the run is refused, `no_verified_checkpoint`; those that failed are named in `unusable` either way.
    """
    t3 = context.clock.now()
    policy = context.settings.checkpoints
    failures: list[State] = []
    for candidate in state["candidates"]:
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
    message = f"no candidate is what was registered ({why})"[:500]
    failure = {"step": "verify", "state": "refused", "reason": "no_verified_checkpoint", "message": message}
    return {"failure": failure, "unusable": failures}


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
    begun = Instant(**state["begun_at"]) if state.get("begun_at") else run.requested_at
    left_s = settings.recovery.deadline_s - elapsed(begun, now).ns / NS_PER_S
    return settings, Deadline(context.clock, now, max(0.0, min(left_s, declared)))


def activate(context: RecoveryContext, run: Run, state: State) -> State:
    """Order the target to serve the checkpoint. A second call carries the same key, so the target changes nothing.

    An unreachable target is asked again until the run's deadline; it never loses what it serves meanwhile. No order
    outlasts the deadline by more than `LAST_ORDER_TIMEOUT_S`, so a target that hangs does not hold the run.
    """
    _, deadline = _deadline(context, run, state, "activate")
    with context.database.reading() as connection:
        checkpoint = registry.get(connection, state["to_digest"])
    assert checkpoint is not None
    target = context.target_of(run.place)
    order = activation(context, checkpoint, epoch=state["epoch"], key=f"{run.id}:activate")

    def give_order() -> None:
        timeout_s = min(ORDER_TIMEOUT_S, max(LAST_ORDER_TIMEOUT_S, deadline.remaining_s()))
        target.activate(replace(order, timeout_s=timeout_s))

    keep_trying(context.pause, deadline, give_order)
    return {"activated_at": asdict(context.clock.now())}


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
        raise IntegrityError("golden_differs", f"golden request {index + 1}: {why}")
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
