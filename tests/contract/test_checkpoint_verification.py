"""A checkpoint is proven or it is no rollback target: cold loads in real processes, golden answers, and the registry."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import skops.io
import yaml
from one_place import MODEL, REQUEST, SETTINGS
from sklearn.dummy import DummyClassifier

from rearguard.checkpoints import golden, verification
from rearguard.checkpoints.store import ContentStore
from rearguard.config.templates import playbook_template
from rearguard.database import open_database
from rearguard.errors import ConflictError, IntegrityError, NotFoundError, RearguardError, RefusedError, UsageError
from rearguard.evidence.log import read
from rearguard.model.checkpoint import Checkpoint, CheckpointPolicy
from rearguard.model.time import Instant
from rearguard.officer import checkpoints, registration, scrub
from rearguard.officer.office import Office

"""Y = X times a constant, both FP32[3, 2]; the constant is 1, 2, ... 6."""


class SetClock:
    """`ports.Clock` that stands still until it is advanced."""

    def __init__(self) -> None:
        self._now = Instant(wall_ns=1_800_000_000_000_000_000, mono_ns=10**15, boot_id="boot")

    def now(self) -> Instant:
        return self._now

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self._now = self._now.plus(int(seconds * 10**9))


@contextmanager
def office_of(state: Path, clock: SetClock | None = None) -> Iterator[Office]:
    office = Office(
        state=state, settings_path=state / "rearguard.yaml", database=open_database(state), clock=clock or SetClock()
    )
    try:
        yield office
    finally:
        office.close()


def write_settings(state: Path) -> Path:
    state.mkdir(exist_ok=True)
    (state / "rearguard.yaml").write_text(SETTINGS, encoding="utf-8")
    (state / "rollback_playbook.yaml").write_text(playbook_template(), encoding="utf-8")
    return state


def model_folder(folder: Path, note: str = "") -> Path:
    folder.mkdir()
    shutil.copy(MODEL, folder / "model.onnx")
    if note:
        (folder / "note.txt").write_text(note, encoding="utf-8")
    return folder


def golden_file(folder: Path, request: object = REQUEST) -> Path:
    path = folder / "golden.jsonl"
    path.write_text(json.dumps(request) + "\n", encoding="utf-8")
    return path


def add(office: Office, path: Path, version: str, requests: Path) -> Checkpoint:
    return registration.add(office, path, service="fraud", version=version, golden_file=requests)


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with v1 proven; never changed, only copied."""
    folder = tmp_path_factory.mktemp("registered")
    state = write_settings(folder / "state")
    with office_of(state) as office:
        add(office, model_folder(folder / "v1"), "v1", golden_file(folder))
    return state


@pytest.fixture
def state(registered: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(registered, tmp_path / "state", symlinks=True))


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    return write_settings(tmp_path / "state")


def export(state: Path) -> dict[str, object]:
    """The only checkpoint of `checkpoint_registry.yaml`."""
    document = yaml.safe_load((state / "checkpoint_registry.yaml").read_text(encoding="utf-8"))
    assert document["format"] == "rearguard/checkpoint-registry/1"
    (row,) = document["checkpoints"]
    return dict(row)


def cited(state: Path, reference: object) -> dict[str, object]:
    """The evidence entry that a reference names."""
    name, _, record_id = str(reference).partition("#")
    entries = json.loads((state / name).read_text(encoding="utf-8"))["entries"]
    return dict(next(e for e in entries if e["id"] == int(record_id)))


def kinds(office: Office) -> list[str]:
    with office.database.reading() as connection:
        return [record.kind for record in read(connection)]


def refusal(act: Callable[[], object]) -> RearguardError:
    with pytest.raises(RearguardError) as refused:
        act()
    return refused.value


# --- a proof


def test_a_checkpoint_that_was_added_is_proven(state: Path) -> None:
    with office_of(state) as office:
        (row,) = checkpoints.list_checkpoints(office)
        assert (row.state, row.checkpoint.version, row.checkpoint.failure) == ("verified", "v1", "")
        assert kinds(office) == ["checkpoint_added", "checkpoint_verified"]


def test_its_golden_answers_are_what_the_model_computes(state: Path) -> None:
    """1 to 6 times 1."""
    with office_of(state) as office:
        (row,) = checkpoints.list_checkpoints(office)
        recorded = golden.decode(office.store.get_bytes(row.checkpoint.golden_sha256))
    assert [output["data"] for output in recorded.answers[0]] == [[1, 2, 3, 4, 5, 6]]


def test_the_export_says_validated_and_cites_the_record_that_proves_it(state: Path) -> None:
    row = export(state)
    entry = cited(state, row["verified_by"])
    assert row["validated"] is True
    assert (entry["kind"], entry["body"]["ok"], entry["body"]["digest"]) == (  # type: ignore[index]
        "checkpoint_verified",
        True,
        row["digest"],
    )


