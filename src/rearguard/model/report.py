"""The status report as a value: everything that is printed, and the figures behind it. Text forms are renderers' work.

The format is normative in `docs/reference/report.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rearguard.model.service import Place
from rearguard.model.settings import Objectives

REPORT_FORMAT = "rearguard.report/1"


class Verdict(Enum):
    """What a report concludes about the fleet (R88)."""

    READY = "Ready"
    PARTIAL = "Partial"
    FAILED = "Failed"

    @property
    def status(self) -> Status:
        """The status sign that stands before the word (R85)."""
        return {"Ready": Status.PASSED, "Partial": Status.WARNING, "Failed": Status.FAILED}[self.value]


class NextAction(Enum):
    """What a verdict asks for (R87)."""

    CONTINUE_MONITORING = "Continue Monitoring"
    TRIGGER_FULL_AUDIT = "Trigger Full Audit"
    ALERT_OPS_COMMANDER = "Alert Ops Commander"


class Status(Enum):
    """The three status signs, as exact code points (R65)."""

    PASSED = "\u2705"
    WARNING = "\u26a0\ufe0f"
    FAILED = "\U0001f6a8"


class Result(Enum):
    """What the newest event or test of a guardrail came to (R64)."""

    ROLLBACK_EXECUTED = "Rollback executed"
    ROLLBACK_FAILED = "Rollback failed"
    TEST_PASSED = "Test passed"
    TEST_FAILED = "Test failed"
    NO_EVENT = "No event"
    NO_DATA = "No data"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopedPlace:
    """A place that the report must cover: one rollback path."""

    place: Place
    stateless: bool
    """True: declared to have no mutable state beside the model, so its RPO is 0.0 (R40)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportScope:
    """What a report has to cover, as the settings say; evidence alone cannot tell what is missing from it."""

    places: tuple[ScopedPlace, ...]
    required_environments: tuple[str, ...]
    """Environments that need a drill in the window (R33)."""
    chain_ok: bool
    """The evidence chain verified when the records were read (R46)."""
    objectives: Objectives = Objectives()
    checkpoint_max_age_s: int = 86_400
    """Age of a passed verification up to which a checkpoint counts as validated, inclusive (R15)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A reference to one entry and the run that it belongs to."""

    ref: str
    """`rollback_log.json#7` (R54)."""
    run_id: str | None
    """None when the entry belongs to no run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardrailRow:
    """One row of the guardrail table (R60-R67)."""

    trigger: str
    threshold: str
    at: str | None
    """RFC 3339 of the newest event or test; None when there was none."""
    result: Result
    status: Status
    evidence: Evidence | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow:
    """One row of the metrics table (R69-R76), as printed."""

    metric: str
    target: str
    observed: str
    ci95: str
    status: Status
    evidence: Evidence | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentRow:
    """One row of the incident table (R77-R83)."""

    incident_id: str
    evidence: Evidence
    trigger: str
    at: str
    """RFC 3339 of the action."""
    action: str
    """What was done, without its timestamp."""
    rto_min: str
    """Minutes by R39, `> X` when censored, or a dash."""
    status: Status
    root_cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleStatistics:
    """The figures behind an RTO or RPO row, in whole milliseconds (requirements 10.1)."""

    n: int
    """Runs in the window, measured or not."""
    measured_ms: tuple[int, ...]
    """Measured values in evidence order, truncated to milliseconds."""
    censored: int
    unmeasured: int
    max_ms: int | None
    mean_ms: int | None
    """Modified-Cox estimate of the log-normal mean; None when not estimable."""
    mean_ci95_ms: tuple[int, int] | None
    median_ci95_ms: tuple[int | None, int | None] | None
    """Order-statistic interval for n >= 6; an end of None lies among censored runs."""
    upper_tolerance_95_95_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SuccessStatistics:
    """The figures behind the success row; proportions as decimal strings with six decimals."""

    runs: int
    succeeded: int
    ci95: tuple[str, str] | None
    supported_at_95: str | None
    """With 95 % confidence at least this proportion succeeds (one-sided)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentFigures:
    """One environment alone (requirements 10.4)."""

    environment: str
    runs: int
    succeeded: int
    drills: int
    rto_max_ms: int | None
    """Largest measured RTO; None when none was measured."""
    at_risk: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosingLine:
    """The figures of the last line (R89-R91), as printed."""

    rto_min: str
    rpo_min: str
    success_percent: str
    evidence: str
    """`rollback_log.json#run_x`, or `none`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A status report."""

    format: str
    as_of: str | None
    """RFC 3339; None only for an empty log without an explicit instant."""
    window_start: str | None
    summary: tuple[str, ...]
    """Sentences; together at most 120 words (R93)."""
    guardrails: tuple[GuardrailRow, ...]
    metrics: tuple[MetricRow, ...]
    incidents: tuple[IncidentRow, ...]
    verdict: Verdict
    next_action: NextAction
    justification: str
    """At most 25 words (R86)."""
    closing: ClosingLine
    flags: tuple[str, ...]
    """Names of the verdict flags that are set, in the order of R88."""
    at_risk: bool
    paths_tested: int
    paths_known: int
    warm_standbys: int
    """Places whose best rollback target stands loaded beside what serves, by their newest record (R11)."""
    missing_environments: tuple[str, ...]
    """Required environments without a drill in the window, by name (R33)."""
    rto: SampleStatistics
    rpo: SampleStatistics
    success: SuccessStatistics
    environments: tuple[EnvironmentFigures, ...]
