"""The one door: every operation is marked, and what is marked as reading works without any right to write."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest_cli import ENV, PLACE, SERVICE, Lived

from rearguard import officer
from rearguard.database import open_read_only
from rearguard.errors import DependencyError
from rearguard.interfaces import cli
from rearguard.officer import automation, reporting
from rearguard.officer.office import Office, open_office
from rearguard.officer.operation import OPERATIONS, Effect

MODULES = sorted(path.stem for path in Path(officer.__file__).parent.glob("*.py") if path.stem != "__init__")
for _name in MODULES:
    importlib.import_module(f"rearguard.officer.{_name}")

NOT_OPERATIONS = {
    "office.open_office",
    "office.place",
    "office.clock",
    "automation.command",
    "registry.command",
    "checkpoints.shown",
    "refusals.answers_nothing",
}
"""How an interface opens the door, and what it may ask of it; groups of commands that have a module's name; values."""

READING: dict[str, Callable[[Office, Lived], Any]] = {
    "approvals.show": lambda office, lived: call("approvals.show", office, lived.run_id),
    "automation.armed": lambda office, _: automation.armed(office, PLACE),
    "automation.standing": lambda office, _: automation.standing(office),
    "checkpoints.list_checkpoints": lambda office, _: call("checkpoints.list_checkpoints", office),
    "checkpoints.find": lambda office, _: call("checkpoints.find", office, service=SERVICE, version="v1"),
    "deployments.list_deployments": lambda office, _: call("deployments.list_deployments", office),
    "gate.gate": lambda office, _: call("gate.gate", office, service=SERVICE, env=ENV, deploy="v2"),
    "incidents.list_incidents": lambda office, _: call("incidents.list_incidents", office),
    "incidents.show": lambda office, lived: call("incidents.show", office, lived.incident_id),
    "incidents.evidence_of": lambda office, lived: call("incidents.evidence_of", office, lived.incident_id),
    "incident_view.view": lambda office, lived: call("incident_view.view", office, lived.incident_id),
    "messages.list_messages": lambda office, _: call("messages.list_messages", office),
    "keys.list_keys": lambda office, _: call("keys.list_keys", office),
    "mirroring.standing": lambda office, _: call("mirroring.standing", office),
    "overview.overview": lambda office, _: call("overview.overview", office),
    "registry.diff": lambda office, lived: call("registry.diff", office, lived.state / "checkpoint_registry.yaml"),
    "registry.verify": lambda office, _: call("registry.verify", office),
    "remedies.of_checkpoint": lambda office, _: call(
        "remedies.of_checkpoint",
        office,
        call("checkpoints.find", office, service=SERVICE, version="v1"),
        "blob_altered",
    ),
    "reporting.status_report": lambda office, _: call("reporting.status_report", office),
    "reporting.verify_evidence": lambda office, _: call("reporting.verify_evidence", office),
    "reporting.render": lambda office, _: reporting.render(reporting.status_report(office), form="markdown"),
    "retention.plan": lambda office, _: call("retention.plan", office),
    "rollbacks.list_runs": lambda office, _: call("rollbacks.list_runs", office),
    "rollbacks.unfinished": lambda office, _: call("rollbacks.unfinished", office),
    "rollbacks.show": lambda office, lived: call("rollbacks.show", office, lived.run_id),
    "rollbacks.plan": lambda office, _: call("rollbacks.plan", office, service=SERVICE, env=ENV),
    "setup.doctor": lambda office, _: call("setup.doctor", office),
    "standing.standings": lambda office, _: call("standing.standings", office, call("rollbacks.list_runs", office)),
    "standing.stranded_runs": lambda office, _: call("standing.stranded_runs", office),
    "telemetry.telemetry": lambda office, _: call("telemetry.telemetry", office, service=SERVICE, env=ENV, last="1h"),
}
"""How each operation that changes nothing is called."""


def call(name: str, *arguments: object, **named: object) -> Any:
    module, _, function = name.partition(".")
    return getattr(importlib.import_module(f"rearguard.officer.{module}"), function)(*arguments, **named)


def content(folder: Path) -> dict[str, bytes]:
    """All files but SQLite's shared memory, which readers of a writable folder make."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(("-shm", "-wal"))
    }


def test_there_is_a_call_for_every_operation_that_changes_nothing() -> None:
    assert set(READING) == {name for name, effect in OPERATIONS.items() if effect is not Effect.COMMIT}


@pytest.mark.parametrize("name", READING)
def test_an_operation_that_reads_works_on_a_read_only_office(lived: Lived, name: str) -> None:
    with open_office(lived.state, write=False) as office:
        assert READING[name](office, lived) is not None


@pytest.mark.parametrize("name", READING)
def test_an_operation_that_reads_changes_no_file(copy: Lived, name: str) -> None:
    before = content(copy.state)
    with open_office(copy.state, write=False) as office:
        READING[name](office, copy)
    assert content(copy.state) == before


def test_an_operation_that_commits_is_refused_by_a_read_only_office(copy: Lived) -> None:
    with open_office(copy.state, write=False) as office, pytest.raises(DependencyError) as refused:
        automation.set_armed(office, PLACE, armed=True, by="ops")
    assert refused.value.code == "database_unavailable"


def test_a_read_only_office_needs_no_settings_to_be_read(lived: Lived) -> None:
    """They are read when an operation asks for them."""
    office = Office(state=lived.state, settings_path=Path("absent"), database=open_read_only(lived.state))
    assert reporting.verify_evidence(office).ok
    office.close()


def calls_of_interfaces() -> Iterator[tuple[str, str]]:
    """File and `module.function` of everything that a CLI module calls on a module of the officer."""
    for path in sorted(Path(cli.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            match node.func:
                case ast.Attribute(value=ast.Name(id=module), attr=function) if module in MODULES:
                    yield path.name, f"{module}.{function}"


def test_every_function_that_the_command_line_calls_is_a_marked_operation() -> None:
    called = set(calls_of_interfaces())
    assert len(called) > 15
    assert {(file, name) for file, name in called if name not in OPERATIONS and name not in NOT_OPERATIONS} == set()


def test_every_operation_takes_the_office_first_or_writes_the_first_files_or_renders() -> None:
    first = {name: next(iter(inspect.signature(resolve(name)).parameters)) for name in OPERATIONS}
    without = {name for name, parameter in first.items() if parameter != "office"}
    assert without == {"setup.init", "reporting.render", "keys.new", "daemon.run"}  # a daemon holds its office


def resolve(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(f"rearguard.officer.{module}"), function)
    return found
