"""Whether a breach is acted on: arming and disarming a place, and the kill switch over all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rearguard.checkpoints.registry import encode_instant
from rearguard.database import Connection, sql
from rearguard.errors import NotFoundError
from rearguard.evidence.log import append
from rearguard.model.incident import Incident
from rearguard.model.service import Place
from rearguard.model.settings import PlaceSettings
from rearguard.model.time import NS_PER_S, Instant
from rearguard.officer import holds, incidents, keys, settings_in_force
from rearguard.officer.calling_off import end_automatic_runs
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.recovery.brakes import EVERY, Pause, all_pauses, is_armed, pauses_at, read_facts
from rearguard.rules import brakes as rule
from rearguard.rules.brakes import Held, Hold

NO_APPROVER = "a rollback needs an approval, and nobody can give it: no key is enrolled that is not revoked"
ENROLL = "rearguard key enroll NAME PUBLIC_KEY_FILE"


@operation(Effect.COMMIT)
def set_armed(office: Office, place: Place, *, armed: bool, by: str) -> bool:
    """Switch automation at a place; returns False when it stood that way already (nothing is then recorded).

    Disarming also asks an automatic run that is under way to end before traffic moves.
    """
    now = office.clock.now()
    with office.database.transaction() as connection:
        if is_armed(connection, place) == armed:
            return False
        connection.execute(
            sql(
                "INSERT INTO places (service, env, armed) VALUES (:service, :env, :armed) "
                "ON CONFLICT (service, env) DO UPDATE SET armed = :armed"
            ),
            {"service": place.service, "env": place.env, "armed": int(armed)},
        )
        if not armed:
            end_automatic_runs(connection, place.service, place.env, why=f"{by} disarmed {place}", now=now)
        kind = "automation_armed" if armed else "automation_disarmed"
        append(connection, now=now, kind=kind, body={"by": by}, place=place, run_id=office.ids.run_id())
    office.publish()
    return True


@operation(Effect.READ)
def armed(office: Office, place: Place) -> bool:
    """As `is_armed`, for interfaces."""
    with office.database.reading() as connection:
        return is_armed(connection, place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Switched:
    """What became of a pause."""

    service: str
    """A service, or `*` for every one."""
    env: str
    """An environment, or `*` for every one."""
    changed: bool
    """False: it stood that way already, and nothing was recorded."""
    paused: tuple[Pause, ...]
    """The pauses that are in force now, anywhere."""


@operation(Effect.COMMIT)
def pause(office: Office, *, service: str | None, env: str | None, by: str, reason: str) -> Switched:
    """Hold back every automatic rollback of a service, an environment, both, or everywhere (None), until `resume` (R30).

    Also asks automatic runs that have not moved traffic to end. Everywhere needs no settings, so that it works when the
    file is broken. Raises `NotFoundError` `service_unknown` or `env_unknown`.
    """
    scope = _scope(office, service, env)
    now = office.clock.now()
    with office.database.transaction() as connection:
        added = connection.execute(
            sql(
                "INSERT INTO pauses (service, env, paused_by, reason, since) "
                "VALUES (:service, :env, :by, :reason, :since) ON CONFLICT (service, env) DO NOTHING"
            ),
            {**scope, "by": by, "reason": reason, "since": encode_instant(now)},
        )
        changed = bool(added.rowcount)
        # Also when it was paused before: a run that has slipped in is asked to end all the same.
        why = f"{by} paused automation: {reason}"
        end_automatic_runs(connection, scope["service"], scope["env"], why=why, now=now)
        if changed:
            _record(office, connection, now, "automation_paused", {"by": by, "reason": reason, **scope})
        in_force = all_pauses(connection)
    office.publish()
    return Switched(**scope, changed=changed, paused=in_force)


@operation(Effect.COMMIT)
def resume(office: Office, *, service: str | None, env: str | None, by: str, reason: str = "") -> Switched:
    """Take back the pause that was given with these same words; wider and narrower ones stay, and are returned.

    Raises `NotFoundError` `service_unknown` or `env_unknown`.
    """
    scope = {"service": service or EVERY, "env": env or EVERY}
    now = office.clock.now()
    with office.database.transaction() as connection:
        gone = connection.execute(sql("DELETE FROM pauses WHERE service = :service AND env = :env"), scope)
        changed = bool(gone.rowcount)
        if changed:
            _record(office, connection, now, "automation_resumed", {"by": by, "reason": reason, **scope})
        else:
            _scope(office, service, env)  # a place that left the settings can still be resumed, a misspelt one cannot
        in_force = all_pauses(connection)
    office.publish()
    return Switched(**scope, changed=changed, paused=in_force)


def _scope(office: Office, service: str | None, env: str | None) -> dict[str, str]:
    """The words of a pause as its row has them; a word that names nothing must not pause nothing in silence."""
    if service is not None and env is not None:
        office.place(service, env)
    elif service is not None and service not in {p.place.service for p in office.settings.places}:
        office.place(service, None)
    elif env is not None and env not in {p.place.env for p in office.settings.places}:
        raise NotFoundError(
            "env_unknown", f"no service in {office.settings.file} has an environment {env!r}", "name a declared one"
        )
    return {"service": service or EVERY, "env": env or EVERY}


def _record(office: Office, connection: Connection, now: Instant, kind: str, body: dict[str, str]) -> None:
    everywhere = body["service"] == EVERY
    place = None if everywhere else Place(service=body["service"], env="" if body["env"] == EVERY else body["env"])
    append(connection, now=now, kind=kind, body=body, place=place, run_id=office.ids.run_id())


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceAutomation:
    """The brakes of one place now."""

    place: Place
    automation: str
    """One word: `armed`, `paused`, `frozen`; `observe` when it is not armed."""
    armed: bool
    paused: tuple[Pause, ...]
    """The pauses that cover it."""
    frozen: str | None
    """Reason of the freeze window that holds rollbacks now."""
    frozen_until: Instant | None
    """None outside a window, and when no end is in sight."""
    deployments_frozen_until: Instant | None
    """Likewise, of what holds deployments."""
    cool_down_left_s: int
    """Rounded up; 0 when it is over."""
    budget_left: int
    max_rollbacks: int
    budget_period_s: int
    held_by: str | None
    """Code of the brake that would hold an automatic rollback back now."""
    until: Instant | None
    """When that one lets go; None when only a person can release it."""
    holds: str
    """The same in words; of the next rollback of the open incident, if there is one. Empty when nothing holds it."""
    resume: tuple[str, ...]
    """The commands that take the pauses back."""
    approval_required: bool
    approvers: int
    """Enrolled keys that are not revoked. A place that requires an approval and has none of them is never rolled back."""
    settings_changed: bool = False
    """True: the officer works with settings of before they were edited, and may act otherwise than is said here."""


@operation(Effect.READ)
def standing(office: Office) -> tuple[PlaceAutomation, ...]:
    """What holds automation back at each declared place, in the order of the settings."""
    now = office.clock.now()
    with office.database.reading() as connection:
        found = [at_place(settings, connection, now) for settings in office.settings.places]
    settings_changed = settings_in_force.changed(office, now)
    return tuple(replace(place, settings_changed=settings_changed) for place in found)


def at_place(settings: PlaceSettings, connection: Connection, now: Instant) -> PlaceAutomation:
    """The brakes of one place; while an incident is open, those on its next automatic rollback."""
    place, policy = settings.place, settings.brakes
    incident = incidents.open_at(connection, place)
    facts = read_facts(connection, place, now, retry_of=incident.id if incident else None)
    window = rule.frozen_window(policy, now, what=Held.ROLLBACKS)
    hold = rule.hold(policy, facts)

    def thaws(what: Held) -> Instant | None:
        end_ns = rule.thaw_wall_ns(policy, now, what=what)
        return now.plus(end_ns - now.wall_ns) if end_ns is not None and end_ns != now.wall_ns else None

    word = "paused" if facts.paused else ("frozen" if window else "armed")
    return PlaceAutomation(
        place=place,
        automation=word if facts.armed else "observe",
        armed=facts.armed,
        paused=pauses_at(connection, place),
        frozen=window.reason if window else None,
        frozen_until=thaws(Held.ROLLBACKS),
        deployments_frozen_until=thaws(Held.DEPLOYMENTS),
        cool_down_left_s=-(-rule.cool_down_left_ns(policy, facts) // NS_PER_S),
        budget_left=rule.budget_left(policy, facts),
        max_rollbacks=policy.max_rollbacks,
        budget_period_s=policy.budget_period_s,
        held_by=hold.brake.value if hold else None,
        until=hold.until if hold else None,
        holds=_in_words(connection, incident, hold, settings, now),
        resume=tuple(resume_command(pause_) for pause_ in pauses_at(connection, place)),
        approval_required=settings.approval.required,
        approvers=len(keys.approvers(connection)),
    )


def _in_words(
    connection: Connection, incident: Incident | None, hold: Hold | None, settings: PlaceSettings, now: Instant
) -> str:
    if hold is None:
        return ""
    if incident is not None:
        return holds.in_words(connection, incident, hold, settings, now)
    return hold.brake.words + (f" until {hold.until.rfc3339()}" if hold.until else "")


def resume_command(pause_: Pause) -> str:
    """What takes one pause back: the words with which it was given."""
    service = "" if pause_.service == EVERY else f" {pause_.service}"
    return f"rearguard automation resume{service}" + ("" if pause_.env == EVERY else f" --env {pause_.env}")
