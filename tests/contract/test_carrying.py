"""Checkpoints that are carried by skopeo: through Debian's docker-registry and back, and what is refused on the way in.

Both programs are the real ones; the registry is a process of this test on a free port, with its own storage.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import io
import json
import os
import pickle
import shutil
import socket
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from one_place import MODEL, REQUEST, SETTINGS

from rearguard.checkpoints import golden, layout
from rearguard.config.templates import playbook_template
from rearguard.database import sql
from rearguard.errors import (
    ConflictError,
    DependencyError,
    IntegrityError,
    NotFoundError,
    RearguardError,
    RefusedError,
    UsageError,
)
from rearguard.model.carrying import Carriage
from rearguard.model.checkpoint import Checkpoint
from rearguard.officer import carrying, checkpoints, registration
from rearguard.officer.office import Office, open_office
from rearguard.rules import oci

LOCAL = Carriage(plain_http=True, timeout_s=60)


@pytest.fixture(autouse=True)
def programs(require_part: Callable[[str, bool, str], None]) -> None:
    require_part("skopeo", shutil.which("skopeo") is not None, "apt-get install skopeo")


def settle(state: Path) -> Path:
    state.mkdir(parents=True)
    (state / "rearguard.yaml").write_text(SETTINGS, encoding="utf-8")
    (state / "rollback_playbook.yaml").write_text(playbook_template(), encoding="utf-8")
    return state


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state with one proven checkpoint. Read it, never change it."""
    folder = tmp_path_factory.mktemp("carrying")
    (folder / "golden.jsonl").write_text(json.dumps(REQUEST) + "\n", encoding="utf-8")
    (folder / "v1" / "deep").mkdir(parents=True)
    shutil.copy(MODEL, folder / "v1" / "model.onnx")
    (folder / "v1" / "deep" / "note.txt").write_text("v1", encoding="utf-8")
    (folder / "v1" / "empty.txt").touch()
    with open_office(settle(folder / "home")) as office:
        registration.add(office, folder / "v1", service="fraud", version="v1", golden_file=folder / "golden.jsonl")
    return folder / "home"


@pytest.fixture
def sender(home: Path, tmp_path: Path) -> Iterator[Office]:
    shutil.copytree(home, tmp_path / "home", symlinks=True)
    with open_office(tmp_path / "home") as office:
        yield office


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Office]:
    with open_office(settle(tmp_path / "away")) as office:
        yield office


