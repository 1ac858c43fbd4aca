"""The summary of a status report: label-bound sentences, each with a number or an id, at most 120 words (R92-R97)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rearguard.model.report import IncidentRow
from rearguard.reports.history import LOG_FILE
from rearguard.reports.wording import count_words, reference, token

SUMMARY_WORDS = 120
_NAMED = 3
"""Incidents and environments named one by one when not all fit (R97)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the summary tells beside the incidents: counts and names only."""

    as_of: str | None
    chain_ok: bool
    runs: int
    succeeded: int
    supported_percent: str
    """With 95 % confidence at least this success rate; empty without runs."""
    rpo_observed: str
    rpo_stateless: int
    """Runs whose RPO is 0.0 because the place is declared stateless."""
    verified_places: int
    silent_places: int
    disarmed_places: int
    warm_places: int
    """Places whose best rollback target stands loaded."""
    places: int
    paths_tested: int
    missing_environments: tuple[str, ...]
    unproven_runs: tuple[str, ...]
    """What puts the fleet at risk: run ids, or references of refusals without a run; empty when nothing does (R44)."""


def summarise(standing: Standing, incidents: Sequence[IncidentRow]) -> tuple[str, ...]:
    """The sentences of the summary: all incidents if they fit in 120 words, else the worst by RTO and a count (R97)."""
    before, after = _before(standing, len(incidents)), _after(standing)
    worst = sorted(incidents, key=_severity)
    sentences = (*before, *(_incident(row) for row in incidents), *after)
    named = min(_NAMED, len(incidents))
    while count_words(" ".join(sentences)) > SUMMARY_WORDS and named >= 0:
        told = [_incident(row) for row in worst[:named]]
        sentences = (*before, *told, f"and {len(incidents) - named} more incidents.", *after)
        named -= 1
    return sentences


def _severity(row: IncidentRow) -> tuple[int, float]:
    """Censored first, then by falling RTO, then incidents without one; ties keep the order of ids."""
    if row.rto_min.startswith(">"):
        return (0, 0.0)
    return (1, -float(row.rto_min)) if row.rto_min[0].isdigit() else (2, 0.0)


def _before(s: Standing, incidents: int) -> list[str]:
    sentences = [f"Window: 7 d to {s.as_of or 'n/a'}.", f"Incidents: {incidents}."]
    if not s.chain_ok:
        sentences.insert(1, "Evidence chain verified: 0/1.")
    return sentences


def _incident(row: IncidentRow) -> str:
    rto = f"RTO {row.rto_min} min" if row.rto_min[0] in ">0123456789" else "RTO n/a"
    return f"{row.incident_id} {reference(row.evidence)} {row.trigger} at {row.at}: {row.action}, {rto}."


def _after(s: Standing) -> list[str]:
    bound = f", with 95 % confidence ≥ {s.supported_percent} %" if s.supported_percent else ""
    sentences = [f"Rollbacks succeeded: {s.succeeded}/{s.runs}{bound}."]
    if s.runs:
        sentences.append(f"RPO (min): {s.rpo_observed}; stateless: {s.rpo_stateless}/{s.runs}.")
    sentences.append(
        f"Places with verified checkpoint: {s.verified_places}/{s.places}; warm standby: {s.warm_places}/{s.places}."
    )
    if s.silent_places:
        sentences.append(f"Telemetry silent: {s.silent_places}/{s.places} places.")
    if s.disarmed_places:
        sentences.append(f"Automation disarmed: {s.disarmed_places}/{s.places} places.")
    sentences.append(f"Rollback paths tested within 7 d: {s.paths_tested}/{s.places}.")
    if s.missing_environments:
        sentences.append(f"Environments with 0 drills in 7 d: {_names(s.missing_environments)}.")
    if s.unproven_runs:
        sentences.append(f"At Risk: {len(s.unproven_runs)} ({_names(s.unproven_runs)}).")
    return sentences


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(f"`{name}`" if name.startswith(f"{LOG_FILE}#") else token(name) for name in names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
