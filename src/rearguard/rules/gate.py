"""May a deployment begin now? Facts of one place in, checks out (R112); an answer says what to do next.

Judges the state *after* the deployment: a rollout is safe when it can be taken back. Law: PASS iff every check passes;
FAIL wins over INCONCLUSIVE. What could not be found out is INCONCLUSIVE, never PASS.
"""

from __future__ import annotations

from dataclasses import dataclass

from rearguard.model.outcome import Outcome
from rearguard.model.service import Place
from rearguard.model.time import Instant
from rearguard.rules.brakes import Brake, Hold
from rearguard.rules.selection import Selection

MAX_PROOF_AGE_S = 900
"""A proof older than this is renewed before a rollout (R14: 15 min)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateCheck:
    """One question and its answer."""

    name: str
    outcome: Outcome
    code: str
    """Why it did not pass, or of a warning: it passes, and somebody should look. Empty when there is nothing to say."""
    message: str
    hint: str
    """What to do; empty when nothing has to be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The checkpoint that is about to be deployed."""

    version: str
    is_active: bool
    is_quarantined: bool
    failure: str
    """Code of its last verification if that failed, else empty."""
    proof_age_ns: int | None
    """Since its last verification; None: never proven. Negative: proven in the future."""
    repair: str = ""
    """The command that mends it from the second copy; empty when none would."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageWarning:
    """Where the best rollback target lies, in words."""

    code: str
    """Empty: nothing to warn about."""
    message: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateFacts:
    """What is true of one place now."""

    place: Place
    open_run: str | None
    """A run that holds the place, or was asked for and has not ended."""
    open_incident: str | None
    frozen_until: Instant | None
    """End of the freeze window that holds deployments now."""
    frozen_reason: str | None
    """None outside such a window."""
    hold: Hold | None
    """What would hold an automatic rollback back now."""
    officer_held: bool
    officer_hung: bool
    settings_changed: bool = False
    """True: the officer in office works with other settings or another playbook than the files hold now."""
    approval_required: bool = False
    approvers: int = 0
    """Enrolled keys that are not revoked."""
    resume: tuple[str, ...] = ()
    """The commands that take back the pauses which cover the place."""
    observed: bool = True
    """False: no version was ever seen to answer here."""
    silent_since: str | None
    """RFC 3339, of telemetry that is silent now."""
    serves: bool
    """True when some deployment is active at the place."""
    after: Selection
    """Where a rollback could go once the deployment is done; of what is active now when none is named."""
    wanted: Wanted | None
    remedy: str = ""
    """What gives the place a way back, where it has none."""
    storage: StorageWarning | None = None
    """What is to be said of where the way back lies (R18)."""


def judge(facts: GateFacts) -> tuple[GateCheck, ...]:
    """All checks, in the order in which a person would look."""
    checks = [
        _rollback(facts),
        _incident(facts),
        _freeze(facts),
        _automation(facts),
        *((_approval(facts),) if facts.approval_required else ()),
        _officer(facts),
        _telemetry(facts),
    ]
    if facts.wanted is not None:
        checks += [_quarantine(facts, facts.wanted), _proof(facts, facts.wanted), _change(facts, facts.wanted)]
    return (*checks, _way_back(facts), *((_storage(facts.storage),) if facts.storage is not None else ()))


def _storage(found: StorageWarning) -> GateCheck:
    """It passes whatever it says: a deployment makes nothing worse here."""
    hint = found.hint if found.code else ""
    return GateCheck(name="storage", outcome=Outcome.PASS, code=found.code, message=found.message, hint=hint)


def _passed(name: str, message: str) -> GateCheck:
    return GateCheck(name=name, outcome=Outcome.PASS, code="", message=message, hint="")


def _failed(name: str, code: str, message: str, hint: str) -> GateCheck:
    return GateCheck(name=name, outcome=Outcome.FAIL, code=code, message=message, hint=hint)


def _unknown(name: str, code: str, message: str, hint: str) -> GateCheck:
    return GateCheck(name=name, outcome=Outcome.INCONCLUSIVE, code=code, message=message, hint=hint)


def _at(place: Place) -> str:
    return f"{place.service} --env {place.env}"


def _rollback(facts: GateFacts) -> GateCheck:
    if facts.open_run is None:
        return _passed("rollback", "no rollback is open")
    return _failed(
        "rollback", "rollback_open", f"{facts.open_run} has not ended", f"rearguard runs show {facts.open_run}"
    )


def _incident(facts: GateFacts) -> GateCheck:
    if facts.open_incident is None:
        return _passed("incident", "no incident is open")
    return _failed(
        "incident",
        "incident_open",
        f"{facts.open_incident} is open",
        f"rearguard incident show {facts.open_incident}",
    )


def _freeze(facts: GateFacts) -> GateCheck:
    if facts.frozen_reason is None:
        return _passed("freeze", "no freeze window holds deployments")
    until = f"until {facts.frozen_until.rfc3339()}" if facts.frozen_until else "with no end in sight"
    return _failed(
        "freeze",
        "freeze_window",
        f"a freeze window holds deployments {until}: {facts.frozen_reason}",
        f"wait, or change brakes.freeze of {facts.place} in rearguard.yaml",
    )


