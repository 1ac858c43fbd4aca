"""What starting must not load: the CLI answers `--help` without the engine, the database or a model format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "rearguard"

HEAVY = frozenset(
    {
        "anyio",
        "asyncio",
        "croniter",
        "cryptography",
        "dbos",
        "email.message",
        "h11",
        "http.client",
        "http.server",
        "joblib",
        "multiprocessing",
        "numpy",
        "onnxruntime",
        "psycopg",
        "rich",
        "scipy",
        "skops",
        "sklearn",
        "sqlalchemy",
        "sqlite3",
        "ssl",
        "starlette",
        "urllib.request",
        "uvicorn",
        "yaml",
    }
)

# What the interpreter itself or its `site` loaded before the program began does not count.
PROGRAM = """
import sys
before = set(sys.modules)
try:
    {statement}
except SystemExit:
    pass
import json
print(json.dumps(sorted(set(sys.modules) - before)), file=sys.stderr)
"""


def loaded_by(statement: str) -> frozenset[str]:
    """The modules that a statement loads in a fresh interpreter."""
    program = PROGRAM.format(statement=statement)
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return frozenset(json.loads(answer.stderr.splitlines()[-1]))


@pytest.mark.skipif(not (SOURCE / "interfaces" / "cli" / "main.py").exists(), reason="there is no CLI yet")
def test_help_loads_nothing_heavy() -> None:
    loaded = loaded_by("from rearguard.interfaces.cli.main import main; main(['--help'])")
    assert "click" in loaded
    assert loaded & HEAVY == frozenset()


def test_the_words_load_nothing_but_the_standard_library() -> None:
    loaded = loaded_by("import rearguard, rearguard.ports, rearguard.errors, rearguard.model.settings")
    foreign = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names - {"rearguard"}
    assert foreign == set()
    assert loaded & HEAVY == frozenset()
