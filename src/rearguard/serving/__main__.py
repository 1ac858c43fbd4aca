"""`python -m rearguard.serving`: the model server without the CLI."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rearguard.errors import RearguardError
from rearguard.serving import ServeOptions, serve


def main(arguments: Sequence[str]) -> int:
    """Serve with the options given in words; the exit code of `docs/reference/exit-codes.md`."""
    parser = argparse.ArgumentParser(prog="python -m rearguard.serving", description=__doc__)
    parser.add_argument("--name", required=True, help="model name in the URL paths")
    parser.add_argument("--service", required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True, help="request log, appended")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--standby", type=int, default=1, help="versions kept warm beside the active one")
    parser.add_argument("--standby-memory-mib", type=int, default=None, help="a standby above it is ended")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        return serve(
            ServeOptions(
                name=given.name,
                service=given.service,
                env=given.env,
                host=given.host,
                port=given.port,
                log=given.log,
                state_dir=given.state_dir,
                standby=given.standby,
                standby_memory_mib=given.standby_memory_mib,
            )
        )
    except RearguardError as error:
        sys.stderr.write(f"{error}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