def test_the_proof_names_the_time_of_the_cold_load(state: Path) -> None:
    row = export(state)
    assert row["load_ms"] == cited(state, row["verified_by"])["body"]["load_ms"]  # type: ignore[index]
    assert 0 < row["load_ms"] < 30_000  # type: ignore[operator]


# --- what is no proof


def flip(blob: Path) -> None:
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(content)


def truncate(blob: Path) -> None:
    blob.chmod(0o644)
    os.truncate(blob, 10)


@pytest.mark.parametrize(
    ("change", "code"),
    [(flip, "blob_altered"), (truncate, "blob_truncated"), (Path.unlink, "blob_missing")],
)
@pytest.mark.parametrize("which", ["model", "golden"])
def test_changed_bytes_take_the_proof_away(state: Path, change: Callable[[Path], None], code: str, which: str) -> None:
    if (which, code) == ("golden", "blob_truncated"):
        code = "blob_altered"  # of a small blob the length is not known beforehand
    with office_of(state) as office:
        checkpoint = checkpoints.find(office, service="fraud", version="v1")
        change(office.store.blobs / (checkpoint.files[0].sha256 if which == "model" else checkpoint.golden_sha256))
        assert refusal(lambda: checkpoints.verify(office, checkpoint)).code == code
        (row,) = checkpoints.list_checkpoints(office)
        assert (row.state, row.checkpoint.failure, row.checkpoint.verified_at) == ("failed", code, None)


def test_the_export_of_a_failed_checkpoint_is_not_validated_and_cites_the_failure(state: Path) -> None:
    with office_of(state) as office:
        checkpoint = checkpoints.find(office, service="fraud", version="v1")
        flip(office.store.blobs / checkpoint.files[0].sha256)
        refusal(lambda: checkpoints.verify(office, checkpoint))
    row = export(state)
    assert (row["validated"], row["verified_at"], row["failure"]) == (False, None, "blob_altered")
    assert cited(state, row["verified_by"])["body"]["ok"] is False  # type: ignore[index]


def test_a_failed_checkpoint_is_proven_again_once_its_bytes_were_taken_in_again(state: Path, tmp_path: Path) -> None:
    """The hint's way: the second `add` is refused because the checkpoint exists, and has mended the blob."""
    with office_of(state) as office:
        checkpoint = checkpoints.find(office, service="fraud", version="v1")
        flip(office.store.blobs / checkpoint.files[0].sha256)
        refusal(lambda: checkpoints.verify(office, checkpoint))
        again = model_folder(tmp_path / "again")
        assert refusal(lambda: add(office, again, "v1", golden_file(tmp_path))).code == "checkpoint_exists"
        assert checkpoints.verify(office, checkpoint).failure == ""


def test_other_golden_answers_than_recorded_are_found(state: Path) -> None:
    with office_of(state) as office:
        checkpoint = checkpoints.find(office, service="fraud", version="v1")
        recorded = golden.decode(office.store.get_bytes(checkpoint.golden_sha256))
        (output,) = recorded.answers[0]
        other = replace(recorded, answers=(({**output, "data": [1, 2, 3, 4, 5, 6.001]},),))
        changed = replace(checkpoint, golden_sha256=office.store.put_bytes(golden.encode(other)))
        outcome = verification.verify(changed, office.store, office.settings.checkpoints, office.clock)
    assert (outcome.ok, outcome.code) == (False, "golden_differs")


def test_a_model_that_answers_at_random_is_not_registered(empty: Path, tmp_path: Path) -> None:
    folder = tmp_path / "random"
    folder.mkdir()
    model = DummyClassifier(strategy="uniform").fit([[0.0]] * 50, list(range(50)))
    skops.io.dump(model, folder / "model.skops")
    data = [0.0] * 20
    requests = golden_file(tmp_path, {"inputs": [{"name": "x", "shape": [20, 1], "datatype": "FP64", "data": data}]})
    with office_of(empty) as office:
        assert refusal(lambda: add(office, folder, "v1", requests)).code == "not_reproducible"
        assert checkpoints.list_checkpoints(office) == ()
        assert kinds(office) == []


def test_a_load_as_long_as_its_limit_is_too_slow(state: Path) -> None:
    """R16: strictly below; with a limit of 0 s none is."""
    with office_of(state) as office:
        checkpoint = checkpoints.find(office, service="fraud", version="v1")
        outcome = verification.verify(checkpoint, office.store, CheckpointPolicy(max_load_s=0), office.clock)
    assert (outcome.ok, outcome.code, outcome.load_ms) == (False, "load_too_slow", None)


