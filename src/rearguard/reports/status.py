"""The status report: evidence and an instant in, one frozen `Report` out.

Owns which record speaks for which cell (R59-R91). Leaves the figures to `figures.py`, the sentences to `summary.py`,
the verdict to `rules/verdict.py` and the text forms to `render/`. Reads no clock: `as_of` is an argument (R98).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from rearguard.model.breach import Trigger
from rearguard.model.evidence import Record
from rearguard.model.report import (
    REPORT_FORMAT,
    ClosingLine,
    EnvironmentFigures,
    GuardrailRow,
    IncidentRow,
    Report,
    ReportScope,
    Result,
    ScopedPlace,
    Status,
)
from rearguard.model.run import RunState
from rearguard.model.service import Place
from rearguard.model.time import NS_PER_MS, NS_PER_S, parse_rfc3339, rfc3339
from rearguard.reports.figures import (
    ABSENT,
    Figures,
    Sample,
    rpo_samples,
    rto_samples,
    success_figures,
    success_statistics,
    time_figures,
    time_statistics,
)
from rearguard.reports.history import (
    LOG_FILE,
    STATELESS,
    Held,
    History,
    IncidentSeen,
    Rollback,
    cite,
    read_history,
    verified_digests,
)
from rearguard.reports.summary import Standing, summarise
from rearguard.reports.wording import OBSERVED_NAMES, THRESHOLDS, token
from rearguard.rules.objectives import Comparison, compare, print_decimal, print_minutes, supported_proportion
from rearguard.rules.verdict import Flags, judge, next_action, raised

WINDOW_S = 604_800
"""Seven days, inclusive (R57, R72)."""

_OUTCOMES = {
    RunState.SUCCEEDED: (Result.ROLLBACK_EXECUTED, Status.PASSED),
    RunState.FAILED: (Result.ROLLBACK_FAILED, Status.FAILED),
    RunState.REFUSED: (Result.ROLLBACK_FAILED, Status.FAILED),
    RunState.INCONCLUSIVE: (Result.NO_DATA, Status.WARNING),
    RunState.CANCELLED: (Result.NO_DATA, Status.WARNING),
}


_SERVES = {
    "deployment_started": "digest",
    "deployment_recorded": "digest",
    "deployment_unregistered": "digest",
    "traffic_switched": "to_digest",
}
"""Records after which a digest serves, and where they name it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """What of a history lies in the window."""

    rollbacks: tuple[Rollback, ...]
    """The runs that the figures count."""
    withdrawn: tuple[Rollback, ...]
    held: tuple[Held, ...]
    """Of the window, or of an incident that is still open: that is how things stand, however long ago it was told."""
    open_runs: tuple[Record, ...]

    def unproven(self) -> tuple[Record, ...]:
        """Entries that put the fleet at risk without being in a figure (10.9)."""
        ended = (*(r.record for r in self.withdrawn), *(h.record for h in self.held))
        return (*sorted(ended, key=lambda r: r.id), *self.open_runs)

    def cited(self) -> Record | None:
        """R91: the newest real rollback; one with a run before one without; else what was held back or withdrawn."""
        groups: tuple[tuple[Rollback | Held, ...], ...] = (self.rollbacks, self.held, self.withdrawn)
        group = next((g for g in groups if g), ())
        newest = max(group, key=lambda x: (x.record.run_id is not None, x.at_ns, x.record.id), default=None)
        return None if newest is None else newest.record


def _window(history: History, start_ns: int) -> _Window:
    ended = [r for r in history.rollbacks if r.at_ns >= start_ns]
    return _Window(
        rollbacks=tuple(r for r in ended if not r.withdrawn),
        withdrawn=tuple(r for r in ended if r.withdrawn),
        held=tuple(h for h in history.held if h.open or h.at_ns >= start_ns),
        open_runs=tuple(r for r in history.unfinished if parse_rfc3339(r.ts) >= start_ns),
    )


