"""How a deployment that is activating ends: by the process that began it, or by whoever finds that this one has died.

Owns the sign of life of a deploy: a lock on a file of its own, `deployment-ID.lock` in the state directory, taken in the
transaction that opens the deployment and let go of by the kernel when the process dies. Law: one that is activating is
ended from outside only when its process is proven dead, or after `ORPHAN_S`; and it is called active only when the
target serves it and answers its golden predictions.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rearguard.checkpoints import registry
from rearguard.database import Connection, sql
from rearguard.errors import ConflictError, DependencyError, RearguardError
from rearguard.evidence.log import append
from rearguard.model.service import Digest, Place
from rearguard.model.time import NS_PER_S, Instant, elapsed
from rearguard.officer.office import Office
from rearguard.recovery import proof
from rearguard.recovery.context import Deadline

PROBE_DEADLINE_S = 30.0
ORPHAN_S = 120
"""A deployment that is activating for longer has lost its process: an order takes 60 s and its proof 30 s at most."""


@contextmanager
def sign_of_life(state: Path) -> Iterator[Callable[[int], None]]:
    """`begin(deployment_id)`, to be called in the transaction that opens it: from then on others see that it lives.

    The file stays until the deployment is concluded, so one that was interrupted is found dead. Raises
    `DependencyError` `state_not_writable`, so that nothing is opened without it.
    """
    handles: list[int] = []

    def begin(deployment_id: int) -> None:
        path = _path(state, deployment_id)
        try:
            handles.append(os.open(path, os.O_RDWR | os.O_CREAT, 0o644))
            fcntl.flock(handles[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DependencyError(
                "state_not_writable", f"cannot write {path}: {error.strerror}", "make the state folder writable"
            ) from error

    try:
        yield begin
    finally:
        for handle in handles:
            os.close(handle)


def has_died(state: Path, deployment_id: int) -> bool:
    """True when the process that began a deployment has let go of its lock; False also when nobody can tell."""
    try:
        handle = os.open(_path(state, deployment_id), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not take each other for it
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _path(state: Path, deployment_id: int) -> Path:
    return state / f"deployment-{deployment_id}.lock"


def refuse_open(state: Path, connection: Connection, place: Place, now: Instant) -> None:
    """Raises `ConflictError` `deployment_open` while another deploy is at work at the place, as far as anybody can tell."""
    for row in _activating(connection, place):
        if not _is_orphan(state, row, now):
            raise ConflictError(
                "deployment_open",
                f"{row.version} is being deployed to {place} since {registry.decode_instant(row.started_at).rfc3339()}",
                "wait for it: rearguard deployment list",
            )


def conclude_orphans(office: Office, place: Place) -> None:
    """End what a deploy that died left unfinished: active when the target serves it and answers right, else failed.

    Left alone while a rollback is open, and while the target does not answer.
    """
    now = office.clock.now()
    with office.database.reading() as connection:
        rows = _activating(connection, place)
        busy = open_run(connection, place)
    orphans = [row for row in rows if _is_orphan(office.state, row, now)]
    if not orphans or busy:
        return
    try:
        serving = office.target_of(place).active()
    except DependencyError:
        return
    for row in orphans:
        wrong = _wrong(office, place, row.digest) if row.digest == serving else None
        state = "active" if row.digest == serving and not wrong else "failed"
        body = {"digest": row.digest, "version": row.version, "code": "deploy_died"}
        if wrong is not None:
            body |= {"message": f"{wrong.code}: {wrong.message[:300]}"}
        with contextlib.suppress(ConflictError):
            conclude(office, place, row.id, office.ids.run_id(), state, body)


def _activating(connection: Connection, place: Place) -> list[Any]:
    return list(
        connection.execute(
            sql(
                "SELECT id, digest, version, started_at FROM deployments WHERE service = :service AND env = :env "
                "AND state = 'activating' AND source = 'deploy' ORDER BY id"
            ),
            {"service": place.service, "env": place.env},
        )
    )


def _is_orphan(state: Path, row: Any, now: Instant) -> bool:
    age_ns = elapsed(registry.decode_instant(row.started_at), now).ns
    return age_ns > ORPHAN_S * NS_PER_S or has_died(state, row.id)


def _wrong(office: Office, place: Place, digest: Digest) -> RearguardError | None:
    """What one round of golden requests found against a digest; None when it answers them all."""
    context = office.recovery_context()
    deadline = Deadline(office.clock, office.clock.now(), PROBE_DEADLINE_S)
    try:
        recorded = proof.load_golden(context, digest)
        proof.check_every_golden(context, office.target_of(place), recorded, digest, deadline)
    except RearguardError as error:
        return error
    return None


def open_run(connection: Connection, place: Place) -> str | None:
    """The rollback that holds a place."""
    found = connection.execute(
        sql("SELECT open_run_id FROM places WHERE service = :service AND env = :env"),
        {"service": place.service, "env": place.env},
    ).scalar()
    return str(found) if found else None


def end_others(connection: Connection, place: Place, deployment_id: int) -> None:
    """What was active before a deployment is not any more."""
    connection.execute(
        sql(
            "UPDATE deployments SET state = 'ended' WHERE service = :service AND env = :env AND state = 'active' AND id != :id"
        ),
        {"service": place.service, "env": place.env, "id": deployment_id},
    )


def conclude(office: Office, place: Place, deployment_id: int, run_id: str, state: str, body: dict[str, Any]) -> None:
    """End one that is activating. Raises `ConflictError` `deployment_overtaken` when it has been ended already."""
    with office.database.transaction() as connection:
        done = connection.execute(
            sql("UPDATE deployments SET state = :state WHERE id = :id AND state = 'activating'"),
            {"state": state, "id": deployment_id},
        )
        overtaken = None if done.rowcount else _overtaken(connection, place, deployment_id)
        if overtaken is None:
            if state == "active":
                end_others(connection, place, deployment_id)
            now, kind = office.clock.now(), f"deployment_{state}"
            append(connection, now=now, kind=kind, body=body, place=place, run_id=run_id)
    with contextlib.suppress(OSError):  # nobody asks for the life of one that has ended
        _path(office.state, deployment_id).unlink(missing_ok=True)
    if overtaken is not None:
        raise overtaken
    office.publish()


def _overtaken(connection: Connection, place: Place, deployment_id: int) -> ConflictError:
    """Who ended it, as the newest record that moves or concludes anything at the place has it."""
    newest = connection.execute(
        sql(
            "SELECT kind, run_id FROM evidence WHERE service = :service AND env = :env AND kind IN "
            "('traffic_switched', 'deployment_active', 'deployment_failed') ORDER BY id DESC LIMIT 1"
        ),
        {"service": place.service, "env": place.env},
    ).first()
    if newest is not None and newest.kind == "traffic_switched":
        return ConflictError(
            "deployment_overtaken",
            f"the rollback {newest.run_id} of {place} overtook this deployment",
            f"rearguard runs show {newest.run_id}",
        )
    state = connection.execute(sql("SELECT state FROM deployments WHERE id = :id"), {"id": deployment_id}).scalar()
    return ConflictError(
        "deployment_overtaken",
        f"this deployment to {place} was taken for dead and concluded as {state} meanwhile",
        "rearguard status; rearguard deployment list",
    )
