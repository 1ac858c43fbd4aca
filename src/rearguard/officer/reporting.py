"""Operations that render evidence: the strict report, post-mortems, and the check of the log."""

from __future__ import annotations

import json
from pathlib import Path

from rearguard.errors import UsageError
from rearguard.evidence.files import replace_file
from rearguard.evidence.log import append, read
from rearguard.evidence.verification import LogVerification, verify_log
from rearguard.model.evidence import Record
from rearguard.model.report import Report, ReportScope, ScopedPlace
from rearguard.model.time import parse_rfc3339
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.reports.postmortem import build_postmortem, render_postmortem
from rearguard.reports.render.json import render_json
from rearguard.reports.render.markdown import render_markdown
from rearguard.reports.status import build_report
from rearguard.rules.chain import record_fields, verify_chain


def _records(office: Office) -> tuple[Record, ...]:
    with office.database.reading() as connection:
        return tuple(read(connection))


@operation(Effect.READ)
def status_report(office: Office, *, as_of: str | None = None) -> Report:
    """The strict report as a value; same evidence and `as_of`, same value.

    `as_of` is RFC 3339 in UTC; by default the newest record's time. Raises `UsageError` `as_of_malformed`.
    """
    if as_of is not None:
        try:
            parse_rfc3339(as_of)
        except ValueError as error:
            raise UsageError(
                "as_of_malformed", f"--as-of {as_of!r}: {error}", "for example 2026-11-23T09:14:03Z"
            ) from error
    records = _records(office)
    places = office.settings.places
    chain_ok = verify_chain(record_fields(r) for r in records) is None
    scope = ReportScope(
        places=tuple(ScopedPlace(place=p.place, stateless=p.stateless) for p in places),
        required_environments=tuple(sorted({p.place.env for p in places})),
        chain_ok=chain_ok,
        objectives=office.settings.objectives,
        checkpoint_max_age_s=office.settings.checkpoints.max_age_s,
    )
    return build_report(records, as_of=as_of, scope=scope)


@operation(Effect.COMMIT)
def write_postmortem(office: Office, incident_id: str) -> Path:
    """Write `postmortems/<incident>/postmortem_report.md`, its JSON twin, and the copy of the newest (R7).

    Raises `NotFoundError` `incident_unknown`.
    """
    twin = build_postmortem(_records(office), incident_id)
    text = render_postmortem(twin).encode("utf-8")
    folder = office.state / "postmortems" / incident_id
    path = folder / "postmortem_report.md"
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(path, text)
    replace_file(folder / "postmortem_report.json", (json.dumps(twin, indent=2, sort_keys=True) + "\n").encode("utf-8"))
    replace_file(office.state / "postmortem_report.md", text)
    run_id = office.ids.run_id()
    with office.database.transaction() as connection:
        body = {"incident_id": incident_id, "path": str(path.relative_to(office.state))}
        append(connection, now=office.clock.now(), kind="postmortem_written", body=body, run_id=run_id)
    office.publish()
    return path


@operation(Effect.READ)
def verify_evidence(office: Office) -> LogVerification:
    """Check the chain and the named files; projects nothing."""
    return verify_log(office.database, office.state)


@operation(Effect.READ)
def render(report: Report, *, form: str) -> str:
    """The report as text: `markdown` (the strict form) or `json` (its twin)."""
    return render_json(report) if form == "json" else render_markdown(report)
