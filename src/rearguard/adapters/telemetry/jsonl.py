"""Telemetry from JSON-lines files: the model server's request log and, optionally, a log of scores.

The form of both lines is normative in `docs/reference/telemetry-jsonl.md`. A line that breaks it is rejected and
counted, never guessed (R23: numbers are taken from their text as Decimal). Lines of other places, golden probes and
requests that no checkpoint answered are left out silently. Following the files is left to `log_follower`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from rearguard.adapters.telemetry.log_follower import Batch, Budget, FilePlace, LogFollower
from rearguard.errors import ConfigError, DependencyError
from rearguard.model.service import Digest, Place
from rearguard.model.telemetry import Observation, RequestSeen, ScoreSeen, SourceHealth
from rearguard.model.time import NS_PER_S, Instant, parse_rfc3339
from rearguard.ports import TelemetrySource

MAX_LINES_PER_POLL = 50_000
"""Chosen: about half a second of parsing on a slow core; what is left waits for the next poll."""
MAX_BYTES_PER_POLL = 16 * 1024 * 1024
MAX_AHEAD_NS = 60 * NS_PER_S
"""An instant further in the future than this is a broken clock, not an observation."""
_MAX_EMPTY_READS = 5
"""Chosen: five times 16 MiB are more than the backlog that the first poll may start with."""
_OUT_OF_ORDER_NS = 60 * NS_PER_S
"""Several writers append in nearly the order of time; the search for the start allows for this much disorder."""
_MAX_DIGITS = 64
"""Digits before or after the point. Bounds exact sums; the text of any float that means something is shorter."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)

_Fields = dict[str, Any]
_Parse = Callable[[_Fields, Place, Instant], Observation | None]


def build(place: Place, options: dict[str, object], since: Instant) -> TelemetrySource:
    """Entry point `rearguard.telemetry` / `jsonl`: follow the files named by the options.

    Options: `requests` (path, required) and `scores` (path, optional). Raises `ConfigError`
    (`telemetry_option_unknown`, `telemetry_option_missing`, `telemetry_option_invalid`).
    """
    for key in sorted(set(options) - {"requests", "scores"}):
        raise ConfigError(
            "telemetry_option_unknown",
            f"telemetry adapter jsonl has no option {key!r}",
            "remove it, or correct its spelling",
            key=key,
            value=str(options[key]),
            accepted="requests, scores",
        )
    if "requests" not in options:
        raise ConfigError(
            "telemetry_option_missing",
            "telemetry adapter jsonl needs the option 'requests'",
            "name the request log of the model server",
            key="requests",
            accepted="path of a JSON-lines file",
        )
    paths = {key: _path(key, value) for key, value in options.items()}
    return JsonlTelemetry(place=place, requests_path=paths["requests"], scores_path=paths.get("scores"), since=since)


