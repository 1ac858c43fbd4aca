"""Operations that set a team up: first files, and the doctor."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from rearguard import plugins
from rearguard.checkpoints.storage import domain_of
from rearguard.config.templates import playbook_template, settings_template
from rearguard.errors import ConflictError, RearguardError
from rearguard.evidence.files import replace_file
from rearguard.model.incident import IncidentState
from rearguard.model.outcome import Outcome
from rearguard.model.service import Place
from rearguard.model.settings import ChannelSettings, PlaceSettings
from rearguard.model.telemetry import SourceHealth
from rearguard.model.time import NS_PER_S
from rearguard.officer import (
    automation,
    checkpoints,
    incidents,
    keys,
    mirroring,
    overview,
    retention,
    rollbacks,
    settings_in_force,
    standing,
    storage,
)
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation

FREE_BYTES = 1 << 30
"""Chosen: below a gibibyte the state directory's disk is called tight."""
PLAYBOOK_NAME = "rollback_playbook.yaml"


@operation(Effect.COMMIT)
def init(
    folder: Path,
    *,
    service: str,
    env: str,
    url: str,
    model: str,
    requests_log: str,
    scores_log: str | None,
    target_p95_ms: Decimal,
    force: bool,
) -> tuple[Path, Path]:
    """Write both commented files into a folder.

    Raises `ConflictError` `settings_exist` rather than overwrite, unless forced.
    """
    settings_path, playbook_path = folder / "rearguard.yaml", folder / PLAYBOOK_NAME
    for path in (settings_path, playbook_path):
        if path.exists() and not force:
            raise ConflictError("settings_exist", f"{path} exists", "edit it, or overwrite with --force")
    text = settings_template(
        service=service,
        env=env,
        url=url,
        model=model,
        requests_log=requests_log,
        scores_log=scores_log,
        target_p95_ms=target_p95_ms,
    )
    replace_file(playbook_path, playbook_template().encode("utf-8"))
    replace_file(settings_path, text.encode("utf-8"))
    return settings_path, playbook_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that the doctor looked at."""

    name: str
    outcome: Outcome
    """INCONCLUSIVE: works, or may work, but somebody should look."""
    message: str
    hint: str = ""


@operation(Effect.READ)
def doctor(office: Office) -> tuple[Check, ...]:
    """Look at everything that the settings name; changes nothing. Each finding says what to do.

    Raises `ConfigError` when the settings cannot be read, or a channel lacks its environment variables.
    """
    settings = office.settings
    office.refuse_silent_channels()
    checks = [Check(name="settings", outcome=Outcome.PASS, message=f"{settings.file} reads")]
    checks.append(
        _try("playbook", lambda: Check(name="playbook", outcome=Outcome.PASS, message=f"{office.playbook.file} reads"))
    )
    checks.append(_state_folder(office.state))
    checks += [*_second_copy(office), _try("retention", lambda: _retention(office))]
    checks += [_try(f"channel {c.name}", lambda c=c: _channel(c)) for c in settings.channels]  # type: ignore[misc]
    if not settings.channels:
        checks.append(
            Check(
                name="channels",
                outcome=Outcome.INCONCLUSIVE,
                message="no channel is declared: nobody is told when a rollback begins, ends or is refused",
                hint="declare one under `channels:`",
            )
        )
    checks += _officer(office)
    if settings.heartbeat is not None:
        beat = settings.heartbeat.channel
        checks.append(_try(beat.name, lambda: _channel(beat, beat.name)))
    checks += [_stranded(run_id) for run_id in standing.stranded_runs(office)]
    for place in settings.places:
        checks += _place(office, place)
    return tuple(checks)


def _officer(office: Office) -> list[Check]:
    """Whether somebody watches. That nobody does is no failure: on the first day the officer is started after this."""
    found = overview.officer_standing(office, office.clock.now())
    if found.settings_changed:
        words, hint = settings_in_force.CHANGED, settings_in_force.HINT
        return [Check(name="officer", outcome=Outcome.INCONCLUSIVE, message=words, hint=hint)]
    if found.state == "not_running":
        message, hint = (
            "no officer is alive: nothing is watched and no breach is rolled back",
            "start it: rearguard run",
        )
        return [Check(name="officer", outcome=Outcome.INCONCLUSIVE, message=message, hint=hint)]
    if found.state != "hung":
        return [Check(name="officer", outcome=Outcome.PASS, message=f"process {found.pid} is in office")]
    message = f"process {found.pid} is in office and has made no progress for {found.idle_s} s: nothing is watched"
    hint = f"start another one (`rearguard run`), it takes over; then end process {found.pid}"
    return [Check(name="officer", outcome=Outcome.FAIL, message=message, hint=hint)]


def _stranded(run_id: str) -> Check:
    return Check(
        name=f"run {run_id}",
        outcome=Outcome.FAIL,
        message="stranded: begun with an engine version that nobody runs; while it is open nothing else rolls its place back",
        hint=standing.mend_command(run_id),
    )


def _try(name: str, look: Callable[[], Check]) -> Check:
    """A check that cannot be made is a failure with its reason, never a pass."""
    try:
        return look()
    except RearguardError as error:
        return Check(name=name, outcome=Outcome.FAIL, message=error.message, hint=error.hint)


def _state_folder(state: Path) -> Check:
    parent = state if state.exists() else state.parent
    if not os.access(parent, os.W_OK):
        return Check(
            name="state", outcome=Outcome.FAIL, message=f"{state} is not writable", hint="chown it, or name another"
        )
    free = shutil.disk_usage(parent).free
    if free < FREE_BYTES:
        message = f"{free // (1 << 20)} MiB free below {state}"
        return Check(
            name="state", outcome=Outcome.INCONCLUSIVE, message=message, hint="free space before a run needs it"
        )
    return Check(name="state", outcome=Outcome.PASS, message=f"{state} is writable, {free // (1 << 30)} GiB free")


def _channel(channel: ChannelSettings, name: str = "") -> Check:
    name = name or f"channel {channel.name}"
    plugins.load("rearguard.channels", channel.kind)
    if channel.kind == "command" and shutil.which(channel.argv[0]) is None:
        return Check(
            name=name,
            outcome=Outcome.FAIL,
            message=f"{channel.argv[0]} is not on PATH",
            hint="install it or fix the path",
        )
    if channel.kind == "file" and not os.access(Path(channel.path).parent, os.W_OK):
        return Check(
            name=name, outcome=Outcome.FAIL, message=f"{channel.path}: folder is not writable", hint="make it writable"
        )
    return Check(name=name, outcome=Outcome.PASS, message=f"{channel.kind} is ready")


def _place(office: Office, settings: PlaceSettings) -> list[Check]:
    place = settings.place
    return [
        _try(f"{place} target", lambda: _target(office, place)),
        _try(f"{place} telemetry", lambda: _telemetry(office, settings)),
        *_score_log(settings),
        _try(f"{place} rollback target", lambda: _rollback_target(office, settings)),
        *_storage(office, settings),
        _try(f"{place} automation", lambda: _automation(office, place)),
        *_approval(office, settings),
        _rpo(settings),
    ]


def _target(office: Office, place: Place) -> Check:
    active = office.target_of(place).active()
    if active is None:
        return Check(
            name=f"{place} target",
            outcome=Outcome.INCONCLUSIVE,
            message="the target answers and serves nothing yet",
            hint=f"rearguard deploy {place.service} VERSION --env {place.env}",
        )
    known = [r for r in checkpoints.list_checkpoints(office, place.service) if r.checkpoint.digest == active]
    if not known:
        return Check(
            name=f"{place} target",
            outcome=Outcome.INCONCLUSIVE,
            message=f"the target serves {active[:19]}, which is not registered",
            hint=f"rearguard checkpoint add PATH --service {place.service} --version VERSION --golden FILE",
        )
    return Check(name=f"{place} target", outcome=Outcome.PASS, message=f"serves {known[0].checkpoint.version}")


def _telemetry(office: Office, settings: PlaceSettings) -> Check:
    name = f"{settings.place} telemetry"
    now = office.clock.now()
    feed = office.feed_of(settings.place)
    feed.catch_up(now)
    health = feed.health()
    newest = feed.counts.newest_digest()
    if newest is None:  # labelled samples alone judge nothing
        return Check(name=name, outcome=Outcome.INCONCLUSIVE, **_nothing_observed(settings.place, health))
    # A line may be stamped after `now` was taken, or by a clock that is a little ahead.
    age_s = max(0, now.mono_ns - newest[1]) // NS_PER_S
    message = f"{health.accepted} observations, newest {age_s} s old, {health.rejected} lines rejected"
    if age_s > settings.no_data_after_s:
        return Check(name=name, outcome=Outcome.INCONCLUSIVE, message=message, hint="is traffic reaching the service?")
    if health.rejected:
        return Check(
            name=name, outcome=Outcome.INCONCLUSIVE, message=message, hint=f"newest reason: {health.last_rejection}"
        )
    return Check(name=name, outcome=Outcome.PASS, message=message)


def _nothing_observed(place: Place, health: SourceHealth) -> dict[str, str]:
    """What to say of a source without a single request: a misnamed metric is not evaluated, and looks like silence."""
    if health.rejected:
        return {
            "message": f"not evaluated: {health.rejected} lines rejected, no request among the accepted",
            "hint": f"write lines as docs/reference/telemetry-jsonl.md says; newest reason: {health.last_rejection}",
        }
    if health.elsewhere:
        return {
            "message": f"not evaluated: {health.elsewhere} lines of other services or environments, none of {place}",
            "hint": "compare the service and env of the log's lines with those of the settings",
        }
    return {"message": "no observation yet", "hint": "send traffic, and check the path of the request log"}


def _score_log(settings: PlaceSettings) -> tuple[Check, ...]:
    """Without a score log there is nothing to judge compliance by; only our own adapter's options are known here."""
    telemetry, off = settings.telemetry, settings.triggers.compliance_drop_points is None
    if off or telemetry.adapter != "jsonl" or "scores" in telemetry.options:
        return ()
    return (
        Check(
            name=f"{settings.place} compliance",
            outcome=Outcome.INCONCLUSIVE,
            message="compliance is on, no score log is named: it stays inconclusive",
            hint="name one as telemetry.scores, or set triggers.compliance: off",
        ),
    )


