"""34 files that run code when they are unpickled, made here and harmless: each creates its canary or knocks at a port.

The shapes follow what scanners are known to miss: every protocol, callables beyond `exec`, opcodes that no `pickle.dumps`
writes, and what joblib packs a file in.
"""

from __future__ import annotations

import bz2
import cProfile
import functools
import gzip
import io
import lzma
import operator
import os
import pathlib
import pickle
import profile
import shutil
import socket
import subprocess
import timeit
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """One file's bytes, and the path that exists (or the port that was asked) once they have been unpickled."""

    name: str
    content: bytes
    canary: Path


class Call:
    """Unpickles as the result of `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


def shapes(folder: Path, port: int) -> list[Shape]:
    """All of them; canaries lie in `folder`."""
    made: list[Shape] = []

    def add(name: str, content: Callable[[str], bytes]) -> None:
        canary = folder / f"canary-{name}"
        made.append(Shape(name, content(str(canary)), canary))

    def code(canary: str) -> str:
        knock = f"__import__('socket').create_connection(('127.0.0.1', {port})).close()"
        return f"open({canary!r}, 'w').close(); {knock}"

    for protocol in range(6):
        add(f"exec-{protocol}", lambda c, p=protocol: pickle.dumps(Call(exec, code(c)), p))
    touch = "touch {}".format
    run = subprocess
    calls: dict[str, Callable[[str], Any]] = {
        "eval": lambda c: Call(eval, f"exec({code(c)!r})"),
        "system": lambda c: Call(os.system, touch(c)),
        "popen": lambda c: Call(run.Popen, ["touch", c]),
        "run": lambda c: Call(run.run, ["touch", c]),
        "call": lambda c: Call(run.call, ["touch", c]),
        "output": lambda c: Call(run.check_output, ["touch", c]),
        "os-popen": lambda c: Call(os.popen, touch(c)),
        "timeit": lambda c: Call(timeit.timeit, code(c), "pass", timeit.default_timer, 1),
        "cprofile": lambda c: Call(cProfile.run, code(c), f"{c}.out"),
        "profile": lambda c: Call(profile.run, code(c), f"{c}.out"),
        "open": lambda c: Call(open, c, "w"),
        "io": lambda c: Call(io.FileIO, c, "w"),
        "mkdir": lambda c: Call(os.mkdir, c),
        "copy": lambda c: Call(shutil.copyfile, "/dev/null", c),
        "path": lambda c: Call(pathlib.Path.touch, Path(c)),
        "rename": lambda c: Call(os.symlink, "nowhere", c),
        "connect": lambda c: Call(socket.create_connection, ("127.0.0.1", port)),
        "urlopen": lambda c: Call(urllib.request.urlopen, f"http://127.0.0.1:{port}/"),
        "partial": lambda c: Call(functools.partial(exec, code(c))),
        "methodcaller": lambda c: Call(operator.methodcaller("system", touch(c)), Call(__import__, "os")),
    }
    for name, call in calls.items():
        add(name, lambda c, call=call: pickle.dumps(call(c), 2))
    imported = b"\x80\x02cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR("
    add("getattr", lambda c: imported + f"S'{touch(c)}'\ntR.".encode())
    add("inst", lambda c: f"(S'{touch(c)}'\nios\nsystem\n.".encode())
    add("obj", lambda c: b"(cos\nsystem\n" + f"S'{touch(c)}'\n".encode() + b"o.")
    for name, pack in (("gzip", gzip.compress), ("zlib", zlib.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
        add(name, lambda c, pack=pack: pack(pickle.dumps(Call(exec, code(c)), 4)))
    add("lzma", lambda c: lzma.compress(pickle.dumps(Call(exec, code(c)), 4), format=lzma.FORMAT_ALONE))
    return made
