"""Every exception of the product, grouped by what the reader can do next.

    RearguardError                      code, message, hint, exit_code
    ├── UsageError            64        the call is wrong: fix the words
    ├── NotFoundError         64        name something that exists
    ├── ConfigError           78        fix a settings file (file, line, key, value, accepted form)
    ├── RefusedError          30        a brake or a missing proof forbids the act; read the hint
    ├── ConflictError         75        somebody else holds it; look again or try later
    ├── DependencyError       69        something outside is down
    │   └── TransientTargetError  69    the target may answer on the next try
    ├── IntegrityError        65        stop and investigate: bytes, chain or database are not what was recorded
    └── InternalError         70        our own fault

A `code` is stable and public. Exit codes: `docs/reference/exit-codes.md`.
"""

from __future__ import annotations


class RearguardError(Exception):
    """Base of all errors that the product raises on purpose."""

    exit_code = 70

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class UsageError(RearguardError):
    """The call itself is wrong."""

    exit_code = 64


class NotFoundError(RearguardError):
    """The name given does not exist."""

    exit_code = 64


class ConfigError(RearguardError):
    """A settings file is missing, unreadable or says something that is not accepted.

    `file`, `line` (1-based, 0 when the file as a whole is meant), `key` (dotted path), `value` (as written) and
    `accepted` (the accepted form) are kept apart so that a program can show them.
    """

    exit_code = 78

    def __init__(
        self,
        code: str,
        message: str,
        hint: str = "",
        *,
        file: str = "",
        line: int = 0,
        key: str = "",
        value: str = "",
        accepted: str = "",
    ) -> None:
        super().__init__(code, message, hint)
        self.file = file
        self.line = line
        self.key = key
        self.value = value
        self.accepted = accepted


class RefusedError(RearguardError):
    """A brake, a missing proof or a missing approval forbids the act."""

    exit_code = 30


class ConflictError(RearguardError):
    """The thing is held or was changed by somebody else."""

    exit_code = 75


class DependencyError(RearguardError):
    """Something outside the product is down or answers wrongly."""

    exit_code = 69


class DatabaseBusyError(DependencyError):
    """Another process has held the database's write lock for too long; nothing is wrong here, the next try may succeed."""


class TransientTargetError(DependencyError):
    """The target did not answer as it should; the next try may succeed."""


class IntegrityError(RearguardError):
    """Stored bytes, the evidence chain or the database are not what was recorded."""

    exit_code = 65


class InternalError(RearguardError):
    """A fault of our own."""

    exit_code = 70
