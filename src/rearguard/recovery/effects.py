"""The effects of a rollback's steps: everything that touches the outside."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache
from typing import Any

from rearguard import loaders
from rearguard.checkpoints import golden, registry
from rearguard.checkpoints.verification import check_bytes, verify
from rearguard.database import sql
from rearguard.errors import (
    ConfigError,
    ConflictError,
    DependencyError,
    IntegrityError,
    RearguardError,
    RefusedError,
)
from rearguard.model.checkpoint import Checkpoint, CheckpointPolicy, ProofPolicy
from rearguard.model.run import Run
from rearguard.model.service import Digest
from rearguard.model.settings import PlaceSettings
from rearguard.model.time import NS_PER_S, Instant, elapsed
from rearguard.ports import Activation, Target
from rearguard.recovery.brakes import AUTOMATIC, RUN_EXPIRED, held_back
from rearguard.recovery.candidates import candidates
from rearguard.recovery.context import Deadline, RecoveryContext, keep_trying, waited_too_long
from rearguard.rules.restored import GOLDEN_DIFFERS

State = dict[str, Any]

LADDER_EXHAUSTED = "ladder_exhausted"
"""Every candidate was tried, and none of them restored the service."""
AGAINST_CHECKPOINT = frozenset({GOLDEN_DIFFERS, "golden_probe_failed", "slo_still_breached"})
"""Those that speak against the checkpoint itself, so that it is quarantined once a later rung has held."""
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
GIVE_UP_AFTER_S = 20.0
"""So many orders, over so long, are answered with an error before the next candidate is tried, when there is one: a
gateway that restarts is no reason to leave the best one. Chosen."""
_ANSWERED_NO = ("target_bad_answer", "target_failed", "target_refused")

ORDER_TIMEOUT_S = 60.0
"""One activation order may take this long: twice the limit of a cold load (R16)."""
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


def untried(state: State) -> list[State]:
    """The candidates that no rung has lost, best first."""
    return [c for c in state["candidates"] if c["digest"] not in state.get("tried", ())]


def verify_target(context: RecoveryContext, run: Run, state: State) -> State:
    """Prove the bytes of the first untried candidate that holds; t3 begins, t4 ends it. A second call proves again.

    A stale candidate is verified in full, cold load and golden predictions included. A fresh one is hashed in full up to
    the policy's size, above it the stat receipt of its last verification is enough (`t4_proof`), unless the policy demands
    the full hash.
    When none holds the run is refused, `no_verified_checkpoint`; those that failed are named in `unusable` either way, and
    in `passed_over` those that the surroundings kept from being proven: of them nothing is recorded.
    Raises `RefusedError` `run_expired` when an automatic run is taken up here after its deadline.
    """
    t3 = context.clock.now()
    if not state.get("tried") and _is_stale(context, run, _begun(run, state)):
        raise RefusedError(RUN_EXPIRED, f"{run.id} began longer ago than its deadline, and has not moved traffic")
    policy = context.settings.checkpoints
    failures: list[State] = []
    passed_over: list[State] = []
    for candidate in untried(state):
        with context.database.reading() as connection:
            checkpoint = registry.get(connection, candidate["digest"])
            receipt = registry.receipt_of(connection, candidate["digest"])
        if checkpoint is None:
            continue
        renewed: State | None = None
        # Built anew by this proof or by the order: the links are derived, and what is proven are the blobs.
        view_rebuilt = context.store.view_is_altered(checkpoint.digest, checkpoint.files)
        try:
            refuse_unsafe(checkpoint, policy)
            if checkpoint.golden_sha256:
                # Without them nothing could be proven after the switch.
                golden.decode(context.store.get_bytes(checkpoint.golden_sha256))
            proof = "full_hash"
            if candidate["stale"]:
                outcome = verify(checkpoint, context.store, policy, context.clock, view_must_stand=False)
                if not outcome.ok:
                    raise IntegrityError(outcome.code, outcome.message)
                renewed = asdict(outcome)
            elif (
                policy.proof is ProofPolicy.RECEIPT
                and checkpoint.size_bytes > policy.receipt_above_bytes
                and receipt
                and receipt == context.store.receipt(checkpoint.files)
            ):
                proof = "receipt"
            else:
                check_bytes(checkpoint, context.store, context.clock)
        except (IntegrityError, RefusedError) as error:
            failures.append({"digest": checkpoint.digest, "code": error.code, "message": error.message[:300]})
            continue
        except (ConflictError, DependencyError) as error:  # no word on the checkpoint, and the next may do at once
            passed_over.append({"digest": checkpoint.digest, "code": error.code, "message": error.message[:300]})
            continue
        return {
            "to_digest": checkpoint.digest,
            "to_version": checkpoint.version,
            "t4_proof": proof,
            "view_rebuilt": view_rebuilt,
            "renewed": renewed,
            "unusable": failures,
            "passed_over": passed_over,
            "t3": asdict(t3),
            "t4": asdict(context.clock.now()),
        }
    why = ", ".join(f"{f['digest'][7:19]}: {f['code']}" for f in (*failures, *passed_over))
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
    others = [c for c in untried(state) if c["digest"] != state.get("to_digest")]
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


@cache
def _runs_code(format_name: str) -> bool:
    """Whether loading this format runs code. Found out once a process: it reads what is installed.

    False for one that is not installed here (any more): a target of ours refuses it without an order for the sandbox.
    """
    try:
        return loaders.get_format(format_name).runs_code
    except ConfigError:
        return False


def refuse_unsafe(checkpoint: Checkpoint, policy: CheckpointPolicy) -> None:
    """Raises `RefusedError` `unsafe_format` when loading it runs code and the policy does not allow that (any more)."""
    if _runs_code(checkpoint.format):
        loaders.refuse_unsafe(loaders.get_format(checkpoint.format), policy.unsafe_formats)


def activation(
    context: RecoveryContext, checkpoint: Checkpoint, *, epoch: int, key: str, timeout_s: float = ORDER_TIMEOUT_S
) -> Activation:
    """The order to serve a checkpoint from its view; a fresh process warms up on a golden request, where there is one.

    Raises `RefusedError` `unsafe_format` when loading it runs code and the policy does not allow that (any more).
    """
    policy = context.settings.checkpoints
    refuse_unsafe(checkpoint, policy)
    warmup: dict[str, Any] | None = None
    if checkpoint.golden_sha256:
        warmup = golden.decode(context.store.get_bytes(checkpoint.golden_sha256)).requests[0]
    return Activation(
        digest=checkpoint.digest,
        version=checkpoint.version,
        format=checkpoint.format,
        path=str(context.store.view(checkpoint.digest, checkpoint.files).resolve()),
        trusted_types=policy.trusted_types,
        epoch=epoch,
        key=key,
        timeout_s=timeout_s,
        warmup=warmup,
        sandbox_memory_bytes=policy.sandbox_memory_bytes if _runs_code(checkpoint.format) else None,
    )


def deadline_of(context: RecoveryContext, run: Run, state: State, step: str) -> tuple[PlaceSettings, Deadline]:
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
    _, deadline = deadline_of(context, run, state, "activate")
    with context.database.reading() as connection:
        checkpoint = registry.get(connection, state["to_digest"])
    assert checkpoint is not None
    target = context.target_of(run.place)
    order = activation(context, checkpoint, epoch=state["epoch"], key=idempotency_key(run, state, "activate"))
    others = [c for c in untried(state) if c["digest"] != state["to_digest"]]
    orders, first = 0, context.clock.now()
    stale = _is_stale(context, run, Instant(**state["t4"]))  # read once: who goes on trying in time is not cut off
    warm: bool | None = None

    def give_order() -> None:
        nonlocal orders, warm
        context.still_in_office()
        serving = _serving(target)
        _refuse_stranger(serving, run, state)
        _stop_if_asked(context, serving, run, state, stale=stale)
        orders += 1
        timeout_s = min(ORDER_TIMEOUT_S, max(LAST_ORDER_TIMEOUT_S, deadline.remaining_s()))
        try:
            told = target.activate(replace(order, timeout_s=timeout_s))
            warm = told.warm if told is not None else None
        except DependencyError as error:
            waited_ns = elapsed(first, context.clock.now()).ns
            given_up = orders >= ORDERS_A_RUNG and waited_ns > GIVE_UP_AFTER_S * NS_PER_S
            if others and given_up and error.code in _ANSWERED_NO:
                raise GivenUp(error) from error
            raise

    try:
        keep_trying(context.pause, deadline, give_order)
    except GivenUp as given_up:
        raise given_up.error from given_up
    except Stopped as stopped:
        return {
            "failure": {"step": "activate", "state": stopped.state, "reason": stopped.reason, "message": str(stopped)}
        }
    return {"activated_at": asdict(context.clock.now()), "orders": orders, "warm": warm}


class GivenUp(Exception):
    """Not a `DependencyError`, so that it ends the trying at once."""

    def __init__(self, error: DependencyError) -> None:
        super().__init__(str(error))
        self.error = error


def idempotency_key(run: Run, state: State, step: str) -> str:
    """`run id:step`, with the rung's number from the second rung on."""
    rung = state.get("rung", 1)
    return f"{run.id}:{step}" if rung == 1 else f"{run.id}:{step}#{rung}"


