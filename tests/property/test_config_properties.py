"""Laws of the settings files: reading ends in a value or in one ConfigError, whatever stands in the file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rearguard.config.document import parse_document
from rearguard.config.playbook import read_playbook
from rearguard.config.reader import duration_of
from rearguard.config.settings import read_settings
from rearguard.config.templates import playbook_template, settings_template
from rearguard.errors import ConfigError

SETTINGS = settings_template(
    service="digits",
    env="prod",
    url="http://127.0.0.1:8080",
    model="digits",
    requests_log="r.jsonl",
    scores_log="s.jsonl",
    target_p95_ms=Decimal(120),
)
# Without comments, blank lines and inline comments each line is one key or one list entry.
LINES = [
    line
    for raw in SETTINGS.splitlines()
    if (line := raw.split("  #")[0].rstrip()) and not line.lstrip().startswith("#")
]
PLAYBOOK_LINES = [
    line
    for raw in playbook_template().splitlines()
    if (line := raw.split("  #")[0].rstrip()) and not line.startswith("#")
]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        Path(name, "rollback_playbook.yaml").write_text(playbook_template(), encoding="utf-8")
        yield Path(name)


def refusal_of(attempt: Callable[[], object]) -> ConfigError | None:
    """The ConfigError that `attempt` ends in, or None; anything else that it raises gets out."""
    try:
        attempt()
    except ConfigError as error:
        return error
    return None


def read_both(folder: Path, raw: bytes) -> None:
    """Read `raw` as either file; only ConfigError may come out, and its message is one short line."""
    path = folder / "any.yaml"
    path.write_bytes(raw)
    for error in (refusal_of(lambda: read_settings(path)), refusal_of(lambda: read_playbook(path))):
        if error is not None:
            told = error.message.removeprefix(str(path))
            assert told.isprintable()
            assert len(told) < 2_000
            assert error.accepted
            error.value.encode("utf-8")


@given(raw=st.binary(max_size=2_000))
@example(raw=b'"\\UFFFFFFFF"')
@example(raw=b'"\\ud800"')
@example(raw=b"%YAML 1.1\n---\n")
@example(raw=b"\xef\xbb\xbf")
def test_any_bytes_read_or_raise_config_error(folder: Path, raw: bytes) -> None:
    read_both(folder, raw)


PIECES = st.sampled_from(
    [*"[]{},:?-&*!|>'\"%@`#~\\ \n\t\r", "- ", ": ", "? ", "<<", "---", "...", "a", "\\U00110000", "\\x", "!!",
     "%YAML 1.1\n", "\u2028", "\ufeff", "\x85", "\x1b", "version", "services", "steps", "1", "name",
     "  ", "null", "${A}"]
)  # fmt: skip


@given(text=st.lists(PIECES, max_size=60).map("".join))
def test_any_heap_of_yaml_signs_reads_or_raises_config_error(folder: Path, text: str) -> None:
    read_both(folder, text.encode())


@given(data=st.data(), lines=st.sampled_from([LINES, PLAYBOOK_LINES]))
def test_a_good_file_with_a_damaged_span_reads_or_raises_config_error(
    folder: Path, data: st.DataObject, lines: list[str]
) -> None:
    text = "\n".join(lines) + "\n"
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    damage = data.draw(st.one_of(st.text(max_size=20), st.lists(PIECES, max_size=8).map("".join)))
    read_both(folder, (text[:start] + damage + text[end:]).encode("utf-8", "surrogatepass"))


NOT_A_KEY = "zz_unknown"
# Where keys are names that the file chooses, or options of an adapter, no key is unknown.
OPEN = ("oncall:", "digits:", "prod:", "adapter:", "url:", "model:", "requests:", "scores:")


def places_for_a_key(lines: list[str]) -> list[int]:
    """Indices of lines before which a sibling key can be put and is not accepted."""
    return [i for i, line in enumerate(lines) if not line.strip().startswith((*OPEN, "- "))]


@given(at=st.sampled_from(places_for_a_key(LINES)))
def test_an_unknown_key_anywhere_in_the_settings_is_refused_with_its_line(folder: Path, at: int) -> None:
    assert_unknown(folder, LINES, at, read_settings)


@given(at=st.sampled_from(places_for_a_key(PLAYBOOK_LINES)))
def test_an_unknown_key_anywhere_in_the_playbook_is_refused_with_its_line(folder: Path, at: int) -> None:
    assert_unknown(folder, PLAYBOOK_LINES, at, read_playbook)


def assert_unknown(folder: Path, lines: list[str], at: int, reader: Callable[[Path], object]) -> None:
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    path = folder / "unknown.yaml"
    path.write_text("\n".join([*lines[:at], f"{indent}{NOT_A_KEY}: 1", *lines[at:]]), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        reader(path)
    error = caught.value
    assert (error.code, error.line) == ("config_unknown_key", at + 1)
    assert error.key.split(".")[-1] == NOT_A_KEY


PRINTABLE = st.text(min_size=1, max_size=60).filter(lambda text: text.isprintable() and "${" not in text)
NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)


@given(
    service=NAMES,
    env=NAMES,
    url=PRINTABLE,
    model=PRINTABLE,
    target=st.decimals("0.001", "999999", allow_nan=False, places=3),
)
@example(service="no", env="1", url="@MODEL@", model='"\\', target=Decimal("0.001"))
@example(service="1e5", env="2026-11-23", url="a: b #c", model="- x", target=Decimal("120"))
def test_a_template_reads_back_what_it_was_given(
    folder: Path, service: str, env: str, url: str, model: str, target: Decimal
) -> None:
    path = folder / "rearguard.yaml"
    text = settings_template(
        service=service,
        env=env,
        url=url,
        model=model,
        requests_log="r",
        scores_log=None,
        target_p95_ms=target,
    )
    path.write_text(text, encoding="utf-8")
    place = read_settings(path).places[0]
    assert (place.place.service, place.place.env) == (service, env)
    assert place.target.options == {"url": url, "model": model}
    assert place.triggers.latency_target_p95_ms == target


@given(ms=st.integers(0, 10**12))
def test_a_duration_in_milliseconds_and_in_seconds_is_the_same(ms: int) -> None:
    assert duration_of(f"{ms // 1_000}.{ms % 1_000:03d} s") == ms


@given(raw=st.binary(max_size=300))
def test_reading_the_same_bytes_twice_gives_the_same(raw: bytes) -> None:
    first, second = (refusal_of(lambda: parse_document(raw, "f")) for _ in range(2))
    assert (first is None) is (second is None)
    if first is None or second is None:
        assert parse_document(raw, "f") == parse_document(raw, "f")
    else:
        assert (first.code, first.message, first.line) == (second.code, second.message, second.line)
