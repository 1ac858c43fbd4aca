"""The second copy: every registered checkpoint on another disk as well, read back from there, and mended when it rots.

Owns the order of the work and what is told of it; the place itself is a `ports.CheckpointCopy`. A disk that is away, full or
read-only is recorded and paged once, and costs nothing else: the job has a thread of its own. It works at the pace of the
scrub, and a copy is read back as often as a checkpoint is verified.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rearguard.checkpoints import collection, copies, faults, layout, mirror, registry, registry_file
from rearguard.checkpoints.copies import Copy, MirrorRow
from rearguard.checkpoints.hashing import HINT, HashMode, Pace, Reading
from rearguard.database import Connection, sql
from rearguard.errors import ConfigError, ConflictError, IntegrityError, RearguardError
from rearguard.evidence.log import append
from rearguard.handoffs import outbox
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.service import Digest, Place
from rearguard.model.time import NS_PER_S, Instant, elapsed
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.ports import CheckpointCopy, Message
from rearguard.rules import scrub

LOOK_S = 60.0
"""Between two looks at what is behind."""
SOURCE_RETRY_S = 3600
"""A checkpoint whose own blobs are at fault is tried again no sooner. Chosen."""
CAUSE = "mirror"


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorStanding:
    """How the second copy stands, as recorded; the folder itself is not asked."""

    folder: str
    """Empty: none is declared."""
    domain: str
    in_step_at: Instant | None
    copied: int
    """Registered checkpoints whose copy was read back."""
    behind: tuple[str, ...]
    """`service version` of the others."""
    failure: str
    message: str


@operation(Effect.READ)
def standing(office: Office) -> MirrorStanding:
    """How the second copy stands."""
    folder = office.settings.checkpoints.mirror
    with office.database.reading() as connection:
        known = copies.mirror(connection, folder) if folder else None
        there = copies.of_folder(connection, folder) if folder else {}
        rows = connection.execute(sql("SELECT digest, service, version FROM checkpoints ORDER BY rowid")).all()
    holding = {digest for digest, copy in there.items() if copy.holds}
    return MirrorStanding(
        folder=folder,
        domain=known.domain if known else "",
        in_step_at=known.in_step_at if known else None,
        copied=sum(Digest(row.digest) in holding for row in rows),
        behind=tuple(f"{row.service} {row.version}" for row in rows if Digest(row.digest) not in holding),
        failure=known.failure if known else "",
        message=known.message if known else "",
    )


@operation(Effect.COMMIT)
def bring_in_step(
    office: Office, *, anew: bool = False, progress: Callable[[str], None] = lambda _line: None
) -> MirrorStanding:
    """Copy what is behind now, as fast as the machine can, and read back what is due; see `Mirroring`.

    `anew`: a new and empty disk stands where the old one was. Raises `ConfigError` `mirror_not_declared`, `ConflictError`
    `mirror_busy`, `DependencyError` `mirror_unavailable` or `mirror_full`, `RefusedError` `mirror_foreign` or
    `mirror_not_empty`, `IntegrityError` of the first checkpoint whose own bytes are at fault.
    """
    folder = office.settings.checkpoints.mirror
    if not folder:
        raise ConfigError(
            "mirror_not_declared",
            f"{office.settings.file} names no second copy",
            "declare a folder on another disk as checkpoints.mirror",
        )
    done = _Pass(office, folder, Reading(mode=HashMode.DIRECT), lambda name, fields: progress(_line(name, fields)))
    done.run(anew=anew)
    if done.faults:
        raise done.faults[0]
    return standing(office)


def _line(name: str, fields: dict[str, Any]) -> str:
    return " ".join([name, *(str(value) for value in fields.values())])


def open_copy(office: Office, reading: Reading) -> CheckpointCopy | None:
    """The declared second copy, for whoever reads from it; None when there is none, or it was never taken into use."""
    folder = office.settings.checkpoints.mirror
    with office.database.reading() as connection:
        name = copies.known_store_id(connection)
    return mirror.FolderMirror(Path(folder), name, reading) if folder and name else None


class Mirroring:
    """The housekeeping job `second_copy`. `turn` is called by one thread, `stop` by any."""

    def __init__(
        self, office: Office, notify: Callable[[str, dict[str, Any]], None], allowed: Callable[[], bool] = lambda: True
    ) -> None:
        """`allowed` is asked before each checkpoint: an officer that was replaced copies nothing more."""
        self._office = office
        self._notify = notify
        self._allowed = allowed
        self._stop = threading.Event()
        self._tried: dict[Digest, Instant] = {}

    def stop(self) -> None:
        """Copy no more; a blob that was begun is begun again by the next officer."""
        self._stop.set()

    def turn(self) -> None:
        """One pass over what is behind or due; nothing without a declared folder. Raises as `bring_in_step`."""
        folder = self._office.settings.checkpoints.mirror
        if self._stop.is_set():
            return
        if not folder:
            self._forget()
            return
        pace = Pace(
            self._office.settings.checkpoints.scrub_bytes_s,
            now_ns=lambda: self._office.clock.now().mono_ns,
            wait=self._stop.wait,
        )
        reading = Reading(mode=HashMode.DIRECT, pace=pace, stop=self._stop)
        work = _Pass(self._office, folder, reading, self._notify, self._allowed, self._tried)
        try:
            work.run()
        except ConflictError as error:
            if error.code not in ("hash_stopped", "mirror_busy"):
                raise

    def _forget(self) -> None:
        """What was copied while one was declared is kept in no step any more, and counts as no copy."""
        with self._office.database.reading() as connection:
            known = connection.execute(sql("SELECT 1 FROM copies LIMIT 1")).first()
        if known is not None:
            with self._office.database.transaction() as connection:
                copies.forget_other_folders(connection, "")
            self._office.publish(registry_changed=True)


@dataclass(slots=True)
class _Pass:
    """One pass."""

    office: Office
    folder: str
    reading: Reading
    notify: Callable[[str, dict[str, Any]], None]
    allowed: Callable[[], bool] = lambda: True
    tried: dict[Digest, Instant] = field(default_factory=dict)
    """When a checkpoint whose own bytes are at fault was last tried."""
    right: set[str] = field(default_factory=set)
    """Blobs whose copy was read back in this pass: several checkpoints share them."""
    faults: list[IntegrityError] = field(default_factory=list)

    def run(self, *, anew: bool = False) -> None:
        """Everything, in order. A failure of the place is recorded, told once, and raised."""
        with _alone(self.office.state):
            try:
                place = self._open(anew)
                for digest in self._due():
                    self._copy(place, digest)
                self._remove(place)
                self._publish(place)
            except RearguardError as error:
                if error.code.startswith("mirror_"):
                    self._failed(error)
                raise
            self._in_step()

    def _open(self, anew: bool) -> CheckpointCopy:
        with self.office.database.reading() as connection:
            name = copies.known_store_id(connection)
        if not name:
            with self.office.database.transaction() as connection:
                name = copies.store_id(connection, self.office.ids)
        place = mirror.FolderMirror(Path(self.folder), name, self.reading)
        known = self._row()
        place.prepare(known=known.marked_at is not None, anew=anew)
        place.sweep()
        domain = place.domain()
        if known.marked_at is None or anew or known.domain != domain:
            with self.office.database.transaction() as connection:
                if anew:
                    copies.forget_folder(connection, self.folder)
                copies.forget_other_folders(connection, self.folder)
                at = known.marked_at or self.office.clock.now()
                copies.put_mirror(connection, replace(known, marked_at=at, domain=domain))
        return place

    def _row(self) -> MirrorRow:
        with self.office.database.reading() as connection:
            found = copies.mirror(connection, self.folder)
        nothing = MirrorRow(folder=self.folder, domain="", marked_at=None, in_step_at=None, failure="", message="")
        return found or nothing

    def _due(self) -> Iterator[Digest]:
        """What has no copy, newest first, then copies whose last look is too long ago, oldest first."""
        interval_s = self.office.settings.checkpoints.reverify_every_s
        with self.office.database.reading() as connection:
            there = copies.of_folder(connection, self.folder)
            rows = connection.execute(sql("SELECT digest FROM checkpoints ORDER BY rowid DESC")).all()
        behind = [Digest(row.digest) for row in rows if not (row.digest in there and there[Digest(row.digest)].holds)]
        for digest in behind:
            last = self.tried.get(digest)
            if last is None or elapsed(last, self.office.clock.now()).ns >= SOURCE_RETRY_S * NS_PER_S:
                self._go_on()
                yield digest
        seen: set[Digest] = set()
        while True:
            with self.office.database.reading() as connection:
                there = copies.of_folder(connection, self.folder)
            proofs = [(d, c.verified_at) for d, c in there.items() if c.verified_at is not None and d not in seen]
            due = scrub.next_due(proofs, interval_s=interval_s, now=self.office.clock.now())
            if due is None:
                return
            self._go_on()
            seen.add(due)
            yield due

    def _go_on(self) -> None:
        stopped = self.reading.stop is not None and self.reading.stop.is_set()
        if stopped or not self.allowed():
            raise ConflictError("hash_stopped", "the copy was stopped", "run it again")

    def _copy(self, place: CheckpointCopy, digest: Digest) -> None:
        """Bring one checkpoint's copy in step and note it; a second call reads it back and changes nothing."""
        with self.office.database.reading() as connection:
            checkpoint = registry.get(connection, digest)
            before = copies.of_folder(connection, self.folder).get(digest)
        if checkpoint is None:
            return
        held = before is not None and before.holds
        mended = []
        try:
            for sha256 in sorted(layout.blobs_of(checkpoint)):
                code = self._settle(place, sha256)
                if code and (held or code != "blob_missing"):
                    mended.append({"sha256": sha256, "code": code})
        except IntegrityError as error:  # of the store: what is at fault there is not copied over
            with self.office.database.reading() as connection:
                if registry.get(connection, digest) is None:  # retired meanwhile
                    return
            self.faults.append(error)
            self.tried[digest] = self.office.clock.now()
            self._note(checkpoint, Copy(domain=place.domain(), verified_at=None, failure=error.code))
            self.notify(
                "not_copied", {"service": checkpoint.service, "version": checkpoint.version, "code": error.code}
            )
            return
        self.tried.pop(digest, None)
        copy = Copy(domain=place.domain(), verified_at=self.office.clock.now(), failure="")
        self._note(checkpoint, copy, mended=mended, record=bool(mended) or not held)
        faults.reach("mirror", "noted")
        if not held or mended:
            self.notify("copied", {"service": checkpoint.service, "version": checkpoint.version})

    def _settle(self, place: CheckpointCopy, sha256: str) -> str:
        """Have one blob right over there; the code of what was wrong with it, empty when nothing was.

        Raises `IntegrityError` when the store's own blob is at fault.
        """
        if sha256 in self.right:
            return ""
        blob = self.office.store.blobs / sha256
        try:
            size_bytes = blob.stat().st_size
        except OSError as error:
            raise IntegrityError("blob_missing", f"the stored {sha256[:12]} is gone", HINT) from error
        code = ""
        try:
            place.verify(sha256, size_bytes)
        except IntegrityError as error:
            code = error.code
            faults.reach("mirror", "before_copy")
            source = mirror.read_past_cache(
                blob, f"the stored {sha256[:12]}", lambda count: mirror.tick(self.reading, count)
            )
            place.put(sha256, source)
            try:
                place.verify(sha256, size_bytes)
            except IntegrityError as again:
                raise mirror.unavailable(
                    Path(self.folder),
                    f"{sha256[:12]} was written and reads back otherwise: {again.code}",
                    "its disk does not keep what it is given: replace it",
                ) from again
            faults.reach("mirror", "copied")
        self.right.add(sha256)
        return code

    def _note(
        self, checkpoint: Checkpoint, copy: Copy, *, mended: list[dict[str, str]] | None = None, record: bool = False
    ) -> None:
        now, mended = self.office.clock.now(), mended or []
        with self.office.database.transaction() as connection:
            if registry.get(connection, checkpoint.digest) is None:  # retired meanwhile
                return
            copies.note(connection, checkpoint.digest, self.folder, copy)
            if record:
                body = {
                    "digest": checkpoint.digest,
                    "version": checkpoint.version,
                    "domain": copy.domain,
                    "size_bytes": checkpoint.size_bytes,
                    "mended": mended,
                }
                place = Place(service=checkpoint.service, env="")
                append(
                    connection,
                    now=now,
                    kind="checkpoint_copied",
                    body=body,
                    place=place,
                    run_id=self.office.ids.run_id(),
                )
            if mended:
                self._tell_mended(connection, checkpoint, mended, now)
        self.office.publish(registry_changed=True)

    def _tell_mended(
        self, connection: Connection, checkpoint: Checkpoint, mended: list[dict[str, str]], now: Instant
    ) -> None:
        codes = ", ".join(sorted({one["code"] for one in mended}))
        cause = f"copy:{checkpoint.digest}"
        message = Message(
            key=f"{cause}:{now.wall_ns}",
            title=f"{checkpoint.service} {checkpoint.version}: its second copy was at fault ({codes}) and is copied anew",
            fields={
                "service": checkpoint.service,
                "version": checkpoint.version,
                "digest": checkpoint.digest,
                "code": codes,
                "folder": self.folder,
                "next": f"look at the disk of {self.folder}, and who writes there",
            },
            cause=cause,
            severity="page",
        )
        outbox.post(connection, message, now)

    def _remove(self, place: CheckpointCopy) -> None:
        """What no registered checkpoint needs; listed first, so that what is registered meanwhile is not touched."""
        there = tuple(place.list())
        with self.office.database.reading() as connection:
            needed = collection.referenced(connection)
        for sha256 in there:
            if sha256 not in needed:
                place.remove(sha256)

    def _publish(self, place: CheckpointCopy) -> None:
        """The registry beside the blobs, and what makes them an OCI layout: a lost state is taken in again by either."""
        with self.office.database.reading() as connection:
            files = layout.files(connection)
            files[registry_file.EXPORT_NAME] = registry_file.render(registry_file.document(connection))
        for name, content in files.items():
            place.publish(name, content)

    def _failed(self, error: RearguardError) -> None:
        known, now = self._row(), self.office.clock.now()
        with self.office.database.transaction() as connection:
            copies.put_mirror(connection, replace(known, failure=error.code, message=error.message))
            if known.failure != error.code:
                message = Message(
                    key=f"{CAUSE}:{now.wall_ns}",
                    title=f"no second copy of checkpoints: {error.code}",
                    fields={
                        "folder": self.folder,
                        "code": error.code,
                        "message": error.message[:500],
                        "next": error.hint,
                    },
                    cause=CAUSE,
                    severity="page",
                )
                outbox.post(connection, message, now)

    def _in_step(self) -> None:
        known, now = self._row(), self.office.clock.now()
        with self.office.database.transaction() as connection:
            if known.failure:
                message = Message(
                    key=f"{CAUSE}:{now.wall_ns}:in_step",
                    title="the second copy of checkpoints is kept in step again",
                    fields={"folder": self.folder},
                    cause=CAUSE,
                    action="resolve",
                )
                outbox.post(connection, message, now)
            at = known.in_step_at if self.faults else now
            copies.put_mirror(connection, replace(known, in_step_at=at, failure="", message=""))


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    """One process at a time keeps the second copy. Raises `ConflictError` `mirror_busy`."""
    handle = os.open(state / "mirror.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = "another process brings the second copy in step"
            raise ConflictError(
                "mirror_busy", message, "wait for it; `rearguard checkpoint mirror` shows it"
            ) from error
        yield
    finally:
        os.close(handle)