def _automation(facts: GateFacts) -> GateCheck:
    if facts.hold is None:
        return _passed("automation", "a breach would start a rollback")
    brake = facts.hold.brake
    until = f" until {facts.hold.until.rfc3339()}" if facts.hold.until else ""
    if brake.refuses:
        message = f"an automatic rollback would be refused: {brake.words}{until}"
        return _failed("automation", brake.value, message, "wait; the last rollbacks say why")
    hint = {
        Brake.OBSERVE: f"rearguard arm {_at(facts.place)}",
        Brake.PAUSED: " and ".join(facts.resume) or "rearguard automation show",
    }.get(brake, "wait until the window ends")
    return _unknown("automation", brake.value, f"a breach would only be recorded: {brake.words}{until}", hint)


def _officer(facts: GateFacts) -> GateCheck:
    if facts.officer_hung:
        return _unknown("officer", "officer_hung", "the officer shows no progress", "restart it")
    if not facts.officer_held:
        return _unknown("officer", "officer_absent", "no officer is alive: nobody watches", "start it: rearguard run")
    if facts.settings_changed:
        message = "settings were changed after the officer started: it works with the old ones"
        return _unknown("officer", "settings_changed", message, "restart it")
    return _passed("officer", "an officer is alive")


def _approval(facts: GateFacts) -> GateCheck:
    if facts.approvers < 1:
        return _failed(
            "approval",
            "no_approver",
            "a rollback needs an approval, and nobody can give it: no key is enrolled that is not revoked",
            "rearguard key enroll NAME PUBLIC_KEY_FILE",
        )
    return _passed("approval", f"{facts.approvers} may approve")


def _telemetry(facts: GateFacts) -> GateCheck:
    if facts.silent_since is not None:
        return _unknown(
            "telemetry",
            "telemetry_silent",
            f"telemetry is silent since {facts.silent_since}",
            "a breach would not be seen: mend the source, see `rearguard doctor`",
        )
    if not facts.observed:
        return _unknown(
            "telemetry",
            "nothing_observed",
            "nothing was observed yet",
            "a breach would not be seen: send traffic while the officer watches, see `rearguard doctor`",
        )
    return _passed("telemetry", "no silence is recorded")


def _quarantine(facts: GateFacts, wanted: Wanted) -> GateCheck:
    if not wanted.is_quarantined:
        return _passed("quarantine", f"{wanted.version} is not quarantined here")
    return _failed(
        "quarantine",
        "quarantined",
        f"{wanted.version} was rolled back at {facts.place} and is quarantined",
        f"when it is fit again: rearguard checkpoint release --service {facts.place.service} "
        f"--version {wanted.version} --env {facts.place.env} --reason TEXT",
    )


def _proof(facts: GateFacts, wanted: Wanted) -> GateCheck:
    renew = f"rearguard checkpoint verify --service {facts.place.service} --version {wanted.version}"
    if wanted.failure:
        message = f"the last verification of {wanted.version} failed: {wanted.failure}"
        return _failed("proof", "verification_failed", message, wanted.repair or renew)
    if wanted.proof_age_ns is None:
        return _failed("proof", "never_verified", f"{wanted.version} was never proven", renew)
    if not 0 <= wanted.proof_age_ns <= MAX_PROOF_AGE_S * 1_000_000_000:
        message = f"the proof of {wanted.version} is older than {MAX_PROOF_AGE_S // 60} min, or from the future"
        return _unknown("proof", "proof_stale", message, renew)
    return _passed("proof", f"{wanted.version} was proven at most {MAX_PROOF_AGE_S // 60} min ago")


def _change(facts: GateFacts, wanted: Wanted) -> GateCheck:
    if not wanted.is_active:
        return _passed("change", f"{wanted.version} is not active yet")
    return _unknown("change", "active_already", f"{wanted.version} is active at {facts.place}", "nothing to deploy")


def _way_back(facts: GateFacts) -> GateCheck:
    candidates = facts.after.candidates
    if not candidates:
        rejected = ", ".join(f"{r.version}: {r.reason}" for r in facts.after.rejected)
        if facts.wanted is not None and not facts.serves:
            return _failed(
                "way back",
                "no_way_back",
                f"{facts.wanted.version} would be the first version at {facts.place}: there is nothing to go back to",
                f"knowingly and by hand: rearguard deploy {facts.place.service} {facts.wanted.version} "
                f"--env {facts.place.env}; from the second version on there is a way back",
            )
        return _failed(
            "way back",
            "no_verified_checkpoint",
            f"nothing proven to roll back to ({rejected or 'no checkpoint is registered'})",
            facts.remedy or f"rearguard rollback plan {_at(facts.place)}",
        )
    best = candidates[0]
    if best.stale:
        return _unknown(
            "way back",
            "rollback_target_stale",
            f"{best.checkpoint.version} is the way back, and its proof is stale",
            f"rearguard checkpoint verify --service {facts.place.service} --version {best.checkpoint.version}",
        )
    return _passed("way back", f"{best.checkpoint.version} is proven and served here")
