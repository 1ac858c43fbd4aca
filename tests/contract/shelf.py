"""A state directory with many small checkpoints, made without a load, for tests of what is kept and copied of them.

Their proof is a row: nothing here is loaded. The blobs are real.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rearguard.checkpoints import layout, registry
from rearguard.checkpoints.store import SourceFile, checkpoint_digest
from rearguard.checkpoints.verification import Verification
from rearguard.config.templates import playbook_template
from rearguard.database import open_database, sql
from rearguard.evidence.log import read
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.evidence import Record
from rearguard.model.service import Digest
from rearguard.model.time import NS_PER_S, Instant
from rearguard.officer.office import Office

SETTINGS = """\
version: 1
playbook: rollback_playbook.yaml
channels: {{oncall: {{kind: file, path: messages.jsonl}}}}
checkpoints: {checkpoints}
services:
  fraud: {{environments: {{prod: {place}, stage: {place}}}}}
  churn: {{environments: {{prod: {place}}}}}
"""
PLACE = (
    '{stateless: true, target: {adapter: command, activate: ["true"], active: ["true"], probe: ["true"]}, '
    "telemetry: {adapter: jsonl, requests: requests.jsonl}, triggers: {latency: off, compliance: off}}"
)
START = Instant(wall_ns=4_000_000_000 * NS_PER_S, mono_ns=10**16, boot_id="boot")
"""Years ahead of the machine's clock, so that every file of the test is old."""
DAY_S = 86_400


class SetClock:
    """`ports.Clock` that stands still until it is advanced."""

    def __init__(self, now: Instant = START) -> None:
        self._now = now

    def now(self) -> Instant:
        return self._now

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self._now = self._now.plus(int(seconds * NS_PER_S))


def write_settings(state: Path, checkpoints: str) -> Path:
    state.mkdir(parents=True, exist_ok=True)
    text = SETTINGS.format(checkpoints=checkpoints, place=PLACE)
    (state / "rearguard.yaml").write_text(text, encoding="utf-8")
    (state / "rollback_playbook.yaml").write_text(playbook_template(), encoding="utf-8")
    return state


@contextmanager
def office_of(state: Path, clock: SetClock) -> Iterator[Office]:
    office = Office(state=state, settings_path=state / "rearguard.yaml", database=open_database(state), clock=clock)
    try:
        yield office
    finally:
        office.close()


class Shelf:
    """Puts checkpoints there, and looks."""

    def __init__(self, office: Office, clock: SetClock, folder: Path) -> None:
        self.office = office
        self.clock = clock
        self.folder = folder

    def put(
        self,
        version: str,
        files: Mapping[str, bytes],
        *,
        service: str = "fraud",
        proven: bool = True,
    ) -> Checkpoint:
        store = self.office.store
        taken = []
        for path, content in sorted(files.items()):
            source = self.folder / "source"
            source.write_bytes(content)
            taken.append(store.put_file(SourceFile(path=path, source=source)))
        golden = store.put_bytes(json.dumps({"of": sorted(files)}).encode())
        checkpoint = Checkpoint(
            digest=checkpoint_digest(format="onnx", files=taken, golden_sha256=golden),
            service=service,
            version=version,
            format="onnx",
            files=tuple(taken),
            golden_sha256=golden,
            added_at=self.clock.now(),
            verified_at=None,
            load_ms=None,
            failure="",
        )
        checkpoint = layout.keep(store, checkpoint)
        with self.office.database.transaction() as connection:
            registry.insert(connection, checkpoint)
        self.note(checkpoint, ok=proven)
        store.view(checkpoint.digest, checkpoint.files)
        return checkpoint

    def note(self, checkpoint: Checkpoint, *, ok: bool) -> None:
        """As a verification would."""
        outcome = Verification(
            ok=ok,
            code="" if ok else "golden_differs",
            message="",
            load_ms=1 if ok else None,
            peak_rss_bytes=None,
            receipt=self.office.store.receipt(checkpoint.files),
        )
        with self.office.database.transaction() as connection:
            registry.note_verification(
                connection, checkpoint, outcome, now=self.clock.now(), run_id=self.office.ids.run_id()
            )

    def deploy(self, checkpoint: Checkpoint, *, env: str = "prod", state: str = "active") -> None:
        """A row of `deployments`; what was active before has ended."""
        at = {"s": checkpoint.service, "e": env}
        with self.office.database.transaction() as connection:
            connection.execute(
                sql("UPDATE deployments SET state = 'ended' WHERE service = :s AND env = :e AND state = 'active'"), at
            )
            connection.execute(
                sql(
                    "INSERT INTO deployments (service, env, digest, version, source, state, started_at) "
                    "VALUES (:s, :e, :digest, :version, 'deploy', :state, :at)"
                ),
                {
                    **at,
                    "digest": checkpoint.digest,
                    "version": checkpoint.version,
                    "state": state,
                    "at": registry.encode_instant(self.clock.now()),
                },
            )

    def execute(self, text: str, **values: object) -> None:
        with self.office.database.transaction() as connection:
            connection.execute(sql(text), values)

    def versions(self) -> list[str]:
        with self.office.database.reading() as connection:
            return [c.version for c in registry.list_all(connection)]

    def records(self, *kinds: str) -> list[Record]:
        with self.office.database.reading() as connection:
            return [record for record in read(connection) if record.kind in kinds]

    def blob(self, sha256: str) -> Path:
        return self.office.store.blobs / sha256

    def blobs(self) -> set[str]:
        return {path.name for path in self.office.store.blobs.iterdir()}

    def needed(self) -> set[str]:
        """Names of all blobs of what is registered, counted here."""
        with self.office.database.reading() as connection:
            found = registry.list_all(connection)
        own = {f.sha256 for c in found for f in c.files} | {c.golden_sha256 for c in found}
        return own | {name for c in found for name in self.described(c)}

    def described(self, checkpoint: Checkpoint) -> set[str]:
        """Names of its manifest, and of the config that the manifest names."""
        manifest = checkpoint.oci_manifest.removeprefix("sha256:")
        config = json.loads(self.blob(manifest).read_bytes())["config"]["digest"]
        return {manifest, config.removeprefix("sha256:")}

    def views(self) -> set[Digest]:
        return {Digest(f"sha256:{path.name}") for path in self.office.store.views.iterdir()}
