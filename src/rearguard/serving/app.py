"""The HTTP face of the model server: Open Inference Protocol (V2 REST) and its model repository extension.

Errors are `{"error": ...}` as the protocol says. A client's mistake is 400, an unknown name 404, an older epoch 409,
a version that cannot be loaded 422 (files or order) or 500, a failing model 500, a dead or overloaded worker 503.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from importlib.metadata import version as package_version
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rearguard.errors import ConflictError, DependencyError, NotFoundError, RearguardError, RefusedError, UsageError
from rearguard.serving.fleet import Fleet, Slot
from rearguard.serving.options import ServeOptions
from rearguard.serving.requestlog import RequestLog
from rearguard.serving.state import parse_order

_log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024 * 1024
"""Chosen: a request above it is a mistake, not an inference."""
STANDBY_EXTENSION = "rearguard_standby"
"""What `/v2` names: a load with `activate: false` prepares a standby here. Another server would move traffic."""


def build_app(options: ServeOptions, fleet: Fleet, log: RequestLog) -> Starlette:
    """The application; starting it restores the fleet, stopping it ends every worker."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        fleet.restore()
        yield
        await fleet.close()
        log.close()

    routes = _Routes(options, fleet, log)
    model = "/v2/models/{m}"
    return Starlette(
        lifespan=lifespan,
        exception_handlers={HTTPException: _http_error, RearguardError: _known_error},
        routes=[
            Route("/v2", routes.server, methods=["GET"]),
            Route("/v2/health/live", routes.live, methods=["GET"]),
            Route("/v2/health/ready", routes.ready, methods=["GET"]),
            Route(model, routes.metadata, methods=["GET"]),
            Route(model + "/ready", routes.model_ready, methods=["GET"]),
            Route(model + "/infer", routes.infer, methods=["POST"]),
            Route(model + "/versions/{v}", routes.metadata, methods=["GET"]),
            Route(model + "/versions/{v}/ready", routes.model_ready, methods=["GET"]),
            Route(model + "/versions/{v}/infer", routes.infer, methods=["POST"]),
            Route("/v2/repository/index", routes.index, methods=["POST"]),
            Route("/v2/repository/models/{m}/load", routes.load, methods=["POST"]),
            Route("/v2/repository/models/{m}/unload", routes.unload, methods=["POST"]),
        ],
    )


