"""The JSON-lines telemetry source: the public conformance suite, and what files do to a reader."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rearguard.adapters.telemetry import jsonl, log_follower
from rearguard.adapters.telemetry.jsonl import build
from rearguard.errors import ConfigError, DependencyError
from rearguard.model.service import Digest, Place
from rearguard.model.telemetry import Observation, RequestSeen, ScoreSeen
from rearguard.model.time import NS_PER_MS, NS_PER_S, Instant
from rearguard.ports import TelemetrySource
from rearguard.testing.telemetry import TelemetryConformance

PLACE = TelemetryConformance.PLACE
DIGEST = TelemetryConformance.DIGEST
NOW = TelemetryConformance.NOW
SINCE = TelemetryConformance.SINCE


def stamp(wall_ns: int) -> str:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=wall_ns // NS_PER_MS)
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


def request_line(number: int, *, seconds_ago: float = 10, **changes: object) -> bytes:
    """A request whose latency is its number, so that a test can name it."""
    ago_ns = round(seconds_ago * NS_PER_S)
    fields: dict[str, object] = {
        "ts": stamp(NOW.wall_ns - ago_ns),
        "mono_ns": NOW.mono_ns - ago_ns,
        "boot_id": NOW.boot_id,
        "service": "fraud",
        "env": "prod",
        "digest": DIGEST,
        "version": "7",
        "status": 200,
        "latency_ms": number,
        "id": f"req-{number}",
        "probe": False,
    } | changes
    return json.dumps({k: v for k, v in fields.items() if v is not ...}).encode() + b"\n"


def score_line(score: str, *, seconds_ago: float = 10, **changes: object) -> bytes:
    at = stamp(NOW.wall_ns - round(seconds_ago * NS_PER_S))
    fields: dict[str, object] = {"ts": at, "service": "fraud", "env": "prod", "digest": DIGEST, "score": 0} | changes
    return json.dumps(fields).replace('"score": 0', f'"score": {score}').encode() + b"\n"


def append(path: Path, *lines: bytes) -> None:
    with path.open("ab") as file:
        file.write(b"".join(lines))


def numbers(observations: Sequence[Observation]) -> list[int]:
    return [int(seen.latency_ms) for seen in observations if isinstance(seen, RequestSeen) and seen.latency_ms]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    return tmp_path / "scores.jsonl"


@pytest.fixture
def source(log: Path, scores: Path) -> Iterator[TelemetrySource]:
    opened = build(PLACE, {"requests": str(log), "scores": str(scores)}, SINCE)
    yield opened
    opened.close()


@pytest.fixture
def reopen(log: Path) -> Iterator[Callable[[], TelemetrySource]]:
    opened: list[TelemetrySource] = []

    def again() -> TelemetrySource:
        opened.append(build(PLACE, {"requests": str(log)}, SINCE))
        return opened[-1]

    yield again
    for one in opened:
        one.close()


class TestJsonlKeepsThePromisesOfThePort(TelemetryConformance):
    @pytest.fixture(autouse=True)
    def _outside(self, log: Path, scores: Path) -> None:
        self.log, self.scores = log, scores

    def open_source(self, place: Place, since: Instant) -> TelemetrySource:
        return build(place, {"requests": str(self.log), "scores": str(self.scores)}, since)

    def emit(self, observations: Sequence[Observation]) -> None:
        for seen in observations:
            fields = {
                "ts": stamp(seen.at_wall_ns),
                "mono_ns": seen.at_mono_ns,
                "boot_id": NOW.boot_id,
                "service": seen.place.service,
                "env": seen.place.env,
                "digest": seen.digest,
            }
            if isinstance(seen, ScoreSeen):
                append(self.scores, (json.dumps(fields)[:-1] + f', "score": {seen.score}}}\n').encode())
                continue
            fields |= {"version": "7", "id": "r", "probe": False, "status": 503 if seen.failed else 200}
            latency = "null" if seen.latency_ms is None else str(seen.latency_ms)
            append(self.log, (json.dumps(fields)[:-1] + f', "latency_ms": {latency}}}\n').encode())

    def emit_nonsense(self) -> None:
        append(self.log, b"Traceback (most recent call last):\n")


# Files


def test_a_file_missing_at_first_is_read_once_it_is_there(log: Path, source: TelemetrySource) -> None:
    assert source.poll(NOW) == []
    append(log, request_line(1))
    assert numbers(source.poll(NOW)) == [1]


def test_a_partial_last_line_waits_for_its_newline(log: Path, source: TelemetrySource) -> None:
    line = request_line(2)
    append(log, request_line(1), line[:40])
    assert numbers(source.poll(NOW)) == [1]
    append(log, line[40:-1])
    assert source.poll(NOW) == []
    append(log, b"\n", request_line(3))
    assert numbers(source.poll(NOW)) == [2, 3]
    assert source.health().rejected == 0


def test_after_a_rename_the_rest_of_the_old_file_is_read_first(log: Path, source: TelemetrySource) -> None:
    append(log, request_line(1))
    source.poll(NOW)
    append(log, request_line(2))
    log.rename(log.with_suffix(".1"))
    append(log, request_line(3))
    assert numbers(source.poll(NOW)) == [2, 3]


def test_between_rename_and_creation_the_old_file_goes_on(log: Path, source: TelemetrySource) -> None:
    append(log, request_line(1))
    source.poll(NOW)
    log.rename(log.with_suffix(".1"))
    append(log.with_suffix(".1"), request_line(2))
    assert numbers(source.poll(NOW)) == [2]
    append(log, request_line(3))
    assert numbers(source.poll(NOW)) == [3]


def test_a_writer_that_still_holds_the_rotated_file_is_heard_for_a_minute(log: Path, source: TelemetrySource) -> None:
    append(log, request_line(1))
    source.poll(NOW)
    with log.open("ab", buffering=0) as slow:
        log.rename(log.with_suffix(".1"))
        append(log, request_line(2))
        assert numbers(source.poll(NOW)) == [2]
        slow.write(request_line(3))
        assert numbers(source.poll(NOW.plus(59 * NS_PER_S))) == [3]
        assert source.poll(NOW.plus(61 * NS_PER_S)) == []
        slow.write(request_line(4))
    assert source.poll(NOW.plus(62 * NS_PER_S)) == []


def test_a_line_that_never_ended_in_a_rotated_file_is_rejected(log: Path, source: TelemetrySource) -> None:
    append(log, request_line(1)[:30])
    source.poll(NOW)
    log.rename(log.with_suffix(".1"))
    append(log, request_line(2))
    source.poll(NOW)
    source.poll(NOW.plus(61 * NS_PER_S))
    assert (source.health().rejected, source.health().last_rejection) == (1, "requests: line_cut_off")


def test_a_file_deleted_and_created_again_is_read_from_its_start(log: Path, source: TelemetrySource) -> None:
    # The reader holds the old file, so the kernel cannot hand its inode number to the new one.
    append(log, request_line(1), request_line(2))
    source.poll(NOW)
    log.unlink()
    append(log, request_line(3))
    assert numbers(source.poll(NOW)) == [3]


def test_a_file_replaced_by_rename_is_read_from_its_start(log: Path, source: TelemetrySource) -> None:
    append(log, request_line(1))
    source.poll(NOW)
    other = log.with_suffix(".new")
    append(other, request_line(2), request_line(3))
    other.rename(log)
    assert numbers(source.poll(NOW)) == [2, 3]


def test_a_truncated_file_is_read_from_its_start(log: Path, source: TelemetrySource) -> None:
    append(log, request_line(1), request_line(2))
    source.poll(NOW)
    os.truncate(log, 0)
    append(log, request_line(3))
    assert numbers(source.poll(NOW)) == [3]


def test_a_truncated_file_that_has_outgrown_our_place_is_read_from_its_start(
    log: Path, source: TelemetrySource
) -> None:
    append(log, request_line(1))
    source.poll(NOW)
    os.truncate(log, 0)
    append(log, request_line(2), request_line(3), request_line(4))
    assert numbers(source.poll(NOW)) == [2, 3, 4]


def test_a_partial_line_lost_to_truncation_is_rejected_and_not_joined(log: Path, source: TelemetrySource) -> None:
    append(log, request_line(1), request_line(2)[:50])
    source.poll(NOW)
    os.truncate(log, 0)
    append(log, request_line(3))
    assert numbers(source.poll(NOW)) == [3]
    assert (source.health().rejected, source.health().last_rejection) == (1, "requests: line_cut_off")


def test_lines_of_several_writers_are_all_read(log: Path, source: TelemetrySource) -> None:
    with log.open("ab", buffering=0) as one, log.open("ab", buffering=0) as two:
        for number in range(1, 201):
            (one if number % 3 else two).write(request_line(number))
            if number % 50 == 0:
                assert numbers(source.poll(NOW)) == list(range(number - 49, number + 1))


def test_a_line_of_64_kib_is_read_and_one_byte_more_is_rejected(log: Path, source: TelemetrySource) -> None:
    base = len(request_line(1, note=""))
    append(log, request_line(1, note="x" * (65_537 - base)))
    append(log, request_line(2, note="x" * (65_538 - base)))
    append(log, request_line(3))
    assert numbers(source.poll(NOW)) == [1, 3]
    assert (source.health().rejected, source.health().last_rejection) == (1, "requests: line_too_long")


def test_an_endless_line_is_rejected_once_and_skipped_to_its_newline(log: Path, source: TelemetrySource) -> None:
    for _ in range(3):
        append(log, b"x" * 70_000)
        assert source.poll(NOW) == []
    assert source.health().rejected == 1
    append(log, b"tail\n", request_line(1))
    assert numbers(source.poll(NOW)) == [1]
    assert source.health().rejected == 1


def test_a_poll_stops_at_its_line_limit_and_the_next_goes_on(
    log: Path, source: TelemetrySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINES_PER_POLL", 4)
    append(log, *(request_line(number) for number in range(1, 11)))
    assert [numbers(source.poll(NOW)) for _ in range(4)] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10], []]


def test_a_poll_stops_at_its_byte_limit_and_the_next_goes_on(
    log: Path, source: TelemetrySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [request_line(number) for number in (1, 2, 3)]
    monkeypatch.setattr(jsonl, "MAX_BYTES_PER_POLL", len(lines[0]) + 10)
    append(log, *lines)
    assert [numbers(source.poll(NOW)) for _ in range(3)] == [[1], [2], [3]]


def test_a_busy_request_log_does_not_starve_the_scores(
    log: Path, scores: Path, source: TelemetrySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINES_PER_POLL", 4)
    append(log, *(request_line(number) for number in range(1, 100)))
    append(scores, score_line("1"), score_line("2"), score_line("3"))
    kinds = [type(seen).__name__ for seen in source.poll(NOW)]
    assert kinds == ["ScoreSeen", "ScoreSeen", "RequestSeen", "RequestSeen"]


def test_unread_lines_of_a_poll_that_stopped_survive_a_truncation(
    log: Path, source: TelemetrySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINES_PER_POLL", 2)
    append(log, *(request_line(number) for number in range(1, 6)))
    assert numbers(source.poll(NOW)) == [1, 2]
    os.truncate(log, 0)
    append(log, request_line(6))
    assert [numbers(source.poll(NOW)) for _ in range(3)] == [[3, 4], [5, 6], []]


def test_a_restart_starts_on_a_whole_line_wherever_the_block_falls(
    log: Path, reopen: Callable[[], TelemetrySource], monkeypatch: pytest.MonkeyPatch
) -> None:
    append(log, *(request_line(ago, seconds_ago=ago) for ago in range(900, 0, -1)))
    for block in range(300, 310):
        monkeypatch.setattr(log_follower, "_BACKLOG_BLOCK_BYTES", block)
        opened = reopen()
        assert numbers(opened.poll(NOW)) == list(range(600, 0, -1))
        assert opened.health().rejected == 0


def test_the_first_poll_reads_at_most_the_backlog_limit(
    log: Path, reopen: Callable[[], TelemetrySource], monkeypatch: pytest.MonkeyPatch
) -> None:
    line_bytes = len(request_line(500))
    monkeypatch.setattr(log_follower, "MAX_BACKLOG_BYTES", 5 * line_bytes)
    append(log, *(request_line(number, seconds_ago=5) for number in range(500, 600)))
    assert numbers(reopen().poll(NOW)) == [595, 596, 597, 598, 599]


def test_a_late_line_does_not_hide_wanted_lines_before_it_from_a_restart(
    log: Path, reopen: Callable[[], TelemetrySource], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last block begins with a line that is old, but by less than the minute of disorder that is allowed for.
    wanted, late = request_line(1, seconds_ago=595), request_line(2, seconds_ago=650)
    monkeypatch.setattr(log_follower, "_BACKLOG_BLOCK_BYTES", 2 * len(late))
    append(log, request_line(9, seconds_ago=900), wanted, wanted, late, request_line(3, seconds_ago=5))
    assert numbers(reopen().poll(NOW)) == [1, 1, 3]


def test_an_empty_poll_means_that_nothing_wanted_is_left(
    log: Path, source: TelemetrySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINES_PER_POLL", 4)
    append(log, *(request_line(number, env="staging") for number in range(1, 12)), request_line(99))
    assert [numbers(source.poll(NOW)) for _ in range(2)] == [[99], []]


def test_a_poll_reads_only_so_far_for_something_wanted(
    log: Path, source: TelemetrySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINES_PER_POLL", 4)
    append(log, *(request_line(number, env="staging") for number in range(1, 21)), request_line(99))
    assert [numbers(source.poll(NOW)) for _ in range(2)] == [[], [99]]


def test_old_lines_at_the_start_are_skipped_without_being_parsed(
    log: Path, reopen: Callable[[], TelemetrySource], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_follower, "_BACKLOG_BLOCK_BYTES", 4096)
    append(log, *(b"garbage %d\n" % number for number in range(5000)))
    append(log, *(request_line(ago, seconds_ago=ago) for ago in range(2000, 0, -1)))
    opened = reopen()
    assert numbers(opened.poll(NOW)) == list(range(600, 0, -1))
    assert opened.health().rejected == 0


def test_a_folder_in_place_of_the_log_is_a_dependency_error(log: Path, source: TelemetrySource) -> None:
    log.mkdir()
    with pytest.raises(DependencyError) as caught:
        source.poll(NOW)
    assert caught.value.code == "telemetry_unreadable"
    assert caught.value.hint


def test_a_fifo_in_place_of_the_log_is_refused_without_waiting(log: Path, source: TelemetrySource) -> None:
    os.mkfifo(log)
    assert stat.S_ISFIFO(log.stat().st_mode)
    with pytest.raises(DependencyError):
        source.poll(NOW)


def test_an_unreadable_log_neither_hides_behind_the_other_nor_costs_what_it_said(
    log: Path, scores: Path, source: TelemetrySource
) -> None:
    log.mkdir()
    append(scores, score_line("50"))
    assert len(source.poll(NOW)) == 1
    append(scores, score_line("60"))
    with pytest.raises(DependencyError):
        source.poll(NOW)
    assert [str(seen.score) for seen in source.poll(NOW) if isinstance(seen, ScoreSeen)] == ["60"]


def test_a_closed_source_refuses_to_poll(source: TelemetrySource) -> None:
    source.close()
    with pytest.raises(DependencyError) as caught:
        source.poll(NOW)
    assert caught.value.code == "telemetry_closed"


# Clocks


def test_a_step_of_the_wall_clock_does_not_move_a_stamped_request(log: Path, source: TelemetrySource) -> None:
    # Written 10 s ago by a wall clock that was an hour ahead and has been set right since.
    append(log, request_line(1, ts=stamp(NOW.wall_ns + 3590 * NS_PER_S)))
    assert [seen.at_mono_ns for seen in source.poll(NOW)] == [NOW.mono_ns - 10 * NS_PER_S]


def test_a_request_of_another_boot_is_placed_by_the_wall_clock(log: Path, source: TelemetrySource) -> None:
    append(log, request_line(1, seconds_ago=30, boot_id="another", mono_ns=999_999 * NS_PER_S))
    assert [seen.at_mono_ns for seen in source.poll(NOW)] == [NOW.mono_ns - 30 * NS_PER_S]


def test_a_since_of_another_boot_is_compared_by_the_wall_clock(log: Path) -> None:
    since = Instant(wall_ns=NOW.wall_ns - 20 * NS_PER_S, mono_ns=10**18, boot_id="another")
    append(log, request_line(1, seconds_ago=21), request_line(2, seconds_ago=20))
    opened = build(PLACE, {"requests": str(log)}, since)
    assert numbers(opened.poll(NOW)) == [2]
    opened.close()


def test_a_score_without_stamp_is_placed_by_the_wall_clock(scores: Path, source: TelemetrySource) -> None:
    append(scores, score_line("50", seconds_ago=7.25))
    assert [seen.at_mono_ns for seen in source.poll(NOW)] == [NOW.mono_ns - 7_250_000_000]


def test_a_score_with_a_stamp_of_this_boot_is_placed_by_it(scores: Path, source: TelemetrySource) -> None:
    append(scores, score_line("50", mono_ns=NOW.mono_ns - 3, boot_id=NOW.boot_id))
    assert [seen.at_mono_ns for seen in source.poll(NOW)] == [NOW.mono_ns - 3]


def test_a_late_line_keeps_its_own_instant(log: Path, source: TelemetrySource) -> None:
    append(log, request_line(1, seconds_ago=1))
    source.poll(NOW)
    append(log, request_line(2, seconds_ago=120))
    assert [seen.at_mono_ns for seen in source.poll(NOW)] == [NOW.mono_ns - 120 * NS_PER_S]


def test_sixty_seconds_ahead_is_accepted_and_more_is_rejected(log: Path, source: TelemetrySource) -> None:
    append(log, request_line(1, seconds_ago=-60), request_line(2, seconds_ago=-60.001))
    assert numbers(source.poll(NOW)) == [1]
    assert source.health().last_rejection == "requests: in_the_future"


# Lines


def test_golden_probes_are_left_out_silently(log: Path, source: TelemetrySource) -> None:
    append(log, request_line(1, probe=True), request_line(2))
    assert numbers(source.poll(NOW)) == [2]
    assert (source.health().accepted, source.health().rejected) == (1, 0)


def test_answers_of_a_server_with_nothing_loaded_are_left_out_silently(log: Path, source: TelemetrySource) -> None:
    append(log, request_line(1, digest="", version="", status=503), request_line(2))
    assert numbers(source.poll(NOW)) == [2]
    assert (source.health().accepted, source.health().rejected) == (1, 0)


@pytest.mark.parametrize(
    ("status", "failed"), [(0, True), (200, False), (302, False), (404, False), (499, False), (500, True), (599, True)]
)
def test_a_request_failed_when_the_server_did(log: Path, source: TelemetrySource, status: int, failed: bool) -> None:
    append(log, request_line(1, status=status))
    assert [seen.failed for seen in source.poll(NOW) if isinstance(seen, RequestSeen)] == [failed]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ts": ...}, "field_missing: ts"),
        ({"ts": "2026-11-23T09:14:03"}, "field_invalid: ts"),
        ({"ts": "2026-W47-1T09:14:03Z"}, "field_invalid: ts"),
        ({"ts": "2026-02-30T09:14:03.000Z"}, "field_invalid: ts"),
        ({"ts": 1795425243}, "field_invalid: ts"),
        ({"mono_ns": ...}, "field_missing: mono_ns"),
        ({"mono_ns": 1.5}, "field_invalid: mono_ns"),
        ({"mono_ns": -1}, "field_invalid: mono_ns"),
        ({"boot_id": None}, "field_invalid: boot_id"),
        ({"service": ...}, "field_missing: service"),
        ({"env": 3}, "field_invalid: env"),
        ({"digest": "sha256:" + "AB" * 32}, "field_invalid: digest"),
        ({"digest": "sha256:" + "ab" * 31}, "field_invalid: digest"),
        ({"digest": DIGEST + "\n"}, "field_invalid: digest"),
        ({"digest": "", "status": "503"}, "field_invalid: status"),
        ({"version": ...}, "field_missing: version"),
        ({"id": 7}, "field_invalid: id"),
        ({"status": "200"}, "field_invalid: status"),
        ({"status": True}, "field_invalid: status"),
        ({"status": 99}, "field_invalid: status"),
        ({"status": 600}, "field_invalid: status"),
        ({"latency_ms": ...}, "field_missing: latency_ms"),
        ({"latency_ms": -0.001}, "field_invalid: latency_ms"),
        ({"latency_ms": "12"}, "field_invalid: latency_ms"),
        ({"latency_ms": True}, "field_invalid: latency_ms"),
        ({"latency_ms": float("nan")}, "not_json"),
        ({"latency_ms": float("inf")}, "not_json"),
        ({"probe": ...}, "field_missing: probe"),
        ({"probe": 0}, "field_invalid: probe"),
    ],
)
def test_a_request_line_that_breaks_the_format_is_rejected(
    log: Path, source: TelemetrySource, changes: dict[str, Any], reason: str
) -> None:
    append(log, request_line(1, **changes))
    assert source.poll(NOW) == []
    assert (source.health().rejected, source.health().last_rejection) == (1, f"requests: {reason}")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "not_json"),
        (b"\xff\xfe{}", "not_json"),
        (b'{"ts": "2026-11-23T09:14:03.000Z"', "not_json"),
        (b"[" * 60_000, "not_json"),
        (b"1" * 5_000, "not_json"),
        (b"[1, 2]", "not_an_object"),
        (b"null", "not_an_object"),
        (b'{"status": 200, "status": 500}', "field_repeated"),
        (b'{"latency_ms": 1e99999999999999999999}', "not_json"),
    ],
)
def test_a_line_that_is_no_json_object_is_rejected(
    log: Path, source: TelemetrySource, line: bytes, reason: str
) -> None:
    append(log, line + b"\n", request_line(1))
    assert numbers(source.poll(NOW)) == [1]
    assert (source.health().rejected, source.health().last_rejection) == (1, f"requests: {reason}")


@pytest.mark.parametrize("score", ["-0.0001", "100.0001", "null", '"97"', "true", "1e-99", "1e400"])
def test_a_score_outside_0_to_100_or_no_number_is_rejected(scores: Path, source: TelemetrySource, score: str) -> None:
    append(scores, score_line(score))
    assert source.poll(NOW) == []
    assert source.health().last_rejection == "scores: field_invalid: score"


@pytest.mark.parametrize("score", ["0", "100", "100.0", "99.99999999999999999999999999999999"])
def test_a_score_keeps_its_text(scores: Path, source: TelemetrySource, score: str) -> None:
    append(scores, score_line(score))
    assert [str(seen.score) for seen in source.poll(NOW) if isinstance(seen, ScoreSeen)] == [score]


def test_half_a_stamp_on_a_score_is_rejected(scores: Path, source: TelemetrySource) -> None:
    append(scores, score_line("50", mono_ns=1))
    source.poll(NOW)
    assert source.health().last_rejection == "scores: field_missing: boot_id"


def test_unknown_fields_are_ignored(log: Path, source: TelemetrySource) -> None:
    append(log, request_line(1, trace={"a": [1]}))
    assert numbers(source.poll(NOW)) == [1]


def test_windows_line_ends_are_accepted(log: Path, source: TelemetrySource) -> None:
    append(log, request_line(1)[:-1] + b"\r\n")
    assert numbers(source.poll(NOW)) == [1]


def test_a_rejection_names_no_data_of_the_line(log: Path, source: TelemetrySource) -> None:
    append(log, request_line(1, id={"customer": "secret"}), b"secret\n")
    source.poll(NOW)
    assert "secret" not in source.health().last_rejection


# Options


def test_an_unknown_option_is_a_config_error_that_lists_the_known(log: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        build(PLACE, {"requests": str(log), "request": "x"}, SINCE)
    assert (caught.value.code, caught.value.key) == ("telemetry_option_unknown", "request")
    assert caught.value.accepted == "requests, scores"


def test_the_request_log_must_be_named() -> None:
    with pytest.raises(ConfigError) as caught:
        build(PLACE, {"scores": "s"}, SINCE)
    assert (caught.value.code, caught.value.key) == ("telemetry_option_missing", "requests")


@pytest.mark.parametrize("value", ["", 3, None, ["a"], "a\0b"])
def test_an_option_that_is_no_path_is_a_config_error(value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        build(PLACE, {"requests": value}, SINCE)
    assert caught.value.code == "telemetry_option_invalid"


def test_an_observation_carries_the_exact_latency_and_digest(log: Path, source: TelemetrySource) -> None:
    other = Digest("sha256:" + "0123456789abcdef" * 4)
    append(log, request_line(1, digest=other).replace(b'"latency_ms": 1,', b'"latency_ms": 125.001,'))
    [seen] = source.poll(NOW)
    assert isinstance(seen, RequestSeen)
    assert (seen.digest, seen.latency_ms) == (other, Decimal("125.001"))
