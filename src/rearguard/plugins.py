"""Adapters by entry-point name; built-in ones load exactly like a third party's."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from rearguard.errors import ConfigError

GROUPS = ("rearguard.targets", "rearguard.telemetry", "rearguard.channels", "rearguard.loaders")


def installed(group: str) -> tuple[str, ...]:
    """Names provided in a group, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=group)}))


def load(group: str, name: str) -> Any:
    """The factory of an adapter.

    Raises `ConfigError` `adapter_broken` when it cannot be imported, `adapter_unknown` when nobody provides the name,
    `adapter_ambiguous` when several distributions do: which one would answer must never depend on the order of
    installation.
    """
    found = {point.value: point for point in entry_points(group=group) if point.name == name}
    if not found:
        raise ConfigError(
            "adapter_unknown",
            f"no adapter named {name!r} in {group}; installed: {', '.join(installed(group)) or 'none'}",
            "name one of the installed adapters, or install the package that brings it",
            key="adapter",
            value=name,
        )
    if len(found) > 1:
        raise ConfigError(
            "adapter_ambiguous",
            f"the adapter name {name!r} in {group} is provided by {', '.join(sorted(found))}",
            "uninstall all but one of the packages that provide it",
            key="adapter",
            value=name,
        )
    value, point = next(iter(found.items()))
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "adapter_broken",
            f"the adapter {name!r} in {group} cannot be imported from {value}: {error}",
            "install what it needs, or another release of the package that brings it",
            key="adapter",
            value=name,
        ) from error
