"""The command line: exit codes, JSON, help, and reports that anybody can recompute."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from conftest_cli import ENV, PLACE, SERVICE, Lived, write_model, write_settings

from rearguard.errors import ConflictError
from rearguard.interfaces.cli import main as cli_main
from rearguard.officer import overview

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`rearguard WORDS` in this process, in an empty folder: exit code, standard output, standard error."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("REARGUARD_STATE", raising=False)
    monkeypatch.delenv("REARGUARD_CONFIG", raising=False)

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli_main.main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return call


def process(*words: object, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """The same in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REARGUARD_")} | variables
    return subprocess.run(
        [sys.executable, "-m", "rearguard.interfaces.cli", *(str(word) for word in words)],
        capture_output=True,
        env=environment,
        timeout=60,
        check=False,
    )


def commands(group: click.Group = cli_main.cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group by its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        yield (*path, name)
        if isinstance(found, click.Group):
            yield from commands(found, (*path, name))


COMMANDS = tuple(commands())


# --- help


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_help(run: Run, words: tuple[str, ...]) -> None:
    code, out, _ = run(*words, "--help")
    assert code == 0
    assert out.startswith(f"Usage: rearguard {' '.join(words)} ")


def test_help_names_every_command(run: Run) -> None:
    _, out, _ = run("--help")
    assert {words[0] for words in COMMANDS} <= set(re.findall(r"^  (\w+) ", out, re.MULTILINE))


def test_the_version_is_told(run: Run) -> None:
    code, out, _ = run("--version")
    assert (code, out.startswith("rearguard, version ")) == (0, True)


# --- exit codes


def exit_0(run: Run, lived: Lived) -> tuple[object, ...]:
    return "status", "--state", lived.state


def exit_10(run: Run, lived: Lived) -> tuple[object, ...]:
    return "report", "render", "--exit-code", "--state", lived.state


def exit_20(run: Run, copy: Lived) -> tuple[object, ...]:
    return "doctor", "--state", copy.state  # v1 serves and v2 is quarantined: nothing to roll back to


def exit_30(run: Run, lived: Lived) -> tuple[object, ...]:
    return "rollback", "plan", SERVICE, "--state", lived.state


def exit_64_option(run: Run, lived: Lived) -> tuple[object, ...]:
    return "status", "--unknown"


def exit_64_command(run: Run, lived: Lived) -> tuple[object, ...]:
    return ("unknown",)


def exit_64_name(run: Run, lived: Lived) -> tuple[object, ...]:
    return "incident", "show", "R-99", "--state", lived.state


def exit_64_state(run: Run, lived: Lived) -> tuple[object, ...]:
    return "status", "--config", lived.state / "rearguard.yaml", "--state", lived.state / "absent"


def exit_65(run: Run, copy: Lived) -> tuple[object, ...]:
    path = copy.state / "rollback_log.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"ops"', '"nobody"', 1), encoding="utf-8")
    return "log", "verify", "--state", copy.state


def exit_69(run: Run, copy: Lived) -> tuple[object, ...]:
    shutil.rmtree(copy.state / "blobs" / "sha256")
    (copy.state / "blobs" / "sha256").write_text("no folder", encoding="utf-8")
    model, golden = write_model(copy.state.parent / "v3", "v3")
    return (
        "checkpoint",
        "add",
        model,
        "--service",
        SERVICE,
        "--version",
        "v3",
        "--golden",
        golden,
        "--state",
        copy.state,
    )


def exit_75(run: Run, copy: Lived) -> tuple[object, ...]:
    return "init", copy.state


def exit_78_missing(run: Run, copy: Lived) -> tuple[object, ...]:
    (copy.state / "rearguard.yaml").unlink()
    return "status", "--state", copy.state


def exit_78_wrong(run: Run, copy: Lived) -> tuple[object, ...]:
    path = copy.state / "rearguard.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "surprise: 1\n", encoding="utf-8")
    return "status", "--state", copy.state


@pytest.mark.parametrize(
    ("code", "prepare"),
    [
        (0, exit_0),
        (10, exit_10),
        (20, exit_20),
        (30, exit_30),
        (64, exit_64_option),
        (64, exit_64_command),
        (64, exit_64_name),
        (64, exit_64_state),
        (65, exit_65),
        (69, exit_69),
        (75, exit_75),
        (78, exit_78_missing),
        (78, exit_78_wrong),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_each_exit_code_means_what_the_table_says(
    run: Run, copy: Lived, code: int, prepare: Callable[[Run, Lived], tuple[object, ...]]
) -> None:
    assert run(*prepare(run, copy))[0] == code


def test_a_fault_of_our_own_is_70_and_asks_for_a_report(
    run: Run, lived: Lived, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "overview", lambda _office: 1 // 0)
    code, out, err = run("status", "--state", lived.state)
    assert (code, out) == (70, "")
    assert err.startswith("error: ZeroDivisionError: integer division or modulo by zero [internal]\nhint: ")


def test_an_error_tells_what_to_do_next(run: Run, tmp_path: Path) -> None:
    _, _, err = run("status", "--state", tmp_path)
    assert err.endswith("hint: write one with `rearguard init`, or name it with --config\n")


def test_a_real_process_ends_with_the_code(lived: Lived) -> None:
    done = process("rollback", "plan", SERVICE, "--state", lived.state)
    assert (done.returncode, b"no_verified_checkpoint" in done.stdout) == (30, True)


def test_an_answer_that_nobody_read_is_141_and_never_0(lived: Lived) -> None:
    """`rearguard report render | true`; a gate goes on only on 0."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "rearguard.interfaces.cli", "report", "render", "--state", str(lived.state)],
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


# --- JSON


READING = [
    ("status",),
    ("doctor",),
    ("checkpoint", "list"),
    ("checkpoint", "verify"),
    ("deployment", "list"),
    ("incident", "list"),
    ("incident", "show", "R-1"),
    ("rollback", "plan", SERVICE),
    ("rollback", "run", SERVICE),
    ("runs", "list"),
    ("runs", "show", "RUN"),
    ("report", "render"),
    ("log", "verify"),
    ("postmortem", "new", "R-1"),
    ("arm", SERVICE),
    ("disarm", SERVICE),
    ("incident", "ack", "R-1"),
    ("checkpoint", "release", "--service", SERVICE, "--version", "v2", "--env", ENV, "--reason", "mended"),
]


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_json_is_one_value_on_standard_output(run: Run, copy: Lived, words: tuple[str, ...]) -> None:
    named = [copy.run_id if word == "RUN" else word for word in words]
    code, out, _ = run(*named, "--state", copy.state, "--json")
    assert code in (0, 20, 30)
    assert isinstance(json.loads(out), dict | list)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("incident", "show", "R-99"), "incident_unknown"),
        (("runs", "show", "run_x"), "run_unknown"),
        (("runs", "cancel", "RUN"), "run_ended"),
        (("incident", "close", "R-1"), "incident_closed"),
        (("deploy", SERVICE, "v2"), "quarantined"),
        (("deploy", SERVICE, "v9"), "checkpoint_unknown"),
        (("deployment", "record", SERVICE, "v2"), "quarantined"),
        (("rollback", "run", SERVICE, "--execute"), "no_verified_checkpoint"),
        (("arm", "other"), "service_unknown"),
        (("arm", SERVICE, "--env", "other"), "env_unknown"),
        (("report", "render", "--as-of", "yesterday"), "as_of_malformed"),
        (("status", "--unknown"), "usage"),
        (("checkpoint", "verify", "--version", "v1"), "usage"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_an_error_is_json_too(run: Run, copy: Lived, words: tuple[str, ...], code: str) -> None:
    named = [copy.run_id if word == "RUN" else word for word in words]
    _, out, err = run(*named, "--state", copy.state, "--json")
    error = json.loads(out)["error"]
    assert (set(error), error["code"]) == ({"code", "message", "hint"}, code)
    assert err.startswith(f"error: {error['message']} [{code}]\n")


def test_json_shows_instants_as_rfc_3339(run: Run, lived: Lived) -> None:
    _, out, _ = run("deployment", "list", "--state", lived.state, "--json")
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", d["started_at"]) for d in json.loads(out))


# --- where the state is


def test_the_state_directory_may_be_named_by_the_environment(
    run: Run, lived: Lived, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REARGUARD_STATE", str(lived.state))
    assert run("log", "verify")[0] == 0


def test_an_option_beats_the_environment(
    run: Run, lived: Lived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REARGUARD_STATE", str(tmp_path / "elsewhere"))
    assert run("log", "verify", "--state", lived.state)[0] == 0


def test_settings_may_be_named_by_the_environment(
    run: Run, copy: Lived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = write_settings(tmp_path / "settings") / "rearguard.yaml"
    (copy.state / "rearguard.yaml").unlink()
    monkeypatch.setenv("REARGUARD_CONFIG", str(settings))
    assert run("status", "--state", copy.state)[0] == 0


def test_settings_are_found_in_the_current_folder(run: Run, copy: Lived) -> None:
    """`init` writes them there."""
    (copy.state / "rearguard.yaml").rename("rearguard.yaml")
    (copy.state / "rollback_playbook.yaml").rename("rollback_playbook.yaml")
    assert run("status", "--state", copy.state)[0] == 0


def test_a_reading_command_creates_no_state(run: Run, fresh: Path) -> None:
    run("status", "--config", fresh / "rearguard.yaml")
    assert list(Path().iterdir()) == []


# --- the first day


def test_init_then_doctor_tells_what_is_missing(run: Run) -> None:
    """A model server that is not there is a failure; settings and state folder are well."""
    assert run("init", ".", "--service", SERVICE, "--url", "http://127.0.0.1:9")[0] == 0
    code, out, _ = run("doctor", "--json")
    outcomes = {check["name"]: check["outcome"] for check in json.loads(out)}
    assert code == 20
    assert (outcomes["settings"], outcomes["playbook"], outcomes["state"]) == ("pass", "pass", "pass")
    assert (outcomes[f"{PLACE} target"], outcomes[f"{PLACE} rollback target"]) == ("fail", "fail")


def test_init_overwrites_nothing_unless_forced(run: Run) -> None:
    codes = [run("init", ".")[0], run("init", ".")[0], run("init", ".", "--force")[0]]
    assert codes == [0, ConflictError.exit_code, 0]


@pytest.mark.parametrize("value", ["0", "-1", "fast", "nan", "inf"])
def test_init_refuses_a_latency_target_that_is_none(run: Run, value: str) -> None:
    assert run("init", ".", "--target-p95-ms", value)[0] == 64


def test_a_day_by_hand_from_add_to_rollback(run: Run, fresh: Path) -> None:
    for version in ("v1", "v2"):
        model, golden = write_model(fresh.parent / version, version)
        named = ("--service", SERVICE, "--version", version, "--golden", golden)
        assert run("checkpoint", "add", model, *named, "--state", fresh)[0] == 0
        assert run("deploy", SERVICE, version, "--state", fresh)[0] == 0
    assert run("rollback", "run", SERVICE, "--state", fresh)[1].endswith("nothing was done: add --execute\n")
    code, out, _ = run("rollback", "run", SERVICE, "--execute", "--state", fresh)
    assert (code, ": succeeded\n" in out) == (0, True)
    assert json.loads(run("status", "--state", fresh, "--json")[1])["places"][0]["version"] == "v1"


@pytest.fixture
def ready(run: Run, copy: Lived) -> Lived:
    """v2 is released, so that it may be asked for; a run may take two seconds."""
    write_settings(copy.state, deadline_s=2)
    words = ("--service", SERVICE, "--version", "v2", "--env", ENV, "--reason", "mended", "--state", copy.state)
    assert run("checkpoint", "release", *words)[0] == 0
    return copy


def test_a_rollback_whose_target_is_down_ends_with_20(run: Run, ready: Lived) -> None:
    (ready.state / "down").touch()
    code, out, _ = run("rollback", "run", SERVICE, "--to", "v2", "--execute", "--state", ready.state, "--json")
    assert (code, json.loads(out)["run"]["state"]) == (20, "failed")


def test_a_deployment_whose_target_is_down_ends_with_69(run: Run, ready: Lived) -> None:
    (ready.state / "down").touch()
    code, out, _ = run("deploy", SERVICE, "v2", "--state", ready.state, "--json")
    assert (code, json.loads(out)["error"]["code"]) == (69, "target_failed")


# --- the log


def test_a_changed_byte_is_told_with_file_and_record(run: Run, copy: Lived) -> None:
    exit_65(run, copy)
    code, out, _ = run("log", "verify", "--state", copy.state, "--json")
    found = json.loads(out)
    assert (code, found["ok"], found["file"], found["code"]) == (65, False, "rollback_log.json", "record_differs")


# --- the report


def test_a_report_is_the_same_bytes_whoever_renders_it(lived: Lived) -> None:
    rendered = {
        process("report", "render", "--state", lived.state, TZ=tz, LANG=lang, LC_ALL=lang, PYTHONHASHSEED=seed).stdout
        for tz, lang, seed in (
            ("UTC", "C", "0"),
            ("Pacific/Kiritimati", "C.UTF-8", "1"),
            ("America/St_Johns", "de_DE.UTF-8", "4294967295"),
        )
    }
    assert len(rendered) == 1
    assert rendered.pop().startswith(b"### ROLLBACK STATUS SUMMARY (\xe2\x89\xa4 120 words)\n")


def test_a_report_ends_with_its_closing_line(run: Run, lived: Lived) -> None:
    _, out, _ = run("report", "render", "--state", lived.state)
    last = out.removesuffix("\n").rpartition("\n")[2]
    assert re.fullmatch(
        r"> \*\*Rollback Officer Verdict:\*\* (Ready|Partial|Failed) — RTO =\d+\.\d+ min, RPO =\d+\.\d+ min, "
        rf"Success =\d+ %, evidence =`rollback_log\.json#{lived.run_id}`\.",
        last,
    )


def test_every_record_and_run_that_a_report_cites_is_in_the_log(run: Run, lived: Lived) -> None:
    _, out, _ = run("report", "render", "--state", lived.state)
    entries = {e["id"]: e for e in json.loads((lived.state / "rollback_log.json").read_text())["entries"]}
    cited = re.findall(r"`rollback_log\.json#(\d+)` (run_\w+)", out)
    assert len(cited) >= 5
    assert {int(record_id) for record_id, _ in cited} <= set(entries)
    assert {run_id for _, run_id in cited} == {lived.run_id}
    assert lived.run_id in {entry["run_id"] for entry in entries.values()}


def test_the_rto_of_a_report_is_the_one_in_the_record_that_it_cites(run: Run, lived: Lived) -> None:
    _, out, _ = run("report", "render", "--state", lived.state)
    row = re.search(r"^\| RTO \(min\) \| < 10 \| (\S+) \(max, n=1\) .*`rollback_log\.json#(\d+)`", out, re.MULTILINE)
    assert row is not None
    entries: list[dict[str, Any]] = json.loads((lived.state / "rollback_log.json").read_text())["entries"]
    body = entries[int(row[2]) - 1]["body"]
    assert abs(float(row[1]) - body["rto_achieved_ms"] / 60_000) <= 0.05
    assert body["rto_achieved_ms"] == sum(body["parts_ms"].values()) > 60_000  # t0 lies 60 s before the run


def test_a_report_as_of_an_earlier_instant_leaves_out_what_came_later(run: Run, lived: Lived) -> None:
    _, out, _ = run("report", "render", "--as-of", "2020-01-01T00:00:00Z", "--state", lived.state, "--json")
    assert json.loads(out)["incidents"] == []


# --- the post-mortem


def test_a_post_mortem_is_written_beside_its_twin_and_cites_the_run(run: Run, copy: Lived) -> None:
    code, out, _ = run("postmortem", "new", copy.incident_id, "--state", copy.state)
    path = Path(out.strip())
    assert (code, path) == (0, copy.state / "postmortems" / copy.incident_id / "postmortem_report.md")
    assert copy.run_id in path.read_text(encoding="utf-8")
    assert path.read_bytes() == (copy.state / "postmortem_report.md").read_bytes()
    assert json.loads(path.with_suffix(".json").read_text())["format"] == "rearguard.postmortem/1"


@pytest.mark.parametrize("name", ["R-99", "../../etc", "R-"])
def test_a_post_mortem_of_no_incident_is_refused_and_writes_nothing(run: Run, copy: Lived, name: str) -> None:
    assert run("postmortem", "new", name, "--state", copy.state)[0] == 64
    assert not (copy.state / "postmortems").exists()


def test_a_released_version_is_no_way_back_until_it_served_again(run: Run, ready: Lived) -> None:
    """It was rolled back; that it served at all is no merit."""
    code, out, _ = run("rollback", "plan", SERVICE, "--state", ready.state, "--json")
    rejected = {r["version"]: r["reason"] for r in json.loads(out)["selection"]["rejected"]}
    assert (code, rejected["v2"]) == (30, "never_served")


def test_a_version_that_never_served_is_no_automatic_target(run: Run, fresh: Path) -> None:
    for version in ("v1", "v2"):
        model, golden = write_model(fresh.parent / version, version)
        named = ("--service", SERVICE, "--version", version, "--golden", golden)
        assert run("checkpoint", "add", model, *named, "--state", fresh)[0] == 0
    assert run("deploy", SERVICE, "v1", "--state", fresh)[0] == 0
    code, out, _ = run("rollback", "plan", SERVICE, "--state", fresh)
    assert (code, "v2" in out, "never_served" in out) == (30, True, True)


def test_settings_alone_name_the_state_beside_them(run: Run, fresh: Path, tmp_path: Path) -> None:
    """From another folder `--config` must not open another, empty state."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    model, golden = write_model(tmp_path / "v1", "v1")
    added = ("checkpoint", "add", model, "--service", SERVICE, "--version", "v1", "--golden", golden)
    assert run(*added, "--config", fresh / "rearguard.yaml")[0] == 0
    assert (fresh / ".rearguard" / "rearguard.db").exists()
    assert run("arm", SERVICE, "--state", fresh / ".rearguard")[0] == 0


def test_disarm_never_begins_a_state(run: Run, fresh: Path) -> None:
    code, out, _ = run("disarm", SERVICE, "--config", fresh / "rearguard.yaml", "--json")
    assert (code, json.loads(out)["error"]["code"]) == (64, "state_absent")
    assert not (fresh / ".rearguard").exists()


def test_closing_an_incident_again_reassesses_it(run: Run, copy: Lived) -> None:
    assert run("incident", "close", copy.incident_id, "--false-positive", "--state", copy.state)[0] == 0
    kinds = [e["kind"] for e in json.loads((copy.state / "rollback_log.json").read_text())["entries"]]
    assert (kinds.count("incident_closed"), kinds.count("incident_reassessed")) == (1, 1)
