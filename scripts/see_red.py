"""Remove each guard in turn and require that its test goes red: the proof that a test of F1 to F19 tests something.

`python scripts/see_red.py` copies `src/`, removes one guard in the copy, runs that guard's tests against it, and expects
them to fail; before that, all tests must pass on an untouched copy. The processes that a test starts use the copy too:
PYTHONPATH goes before an editable install. Nothing in the working tree is changed.

It fails when a guard's text is not found (then the table below is out of date), when a removal is not noticed, and when
one of F1 to F19 has no test or no guard.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECOVERY = "tests/recovery/test_peer_failures.py"
VALUES = "tests/unit/test_peer_failures_values.py"
TIMEOUT_S = 600
"""Of one run of pytest; the slowest needs a minute on an idle machine."""
FAILED = 1
"""pytest's exit code for tests that ran and failed; 2 to 5 mean that they did not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A text of one file of `src/rearguard`, which stands there once, and what is put in its place."""

    file: str
    guard: str
    removed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """What keeps one of the peers' failures away, and the test that notices when it is gone."""

    failure: str
    what: str
    """What the guard does, in words for the table."""
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    """Node ids of pytest; each must fail without the guard."""


def guard(failure: str, what: str, tests: str | Sequence[str], *edits: tuple[str, str, str]) -> Guard:
    """A row of the table."""
    return Guard(
        failure=failure,
        what=what,
        edits=tuple(Edit(file=file, guard=old, removed=new) for file, old, new in edits),
        tests=(tests,) if isinstance(tests, str) else tuple(tests),
    )


JSONL = "adapters/telemetry/jsonl.py"
LITERAL = "rules/breach/literal.py"
EFFECTS = "recovery/effects.py"
GOLDEN = "recovery/proof.py"
TOO_FEW = "if finding.samples < max(1, policy.min_samples):"
SKEW = f"{VALUES}::test_f03_a_source_that_is_down_stale_or_skewed_neither_passes_nor_hides_a_breach"
PROOF = f"{RECOVERY}::test_f09_no_checkpoint_becomes_the_target_without_proof"
MISNAMED = f"{RECOVERY}::test_f05_a_misnamed_metric_is_not_evaluated_and_said_so"
AT_ONCE = f"{RECOVERY}::test_f07_two_triggers_at_once_are_one_rollback"
LIES = f"{RECOVERY}::test_f15_a_target_that_says_yes_and_goes_on_with_the_old_digest_is_never_a_success"
NOTHING = f"{VALUES}::test_f02_nothing_measured_is_inconclusive_whatever_the_minimum"

