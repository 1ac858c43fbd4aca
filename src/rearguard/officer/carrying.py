"""Checkpoints that leave for a registry, a layout or a file, and that come in from one.

What comes in is hostile until it was hashed, its names were judged, and it was proven here, as one that is added.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rearguard.checkpoints import archives, claims, faults, golden, layout, registry, verification
from rearguard.checkpoints.hashing import read_small
from rearguard.checkpoints.skopeo import SLACK_BYTES, Skopeo
from rearguard.checkpoints.sources import SourceFile, open_source
from rearguard.checkpoints.store import checkpoint_digest
from rearguard.errors import DependencyError, IntegrityError, RefusedError, UsageError
from rearguard.evidence.log import append
from rearguard.loaders.detection import detect
from rearguard.model.carrying import Carriage, Pushed, Reference, Transport
from rearguard.model.checkpoint import Checkpoint, CheckpointFile
from rearguard.model.service import Place
from rearguard.officer import checkpoints
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.officer.registration import (
    ingesting,
    refuse_known,
    refuse_labels,
    refuse_stored,
    register,
)
from rearguard.rules import oci
from rearguard.rules.reference import parse_reference, refuse_plain_http

_DECLARED_BYTES = 64 * 1024
"""Of a name and a digest in an index and a manifest, at most. Chosen."""


def _nobody(_count: int, _total: int) -> None:
    """Nobody looks on."""


def reference(text: str, carriage: Carriage) -> Reference:
    """The place that a person named, paths made absolute.

    Raises `UsageError` `reference_malformed`, `plain_http_refused`.
    """
    found = parse_reference(text)
    refuse_plain_http(found, carriage)
    if found.transport is Transport.REGISTRY:
        return found
    location = str(Path(found.location).absolute())
    if ":" in location:
        raise UsageError("reference_malformed", f"{location} has a colon, which ends a path here", "move it elsewhere")
    return replace(found, location=location)


@operation(Effect.COMMIT)
def push(office: Office, text: str, *, service: str, version: str, carriage: Carriage) -> Pushed:
    """Send a proven checkpoint to a registry, a layout, an archive or a folder, as it stands in the layout here.

    A second call sends nothing that is there. Raises `RefusedError` `checkpoint_not_proven`, `IntegrityError`
    (`manifest_altered`, `config_altered`, `blob_altered`), `UsageError` as `reference` and `reference_is_state`, and as
    `Skopeo` does.
    """
    place = reference(text, carriage)
    if not place.host and Path(place.location).resolve().is_relative_to(office.state.resolve()):
        raise UsageError("reference_is_state", f"{place} is in the state directory itself", "name another folder")
    found = checkpoints.find(office, service=service, version=version)
    if found.verified_at is None or found.failure:
        raise RefusedError(
            "checkpoint_not_proven",
            f"{service} {found.version} is not proven: {found.failure or 'never verified'}",
            f"rearguard checkpoint verify --service {service} --version {found.version}",
        )
    with office.store.ingesting():  # nothing of it is collected meanwhile
        office.store.sweep()
        office.export_registry()
        for altered in layout.check(office.database, office.store, [found], office.clock.sleep):
            raise altered
        found = checkpoints.find(office, service=service, version=found.version)  # an older one has its manifest now
        with _work(office) as work:
            ref = oci.ref_name(found.service, found.version, found.digest)
            arrived = Skopeo(work, carriage, office.clock).send(office.state, ref, place)
    if arrived != found.oci_manifest:
        raise IntegrityError(
            "manifest_converted", f"{place} holds {arrived}, sent was {found.oci_manifest}", "do not use what is there"
        )
    by_digest = place.transport is Transport.REGISTRY
    pushed = Pushed(
        service=service,
        version=found.version,
        digest=found.digest,
        manifest=arrived,
        reference=str(replace(place, tag="", digest=arrived) if by_digest else place),
        size_bytes=found.size_bytes,
    )
    body = {
        "digest": found.digest,
        "version": found.version,
        "manifest": arrived,
        "reference": pushed.reference[:500],
    }
    with office.database.transaction() as connection:
        append(
            connection,
            now=office.clock.now(),
            kind="checkpoint_pushed",
            body=body,
            place=Place(service=service, env=""),
            run_id=office.ids.run_id(),
        )
    office.publish()
    return pushed


@operation(Effect.COMMIT)
@ingesting
def pull(
    office: Office,
    text: str,
    *,
    service: str,
    version: str | None,
    carriage: Carriage,
    progress: Callable[[int, int], None] = _nobody,
) -> Checkpoint:
    """Fetch a checkpoint, judge it, take it in, prove and register it.

    `version` None: the one that it was pushed as. `progress` is given the bytes fetched since its last call, and how many
    there are. What is registered and proven here already is not fetched; a second call after a kill completes the first.
    Raises as `rules.oci.read_manifest`, as `Skopeo`, and as `registration.add`; `IntegrityError` `carried_address_wrong`,
    `carried_size_wrong`, `golden_malformed`; `RefusedError` `golden_missing`.
    """
    place = reference(text, carriage)
    with _work(office) as work:
        skopeo = Skopeo(work, carriage, office.clock)
        unpacked = _size_of_archive(place)
        carried = oci.read_manifest(skopeo.manifest(place, unpacked + SLACK_BYTES))
        _refuse_other_digest(place, carried)
        checkpoint = _checkpoint(office, carried, service, version or carried.version)
        known = _known(office, checkpoint)
        if known is not None and known.verified_at is not None and not known.failure:
            return known
        _require_room(office, place, carried.size_bytes + unpacked)
        exact = replace(place, tag="", digest=carried.manifest) if place.transport is Transport.REGISTRY else place
        fetched = work / "layout"
        skopeo.fetch(
            exact,
            fetched,
            carried.size_bytes + unpacked + SLACK_BYTES + _DECLARED_BYTES * len(carried.blobs),
            _since(progress, carried.size_bytes),
        )
        faults.reach("pull", "fetched")
        blobs = fetched / "blobs" / "sha256"
        read_small(blobs / carried.manifest.removeprefix("sha256:"), carried.manifest.removeprefix("sha256:"))
        requests = _golden_requests(blobs, carried)
        _refuse_fetched(office, work / "files", blobs, checkpoint)
        _keep(office, blobs, carried)
        faults.reach("pull", "blobs_kept")
        folder = office.store.view(checkpoint.digest, checkpoint.files)
        refuse_stored(office, folder, checkpoint.files, checkpoint.format)
        if known is not None:
            return checkpoints.verify(office, known)
        _prove(office, checkpoint)
        return register(office, checkpoint, golden_requests=requests, pulled_from=str(exact))


def _since(progress: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    """From bytes that are there to bytes since the last call."""
    told = 0

    def tell(there: int) -> None:
        nonlocal told
        count = max(0, min(there, total) - told)
        told += count
        progress(count, total)

    return tell


@contextmanager
def _work(office: Office) -> Iterator[Path]:
    """A folder for one carriage, on the store's own file system; gone at the end."""
    try:
        office.store.incoming.mkdir(parents=True, exist_ok=True)
        with claims.folder(office.store.incoming) as work:
            yield work
    except OSError as error:
        message = f"cannot work in {office.store.incoming}: {error.strerror}"
        raise DependencyError("store_not_written", message, "free space on the state directory's disk") from error


