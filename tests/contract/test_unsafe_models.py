"""A model that runs code on load never runs it, in whatever command, under whatever name, however it is packed."""

from __future__ import annotations

import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from malicious import Shape, shapes
from rearguard.errors import RefusedError
from rearguard.loaders.detection import detect

NAMES = ("m.pkl", "m.joblib", "m.onnx", "m.skops", "m.bin", "m.pt", "m.safetensors", "m.npy", "MLmodel", "notes.txt")


class Listener:
    """A port on which a payload would knock."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.socket.setblocking(False)
        self.port = int(self.socket.getsockname()[1])

    def knocks(self) -> int:
        count = 0
        while True:
            try:
                self.socket.accept()[0].close()
            except BlockingIOError:
                return count
            count += 1


@pytest.fixture
def listener() -> Iterator[Listener]:
    opened = Listener()
    yield opened
    opened.socket.close()


@pytest.fixture
def corpus(tmp_path: Path, listener: Listener) -> list[Shape]:
    (tmp_path / "canaries").mkdir()
    return shapes(tmp_path / "canaries", listener.port)


def fired(corpus: list[Shape], listener: Listener) -> set[str]:
    """What must stay empty."""
    found = {s.name for s in corpus if s.canary.is_symlink() or s.canary.exists()}
    return found | ({"a connection"} if listener.knocks() else set())


def test_the_payloads_are_real(corpus: list[Shape], listener: Listener, tmp_path: Path) -> None:
    """Unpickled without a guard, each of them is noticed: else the other tests would prove nothing."""
    program = (
        "import sys, joblib, warnings; warnings.simplefilter('ignore')\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        joblib.load(path)\n    except Exception as e:\n        print(path, repr(e))\n"
    )
    quiet = {"connect", "urlopen"}
    paths = []
    for shape in corpus:
        (tmp_path / shape.name).write_bytes(shape.content)
        paths.append(str(tmp_path / shape.name))
    # urlopen waits for an answer that nobody gives, so it goes last and is cut off.
    subprocess.run([sys.executable, "-c", program, *[p for p in paths if not p.endswith("urlopen")]], timeout=60)
    assert len(corpus) == 34
    assert fired(corpus, listener) == {s.name for s in corpus} - quiet | {"a connection"}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_refused_by_the_look_under_whatever_name(corpus: list[Shape], tmp_path: Path, name: str) -> None:
    for shape in corpus:
        folder = tmp_path / shape.name
        folder.mkdir()
        (folder / name).write_bytes(shape.content)
        with pytest.raises(RefusedError) as refused:
            detect(folder)
        assert (shape.name, refused.value.code) == (shape.name, "unsafe_format")


def test_it_is_refused_in_a_nested_folder_beside_a_good_model(corpus: list[Shape], tmp_path: Path) -> None:
    for shape in corpus:
        folder = tmp_path / shape.name
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "a" / "b" / "tokenizer").write_bytes(shape.content)
        (folder / "model.onnx").write_bytes(b"\x08\x08")
        with pytest.raises(RefusedError):
            detect(folder)


def test_it_is_refused_inside_an_archive(corpus: list[Shape], tmp_path: Path) -> None:
    for shape in corpus:
        folder = tmp_path / shape.name
        folder.mkdir()
        with zipfile.ZipFile(folder / "model.skops", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("schema.json", "{}")
            archive.writestr("weights", shape.content)
        with pytest.raises(RefusedError):
            detect(folder)


def test_no_loader_of_ours_unpickles_what_slipped_through(
    corpus: list[Shape], listener: Listener, tmp_path: Path
) -> None:
    """The second guard: each loader is given each shape under its own name, past the look."""
    program = (
        "import sys; from pathlib import Path; from rearguard.loaders import get_loader\n"
        "done = 0\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    name, folder = line.split(' ', 1)\n"
        "    try:\n        get_loader(name)(Path(folder), ())\n"
        "    except Exception:\n        done += 1\n"
        "print(done)\n"
    )
    lines = []
    for format_name, file in (
        ("onnx", "m.onnx"), ("sklearn-skops", "m.skops"), ("safetensors", "m.safetensors"), ("mlflow", "MLmodel"),
        ("sklearn-joblib", "m.joblib"),
    ):  # fmt: skip
        for shape in corpus:
            folder = tmp_path / f"{format_name}-{shape.name}"
            folder.mkdir()
            (folder / file).write_bytes(shape.content)
            lines.append(f"{format_name} {folder}")
    ended = subprocess.run(
        [sys.executable, "-c", program], input="\n".join(lines), capture_output=True, text=True, timeout=100
    )
    assert ended.stdout.strip() == str(len(lines)), ended.stderr
    assert fired(corpus, listener) == set()


def test_in_the_sandbox_none_of_them_reaches_anything(corpus: list[Shape], listener: Listener, tmp_path: Path) -> None:
    """Unpickled for real, past look and scanner: what they try is denied by the kernel."""
    models = tmp_path / "models"
    models.mkdir()
    for shape in corpus:
        (models / shape.name).mkdir()
        (models / shape.name / "m.joblib").write_bytes(shape.content)
    program = (
        "import sys; from pathlib import Path; from rearguard.loaders import get_loader, sandbox\n"
        "sandbox.enter([Path(sys.argv[1])], sandbox.SandboxLimits(memory_bytes=4 << 30, cpu_s=60))\n"
        "load = get_loader('sklearn-joblib'); done = 0\n"
        "for folder in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try:\n        load(folder, ())\n"
        "    except Exception:\n        done += 1\n"
        "print(done)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-P", "-c", program, str(models)], capture_output=True, text=True, timeout=100
    )
    assert ended.stdout.strip() == "34", ended.stderr
    assert fired(corpus, listener) == set()
