"""Reading what a person wrote as the place of a checkpoint. Nothing is looked at; a path is made absolute by the caller."""

from __future__ import annotations

import re

from rearguard.errors import UsageError
from rearguard.model.carrying import Carriage, Reference, Transport

ACCEPTED = "docker://HOST/REPO:TAG, docker://HOST/REPO@sha256:HEX, oci:FOLDER:TAG, oci-archive:FILE:TAG or dir:FOLDER"

_REPOSITORY = re.compile(
    r"(?P<location>(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::[0-9]{1,5})?"
    r"(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)+)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})|@(?P<digest>sha256:[0-9a-f]{64}))"
)
"""Grammar of the distribution reference: docs.docker.com and distribution/reference, without what may be left out."""
_TAG = re.compile(r"[A-Za-z0-9]+(?:(?:[-._@+]|--)[A-Za-z0-9]+)*(?:/[A-Za-z0-9]+(?:(?:[-._@+]|--)[A-Za-z0-9]+)*)*")
"""image-spec, `annotations.md`: a reference in a layout; without its colon, after which a path with one would be misread."""
_LOOPBACK = re.compile(r"localhost|127(?:\.[0-9]{1,3}){3}|::1")


def parse_reference(text: str) -> Reference:
    """The place that `text` names. Raises `UsageError` `reference_malformed`."""
    if text.startswith("docker://"):
        found = _REPOSITORY.fullmatch(text.removeprefix("docker://"))
        if found:
            return Reference(
                transport=Transport.REGISTRY,
                location=found["location"],
                tag=found["tag"] or "",
                digest=found["digest"] or "",
            )
    elif text.startswith("dir:"):
        if (folder := text.removeprefix("dir:")) and _is_path(folder):
            return Reference(transport=Transport.FOLDER, location=folder)
    else:
        kind, _, rest = text.partition(":")
        path, _, tag = rest.partition(":")
        if (
            kind in (Transport.LAYOUT.value, Transport.ARCHIVE.value)
            and path
            and _is_path(path)
            and _TAG.fullmatch(tag)
        ):
            return Reference(transport=Transport(kind), location=path, tag=tag)
    raise UsageError("reference_malformed", f"{text[:200]!r} is no reference", ACCEPTED)


def _is_path(text: str) -> bool:
    # The reader of these references takes a colon for the end of the path.
    return ":" not in text and text.isprintable()


def refuse_plain_http(reference: Reference, carriage: Carriage) -> None:
    """Raises `UsageError` `plain_http_refused`: without TLS, anybody on the way reads the credentials."""
    if carriage.plain_http and reference.host and not _LOOPBACK.fullmatch(reference.host):
        raise UsageError(
            "plain_http_refused",
            f"--plain-http is for a registry on this host, and {reference} is not",
            "let the registry speak TLS",
        )