def test_a_file_that_does_not_load_is_not_registered(empty: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07 this is no graph")
    with office_of(empty) as office:
        failure = refusal(lambda: add(office, tmp_path / "model.onnx", "v1", golden_file(tmp_path)))
        assert (failure.code, isinstance(failure, IntegrityError)) == ("model_unreadable", True)
        assert checkpoints.list_checkpoints(office) == ()


def test_a_golden_request_that_the_model_does_not_take_is_told(empty: Path, tmp_path: Path) -> None:
    requests = golden_file(
        tmp_path, {"inputs": [{"name": "Z", "shape": [3, 2], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}]}
    )
    with office_of(empty) as office:
        failure = refusal(lambda: add(office, model_folder(tmp_path / "m"), "v1", requests))
    assert (failure.code, isinstance(failure, IntegrityError)) == ("bad_tensor", True)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "golden_empty"),
        ("\n\n", "golden_empty"),
        ("{", "golden_malformed"),
        ("[]", "golden_malformed"),
        ('{"inputs": []}', "golden_malformed"),
        ('{"inputs": [1]}\n' * 1001, "golden_too_large"),
        (None, "golden_missing"),
    ],
)
def test_a_golden_file_that_is_none_is_refused(tmp_path: Path, text: str | None, code: str) -> None:
    path = tmp_path / "golden.jsonl"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        golden.read_requests(path)
    assert refused.value.code == code


# --- pickles


class Marker:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["model.pkl", "model.joblib", "model.onnx", "model.skops", "weights.bin", "zip"])
def test_a_pickle_is_refused_and_never_executed(empty: Path, tmp_path: Path, name: str) -> None:
    marker = tmp_path / "executed"
    content = pickle.dumps(Marker(marker))
    folder = tmp_path / "model"
    folder.mkdir()
    if name == "zip":
        with zipfile.ZipFile(folder / "model.skops", "w") as archive:
            archive.writestr("data.pkl", content)
    else:
        (folder / name).write_bytes(content)
    with office_of(empty) as office:
        failure = refusal(lambda: add(office, folder, "v1", golden_file(tmp_path)))
        assert (failure.code, isinstance(failure, RefusedError)) == ("unsafe_format", True)
        assert checkpoints.list_checkpoints(office) == ()
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists()  # it would have


def test_a_pipe_named_as_a_model_is_refused_and_does_not_hold_the_officer(empty: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    with office_of(empty) as office:
        failure = refusal(lambda: add(office, tmp_path / "model.onnx", "v1", golden_file(tmp_path)))
    assert failure.code == "checkpoint_unsafe_file"


# --- labels


def test_the_same_bytes_under_another_version_are_refused(state: Path, tmp_path: Path) -> None:
    with office_of(state) as office:
        failure = refusal(lambda: add(office, model_folder(tmp_path / "m"), "v2", golden_file(tmp_path)))
        assert (failure.code, isinstance(failure, ConflictError)) == ("checkpoint_exists", True)
        assert "registered already as fraud v1" in failure.message
        assert len(checkpoints.list_checkpoints(office)) == 1


def test_a_version_is_not_used_again_for_other_bytes(state: Path, tmp_path: Path) -> None:
    with office_of(state) as office:
        failure = refusal(lambda: add(office, model_folder(tmp_path / "m", "other"), "v1", golden_file(tmp_path)))
        assert (failure.code, failure.hint) == ("checkpoint_exists", "a version is immutable: choose a new one")
        assert kinds(office) == ["checkpoint_added", "checkpoint_verified"]


@pytest.mark.parametrize("version", ["", "a b", "a/b", "../x", "é" * 65, "x" * 65, "a\n"])
def test_a_malformed_version_is_refused(empty: Path, tmp_path: Path, version: str) -> None:
    with office_of(empty) as office:
        assert refusal(lambda: add(office, MODEL, version, golden_file(tmp_path))).code == "version_malformed"


def test_a_service_that_is_not_declared_is_refused(empty: Path, tmp_path: Path) -> None:
    requests = golden_file(tmp_path)
    with office_of(empty) as office, pytest.raises(NotFoundError) as refused:
        registration.add(office, MODEL, service="other", version="v1", golden_file=requests)
    assert refused.value.code == "service_unknown"


def test_a_checkpoint_is_found_by_a_prefix_of_its_digest(state: Path) -> None:
    with office_of(state) as office:
        found = checkpoints.find(office, service="fraud", version="v1")
        assert checkpoints.find(office, service="fraud", version=found.digest[7:15]) == found


@pytest.mark.parametrize("length", [1, 7])
def test_a_prefix_shorter_than_eight_digits_is_not_enough(state: Path, length: int) -> None:
    with office_of(state) as office:
        digest = checkpoints.find(office, service="fraud", version="v1").digest
        failure = refusal(lambda: checkpoints.find(office, service="fraud", version=digest[7 : 7 + length]))
    assert failure.code == "checkpoint_unknown"


# --- age


@pytest.mark.parametrize(("age_s", "standing"), [(0, "verified"), (86_400, "verified"), (86_401, "stale")])
def test_a_proof_holds_for_24_h_inclusive(state: Path, age_s: int, standing: str) -> None:
    """R15."""
    clock = SetClock()
    clock.advance(age_s)
    with office_of(state, clock) as office:
        (row,) = checkpoints.list_checkpoints(office)
        assert (row.age_s, row.state) == (age_s, standing)


KILLED = """
import os, signal
with open(os.environ["STARTED"], "a") as log:
    log.write("x")
if os.path.getsize(os.environ["STARTED"]) <= int(os.environ["KILLED_TIMES"]):
    os.kill(os.getpid(), signal.SIGKILL)
"""
"""What the first loads meet when memory runs out."""


@pytest.mark.parametrize(("times", "failure", "started"), [(1, "", 2), (2, "load_failed", 2)])
def test_a_load_that_a_signal_ended_is_repeated_once(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, failure: str, started: int
) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "sitecustomize.py").write_text(KILLED, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "first"))
    monkeypatch.setenv("STARTED", str(tmp_path / "started"))
    monkeypatch.setenv("KILLED_TIMES", str(times))
    with office_of(state) as office:
        outcome = checkpoints.prove(office, checkpoints.find(office, service="fraud", version="v1"))
    assert outcome.code == failure
    assert (tmp_path / "started").stat().st_size == started