GUARDS: tuple[Guard, ...] = (
    guard(
        "F1",
        "NaN is no JSON: the line is rejected",
        f"{VALUES}::test_f01_nan_is_no_measurement_neither_a_pass_nor_a_breach",
        (JSONL, "parse_constant=_no_constant", "parse_constant=lambda _name: Decimal(0)"),
    ),
    guard(
        "F2",
        "an empty window is too few, whatever the policy says",
        NOTHING,
        (LITERAL, TOO_FEW, "if finding.samples < policy.min_samples:"),
    ),
    guard(
        "F2",
        "a missing latency stays missing",
        NOTHING,
        (
            JSONL,
            'latency_ms = None if _field(fields, "latency_ms") is None',
            'latency_ms = Decimal(0) if _field(fields, "latency_ms") is None',
        ),
    ),
    guard(
        "F2",
        "only requests end a silence, late labels do not",
        NOTHING,
        (
            "watch/watcher.py",
            "last_ns = newest[1] if newest is not None else None",
            "last_ns = self.feed.health().last_at_mono_ns",
        ),
    ),
    guard(
        "F3",
        "a source that cannot be read is silence with its code",
        f"{SKEW}[refused]",
        ("watch/watcher.py", "self._source_error = error.code", "pass"),
    ),
    guard(
        "F3",
        "a line far in the future is rejected",
        f"{SKEW}[future]",
        (JSONL, "if at_mono_ns > now.mono_ns + MAX_AHEAD_NS:", "if False:"),
    ),
    guard(
        "F3",
        "monotonic stamps of this boot count, whatever the wall clock says",
        (f"{SKEW}[wall_an_hour_ahead]", f"{SKEW}[wall_an_hour_behind]"),
        (JSONL, 'if _text(fields, "boot_id") == now.boot_id:', "if False:"),
    ),
    guard(
        "F3",
        "monotonic stamps of another boot do not",
        f"{SKEW}[another_boot]",
        (JSONL, 'if _text(fields, "boot_id") == now.boot_id:', "if True:"),
    ),
    guard(
        "F3",
        "what happened long ago does not end a silence",
        f"{SKEW}[stale]",
        ("watch/watcher.py", "if last_ns is not None and last_ns != self._seen:", "if last_ns is not None:"),
        ("watch/watcher.py", "self._heard_at = now.plus(min(0, last_ns - now.mono_ns))", "self._heard_at = now"),
    ),
    guard(
        "F4",
        "below the minimum of samples nothing is judged",
        f"{VALUES}::test_f04_below_the_minimum_of_samples_nothing_is_judged",
        (LITERAL, TOO_FEW, "if finding.samples < 1:"),
    ),
    guard(
        "F5",
        "a line without a required field is rejected, not guessed",
        f"{MISNAMED}[metric]",
        (JSONL, 'raise _RejectedLine(f"field_missing: {name}")', "return None"),
    ),
    guard(
        "F5",
        "lines of another service or environment are not taken for ours",
        (f"{MISNAMED}[service]", f"{MISNAMED}[environment]"),
        (JSONL, "if not _is_for(fields, self._place):", "if False:"),
    ),
    guard(
        "F5",
        "a silence says that lines came and were of no use",
        MISNAMED,
        ("watch/watcher.py", "reason = self._source_error or _why_nothing(", 'reason = "no_data" or _why_nothing('),
    ),
    guard(
        "F6",
        "a run that a dead officer left is taken up by the next",
        "tests/recovery/test_kill_matrix.py::test_f06_a_run_whose_watcher_is_killed_is_finished_once[activate:after_effect]",
        (
            "engine/durable.py",
            "return bool(row.executor_id != self._executor) or self._idle_twice(row.id)",
            "return False",
        ),
    ),
    guard(
        "F7",
        "a second trigger attaches to the open incident",
        f"{AT_ONCE}[another_trigger]",
        (
            "officer/incidents.py",
            "        found = _open_at(connection, place)\n        if found is not None and not _superseded(",
            "        found = None\n        if found is not None and not _superseded(",
        ),
    ),
    guard(
        "F7",
        "one open run holds the place",
        f"{AT_ONCE}[by_hand]",
        ("recovery/records.py", "if place is not None and place.open_run_id not in (None, run.id):", "if False:"),
    ),
    guard(
        "F8",
        "a pause holds back what automation would do",
        f"{RECOVERY}::test_f08_a_trigger_during_a_manual_pause_is_recorded_and_told_and_acted_on_only_after_it",
        ("rules/brakes.py", "if facts.paused:", "if False:"),
    ),
    guard(
        "F9",
        "every byte of the target is read and compared before the switch",
        (f"{PROOF}[missing]", f"{PROOF}[hash_mismatch]"),
        (EFFECTS, "check_bytes(checkpoint, context.store, context.clock)", "pass"),
    ),
    guard(
        "F9",
        "a proof that has expired is given anew",
        f"{PROOF}[too_old]",
        (
            "rules/selection.py",
            "return not 0 <= elapsed(verified_at, now).ns <= policy.max_age_s * NS_PER_S",
            "return False",
        ),
    ),
    guard(
        "F9",
        "a load that takes too long ends, and fails the proof",
        f"{PROOF}[loads_too_slowly]",
        ("checkpoints/load_probe.py", "limit_s = 2 * policy.max_load_s", "limit_s = 3600"),
        ("checkpoints/verification.py", "if loaded.load_ms >= policy.max_load_s * 1000:", "if False:"),
    ),
    guard(
        "F10",
        "a lost rung hands over to the next candidate",
        "tests/recovery/test_ladder.py::test_f10_a_target_that_breaches_too_is_left_for_the_next_in_the_same_run",
        ("recovery/rollback.py", 'if not (state.get("failure") or {}).get("lost"):', "if True:"),
    ),
    guard(
        "F11",
        "what serves is no target of its own rollback",
        f"{RECOVERY}::test_f11_with_no_target_at_all_the_run_is_refused_the_service_left_alone_and_people_are_told",
        ("rules/selection.py", 'if checkpoint.digest == active:\n        return "active"', "if False:\n        pass"),
        (
            "recovery/candidates.py",
            'row.state != "rolled_back" and row.digest != active:',
            'row.state != "rolled_back":',
        ),
    ),
    guard(
        "F12",
        "the pointer moves only to a worker that has answered",
        f"{RECOVERY}::test_f12_traffic_never_moves_before_the_target_has_answered",
        (
            "serving/fleet.py",
            "yield Slot(spec, load.worker)",
            "load.worker.kill()\n            yield Slot(spec, None)",
        ),
    ),
    guard(
        "F13",
        "what serves already is not rolled back to",
        f"{RECOVERY}::test_f13_what_is_asked_for_when_nothing_is_in_progress_touches_nothing",
        ("officer/refusals.py", "if wanted is not None and wanted.digest == active:", "if False:"),
        ("rules/selection.py", 'if checkpoint.digest == active:\n        return "active"', "if False:\n        pass"),
        (
            "recovery/candidates.py",
            'row.state != "rolled_back" and row.digest != active:',
            'row.state != "rolled_back":',
        ),
    ),
    guard(
        "F14",
        "a quarantined version that answers again is recorded and paged",
        "tests/interfaces/test_gate.py::test_f14_a_version_that_was_rolled_back_and_comes_back_around_us_is_paged",
        (
            "officer/deployments.py",
            "if digest in registry.quarantined(connection, place):\n            _page_quarantined(",
            "if False:\n            _page_quarantined(",
        ),
    ),
    guard(
        "F15",
        "an answer counts only when it carries the target's digest",
        (f"{LIES}[keeps_the_old-wrong_digest_answers]", f"{LIES}[flaps-golden_probe_failed]"),
        (GOLDEN, "if answered != digest:", "if False:"),
    ),
    guard(
        "F15",
        "an order does not outlast the run's deadline",
        f"{LIES}[hangs_on_activation-target_timeout]",
        (
            EFFECTS,
            "timeout_s = min(ORDER_TIMEOUT_S, max(LAST_ORDER_TIMEOUT_S, deadline.remaining_s()))",
            "timeout_s = 3600.0",
        ),
    ),
    guard(
        "F15",
        "what has never answered is not written down as serving",
        f"{LIES}[keeps_the_old-wrong_digest_answers]",
        ("recovery/records.py", 'answered = reason != "wrong_digest_answers"', "answered = True"),
    ),
    guard(
        "F16",
        "a good window ends the row of bad ones",
        f"{VALUES}::test_f16_blips_that_are_not_consecutive_never_add_up_to_a_breach",
        (LITERAL, 'return Streak(), Outcome.PASS, "in_limit"', 'return before, Outcome.PASS, "in_limit"'),
    ),
    guard(
        "F17",
        "an officer that hands over records nothing more, and its hand-over is no failure",
        f"{RECOVERY}::test_f17_an_officer_stopped_in_mid_run_leaves_the_service_serving_and_the_run_to_its_successor",
        ("engine/durable.py", "class HandOver(BaseException):", "class HandOver(Exception):"),
        (
            "engine/durable.py",
            "DBOS.destroy(workflow_completion_timeout_sec=0, destroy_registry=True)",
            "pass",
        ),
    ),
    guard(
        "F18",
        "an approval of a run that ended, or was called off, is refused",
        (
            "tests/interfaces/test_approve.py::test_f18_an_approval_after_the_abort_changes_nothing",
            "tests/interfaces/test_approve.py::test_f18_an_approval_after_automation_was_switched_off_changes_nothing",
        ),
        (
            "officer/approvals.py",
            "if run.state in TERMINAL or records.cancel_requested(connection, run.id):\n        how",
            "if False:\n        how",
        ),
    ),
    guard(
        "F19",
        "what somebody closed is not opened again by the same bad observations",
        "tests/recovery/test_restart.py::test_f19_a_restart_does_not_resurrect_closed_incidents[False]",
        ("officer/incidents.py", "closed = _closed_before(connection, breach)", "closed = None"),
    ),
)
FAILURES = tuple(f"F{number}" for number in range(1, 20))


