"""Checkpoints: immutable, digest-addressed model files and what was proven about them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rearguard.model.service import Digest
from rearguard.model.time import Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFile:
    """One file of a checkpoint."""

    path: str
    """POSIX path inside the checkpoint."""
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What is served: files, their format and the golden predictions, addressed by the digest of the manifest."""

    digest: Digest
    service: str
    version: str
    format: str
    """Name of a loader, such as `onnx` or `sklearn-skops`."""
    files: tuple[CheckpointFile, ...]
    golden_sha256: str
    """Digest of the golden request and answer set, stored as a blob."""
    added_at: Instant
    verified_at: Instant | None
    """End of the last verification that passed; None: never proven, so never a rollback target (R10, R28)."""
    load_ms: int | None
    """Longest cold load of the last verification, fresh process, monotonic (R16)."""
    failure: str
    """Code of the last verification if it failed, else empty."""
    peak_rss_bytes: int | None = None
    """Highest resident memory of the cold load of the last verification."""
    state_sha256: str = ""
    """Digest of the loaded state (names, types, shapes, bytes) where the loader can tell one; else empty (R17)."""
    reproducible: str = ""
    """How two cold loads agreed: `bitwise` or `tolerance`; empty: not known."""
    oci_manifest: str = ""
    """Digest of its manifest in the OCI image layout; empty for one that an older release registered."""
    oci_manifest_bytes: int = 0
    """Length of that manifest; 0 when it has none."""

    @property
    def size_bytes(self) -> int:
        """Sum over the files."""
        return sum(f.size_bytes for f in self.files)

    @property
    def short(self) -> str:
        """Twelve hex digits, for people."""
        return self.digest.removeprefix("sha256:")[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenPolicy:
    """How close a repeated golden prediction must be: |a - b| <= atol + rtol * |b|."""

    rtol: float = 1e-5
    atol: float = 1e-6


class ProofPolicy(Enum):
    """What a rollback asks of the bytes of a target whose last verification is fresh (`t4_proof`)."""

    RECEIPT = "receipt"
    """Large ones: that nothing was written since, by the kernel's word. It cannot see bit rot."""
    FULL_HASH = "full_hash"
    """Every byte, whatever the size; through the page cache, so that the load that follows need not read again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPolicy:
    """Governance of checkpoints (R14-R16)."""

    max_age_s: int = 86_400
    """Age since the last verification, inclusive (R15)."""
    reverify_every_s: int = 43_200
    """The officer verifies each candidate at least this often; chosen half of `max_age_s`."""
    max_load_s: int = 30
    """Strict limit of a cold load (R16)."""
    proof: ProofPolicy = ProofPolicy.RECEIPT
    """With FULL_HASH `receipt_above_bytes` means nothing."""
    receipt_above_bytes: int = 268_435_456
    """Above this size the rollback itself trusts a stat receipt instead of a full hash; chosen: 256 MiB hash in < 0.5 s."""
    golden: GoldenPolicy = GoldenPolicy()
    trusted_types: tuple[str, ...] = ()
    """Extra type names that the skops loader may build."""
    unsafe_formats: tuple[str, ...] = ()
    """Formats that run code when they are loaded and are allowed all the same, in the sandbox only."""
    sandbox_memory_bytes: int = 4_294_967_296
    """Address space that a sandboxed load may take."""
    scrub_bytes_s: int = 209_715_200
    """Pace of the background scrub. Chosen: a tenth of a disk's rate, so that serving does not feel it."""
    mirror: str = ""
    """Absolute folder, on another disk, that is kept in step with the store; empty: none."""
    keep_last: int = 10
    """Retention keeps so many newest checkpoints of each service, whatever their age."""
    keep_s: int = 2_592_000
    """Retention keeps what is younger than this. Chosen: 30 days."""
