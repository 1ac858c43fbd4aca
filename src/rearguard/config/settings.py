"""`rearguard.yaml`: which keys exist, their units and defaults, and what must hold between them.

Decides whether the file as a whole is accepted, and gives the values that everybody else trusts. The normative form is
`docs/reference/rearguard-yaml.md`; defaults are those of `rearguard.model`, so that they stand in one place. Adapter
options are handed on unjudged: the adapter knows them.
"""

from __future__ import annotations

import os
import re
from decimal import Decimal
from pathlib import Path

from rearguard.config.brakes import APPROVAL_KEYS, BRAKE_KEYS, FREEZE_KEYS, read_approval, read_brakes
from rearguard.config.channels import read_receiver
from rearguard.config.checkpoints import CHECKPOINT_KEYS, GOLDEN_KEYS, RETENTION_KEYS, read_checkpoints
from rearguard.config.document import Document, Mapping, read_document
from rearguard.config.reader import Fields, root_fields
from rearguard.config.refusal import refusal
from rearguard.model.breach import LiteralPolicy
from rearguard.model.service import Place
from rearguard.model.settings import (
    AdapterSettings,
    ChannelSettings,
    HeartbeatSettings,
    Objectives,
    PlaceSettings,
    RecoveryPolicy,
    Settings,
    TriggerSettings,
)

NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")
"""Names of services, environments and channels: what also fits a DNS label and a file name."""

PROFILES = ("literal",)

DEFAULT_PLAYBOOK = "rollback_playbook.yaml"
DEFAULT_BASELINE_S = 3_600
"""Chosen: an hour before the rollout holds enough samples for a median and is still the same kind of day."""
DEFAULT_NO_DATA_AFTER_S = 120
"""Chosen: two of the default windows (R31)."""
DEFAULT_HEARTBEAT_S = 60
"""Chosen: what services that watch for silence expect at least."""

KEYS: dict[str, tuple[str, ...]] = {
    "": ("version", "playbook", "objectives", "checkpoints", "channels", "heartbeat", "services"),
    "objectives": ("rto", "rpo"),
    "checkpoints": CHECKPOINT_KEYS,
    "checkpoints.golden": GOLDEN_KEYS,
    "checkpoints.retention": RETENTION_KEYS,
    "channels.NAME": ("kind", "url", "path", "argv", "secret"),
    "heartbeat": ("kind", "url", "path", "argv", "secret", "every"),
    "services.NAME": ("environments",),
    "services.NAME.environments.NAME": (
        "stateless",
        "target",
        "telemetry",
        "triggers",
        "rule",
        "no_data_after",
        "recovery",
        "brakes",
        "approval",
        "standby",
        "storage_domain",
    ),
    "services.NAME.environments.NAME.target": ("adapter",),
    "services.NAME.environments.NAME.telemetry": ("adapter",),
    "services.NAME.environments.NAME.triggers": ("latency", "errors", "compliance"),
    "services.NAME.environments.NAME.triggers.latency": ("target_p95_ms", "margin_ms"),
    "services.NAME.environments.NAME.triggers.errors": ("limit_percent",),
    "services.NAME.environments.NAME.triggers.compliance": ("drop_points", "baseline", "period"),
    "services.NAME.environments.NAME.rule": ("profile", "window", "step", "for_windows", "min_samples"),
    "services.NAME.environments.NAME.recovery": ("window", "min_samples", "probe_every", "min_probes", "deadline"),
    "services.NAME.environments.NAME.brakes": BRAKE_KEYS,
    "services.NAME.environments.NAME.brakes.freeze": FREEZE_KEYS,
    "services.NAME.environments.NAME.approval": APPROVAL_KEYS,
}
"""Accepted keys by section; NAME stands for a name that the file chooses. An adapter takes its own options too."""

_PLACE = "services.NAME.environments.NAME"
_BYTES_PER_MIB = 1_048_576
_ZERO = Decimal(0)
_HUNDRED = Decimal(100)


def read_settings(path: Path) -> Settings:
    """All of the settings file at `path`; `${NAME}` in receivers stays as written (`channels.filled` fills it in).

    ConfigError when the file, or the playbook that it names, is missing or not accepted.
    """
    document = read_document(path)
    folder = Path(os.path.abspath(path)).parent
    root = root_fields(document, KEYS[""])
    settings = _settings(root, document, folder)
    # `os.path` and not `Path`: a name that is too long is a file that does not exist, not an OSError.
    if not os.path.isfile(settings.playbook_path):
        if root.has("playbook"):
            raise root.refuse("playbook", f"a file that exists, relative to {folder}", code="config_missing")
        raise refusal(
            "config_missing",
            file=str(path),
            line=root.mapping.line,
            path=("playbook",),
            value=DEFAULT_PLAYBOOK,
            found="(the default) does not exist",
            accepted=f"a file in {folder}, or the key playbook with the name of another",
            hint="write one with `rearguard init`",
        )
    return settings


