"""Keys and approvals through the command line: two people, one plan, a signature that binds them."""

from __future__ import annotations

import base64
import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from conftest_cli import ENV, PLACE, SERVICE
from conftest_ready import (
    Person,
    Start,
    breach,
    error_of,
    office_at,
    rearguard,
    records,
    start,
    until,
)
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from rearguard.checkpoints.registry import encode_instant
from rearguard.database import sql
from rearguard.edge import SystemClock
from rearguard.evidence.log import append
from rearguard.model.run import RunState
from rearguard.model.time import NS_PER_S
from rearguard.officer import approvals, automation, checkpoints, rollbacks
from rearguard.officer.office import open_office
from rearguard.recovery.approval import not_approved
from rearguard.recovery.context import read_run
from rearguard.rules.chain import canonical_bytes

__all__ = ["start"]


@pytest.fixture
def ana(guarded: Path, tmp_path: Path) -> Person:
    return Person(guarded, tmp_path, "ana")


@pytest.fixture
def waiting(guarded: Path) -> str:
    """The run of a breach; it waits."""
    with open_office(guarded) as office:
        run_id = breach(office)
    assert run_id is not None
    return run_id


def approve(state: Path, run_id: str, person: Person, *words: str) -> tuple[int, Any]:
    """Exit code, and the answer or the error's code word."""
    done = rearguard("approve", run_id, "--key", person.private, *words, "--state", state, "--json")
    answer = json.loads(done.stdout)
    return done.returncode, answer["error"]["code"] if "error" in answer else answer


def row_of(state: Path, run_id: str) -> Any:
    with open_office(state, write=False) as office, office.database.reading() as connection:
        return connection.execute(sql("SELECT * FROM runs WHERE id = :id"), {"id": run_id}).one()


def verdict(state: Path, run_id: str, to_digest: str | None = None, seconds: float = 0.0) -> str:
    """What the run itself would be told before it acts."""
    with office_at(state, seconds) as office, office.database.reading() as connection:
        return not_approved(office.recovery_context(), connection, read_run(connection, run_id), to_digest)


def digest_of(state: Path, version: str) -> str:
    with open_office(state, write=False) as office:
        return checkpoints.find(office, service=SERVICE, version=version).digest


# --- keys


def test_a_new_private_key_can_be_read_by_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "ana.pem"
    done = rearguard("key", "new", "ana", "--out", file)
    assert done.returncode == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().startswith("-----BEGIN PRIVATE KEY-----")
    assert done.stdout.startswith("-----BEGIN PUBLIC KEY-----")


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "ana.pem"
    file.write_text("mine")
    assert error_of(rearguard("key", "new", "ana", "--out", file, "--json")) == (75, "file_exists")
    assert file.read_text() == "mine"


def test_a_link_to_somewhere_else_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "ana.pem").symlink_to(tmp_path / "elsewhere")
    done = rearguard("key", "new", "ana", "--out", tmp_path / "ana.pem", "--json")
    assert error_of(done)[0] == 75
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("inside", ["ana.pem", "blobs/ana.pem"])
def test_a_private_key_is_kept_out_of_the_state_directory(guarded: Path, inside: str) -> None:
    done = rearguard("key", "new", "ana", "--out", guarded / inside, "--json")
    assert error_of(done) == (30, "key_inside_state")
    assert not (guarded / inside).exists()


@pytest.mark.parametrize("name", ["", "auto", "Auto", "a b", "../x", "x" * 65])
def test_a_name_that_could_be_mistaken_is_refused(tmp_path: Path, name: str) -> None:
    done = rearguard("key", "new", name, "--out", tmp_path / "key.pem", "--json")
    assert error_of(done) == (64, "key_name_malformed")


def test_enrolling_and_revoking_are_recorded_with_the_key_itself(guarded: Path, ana: Person) -> None:
    done = rearguard("key", "revoke", "ana", "--by", "admin", "--state", guarded)
    assert done.returncode == 0
    enrolled, revoked = records(guarded, "key_enrolled", "key_revoked")
    der = base64.b64decode("".join(ana.public.read_text().splitlines()[1:-1]))
    fingerprint = f"sha256:{hashlib.sha256(der).hexdigest()}"
    assert enrolled.body == {
        "name": "ana",
        "fingerprint": fingerprint,
        "public_key": ana.public.read_text(),
        "by": "admin",
    }
    assert revoked.body == {"name": "ana", "fingerprint": fingerprint, "by": "admin"}