def _rollback_target(office: Office, settings: PlaceSettings) -> Check:
    place, name = settings.place, f"{settings.place} rollback target"
    proposal = rollbacks.plan(office, service=place.service, env=place.env)
    found = proposal.selection
    if not found.candidates:
        waiting = [r.version for r in found.rejected if r.reason == "never_served"]
        if waiting and "checkpoint repair" not in proposal.remedy:
            message = f"no way back yet: {', '.join(waiting)} never served here"
            hint = "the version that serves now becomes the way back once the next one is deployed"
            return Check(name=name, outcome=Outcome.INCONCLUSIVE, message=message, hint=hint)
        message = "nothing proven to roll back to"
        return Check(name=name, outcome=Outcome.FAIL, message=message, hint=proposal.remedy)
    best = found.candidates[0].checkpoint
    rule, recovery = settings.rule, settings.recovery
    expected_s = rule.window_s + rule.step_s * (rule.for_windows - 1) + (best.load_ms or 0) // 1000
    objective_s = office.settings.objectives.rto_objective_ms // 1000
    message = f"{best.version}; detection and a cold load take about {expected_s} s of the objective's {objective_s} s"
    if expected_s >= objective_s or recovery.deadline_s <= recovery.window_s:
        return Check(name=name, outcome=Outcome.FAIL, message=message, hint="shorten rule.window or rule.for_windows")
    return Check(name=name, outcome=Outcome.PASS, message=message)


