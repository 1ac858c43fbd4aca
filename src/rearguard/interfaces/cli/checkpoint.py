"""`checkpoint add | verify | push | pull | list | release`; `gc`, `mirror` and `repair` are in `retention`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rearguard.interfaces.cli import retention
from rearguard.interfaces.cli.output import (
    age,
    by_option,
    emit_json,
    json_option,
    opened,
    progress_bar,
    state_option,
    table,
)

if TYPE_CHECKING:
    from rearguard.model.carrying import Carriage
    from rearguard.model.checkpoint import Checkpoint
    from rearguard.officer.office import Office


@click.group()
def checkpoint() -> None:
    """Register, prove, carry, list and release checkpoints."""


@checkpoint.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--service", required=True)
@click.option("--version", "version", required=True, help="Label of this checkpoint; immutable.")
@click.option(
    "--golden",
    "golden_file",
    default=None,
    type=click.Path(path_type=Path),
    help="JSON lines of requests; not for weights alone (safetensors, torch-weights).",
)
@state_option
@json_option
def add(
    path: Path,
    service: str,
    version: str,
    golden_file: Path | None,
    state: Path | None,
    settings_path: Path | None,
    as_json: bool,
) -> None:
    """Take the model at PATH in by sha256, prove that it loads and repeats its golden predictions or state."""
    from rearguard.officer import refusals, registration

    with (
        opened(state, settings_path, write=True, create=True) as office,
        _transfer_bar(office, f"taking in {version}") as progress,
    ):
        found = registration.add(
            office,
            path,
            service=service,
            version=version,
            golden_file=golden_file,
            progress=progress,
            on_finding=lambda line: click.echo(f"scan: {line}", err=True),
        )
    if as_json:
        emit_json(found)
        return
    click.echo(f"{service} {version}  {found.digest}")
    agreed = "to the last bit" if found.reproducible == "bitwise" else "within checkpoints.golden"
    click.echo(f"verified: {found.size_bytes} bytes, cold load {found.load_ms} ms, loads agree {agreed}")
    if refusals.answers_nothing(found.format):
        click.echo(f"{found.format} holds weights and answers no requests: {refusals.FOR_COMMANDS}")


@checkpoint.command()
@click.option("--service", default=None, help="Of this service only.")
@click.option("--version", "version", default=None, help="This one only.")
@click.option("--quick", is_flag=True, help="Every byte, but no load: finds what was altered, proves nothing anew.")
@state_option
@json_option
def verify(
    service: str | None,
    version: str | None,
    quick: bool,
    state: Path | None,
    settings_path: Path | None,
    as_json: bool,
) -> int:
    """Hash every byte, load cold, repeat the golden predictions. Exit 65 when one is not what was registered."""
    from rearguard.officer import checkpoints

    if version is not None and service is None:
        raise click.UsageError("--version needs --service")
    with opened(state, settings_path, write=True) as office:
        if version is not None and service is not None:
            wanted = [checkpoints.find(office, service=service, version=version)]
        else:
            wanted = [row.checkpoint for row in checkpoints.list_checkpoints(office, service)]
        altered = checkpoints.settle_layout(office, wanted)  # before a record is published, which writes it anew
        for error in altered:
            click.echo(f"error: {error.message}; it has been written anew [{error.code}]\nhint: {error.hint}", err=True)
        done = [_verify_one(office, item, quick) for item in wanted]
    _show_verified([row for row, _ in done], quick, as_json)
    codes = [status for _, status in done if status]
    return 65 if altered or 65 in codes else next(iter(codes), 0)


def _show_verified(rows: Sequence[dict[str, Any]], quick: bool, as_json: bool) -> None:
    if as_json:
        emit_json(rows)
        return
    good = "bytes right" if quick else "verified"
    lines = [
        (r["service"], r["version"], good if r["ok"] else "FAILED", _rate(r["bytes_s"]), r["message"] or _detail(r))
        for r in rows
    ]
    table(("SERVICE", "VERSION", "RESULT", "HASHED", "DETAIL"), lines, "no checkpoint is registered")
    for row in rows:
        if row["hint"]:
            click.echo(f"hint: {row['hint']}", err=True)
        for line in row["scan"]:
            click.echo(f"scan: {row['service']} {row['version']}: {line}", err=True)


def _verify_one(office: Office, item: Checkpoint, quick: bool) -> tuple[dict[str, Any], int]:
    """One checkpoint and its exit code, with a bar on standard error that shows the rate and the time left.

    Whatever it fails of is told in its row, so that it keeps no other from being verified and shown.
    """
    from rearguard.errors import InternalError, RearguardError
    from rearguard.officer import checkpoints, remedies

    row: dict[str, Any] = {"service": item.service, "version": item.version, "digest": item.digest, "quick": quick}
    code, message, load_ms, hash_ms, hash_mode, status = "", "", None, None, "", 0
    reproducible = ""
    scan: tuple[str, ...] = ()
    began_ns, read = office.clock.now().mono_ns, 0
    with progress_bar(item.size_bytes, f"{item.service} {item.version}", of_rate=_rate) as bar:

        def progress(count: int) -> None:
            nonlocal read
            read += count
            bar.update(count, _bytes_s(read, office.clock.now().mono_ns - began_ns))

        try:
            if quick:
                checked = checkpoints.check_bytes(office, item, checkpoints.shown(progress))
                hash_ms, hash_mode = checked.hash_ms, checked.hash_mode
            else:
                outcome = checkpoints.prove(office, item, checkpoints.shown(progress))
                code, message, load_ms = outcome.code, outcome.message, outcome.load_ms
                hash_ms, hash_mode = outcome.hash_ms, outcome.hash_mode
                reproducible, scan = outcome.reproducible, outcome.scan
                status = 0 if outcome.ok else 65
        except RearguardError as error:
            code, message, status = error.code, error.message, error.exit_code
        except Exception as error:  # our own fault, and no reason to hide the others
            code, message, status = "internal", f"{type(error).__name__}: {error}", InternalError.exit_code
    shown = row | {
        "ok": not code,
        "code": code,
        "message": message,
        "hint": remedies.of_checkpoint(office, item, code),
        "proof": "" if hash_ms is None else "full_hash",
        "load_ms": load_ms,
        "reproducible": reproducible,
        "scan": list(scan),
        "size_bytes": item.size_bytes,
        "hash_ms": hash_ms,
        "hash_mode": hash_mode or None,
        "bytes_s": None if hash_ms is None else _bytes_s(item.size_bytes, hash_ms * 1_000_000),
    }
    return shown, status


def _bytes_s(size_bytes: int, took_ns: int) -> int | None:
    """Bytes a second; None when it took no time that could be measured."""
    return size_bytes * 1_000_000_000 // took_ns if took_ns > 0 else None


def _rate(bytes_s: int | None) -> str:
    return "-" if bytes_s is None else f"{bytes_s / 1e6:.0f} MB/s"


def _detail(row: dict[str, Any]) -> str:
    return f"cold load {row['load_ms']} ms" if row["load_ms"] is not None else "not loaded"


@contextmanager
def _transfer_bar(office: Office, label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error for bytes that are moved, given those since its last call and all there are."""
    began_ns, done = office.clock.now().mono_ns, 0
    with progress_bar(1, label, of_rate=_rate) as bar:

        def progress(count: int, total: int) -> None:
            nonlocal done
            done += count
            bar.length = max(total, 1)
            bar.update(count, _bytes_s(done, office.clock.now().mono_ns - began_ns))

        yield progress


