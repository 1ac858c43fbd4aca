"""Figures of a place that has lived: which brake holds, and how many versions it has served."""

from __future__ import annotations

from pathlib import Path

from conftest_cli import ENV, PLACE, SERVICE, write_model

from rearguard.officer import automation, deployments, registration
from rearguard.officer.metrics import Living, Metrics, Sample
from rearguard.officer.office import Office, open_office


def figures(office: Office, name: str) -> dict[tuple[str, ...], float]:
    """Values of one family by their labels after service and environment."""
    now = office.clock.now()
    found = Metrics(office).collect(Living(up=True, started=now), now)
    return {f.labels[2:]: f.value for f in found if isinstance(f, Sample) and f.metric.name == f"rearguard_{name}"}


def test_the_brake_that_holds_is_1_and_every_other_0(ready: Path) -> None:
    free = {(reason,): 0 for reason in ("observe", "automation_paused", "freeze_window", "cool_down", "budget_spent")}
    with open_office(ready) as office:
        assert figures(office, "held_back") == free
        automation.pause(office, service=SERVICE, env=None, by="ana", reason="night")
        assert figures(office, "held_back") == {**free, ("automation_paused",): 1}
        automation.set_armed(office, PLACE, armed=False, by="ana")
        assert figures(office, "held_back") == {**free, ("observe",): 1}


def test_a_version_counts_once_and_only_when_it_was_in_front_of_traffic(fresh: Path, tmp_path: Path) -> None:
    with open_office(fresh) as office:
        seen = [figures(office, "versions_served")[()]]
        for version in ("v1", "v2"):
            model, golden = write_model(tmp_path / version, version)
            registration.add(office, model, service=SERVICE, version=version, golden_file=golden)
        for version in ("v1", "v2", "v1"):
            deployments.deploy(office, service=SERVICE, env=ENV, version=version, by="ops")
            seen.append(figures(office, "versions_served")[()])
    assert seen == [0, 1, 2, 2]
