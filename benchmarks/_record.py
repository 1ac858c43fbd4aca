"""Where every benchmark writes its answer: `benchmarks/results/NAME.json`, with the machine and the commit.

A figure enters the documentation only out of such a file.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> dict[str, Any]:
    """What the figures were taken on; no host name and no path."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1m": round(os.getloadavg()[0], 2),
    }


def commit() -> str:
    """The commit measured, with `-dirty` when files differ from it; `unknown` outside a clone."""
    answer = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
        capture_output=True,
        text=True,
    )
    return answer.stdout.strip() if answer.returncode == 0 else "unknown"


def record(name: str, question: str, answer: dict[str, Any]) -> Path:
    """Write `results/NAME.json` in one piece and return its path."""
    document = {
        "benchmark": name,
        "question": question,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "command": " ".join(
            [f"python benchmarks/{Path(sys.argv[0]).name}", *("PATH" if w.startswith("/") else w for w in sys.argv[1:])]
        ),
        "machine": machine(),
        "answer": answer,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path