def build_report(records: Sequence[Record], *, as_of: str | None = None, scope: ReportScope) -> Report:
    """The report of `records` as they stood at `as_of` (RFC 3339; None: the time stamp of the newest record).

    Law: the result depends on the set of records up to `as_of`, `as_of` and `scope` only, not on their order. Raises
    ValueError when `as_of` is no RFC 3339 instant with an offset.
    """
    stamps = [parse_rfc3339(r.ts) for r in records]
    now_ns = parse_rfc3339(as_of) if as_of is not None else max(stamps, default=None)
    known = [r for r, at in zip(records, stamps, strict=True) if now_ns is not None and at <= now_ns]
    history = read_history(known)
    start_ns = (now_ns or 0) - WINDOW_S * NS_PER_S
    whole = _window(history, start_ns)
    window = whole.rollbacks

    rto, rpo = rto_samples(window, scope), rpo_samples(window, scope)
    rto_row = time_figures("RTO (min)", rto, scope.objectives.rto_objective_ms)
    rpo_row = time_figures("RPO (min)", rpo, scope.objectives.rpo_objective_ms)
    success_row = success_figures(window)
    guardrails = tuple(_guardrail(trigger, history) for trigger in Trigger)
    incidents = tuple(_incident_row(i, scope) for i in history.incidents if _in_window(i, start_ns))
    at_risk = _at_risk(rto, rpo, scope) + tuple(r.run_id or cite(r).ref for r in whole.unproven())
    verified = [p for p in scope.places if _has_checkpoint(p, history, scope, now_ns or 0)]
    # The evidence format has no drill entry yet, so no path is tested and no required environment is covered.
    tested, missing = 0, tuple(sorted(set(scope.required_environments)))
    flags = Flags(
        chain_broken=not scope.chain_ok,
        rollback_failed=bool(whole.held) or any(r.state in (RunState.FAILED, RunState.REFUSED) for r in window),
        rto_over_limit=rto_row.over_limit,
        rpo_over_limit=rpo_row.over_limit,
        no_validated_checkpoint=not verified or len(verified) < len(scope.places),
        at_risk=bool(at_risk),
        path_untested=tested < len(scope.places) or not scope.places,
        environment_missing=bool(missing),
        guardrail_warning=any(row.status is not Status.PASSED for row in guardrails),
        value_at_limit=rto_row.at_limit or rpo_row.at_limit,
        telemetry_inconclusive=any(p.place in history.silent for p in scope.places),
        no_runs=not window,
    )
    verdict = judge(flags)
    text = None if now_ns is None else rfc3339(now_ns)
    standing = Standing(
        as_of=text,
        chain_ok=scope.chain_ok,
        runs=len(window),
        succeeded=sum(r.state is RunState.SUCCEEDED for r in window),
        supported_percent=_supported(window),
        rpo_observed=rpo_row.row.observed,
        rpo_stateless=sum(s.rollback.rpo_basis in (STATELESS, "") and s.value_ns == 0 for s in rpo),
        verified_places=len(verified),
        silent_places=sum(p.place in history.silent for p in scope.places),
        disarmed_places=sum(_disarmed(p.place, history) for p in scope.places),
        warm_places=sum(_is_warm(p.place, history) for p in scope.places),
        places=len(scope.places),
        paths_tested=tested,
        missing_environments=missing,
        unproven_runs=at_risk,
    )
    return Report(
        format=REPORT_FORMAT,
        as_of=text,
        window_start=None if now_ns is None else rfc3339(start_ns),
        summary=summarise(standing, incidents),
        guardrails=guardrails,
        metrics=(rto_row.row, rpo_row.row, success_row.row),
        incidents=incidents,
        verdict=verdict,
        next_action=next_action(verdict),
        justification=_justification(raised(flags), whole, history),
        closing=_closing(rto_row, rpo_row, success_row, whole),
        flags=raised(flags),
        at_risk=bool(at_risk),
        paths_tested=tested,
        paths_known=len(scope.places),
        warm_standbys=standing.warm_places,
        missing_environments=missing,
        rto=time_statistics(rto),
        rpo=time_statistics(rpo),
        success=success_statistics(window),
        environments=_environments(rto, at_risk, scope, whole.unproven()),
    )