class Stopped(Exception):
    """Somebody stopped the run before an order was given."""

    def __init__(self, state: str, reason: str, message: str) -> None:
        super().__init__(message)
        self.state = state
        self.reason = reason


def _serving(target: Target) -> Digest | None:
    """What the target says it serves; None also when it does not say, for then the order itself will tell."""
    try:
        return target.active()
    except RearguardError:
        return None


def _is_stale(context: RecoveryContext, run: Run, since: Instant) -> bool:
    """True when an automatic run has stood still for longer than its deadline: the service may be well by now."""
    if run.requested_by != AUTOMATIC:
        return False
    with context.database.reading() as connection:
        return waited_too_long(context, connection, run, since)


def _stop_if_asked(context: RecoveryContext, serving: Digest | None, run: Run, state: State, *, stale: bool) -> None:
    """Read the brakes once more right before an order (R30). Traffic that has moved is never abandoned."""
    if state.get("tried") or serving == state["to_digest"]:
        return
    if stale and serving is not None:
        raise Stopped("refused", RUN_EXPIRED, f"{run.id} was proven longer ago than its deadline; no order was given")
    settings = context.place_settings(run.place)
    with context.database.reading() as connection:
        brake = held_back(settings, connection, context.clock.now(), requested_by=run.requested_by)
        asked = connection.execute(sql("SELECT cancel_requested FROM runs WHERE id = :id"), {"id": run.id}).scalar()
    if brake is not None:
        state_word = "refused" if brake.refuses else "cancelled"
        raise Stopped(state_word, brake.value, f"{brake.value} holds {run.place}; no order was carried out")
    if asked:
        raise Stopped("cancelled", "cancelled", "cancelled before traffic moved")


def _refuse_stranger(serving: Digest | None, run: Run, state: State) -> None:
    known = {run.from_digest, state["to_digest"], *state.get("tried", ())}
    if serving is not None and run.from_digest is not None and serving not in known:
        raise RefusedError(
            "active_changed",
            f"{run.place} serves {serving}, not {run.from_digest} that this run takes out of traffic",
            "somebody else moved it; look, then `rearguard rollback plan`",
        )