class Registry:
    """One docker-registry on loopback."""

    def __init__(self, folder: Path, auth: str = "") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.storage = folder / "storage"
        settings = folder / "registry.yml"
        settings.write_text(
            f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {self.storage}}}}}\n"
            f"http: {{addr: '127.0.0.1:{self.port}'}}\n{auth}",
            encoding="utf-8",
        )
        with (folder / "registry.log").open("wb") as log:
            self.process = subprocess.Popen(
                ["docker-registry", "serve", str(settings)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        end = time.monotonic() + 20
        while not self._answers():
            assert self.process.poll() is None, (folder / "registry.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status in (200, 401)
        except OSError:
            return False
        finally:
            connection.close()

    def reference(self, tag: str) -> str:
        return f"docker://127.0.0.1:{self.port}/models/fraud:{tag}"

    def blob(self, sha256: str) -> Path:
        return self.storage / "docker" / "registry" / "v2" / "blobs" / "sha256" / sha256[:2] / sha256 / "data"

    def put_manifest(self, tag: str, content: bytes) -> int:
        """As anybody who may push could."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        headers = {"Content-Type": oci.MANIFEST_TYPE}
        connection.request("PUT", f"/v2/models/fraud/manifests/{tag}", content, headers)
        status = connection.getresponse().status
        connection.close()
        return status

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def registry(tmp_path: Path, require_part: Callable[[str, bool, str], None]) -> Iterator[Registry]:
    require_part("docker-registry", shutil.which("docker-registry") is not None, "apt-get install docker-registry")
    one = Registry(tmp_path)
    yield one
    one.end()


def blobs_of(office: Office) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in office.store.blobs.iterdir()}


def refused(act: Callable[[], object], kind: type[RearguardError]) -> str:
    with pytest.raises(kind) as found:
        act()
    return found.value.code


def pull(office: Office, reference: str, **named: Any) -> Checkpoint:
    return carrying.pull(office, reference, **({"service": "fraud", "version": None, "carriage": LOCAL} | named))


def assert_nothing_came_in(office: Office) -> None:
    assert checkpoints.list_checkpoints(office) == ()
    assert not office.store.incoming.exists() or list(office.store.incoming.iterdir()) == []


def kinds(office: Office) -> list[str]:
    log = json.loads((office.state / "rollback_log.json").read_text(encoding="utf-8"))
    return [entry["kind"] for entry in log["entries"]]


# --- out and back


def test_a_checkpoint_goes_through_a_registry_and_comes_back_byte_for_byte(
    sender: Office, receiver: Office, registry: Registry
) -> None:
    sent = carrying.push(sender, registry.reference("v1"), service="fraud", version="v1", carriage=LOCAL)
    came = pull(receiver, sent.reference)
    assert came.verified_at is not None
    assert (came.digest, came.version) == (sent.digest, "v1")
    assert sent.reference == f"docker://127.0.0.1:{registry.port}/models/fraud@{came.oci_manifest}"
    assert blobs_of(receiver) == blobs_of(sender)
    assert (receiver.state / "index.json").read_bytes() == (sender.state / "index.json").read_bytes()
    assert_no_work_is_left(receiver, sender)
    assert kinds(sender)[-1] == "checkpoint_pushed"
    assert kinds(receiver) == ["checkpoint_added", "checkpoint_pulled", "checkpoint_verified"]


def assert_no_work_is_left(*offices: Office) -> None:
    for office in offices:
        assert list(office.store.incoming.iterdir()) == []


@pytest.mark.parametrize("form", ["oci:{}:some/tag", "oci-archive:{}:v1", "dir:{}"])
def test_a_checkpoint_goes_through_files_and_comes_back(
    sender: Office, receiver: Office, tmp_path: Path, form: str
) -> None:
    reference = form.format(tmp_path / "carried")
    carrying.push(sender, reference, service="fraud", version="v1", carriage=LOCAL)
    assert pull(receiver, reference).verified_at is not None
    assert blobs_of(receiver) == blobs_of(sender)


def test_a_second_push_and_a_second_pull_change_nothing(sender: Office, receiver: Office, tmp_path: Path) -> None:
    reference = f"oci:{tmp_path / 'carried'}:v1"
    first = carrying.push(sender, reference, service="fraud", version="v1", carriage=LOCAL)
    assert carrying.push(sender, reference, service="fraud", version="v1", carriage=LOCAL) == first
    came = pull(receiver, reference)
    records = len(kinds(receiver))
    assert pull(receiver, reference) == came
    assert len(kinds(receiver)) == records


def test_the_state_directory_is_copied_by_skopeo_alone(home: Path, tmp_path: Path) -> None:
    """By hand, with no word of ours: it is an OCI layout."""
    (tmp_path / "policy.json").write_text('{"default":[{"type":"insecureAcceptAnything"}]}', encoding="utf-8")
    words = ["--policy", str(tmp_path / "policy.json"), "copy", f"oci:{home}:fraud/v1", f"oci:{tmp_path / 'copy'}:x"]
    subprocess.run(["skopeo", *words], check=True, capture_output=True, timeout=60)
    copied = {path.name for path in (tmp_path / "copy" / "blobs" / "sha256").iterdir()}
    assert copied == {path.name for path in (home / "blobs" / "sha256").iterdir()}


def test_another_state_directory_is_pulled_from_as_it_stands(home: Path, receiver: Office) -> None:
    assert pull(receiver, f"oci:{home}:fraud/v1").verified_at is not None


def test_a_pull_under_another_label_is_another_manifest_of_the_same_bytes(home: Path, receiver: Office) -> None:
    came = pull(receiver, f"oci:{home}:fraud/v1", version="v9")
    with open_office(home, write=False) as office:
        was = checkpoints.find(office, service="fraud", version="v1")
    assert (came.version, came.digest) == ("v9", was.digest)
    assert came.oci_manifest != was.oci_manifest


WORD = "$2b$04$WAHrevtjH6hT3ldBgBFV6u8jF0avUuwGdc5SYBrJzq0k3Itd44P3K"
"""bcrypt of `word`, by crypt(3)."""


@pytest.fixture
def guarded(tmp_path: Path, require_part: Callable[[str, bool, str], None]) -> Iterator[Registry]:
    """A registry that asks for a name and a word."""
    require_part("docker-registry", shutil.which("docker-registry") is not None, "apt-get install docker-registry")
    (tmp_path / "words").write_text(f"ops:{WORD}\n", encoding="utf-8")
    one = Registry(tmp_path, f"auth: {{htpasswd: {{realm: models, path: {tmp_path / 'words'}}}}}\n")
    yield one
    one.end()


def credentials(registry: Registry, tmp_path: Path, word: str) -> Carriage:
    """As `skopeo login` writes them."""
    coded = base64.b64encode(f"ops:{word}".encode()).decode()
    path = tmp_path / f"auth-{word}.json"
    path.write_text(json.dumps({"auths": {f"127.0.0.1:{registry.port}": {"auth": coded}}}), encoding="utf-8")
    return Carriage(authfile=str(path), plain_http=True, timeout_s=60)


def test_credentials_are_handed_through(sender: Office, receiver: Office, guarded: Registry, tmp_path: Path) -> None:
    carriage = credentials(guarded, tmp_path, "word")
    sent = carrying.push(sender, guarded.reference("v1"), service="fraud", version="v1", carriage=carriage)
    assert pull(receiver, sent.reference, carriage=carriage).digest == sent.digest


@pytest.mark.parametrize("word", ["", "wrong"])
def test_without_the_right_credentials_the_registry_denies(
    sender: Office, guarded: Registry, tmp_path: Path, word: str
) -> None:
    carriage = credentials(guarded, tmp_path, word)
    act = lambda: carrying.push(sender, guarded.reference("v1"), service="fraud", version="v1", carriage=carriage)  # noqa: E731
    assert refused(act, DependencyError) == "registry_denied"


# --- what is refused


def test_a_flipped_byte_in_the_registrys_storage_is_refused(
    sender: Office, receiver: Office, registry: Registry
) -> None:
    carrying.push(sender, registry.reference("v1"), service="fraud", version="v1", carriage=LOCAL)
    blob = registry.blob(hashlib.sha256(MODEL.read_bytes()).hexdigest())
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    assert refused(lambda: pull(receiver, registry.reference("v1")), IntegrityError) == "blob_altered"
    assert_nothing_came_in(receiver)
    assert not receiver.store.blobs.exists()


def test_a_manifest_that_is_not_what_its_digest_says_is_refused(
    sender: Office, receiver: Office, registry: Registry
) -> None:
    sent = carrying.push(sender, registry.reference("v1"), service="fraud", version="v1", carriage=LOCAL)
    path = registry.blob(sent.manifest.removeprefix("sha256:"))
    path.write_bytes(path.read_bytes().replace(b"deep/note.txt", b"deep/nope.txt"))
    assert refused(lambda: pull(receiver, sent.reference), IntegrityError) == "blob_altered"
    assert_nothing_came_in(receiver)


def test_a_flipped_byte_here_is_not_pushed(sender: Office, tmp_path: Path) -> None:
    blob = sender.store.blobs / hashlib.sha256(MODEL.read_bytes()).hexdigest()
    content = bytearray(blob.read_bytes())
    content[0] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(content)
    reference = f"oci:{tmp_path / 'carried'}:v1"
    push = lambda: carrying.push(sender, reference, service="fraud", version="v1", carriage=LOCAL)  # noqa: E731
    assert refused(push, IntegrityError) == "blob_altered"
    assert "checkpoint_pushed" not in kinds(sender)


def test_a_hostile_manifest_in_a_registry_is_refused(sender: Office, receiver: Office, registry: Registry) -> None:
    sent = carrying.push(sender, registry.reference("v1"), service="fraud", version="v1", carriage=LOCAL)
    content = (sender.store.blobs / sent.manifest.removeprefix("sha256:")).read_bytes()
    assert registry.put_manifest("evil", content.replace(b"deep/note.txt", b"../../../x.so")) == 201
    assert refused(lambda: pull(receiver, registry.reference("evil")), IntegrityError) == "carried_path_unsafe"
    assert_nothing_came_in(receiver)


class Forger:
    """Writes OCI layouts whose blobs are what their names say, and whose manifest lies otherwise."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs" / "sha256").mkdir(parents=True)
        (folder / "oci-layout").write_bytes(oci.LAYOUT_BYTES)
        for blob in (home / "blobs" / "sha256").iterdir():
            shutil.copy(blob, folder / "blobs" / "sha256")
        index = json.loads((home / "index.json").read_bytes())
        digest = index["manifests"][0]["digest"].removeprefix("sha256:")
        self.manifest: dict[str, Any] = json.loads((home / "blobs" / "sha256" / digest).read_bytes())

    def blob(self, content: bytes) -> dict[str, Any]:
        sha256 = hashlib.sha256(content).hexdigest()
        path = self.folder / "blobs" / "sha256" / sha256
        if not path.exists():
            path.write_bytes(content)
        return {"digest": f"sha256:{sha256}", "size": len(content)}

    def file(self, path: str, content: bytes) -> dict[str, Any]:
        return {"mediaType": oci.FILE_TYPE, "annotations": {oci.PATH_KEY: path}} | self.blob(content)

    def address_anew(self) -> None:
        """A liar computes the right address of its lie."""
        files = sorted(
            (layer["annotations"][oci.PATH_KEY], layer["digest"][7:], layer["size"])
            for layer in self.manifest["layers"]
            if layer["mediaType"] == oci.FILE_TYPE
        )
        kept = [layer["digest"][7:] for layer in self.manifest["layers"] if layer["mediaType"] == oci.GOLDEN_TYPE]
        notes = self.manifest["annotations"]
        address = {
            "files": [{"path": path, "sha256": sha256, "size": size} for path, sha256, size in files],
            "format": notes[oci.FORMAT_KEY],
            "golden": kept[0] if kept else "",
        }
        text = json.dumps(address, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        notes[oci.DIGEST_KEY] = "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def reference(self) -> str:
        descriptor = self.blob(json.dumps(self.manifest).encode())
        descriptor |= {"mediaType": oci.MANIFEST_TYPE, "annotations": {oci.REF_KEY: "x"}}
        index = {"schemaVersion": 2, "manifests": [descriptor]}
        (self.folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
        return f"oci:{self.folder}:x"


@pytest.fixture
def forger(home: Path, tmp_path: Path) -> Forger:
    return Forger(home, tmp_path / "forged")


def test_what_the_forger_leaves_alone_is_taken(forger: Forger, receiver: Office) -> None:
    """Otherwise the refusals below would prove nothing."""
    forger.manifest["annotations"]["org.example.note"] = "one more annotation"
    forger.address_anew()
    assert pull(receiver, forger.reference()).verified_at is not None


def sparse_size(forger: Forger) -> None:
    forger.manifest["layers"][0]["size"] = 2**52
    forger.address_anew()


def other_size(forger: Forger) -> None:
    forger.manifest["layers"][0]["size"] += 1
    forger.address_anew()


def other_address(forger: Forger) -> None:
    forger.manifest["layers"][0]["annotations"][oci.PATH_KEY] = "other.onnx"


def other_bytes(forger: Forger) -> None:
    sha256 = forger.manifest["layers"][0]["digest"].removeprefix("sha256:")
    path = forger.folder / "blobs" / "sha256" / sha256
    path.chmod(0o644)
    path.write_bytes(b"x" * forger.manifest["layers"][0]["size"])


def tar_layers(forger: Forger) -> None:
    forger.manifest["layers"][0]["mediaType"] = "application/vnd.cncf.model.weight.v1.tar"


def container_image(forger: Forger) -> None:
    del forger.manifest["artifactType"]


def no_golden_set(forger: Forger) -> None:
    forger.manifest["layers"] = [one for one in forger.manifest["layers"] if one["mediaType"] != oci.GOLDEN_TYPE]
    forger.address_anew()


def broken_golden_set(forger: Forger) -> None:
    layer = next(one for one in forger.manifest["layers"] if one["mediaType"] == oci.GOLDEN_TYPE)
    layer |= forger.blob(b'{"requests": [], "answers": {}}')
    forger.address_anew()


def uneven_golden_set(forger: Forger) -> None:
    layer = next(one for one in forger.manifest["layers"] if one["mediaType"] == oci.GOLDEN_TYPE)
    layer |= forger.blob(json.dumps({"requests": [REQUEST, REQUEST], "answers": [[]]}).encode())
    forger.address_anew()


def golden_set_without_names(forger: Forger) -> None:
    layer = next(one for one in forger.manifest["layers"] if one["mediaType"] == oci.GOLDEN_TYPE)
    layer |= forger.blob(json.dumps({"requests": [REQUEST], "answers": [[5]]}).encode())
    forger.address_anew()


def pickle_inside(forger: Forger) -> None:
    forger.manifest["layers"].append(forger.file("weights.pkl", pickle.dumps([1])))
    forger.address_anew()


def pickle_under_another_name(forger: Forger) -> None:
    forger.manifest["layers"].append(forger.file("notes.md", pickle.dumps([1])))
    forger.address_anew()


def zip_bomb(forger: Forger) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for number in range(100_001):
            archive.writestr(zipfile.ZipInfo(f"{number}"), b"")
    forger.manifest["layers"].append(forger.file("weights.npz", target.getvalue()))
    forger.address_anew()


def another_format(forger: Forger) -> None:
    forger.manifest["annotations"][oci.FORMAT_KEY] = "sklearn-skops"
    forger.address_anew()


def another_version(forger: Forger) -> None:
    forger.manifest["annotations"][oci.VERSION_KEY] = "../../v1"


def answers_of_another_model(forger: Forger) -> None:
    layer = next(one for one in forger.manifest["layers"] if one["mediaType"] == oci.GOLDEN_TYPE)
    known = json.loads((forger.folder / "blobs" / "sha256" / layer["digest"][7:]).read_bytes())
    known["answers"][0][0]["data"][0] += 1
    layer |= forger.blob(json.dumps(known, sort_keys=True, separators=(",", ":")).encode())
    forger.address_anew()


@pytest.mark.parametrize(
    ("forge", "kind", "code"),
    [
        (sparse_size, DependencyError, "store_full"),
        (other_size, IntegrityError, "carried_size_wrong"),
        (other_address, IntegrityError, "carried_address_wrong"),
        (other_bytes, IntegrityError, "blob_altered"),
        (tar_layers, IntegrityError, "media_type_refused"),
        (container_image, IntegrityError, "media_type_refused"),
        (no_golden_set, RefusedError, "golden_missing"),
        (broken_golden_set, IntegrityError, "golden_malformed"),
        (uneven_golden_set, IntegrityError, "golden_malformed"),
        (golden_set_without_names, IntegrityError, "golden_malformed"),
        (pickle_inside, RefusedError, "unsafe_format"),
        (pickle_under_another_name, RefusedError, "unsafe_format"),
        (zip_bomb, RefusedError, "zip_bomb"),
        (another_format, UsageError, "unknown_format"),
        (another_version, UsageError, "version_malformed"),
    ],
)
def test_a_forged_artifact_is_refused_and_nothing_is_registered(
    forger: Forger, receiver: Office, forge: Callable[[Forger], None], kind: type[RearguardError], code: str
) -> None:
    forge(forger)
    assert refused(lambda: pull(receiver, forger.reference()), kind) == code
    assert_nothing_came_in(receiver)


def test_an_artifact_that_answers_otherwise_takes_no_label(forger: Forger, receiver: Office) -> None:
    """Its bytes are what they say, and its model loads: only the proof here tells."""
    answers_of_another_model(forger)
    assert refused(lambda: pull(receiver, forger.reference()), IntegrityError) == "golden_differs"
    assert_nothing_came_in(receiver)


def test_a_blob_that_is_an_endless_device_ends(forger: Forger, receiver: Office) -> None:
    """The link is followed by skopeo, not by us; what it writes is bounded by what the manifest declares."""
    sha256 = forger.manifest["layers"][0]["digest"].removeprefix("sha256:")
    path = forger.folder / "blobs" / "sha256" / sha256
    path.unlink()
    path.symlink_to("/dev/zero")
    assert refused(lambda: pull(receiver, forger.reference()), IntegrityError) in ("carried_too_large", "blob_altered")
    assert_nothing_came_in(receiver)


def test_a_blob_that_never_comes_ends_with_the_time_limit(forger: Forger, receiver: Office) -> None:
    sha256 = forger.manifest["layers"][0]["digest"].removeprefix("sha256:")
    path = forger.folder / "blobs" / "sha256" / sha256
    path.unlink()
    os.mkfifo(path)
    carriage = Carriage(timeout_s=2)
    act = lambda: pull(receiver, forger.reference(), carriage=carriage)  # noqa: E731
    assert refused(act, DependencyError) == "carrying_timed_out"
    assert_nothing_came_in(receiver)


def test_an_archive_that_is_a_packed_bomb_is_refused(tmp_path: Path, receiver: Office) -> None:
    """Gzip is unpacked by skopeo on its own: 200 MB of zeros in 200 kB."""
    with tarfile.open(tmp_path / "bomb.tar", "w:gz") as archive:
        entry = tarfile.TarInfo("blobs/sha256/" + "0" * 64)
        entry.size = 200 * 1024 * 1024
        archive.addfile(entry, io.BytesIO(bytes(entry.size)))
    code = refused(lambda: pull(receiver, f"oci-archive:{tmp_path / 'bomb.tar'}:x"), IntegrityError)
    assert code == "carried_too_large"
    assert_nothing_came_in(receiver)


def test_many_files_that_are_small_enough_each_are_too_large_together(tmp_path: Path, receiver: Office) -> None:
    with tarfile.open(tmp_path / "bomb.tar", "w:gz") as archive:
        for number in range(8):
            entry = tarfile.TarInfo(f"blobs/sha256/{number:064}")
            entry.size = 40 * 1024 * 1024
            archive.addfile(entry, io.BytesIO(bytes(entry.size)))
    code = refused(lambda: pull(receiver, f"oci-archive:{tmp_path / 'bomb.tar'}:x"), IntegrityError)
    assert code == "carried_too_large"
    assert_nothing_came_in(receiver)


def test_no_file_grows_beyond_the_limit_not_even_for_a_moment(
    home: Path, receiver: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program in skopeo's place that would be done, and have removed it again, before anybody looks."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "skopeo"
    program.write_text("#!/bin/sh\nset -e\nhead -c 100M /dev/zero > big\nrm big\necho '{}'\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    assert refused(lambda: pull(receiver, f"oci:{home}:fraud/v1"), IntegrityError) == "carried_too_large"


# --- what is named wrongly, or is not there


def test_a_tag_that_is_not_there_is_told(receiver: Office, registry: Registry) -> None:
    assert refused(lambda: pull(receiver, registry.reference("v9")), NotFoundError) == "reference_unknown"


def test_a_registry_that_is_down_is_told(receiver: Office) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reference = f"docker://127.0.0.1:{port}/models/fraud:v1"
    assert refused(lambda: pull(receiver, reference), DependencyError) == "registry_unavailable"


def test_without_skopeo_the_hint_says_how_to_install_it(
    receiver: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DependencyError) as found:
        pull(receiver, "docker://127.0.0.1:1/models/fraud:v1")
    assert (found.value.code, found.value.exit_code) == ("skopeo_missing", 69)
    assert "install skopeo" in found.value.hint


def test_what_is_not_proven_is_not_pushed(sender: Office, tmp_path: Path) -> None:
    found = checkpoints.find(sender, service="fraud", version="v1")
    (sender.store.blobs / found.files[0].sha256).unlink()
    with contextlib.suppress(IntegrityError):
        checkpoints.check_bytes(sender, found)
    act = lambda: carrying.push(sender, f"dir:{tmp_path / 'out'}", service="fraud", version="v1", carriage=LOCAL)  # noqa: E731
    assert refused(act, RefusedError) == "checkpoint_not_proven"
    assert not (tmp_path / "out").exists()


def test_our_own_state_directory_is_not_pushed_into(sender: Office) -> None:
    act = lambda: carrying.push(sender, f"oci:{sender.state}:x", service="fraud", version="v1", carriage=LOCAL)  # noqa: E731
    assert refused(act, UsageError) == "reference_is_state"


def test_a_version_with_other_bytes_is_not_pulled_over(home: Path, sender: Office, tmp_path: Path) -> None:
    (tmp_path / "golden.jsonl").write_text(json.dumps(REQUEST) + "\n", encoding="utf-8")
    (tmp_path / "v1").mkdir()
    shutil.copy(MODEL, tmp_path / "v1" / "model.onnx")
    with open_office(settle(tmp_path / "third")) as third:
        registration.add(third, tmp_path / "v1", service="fraud", version="v1", golden_file=tmp_path / "golden.jsonl")
        code = refused(lambda: pull(third, f"oci:{home}:fraud/v1"), ConflictError)
        assert code == "checkpoint_exists"
        assert len(checkpoints.list_checkpoints(third)) == 1


def test_a_label_that_was_retired_with_other_bytes_stays_taken(home: Path, receiver: Office) -> None:
    with receiver.database.transaction() as connection:
        connection.execute(
            sql("INSERT INTO retired (service, version, digest, retired_at) VALUES ('fraud', 'v1', :digest, '')"),
            {"digest": "sha256:" + "0" * 64},
        )
    assert refused(lambda: pull(receiver, f"oci:{home}:fraud/v1"), ConflictError) == "version_retired"
    assert_nothing_came_in(receiver)


def test_pulling_mends_what_was_altered_here(home: Path, sender: Office) -> None:
    found = checkpoints.find(sender, service="fraud", version="v1")
    (sender.store.blobs / found.files[0].sha256).unlink()
    with contextlib.suppress(IntegrityError):
        checkpoints.check_bytes(sender, found)
    assert pull(sender, f"oci:{home}:fraud/v1").failure == ""
    assert layout.check(sender.database, sender.store, [found], sender.clock.sleep) == ()


def test_a_golden_set_that_is_pulled_is_the_one_that_was_recorded(home: Path, receiver: Office) -> None:
    came = pull(receiver, f"oci:{home}:fraud/v1")
    assert golden.decode(receiver.store.get_bytes(came.golden_sha256)).requests == (REQUEST,)
