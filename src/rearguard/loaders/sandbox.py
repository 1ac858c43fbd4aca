"""The sandbox: where a format that runs code is loaded, and nowhere else.

This process gives up, one after the other and for good: new privileges, limits on memory, processor time, files and
processes, its place in the host's user, network and IPC namespaces (Linux user_namespaces(7), network_namespaces(7)),
writing anywhere and reading outside what Python and the model need (landlock(7)), and the system calls that
`syscall_filter` names. Where one of these is not to be had the sandbox is refused as a whole: `sandbox_unavailable`.

Law: after `enter` has returned, nothing that this process runs can open a connection, start a program, or change a file.
What it leaves: processor time and memory up to the limits, the answers on the pipe, which may be lies, and reading what
Python itself can read.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rearguard.errors import RefusedError
from rearguard.loaders import syscall_filter

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000
_LANDLOCK_CREATE, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION, _LANDLOCK_PATH_BENEATH = 1, 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_WRITE_FILE = 1 << 1
# Rights that a ruleset handles, by ABI version: 1 everything of 5.13, 2 refer, 3 truncate, 5 ioctl on devices.
_RIGHTS = ((1, (1 << 13) - 1), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15))
_ALL_NETWORK, _ALL_SCOPES = 0b11, 0b11
_MAX_FILES = 256
_MAX_PROCESSES = 64
"""Chosen: threads of the libraries; the system calls that start processes are denied beside it."""
_SYSTEM = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/usr/share/zoneinfo",
    "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/devices/system/cpu", "/dev/urandom", "/dev/zero",
)  # fmt: skip

_entered = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """What a sandboxed process may use."""

    memory_bytes: int
    """Address space (RLIMIT_AS)."""
    cpu_s: int | None
    """Processor time; None: no limit, for a process that serves."""


def is_entered() -> bool:
    """True once this process is inside."""
    return _entered


def enter(readable: Iterable[Path], limits: SandboxLimits) -> None:
    """Put this process inside; what is `readable` (files and folders, links followed) is read beside Python itself.

    To be called before anything heavy is imported: a process with threads cannot leave its user namespace.
    Raises `RefusedError` `sandbox_unavailable`; the process must then load nothing and end.
    """
    global _entered
    try:
        if not syscall_filter.is_known_here():
            raise OSError("its system calls are not known on this machine")
        paths = [*_python_paths(), *map(Path, _SYSTEM), *readable]
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _limit(limits)
        _leave_namespaces()
        _restrict_files(paths)
        _prctl(_PR_SET_DUMPABLE, 0)
        syscall_filter.install(os.getpid())
        _prove()
    except (OSError, ValueError, AttributeError) as error:
        raise RefusedError(
            "sandbox_unavailable",
            f"this host cannot isolate a load: {error}",
            "Linux 5.13 or newer with Landlock, seccomp and user namespaces is needed; or save the model as skops or ONNX",
        ) from error
    _entered = True


def model_paths(folder: Path) -> tuple[Path, ...]:
    """The folder of a model, and the files that the links in it lead to."""
    links = [path.resolve() for path in folder.rglob("*") if path.is_symlink()]
    return (folder.resolve(), *links)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def _limit(limits: SandboxLimits) -> None:
    wanted = [
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _MAX_FILES),
        (resource.RLIMIT_NPROC, _MAX_PROCESSES),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ]
    if limits.cpu_s is not None:
        wanted.append((resource.RLIMIT_CPU, limits.cpu_s))
    for which, most in wanted:
        _, hard = resource.getrlimit(which)
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (value, value))


def _leave_namespaces() -> None:
    """Into user, network and IPC namespaces of its own: no interface but a loopback that is down, no power over the host."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) != 0:
        raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")


def _restrict_files(paths: Iterable[Path]) -> None:
    """Read below `paths`, write nowhere, no TCP, no signal and no abstract socket beyond this domain, as the kernel can."""
    library = ctypes.CDLL(None, use_errno=True)
    version = library.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_LANDLOCK_VERSION))
    if version < 1:
        raise OSError(ctypes.get_errno(), f"landlock: {os.strerror(ctypes.get_errno())}")
    rights = sum(bits for least, bits in _RIGHTS if version >= least)
    network = _ALL_NETWORK if version >= 4 else 0
    attributes = struct.pack("=QQQ", rights, network, _ALL_SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    held = ctypes.create_string_buffer(attributes, 24)
    ruleset = library.syscall(_LANDLOCK_CREATE, held, ctypes.c_size_t(size), ctypes.c_uint32(0))
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), f"landlock: {os.strerror(ctypes.get_errno())}")
    try:
        for path in paths:
            _allow(library, ruleset, path, _READ_FILE | _READ_DIR)
        _allow(library, ruleset, Path("/dev/null"), _READ_FILE | _WRITE_FILE)
        if library.syscall(_LANDLOCK_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0)) != 0:
            raise OSError(ctypes.get_errno(), f"landlock: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(ruleset)


def _allow(library: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there need not be allowed
    try:
        if not os.path.isdir(path):
            rights &= ~_READ_DIR
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, handle), 12)
        answer = library.syscall(
            _LANDLOCK_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_LANDLOCK_PATH_BENEATH), rule, ctypes.c_uint32(0)
        )
        if answer != 0:
            raise OSError(ctypes.get_errno(), f"landlock: {path}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(handle)


def _python_paths() -> list[Path]:
    """What importing needs: the interpreter's folders, everything on its path, and its own entry in /proc."""
    found = {*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, f"/proc/{os.getpid()}"}
    found.update(entry for entry in sys.path if entry)
    return [path for path in map(Path, found) if path != Path("/")]


def _prove() -> None:
    """Try what must fail: the promise is made by the kernel and not by this file."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.socket(2, 1, 0) >= 0:
        raise OSError("a socket can still be made")
    with contextlib.suppress(OSError):
        os.close(os.open("/", os.O_TMPFILE | os.O_WRONLY, 0o600))
        raise ValueError("a file can still be written")
    with contextlib.suppress(OSError):
        os.close(os.open("/etc/hostname", os.O_RDONLY))
        raise ValueError("a file outside can still be read")
