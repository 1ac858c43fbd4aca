"""Where a checkpoint is carried to or fetched from, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rearguard.model.service import Digest


class Transport(Enum):
    """How the other place is reached."""

    REGISTRY = "docker"
    LAYOUT = "oci"
    ARCHIVE = "oci-archive"
    FOLDER = "dir"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A place where a checkpoint is, or will be."""

    transport: Transport
    location: str
    """`HOST[:PORT]/REPOSITORY` of a registry, else an absolute path."""
    tag: str = ""
    digest: str = ""
    """`sha256:…` of a manifest, of a registry only."""

    def __str__(self) -> str:
        return self.text(self.location)

    def text(self, location: str) -> str:
        """As `skopeo` takes it, with another location."""
        if self.transport is Transport.FOLDER:
            return f"dir:{location}"
        lead = "docker://" if self.transport is Transport.REGISTRY else f"{self.transport.value}:"
        return f"{lead}{location}@{self.digest}" if self.digest else f"{lead}{location}:{self.tag}"

    @property
    def host(self) -> str:
        """Host of a registry without its port; empty for a path."""
        if self.transport is not Transport.REGISTRY:
            return ""
        first = self.location.partition("/")[0]
        return first[1:].partition("]")[0] if first.startswith("[") else first.partition(":")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """A checkpoint that was carried out."""

    service: str
    version: str
    digest: Digest
    manifest: str
    """`sha256:…` of the manifest that is there now."""
    reference: str
    """By which it can be fetched: with the manifest's digest where it is a registry."""
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Carriage:
    """How a reference is reached."""

    authfile: str = ""
    """Credentials, as `skopeo login` writes them; empty: skopeo's own default."""
    plain_http: bool = False
    """Without TLS: a registry on this host only."""
    timeout_s: int = 3600
