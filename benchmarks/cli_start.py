"""How much longer than `import click` does `rearguard --help` take?

Both start a fresh interpreter. They run in pairs, one after the other with the order swapped each time, so that load
on a shared machine hits both; the answer is the ratio within each pair. Goal: a median of at most 2.

    python benchmarks/cli_start.py [--pairs 21]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from _record import ROOT, record

GOAL = 2.0
FEWEST_PAIRS = 15


def run_ms(command: list[str]) -> float:
    """Wall milliseconds of one run that must succeed."""
    start = time.perf_counter_ns()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter_ns() - start) / 1e6


def spread(values: list[float], digits: int) -> dict[str, float]:
    """Least, median and greatest value."""
    return {
        "min": round(min(values), digits),
        "median": round(median(values), digits),
        "max": round(max(values), digits),
    }


def main() -> None:
    """Measure, write the JSON, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=21, help=f"at least {FEWEST_PAIRS}")
    pairs = parser.parse_args().pairs
    if pairs < FEWEST_PAIRS:
        parser.error(f"--pairs must be at least {FEWEST_PAIRS}")
    script = Path(sys.executable).parent / "rearguard"
    if not script.exists():
        sys.exit("No rearguard beside this Python; run it with .venv/bin/python after `make test`.")
    ours, base = [str(script), "--help"], [sys.executable, "-c", "import click"]
    run_ms(ours), run_ms(base)  # once unmeasured: byte code and page cache

    ours_ms: list[float] = []
    base_ms: list[float] = []
    for number in range(pairs):
        if number % 2:
            ours_ms.append(run_ms(ours))
            base_ms.append(run_ms(base))
        else:
            base_ms.append(run_ms(base))
            ours_ms.append(run_ms(ours))
    ratios = [mine / other for mine, other in zip(ours_ms, base_ms, strict=True)]
    answer = {
        "pairs": pairs,
        "ratio": spread(ratios, 3),
        "rearguard_help_ms": spread(ours_ms, 1),
        "import_click_ms": spread(base_ms, 1),
        "goal_ratio_median": GOAL,
        "met": median(ratios) <= GOAL,
    }
    path = record("cli_start", "How much longer than `import click` does `rearguard --help` take?", answer)
    r = spread(ratios, 2)
    verdict = "met" if answer["met"] else "missed"
    print(f"ratio min {r['min']} median {r['median']} max {r['max']} over {pairs} pairs; goal <= {GOAL:g}: {verdict}")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
