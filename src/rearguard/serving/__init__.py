"""The embedded model server: a front that routes to one live worker process per loaded version.

It and the officer share no code but `errors`, `model` and `loaders`; they talk HTTP only (Open Inference Protocol
with the repository extension). `python -m rearguard.serving --help` starts it by hand.
"""

from __future__ import annotations

from rearguard.serving.options import ServeOptions

__all__ = ["ServeOptions", "serve"]


def serve(options: ServeOptions) -> int:
    """Serve until SIGTERM or SIGINT; the process's exit code (0 after an orderly stop).

    Raises `ConfigError` when the extra `serve` is not installed, `ConflictError` (`state_dir_locked`) when another
    front uses the state folder, `IntegrityError` (`serving_state_unreadable`) when what it holds is not what was
    written, `DependencyError` (`address_in_use`) when the port cannot be had.
    """
    # Imported late: the web framework belongs to the extra `serve`, and the CLI must start without it.
    from rearguard.errors import ConfigError

    try:
        from rearguard.serving.front import run
    except ImportError as error:
        raise ConfigError(
            "missing_extra",
            f"the model server needs a library that cannot be imported: {error}",
            "pip install 'rearguard[serve]'",
        ) from error
    return run(options)
