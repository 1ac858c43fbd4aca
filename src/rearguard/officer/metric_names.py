"""Every metric of `/metrics` in one place: name, kind, labels and what it says.

Names follow the conventions of Prometheus: base units, `_total` for counters. The page is `docs/reference/metrics.md`; a
test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass

GAUGE, COUNTER, HISTOGRAM = "gauge", "counter", "histogram"
RTO_BUCKETS_S = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1200)
"""Upper bounds of the histogram of recovery times. Chosen around the objective's default, 600 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One family."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


_PLACE = ("service", "env")


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(name=f"rearguard_{name}", kind=GAUGE, help=text, labels=labels)


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(name=f"rearguard_{name}_total", kind=COUNTER, help=text, labels=labels)


UP = _gauge("up", "1 while this process is the officer and every part of it makes progress, else 0.")
BUILD_INFO = _gauge("build_info", "Always 1; the labels say what runs.", "version", "schema")
START_TIME = _gauge("start_time_seconds", "Unix time at which this process began.")
COMPONENT_UP = _gauge("component_up", "1 while a part of the officer makes progress, else 0.", "component")
COMPONENT_IDLE = _gauge("component_idle_seconds", "Time since a part last made progress.", "component")
JOB_AGE = _gauge("job_success_age_seconds", "Time since a housekeeping job last succeeded.", "job")
PROJECTION_AGE = _gauge("projection_age_seconds", "Time since the named files were last known to be up to date.")
HEARTBEAT_AGE = _gauge("heartbeat_age_seconds", "Time since the sign of life was last taken somewhere else.")

RUNS = _counter("runs", "Rollback runs that ended, by how.", *_PLACE, "state")
RUNS_OPEN = _gauge("runs_open", "Rollback runs that have not ended.", *_PLACE)
RUN_OPEN_AGE = _gauge("run_open_age_seconds", "Age of the oldest run that has not ended.", *_PLACE)
RUNS_STRANDED = _gauge("runs_stranded", "Runs begun by a release whose steps this one cannot go on with.")
INCIDENTS = _counter("incidents", "Incidents opened.", *_PLACE, "trigger")
INCIDENTS_OPEN = _gauge("incidents_open", "Incidents that are open.", *_PLACE)
REFUSED = _counter("rollbacks_refused", "Rollbacks refused: nothing safe to do.", *_PLACE, "reason")
WITHHELD = _counter("rollbacks_withheld", "Breaches on which automation did not act.", *_PLACE, "reason")
RTO = Metric(
    name="rearguard_rto_seconds",
    kind=HISTOGRAM,
    help="Achieved recovery time of rollbacks that succeeded.",
    labels=_PLACE,
)
RTO_LAST = _gauge("rto_last_seconds", "Achieved recovery time of the newest rollback that succeeded.", *_PLACE)
RTO_OBJECTIVE = _gauge("rto_objective_seconds", "The objective that recovery times are held against.")

TARGETS = _gauge("rollback_targets", "Checkpoints with a fresh proof that the place could be rolled back to.", *_PLACE)
TARGET_AGE = _gauge("rollback_target_age_seconds", "Age of the proof of the best rollback target.", *_PLACE)
ARMED = _gauge("automation_armed", "1 when a breach starts a rollback, 0 when it is only recorded.", *_PLACE)
PAUSED = _gauge("automation_paused", "1 while automation is paused here or everywhere.", *_PLACE)
FROZEN = _gauge("automation_frozen", "1 inside a freeze window that withholds automatic rollbacks.", *_PLACE)
HELD_BACK = _gauge(
    "held_back", "1 for the brake that holds automatic rollbacks now, 0 for the others.", *_PLACE, "reason"
)
VERSIONS_SERVED = _gauge(
    "versions_served", "Different versions that have been in front of the place's traffic.", *_PLACE
)

CHECKPOINT_COPIES = _gauge(
    "checkpoint_copies", "Storage domains that hold a proven copy of the best rollback target.", *_PLACE
)
MIRROR_BEHIND = _gauge("mirror_behind", "Registered checkpoints whose second copy was not read back.")
STORE_FREEABLE = _gauge("store_freeable_bytes", "What `rearguard checkpoint gc --execute` would free.")

STANDBY_READY = _gauge(
    "standby_ready", "1 while the best rollback target stands loaded beside what serves, else 0.", *_PLACE
)
STANDBY_RSS = _gauge("standby_rss_bytes", "Resident memory of the warm standby.", *_PLACE)

OBSERVED = _gauge("trigger_observed", "What the newest judgement saw, in the trigger's own unit.", *_PLACE, "trigger")
LIMIT = _gauge("trigger_limit", "What it was compared with, in the same unit.", *_PLACE, "trigger")
DISTANCE = _gauge(
    "trigger_distance_ratio", "Room left to the limit as a share of it; below 0: over it.", *_PLACE, "trigger"
)
SAMPLES = _gauge("trigger_samples", "Samples in the window of the newest judgement.", *_PLACE, "trigger")
MIN_SAMPLES = _gauge(
    "trigger_min_samples", "Samples that the rule asks of a window before it decides.", *_PLACE, "trigger"
)
OUTCOME = _gauge(
    "trigger_outcome", "1 for the outcome of the newest judgement, 0 for the others.", *_PLACE, "trigger", "outcome"
)
SILENCE = _gauge("telemetry_silence_seconds", "Time since the newest request that telemetry told of.", *_PLACE)

OUTBOX = _gauge("outbox_messages", "Messages to people that no channel has taken yet.", "severity")
OUTBOX_AGE = _gauge("outbox_oldest_age_seconds", "Age of the oldest of them.", "severity")
CHANNEL_FAILURES = _gauge("channel_failures", "Deliveries that a channel failed in a row.", "channel")
EVIDENCE = _counter("evidence_records", "Records in the evidence log.")

METRICS: tuple[Metric, ...] = (
    UP, BUILD_INFO, START_TIME, COMPONENT_UP, COMPONENT_IDLE, JOB_AGE, PROJECTION_AGE, HEARTBEAT_AGE,
    RUNS, RUNS_OPEN, RUN_OPEN_AGE, RUNS_STRANDED, INCIDENTS, INCIDENTS_OPEN, REFUSED, WITHHELD, RTO, RTO_LAST,
    RTO_OBJECTIVE, TARGETS, TARGET_AGE, CHECKPOINT_COPIES, MIRROR_BEHIND, STORE_FREEABLE, STANDBY_READY, STANDBY_RSS,
    VERSIONS_SERVED, ARMED, PAUSED, FROZEN, HELD_BACK, OBSERVED, LIMIT, DISTANCE, SAMPLES,
    MIN_SAMPLES, OUTCOME, SILENCE,
    OUTBOX, OUTBOX_AGE, CHANNEL_FAILURES, EVIDENCE,
)  # fmt: skip
"""All of them, in the order of the page."""
