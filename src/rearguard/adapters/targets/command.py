"""A target behind three commands of the operator: activate, active, probe. No shell is involved.

The commands are lists of arguments. They inherit the environment and get, in addition, REARGUARD_SERVICE and
REARGUARD_ENV; `activate` also gets REARGUARD_DIGEST, _VERSION, _FORMAT, _PATH, _EPOCH and _KEY.

- `activate` returns 0 once new requests are answered by the digest. Exit code 3: it has seen a higher epoch. It must
  be idempotent by the key: the officer repeats it after a crash.
- `active` prints the digest that answers now, or nothing.
- `probe` reads one V2 request on stdin and prints the V2 response; `parameters.digest` is optional.

Any other exit code is a failure that the next try may cure. A command that does not end in time is killed with its
whole process group; what a command that ended has left in the background lives on. Options: `activate`, `active`,
`probe`, `timeout_s` (default 30; of `active` alone: an activation and a probe bring their own), and `link`: a path that is
made to lead to the checkpoint's folder before `activate` runs, and that compares epochs (see `command_link`).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rearguard.adapters import process
from rearguard.adapters.targets.command_link import ModelLink
from rearguard.errors import ConfigError, DependencyError, RefusedError, TransientTargetError
from rearguard.model.service import Digest, Place
from rearguard.ports import Activated, Activation, ProbeAnswer

EXIT_STALE_EPOCH = 3
_STDERR_TAIL_CHARS = 500
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_COMMANDS = ("activate", "active", "probe")
_ACCEPTED = "activate, active, probe (lists of arguments), timeout_s (seconds, default 30), link (an absolute path)"

_probe_numbers = itertools.count(1)


class CommandTarget:
    """`ports.Target` by processes. Holds nothing, so any thread may use it; the commands must bear that as well."""

    def __init__(
        self, *, place: Place, commands: Mapping[str, tuple[str, ...]], timeout_s: float, link: Path | None = None
    ) -> None:
        self._place = place
        self._link = None if link is None else ModelLink(place, link)
        self._commands = dict(commands)
        self._timeout_s = timeout_s

    def activate(self, order: Activation) -> Activated:
        """Run `activate`; a second call runs it again, with the same key. A command cannot tell whether it was warm.

        With a link, that is moved first, and stays moved when the command fails: the next order finds it there.
        """
        if self._link is not None:
            self._link.flip(order)
        self._order(order)
        return Activated(warm=None)

    def _order(self, order: Activation) -> None:
        ended = self._run(
            "activate",
            order.timeout_s,
            {
                "REARGUARD_DIGEST": order.digest,
                "REARGUARD_VERSION": order.version,
                "REARGUARD_FORMAT": order.format,
                "REARGUARD_PATH": order.path,
                "REARGUARD_EPOCH": str(order.epoch),
                "REARGUARD_KEY": order.key,
            },
        )
        if ended.code == EXIT_STALE_EPOCH:
            raise RefusedError(
                "target_epoch_stale",
                f"{self._place}: 'activate' has seen a higher epoch than {order.epoch}",
                "another officer gave a newer order; look at the place again",
            )
        self._accept("activate", ended)

    def active(self) -> Digest | None:
        """Run `active`; None when it prints nothing."""
        ended = self._run("active", self._timeout_s, {})
        self._accept("active", ended)
        text = ended.stdout.decode("utf-8", "replace").strip()
        if not text:
            return None
        return self._digest("active", text)

    def probe(self, request: dict[str, Any], timeout_s: float) -> ProbeAnswer:
        """Run `probe` with `request` under an id of our own."""
        probe_id = f"rearguard-probe-{os.getpid()}-{next(_probe_numbers)}"
        started_ns = time.monotonic_ns()  # noqa: TID251 - edge: latency
        ended = self._run("probe", timeout_s, {}, json.dumps({**request, "id": probe_id}).encode())
        latency_ms = (time.monotonic_ns() - started_ns) / 1e6  # noqa: TID251 - edge: latency
        self._accept("probe", ended)
        try:
            response = json.loads(ended.stdout)
        except ValueError as error:
            raise self._bad("probe", f"printed no JSON: {error}") from error
        if not isinstance(response, dict) or not isinstance(response.get("outputs"), list):
            raise self._bad("probe", "printed no V2 response with outputs")
        parameters = response.get("parameters")
        digest = parameters.get("digest") if isinstance(parameters, dict) else None
        return ProbeAnswer(
            digest=None if digest is None else self._digest("probe", digest), response=response, latency_ms=latency_ms
        )

    def close(self) -> None:
        """Nothing is held open."""

    def _run(self, name: str, timeout_s: float, extra: dict[str, str], stdin: bytes = b"") -> process.Ended:
        argv = self._commands[name]
        place = {"REARGUARD_SERVICE": self._place.service, "REARGUARD_ENV": self._place.env}
        try:
            return process.run(argv, stdin, timeout_s, {**os.environ, **place, **extra})
        except subprocess.TimeoutExpired as error:
            raise TransientTargetError(
                "target_timeout", f"{self._place}: {name!r} did not end within {timeout_s} s and was killed"
            ) from error
        except (OSError, ValueError) as error:
            raise DependencyError(
                "command_not_runnable",
                f"{self._place}: {name!r} cannot be run: {error}",
                f"look at the option {name!r}: {argv[0]}",
            ) from error

    def _accept(self, name: str, ended: process.Ended) -> None:
        if ended.code != 0:
            tail = ended.stderr.strip()[-_STDERR_TAIL_CHARS:]
            raise TransientTargetError("target_failed", f"{self._place}: {name!r} ended with {ended.code}: {tail}")

    def _digest(self, name: str, text: object) -> Digest:
        if not isinstance(text, str) or not _DIGEST.fullmatch(text):
            raise self._bad(name, f"named the digest {str(text)[:80]!r}")
        return Digest(text)

    def _bad(self, name: str, what: str) -> DependencyError:
        return DependencyError("target_bad_answer", f"{self._place}: {name!r} {what}", "see the target 'command'")


def build(place: Place, options: dict[str, object]) -> CommandTarget:
    """The target of `place`; `ConfigError` (`unknown_option`, `missing_option`, `bad_option`) names the option."""
    for name in options:
        if name not in (*_COMMANDS, "timeout_s", "link"):
            raise _refuse("unknown_option", place, name, options[name])
    commands: dict[str, tuple[str, ...]] = {}
    for name in _COMMANDS:
        if name not in options:
            raise _refuse("missing_option", place, name, "")
        argv = options[name]
        if not isinstance(argv, (list, tuple)) or not argv or not all(isinstance(a, str) for a in argv):
            raise _refuse("bad_option", place, name, argv)
        commands[name] = tuple(argv)
    timeout_s = options.get("timeout_s", 30)
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not 0 < timeout_s < 86_400:
        raise _refuse("bad_option", place, "timeout_s", timeout_s)
    link = options.get("link")
    if link is not None and not (isinstance(link, str) and Path(link).is_absolute() and Path(link).name):
        raise _refuse("bad_option", place, "link", link)
    return CommandTarget(
        place=place, commands=commands, timeout_s=float(timeout_s), link=None if link is None else Path(link)
    )


def _refuse(code: str, place: Place, name: str, value: object) -> ConfigError:
    words = {"unknown_option": "is not known", "missing_option": "is missing", "bad_option": "is not accepted"}
    return ConfigError(
        code,
        f"{place}: the option {name!r} of the target 'command' {words[code]}",
        f"accepted: {_ACCEPTED}",
        key=name,
        value=str(value),
        accepted=_ACCEPTED,
    )
