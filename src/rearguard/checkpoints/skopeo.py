"""Carrying artifacts by the program `skopeo`: the only module that starts it.

It gets a policy of our own, so nothing of /etc/containers/policy.json decides here, and bounds: a time limit, a size of
each file that it writes, and a size of all that it has written. It dies with us. What it fetched is not believed:
whoever takes it in hashes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rearguard.errors import DependencyError, IntegrityError, NotFoundError, RearguardError, RefusedError
from rearguard.model.carrying import Carriage, Reference, Transport
from rearguard.model.time import NS_PER_S
from rearguard.ports import Clock
from rearguard.rules import oci

PROGRAM = "skopeo"
POLICY = {"default": [{"type": "insecureAcceptAnything"}]}
"""Signatures of images are not asked for: a digest says what is taken in, and the proof whether it restores."""
LOOK_EVERY_S = 0.2
SLACK_BYTES = 64 * 1024 * 1024
"""More than what is declared, for names, manifests and what it unpacks beside. Chosen."""

_PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one call may take."""

    timeout_s: int
    folder: Path
    """What it writes lies below."""
    limit_bytes: int | None = None
    """Of all files in `folder`, and of any one file; None: it writes somewhere of the user's."""


class Skopeo:
    """The program, in a work folder of its own that the caller removes."""

    def __init__(self, work: Path, carriage: Carriage, clock: Clock) -> None:
        """Raises `DependencyError` `skopeo_missing`."""
        if shutil.which(PROGRAM) is None:
            raise DependencyError(
                "skopeo_missing",
                f"the program {PROGRAM} is not on PATH",
                "install it: apt-get install skopeo, or the package of the same name elsewhere",
            )
        self._work = work
        self._carriage = carriage
        self._clock = clock
        self._policy = work / "policy.json"
        self._policy.write_text(json.dumps(POLICY), encoding="utf-8")
        (work / "tmp").mkdir(exist_ok=True)

    def manifest(self, reference: Reference, limit_bytes: int) -> bytes:
        """The raw manifest that stands there now, and nothing of what it names. Raises as `_run`."""
        words = ["inspect", "--raw", *self._access("", reference), str(reference)]
        bounds = Bounds(timeout_s=self._carriage.timeout_s, folder=self._work, limit_bytes=limit_bytes)
        return self._run(words, reference, bounds, lambda _bytes: None)

    def fetch(self, reference: Reference, into: Path, limit_bytes: int, progress: Callable[[int], None]) -> None:
        """Copy into the new layout `into`, under the tag `fetched`. `progress` is given the bytes that are there."""
        bounds = Bounds(timeout_s=self._carriage.timeout_s, folder=self._work, limit_bytes=limit_bytes)
        words = ["copy", "--quiet", "--preserve-digests", *self._access("src-", reference)]
        self._run([*words, str(reference), f"oci:{into.relative_to(self._work)}:fetched"], reference, bounds, progress)

    def send(self, state: Path, ref: str, reference: Reference) -> str:
        """Copy from the layout `state`; returns the digest of the manifest that arrived."""
        told = self._work / "digest"
        words = ["copy", "--quiet", "--preserve-digests", "--digestfile", str(told), *self._access("dest-", reference)]
        bounds = Bounds(timeout_s=self._carriage.timeout_s, folder=self._work)
        self._run([*words, f"oci:.:{ref}", str(reference)], reference, bounds, lambda _bytes: None, cwd=state)
        return told.read_text(encoding="ascii").strip()

    def _access(self, side: str, reference: Reference) -> list[str]:
        if reference.transport is not Transport.REGISTRY:
            return []
        words = [f"--{side}tls-verify={'false' if self._carriage.plain_http else 'true'}"]
        return words + ([f"--{side}authfile", self._carriage.authfile] if self._carriage.authfile else [])

    def _run(
        self,
        words: Sequence[str],
        reference: Reference,
        bounds: Bounds,
        progress: Callable[[int], None],
        cwd: Path | None = None,
    ) -> bytes:
        """Standard output of one call.

        Raises `DependencyError` (`registry_unavailable`, `registry_denied`, `carrying_timed_out`, `skopeo_failed`,
        `store_not_written`), `NotFoundError` `reference_unknown`, `IntegrityError` (`blob_altered`, `carried_too_large`),
        `RefusedError` `manifest_converted`.
        """
        out, err = self._work / "out", self._work / "err"
        command = [PROGRAM, "--policy", str(self._policy), "--tmpdir", str(self._work / "tmp"), *words]
        with out.open("wb") as sink, err.open("wb") as errors:
            process = subprocess.Popen(
                command,
                cwd=cwd or self._work,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=errors,
                start_new_session=True,
                preexec_fn=lambda: _confine(bounds.limit_bytes),
            )
        try:
            self._await(process, reference, bounds, progress)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode != 0:
            raise _told(reference, process.returncode, _tail(err))
        with out.open("rb") as reader:
            return reader.read(oci.MAX_MANIFEST_BYTES + 1)

    def _await(
        self, process: subprocess.Popen[bytes], reference: Reference, bounds: Bounds, progress: Callable[[int], None]
    ) -> None:
        ends_ns = self._clock.now().mono_ns + bounds.timeout_s * NS_PER_S
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_EVERY_S)
            written = _size_of(bounds.folder)
            if bounds.limit_bytes is not None and written > bounds.limit_bytes:
                raise _too_large(reference, bounds.limit_bytes)
            progress(written)
            if process.returncode is not None:
                return
            if self._clock.now().mono_ns > ends_ns:
                raise DependencyError(
                    "carrying_timed_out",
                    f"{reference} was not carried within {bounds.timeout_s} s",
                    "try again: what is there already is not sent a second time; or raise --timeout",
                )