def test_two_threads_may_build_the_same_view(state: Path) -> None:
    with office_of(state) as office:
        checkpoint = checkpoints.find(office, service="fraud", version="v1")
    store, failed = ContentStore(state), []
    view = store.view(checkpoint.digest, checkpoint.files)

    def build() -> None:
        for number in range(50):
            with contextlib.suppress(FileNotFoundError):
                (view / f"strange-{number}-{threading.get_ident()}").touch()
            try:
                store.view(checkpoint.digest, checkpoint.files)
            except RearguardError as error:
                failed.append(error.message)

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert not store.view_is_altered(checkpoint.digest, checkpoint.files)


def test_a_stale_checkpoint_that_is_verified_again_is_proven_again(state: Path) -> None:
    clock = SetClock()
    clock.advance(100_000)
    with office_of(state, clock) as office:
        checkpoints.verify(office, checkpoints.find(office, service="fraud", version="v1"))
        (row,) = checkpoints.list_checkpoints(office)
        assert (row.age_s, row.state) == (0, "verified")
        assert kinds(office)[-1] == "checkpoint_verified"


@pytest.mark.parametrize(("age_s", "renewed"), [(900, False), (901, True), (-1, True)])
def test_a_proof_is_renewed_only_when_it_is_older_than_asked(state: Path, age_s: int, renewed: bool) -> None:
    """R14: 15 min; a proof from the future has no age."""
    clock = SetClock()
    clock.advance(age_s)
    with office_of(state, clock) as office:
        checkpoints.verify_if_older(office, checkpoints.find(office, service="fraud", version="v1"), 900)
        assert len(kinds(office)) == (3 if renewed else 2)


@pytest.mark.parametrize(("age_s", "due"), [(21_599, None), (21_600, "v1")])
def test_the_only_proof_is_due_after_half_of_the_interval(state: Path, age_s: int, due: str | None) -> None:
    """The interval is 12 h; one checkpoint has one slot, half of it."""
    clock = SetClock()
    clock.advance(age_s)
    with office_of(state, clock) as office:
        found = scrub.next_due(office)
        assert (found.version if found else None) == due


# --- quarantine


def test_a_release_without_reason_is_refused(state: Path) -> None:
    with office_of(state) as office:
        failure = refusal(
            lambda: checkpoints.release(office, service="fraud", version="v1", env="prod", reason=" ", by="ops")
        )
    assert failure.code == "reason_missing"


def test_what_is_not_quarantined_cannot_be_released(state: Path) -> None:
    with office_of(state) as office:
        failure = refusal(
            lambda: checkpoints.release(office, service="fraud", version="v1", env="prod", reason="ok", by="ops")
        )
    assert failure.code == "not_quarantined"


def test_a_copied_state_directory_verifies_where_it_lies_now(state: Path) -> None:
    """The fixture is a copy: nothing in it points back."""
    shutil.copytree(state, state.parent / "copy", symlinks=True)
    shutil.rmtree(state)
    with office_of(state.parent / "copy") as office:
        checkpoint = checkpoints.find(office, service="fraud", version="v1")
        store = ContentStore(state.parent / "copy")
        assert verification.verify(checkpoint, store, office.settings.checkpoints, office.clock).ok
