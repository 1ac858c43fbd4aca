"""`checkpoint gc | mirror | repair` as people and programs meet them, and who tells of storage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from conftest_cli import ENV, PLACE, SERVICE, Lived, write_model, write_settings
from conftest_ready import error_of, office_at, rearguard, records

from rearguard.checkpoints import registry
from rearguard.checkpoints.storage import domain_of
from rearguard.database import sql
from rearguard.model.time import NS_PER_S
from rearguard.officer import gate, registration, setup, storage
from rearguard.officer.metrics import Living, Metrics, Sample
from rearguard.officer.office import open_office

KEEP_NOTHING = "checkpoints: {retention: {keep_last: 1, keep: 1 s}}\n"


def with_settings(state: Path, more: str) -> Path:
    """The settings of the folder and `more`."""
    file = write_settings(state) / "rearguard.yaml"
    file.write_text(file.read_text(encoding="utf-8") + more, encoding="utf-8")
    return state


@pytest.fixture
def crowded(copy: Lived, tmp_path: Path) -> Path:
    """v1 serves, v2 is quarantined, v3 never served and is old, v4 is the newest."""
    with_settings(copy.state, KEEP_NOTHING)
    with open_office(copy.state) as office:
        for version in ("v3", "v4"):
            model, golden = write_model(tmp_path / version, version)
            registration.add(office, model, service=SERVICE, version=version, golden_file=golden)
        minute_ago = registry.encode_instant(office.clock.now().plus(-60 * NS_PER_S))
        with office.database.transaction() as connection:
            connection.execute(sql("UPDATE checkpoints SET added_at = :at WHERE version = 'v3'"), {"at": minute_ago})
    return copy.state


@pytest.fixture
def mirrored(copy: Lived, tmp_path: Path) -> Path:
    """With an empty folder for the second copy."""
    (tmp_path / "second").mkdir()
    return with_settings(copy.state, f"checkpoints: {{mirror: {tmp_path / 'second'}}}\n")


def test_a_dry_run_names_what_goes_and_why_the_rest_stays(crowded: Path) -> None:
    done = rearguard("checkpoint", "gc", "--state", crowded, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["executed"], [one["version"] for one in found["leaving"]]) == (0, False, ["v3"])
    why = {one["version"]: {(r["keep"], r["about"]) for r in one["reasons"]} for one in found["staying"]}
    at = f"{SERVICE}/{ENV}"
    assert ("active", at) in why["v1"]
    assert ("quarantined", at) in why["v2"]
    assert {("newest", ""), ("last_verified", at)} <= why["v4"]
    assert (
        found["swept"]["blobs"] == 3
    )  # its own file, its manifest and config; the model and the golden set are shared
    table = rearguard("checkpoint", "gc", "--state", crowded).stdout
    assert f"active {at}" in table
    assert "1 checkpoints would go, 3 stay" in table
    assert "Nothing was done" in table


def test_an_executed_collection_is_in_the_evidence_and_its_label_stays_taken(crowded: Path, tmp_path: Path) -> None:
    done = rearguard("checkpoint", "gc", "--execute", "--by", "ops", "--state", crowded)
    assert (done.returncode, "1 checkpoints gone, 3 stay" in done.stdout) == (0, True)
    assert [(r.body["version"], r.body["by"]) for r in records(crowded, "checkpoint_retired")] == [("v3", "ops")]
    assert rearguard("log", "verify", "--state", crowded).returncode == 0
    assert rearguard("registry", "verify", "--state", crowded).returncode == 0
    words = ["--service", SERVICE, "--version", "v3", "--state", crowded, "--json"]
    model, golden = write_model(tmp_path / "again", "other bytes")
    added = rearguard("checkpoint", "add", model, "--golden", golden, *words)
    assert error_of(added) == (75, "version_retired")
    assert error_of(rearguard("checkpoint", "verify", *words)) == (64, "checkpoint_retired")


def test_a_second_copy_is_made_shown_and_handed_over(mirrored: Path, tmp_path: Path) -> None:
    """The folder alone is enough to take the checkpoints in elsewhere."""
    words = ["--state", mirrored, "--json"]
    before = rearguard("checkpoint", "mirror", *words)
    assert (before.returncode, json.loads(before.stdout)["behind"]) == (10, [f"{SERVICE} v1", f"{SERVICE} v2"])
    done = rearguard("checkpoint", "mirror", "--now", *words)
    assert (done.returncode, json.loads(done.stdout)["copied"]) == (0, 2)
    assert rearguard("checkpoint", "mirror", *words).returncode == 0
    assert rearguard("registry", "verify", *words).returncode == 0
    domain = domain_of(mirrored)
    listed = json.loads(rearguard("checkpoint", "list", *words).stdout)
    assert [[copy["domain"] for copy in row["copies"]] for row in listed] == [[domain], [domain]]
    exported = yaml.safe_load((mirrored / "checkpoint_registry.yaml").read_text(encoding="utf-8"))
    assert [c["copies"][0]["domain"] for c in exported["checkpoints"]] == [domain, domain]
    fresh, second = write_settings(tmp_path / "elsewhere"), tmp_path / "second"
    rearguard("doctor", "--state", fresh)  # begins the state
    taken = rearguard(
        *(
            "registry",
            "import",
            second / "checkpoint_registry.yaml",
            "--blobs",
            second,
            "--yes",
            "--state",
            fresh,
            "--json",
        )
    )
    assert (taken.returncode, json.loads(taken.stdout)["added"]) == (0, 2), taken.stdout


def test_a_state_without_a_second_copy_says_how_to_have_one(copy: Lived) -> None:
    done = rearguard("checkpoint", "mirror", "--state", copy.state)
    assert (done.returncode, "checkpoints.mirror" in done.stdout) == (10, True)
    assert error_of(rearguard("checkpoint", "mirror", "--now", "--state", copy.state, "--json")) == (
        78,
        "mirror_not_declared",
    )


def test_a_disk_that_is_away_exits_69_and_fails_the_doctor(mirrored: Path, tmp_path: Path) -> None:
    (tmp_path / "second").rmdir()
    done = rearguard("checkpoint", "mirror", "--now", "--state", mirrored, "--json")
    assert error_of(done) == (69, "mirror_unavailable")
    with open_office(mirrored, write=False) as office:
        (check,) = [c for c in setup.doctor(office) if c.name == "second copy"]
    assert check.outcome.value == "fail"
    assert check.message.startswith("mirror_unavailable")


def test_a_repair_needs_a_name_or_all(copy: Lived) -> None:
    for words in ([], ["--service", SERVICE], ["--all", "--service", SERVICE, "--version", "v1"]):
        assert rearguard("checkpoint", "repair", *words, "--state", copy.state).returncode == 64


def test_a_repair_mends_from_the_command_line(mirrored: Path) -> None:
    rearguard("checkpoint", "mirror", "--now", "--state", mirrored)
    with open_office(mirrored, write=False) as office:
        row = next(r for r in json.loads(rearguard("checkpoint", "list", "--state", mirrored, "--json").stdout))
        blob = office.store.blobs / row["checkpoint"]["golden_sha256"]
    blob.unlink()
    assert rearguard("checkpoint", "verify", "--state", mirrored).returncode == 65
    done = rearguard("checkpoint", "repair", "--all", "--state", mirrored, "--json")
    assert (done.returncode, [r["ok"] for r in json.loads(done.stdout)]) == (0, [True, True])
    assert rearguard("checkpoint", "verify", "--state", mirrored).returncode == 0


# --- storage domains


def declare(state: Path, domain: str) -> None:
    file = state / "rearguard.yaml"
    text = file.read_text(encoding="utf-8")
    assert text.count("        recovery:") == 1
    file.write_text(
        text.replace("        recovery:", f"        storage_domain: {domain}\n        recovery:"), encoding="utf-8"
    )


@pytest.mark.parametrize(("domain", "code"), [(None, "same_storage_domain"), ("elsewhere", "")])
def test_the_gate_warns_of_one_storage_and_refuses_nothing_for_it(ready: Path, domain: str | None, code: str) -> None:
    if domain:
        declare(ready, domain)
    with office_at(ready) as office:
        (check,) = [c for c in gate.gate(office, service=SERVICE, env=ENV).checks if c.name == "storage"]
    assert (check.outcome.value, check.code, bool(check.hint)) == ("pass", code, bool(code))


@pytest.mark.parametrize(("domain", "outcome"), [(None, "inconclusive"), ("elsewhere", "pass")])
def test_the_doctor_looks_at_where_the_way_back_lies(ready: Path, domain: str | None, outcome: str) -> None:
    if domain:
        declare(ready, domain)
    with office_at(ready) as office:
        (check,) = [c for c in setup.doctor(office) if c.name == f"{PLACE} storage"]
    assert check.outcome.value == outcome
    assert domain_of(ready) in check.message


@pytest.mark.parametrize(
    ("url", "known"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://localhost:8080", True),
        ("http://[::1]:8080", True),
        ("http://10.0.0.1:8080", False),
        ("http://models.internal", False),
        ("", False),
    ],
)
def test_a_service_that_is_reached_over_loopback_reads_this_disk(url: str, known: bool) -> None:
    assert storage._is_loopback(url) is known


def test_metrics_count_copies_and_what_is_not_copied(ready: Path) -> None:
    with_settings(ready, f"checkpoints: {{mirror: {ready / 'second'}}}\n")
    with office_at(ready) as office:
        now = office.clock.now()
        living = Living(up=True, started=now, freeable_bytes=42)
        found = {
            figure.metric.name: figure.value
            for figure in Metrics(office).collect(living, now)
            if isinstance(figure, Sample)
        }
    assert found["rearguard_checkpoint_copies"] == 1
    assert found["rearguard_mirror_behind"] == 2
    assert found["rearguard_store_freeable_bytes"] == 42