def resolved(folder: Path, written: str) -> str:
    """`written` when it is an absolute path, otherwise that path seen from `folder`."""
    return str(folder / written)


def _settings(root: Fields, document: Document, folder: Path) -> Settings:
    root.choice("version", ("1",))
    objectives = _objectives(root)
    playbook = root.text("playbook", "the path of the playbook file", DEFAULT_PLAYBOOK)
    return Settings(
        file=document.file,
        sha256=document.sha256,
        checkpoints=read_checkpoints(root, folder),
        objectives=objectives,
        channels=_channels(root, folder),
        places=_places(root, folder, objectives),
        playbook_path=os.path.normpath(folder / playbook),
        heartbeat=_heartbeat(root, folder),
    )


def _objectives(root: Fields) -> Objectives:
    section = root.section("objectives", KEYS["objectives"])
    default = Objectives()
    return Objectives(
        rto_objective_ms=section.duration_ms("rto", default.rto_objective_ms, example="10 min"),
        rpo_objective_ms=section.duration_ms("rpo", default.rpo_objective_ms, example="5 min"),
    )


def _channels(root: Fields, folder: Path) -> tuple[ChannelSettings, ...]:
    channels = root.named("channels", "channel", NAME, required=False)
    accepted = KEYS["channels.NAME"]
    return tuple(
        read_receiver(channels.section(name, accepted, required=True), name, folder) for name in channels.names()
    )


def _heartbeat(root: Fields, folder: Path) -> HeartbeatSettings | None:
    """Where the sign of life goes, None when nobody outside is told; its receiver is written as a channel's is."""
    if not root.has("heartbeat"):
        return None
    section = root.section("heartbeat", KEYS["heartbeat"])
    return HeartbeatSettings(
        channel=read_receiver(section, "heartbeat", folder, also=("every",)),
        every_s=section.duration_s("every", DEFAULT_HEARTBEAT_S, example="60 s"),
    )


def _places(root: Fields, folder: Path, objectives: Objectives) -> tuple[PlaceSettings, ...]:
    places = []
    services = root.named("services", "service", NAME)
    for service in services.names():
        fields = services.section(service, KEYS["services.NAME"], required=True)
        environments = fields.named("environments", "environment", NAME)
        for env in environments.names():
            section = environments.section(env, KEYS[_PLACE], required=True)
            places.append(_place(section, Place(service=service, env=env), folder, objectives))
    return tuple(places)


def _place(section: Fields, place: Place, folder: Path, objectives: Objectives) -> PlaceSettings:
    triggers, baseline_s = _triggers(section)
    return PlaceSettings(
        place=place,
        stateless=section.boolean("stateless"),
        target=_adapter(section, "target", "oip"),
        telemetry=_with_log_paths(_adapter(section, "telemetry", "jsonl"), folder),
        triggers=triggers,
        rule=_rule(section),
        baseline_s=baseline_s,
        no_data_after_s=section.duration_s("no_data_after", DEFAULT_NO_DATA_AFTER_S, example="120 s"),
        recovery=_recovery(section, objectives),
        brakes=read_brakes(section),
        approval=read_approval(section),
        standby=section.boolean("standby") if section.has("standby") else True,
        storage_domain=section.text("storage_domain", "a name of the storage that the service depends on", ""),
    )


def _adapter(section: Fields, key: str, example: str) -> AdapterSettings:
    value = section.mapping.find(key)
    if not isinstance(value, Mapping):
        raise section.refuse(key, f"a section with the key adapter, for example {example}, and the adapter's options")
    fields = Fields(file=section.file, path=(*section.path, key), mapping=value)
    name = fields.text("adapter", f"the name of an installed adapter, for example {example}")
    return AdapterSettings(adapter=name, options=fields.options(frozenset({"adapter"})))


def _with_log_paths(telemetry: AdapterSettings, folder: Path) -> AdapterSettings:
    """The same source with the logs `requests` and `scores` seen from the settings file's folder."""
    paths = {
        key: resolved(folder, value)
        for key, value in telemetry.options.items()
        if key in ("requests", "scores") and isinstance(value, str)
    }
    return AdapterSettings(adapter=telemetry.adapter, options={**telemetry.options, **paths})