class JsonlTelemetry:
    """A `ResumableSource` over one or two JSON-lines files."""

    def __init__(self, *, place: Place, requests_path: str, scores_path: str | None, since: Instant) -> None:
        self._place = place
        self._since = since
        self._requests = LogFollower(requests_path)
        self._scores = None if scores_path is None else LogFollower(scores_path)
        self._counted_to: dict[str, Instant] = {}
        self._accepted = 0
        self._rejected = 0
        self._elsewhere = 0
        self._late = 0
        self._last_at_mono_ns: int | None = None
        self._last_rejection = ""
        self._unreported: DependencyError | None = None
        self._closed = False

    def poll(self, now: Instant) -> Sequence[Observation]:
        """Observations of both files since the last poll, scores first.

        Reads at most `MAX_LINES_PER_POLL` lines or `MAX_BYTES_PER_POLL` bytes. Only when these held nothing that is
        wanted (old lines, other places) does it read on, up to `_MAX_EMPTY_READS` times as much: an empty answer says
        that there is no more, and callers trust it.

        Raises `DependencyError` (`telemetry_unreadable`) when a file exists and cannot be read, and
        `telemetry_closed` after `close`. What another file gave in the same poll is handed out first and the error
        raised by the next poll, so that nothing read is lost and no error is hidden.
        """
        if self._closed:
            raise DependencyError("telemetry_closed", f"telemetry of {self._place} was closed")
        if self._unreported is not None:
            error, self._unreported = self._unreported, None
            raise error
        for _ in range(_MAX_EMPTY_READS):
            observations: list[Observation] = []
            more = self._read(now, observations)
            if observations:
                return observations
            if self._unreported is not None:
                error, self._unreported = self._unreported, None
                raise error
            if not more:
                break
        return []

    def health(self) -> SourceHealth:
        """What was accepted and what was not, since the start; `last_rejection` is `<file>: <reason>`."""
        return SourceHealth(
            accepted=self._accepted,
            rejected=self._rejected,
            last_at_mono_ns=self._last_at_mono_ns,
            last_rejection=self._last_rejection,
            elsewhere=self._elsewhere,
            late=self._late,
        )

    def position(self) -> dict[str, Any]:
        """The path of each file, and how far it was read."""
        try:
            return {
                name: {"path": log.path, "files": [dataclasses.asdict(place) for place in log.place()]}
                for name, log in self._logs()
            }
        except OSError as cause:
            raise DependencyError(
                "telemetry_unreadable",
                f"cannot read the telemetry of {self._place}: {cause.strerror or cause}",
                "let the officer's user read it, or correct the path in the settings",
            ) from cause

    def resume(self, position: dict[str, Any], counted_to: Instant) -> None:
        """Take up each file that the position knows; a file that is named for the first time is read from `since`."""
        for name, log in self._logs():
            if name not in position:
                continue
            self._counted_to[name] = counted_to
            if position[name]["path"] == log.path:
                log.take_up(FilePlace(**place) for place in position[name]["files"])

    def _logs(self) -> list[tuple[str, LogFollower]]:
        named = (("scores", self._scores), ("requests", self._requests))
        return [(name, log) for name, log in named if log is not None]

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        self._closed = True
        self._requests.close()
        if self._scores is not None:
            self._scores.close()

    def _read(self, now: Instant, into: list[Observation]) -> bool:
        """Read both files once within the limits of a poll; True when a limit was reached, so there may be more."""
        lines_left, bytes_left, more = MAX_LINES_PER_POLL, MAX_BYTES_PER_POLL, False
        for name, log, parse, share in (("scores", self._scores, _score, 2), ("requests", self._requests, _request, 1)):
            if log is None:
                continue
            # Half for the scores: a busy request log must not starve them, nor they it.
            lines, size_bytes = lines_left // share, bytes_left // share
            budget = Budget(lines, size_bytes)
            try:
                since = self._counted_to.get(name, self._since)
                batch = log.read(budget, now.mono_ns, lambda line, since=since: self._is_old(line, since, now))  # type: ignore[misc]
            except OSError as cause:
                self._unreported = DependencyError(
                    "telemetry_unreadable",
                    f"cannot read {log.path}: {cause.strerror or cause}",
                    "let the officer's user read it, or correct the path in the settings",
                )
                self._unreported.__cause__ = cause
                continue
            lines_left -= lines - budget.lines
            bytes_left -= size_bytes - budget.bytes
            more = more or budget.lines <= 0 or budget.bytes <= 0
            self._take(name, batch, parse, now, into)
        return more

    def _take(self, name: str, batch: Batch, parse: _Parse, now: Instant, into: list[Observation]) -> None:
        wanted_from_ns = _on_this_boot(self._since, now)
        counted_to = self._counted_to.get(name)
        counted_to_ns = wanted_from_ns if counted_to is None else _on_this_boot(counted_to, now)
        for reason in batch.rejections:
            self._reject(name, reason)
        for number, line in enumerate((*batch.unseen, *batch.lines)):
            try:
                fields = _load(line)
                if not _is_for(fields, self._place):
                    self._elsewhere += 1
                    continue
                observation = parse(fields, self._place, now)
            except _RejectedLine as rejected:
                self._reject(name, rejected.reason)
                continue
            if observation is None:
                continue
            if number >= len(batch.unseen) and observation.at_mono_ns < max(wanted_from_ns, counted_to_ns):
                self._late += observation.at_mono_ns >= wanted_from_ns
                continue
            into.append(observation)
            self._accepted += 1
            if self._last_at_mono_ns is None or observation.at_mono_ns > self._last_at_mono_ns:
                self._last_at_mono_ns = observation.at_mono_ns

    def _reject(self, name: str, reason: str) -> None:
        self._rejected += 1
        self._last_rejection = f"{name}: {reason}"

    def _is_old(self, line: bytes, since: Instant, now: Instant) -> bool | None:
        try:
            fields = _load(line)
            _, at_mono_ns = _instants(fields, now, stamped="mono_ns" in fields)
        except _RejectedLine:
            return None
        return at_mono_ns < _on_this_boot(since, now) - _OUT_OF_ORDER_NS


