"""Registry files that want to hurt the reader: refused, in bounded time and memory, with a code (R1).

Each is read by a child process, so that its memory can be measured and a reader that dies of a signal is seen. The time
limits are generous: they tell minutes from seconds, not fast from slow.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

HEAD = b"format: rearguard/checkpoint-registry/1\ncheckpoints:"
LIMIT_BYTES = 32 * 1_048_576
READER = """
import json, resource, sys
from pathlib import Path
from rearguard.checkpoints.registry_reading import read_registry_file
from rearguard.errors import RearguardError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_registry_file(Path(sys.argv[1]))
    code, line = "", 0
except RearguardError as error:
    code, line = error.code, error.line
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"code": code, "line": line, "grown_mib": grown // 1024}))
"""


def read(path: Path, timeout_s: float = 100) -> tuple[str, int]:
    """Code of the refusal, and by how many MiB the reader grew."""
    done = subprocess.run(
        [sys.executable, "-c", READER, str(path)], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return told["code"], told["grown_mib"]


def bomb() -> bytes:
    """A billion laughs."""
    lines = [b"a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [b"a%d: &a%d [%s]" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 10)]
    return b"\n".join(lines)


CONTENTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a billion laughs": (bomb, "config_anchor"),
    "100,000 brackets": (lambda: HEAD + b" " + b"[" * 100_000, "config_too_deep"),
    "100,000 braces": (lambda: HEAD + b" " + b"{" * 100_000, "config_key_not_text"),
    "100,000 dashes": (lambda: HEAD + b"\n" + b"- " * 100_000, "config_too_deep"),
    "100,000 question marks": (lambda: HEAD + b"\n" + b"? " * 100_000, "config_key_not_text"),
    "deep indentation": (
        lambda: HEAD + b"".join(b"\n" + b" " * n + b"- a:" for n in range(1, 2_000, 2)),
        "config_too_deep",
    ),
    "a key twice": (lambda: HEAD + b" []\ncheckpoints: []\n", "config_duplicate_key"),
    "a tag that would call": (lambda: HEAD + b" !!python/object/apply:os.system ['true']\n", "config_tag"),
    "a tag of a text": (lambda: HEAD + b" !!str x\n", "config_tag"),
    "a merge key": (lambda: HEAD + b"\n- <<: {digest: x}\n", "config_merge_key"),
    "an alias": (lambda: HEAD + b" *x\n", "config_alias"),
    "a NUL": (lambda: HEAD + b" []\n\0", "config_character"),
    "no UTF-8": (lambda: HEAD + b" [\xc3\x28]\n", "config_not_utf8"),
    "half of a surrogate pair": (lambda: HEAD + b' ["\\ud800"]\n', "config_character"),
    "UTF-16": (lambda: (HEAD + b" []\n").decode().encode("utf-16"), "config_character"),
    "two documents": (lambda: HEAD + b" []\n---\n" + HEAD + b" []\n", "config_several_documents"),
    "nothing": (lambda: b"", "config_empty"),
    "a scalar": (lambda: b"x", "config_value"),
    "an escape beyond Unicode": (lambda: HEAD + b' ["\\UFFFFFFFF"]\n', "config_syntax"),
    "100 MB": (lambda: HEAD + b" " * 100_000_000, "config_too_large"),
}


def test_paths_of_many_parts_are_refused_before_each_of_them_costs_memory(tmp_path: Path) -> None:
    """A hundred paths of 2,000 parts in 400 kB: every parent of each as a string would be 100 * 2,000 * 2 kB = 400 MB."""
    sha = "0" * 64
    files = "".join(
        f"  - {{path: f{number:03d}/{'a/' * 2_000}b, sha256: '{sha}', size_bytes: 1}}\n" for number in range(100)
    )
    path = tmp_path / "registry.yaml"
    path.write_text(
        f"format: rearguard/checkpoint-registry/1\ncheckpoints:\n- digest: sha256:{sha}\n  service: s\n  version: v\n"
        f"  format: onnx\n  files:\n{files}",
        encoding="utf-8",
    )
    found, grown_mib = read(path)
    assert grown_mib < 100
    assert found == "config_value"


@pytest.mark.parametrize("name", CONTENTS)
def test_a_hostile_file_is_refused_with_its_code(tmp_path: Path, name: str) -> None:
    content, code = CONTENTS[name]
    path = tmp_path / "registry.yaml"
    path.write_bytes(content())
    found, grown_mib = read(path)
    assert found == code
    assert grown_mib < 200


FULL: dict[str, tuple[bytes, str]] = {
    "empty items": (b" [" + b"x," * (LIMIT_BYTES // 2 - 100) + b"]", "config_too_many_nodes"),
    "empty entries": (b"\n" + b"- {}\n" * (LIMIT_BYTES // 5 - 100), "config_too_many_nodes"),
    "one text": (b' "' + b"x" * (LIMIT_BYTES - 100) + b'"', "config_value"),
    "one comment": (b" # " + b"x" * (LIMIT_BYTES - 100), "config_value"),
    "empty lines": (b"\n" * (LIMIT_BYTES - 100), "config_value"),
    "escapes": (b' "' + b"\\x41" * (LIMIT_BYTES // 4 - 100) + b'"', "config_value"),
    "folded lines": (b' "' + b"x\n\n" * (LIMIT_BYTES // 3 - 100) + b'"', "config_value"),
}
"""As large as a file may be, and made of what costs the parser most for each byte."""


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FULL)
def test_a_file_at_the_limit_costs_bounded_time_and_memory(tmp_path: Path, name: str) -> None:
    content, code = FULL[name]
    path = tmp_path / "registry.yaml"
    path.write_bytes(HEAD + content)
    assert path.stat().st_size <= LIMIT_BYTES
    found, grown_mib = read(path, timeout_s=600)
    assert found == code
    assert grown_mib < 1_500


# --- what is no file


def test_a_pipe_that_nobody_writes_to_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read(tmp_path / "pipe", 30)[0] == "config_unreadable"


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/stdin", "/proc/self/fd"])
def test_a_device_is_refused(path: str) -> None:
    assert read(Path(path), 30)[0] == "config_unreadable"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert read(tmp_path, 30)[0] == "config_unreadable"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert read(tmp_path / "absent", 30)[0] == "config_missing"


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    path.write_bytes(HEAD)
    done = threading.Event()

    def grow() -> None:
        with path.open("ab", buffering=0) as writer:
            while not done.is_set() and writer.tell() < 4 * LIMIT_BYTES:
                writer.write(b"#" * 1_048_576)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        found, grown_mib = read(path)
    finally:
        done.set()
        writer.join()
    assert found in ("config_too_large", "config_value")  # as far as it was when it was read: bounded either way
    assert grown_mib < 200
