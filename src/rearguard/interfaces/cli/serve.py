"""`serve`: the embedded model server."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--name", required=True, help="Model name in the protocol's paths.")
@click.option("--service", default=None, help="Default: the model's name.")
@click.option("--env", default="prod", show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any free one; the log names it."
)
@click.option("--log", "log_path", type=click.Path(path_type=Path), default=Path("requests.jsonl"), show_default=True)
@click.option("--server-state", type=click.Path(path_type=Path), default=Path(".rearguard-server"), show_default=True)
@click.option("--standby", default=1, show_default=True, help="Loaded versions kept warm beside the active one.")
@click.option(
    "--standby-memory-mib",
    type=click.IntRange(1),
    default=None,
    help="A standby that takes more is ended and reported. Default: no limit.",
)
def serve(
    name: str,
    service: str | None,
    env: str,
    host: str,
    port: int,
    log_path: Path,
    server_state: Path,
    standby: int,
    standby_memory_mib: int | None,
) -> int:
    """Serve one model by the Open Inference Protocol, one live worker process per loaded version."""
    import logging

    from rearguard.serving import ServeOptions
    from rearguard.serving import serve as serve_model

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    options = ServeOptions(
        name=name,
        service=service or name,
        env=env,
        host=host,
        port=port,
        log=log_path,
        state_dir=server_state,
        standby=standby,
        standby_memory_mib=standby_memory_mib,
    )
    return serve_model(options)
