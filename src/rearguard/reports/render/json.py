"""The JSON twin of a report (R110): the same value, every figure, no floats; format: `docs/reference/report.md`."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from enum import Enum

from rearguard.model.report import Report


def render_json(report: Report) -> str:
    """The report as JSON: keys sorted, two spaces, one final newline; equal reports give equal bytes (R98)."""
    return json.dumps(_plain(report), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
