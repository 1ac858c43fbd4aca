"""A seccomp filter: what a process that loads strangers' code may ask of the kernel.

Denied with EPERM: new sockets and everything about their addresses, new programs and processes, signals to others, outliving the
parent, what traces or reads other processes, changes of names, rights and namespaces, and doors that go past the other
guards (io_uring, bpf, keyrings, modules). Threads are allowed, reading is Landlock's matter. Sources: seccomp(2), the kernel's
syscall_64.tbl and asm-generic/unistd.h (Linux 6.18).
"""

from __future__ import annotations

import ctypes
import platform
import struct
from dataclasses import dataclass

_X86_64, _AARCH64 = 0xC000003E, 0xC00000B7
"""linux/audit.h: AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64."""

# name: (x86_64, aarch64); None where the architecture has no such call.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "accept4": (288, 242), "bind": (49, 200),
    "listen": (50, 201),
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "process_madvise": (440, 440),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "setpriority": (141, 140), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274), "ioprio_set": (251, 30), "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "truncate": (76, 45), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "chroot": (161, 51),
    "pivot_root": (155, 41), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "fanotify_init": (300, 262),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "quotactl": (179, 60), "syslog": (103, 116), "setuid": (105, 146), "setgid": (106, 144),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162), "personality": (135, 92),
    "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
}  # fmt: skip
_KILL, _TGKILL, _PRLIMIT = (62, 129), (234, 131), (302, 261)
_PRCTL, _PR_SET_PDEATHSIG = (157, 167), 1
_CLONE, _CLONE3 = (56, 220), (435, 435)
_CLONE_THREAD = 0x00010000
_X32_BIT = 0x40000000

# linux/filter.h and linux/seccomp.h
_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38
_NR, _ARCH, _ARG0 = 0, 4, 16
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


@dataclass(frozen=True, slots=True)
class _Step:
    code: int
    value: int
    on_true: int = 0
    on_false: int = 0

    def packed(self) -> bytes:
        return struct.pack("=HBBI", self.code, self.on_true, self.on_false, self.value)


def is_known_here() -> bool:
    """True on a machine whose system calls this module knows by number."""
    return platform.machine() in ("x86_64", "aarch64")


def install(pid: int) -> None:
    """Filter this thread and those that it starts, for good; `pid` is this process, which may signal itself.

    Needs no_new_privs. Raises OSError.
    """
    program = b"".join(step.packed() for step in _program(pid))
    held = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(held))
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.create_string_buffer(described, len(described)), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def _program(pid: int) -> list[_Step]:
    which = 0 if platform.machine() == "x86_64" else 1
    arch = _X86_64 if which == 0 else _AARCH64
    refuse = _Step(_RET, _ERRNO | _EPERM)
    steps = [_Step(_LD, _ARCH), _Step(_JEQ, arch, 1, 0), _Step(_RET, _KILL_PROCESS), _Step(_LD, _NR)]
    if which == 0:
        steps += [_Step(_JGE, _X32_BIT, 0, 1), _Step(_RET, _KILL_PROCESS)]
    for numbers in _DENIED.values():
        number = numbers[which]
        if number is not None:
            steps += [_Step(_JEQ, number, 0, 1), refuse]
    # glibc falls back to clone when there is no clone3; its flags are in memory, where a filter cannot look.
    steps += [_Step(_JEQ, _CLONE3[which], 0, 1), _Step(_RET, _ERRNO | _ENOSYS)]
    steps += [_Step(_JEQ, _CLONE[which], 0, 4), _Step(_LD, _ARG0), _Step(_JSET, _CLONE_THREAD, 1, 0), refuse]
    steps += [_Step(_RET, _ALLOW)]
    steps += [_Step(_JEQ, _PRCTL[which], 0, 4), _Step(_LD, _ARG0), _Step(_JEQ, _PR_SET_PDEATHSIG, 0, 1), refuse]
    steps += [_Step(_RET, _ALLOW)]
    for numbers in (_KILL, _TGKILL):
        steps += [_Step(_JEQ, numbers[which], 0, 4), _Step(_LD, _ARG0), _Step(_JEQ, pid, 1, 0), refuse]
        steps += [_Step(_RET, _ALLOW)]
    steps += [_Step(_JEQ, _PRLIMIT[which], 0, 5), _Step(_LD, _ARG0), _Step(_JEQ, pid, 2, 0), _Step(_JEQ, 0, 1, 0)]
    steps += [refuse, _Step(_RET, _ALLOW)]
    steps += [_Step(_RET, _ALLOW)]
    return steps
