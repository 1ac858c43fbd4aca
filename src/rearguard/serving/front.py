"""The front process: one port, one event loop, no model. It only routes, logs, and keeps workers alive."""

from __future__ import annotations

import logging
import math
import signal
import socket

import uvicorn

from rearguard.errors import DependencyError
from rearguard.serving.app import build_app
from rearguard.serving.fleet import Fleet
from rearguard.serving.options import ServeOptions
from rearguard.serving.requestlog import RequestLog
from rearguard.serving.state import StateFile

_log = logging.getLogger(__name__)

_KEEP_ALIVE_S = 75
"""Chosen above the idle time of usual clients, so that a reused connection is rarely just being closed."""


def run(options: ServeOptions) -> int:
    """Serve until SIGTERM or SIGINT, then 0. Must run in the main thread; see `rearguard.serving.serve`."""
    listener = _listen(options)
    file = StateFile(options.state_dir)
    fleet = Fleet(options, file)
    log = RequestLog(options.log, options.service, options.env)
    config = uvicorn.Config(
        build_app(options, fleet, log),
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, math.ceil(options.drain_s)),
    )
    # uvicorn stops at these signals and then raises them again for whoever was there before: an orderly stop is 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    _log.info("listening host=%s port=%d model=%s", *listener.getsockname()[:2], options.name)
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def _listen(options: ServeOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # The protocol is named because asyncio turns Nagle's algorithm off only for sockets that say TCP; with it on, each
    # answer on a kept-alive connection waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise DependencyError(
            "address_in_use", f"{options.host}:{options.port} cannot be had: {error}", "choose another port"
        ) from error
    return listener
