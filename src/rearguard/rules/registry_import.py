"""What a registry file that was handed over would change, and why it is refused (R1).

A file may add: checkpoints, which are then proven here, and quarantines. It takes nothing away and changes nothing:
what is missing in it stays, and a fact of a known checkpoint that reads otherwise refuses the whole file. A proof that
it claims is not looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from rearguard.model.checkpoint import Checkpoint
from rearguard.model.registry_file import ListedCheckpoint, ListedQuarantine, RegistryFile
from rearguard.model.service import Digest, Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One reason why nothing of the file is taken."""

    code: str
    line: int
    message: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A digest in quarantine at a place."""

    place: Place
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is registered here."""

    checkpoints: Mapping[Digest, Checkpoint]
    retired: Mapping[tuple[str, str], Digest]
    """Service and version -> digest of checkpoints that retention took away: their labels stay taken."""
    held: frozenset[Held]
    services: Collection[str]
    """Those that the settings declare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What a file would change here."""

    file: str
    sha256: str
    added: tuple[ListedCheckpoint, ...]
    """Registered as unverified, then verified."""
    unproven: tuple[ListedCheckpoint, ...]
    """Registered already and never verified, or found with bytes at fault; verified now, such as after an import that was killed."""
    quarantined: tuple[ListedQuarantine, ...]
    unchanged: int
    """Entries whose facts are those that are registered."""
    not_listed: tuple[Digest, ...]
    """Registered here and not in the file: they stay."""
    still_held: tuple[Held, ...]
    """In quarantine here and not in the file: they stay in quarantine."""
    proofs_ignored: int
    """Entries that claim a proof and would be added: the claim is not taken."""
    refusals: tuple[Refusal, ...]

    @property
    def changes(self) -> bool:
        """Whether an import would write anything."""
        return bool(self.added or self.quarantined)


def compare(file: RegistryFile, known: Known) -> Difference:
    """What importing `file` would change. With refusals nothing may be taken."""
    added, unproven, unchanged = [], [], 0
    for entry in file.checkpoints:
        same = known.checkpoints.get(entry.digest)
        if same is None:
            added.append(entry)
            continue
        unchanged += 1
        if same.verified_at is None and (not same.failure or same.failure.startswith("blob_")):
            unproven.append(entry)
    listed_holds = {Held(place=q.place, digest=q.digest): q for q in file.quarantine}
    listed = {entry.digest for entry in file.checkpoints}
    return Difference(
        file=file.file,
        sha256=file.sha256,
        added=tuple(added),
        unproven=tuple(unproven),
        quarantined=tuple(entry for held, entry in listed_holds.items() if held not in known.held),
        unchanged=unchanged,
        not_listed=tuple(digest for digest in known.checkpoints if digest not in listed),
        still_held=tuple(sorted(known.held - listed_holds.keys(), key=lambda h: (h.place, h.digest))),
        proofs_ignored=sum(entry.claims_proof for entry in added),
        refusals=tuple(sorted(_refusals(file, known), key=lambda r: r.line)),
    )


def _refusals(file: RegistryFile, known: Known) -> Iterator[Refusal]:
    labels = {(c.service, c.version): c.digest for c in known.checkpoints.values()}
    by_digest: dict[Digest, int] = {}
    by_label: dict[tuple[str, str], int] = {}
    for entry in file.checkpoints:
        label = (entry.service, entry.version)
        for first, what in ((by_digest.get(entry.digest), "digest"), (by_label.get(label), "version")):
            if first is not None:
                yield Refusal(
                    code="registry_two_entries",
                    line=entry.line,
                    message=f"{entry.name} stands a second time: line {first} has the same {what}",
                    hint="keep one entry a checkpoint, and one checkpoint a version",
                )
                break
        by_digest.setdefault(entry.digest, entry.line)
        by_label.setdefault(label, entry.line)
        same = known.checkpoints.get(entry.digest)
        if same is not None:
            yield from _changed(entry, same)
        else:
            yield from _taken(entry, labels, known)
    for hold in file.quarantine:
        if hold.place.service not in known.services:
            yield _undeclared(hold.place.service, hold.line, known)


def _changed(entry: ListedCheckpoint, same: Checkpoint) -> Iterator[Refusal]:
    """Every fact of a registered checkpoint is immutable."""
    facts: tuple[tuple[str, object, object], ...] = (
        ("service", entry.service, same.service),
        ("version", entry.version, same.version),
        ("format", entry.format, same.format),
        ("files", entry.files, tuple(sorted(same.files, key=lambda f: f.path))),
        ("golden_sha256", entry.golden_sha256, same.golden_sha256),
        ("state_sha256", entry.state_sha256 or same.state_sha256, same.state_sha256 or entry.state_sha256),
    )
    for name, listed, registered in facts:
        if listed != registered:
            told = "" if name == "files" else f": {listed or 'none'}, registered is {registered or 'none'}"
            yield Refusal(
                code="registry_fact_changed",
                line=entry.line,
                message=f"{same.service} {same.version} ({same.short}) has another {name}{told}",
                hint="a checkpoint is immutable: take the line back, or register other bytes under a new version",
            )
            return


def _taken(entry: ListedCheckpoint, labels: Mapping[tuple[str, str], Digest], known: Known) -> Iterator[Refusal]:
    """A new entry's service must be declared, and its version must be free."""
    label = (entry.service, entry.version)
    if entry.service not in known.services:
        yield _undeclared(entry.service, entry.line, known)
    elif label in labels:
        yield Refusal(
            code="registry_label_taken",
            line=entry.line,
            message=f"{entry.name} is registered with other bytes ({labels[label][7:19]})",
            hint="a version is immutable: choose a new one",
        )
    elif known.retired.get(label, entry.digest) != entry.digest:
        yield Refusal(
            code="registry_label_taken",
            line=entry.line,
            message=f"{entry.name} was retired with other bytes ({known.retired[label][7:19]})",
            hint="a version is immutable, also after retention: choose a new one",
        )


def _undeclared(service: str, line: int, known: Known) -> Refusal:
    return Refusal(
        code="service_unknown",
        line=line,
        message=f"no service {service} is declared; declared: {', '.join(sorted(known.services))}",
        hint="declare it in rearguard.yaml first, or leave its entries out",
    )
