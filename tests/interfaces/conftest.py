"""Fixtures of this folder; what they are made of is in `conftest_cli`."""

from __future__ import annotations

from conftest_cli import copy, fresh, lived

__all__ = ["copy", "fresh", "lived"]