def _triggers(section: Fields) -> tuple[TriggerSettings, int]:
    """The thresholds, and the seconds before a rollout from which the compliance baseline is taken."""
    keys = f"{_PLACE}.triggers"
    default = TriggerSettings()
    triggers = section.section("triggers", KEYS[keys], required=True)

    latency_target_p95_ms, latency_margin_ms = None, default.latency_margin_ms
    if not triggers.is_off("latency"):
        # Required: no target is right for every model, and silence must not mean "not watched".
        latency = triggers.section("latency", KEYS[f"{keys}.latency"], required=True, or_off=True)
        latency_target_p95_ms = latency.number("target_p95_ms", "milliseconds", above=_ZERO, example="120")
        latency_margin_ms = latency.number(
            "margin_ms", "milliseconds", default.latency_margin_ms, at_least=_ZERO, example="5"
        )

    error_limit_percent = None
    if not triggers.is_off("errors"):
        errors = triggers.section("errors", KEYS[f"{keys}.errors"], or_off=True)
        error_limit_percent = errors.number(
            "limit_percent", "percent", default.error_limit_percent, at_least=_ZERO, at_most=_HUNDRED, example="1"
        )

    drop_points, baseline, baseline_s = None, None, DEFAULT_BASELINE_S
    if not triggers.is_off("compliance"):
        compliance = triggers.section("compliance", KEYS[f"{keys}.compliance"], or_off=True)
        drop_points = compliance.number(
            "drop_points", "points", default.compliance_drop_points, above=_ZERO, at_most=_HUNDRED, example="2"
        )
        baseline = _baseline(compliance, drop_points)
        baseline_s = compliance.duration_s("period", DEFAULT_BASELINE_S, example="1 h")

    return (
        TriggerSettings(
            latency_target_p95_ms=latency_target_p95_ms,
            latency_margin_ms=latency_margin_ms,
            error_limit_percent=error_limit_percent,
            compliance_drop_points=drop_points,
            compliance_baseline=baseline,
        ),
        baseline_s,
    )


def _baseline(compliance: Fields, drop_points: Decimal) -> Decimal | None:
    if not compliance.has("baseline"):
        return None
    written = compliance.raw_text("baseline", "the word measured, or a number of points")
    if written == "measured":
        return None
    # Below the drop the limit would be negative, and no score from 0 to 100 could ever reach it.
    unit = "points, or the word measured;"
    return compliance.number("baseline", unit, at_least=drop_points, at_most=_HUNDRED, example="95.0")


def _rule(section: Fields) -> LiteralPolicy:
    rule = section.section("rule", KEYS[f"{_PLACE}.rule"])
    default = LiteralPolicy()
    rule.choice("profile", PROFILES, PROFILES[0])
    window_s = rule.duration_s("window", default.window_s, example="60 s")
    # Windows follow each other without a gap unless the file says otherwise.
    step_s = rule.duration_s("step", window_s, example="60 s")
    if step_s > window_s:
        accepted = f"a duration of at most rule.window ({window_s} s), so that no second goes unjudged"
        raise rule.refuse("step", accepted, code="config_conflict")
    return LiteralPolicy(
        window_s=window_s,
        step_s=step_s,
        for_windows=rule.integer("for_windows", "windows", default.for_windows, at_least=1, at_most=1_000, example="2"),
        min_samples=rule.integer(
            "min_samples", "samples", default.min_samples, at_least=1, at_most=1_000_000_000, example="100"
        ),
    )


def _recovery(section: Fields, objectives: Objectives) -> RecoveryPolicy:
    recovery = section.section("recovery", KEYS[f"{_PLACE}.recovery"])
    default = RecoveryPolicy()
    window_s = recovery.duration_s("window", default.window_s, example="60 s")
    rto_objective_s = -(-objectives.rto_objective_ms // 1_000)
    deadline_s = recovery.duration_s("deadline", rto_objective_s, example="10 min")
    if deadline_s < window_s and recovery.has("deadline"):
        accepted = f"a duration of at least recovery.window ({window_s} s)"
        raise recovery.refuse("deadline", accepted, code="config_conflict")
    if deadline_s < window_s:
        accepted = f"a duration of at most the deadline, which is by default objectives.rto ({rto_objective_s} s)"
        raise recovery.refuse("window", accepted, code="config_conflict")
    return RecoveryPolicy(
        window_s=window_s,
        min_samples=recovery.integer(
            "min_samples", "samples", default.min_samples, at_least=1, at_most=1_000_000_000, example="100"
        ),
        probe_every_ms=recovery.duration_ms("probe_every", default.probe_every_ms, example="500 ms"),
        min_probes=recovery.integer(
            "min_probes", "probes", default.min_probes, at_least=1, at_most=1_000_000, example="10"
        ),
        deadline_s=deadline_s,
    )