def _guardrail(trigger: Trigger, history: History) -> GuardrailRow:
    """R63: the newest of event or test, ties by id."""
    told = [(r.at_ns, r.record.id, r.record, r.state) for r in history.rollbacks if r.trigger is trigger]
    # What is held back and not restored is a rollback that was refused, until a run of its incident succeeds.
    told += [(h.at_ns, h.record.id, h.record, RunState.REFUSED) for h in history.held if h.trigger is trigger]
    *_, newest, state = max(told, key=lambda x: x[:2], default=(0, 0, None, None))
    result, status = (Result.NO_EVENT, Status.WARNING) if state is None else _OUTCOMES[state]
    return GuardrailRow(
        trigger=trigger.label,
        threshold=THRESHOLDS[trigger],
        at=None if newest is None else newest.ts,
        result=result,
        status=status,
        evidence=None if newest is None else cite(newest),
    )


def _in_window(incident: IncidentSeen, start_ns: int) -> bool:
    held = incident.held
    if held is not None and held.open:
        return True
    told = [*(r.at_ns for r in incident.rollbacks), *([] if held is None else [held.at_ns])]
    return max([incident.at_ns, *told]) >= start_ns


def _incident_row(incident: IncidentSeen, scope: ReportScope) -> IncidentRow:
    last = incident.rollbacks[-1] if incident.rollbacks else None
    run_id = last.record.run_id if last is not None else next(reversed(incident.run_ids), None)
    held = incident.held
    if held is not None and last is not None and last.record.id > held.record.id:
        held = None  # tried again since, and that is what is told
    newest = incident.record if last is None else last.record
    return IncidentRow(
        incident_id=token(incident.id),
        evidence=replace(cite(incident.record), run_id=run_id),
        trigger=incident.trigger.label,
        at=newest.ts if held is None else held.record.ts,
        action=_action(last) if held is None else f"Rollback refused: {token(held.reason)}",
        rto_min=_incident_rto(last, scope),
        status=Status.PASSED if last is not None and last.state is RunState.SUCCEEDED else Status.FAILED,
        root_cause=_root_cause(incident),
    )


def _action(last: Rollback | None) -> str:
    """R78; a rollback that a person asked for does not call itself automatic."""
    if last is None:
        return "observed, no action"
    if last.state is RunState.SUCCEEDED:
        restored = _version(last.to_version) if last.to_version else token(last.to_digest)
        return f"{'Manual' if last.by_person else 'Auto'} rollback \u2192 restored {restored}"
    return f"Rollback {last.state.value}: {token(last.reason)}"


def _version(version: str) -> str:
    return token(version if version.startswith("v") else f"v{version}")


def _incident_rto(last: Rollback | None, scope: ReportScope) -> str:
    """R80: minutes by R39, `> DEADLINE` when the run is censored, a dash when there is nothing to measure."""
    if last is None:
        return ABSENT
    bound = scope.objectives.rto_objective_ms * NS_PER_MS
    sample = rto_samples([last], scope)[0]
    if sample.censored_ns is not None:
        return f"> {print_minutes(sample.censored_ns, bound)}"
    return ABSENT if sample.value_ns is None else print_minutes(sample.value_ns, bound)


def _root_cause(incident: IncidentSeen) -> str:
    """R81: no evidence establishes a cause yet, so the code is `undetermined`, with the figure that broke the limit."""
    body, name = incident.record.body, OBSERVED_NAMES[incident.trigger]
    observed, limit = body.get("observed"), body.get("limit")
    p95, p95_limit = body.get("p95_ms"), body.get("p95_limit_ms")
    # People think of a latency in milliseconds. What decided is the share; a p95 that does not show the breach is not told.
    if incident.trigger is Trigger.LATENCY and p95 and p95_limit and Fraction(str(p95)) > Fraction(str(p95_limit)):
        name, observed, limit = "p95_ms", p95, p95_limit
    if observed is None or limit is None:
        return "undetermined"
    bound = Fraction(str(limit))
    figures = f"{name}={_plain(Fraction(str(observed)), bound)} ({_plain(bound, bound)})"
    return f"undetermined: {figures}"