def _storage(office: Office, settings: PlaceSettings) -> tuple[Check, ...]:
    """Nothing is said of a place without a rollback target: that is a finding of its own."""
    place = settings.place
    found = rollbacks.plan(office, service=place.service, env=place.env).selection
    if not found.candidates:
        return ()
    best = found.candidates[0].checkpoint
    with office.database.reading() as connection:
        stands = storage.standing(office, connection, settings, best)
    hint = storage.HINT if stands.code else ""
    message = storage.words(stands, best.version)
    return (Check(name=f"{place} storage", outcome=stands.outcome, message=message, hint=hint),)


def _second_copy(office: Office) -> tuple[Check, ...]:
    """As recorded: a disk that hangs must not hang the doctor."""
    found = mirroring.standing(office)
    if not found.folder:
        return ()
    name, look = "second copy", "rearguard checkpoint mirror --now"
    if found.failure:
        message = f"{found.failure}: {found.message}"
        return (Check(name=name, outcome=Outcome.FAIL, message=message, hint=look),)
    message = f"{found.folder} ({found.domain or 'storage not known'}) holds {found.copied} checkpoints"
    if found.domain and found.domain == domain_of(office.state):
        hint = "name a folder on another disk as checkpoints.mirror, or mount it"
        message = f"{message}, on the same storage as the store itself"
        return (Check(name=name, outcome=Outcome.INCONCLUSIVE, message=message, hint=hint),)
    if found.behind:
        message = f"{message}; {len(found.behind)} are not copied yet"
        return (Check(name=name, outcome=Outcome.INCONCLUSIVE, message=message, hint=look),)
    return (Check(name=name, outcome=Outcome.PASS, message=message),)