def _size_of_archive(place: Reference) -> int:
    """What unpacking an archive may take: its own size, for it is not packed."""
    if place.transport is not Transport.ARCHIVE:
        return 0
    try:
        return Path(place.location).stat().st_size
    except OSError as error:
        raise UsageError("reference_unknown", f"{place.location}: {error.strerror}", "look at the path") from error


def _require_room(office: Office, place: Reference, size_bytes: int) -> None:
    free_bytes = shutil.disk_usage(office.store.incoming).free
    if size_bytes > free_bytes:
        raise DependencyError(
            "store_full",
            f"{place} needs {size_bytes} bytes, {office.store.incoming} has {free_bytes} free; nothing was fetched",
            "free space on the state directory's disk",
        )


def _refuse_other_digest(place: Reference, carried: oci.Carried) -> None:
    if place.digest and place.digest != carried.manifest:
        message = f"{place} answers with the manifest {carried.manifest}; nothing was taken in"
        raise IntegrityError("blob_altered", message, "ask whoever runs the registry")


def _checkpoint(office: Office, carried: oci.Carried, service: str, version: str) -> Checkpoint:
    """What the manifest would be, if its bytes are what it says. Raises for a label, address or proof that cannot be."""
    refuse_labels(office, service, version)
    if not carried.golden and not carried.state_sha256:
        raise RefusedError(
            "golden_missing",
            "the artifact has no golden set, so nothing would show that it restores",
            "fetch its files, and add them with `rearguard checkpoint add --golden FILE`",
        )
    golden_sha256 = carried.golden.sha256 if carried.golden else ""
    digest = checkpoint_digest(format=carried.format, files=carried.files, golden_sha256=golden_sha256)
    if digest != carried.digest:
        message = f"{carried.digest[:100] or 'nothing'} is not the address of the files, format and golden set it names"
        raise IntegrityError(
            "carried_address_wrong", f"{message}; nothing was taken in", "push it again from its source"
        )
    return Checkpoint(
        digest=digest,
        service=service,
        version=version,
        format=carried.format,
        files=carried.files,
        golden_sha256=golden_sha256,
        added_at=office.clock.now(),
        verified_at=None,
        load_ms=None,
        failure="",
        state_sha256=carried.state_sha256,
    )


