"""`automation pause | resume | show`, freeze windows at `deploy`, and what `status` and the plan say of the brakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest_cli import ENV, PLACE, SERVICE, Lived

from rearguard.database import sql
from rearguard.edge import SystemClock
from rearguard.evidence.log import read
from rearguard.interfaces.cli.main import main
from rearguard.model.time import NS_PER_S, rfc3339
from rearguard.officer import automation, deployments, incidents
from rearguard.officer.office import open_office


class Console:
    """The command line in this process, on one state directory."""

    def __init__(self, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.state = state
        self._capsys = capsys
        self.err = ""

    def __call__(self, *words: str) -> tuple[int, str]:
        """Exit code and standard output."""
        with pytest.raises(SystemExit) as ended:
            main([*words, "--state", str(self.state)])
        out, self.err = self._capsys.readouterr()
        return int(ended.value.code or 0), out

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json")[1])


@pytest.fixture
def console(copy: Lived, capsys: pytest.CaptureFixture[str]) -> Console:
    return Console(copy.state, capsys)


def freeze(state: Path, *, hours: int = 2, holds: str = "both") -> str:
    """Freeze the place from an hour ago on; returns the end."""
    now_ns = SystemClock().now().wall_ns
    start, end = rfc3339(now_ns - 3600 * NS_PER_S), rfc3339(now_ns + (hours - 1) * 3600 * NS_PER_S)
    path = state / "rearguard.yaml"
    window = f'{{from: "{start}", to: "{end}", reason: audit, holds: {holds}}}'
    text = path.read_text(encoding="utf-8").rstrip() + f"\n        brakes: {{freeze: [{window}]}}\n"
    path.write_text(text, encoding="utf-8")
    return end


def arm(state: Path) -> None:
    with open_office(state) as office:
        automation.set_armed(office, PLACE, armed=True, by="ops")


def release(state: Path) -> None:
    with open_office(state) as office, office.database.transaction() as connection:
        connection.execute(sql("DELETE FROM quarantine"))


def deploy_v2(state: Path) -> None:
    """v2 serves again and v1 did before it, so that there is a way back."""
    release(state)
    with open_office(state) as office:
        deployments.deploy(office, service=SERVICE, env=ENV, version="v2", by="ops")


def automation_column(console: Console) -> str:
    (line,) = [line for line in console("status")[1].splitlines() if line.startswith(str(PLACE))]
    return line.split()[1]


def test_a_pause_without_a_reason_is_a_usage_error(console: Console) -> None:
    assert console("automation", "pause")[0] == 64
    assert "--reason" in console.err


def test_a_pause_everywhere_shows_at_each_place_with_who_and_why(console: Console) -> None:
    arm(console.state)
    code, said = console("automation", "pause", "--reason", "audit", "--by", "eve")
    assert (code, said.splitlines()[0]) == (0, "everywhere: paused (a breach is recorded and told, nothing is done)")
    shown = console("automation", "show")[1]
    assert [line.split()[:3] for line in shown.splitlines()[1:2]] == [[str(PLACE), "paused", "automation_paused"]]
    assert "by eve: audit" in shown.splitlines()[-1]


def test_a_pause_and_a_resume_are_evidence(console: Console) -> None:
    console("automation", "pause", SERVICE, "--reason", "audit", "--by", "eve")
    console("automation", "resume", SERVICE, "--by", "bob")
    with open_office(console.state, write=False) as office, office.database.reading() as connection:
        toggles = [r for r in read(connection) if r.kind in ("automation_paused", "automation_resumed")]
    assert [(r.kind, r.service, r.env, r.body["by"], r.body["env"]) for r in toggles] == [
        ("automation_paused", SERVICE, None, "eve", "*"),
        ("automation_resumed", SERVICE, None, "bob", "*"),
    ]


def test_the_json_of_a_pause_names_every_pause_in_force(console: Console) -> None:
    console("automation", "pause", "--reason", "audit")
    found = console.json("automation", "pause", SERVICE, "--env", ENV, "--reason", "deeper")
    assert (found["service"], found["env"], found["changed"]) == (SERVICE, ENV, True)
    assert [(p["service"], p["env"], p["reason"]) for p in found["paused"]] == [
        ("*", "*", "audit"),
        (SERVICE, ENV, "deeper"),
    ]


def test_a_resume_with_other_words_resumes_nothing_and_names_the_pause(console: Console) -> None:
    console("automation", "pause", "--reason", "audit", "--by", "eve")
    code, said = console("automation", "resume", SERVICE)
    assert (code, said.splitlines()[1]) == (30, "paused everywhere by eve: audit")
    assert console.err == "to resume what is paused: rearguard automation resume\n"


@pytest.mark.parametrize(
    "words",
    [(), ("--env", ENV), (SERVICE,), (SERVICE, "--env", ENV)],
)
def test_the_command_that_resumes_a_pause_is_named_with_its_own_words(console: Console, words: tuple[str, ...]) -> None:
    arm(console.state)
    console("automation", "pause", *words, "--reason", "audit")
    command = " ".join(("rearguard automation resume", *words))
    (check,) = [c for c in console.json("gate", SERVICE)["checks"] if c["name"] == "automation"]
    shown = console("automation", "show")[1]
    assert (check["hint"], f"{PLACE}: to resume: {command}" in shown.splitlines()) == (command, True)
    assert console("automation", "resume", *words)[0] == 0


def test_an_unknown_service_is_not_paused_in_silence(console: Console) -> None:
    code, _ = console("automation", "pause", "fruad", "--reason", "audit")
    assert (code, "service_unknown" in console.err) == (64, True)


def test_the_json_of_show_has_the_documented_fields(console: Console) -> None:
    (found,) = console.json("automation", "show")
    page = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| `automation show`") and "held_by" in line]
    assert {name for name in found if f"`{name}`" not in row} == set()


def test_status_says_observe_armed_paused_and_frozen(console: Console) -> None:
    seen = [automation_column(console)]
    arm(console.state)
    seen.append(automation_column(console))
    console("automation", "pause", "--reason", "audit")
    seen.append(automation_column(console))
    console("automation", "resume")
    freeze(console.state)
    seen.append(automation_column(console))
    assert seen == ["observe", "armed", "paused", "frozen"]


def test_status_as_json_has_paused_and_frozen(console: Console) -> None:
    console("automation", "pause", "--reason", "audit")
    freeze(console.state)
    (place,) = console.json("status")["places"]
    assert (place["armed"], place["paused"], place["frozen"]) == (False, True, True)


@pytest.mark.parametrize("words", [("deploy", SERVICE, "v2"), ("deployment", "record", SERVICE, "v1")])
def test_a_deployment_in_a_freeze_window_is_refused_until_its_end(console: Console, words: tuple[str, ...]) -> None:
    release(console.state)  # what is quarantined is refused for that
    end = freeze(console.state)
    code, _ = console(*words)
    assert (code, "[freeze_window]" in console.err, f"it ends {end}" in console.err) == (30, True, True)


def test_a_window_that_holds_rollbacks_only_lets_deployments_pass(console: Console) -> None:
    freeze(console.state, holds="rollbacks")
    assert console("deployment", "record", SERVICE, "v1")[0] == 0


def test_the_plan_says_which_brake_would_hold_automation_and_is_not_held_itself(console: Console) -> None:
    deploy_v2(console.state)
    console("automation", "pause", "--reason", "audit")
    arm(console.state)
    code, said = console("rollback", "plan", SERVICE)
    assert "automation is held back by automation_paused; a rollback by hand is not" in said
    found = console.json("rollback", "plan", SERVICE)
    assert (code, found["automation_held_by"], found["automation_held_until"], found["refusals"]) == (
        0,
        "automation_paused",
        None,
        [],
    )


def test_a_rollback_by_hand_runs_while_everything_holds_automation(console: Console) -> None:
    deploy_v2(console.state)
    freeze(console.state, holds="rollbacks")
    console("automation", "pause", "--reason", "audit")
    code, said = console("rollback", "run", SERVICE, "--execute", "--by", "ops")
    assert (code, "succeeded" in said) == (0, True)


def test_doctor_says_what_holds_automation(console: Console) -> None:
    arm(console.state)
    end = freeze(console.state, holds="rollbacks")
    (check,) = [c for c in console.json("doctor") if c["name"] == f"{PLACE} automation"]
    assert (check["outcome"], check["hint"]) == ("inconclusive", "rearguard automation show")
    assert check["message"].startswith(f"armed, but held back by freeze_window until {end}")


def test_the_incident_of_a_place_that_observes_has_no_run(lived: Lived) -> None:
    with open_office(lived.state, write=False) as office, office.database.reading() as connection:
        (withheld,) = [r for r in read(connection) if r.kind == "rollback_withheld"]
        found = incidents.show(office, lived.incident_id)
    assert (withheld.body["reason"], withheld.body["until_ts"], withheld.body["after_run_id"]) == (
        "observe",
        None,
        None,
    )
    assert found.run_id == lived.run_id  # the one by hand