def _plain(value: Fraction, bound: Fraction) -> str:
    """Three decimals or as many more as the comparison with the limit needs, without trailing zeros."""
    text = print_decimal(value, bound, 3)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _at_risk(rto: Sequence[Sample], rpo: Sequence[Sample], scope: ReportScope) -> tuple[str, ...]:
    """Runs that breached, did not succeed or were not measured (10.9), by run id, else by reference."""
    rto_bound = scope.objectives.rto_objective_ms * NS_PER_MS
    rpo_bound = scope.objectives.rpo_objective_ms * NS_PER_MS
    return tuple(
        _name(a.rollback)
        for a, b in zip(rto, rpo, strict=True)
        if a.rollback.state is not RunState.SUCCEEDED or _breached(a, rto_bound) or _breached(b, rpo_bound)
    )


def _breached(sample: Sample, bound: int) -> bool:
    return sample.value_ns is None or compare(sample.value_ns, bound) is Comparison.ABOVE


def _name(rollback: Rollback) -> str:
    return rollback.record.run_id or cite(rollback.record).ref


def _has_checkpoint(scoped: ScopedPlace, history: History, scope: ReportScope, now_ns: int) -> bool:
    oldest = now_ns - scope.checkpoint_max_age_s * NS_PER_S
    proven = verified_digests(history, scoped.place.service)
    return any(parse_rfc3339(record.ts) >= oldest for record in proven.values())


def _disarmed(place: Place, history: History) -> bool:
    """Whether the newest switch that covers `place` (its own, or one without a place) is off (R30)."""
    off = False
    for r in history.records:
        covers = r.service in (None, place.service) and r.env in (None, place.env)
        if covers and r.kind in ("automation_armed", "automation_disarmed"):
            off = r.kind == "automation_disarmed"
    return off


def _is_warm(place: Place, history: History) -> bool:
    """Whether the newest word about the standby of `place` is that it stands, and what stood does not serve since."""
    warm: object = None
    for r in history.records:
        if (r.service, r.env) != (place.service, place.env):
            continue
        if r.kind == "standby_standing":
            warm = r.body.get("digest")
        elif r.kind == "standby_lost" or (warm is not None and r.body.get(_SERVES.get(r.kind, "")) == warm):
            warm = None
    return warm is not None


def _supported(window: Sequence[Rollback]) -> str:
    if not window:
        return ""
    succeeded = sum(r.state is RunState.SUCCEEDED for r in window)
    return f"{100 * supported_proportion(succeeded, len(window)):.1f}"


def _justification(names: Sequence[str], window: _Window, history: History) -> str:
    """R86: the flags that are set, then reference, time stamp and run id; at most 25 words."""
    record = window.cited() or next(reversed(history.records), None)
    flags = f"Flags set ({len(names)}): {', '.join(names)}" if names else "Flags set (0)"
    if record is None:
        return f"{flags}; evidence `none`."
    return f"{flags}; `{cite(record).ref}` {record.ts} {record.run_id or ABSENT}."


def _closing(rto: Figures, rpo: Figures, success: Figures, window: _Window) -> ClosingLine:
    cited = window.cited()
    return ClosingLine(
        rto_min=rto.closing,
        rpo_min=rpo.closing,
        success_percent=success.closing,
        evidence="none" if cited is None else f"{LOG_FILE}#{cited.run_id or cited.id}",
    )


def _environments(
    rto: Sequence[Sample], at_risk: Sequence[str], scope: ReportScope, unproven: Sequence[Record]
) -> tuple[EnvironmentFigures, ...]:
    seen = {s.rollback.place.env for s in rto if s.rollback.place is not None}
    names = seen | {p.place.env for p in scope.places} | set(scope.required_environments)
    figures = []
    for name in sorted(names):
        own = [s for s in rto if s.rollback.place is not None and s.rollback.place.env == name]
        values = [s.value_ns for s in own if s.value_ns is not None]
        figures.append(
            EnvironmentFigures(
                environment=name,
                runs=len(own),
                succeeded=sum(s.rollback.state is RunState.SUCCEEDED for s in own),
                drills=0,
                rto_max_ms=max(values) // NS_PER_MS if values else None,
                at_risk=any(_name(s.rollback) in at_risk for s in own) or any(r.env == name for r in unproven),
            )
        )
    return tuple(figures)