class _RejectedLine(Exception):
    """A line that breaks the format. The reason holds no data of the line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _request(fields: _Fields, place: Place, now: Instant) -> RequestSeen | None:
    at_wall_ns, at_mono_ns = _instants(fields, now, stamped=True)
    # The server had nothing loaded: the answer of no checkpoint. The rest of the line must still keep to the form.
    digest = None if _text(fields, "digest") == "" else _digest(fields)
    _text(fields, "version")
    _text(fields, "id")
    status = _integer(fields, "status")
    if status != 0 and not 100 <= status <= 599:
        raise _RejectedLine("field_invalid: status")
    latency_ms = None if _field(fields, "latency_ms") is None else _number(fields, "latency_ms")
    if latency_ms is not None and latency_ms < 0:
        raise _RejectedLine("field_invalid: latency_ms")
    probe = _field(fields, "probe")
    if not isinstance(probe, bool):
        raise _RejectedLine("field_invalid: probe")
    if probe or digest is None:
        return None
    return RequestSeen(
        place=place,
        digest=digest,
        at_mono_ns=at_mono_ns,
        at_wall_ns=at_wall_ns,
        latency_ms=latency_ms,
        failed=status >= 500 or status == 0,
    )


def _score(fields: _Fields, place: Place, now: Instant) -> ScoreSeen:
    at_wall_ns, at_mono_ns = _instants(fields, now, stamped="mono_ns" in fields or "boot_id" in fields)
    digest = _digest(fields)
    score = _number(fields, "score")
    if not 0 <= score <= 100:
        raise _RejectedLine("field_invalid: score")
    return ScoreSeen(place=place, digest=digest, at_mono_ns=at_mono_ns, at_wall_ns=at_wall_ns, score=score)


def _load(line: bytes) -> _Fields:
    try:
        value = json.loads(
            line.decode("utf-8"), parse_float=Decimal, parse_constant=_no_constant, object_pairs_hook=_unique
        )
    except (ValueError, ArithmeticError, RecursionError):  # ArithmeticError: an exponent that Decimal cannot hold
        raise _RejectedLine("not_json") from None
    if not isinstance(value, dict):
        raise _RejectedLine("not_an_object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")  # RFC 8259 section 6: NaN and infinities are not permitted


def _unique(pairs: list[tuple[str, Any]]) -> _Fields:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _RejectedLine("field_repeated")  # RFC 8259 section 4 leaves open which one counts
    return fields


def _is_for(fields: _Fields, place: Place) -> bool:
    return (_text(fields, "service"), _text(fields, "env")) == (place.service, place.env)


def _instants(fields: _Fields, now: Instant, *, stamped: bool) -> tuple[int, int]:
    """Wall and monotonic nanoseconds of a line.

    The monotonic stamp counts when it is of this boot: a step of the wall clock cannot move it. Otherwise the wall
    clock's distance to `now` is taken.
    """
    text = _text(fields, "ts")
    try:
        if _RFC3339.fullmatch(text) is None:
            raise ValueError(text)
        at_wall_ns = parse_rfc3339(text)
    except (ValueError, OverflowError):
        raise _RejectedLine("field_invalid: ts") from None
    at_mono_ns = now.mono_ns - (now.wall_ns - at_wall_ns)
    if stamped:
        stamp_ns = _integer(fields, "mono_ns")
        if stamp_ns < 0:
            raise _RejectedLine("field_invalid: mono_ns")
        if _text(fields, "boot_id") == now.boot_id:
            at_mono_ns = stamp_ns
    if at_mono_ns > now.mono_ns + MAX_AHEAD_NS:
        raise _RejectedLine("in_the_future")
    return at_wall_ns, at_mono_ns


def _on_this_boot(instant: Instant, now: Instant) -> int:
    if instant.boot_id == now.boot_id:
        return instant.mono_ns
    return now.mono_ns - (now.wall_ns - instant.wall_ns)


def _field(fields: _Fields, name: str) -> object:
    if name not in fields:
        raise _RejectedLine(f"field_missing: {name}")
    value: object = fields[name]
    return value


def _text(fields: _Fields, name: str) -> str:
    value = _field(fields, name)
    if not isinstance(value, str):
        raise _RejectedLine(f"field_invalid: {name}")
    return value


def _integer(fields: _Fields, name: str) -> int:
    value = _field(fields, name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _RejectedLine(f"field_invalid: {name}")
    return value


def _number(fields: _Fields, name: str) -> Decimal:
    value = _field(fields, name)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise _RejectedLine(f"field_invalid: {name}")
    number = Decimal(value)
    _, _, exponent = number.as_tuple()
    if not isinstance(exponent, int) or exponent < -_MAX_DIGITS or number.adjusted() >= _MAX_DIGITS:
        raise _RejectedLine(f"field_invalid: {name}")
    return number


def _digest(fields: _Fields) -> Digest:
    value = _text(fields, "digest")
    if _DIGEST.fullmatch(value) is None:
        raise _RejectedLine("field_invalid: digest")
    return Digest(value)


def _path(key: str, value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigError(
            "telemetry_option_invalid",
            f"telemetry option {key!r} is not a path",
            "name a JSON-lines file",
            key=key,
            value=str(value),
            accepted="path of a JSON-lines file",
        )
    return value
