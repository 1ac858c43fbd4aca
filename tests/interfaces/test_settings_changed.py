"""Settings or a playbook that were edited under a living officer: told everywhere, and nothing is approved on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest_cli import ENV, SERVICE
from conftest_ready import Person, Process, Start, breach, error_of, office_at, rearguard, start, until

from rearguard.officer import overview
from rearguard.officer.office import open_office

__all__ = ["start"]
SAID = "settings were changed after the officer started: restart it"


def edit(state: Path, name: str) -> None:
    """A comment more: the file says the same, and its bytes are others."""
    file = state / name
    file.write_text(file.read_text(encoding="utf-8") + "# edited\n", encoding="utf-8")


@pytest.fixture
def watching(guarded: Path, start: Start) -> Process:
    watch = start("watch", "--state", guarded, "--json")
    until(lambda: watch.events("watch_started"), "the officer is in office")
    return watch


def shown(state: Path, *words: str) -> Any:
    return json.loads(rearguard(*words, "--state", state, "--json").stdout)


def told(state: Path) -> dict[str, bool]:
    """Which commands say it, by their JSON."""
    gate = shown(state, "gate", SERVICE, "--env", ENV)
    return {
        "status": shown(state, "status")["officer"]["settings_changed"],
        "doctor": any(c["message"] == SAID for c in shown(state, "doctor")),
        "gate": "settings_changed" in {c["code"] for c in gate["checks"] if c["outcome"] == "inconclusive"},
        "automation": all(p["settings_changed"] for p in shown(state, "automation", "show")),
    }


@pytest.mark.usefixtures("watching")
@pytest.mark.parametrize("name", ["rearguard.yaml", "rollback_playbook.yaml"])
def test_every_view_says_so_while_the_officer_works_with_the_old_ones(guarded: Path, name: str) -> None:
    assert set(told(guarded).values()) == {False}
    edit(guarded, name)
    assert set(told(guarded).values()) == {True}
    for words in (("status",), ("automation", "show")):
        assert SAID in rearguard(*words, "--state", guarded).stdout


def test_nothing_is_said_without_an_officer_or_after_its_restart(
    guarded: Path, watching: Process, start: Start
) -> None:
    edit(guarded, "rearguard.yaml")
    assert watching.end() == 0
    assert set(told(guarded).values()) == {False}
    again = start("watch", "--state", guarded, "--json")
    until(lambda: again.events("watch_started"), "the next officer is in office")
    assert set(told(guarded).values()) == {False}


@pytest.mark.usefixtures("watching")
def test_an_approval_is_refused_before_it_is_signed(guarded: Path, tmp_path: Path) -> None:
    ana = Person(guarded, tmp_path, "ana")
    edit(guarded, "rearguard.yaml")
    with open_office(guarded) as office:  # the plan is that of the edited file, the officer has another
        run_id = breach(office)
    refused = error_of(rearguard("approve", run_id, "--key", ana.private, "--state", guarded, "--json"))
    assert refused == (30, "settings_changed")
    assert shown(guarded, "approve", str(run_id))["approval"] == "needed"


def test_an_officer_that_hangs_is_told_as_that_and_not_as_this(guarded: Path, watching: Process) -> None:
    """A lease is 15 s; whoever takes over reads the files anew."""
    edit(guarded, "rearguard.yaml")
    with office_at(guarded, 60) as office:
        found = overview.overview(office).officer
    assert watching.handle.poll() is None
    assert (found.state, found.settings_changed) == ("hung", False)