def _retention(office: Office) -> Check:
    found = retention.plan(office)
    message = f"{len(found.leaving)} checkpoints may go, {found.swept.freed_bytes} bytes would be freed"
    return Check(name="retention", outcome=Outcome.PASS, message=f"{message}: rearguard checkpoint gc")


def _approval(office: Office, settings: PlaceSettings) -> tuple[Check, ...]:
    """One key is enough for an automatic rollback; what its owner asks for needs a second one."""
    if not settings.approval.required:
        return ()
    with office.database.reading() as connection:
        found = keys.approvers(connection)
    name, outcome, hint = f"{settings.place} approval", Outcome.PASS, ""
    message = f"{len(found)} may approve a rollback"
    if not found:
        outcome, message, hint = Outcome.FAIL, automation.NO_APPROVER, automation.ENROLL
    elif len(found) == 1:
        outcome, hint = Outcome.INCONCLUSIVE, automation.ENROLL
        message = f"only {found[0].name} may approve: nobody can approve a rollback that {found[0].name} asks for"
    return (Check(name=name, outcome=outcome, message=message, hint=hint),)


def _automation(office: Office, place: Place) -> Check:
    brakes = next(found for found in automation.standing(office) if found.place == place)
    if brakes.armed:
        if brakes.held_by is not None:
            until = f" until {brakes.until.rfc3339()}" if brakes.until else ""
            return Check(
                name=f"{place} automation",
                outcome=Outcome.INCONCLUSIVE,
                message=f"armed, but held back by {brakes.held_by}{until}: a breach is recorded and told, nothing is done",
                hint=" and ".join(brakes.resume) or "rearguard automation show",
            )
        held = [i for i in incidents.list_incidents(office) if i.place == place and i.state is IncidentState.OPEN]
        if held and held[0].run_id is not None:
            return Check(
                name=f"{place} automation",
                outcome=Outcome.INCONCLUSIVE,
                message=f"armed, but {held[0].id} is open: its last rollback did not mend it",
                hint=f"mend it, then `rearguard incident close {held[0].id}`",
            )
        message = "armed: a breach is rolled back while an officer runs"
        return Check(name=f"{place} automation", outcome=Outcome.PASS, message=message)
    return Check(
        name=f"{place} automation",
        outcome=Outcome.INCONCLUSIVE,
        message="observe: a breach is recorded, nothing is done",
        hint=f"rearguard arm {place.service} --env {place.env}",
    )


def _rpo(settings: PlaceSettings) -> Check:
    name = f"{settings.place} data"
    if settings.stateless:
        return Check(name=name, outcome=Outcome.PASS, message="declared stateless: RPO 0.0")
    return Check(
        name=name,
        outcome=Outcome.INCONCLUSIVE,
        message="not stateless, and this release does not measure RPO",
        hint="its RPO is reported as unmeasured",
    )