def carriage_options(function: Any) -> Any:
    """How a registry is reached."""
    for option in (
        click.option(
            "--authfile",
            type=click.Path(path_type=Path, exists=True),
            default=None,
            help="Credentials, from `skopeo login`.",
        ),
        click.option("--plain-http", is_flag=True, help="Without TLS; for a registry on this host only."),
        click.option(
            "--timeout", "timeout_s", type=click.IntRange(1, 604_800), default=3600, show_default=True, help="Seconds."
        ),
    ):
        function = option(function)
    return function


@checkpoint.command()
@click.argument("reference")
@click.option("--service", required=True)
@click.option("--version", "version", required=True)
@carriage_options
@state_option
@json_option
def push(
    reference: str,
    service: str,
    version: str,
    authfile: Path | None,
    plain_http: bool,
    timeout_s: int,
    state: Path | None,
    settings_path: Path | None,
    as_json: bool,
) -> None:
    """Send a proven checkpoint to REFERENCE: docker://HOST/REPO:TAG, oci:FOLDER:TAG, oci-archive:FILE:TAG or dir:FOLDER."""
    from rearguard.officer import carrying

    with opened(state, settings_path, write=True) as office:
        found = carrying.push(
            office, reference, service=service, version=version, carriage=_carriage(authfile, plain_http, timeout_s)
        )
    if as_json:
        emit_json(found)
        return
    named = found.reference.endswith(found.manifest)
    click.echo(found.reference if named else f"{found.reference}  {found.manifest}")