def test_the_list_shows_revoked_keys_too(guarded: Path, ana: Person) -> None:
    rearguard("key", "revoke", ana.name, "--state", guarded)
    (found,) = json.loads(rearguard("key", "list", "--state", guarded, "--json").stdout)
    assert (found["name"], found["revoked_at"] is not None) == ("ana", True)


def test_one_key_is_not_two_people(guarded: Path, ana: Person) -> None:
    done = rearguard("key", "enroll", "bob", ana.public, "--state", guarded, "--json")
    assert error_of(done) == (75, "key_exists")


def test_a_name_is_given_once_even_after_it_was_revoked(guarded: Path, ana: Person, tmp_path: Path) -> None:
    rearguard("key", "revoke", ana.name, "--state", guarded)
    (tmp_path / "other").mkdir()
    other = Person(guarded, tmp_path / "other", "ana", enrolled=False)
    done = rearguard("key", "enroll", "ana", other.public, "--state", guarded, "--json")
    assert error_of(done) == (75, "key_exists")


def test_a_private_key_is_no_public_one(guarded: Path, ana: Person) -> None:
    done = rearguard("key", "enroll", "bob", ana.private, "--state", guarded, "--json")
    assert error_of(done) == (64, "key_unreadable")


# --- asking


def test_a_breach_at_a_guarded_place_waits_and_pages(guarded: Path, waiting: str) -> None:
    row = row_of(guarded, waiting)
    assert (row.state, row.approval) == ("requested", "needed")
    (asked,) = records(guarded, "approval_requested", run_id=waiting)
    assert asked.body["plan"]["candidates"] == [digest_of(guarded, "v1")]
    assert asked.body["plan"]["from_digest"] == digest_of(guarded, "v2")
    with open_office(guarded, write=False) as office, office.database.reading() as connection:
        page = connection.execute(
            sql("SELECT severity, fields FROM outbox WHERE cause = :cause"), {"cause": f"approval:{waiting}"}
        ).one()
    assert (page.severity, json.loads(page.fields)["next"]) == ("page", f"rearguard approve {waiting} --key FILE")


def test_the_plan_is_bound_by_the_digest_of_its_canonical_form(guarded: Path, waiting: str) -> None:
    (asked,) = records(guarded, "approval_requested", run_id=waiting)
    assert asked.body["plan_sha256"] == hashlib.sha256(canonical_bytes(asked.body["plan"])).hexdigest()


def test_an_unguarded_place_asks_nobody(ready: Path) -> None:
    with open_office(ready) as office:
        run_id = breach(office)
    assert run_id is not None
    assert row_of(ready, run_id).approval == ""
    assert verdict(ready, run_id) == ""


def test_a_run_without_a_way_back_is_refused_and_nobody_is_asked(guarded: Path) -> None:
    """R28. v2 serves; v1, its only way back, has a proof that failed."""
    with open_office(guarded) as office, office.database.transaction() as connection:
        connection.execute(sql("UPDATE checkpoints SET failure = 'load_failed' WHERE version = 'v1'"))
    with open_office(guarded) as office:
        run_id = breach(office)
    assert run_id is not None
    row = row_of(guarded, run_id)
    assert (row.state, row.reason) == ("refused", "no_verified_checkpoint")
    assert records(guarded, "approval_requested") == []


def test_without_a_key_the_plan_is_only_shown(guarded: Path, waiting: str) -> None:
    done = rearguard("approve", waiting, "--state", guarded)
    assert done.returncode == 0
    assert "from v2 to v1" in done.stdout
    assert "Error Rate" in done.stdout
    assert row_of(guarded, waiting).approval == "needed"


# --- approving


