"""Fixtures of this folder; what they are made of is in `conftest_cli`."""

from __future__ import annotations

from conftest_cli import copy, fresh, lived
from conftest_ready import guarded, ready, ready_once

__all__ = ["copy", "fresh", "guarded", "lived", "ready", "ready_once"]
