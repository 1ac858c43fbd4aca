"""How long from the first bad answer until Rearguard has restored traffic, and until real alerting has told somebody?

In one run, on one machine and on the same traffic: the demo's model server, its four clients and its bad model, with the
watcher beside two pairs of Debian's Prometheus and Alertmanager that judge the same request log through an exporter:

    fast  scrape 1 s,  evaluate 1 s,  group_wait 0 s,  rate over 5 s
    slow  scrape 15 s, evaluate 15 s, group_wait 30 s, rate over 1 min (values that are common in production)

A repetition has two phases. **Armed**: v2 is deployed, Rearguard rolls it back by itself; both pairs listen. That ends the
bad traffic within seconds, so the slow pair could never see it. **Observed**: the same v2 is deployed with automation
off; Rearguard judges and tells but touches nothing, and the traffic stays bad until both pairs have told, or 120 s. Each
phase begins with fresh clients, fresh pairs and healthy traffic for longer than the longest window that is looked at.

What is measured, all on CLOCK_MONOTONIC of one host, from the *first bad answer* after the switch: for errors the first
failure as the clients saw it; for latency the first answer of the bad model over the limit in the request log.

    restored  the last answer of the bad model (clients and request log; whichever is later)
    t6, t7    begin and end of the first window in which all limits and golden predictions held (evidence)
    recorded  Rearguard's own breach (t1 of the incident); message: its webhook arrived at our receiver
    alert     the Alertmanager's webhook arrived at our receiver

What can be compared, and what cannot:

- `message` and `alert` are alike: somebody has been told. `restored` is more than that: nobody had to act. The time until a
  person or a script has acted on an alert comes on top of `alert` and is not in these figures.
- The thresholds are the same statement about the same lines (1 % errors; p95 over target + 5 ms, and the limit is a bucket
  bound). The rules are not: Rearguard uses the demo's windows here (5 s, three in a row, at least 30 samples), the pairs
  `for: 0s` without a minimum of samples, so the fast one fires on a single bad scrape. A longer `for` or window makes
  each of them later and calmer, Rearguard's defaults (60 s, two in a row) included: with these it needs 60 to 120 s to detect.
- Prometheus is no product for restoring models; it is what most people have in that place.

    python benchmarks/breach_to_restored.py [--breach errors,latency] [--repetitions 5,3] [--seed 1]

Writes benchmarks/results/breach_to_restored.json. About 3 min a repetition. Exit codes: 0 done, 69 a program is missing or
a part did not come up, 130 interrupted. Every process it started is ended by its id on each of these ways out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import _peers
import _stage
from _record import ROOT, record
from rearguard.errors import RearguardError

QUESTION = "How long from the first bad answer until Rearguard has restored traffic, and until real alerting has told?"
SETUP_S, REPETITION_S = 30, 180
"""For the estimate that is printed first."""


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def summary(repetitions: list[dict[str, Any]]) -> dict[str, Any]:
    """Least, median and greatest of each figure, and the ratios of medians; a phase with a false alarm is left out."""
    kept = {
        phase: [r[phase] for r in repetitions if not r[phase]["false_alarms_before"]] for phase in ("armed", "observed")
    }
    figures = {
        "restored_ms": ("armed", "last_bad_model_answer_ms"),
        "t6_ms": ("armed", "t6_ms"),
        "t7_ms": ("armed", "t7_ms"),
        "rearguard_recorded_armed_ms": ("armed", "rearguard_recorded_ms"),
        "rearguard_message_armed_ms": ("armed", "rearguard_message_ms"),
        "fast_alert_armed_ms": ("armed", "fast_alert_ms"),
        "slow_alert_armed_ms": ("armed", "slow_alert_ms"),
        "rearguard_recorded_observed_ms": ("observed", "rearguard_recorded_ms"),
        "rearguard_message_observed_ms": ("observed", "rearguard_message_ms"),
        "fast_alert_observed_ms": ("observed", "fast_alert_ms"),
        "slow_alert_observed_ms": ("observed", "slow_alert_ms"),
        "bad_answers_armed": ("armed", "bad_answers"),
        "bad_answers_observed": ("observed", "bad_answers"),
        "others_share_armed": ("armed", "others_share"),
        "others_share_observed": ("observed", "others_share"),
    }
    found: dict[str, Any] = {
        name: _spread([{**p, **p["cpu"]}[field] for p in kept[phase]]) for name, (phase, field) in figures.items()
    }
    restored = found["restored_ms"]["median"]
    for pair in _peers.PAIRS:
        alert = found[f"{pair.name}_alert_observed_ms"]["median"]
        ratio = round(alert / restored, 2) if alert is not None and restored else None
        found[f"{pair.name}_alert_over_restored_ratio_of_medians"] = ratio
    return found | {"phases_left_out": 2 * len(repetitions) - sum(len(x) for x in kept.values())}


def _spread(values: list[float | None]) -> dict[str, Any]:
    """`missing` counts the phases in which it did not happen."""
    known = [v for v in values if v is not None]
    if not known:
        return {"n": 0, "missing": len(values), "min": None, "median": None, "max": None}
    middle = median(known)
    return {
        "n": len(known),
        "missing": len(values) - len(known),
        "min": min(known),
        "median": round(middle, 3),
        "max": max(known),
    }


def options() -> tuple[list[str], list[int], int]:
    """Breaches, repetitions of each, seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--breach", default="errors,latency", help="errors, latency or both (compliance has no exporter)"
    )
    parser.add_argument("--repetitions", default="5", help="one number, or one for each breach: 5,3")
    parser.add_argument("--seed", type=int, default=1, help="of the pauses before a switch")
    given = parser.parse_args()
    breaches = given.breach.split(",")
    if not set(breaches) <= set(_peers.ALERTS) or len(set(breaches)) != len(breaches):
        parser.error(f"--breach: {given.breach} is not among {', '.join(_peers.ALERTS)}")
    counts = given.repetitions.split(",")
    counts = counts * len(breaches) if len(counts) == 1 else counts
    if len(counts) != len(breaches) or not all(c.isdecimal() and int(c) >= 1 for c in counts):
        parser.error(f"--repetitions: {given.repetitions} is not one number from 1, nor one for each breach")
    return breaches, [int(c) for c in counts], given.seed