def test_an_approval_by_somebody_else_lets_the_run_act(guarded: Path, waiting: str, ana: Person) -> None:
    assert verdict(guarded, waiting) == "approval_missing"
    code, answer = approve(guarded, waiting, ana)
    assert (code, answer["approval"], answer["approved_by"]) == (0, "given", "ana")
    assert verdict(guarded, waiting) == ""
    assert verdict(guarded, waiting, digest_of(guarded, "v1")) == ""


def test_a_stranger_can_verify_an_approval_from_the_evidence_alone(guarded: Path, waiting: str, ana: Person) -> None:
    """With nothing of ours: the two records, the specification's encoding by hand, and a library."""
    approve(guarded, waiting, ana)
    (enrolled,) = records(guarded, "key_enrolled")
    (asked,) = records(guarded, "approval_requested", run_id=waiting)
    (given,) = records(guarded, "rollback_approved", run_id=waiting)
    envelope = given.body["envelope"]
    payload = base64.b64decode(envelope["payload"])
    kind = b"application/vnd.rearguard.approval+json"
    signed = b"DSSEv1 39 " + kind + b" " + str(len(payload)).encode() + b" " + payload
    key: Any = load_pem_public_key(enrolled.body["public_key"].encode())
    key.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)  # raises when it does not hold
    assert json.loads(payload) == {
        "run_id": waiting,
        "plan_sha256": asked.body["plan_sha256"],
        "approver": "ana",
        "expires_at": asked.body["expires_ts"],
    }
    assert envelope["signatures"][0]["keyid"] == given.body["key_fingerprint"] == enrolled.body["fingerprint"]


def test_a_key_that_nobody_enrolled_approves_nothing(guarded: Path, waiting: str, tmp_path: Path) -> None:
    stranger = Person(guarded, tmp_path, "eve", enrolled=False)
    assert approve(guarded, waiting, stranger) == (30, "key_unknown")


def test_a_revoked_key_approves_nothing(guarded: Path, waiting: str, ana: Person) -> None:
    rearguard("key", "revoke", "ana", "--state", guarded)
    assert approve(guarded, waiting, ana) == (30, "key_unknown")


def test_a_key_under_another_name_than_expected_is_refused(guarded: Path, waiting: str, ana: Person) -> None:
    assert approve(guarded, waiting, ana, "--as", "bob") == (30, "key_unknown")


def ask_by_hand(state: Path, by: str) -> str:
    """What `rollback run --by` writes before it waits."""
    with open_office(state) as office:
        proposal = rollbacks.plan(office, service=SERVICE, env=ENV)
        return rollbacks._request(office, proposal, None, by, in_office=False)


@pytest.mark.parametrize("by", ["ana", "Ana", " ana"])
def test_whoever_asked_for_it_cannot_approve_it(guarded: Path, ana: Person, by: str) -> None:
    run_id = ask_by_hand(guarded, by)
    assert approve(guarded, run_id, ana) == (30, "approver_is_requester")


def test_an_approval_is_given_once(guarded: Path, waiting: str, ana: Person, tmp_path: Path) -> None:
    bob = Person(guarded, tmp_path, "bob")
    approve(guarded, waiting, ana)
    assert approve(guarded, waiting, bob) == (75, "approval_given")


def test_a_run_that_needs_none_is_not_approved(ready: Path, tmp_path: Path) -> None:
    person = Person(ready, tmp_path, "ana")
    with open_office(ready) as office:
        run_id = breach(office)
    assert run_id is not None
    assert approve(ready, run_id, person) == (75, "approval_not_needed")


def test_f18_an_approval_after_the_abort_changes_nothing(guarded: Path, waiting: str, ana: Person) -> None:
    assert rearguard("runs", "cancel", waiting, "--by", "ops", "--state", guarded).returncode == 0
    assert approve(guarded, waiting, ana) == (75, "run_ended")
    row = row_of(guarded, waiting)
    assert (row.state, row.approval) == ("cancelled", "needed")
    assert records(guarded, "rollback_approved", "rollback_started", "traffic_switched", run_id=waiting) == []
    assert verdict(guarded, waiting) == "approval_missing"


def test_f18_an_approval_after_automation_was_switched_off_changes_nothing(
    guarded: Path, waiting: str, ana: Person
) -> None:
    """The run has not ended yet: an officer will end it. It was called off all the same."""
    with open_office(guarded) as office:
        automation.set_armed(office, PLACE, armed=False, by="ops")
    assert approve(guarded, waiting, ana) == (75, "run_ended")