class _Routes:
    def __init__(self, options: ServeOptions, fleet: Fleet, log: RequestLog) -> None:
        self._options = options
        self._fleet = fleet
        self._log = log

    async def server(self, _: Request) -> Response:
        return JSONResponse(
            {
                "name": "rearguard",
                "version": package_version("rearguard"),
                "extensions": ["model_repository", STANDBY_EXTENSION],
            }
        )

    async def live(self, _: Request) -> Response:
        return JSONResponse({"live": True, "parameters": {"log_write_failures": self._log.write_failures}})

    async def ready(self, _: Request) -> Response:
        active = self._fleet.active
        up = active is not None and active.ready
        return JSONResponse({"ready": up}, 200 if up else 503)

    async def metadata(self, request: Request) -> Response:
        slot = self._slot(request)
        active = self._fleet.active
        shown = slot or active
        return JSONResponse(
            {
                "name": self._options.name,
                "versions": [s.spec.version for s in self._fleet.slots],
                "platform": shown.spec.format if shown else "",
                "inputs": [],
                "outputs": [],
                "parameters": {
                    "digest": shown.spec.digest if shown else None,
                    "version": shown.spec.version if shown else None,
                    "epoch": self._fleet.epoch,
                    "ready": shown is not None and shown.ready,
                },
            }
        )

    async def model_ready(self, request: Request) -> Response:
        slot = self._slot(request)
        up = slot is not None and slot.ready
        reason = "nothing is loaded" if slot is None else slot.reason
        return JSONResponse({"name": self._options.name, "ready": up, "reason": reason}, 200 if up else 503)

    async def infer(self, request: Request) -> Response:
        started_ns = time.monotonic_ns()  # edge: the latency of this request
        self._check_model(request)
        slot: Slot | None = None
        request_id = ""
        try:
            slot = self._slot(request)
            raw = await _body(request)
            request_id = _request_id(raw)
            status, body = await self._ask(slot, raw)
        except RearguardError as error:
            status, body = _status(error), json.dumps({"error": error.message}).encode()
        spec = slot.spec if slot else None
        self._log.append(
            digest=spec.digest if spec else "",
            version=spec.version if spec else "",
            status=status,
            started_ns=started_ns,
            request_id=request_id,
        )
        headers = {"retry-after": "1"} if status == 503 else None
        return Response(body, status, headers, "application/json")

    async def index(self, request: Request) -> Response:
        wanted = await _json_object(request)
        entries = [
            {
                "name": self._options.name,
                "version": slot.spec.version,
                "state": "READY" if slot.ready else "UNAVAILABLE",
                "reason": slot.reason,
                "parameters": {
                    "digest": slot.spec.digest,
                    "active": slot is self._fleet.active,
                    "answered": slot.answered,
                    "rss_bytes": slot.rss_bytes,
                },
            }
            for slot in self._fleet.slots
            if slot.ready or not wanted.get("ready")
        ]
        return JSONResponse(entries)

    async def load(self, request: Request) -> Response:
        self._check_model(request)
        order = parse_order(await _json_object(request))
        try:
            applied = await (self._fleet.apply(order) if order.activate else self._fleet.prepare(order))
        except ConflictError as error:
            return JSONResponse({"error": error.message, "code": error.code, "epoch": self._fleet.epoch}, 409)
        except DependencyError as error:
            return JSONResponse({"error": error.message, "code": error.code}, 500)
        except OSError as error:
            return JSONResponse({"error": f"the state cannot be written: {error}", "code": "state_not_written"}, 500)
        return JSONResponse({"digest": applied.digest, "epoch": applied.epoch, "warm": applied.warm})

    async def unload(self, request: Request) -> Response:
        self._check_model(request)
        given = (await _json_object(request)).get("parameters") or {}
        if not isinstance(given, dict):
            raise UsageError("bad_unload", "parameters is not an object")
        digest, version = given.get("digest"), given.get("version")
        if not isinstance(digest, (str, type(None))) or not isinstance(version, (str, type(None))):
            raise UsageError("bad_unload", "digest and version are text")
        await self._fleet.unload(digest, version)
        return JSONResponse({})

    async def _ask(self, slot: Slot | None, raw: bytes) -> tuple[int, bytes]:
        if slot is None:
            raise DependencyError("nothing_loaded", "no version is loaded")
        if slot.worker is None:
            raise DependencyError("worker_gone", f"the worker of {slot.spec.version} is down")
        # `raw` was parsed just now, so it is one JSON value and cannot leave its place in the frame.
        frame = b'{"op":"infer","request":' + raw + b"}"
        head, body = await slot.worker.ask(frame, self._options.infer_timeout_s)
        return int(head["status"]), body

    def _check_model(self, request: Request) -> None:
        if request.path_params["m"] != self._options.name:
            raise NotFoundError("unknown_model", f"there is no model {request.path_params['m']!r} here")

    def _slot(self, request: Request) -> Slot | None:
        """The slot a request means: the named version's, else the active one or None before the first load."""
        self._check_model(request)
        label = request.path_params.get("v")
        if label is None:
            return self._fleet.active
        slot = self._fleet.find_version(label)
        if slot is None:
            raise NotFoundError("unknown_version", f"the version {label!r} is not loaded")
        return slot


def _status(error: RearguardError) -> int:
    if isinstance(error, NotFoundError):
        return 404
    if isinstance(error, UsageError):
        return 413 if error.code == "too_large" else 400
    if isinstance(error, ConflictError):
        return 409
    if isinstance(error, RefusedError):
        return 422
    return 503 if isinstance(error, DependencyError) else 500


async def _body(request: Request) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise UsageError("too_large", f"the body is larger than {MAX_BODY_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError("bad_json", f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise UsageError("bad_json", "the body is not a JSON object")
    return document


def _request_id(raw: bytes) -> str:
    request_id = _parse(raw).get("id", "")
    if not isinstance(request_id, str):
        raise UsageError("bad_tensor", "id is not a text")
    return request_id


async def _json_object(request: Request) -> dict[str, Any]:
    raw = await _body(request)
    return _parse(raw) if raw else {}


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _known_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RearguardError)
    hint = {"hint": error.hint} if error.hint else {}
    return JSONResponse({"error": error.message, "code": error.code, **hint}, _status(error))
