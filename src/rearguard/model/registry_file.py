"""A registry file as it was handed over: what it says, and in which line, before anything of it is believed."""

from __future__ import annotations

from dataclasses import dataclass

from rearguard.model.checkpoint import CheckpointFile
from rearguard.model.service import Digest, Place


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedCheckpoint:
    """One entry under `checkpoints`, its proof left out: a proof is made here or not at all."""

    line: int
    digest: Digest
    service: str
    version: str
    format: str
    files: tuple[CheckpointFile, ...]
    """Sorted by path."""
    golden_sha256: str
    """Empty: the entry has no golden set."""
    state_sha256: str
    """Digest of the loaded state that a verification has to find again; empty: not told."""
    claims_proof: bool
    """The entry says `validated: true`."""

    @property
    def name(self) -> str:
        """Service and version, for people."""
        return f"{self.service} {self.version}"

    @property
    def size_bytes(self) -> int:
        """Sum over the files."""
        return sum(f.size_bytes for f in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedQuarantine:
    """One entry under `quarantine`."""

    line: int
    place: Place
    digest: Digest
    run_id: str
    """Run that rolled it back, as the file says; empty: not told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryFile:
    """The whole file."""

    file: str
    """Its path as it was given."""
    sha256: str
    checkpoints: tuple[ListedCheckpoint, ...]
    quarantine: tuple[ListedQuarantine, ...]
