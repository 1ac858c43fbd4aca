"""Write and check `requirements/*.lock`.

`write` resolves the dependencies of `pyproject.toml` for every supported Python into exact pins, one file a purpose,
all out of one resolution. `check` needs no network: it tells whether a lock file still belongs to the dependency
tables it was made from, and whether anybody edited it by hand. A lock file names no index and no host.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"

PURPOSES: dict[str, tuple[str, tuple[str, ...]]] = {
    # The widest comes first: the others take their versions from it, so that any two install together.
    "dev": ("everything: runtime, demonstration, tests and checks", ("--extra", "demo", "--group", "dev")),
    "demo": ("runtime, model server and both model formats", ("--extra", "demo")),
    "runtime": ("the officer alone", ()),
}
BUILD = ("build", "what installing the project itself needs")
EDITABLES = "editables"
"""The build backend needs it for an editable install and asks for it only at that moment."""


def inputs_digest(pyproject: bytes) -> str:
    """SHA-256 of the tables that decide the resolution; comments and other tables do not count."""
    tables = tomllib.loads(pyproject.decode())
    project = tables["project"]
    decisive = {
        "requires-python": project["requires-python"],
        "dependencies": sorted(project["dependencies"]),
        "optional-dependencies": {k: sorted(v) for k, v in project["optional-dependencies"].items()},
        "dependency-groups": {k: sorted(v) for k, v in tables["dependency-groups"].items()},
        "build": sorted(tables["build-system"]["requires"]),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def pins_digest(pins: Sequence[str]) -> str:
    """SHA-256 of the pins, so that an edit by hand is seen."""
    return hashlib.sha256("\n".join(pins).encode()).hexdigest()


def resolve(arguments: Sequence[str], stdin: str = "") -> list[str]:
    """The pins for `uv pip compile ARGUMENTS`, one requirement a line, for Python 3.11 and newer."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"]
    command += ["--no-annotate", "--no-header", "--upgrade", *arguments]
    answer = subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=ROOT)
    if answer.returncode != 0:
        sys.exit(f"The resolution failed:\n{answer.stderr}")
    return [line for line in answer.stdout.splitlines() if line and not line.startswith(("#", "-"))]


def render(about: str, inputs: str, pins: Sequence[str]) -> str:
    """The text of a lock file."""
    head = (
        f"# Exact versions, Python 3.11 and newer: {about}. Written by `make lock`; not edited by hand.",
        f"# inputs-sha256: {inputs}",
        f"# pins-sha256: {pins_digest(pins)}",
    )
    return "\n".join((*head, *pins)) + "\n"


def write() -> None:
    """Resolve anew and write all lock files."""
    pyproject = (ROOT / "pyproject.toml").read_bytes()
    inputs = inputs_digest(pyproject)
    LOCKS.mkdir(exist_ok=True)
    widest = LOCKS / "dev.lock"
    for name, (about, arguments) in PURPOSES.items():
        constraint = () if name == "dev" else ("--constraint", str(widest))
        pins = resolve(("pyproject.toml", *arguments, *constraint))
        (LOCKS / f"{name}.lock").write_text(render(about, inputs, pins))
    name, about = BUILD
    requires = [*tomllib.loads(pyproject.decode())["build-system"]["requires"], EDITABLES]
    pins = resolve(("-", "--constraint", str(widest)), stdin="\n".join(requires))
    (LOCKS / f"{name}.lock").write_text(render(about, inputs, pins))


def problems() -> list[str]:
    """What is wrong with the lock files; empty when they are fresh and untouched."""
    inputs = inputs_digest((ROOT / "pyproject.toml").read_bytes())
    found: list[str] = []
    for name in (*PURPOSES, BUILD[0]):
        path = LOCKS / f"{name}.lock"
        label = f"requirements/{path.name}"
        if not path.exists():
            found.append(f"{label} is missing")
            continue
        text = path.read_text()
        pins = [line for line in text.splitlines() if not line.startswith("#")]
        if f"# inputs-sha256: {inputs}\n" not in text:
            found.append(f"{label} was made from other dependency tables than pyproject.toml holds now")
        if f"# pins-sha256: {pins_digest(pins)}\n" not in text:
            found.append(f"{label} was edited by hand")
        if "://" in text or any(line.startswith("-") for line in pins):
            found.append(f"{label} names an index, a host or an option")
    return found


def main() -> None:
    """`lock.py write` or `lock.py check`; `check` exits 1 and names each stale file."""
    match sys.argv[1:]:
        case ["write"]:
            write()
        case ["check"]:
            if found := problems():
                sys.exit("\n".join((*found, "Run `make lock`.")))
        case _:
            sys.exit("usage: lock.py write|check")


if __name__ == "__main__":
    main()