def measure(
    breaches: list[str], counts: list[int], seed: int, binaries: _peers.Binaries, folder: Path
) -> dict[str, Any]:
    """Everything, breach by breach, in an empty folder."""
    expected_s = sum(SETUP_S + count * REPETITION_S for count in counts)
    plan = ", ".join(f"{b} x {c}" for b, c in zip(breaches, counts, strict=True))
    say(f"Plan: {plan}; each armed, then observed. About {expected_s / 60:.0f} min; load {os.getloadavg()[0]:.2f}.")
    started = time.monotonic()
    by_breach: dict[str, Any] = {}
    left_s = expected_s
    for breach, count in zip(breaches, counts, strict=True):
        repetitions: list[dict[str, Any]] = []
        stage = _stage.Stage(breach, folder / breach, binaries, seed, say)

        left_s -= SETUP_S
        ended_early = ""
        try:
            for found in stage.repeat(count):
                repetitions.append(found)
                left_s -= REPETITION_S
                took_s = time.monotonic() - started
                say(f"{len(repetitions)} of {count} done after {took_s:.0f} s; about {left_s / 60:.0f} min to go")
        except RearguardError as error:
            if not repetitions:
                raise
            say(f"{breach} ended early: {error.code}: {error.message}")
            ended_early = error.code
        finally:
            stage.close()
        by_breach[breach] = {
            "policy": stage.policy,
            "ended_early": ended_early,
            "summary": summary(repetitions),
            "repetitions": repetitions,
        }
    return {
        "unit": "ms since the first bad answer, unless the name says otherwise",
        "phases": {
            "armed": "Rearguard rolls back by itself; the slow pair has not filled its window by then, and could not fire on "
            "a breach that ends in seconds",
            "observed": "the same bad model with Rearguard in observe mode (not armed), until both alerts came or time is up",
            "healthy_before_s": {
                "armed": [_stage.HEALTHY_ARMED_S, _stage.HEALTHY_ARMED_S + _peers.FAST.scrape_s],
                "observed": [_stage.HEALTHY_OBSERVED_S, _stage.HEALTHY_OBSERVED_S + _peers.SLOW.scrape_s],
            },
            "at_most_s": {"armed": _stage.ARMED_PATIENCE_S, "observed": _stage.OBSERVED_PATIENCE_S},
        },
        "peers": binaries.versions(),
        "seed": seed,
        "by_breach": by_breach,
        "seconds_taken": round(time.monotonic() - started),
    }


def main() -> int:
    """Measure, write the JSON, print one line a breach."""
    breaches, counts, seed = options()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts background jobs with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    folder: Path | None = None
    try:
        binaries = _peers.find_binaries()
        folder = Path(tempfile.mkdtemp(prefix="rearguard-benchmark-"))
        answer = measure(breaches, counts, seed, binaries, folder)
    except RearguardError as error:
        say(f"{error.code}: {error.message}\n{error.hint}")
        return error.exit_code  # the folder stays: it holds what each process said
    except KeyboardInterrupt:
        if folder is not None:
            shutil.rmtree(folder)
        say("interrupted; nothing was written")
        return 130
    shutil.rmtree(folder)
    path = record("breach_to_restored", QUESTION, answer)
    for breach, found in answer["by_breach"].items():
        s = found["summary"]
        print(
            f"{breach}: median restored {s['restored_ms']['median']} ms; alert fast {s['fast_alert_observed_ms']['median']} ms, "
            f"slow {s['slow_alert_observed_ms']['median']} ms"
        )
    print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