def problems(guards: Sequence[Guard] = GUARDS, src: Path = ROOT / "src") -> Iterator[str]:
    """Where the table is out of date: texts that do not stand once, tests that are not there, failures without either."""
    for row in guards:
        for edit in row.edits:
            count = (src / "rearguard" / edit.file).read_text(encoding="utf-8").count(edit.guard)
            if count != 1:
                yield f"{row.failure}: the guard {edit.guard!r} stands {count} times in {edit.file}, not once"
        for node in row.tests:
            path, _, name = node.partition("::")
            file, function = ROOT / path, name.partition("[")[0]
            if not file.exists() or f"def {function}(" not in file.read_text(encoding="utf-8"):
                yield f"{row.failure}: there is no test {node}"
            elif not function.startswith(f"test_f{int(row.failure[1:]):02}_"):
                yield f"{row.failure}: the test {function} does not carry its number"
    named = numbered_tests()
    for failure in FAILURES:
        if failure not in named:
            yield f"{failure}: no test carries its number"
        if not any(row.failure == failure for row in guards):
            yield f"{failure}: no guard is named"


def numbered_tests() -> dict[str, list[str]]:
    """Test functions by the failure whose number they carry."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for number, name in re.findall(
            r"^def (?:test_f(\d\d)_(\w+))\(", file.read_text(encoding="utf-8"), re.MULTILINE
        ):
            found.setdefault(f"F{int(number)}", []).append(f"{file.relative_to(ROOT)}::test_f{number}_{name}")
    return found


class Copies:
    """Copies of `src/` in a temporary folder, and what all runs of pytest share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._prepared = folder / "prepared"

    def copy(self, name: str, edits: Sequence[Edit] = ()) -> Path:
        """`src/` under a name, with guards removed."""
        src = self._folder / name / "src"
        shutil.copytree(ROOT / "src", src, ignore=shutil.ignore_patterns("__pycache__"))
        for edit in edits:
            file = src / "rearguard" / edit.file
            text = file.read_text(encoding="utf-8")
            file.write_text(text.replace(edit.guard, edit.removed), encoding="utf-8")
        used = self._python(src, "-c", "import rearguard; print(rearguard.__file__)").stdout.strip()
        assert Path(used).is_relative_to(src), f"tests would use {used}, not the copy"
        return src

    def prepare(self, src: Path) -> None:
        """Train and prove the checkpoints of the recovery tests once for all runs."""
        self._prepared.mkdir()
        said = self._python(src, "-c", f"import pathlib, stage; stage.prepare(pathlib.Path({str(self._prepared)!r}))")
        if said.returncode:
            raise SystemExit(f"the checkpoints of the recovery tests cannot be prepared:\n{said.stderr}")

    def test(self, src: Path, nodes: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run tests against a copy."""
        words = ("-q", "-p", "no:cacheprovider", "-p", "no:randomly", f"--basetemp={src.parent / 'tmp'}")
        return self._python(src, "-m", "pytest", *words, "--tb=line", "-rN", *nodes)

    def _python(self, src: Path, *words: str) -> subprocess.CompletedProcess[str]:
        paths = {"PYTHONPATH": os.pathsep.join((str(src), str(ROOT / "tests" / "recovery")))}
        shared = {"REARGUARD_PREPARED": str(self._prepared)} if any(self._prepared.glob("*.json")) else {}
        return subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, **paths, **shared, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one removal, or the run without any, came to."""

    failure: str
    guard: str
    file: str
    tests: tuple[str, ...]
    red: bool
    """True when every test failed, and none could not be run."""
    took_s: float
    said: tuple[str, ...]
    """Where each test failed, and pytest's last line."""


def try_removal(copies: Copies, number: int, row: Guard) -> Verdict:
    """Remove one guard and run its tests: each must fail, and none may pass or break before it has begun."""
    started = time.monotonic()  # noqa: TID251 - edge: for the table
    src = copies.copy(f"without-{number}", row.edits)
    run = copies.test(src, row.tests)
    shutil.rmtree(src.parent, ignore_errors=True)
    lines = run.stdout.strip().splitlines()
    where = [line.removeprefix(f"{ROOT}/") for line in lines if re.match(r"\S+\.py:\d+: ", line)]
    return Verdict(
        failure=row.failure,
        guard=row.what,
        file=row.edits[0].file,
        tests=row.tests,
        red=run.returncode == FAILED and "passed" not in lines[-1] and "error" not in lines[-1],
        took_s=round(time.monotonic() - started, 1),  # noqa: TID251 - edge: for the table
        said=(*where, *lines[-1:]),
    )


def show(verdict: Verdict) -> str:
    """One line of the table."""
    red = "red" if verdict.red else "NOT RED"
    tests = ", ".join(node.partition("::")[2] for node in verdict.tests)
    return f"{verdict.failure:4}{red:9}{verdict.took_s:6.1f} s  {verdict.guard}  ({verdict.file})\n      {tests}"


def main() -> int:
    """0 when everything is green with the guards and red without."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("failures", nargs="*", metavar="F", help="only these, for example F9 F15; default: all")
    parser.add_argument("--json", action="store_true", help="one object instead of the table")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="removals at a time (default: 2)")
    chosen = parser.parse_args()
    rows = [row for row in GUARDS if not chosen.failures or row.failure in chosen.failures]
    stale = [p for p in problems() if not chosen.failures or p.partition(":")[0] in chosen.failures]
    say = (lambda text: print(text, file=sys.stderr)) if chosen.json else print
    for problem in stale:
        say(f"out of date  {problem}")
    verdicts: list[Verdict] = []
    green = None
    if rows and not any("stands" in problem or "no test" in problem for problem in stale):
        with tempfile.TemporaryDirectory(prefix="see-red-") as folder:
            copies = Copies(Path(folder))
            untouched = copies.copy("untouched")
            if any(node.startswith("tests/recovery/") for row in rows for node in row.tests):
                copies.prepare(untouched)
            with_guards = copies.test(untouched, sorted({node for row in rows for node in row.tests}))
            green = with_guards.returncode == 0
            say(f"with all guards: {with_guards.stdout.strip().rpartition(chr(10))[2]}")
            if green:
                with ThreadPoolExecutor(chosen.jobs) as pool:
                    for verdict in pool.map(lambda item: try_removal(copies, *item), enumerate(rows)):
                        verdicts.append(verdict)
                        say(show(verdict))
            else:
                say(with_guards.stdout[-4000:])
    unnoticed = [v for v in verdicts if not v.red]
    if chosen.json:
        print(json.dumps({"green": green, "out_of_date": stale, "removals": [asdict(v) for v in verdicts]}, indent=2))
    else:
        say(f"{len(verdicts) - len(unnoticed)} of {len(rows)} removals went red")
    return 0 if green and not stale and not unnoticed else 1


if __name__ == "__main__":
    sys.exit(main())
