"""A worker: one process, one loaded version, one request at a time.

Started by the front as `python -m rearguard.serving.worker FD PARENT_PID` with one end of a socket pair. It dies with
the front: by the kernel's parent-death signal, by the end of the socket, whichever comes first. It is ready only
after it answered an inference.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from rearguard.errors import RearguardError, RefusedError, UsageError
from rearguard.loaders import DeclaresInputs, Model, answer, get_format, get_loader, sandbox
from rearguard.loaders.orphans import die_with_parent
from rearguard.model.model_format import ModelFormat
from rearguard.serving import frames


def load_model(order: dict[str, Any]) -> tuple[Model, dict[str, Any]]:
    """The loaded and warmed-up model, and what to tell the front; raises whatever the loader or model raises."""
    started_ns = time.monotonic_ns()  # edge: this process is the stopwatch
    found = get_format(order["format"])
    if not found.predicts:
        raise RefusedError(
            "format_answers_nothing",
            f"{found.name} holds weights and answers no requests",
            "serve it with a server that knows the architecture, and point a target of the kind `command` at that",
        )
    if found.runs_code:
        _enter_sandbox(found, Path(order["path"]), order.get("sandbox_memory_bytes"))
    model = get_loader(order["format"])(Path(order["path"]), tuple(order["trusted_types"]))
    if not isinstance(model, Model):
        raise RefusedError("format_answers_nothing", f"what {found.name} loaded cannot predict")
    warmed = _warm_up(model, order.get("warmup"))
    load_ms = (time.monotonic_ns() - started_ns) // 1_000_000  # edge: this process is the stopwatch
    return model, {"ok": True, "warmed": warmed, "load_ms": load_ms}


def _enter_sandbox(found: ModelFormat, path: Path, memory_bytes: int | None) -> None:
    """For a format that runs code: give up everything but the socket to the front, for as long as this process serves.

    The front has started it with an empty environment and with nothing behind its standard streams.

    Raises `RefusedError` `unsafe_format` when the order does not allow it, or as `sandbox.enter`.
    """
    if memory_bytes is None:
        raise RefusedError(
            "unsafe_format",
            f"loading {found.name} can run any code, and the order does not allow it in the sandbox",
            "save it as skops or ONNX; or name it in checkpoints.unsafe_formats",
        )
    limits = sandbox.SandboxLimits(memory_bytes=memory_bytes, cpu_s=None)
    sandbox.enter(sandbox.model_paths(path), limits)


def respond(model: Model, identity: dict[str, Any], request: dict[str, Any]) -> tuple[int, bytes]:
    """HTTP status and V2 body for one request; never raises for what a client or a model does."""
    body: dict[str, Any] = dict(identity)
    if "id" in request:
        body["id"] = request["id"]
    try:
        body["outputs"] = answer(model, request)
        return 200, json.dumps(body, allow_nan=False).encode()
    except UsageError as error:
        status, words = 400, f"{error.message}. {error.hint}" if error.hint else error.message
    except Exception as error:  # whatever a model raises is its failure and the client's 500
        status, words = 500, f"{type(error).__name__}: {error}"[:500]
    body.pop("outputs", None)
    return status, json.dumps({"error": words, **body}).encode()


def serve(connection: socket.socket) -> None:
    """Load what the first frame says, then answer until the front is gone."""
    first = frames.receive(connection)
    if first is None:
        return
    order = json.loads(first)
    identity = {
        "model_name": order["model"],
        "model_version": order["version"],
        "parameters": {"digest": order["digest"]},
    }
    try:
        model, report = load_model(order)
    except RearguardError as error:
        _send(connection, {"ok": False, "code": error.code, "message": error.message, "client": True}, b"")
        return
    except Exception as error:  # the reason must reach the operator; the process ends either way
        message = f"{type(error).__name__}: {error}"[:500]
        _send(connection, {"ok": False, "code": "load_failed", "message": message, "client": False}, b"")
        return
    _send(connection, report, b"")
    while (frame := frames.receive(connection)) is not None:
        message = json.loads(frame)
        if message["op"] == "ping":
            _send(connection, {"status": 200}, b"")
            continue
        status, body = respond(model, identity, message["request"])
        _send(connection, {"status": status}, body)


def main(arguments: list[str]) -> int:
    """Run the worker on an inherited socket."""
    die_with_parent(int(arguments[1]))
    # Ctrl-C reaches the whole terminal group; the front decides when in-flight requests are done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A child process of a library must not hold the socket open after this process died.
    os.set_inheritable(int(arguments[0]), False)
    with socket.socket(fileno=int(arguments[0])) as connection:
        try:
            serve(connection)
        except (BrokenPipeError, ConnectionResetError):
            return 0
    return 0


def _warm_up(model: Model, request: dict[str, Any] | None) -> bool:
    """True when an inference was answered.

    A given request must be answered, else the load fails. Without one, zeros of the declared shape are tried; a model
    that refuses zeros is not broken, so that is only reported.
    """
    if request is not None:
        answer(model, request)
        return True
    example = model.example_inputs() if isinstance(model, DeclaresInputs) else None
    if example is None:
        return False
    try:
        model.predict(example)
    except Exception:  # zeros of our own making are no proof against a model
        return False
    return True


def _send(connection: socket.socket, head: dict[str, Any], body: bytes) -> None:
    connection.sendall(frames.pack(json.dumps(head).encode()) + frames.pack(body))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