def _confine(limit_bytes: int | None) -> None:
    """In the new process, before it becomes the program."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))


def _size_of(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # renamed meanwhile
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def _tail(path: Path) -> str:
    with path.open("rb") as reader:
        reader.seek(max(0, path.stat().st_size - 4000))
        text = reader.read().decode("utf-8", "replace")
    found = re.findall(r'msg="((?:[^"\\]|\\.)*)"', text) or [text]
    said = re.sub(r'^Error parsing image name "[^"]*": ', "", found[-1].replace('\\"', '"').strip())
    return "".join(c if c.isprintable() else " " for c in said)[-400:]


_SAID: tuple[tuple[str, str, type[RearguardError], str], ...] = (
    (
        r"did not match|digest mismatch|does not match|[Ii]nvalid checksum",
        "blob_altered",
        IntegrityError,
        "the bytes there are not what their digest says; push them again from where they are right",
    ),
    (r"[Ff]ile too large", "carried_too_large", IntegrityError, "ask whoever pushed it what it is"),
    (r"no space left|quota exceeded", "store_not_written", DependencyError, "free space on the state directory's disk"),
    (
        r"unauthorized|authentication required|denied|forbidden|invalid username",
        "registry_denied",
        DependencyError,
        "name credentials with --authfile FILE (as `skopeo login --authfile FILE HOST` writes them)",
    ),
    (
        r"manifest unknown|name unknown|no descriptor found|no such file or directory|not found|status 404",
        "reference_unknown",
        NotFoundError,
        "look at the name, the tag and the path",
    ),
    (
        r"connection refused|no such host|i/o timeout|timeout|connection reset|EOF|no route|unreachable|pinging|status 50\d",
        "registry_unavailable",
        DependencyError,
        "see whether the registry is up, and whether it speaks TLS (a registry on this host without it: --plain-http)",
    ),
    (
        r"cannot preserve|would (?:change|invalidate)|[Pp]reserve digest",
        "manifest_converted",
        RefusedError,
        "the other side does not take OCI manifests as they are",
    ),
)
"""What the program says (1.9.3, 1.18), what that is, and what to do: the first that is found counts."""


def _told(reference: Reference, status: int, said: str) -> RearguardError:
    for pattern, code, kind, hint in _SAID:
        if re.search(pattern, said):
            return kind(code, f"{reference}: {said}", hint)
    if status == -signal.SIGXFSZ:
        return _too_large(reference, None)
    return DependencyError("skopeo_failed", f"{reference}: {PROGRAM} ended with {status}: {said}", "")


def _too_large(reference: Reference, limit_bytes: int | None) -> IntegrityError:
    bound = "it declares" if limit_bytes is None else f"{limit_bytes} bytes"
    return IntegrityError(
        "carried_too_large",
        f"{reference} sends more than {bound}; nothing was taken in",
        "ask whoever pushed it what it is",
    )
