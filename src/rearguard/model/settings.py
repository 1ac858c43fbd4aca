"""Settings as frozen values, by theme. `config/` reads and validates them; everybody else trusts them.

File form of each field: `docs/reference/rearguard-yaml.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

from rearguard.model.breach import LiteralPolicy
from rearguard.model.checkpoint import CheckpointPolicy
from rearguard.model.service import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """An adapter by entry-point name and its own options, as validated strings, numbers or lists of strings."""

    adapter: str
    options: dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerSettings:
    """Thresholds of one place (R20-R22). None switches that trigger off."""

    latency_target_p95_ms: Decimal | None = None
    latency_margin_ms: Decimal = Decimal(5)
    """The spec's + 5 ms (R21)."""
    error_limit_percent: Decimal | None = Decimal(1)
    """The spec's 1 % (R22)."""
    compliance_drop_points: Decimal | None = Decimal(2)
    """The spec's 2 points (R20)."""
    compliance_baseline: Decimal | None = None
    """A number in the policy instead of the median measured before the rollout; None: measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPolicy:
    """How a rollback proves that the service is healthy again (R32)."""

    window_s: int = 60
    """W: length of the window in which every SLO and golden prediction must hold."""
    min_samples: int = 100
    """Requests in that window below which golden probes decide instead."""
    probe_every_ms: int = 500
    """Fixed rate of golden probes after the switch."""
    min_probes: int = 10
    """Golden probes that must have answered in the window when traffic is too little to judge."""
    deadline_s: int = 600
    """A run that has not restored the service by then fails, or is inconclusive. Default: the RTO objective."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeWindow:
    """A time in which nobody wants changes: once, or every week. All times are UTC."""

    reason: str
    duration_s: int
    start_wall_ns: int | None = None
    """Of a window that comes once; None: it comes every week."""
    weekday: int = 0
    """0 is Monday (ISO 8601's day 1). Of a weekly window."""
    start_of_day_s: int = 0
    """Seconds after midnight. Of a weekly window."""
    deployments: bool = True
    """True: `deploy` and the gate are refused inside it."""
    rollbacks: bool = True
    """True: automatic rollbacks are withheld inside it, and people are told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrakePolicy:
    """What keeps automation from doing harm (R29)."""

    cool_down_s: int = 1800
    """At most one automatic rollback of a place per cool-down, counted from the end of the last (R29: 30 min)."""
    max_rollbacks: int = 3
    """Automatic rollbacks of a place in any `budget_period_s`. Chosen: the third within a day has not helped either."""
    budget_period_s: int = 86_400
    freeze_windows: tuple[FreezeWindow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalPolicy:
    """Whether a second person must agree before a rollback touches anything."""

    required: bool = False
    expires_s: int = 900
    """A run that nobody approved by then is refused; an approval is valid no longer than that. Chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceSettings:
    """One service in one environment."""

    place: Place
    stateless: bool
    """True: no mutable state beside the model, so RPO is 0.0 (R40)."""
    target: AdapterSettings
    telemetry: AdapterSettings
    triggers: TriggerSettings
    rule: LiteralPolicy
    baseline_s: int
    """Length of the period before a rollout from which the compliance baseline is taken."""
    no_data_after_s: int
    """Silence longer than this is INCONCLUSIVE (R31)."""
    recovery: RecoveryPolicy
    brakes: BrakePolicy = BrakePolicy()
    approval: ApprovalPolicy = ApprovalPolicy()
    standby: bool = True
    """Keep the best rollback target loaded beside the active one, where the target can."""
    storage_domain: str = ""
    """Name of the storage that the service itself depends on (R18); empty: found out where possible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSettings:
    """Where messages to people go: `webhook` (url), `file` (path) or `command` (argv).

    As read, `url` and `secret` hold `${NAME}` as written; filled in only for the adapter that delivers.
    """

    name: str
    kind: str
    url: str = field(default="", repr=False)
    path: str = ""
    argv: tuple[str, ...] = ()
    secret: str = field(default="", repr=False)
    """Of a webhook: `whsec_` and base64, the key of its signature (Standard Webhooks). Empty: not signed."""
    file: str = field(default="", compare=False)
    """The settings file, for errors; with it the keys that lead here, and the lines of url and secret (1-based)."""
    path_in_file: tuple[str, ...] = field(default=(), compare=False)
    url_line: int = field(default=0, compare=False)
    secret_line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatSettings:
    """The sign of life that is sent to somewhere else, so that our silence is noticed there."""

    channel: ChannelSettings
    every_s: int = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """Recovery objectives (R37-R38)."""

    rto_objective_ms: int = 600_000
    rpo_objective_ms: int = 300_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of `rearguard.yaml`."""

    file: str
    sha256: str
    places: tuple[PlaceSettings, ...]
    checkpoints: CheckpointPolicy
    objectives: Objectives
    channels: tuple[ChannelSettings, ...]
    playbook_path: str
    """Absolute path."""
    heartbeat: HeartbeatSettings | None = None
    """None: nobody outside notices when the officer is gone."""

    def find(self, place: Place) -> PlaceSettings | None:
        """The settings of a place, or None when it is not declared."""
        return next((p for p in self.places if p.place == place), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaybookStep:
    """One declared step."""

    name: str
    owner: str
    timeout_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Playbook:
    """All of `rollback_playbook.yaml` (R8); its sha256 stands in every run."""

    file: str
    sha256: str
    steps: tuple[PlaybookStep, ...]
    contacts: dict[str, str]
    """Role (`ops_commander`, `infra_guardian`, `compliance_monitor`) to channel name."""


STEP_NAMES = ("lock", "freeze", "select", "verify", "activate", "probe", "window", "record", "close")
"""The steps of a rollback in their only legal order; a playbook names each once and gives it an owner and a limit."""
