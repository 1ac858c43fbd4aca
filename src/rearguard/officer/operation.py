"""The effect of an operation, declared where it is defined."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Effect(Enum):
    """What an operation may change."""

    READ = "read"
    PROPOSE = "propose"
    """Computes what would be done; changes nothing outside."""
    COMMIT = "commit"


OPERATIONS: dict[str, Effect] = {}
"""`module.function` -> effect, filled where operations are defined."""


def operation(effect: Effect) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function as an operation of the officer."""

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        module = function.__module__.rpartition(".")[2]
        OPERATIONS[f"{module}.{function.__name__}"] = effect
        return function

    return mark
