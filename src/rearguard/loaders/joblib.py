"""scikit-learn models saved by joblib or pickle. LOADING ONE RUNS WHATEVER CODE THE FILE NAMES.

Refused unless the policy allows it (`checkpoints.unsafe_formats`), and even then this module loads nothing outside the
sandbox. Before the load the file is scanned: advisory, since a scanner knows the names that it knows. What it calls
dangerous is refused, whatever the policy says; what it calls suspicious is reported.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO

import joblib
from picklescan.scanner import SafetyLevel, scan_pickle_bytes

from rearguard.errors import RefusedError, UsageError
from rearguard.loaders import packing, sandbox
from rearguard.loaders.skops import SklearnModel

SUFFIXES = (".joblib", ".pkl", ".pickle")
MAX_FINDINGS = 20
_MAX_UNPACKED_BYTES = 1 << 30
"""Chosen: what a scan may unpack; the sandbox's memory limit holds beside it."""


def scan(path: Path) -> tuple[str, ...]:
    """What the scanner said of the folder's file, one line a finding, at most `MAX_FINDINGS`; empty: nothing to say.

    Raises `RefusedError` `unsafe_model` for a finding of the kind `dangerous`, `UsageError` as `load`.
    """
    file = _only(path)
    result = scan_pickle_bytes(_unpacked(file), file.name)
    found = {
        kind: sorted({f"{g.module}.{g.name}"[:120] for g in result.globals if g.safety is kind}) for kind in SafetyLevel
    }
    if found[SafetyLevel.Dangerous]:
        raise RefusedError(
            "unsafe_model",
            f"{file.name} calls {', '.join(found[SafetyLevel.Dangerous][:5])}: that is no model",
            "do not load this file; look where it came from",
        )
    lines = [f"suspicious: {name}" for name in found[SafetyLevel.Suspicious]]
    if result.scan_err:
        lines.insert(0, "incomplete: the scanner could not read all of it (joblib writes arrays between the opcodes)")
    return tuple(lines[:MAX_FINDINGS])


def load(path: Path, trusted_types: tuple[str, ...]) -> SklearnModel:
    """The one estimator in the folder; `trusted_types` has no meaning here.

    Raises `RefusedError` `sandbox_unavailable` outside the sandbox, `UsageError` (`unknown_format`, `model_unreadable`,
    `unsupported_model`).
    """
    if not sandbox.is_entered():
        raise RefusedError(
            "sandbox_unavailable", "this format is loaded in the sandbox only", "it is a fault of the caller"
        )
    file = _only(path)
    try:
        estimator = joblib.load(file)
    except Exception as error:  # unpickling raises whatever the file's own code does
        raise UsageError(
            "model_unreadable", f"{file.name}: {type(error).__name__}: {error}"[:400], "save it again"
        ) from error
    if not hasattr(estimator, "predict"):
        raise UsageError("unsupported_model", f"{file.name} is a {type(estimator).__name__} that cannot predict")
    return SklearnModel(estimator)


def _only(path: Path) -> Path:
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
    if len(files) != 1:
        raise UsageError(
            "unknown_format", f"{path} holds {len(files)} files named *{' *'.join(SUFFIXES)}", "keep exactly one"
        )
    return files[0]


def _unpacked(file: Path) -> IO[bytes]:
    """The pickle itself, out of what joblib packs it in; scanners read some of these as clean, unseen."""
    raw = file.read_bytes()
    try:
        inner = packing.unpack(raw, _MAX_UNPACKED_BYTES + 1)
    except ValueError as error:
        raise UsageError("model_unreadable", f"{file.name}: {error}"[:300], "save it again") from error
    if len(inner) > _MAX_UNPACKED_BYTES:
        raise UsageError("model_unreadable", f"{file.name} unpacks to more than {_MAX_UNPACKED_BYTES} bytes", "")
    return io.BytesIO(inner or raw)
