"""`rearguard messages`: what people were told, what waits, and who has seen it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest_cli import Lived

from rearguard.database import open_database, sql
from rearguard.evidence.log import read
from rearguard.handoffs import courier


def rearguard(state: Path, *words: str, code: int = 0) -> Any:
    """`rearguard WORDS --json`, and what it answered."""
    done = subprocess.run(
        [sys.executable, "-m", "rearguard.interfaces.cli", *words, "--json", "--state", str(state)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"USER": "dana"},
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def break_channel(state: Path) -> None:
    """From here on the only channel writes into a folder that is not there."""
    path = state / "rearguard.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("messages.jsonl", "absent/messages.jsonl"))


def post_again(state: Path) -> None:
    """As if nothing had been delivered yet."""
    database = open_database(state)
    with database.transaction() as connection:
        connection.execute(sql("UPDATE outbox SET delivered = '[]', state = 'open' WHERE state = 'done'"))
    database.close()


def failed_once(state: Path) -> None:
    from rearguard.officer.office import open_office

    with open_office(state) as office:
        office.deliver()


def test_a_list_shows_who_took_a_message_and_of_what_cause_it_was(lived: Lived) -> None:
    found = rearguard(lived.state, "messages", "list")
    newest = found[-1]
    assert (newest["key"], newest["cause"], newest["action"]) == (f"{lived.run_id}:ended", lived.incident_id, "resolve")
    assert (newest["state"], newest["delivered"], newest["waiting_for"]) == ("done", ["oncall"], [])
    assert [m["state"] for m in found if m["cause"] == lived.incident_id].count("open") == 0


def test_what_no_channel_took_is_open_with_age_and_error(copy: Lived) -> None:
    break_channel(copy.state)
    post_again(copy.state)
    failed_once(copy.state)
    found = rearguard(copy.state, "messages", "list", "--open")
    assert {m["state"] for m in found} == {"open"}
    assert {tuple(m["waiting_for"]) for m in found} == {("oncall",)}
    assert "oncall: file" in found[0]["last_error"]
    assert isinstance(found[0]["age_s"], int)


def test_retry_clears_the_back_off_of_each_channel_once(copy: Lived) -> None:
    break_channel(copy.state)
    post_again(copy.state)
    failed_once(copy.state)
    assert rearguard(copy.state, "messages", "retry") == {"channels": ["oncall"]}
    assert rearguard(copy.state, "messages", "retry") == {"channels": []}
    database = open_database(copy.state)
    with database.reading() as connection:
        assert courier.standing_of(connection, "oncall").retry_at is None
    database.close()


def test_an_acknowledgement_is_recorded_once_with_who_gave_it(copy: Lived) -> None:
    number = rearguard(copy.state, "messages", "list")[-1]["id"]
    for _ in range(2):
        found = rearguard(copy.state, "messages", "ack", str(number))
        assert found["acked_by"] == "dana"
    rearguard(copy.state, "messages", "ack", f"{copy.run_id}:ended", "--by", "somebody else")
    database = open_database(copy.state)
    with database.reading() as connection:
        records = [r for r in read(connection) if r.kind == "message_acknowledged"]
    database.close()
    assert [(r.body["message"], r.body["by"], r.run_id) for r in records] == [(number, "dana", copy.run_id)]


def test_a_message_that_nobody_wrote_is_unknown(copy: Lived) -> None:
    assert rearguard(copy.state, "messages", "ack", "9999", code=64)["error"]["code"] == "message_unknown"


def test_acknowledging_an_incident_acknowledges_its_messages(copy: Lived) -> None:
    rearguard(copy.state, "incident", "ack", copy.incident_id, "--by", "dana")
    found = rearguard(copy.state, "messages", "list")
    assert {m["acked_by"] for m in found if m["cause"] == copy.incident_id} == {"dana"}
