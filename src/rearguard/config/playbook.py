"""`rollback_playbook.yaml` (R8): the declared steps of a rollback, their order and their owners.

Decides whether a file declares a rollback that can be run: each step of `STEP_NAMES` once, in the only legal order,
each with an owner and a limit. The normative form is `docs/reference/rollback-playbook-yaml.md`. The sha256 of the
file's bytes stands in every run.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from rearguard.config.document import read_document
from rearguard.config.reader import Fields, root_fields, suggestion
from rearguard.model.settings import STEP_NAMES, Playbook, PlaybookStep

PLAYBOOK_KEYS: dict[str, tuple[str, ...]] = {
    "": ("version", "contacts", "steps"),
    "contacts": ("ops_commander", "infra_guardian", "compliance_monitor"),
    "steps.N": ("name", "owner", "timeout"),
}
"""Accepted keys by section; N counts the steps from 1."""

_ORDER = f"the steps {', '.join(STEP_NAMES)}, each once and in this order"


def read_playbook(path: Path, *, channels: Collection[str] | None = None) -> Playbook:
    """All of the playbook at `path`. ConfigError when it is missing or not accepted.

    With `channels`, the names that the settings declare, each contact must be one of them.
    """
    document = read_document(path)
    root = root_fields(document, PLAYBOOK_KEYS[""])
    root.choice("version", ("1",))
    return Playbook(
        file=document.file,
        sha256=document.sha256,
        contacts=_contacts(root, channels),
        steps=_steps(root),
    )


def _contacts(root: Fields, channels: Collection[str] | None) -> dict[str, str]:
    section = root.section("contacts", PLAYBOOK_KEYS["contacts"])
    contacts = {role: section.text(role, "the name of a channel of rearguard.yaml") for role in section.names()}
    for role, channel in contacts.items():
        if channels is not None and channel not in channels:
            declared = ", ".join(sorted(channels)) or "none"
            accepted = f"a channel that the settings declare ({declared}){suggestion(channel, channels)}"
            raise section.refuse(role, accepted, code="config_conflict")
    return contacts


def _steps(root: Fields) -> tuple[PlaybookStep, ...]:
    declared = root.items("steps", f"a list of {_ORDER}", PLAYBOOK_KEYS["steps.N"])
    names: list[str] = []
    for fields in declared:
        name = fields.text("name", "the name of a step")
        if name not in STEP_NAMES:
            raise fields.refuse("name", f"{_ORDER}{suggestion(name, STEP_NAMES)}", code="config_step_unknown")
        if name in names:
            raise fields.refuse("name", f"{_ORDER}, and {name} stands twice", code="config_step_repeated")
        names.append(name)
    missing = [name for name in STEP_NAMES if name not in names]
    if missing:
        accepted = f"{_ORDER}, and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        raise root.refuse("steps", accepted, code="config_step_missing")
    for fields, name, legal in zip(declared, names, STEP_NAMES, strict=True):
        if name != legal:
            raise fields.refuse("name", f"{legal} here: {_ORDER}", code="config_step_misplaced")
    return tuple(
        PlaybookStep(
            name=name,
            owner=fields.text("owner", "the name of the role or person who answers for the step"),
            timeout_s=fields.duration_s("timeout", example="60 s"),
        )
        for fields, name in zip(declared, names, strict=True)
    )
