"""Services, environments and digests: the words that name what is served where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

Digest = NewType("Digest", str)
"""`sha256:` and 64 lower-case hex digits: the address of a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Place:
    """A service in one environment: the unit that is watched, locked and rolled back."""

    service: str
    env: str

    def __str__(self) -> str:
        return f"{self.service}/{self.env}"