def _known(office: Office, checkpoint: Checkpoint) -> Checkpoint | None:
    """It, when it is registered under these labels. Raises `ConflictError` `checkpoint_exists` for others."""
    with office.database.reading() as connection:
        same = registry.get(connection, checkpoint.digest)
        if same is not None and (same.service, same.version) == (checkpoint.service, checkpoint.version):
            return same
        refuse_known(connection, checkpoint)
    return None


def _golden_requests(blobs: Path, carried: oci.Carried) -> int:
    """How many requests the golden set has; it may come from anywhere."""
    if carried.golden is None:
        return 0
    content = read_small(blobs / carried.golden.sha256, carried.golden.sha256)
    try:
        return len(golden.decode(content).requests)
    except IntegrityError as error:
        message = f"{error.message}; nothing was taken in"
        raise IntegrityError(error.code, message, "push it again from its source") from error


def _refuse_fetched(office: Office, folder: Path, blobs: Path, checkpoint: Checkpoint) -> None:
    """Judge the files before any of them is in the store: by links of their names, below `folder`.

    Raises `RefusedError` `unsafe_format`, `zip_bomb`; `UsageError` `unknown_format`.
    """
    for file in checkpoint.files:
        link = folder / file.path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / file.sha256)
        with open(open_source(_source(blobs, file)), "rb") as reader:
            archives.refuse_bomb(reader, file.path)
    found = detect(folder, office.settings.checkpoints.unsafe_formats).name
    if found != checkpoint.format:
        message = f"the artifact is said to be {checkpoint.format!r}, its files are {found}; nothing was taken in"
        raise UsageError("unknown_format", message, "push it again from its source")


def _prove(office: Office, checkpoint: Checkpoint) -> None:
    """The first of two cold loads: nothing is registered, and no label is taken, unless it holds."""
    outcome = verification.verify(checkpoint, office.store, office.settings.checkpoints, office.clock)
    if not outcome.ok:
        message = f"{checkpoint.service} {checkpoint.version}: {outcome.message}; nothing was registered"
        raise IntegrityError(outcome.code, message, "ask whoever pushed it, and on what it was proven")


def _keep(office: Office, blobs: Path, carried: oci.Carried) -> None:
    """Move what was fetched into the store, each blob hashed on the way."""
    for blob in ({b.sha256: b for b in carried.blobs if b is not carried.config}).values():
        taken = office.store.put_file(_source(blobs, blob), expected=blob.sha256)
        if taken.size_bytes != blob.size_bytes:
            message = f"{blob.path} has {taken.size_bytes} bytes, the manifest says {blob.size_bytes}"
            raise IntegrityError(
                "carried_size_wrong", f"{message}; nothing was registered", "push it again from its source"
            )


def _source(blobs: Path, blob: CheckpointFile) -> SourceFile:
    return SourceFile(path=blob.path, source=blobs / blob.sha256, ours=True)
