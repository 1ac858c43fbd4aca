"""The load probe: load a model in this fresh process, answer requests, say how long it took (R16, R17).

Run as `python -P -m rearguard.loaders.probe PARENT_PID`: it dies with that process (without a number it does not).
One JSON object on stdin: `path`, `format`, `trusted_types`, `requests`,
and `sandbox` (`memory_bytes`, `cpu_s`) for a format that runs code: it is loaded in the sandbox or not at all.
One JSON object on stdout: `ok` true with `import_ms`, `load_ms`, `peak_rss_bytes`, `answers`, `state_sha256` (empty when
the loader tells none), `libraries` (versions by distribution) and `scan` (findings, one a line), or `ok` false with
`code`, `message`, `hint` and `request` (the number, from 1, of the request that failed; null when it was the load). The
exit code is 0 in both cases; another one means that the process itself died.

`load_ms` runs on the monotonic clock from before the loader's imports to the first answered request (to the end of
loading when there is no request): what a cold recovery waits for once a Python is running. The digest of the state is
computed after that.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from rearguard.errors import RearguardError, RefusedError, UsageError
from rearguard.loaders import DeclaresState, Model, answer, get_format, get_loader, library_versions, sandbox
from rearguard.loaders.orphans import die_with_parent
from rearguard.model.model_format import ModelFormat

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


_NO_ROOM = "the libraries alone need more memory than the sandbox has"
_MORE_ROOM = "raise checkpoints.sandbox_memory_mib"


def probe(order: dict[str, Any]) -> dict[str, Any]:
    """Carry out one order in this process; never raises for what a model or an order does wrong."""
    started_ns = time.monotonic_ns()  # edge: this process is the stopwatch
    stage, asked = "load_failed", None
    try:
        path, name, trusted, requests = _read(order)
        found = get_format(name)
        libraries = library_versions(found)
        if found.runs_code:
            _enter_sandbox(found, path, order.get("sandbox"))
        load = get_loader(name)
        imported_ns = time.monotonic_ns()  # edge: this process is the stopwatch
        findings = _scan(found, path)
        model = load(path, trusted)
        ready_ns = time.monotonic_ns()  # edge: this process is the stopwatch
        stage = "model_failed"
        answers = []
        for asked, request in enumerate(requests, 1):
            if not isinstance(model, Model):
                raise UsageError(
                    "format_answers_nothing", f"{name} holds weights and answers no requests", "leave --golden out"
                )
            answers.append({"outputs": answer(model, request)})
            if asked == 1:
                ready_ns = time.monotonic_ns()  # edge: this process is the stopwatch
        asked, stage = None, "load_failed"
        state = model.state_sha256() if isinstance(model, DeclaresState) else ""
    except RearguardError as error:
        if sandbox.is_entered() and "failed to map" in error.message:  # the linker's word for too little address space
            return {"ok": False, "code": "load_failed", "message": _NO_ROOM, "hint": _MORE_ROOM, "request": asked}
        return {"ok": False, "code": error.code, "message": error.message, "hint": error.hint, "request": asked}
    except Exception as error:  # a model may raise anything; the officer needs it as words
        message = f"{type(error).__name__}: {error}"[:500]
        return {"ok": False, "code": stage, "message": message, "hint": _hint(stage, str(error)), "request": asked}
    return {
        "ok": True,
        "import_ms": (imported_ns - started_ns) // 1_000_000,
        "load_ms": (ready_ns - started_ns) // 1_000_000,
        "peak_rss_bytes": peak_rss_bytes(),
        "answers": answers,
        "state_sha256": state,
        "libraries": libraries,
        "scan": list(findings),
    }


def _enter_sandbox(found: ModelFormat, path: Path, given: Any) -> None:
    """Give up every right that the code of a model could use.

    Raises `RefusedError` `unsafe_format` when the order does not allow the format, or as `sandbox.enter`.
    """
    if not isinstance(given, dict) or type(given.get("memory_bytes")) is not int or type(given.get("cpu_s")) is not int:
        raise RefusedError(
            "unsafe_format", f"loading {found.name} can run any code, and the order gives no sandbox for it"
        )
    limits = sandbox.SandboxLimits(memory_bytes=given["memory_bytes"], cpu_s=given["cpu_s"])
    sandbox.enter(sandbox.model_paths(path), limits)


def _scan(found: ModelFormat, path: Path) -> tuple[str, ...]:
    """What the loader's own scan of the folder found, where it has one. Raises as the scan."""
    module = sys.modules[found.load.partition(":")[0]]
    findings: tuple[str, ...] = module.scan(path) if found.runs_code and hasattr(module, "scan") else ()
    return findings


def _hint(stage: str, said: str) -> str:
    """What to do about an exception that the model or its library raised."""
    if "only supported for dataframes" in said:  # scikit-learn: a ColumnTransformer that names its columns
        return "a request holds arrays, so a pipeline over a DataFrame is not supported: fit it on arrays, columns by number"
    if stage == "load_failed":
        return "the file's own library refused it: save it with the version that is installed here"
    return "the model itself raised this: compare the request with what it was fitted on (columns, order, datatype)"


def peak_rss_bytes() -> int:
    """Highest resident memory of this process in bytes.

    From `VmHWM`: `ru_maxrss` would start at the size of the process that forked this one.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(order: dict[str, Any]) -> tuple[Path, str, tuple[str, ...], list[dict[str, Any]]]:
    path, name = order.get("path"), order.get("format")
    trusted, requests = order.get("trusted_types", []), order.get("requests", [])
    if not isinstance(path, str) or not isinstance(name, str):
        raise UsageError("bad_order", "path and format must be text")
    if not isinstance(trusted, list) or not all(isinstance(t, str) for t in trusted):
        raise UsageError("bad_order", "trusted_types must be a list of text")
    if not isinstance(requests, list) or not all(isinstance(r, dict) for r in requests):
        raise UsageError("bad_order", "requests must be a list of V2 requests")
    return Path(path), name, tuple(trusted), requests


def main(arguments: list[str]) -> int:
    """Read the order, answer it; 0 always, the answer says the rest."""
    if arguments:
        die_with_parent(int(arguments[0]))
    # Libraries print to fd 1 when they feel like it: keep the real stdout aside and give them stderr.
    real_stdout = os.dup(1)
    os.dup2(2, 1)
    for variable in THREAD_VARIABLES:
        os.environ[variable] = "1"
    try:
        order = json.load(sys.stdin)
    except ValueError as error:
        result: dict[str, Any] = {"ok": False, "code": "bad_order", "message": f"stdin is not JSON: {error}"}
    else:
        if isinstance(order, dict):
            result = probe(order)
        else:
            result = {"ok": False, "code": "bad_order", "message": "stdin is not a JSON object"}
    with os.fdopen(real_stdout, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