def test_a_plan_that_changed_is_not_approved(guarded: Path, waiting: str, ana: Person) -> None:
    file = guarded / "rearguard.yaml"
    file.write_text(file.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    done = rearguard("approve", waiting, "--key", ana.private, "--state", guarded, "--json")
    assert error_of(done) == (30, "plan_changed")
    assert "settings_sha256" in done.stderr


def test_a_candidate_that_fell_out_changes_the_plan(guarded: Path, waiting: str, ana: Person) -> None:
    with open_office(guarded) as office, office.database.transaction() as connection:
        connection.execute(sql("UPDATE checkpoints SET failure = 'load_failed' WHERE version = 'v1'"))
    assert approve(guarded, waiting, ana) == (30, "plan_changed")


def test_an_approval_that_comes_too_late_is_refused(guarded: Path, ana: Person) -> None:
    """Asked for 16 minutes ago, to be approved within 15."""
    with office_at(guarded, -16 * 60) as office:
        run_id = breach(office)
    assert run_id is not None
    assert approve(guarded, run_id, ana) == (30, "approval_expired")


# --- time passes


def test_a_run_that_nobody_approves_is_refused_after_15_minutes_and_not_before(guarded: Path, waiting: str) -> None:
    with office_at(guarded, 14 * 60 + 30) as office:
        before = approvals.expire(office)
    with office_at(guarded, 15 * 60 + 30) as office:
        after = approvals.expire(office)
        again = approvals.expire(office)
    assert (before, after, again) == ((), (waiting,), ())
    row = row_of(guarded, waiting)
    assert (row.state, row.reason) == ("refused", "approval_expired")
    kinds = [
        r.kind for r in records(guarded, "rollback_refused", "rollback_finished", "rollback_closed", run_id=waiting)
    ]
    assert kinds == ["rollback_refused", "rollback_finished", "rollback_closed"]


def test_an_approval_that_nobody_acted_on_in_time_expires_too(guarded: Path, waiting: str, ana: Person) -> None:
    approve(guarded, waiting, ana)
    assert verdict(guarded, waiting, seconds=14 * 60 + 30) == ""
    assert verdict(guarded, waiting, seconds=15 * 60 + 30) == "approval_expired"


# --- what the run finds before it acts


@pytest.fixture
def approved(guarded: Path, waiting: str, ana: Person) -> str:
    assert approve(guarded, waiting, ana)[0] == 0
    return waiting


def change(state: Path, statement: str, **values: object) -> None:
    with open_office(state) as office, office.database.transaction() as connection:
        assert connection.execute(sql(statement), values).rowcount == 1


def test_a_revoked_approver_is_found(guarded: Path, approved: str) -> None:
    rearguard("key", "revoke", "ana", "--state", guarded)
    assert verdict(guarded, approved) == "approval_invalid"


def test_an_approval_of_another_run_is_found(guarded: Path, approved: str) -> None:
    """Its envelope is genuine; it is just not for this run."""
    change(guarded, "UPDATE runs SET state = 'cancelled' WHERE id = :id", id=approved)
    other = ask_by_hand(guarded, "ops")
    change(guarded, "UPDATE runs SET approval = 'given' WHERE id = :id", id=other)
    change(
        guarded,
        "INSERT INTO approvals SELECT :id, key_name, envelope, given_at FROM approvals WHERE run_id = :from_id",
        id=other,
        from_id=approved,
    )
    assert verdict(guarded, other) == "approval_invalid"


def test_an_expiry_that_was_moved_is_found(guarded: Path, approved: str) -> None:
    with open_office(guarded) as office:
        later = encode_instant(office.clock.now().plus(3600 * NS_PER_S))
    change(guarded, "UPDATE runs SET approval_expires_at = :at WHERE id = :id", at=later, id=approved)
    assert verdict(guarded, approved) == "approval_invalid"


def test_another_candidate_in_the_stored_plan_is_found(guarded: Path, approved: str) -> None:
    change(
        guarded, "UPDATE runs SET plan = replace(plan, :old, :new) WHERE id = :id", id=approved,
        old=digest_of(guarded, "v1"), new=f"sha256:{'0' * 64}",
    )  # fmt: skip
    assert verdict(guarded, approved) == "plan_changed"


def test_a_target_that_nobody_approved_is_found(guarded: Path, approved: str) -> None:
    assert verdict(guarded, approved, f"sha256:{'0' * 64}") == "plan_changed"


def test_settings_that_changed_after_the_approval_are_found(guarded: Path, approved: str) -> None:
    file = guarded / "rearguard.yaml"
    file.write_text(file.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    assert verdict(guarded, approved) == "plan_changed"


def test_a_mark_without_an_approval_is_found(guarded: Path, waiting: str) -> None:
    change(guarded, "UPDATE runs SET approval = 'given' WHERE id = :id", id=waiting)
    assert verdict(guarded, waiting) == "approval_missing"


def test_a_run_that_was_never_asked_about_is_found(guarded: Path, waiting: str) -> None:
    """Such as one that was written before the settings began to require an approval."""
    change(guarded, "UPDATE runs SET approval = '' WHERE id = :id", id=waiting)
    assert verdict(guarded, waiting) == "approval_missing"


def test_a_ladder_is_not_left_half_way_because_its_approval_expired(guarded: Path, approved: str) -> None:
    moved_traffic(guarded, approved)
    assert verdict(guarded, approved, digest_of(guarded, "v1"), seconds=3600) == ""


def moved_traffic(state: Path, run_id: str) -> None:
    """Its first rung was switched to, and lost."""
    with open_office(state) as office, office.database.transaction() as connection:
        append(connection, now=office.clock.now(), kind="traffic_switched", body={}, place=PLACE, run_id=run_id)


def comment_on_settings(state: Path) -> None:
    file = state / "rearguard.yaml"
    file.write_text(file.read_text(encoding="utf-8") + "# a comment\n", encoding="utf-8")


def test_a_ladder_is_not_left_half_way_because_a_file_was_edited(guarded: Path, approved: str) -> None:
    moved_traffic(guarded, approved)
    comment_on_settings(guarded)
    assert verdict(guarded, approved, digest_of(guarded, "v1")) == ""


def test_a_ladder_under_edited_files_goes_to_no_checkpoint_that_nobody_approved(guarded: Path, approved: str) -> None:
    moved_traffic(guarded, approved)
    comment_on_settings(guarded)
    assert verdict(guarded, approved, f"sha256:{'0' * 64}") == "plan_changed"


# --- a rollback by hand, with no officer alive


def wait_for_run(run: Any) -> str:
    until(lambda: "waiting for approval" in run.err.read_text(), "it waits")
    return str(run.err.read_text().split()[0])


def test_a_rollback_by_hand_waits_until_somebody_else_approves(guarded: Path, ana: Person, start: Start) -> None:
    run = start("rollback", "run", SERVICE, "--execute", "--by", "ops", "--state", guarded)
    run_id = wait_for_run(run)
    asked_ns = SystemClock().now().mono_ns
    until(lambda: SystemClock().now().mono_ns > asked_ns + 2 * NS_PER_S, "a run that does not wait had begun by now")
    assert records(guarded, "rollback_started", run_id=run_id) == []
    assert approve(guarded, run_id, ana)[0] == 0
    assert run.handle.wait(60) == 0
    assert (guarded / "serving").read_text() == digest_of(guarded, "v1")


def test_f18_a_cancel_ends_a_rollback_by_hand_that_waits(guarded: Path, ana: Person, start: Start) -> None:
    run = start("rollback", "run", SERVICE, "--execute", "--by", "ops", "--state", guarded)
    run_id = wait_for_run(run)
    rearguard("runs", "cancel", run_id, "--by", "ops", "--state", guarded)
    code, word = approve(guarded, run_id, ana)
    assert run.handle.wait(60) == 30
    assert (code, word) == (75, "run_ended")
    assert row_of(guarded, run_id).state == RunState.CANCELLED.value
    assert (guarded / "serving").read_text() == digest_of(guarded, "v2")