@checkpoint.command()
@click.argument("reference")
@click.option("--service", required=True)
@click.option("--version", "version", default=None, help="Label of it here; default: the one that it was pushed as.")
@carriage_options
@state_option
@json_option
def pull(
    reference: str,
    service: str,
    version: str | None,
    authfile: Path | None,
    plain_http: bool,
    timeout_s: int,
    state: Path | None,
    settings_path: Path | None,
    as_json: bool,
) -> None:
    """Fetch the checkpoint at REFERENCE, prove it here as one that is added, and register it."""
    from rearguard.officer import carrying

    with opened(state, settings_path, write=True, create=True) as office, _transfer_bar(office, "fetching") as progress:
        found = carrying.pull(
            office,
            reference,
            service=service,
            version=version,
            carriage=_carriage(authfile, plain_http, timeout_s),
            progress=progress,
        )
    if as_json:
        emit_json(found)
        return
    click.echo(f"{found.service} {found.version}  {found.digest}")
    click.echo(f"verified: {found.size_bytes} bytes, cold load {found.load_ms} ms")


def _carriage(authfile: Path | None, plain_http: bool, timeout_s: int) -> Carriage:
    from rearguard.model.carrying import Carriage

    path = str(authfile.absolute()) if authfile is not None else ""
    return Carriage(authfile=path, plain_http=plain_http, timeout_s=timeout_s)


@checkpoint.command("list")
@click.option("--service", default=None)
@state_option
@json_option
def list_(service: str | None, state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """All checkpoints, their proof and its age."""
    from rearguard.officer import checkpoints

    with opened(state, settings_path, write=False) as office:
        rows = checkpoints.list_checkpoints(office, service)
    if as_json:
        emit_json(rows)
        return
    lines = [
        (
            r.checkpoint.service,
            r.checkpoint.version,
            r.checkpoint.short,
            r.checkpoint.format,
            r.checkpoint.failure or r.state,
            "-" if r.checkpoint.failure else age(r.age_s),
            f"{r.checkpoint.load_ms} ms" if r.checkpoint.load_ms is not None else "-",
            ", ".join(r.quarantined_at) or "-",
        )
        for r in rows
    ]
    headings = ("SERVICE", "VERSION", "DIGEST", "FORMAT", "STATE", "VERIFIED", "LOAD", "QUARANTINED AT")
    table(headings, lines, "no checkpoint is registered; `rearguard checkpoint add` takes one in")


@checkpoint.command()
@click.option("--service", required=True)
@click.option("--version", "version", required=True)
@click.option("--env", required=True)
@click.option("--reason", required=True, help="Why it is fit again; recorded.")
@by_option
@state_option
@json_option
def release(
    service: str,
    version: str,
    env: str,
    reason: str,
    by: str,
    state: Path | None,
    settings_path: Path | None,
    as_json: bool,
) -> None:
    """Lift the quarantine of a checkpoint that was rolled back."""
    from rearguard.officer import checkpoints

    with opened(state, settings_path, write=True) as office:
        found = checkpoints.release(office, service=service, version=version, env=env, reason=reason, by=by)
    if as_json:
        emit_json({"service": service, "version": found, "env": env, "released": True})
        return
    click.echo(f"{service} {found} may be deployed at {env} again")


for _command in (retention.gc, retention.mirror, retention.repair):
    checkpoint.add_command(_command)
