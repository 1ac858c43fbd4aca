"""What each format is taken in by: its state or its answers, twice the same, and what was registered ever after."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from one_place import SETTINGS
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression

from rearguard.checkpoints import load_probe, verification
from rearguard.checkpoints.load_probe import cold_load
from rearguard.config.templates import playbook_template
from rearguard.database import open_database, sql
from rearguard.edge import SystemClock
from rearguard.errors import IntegrityError, RearguardError, RefusedError, UsageError
from rearguard.evidence.log import read
from rearguard.model.checkpoint import Checkpoint, CheckpointPolicy
from rearguard.officer import checkpoints, registration
from rearguard.officer.office import Office

MLFLOW = Path(__file__).resolve().parents[1] / "data" / "mlflow"
ROW = '{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 1]}]}\n'
ALLOWED = CheckpointPolicy(unsafe_formats=("sklearn-joblib",))


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    state = tmp_path / "state"
    state.mkdir()
    (state / "rearguard.yaml").write_text(SETTINGS)
    (state / "rollback_playbook.yaml").write_text(playbook_template())
    opened = Office(
        state=state, settings_path=state / "rearguard.yaml", database=open_database(state), clock=SystemClock()
    )
    yield opened
    opened.close()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "weights").mkdir()
    save_file({"a": np.arange(6, dtype="<f4"), "b": np.ones(2, dtype="<i8")}, tmp_path / "weights" / "m.safetensors")
    return tmp_path / "weights"


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    (tmp_path / "golden.jsonl").write_text(ROW)
    return tmp_path / "golden.jsonl"


def add(office: Office, path: Path, golden_file: Path | None = None, version: str = "v1") -> Checkpoint:
    return registration.add(office, path, service="fraud", version=version, golden_file=golden_file)


def bodies(office: Office, kind: str) -> list[dict[str, Any]]:
    with office.database.reading() as connection:
        return [record.body for record in read(connection) if record.kind == kind]


def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str, **options: Any) -> Path:
    """A format of a third party, installed for this test, and a folder of it."""
    site = tmp_path / f"site-{name}"
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[rearguard.loaders]\n{name} = {name}_format:FORMAT\n")
    words = {"name": name, "load": f"{name}_loader:load", "suffixes": (f".{name}",), "predicts": False, **options}
    (site / f"{name}_format.py").write_text(
        "from rearguard.ports import ModelFormat\n"
        f"FORMAT = ModelFormat({', '.join(f'{k}={v!r}' for k, v in words.items())})\n"
    )
    (site / f"{name}_loader.py").write_text(body)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    (tmp_path / name).mkdir()
    (tmp_path / name / f"m.{name}").write_text("anything")
    return tmp_path / name


STATE = "class M:\n    def state_sha256(self):\n        {how}\ndef load(path, trusted_types):\n    return M()\n"


# --- proven by the state


def test_weights_are_taken_in_without_a_golden_set(office: Office, weights: Path) -> None:
    found = add(office, weights)
    assert (found.format, found.golden_sha256, found.reproducible) == ("safetensors", "", "bitwise")
    assert len(found.state_sha256) == 64
    assert found.verified_at is not None


def test_the_evidence_says_which_state_was_proven(office: Office, weights: Path) -> None:
    found = add(office, weights)
    assert bodies(office, "checkpoint_verified")[0]["state_sha256"] == found.state_sha256
    assert bodies(office, "checkpoint_added")[0]["golden_requests"] == 0


def test_a_golden_set_for_weights_is_refused(office: Office, weights: Path, golden: Path) -> None:
    with pytest.raises(UsageError) as refused:
        add(office, weights, golden)
    assert refused.value.code == "format_answers_nothing"


def test_a_format_that_tells_no_state_needs_a_golden_set(office: Office) -> None:
    with pytest.raises(UsageError) as refused:
        add(office, MLFLOW / "skops")
    assert (refused.value.code, refused.value.hint.startswith("--golden FILE")) == ("golden_required", True)


def test_a_state_that_is_not_the_registered_one_fails_the_verification(office: Office, weights: Path) -> None:
    found = add(office, weights)
    other = replace(found, state_sha256="0" * 64)
    outcome = verification.verify(other, office.store, office.settings.checkpoints, office.clock)
    assert (outcome.ok, outcome.code) == (False, "state_differs")


def test_a_state_that_was_not_known_is_learnt_by_the_first_proof(office: Office, weights: Path) -> None:
    """As of an import that does not tell it: two cold loads agree on it, and from then on it is the yardstick."""
    found = add(office, weights)
    with office.database.transaction() as connection:
        connection.execute(sql("UPDATE checkpoints SET state_sha256 = '', reproducible = ''"))
    unknown = checkpoints.find(office, service="fraud", version="v1")
    assert unknown.state_sha256 == ""
    assert checkpoints.verify(office, unknown).state_sha256 == found.state_sha256


# --- reproducible (R17)


def test_a_loader_with_a_random_state_is_not_reproducible(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = STATE.format(how="import os; return os.urandom(32).hex()")
    folder = plugin(tmp_path, monkeypatch, "chance", body, tells_state=True)
    with pytest.raises(IntegrityError) as refused:
        add(office, folder)
    assert refused.value.code == "not_reproducible"
    assert checkpoints.list_checkpoints(office) == ()


ANSWERS = (
    "import os, numpy as np\n"
    "class M:\n    def predict(self, inputs):\n        return {{'y': np.array([1.0 + {noise}])}}\n"
    "def load(path, trusted_types):\n    return M()\n"
)


@pytest.mark.parametrize(
    ("noise", "expected"),
    [
        ("0.0", "bitwise"),
        ("int.from_bytes(os.urandom(2), 'big') * 1e-12", "tolerance"),
        ("int.from_bytes(os.urandom(4), 'big')", "not_reproducible"),
    ],
)
def test_how_two_loads_agreed_is_recorded(
    office: Office, tmp_path: Path, golden: Path, monkeypatch: pytest.MonkeyPatch, noise: str, expected: str
) -> None:
    """The tolerance is 1e-6 + 1e-5 of the value: noise of 6.6e-8 is within, noise of thousands is not."""
    folder = plugin(tmp_path, monkeypatch, "noisy", ANSWERS.format(noise=noise), predicts=True)
    try:
        found = add(office, folder, golden).reproducible
    except IntegrityError as error:
        found = error.code
    assert found == expected


def test_a_third_party_format_is_recognised_proven_and_told(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = plugin(tmp_path, monkeypatch, "third", STATE.format(how="return '1' * 64"), tells_state=True)
    assert add(office, folder).format == "third"


def test_what_loaded_it_is_recorded(office: Office, golden: Path) -> None:
    add(office, MLFLOW / "skops", golden)
    libraries = bodies(office, "checkpoint_verified")[0]["libraries"]
    assert {"scikit-learn", "skops"} <= set(libraries)


# --- MLflow folders that MLflow wrote


def test_an_mlflow_folder_answers_through_our_loader(tmp_path: Path) -> None:
    """y = x @ [[1], [2]], so (3, 4) gives 11."""
    x = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [3, 4]}
    loaded = cold_load(
        folder=MLFLOW / "onnx",
        format="mlflow",
        requests=[{"inputs": [x]}],
        policy=CheckpointPolicy(),
        clock=SystemClock(),
    )
    assert loaded.answers[0][0]["data"] == [11.0]


def test_a_pickled_flavour_is_refused_by_the_look(office: Office, golden: Path) -> None:
    for allowed in (CheckpointPolicy(), ALLOWED):
        office.settings = replace(office.settings, checkpoints=allowed)
        with pytest.raises(RefusedError) as refused:
            add(office, MLFLOW / "cloudpickle", golden)
        assert refused.value.code == "unsafe_format"


def description(tmp_path: Path, text: str) -> Path:
    shutil.copytree(MLFLOW / "skops", tmp_path / "model")
    (tmp_path / "model" / "MLmodel").write_text(text)
    return tmp_path / "model"


SKLEARN = "flavors:\n  sklearn:\n    serialization_format: {how}\n    pickled_model: {file}\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (SKLEARN.format(how="cloudpickle", file="model.skops"), "unsafe_format"),
        (SKLEARN.format(how="joblib", file="model.skops"), "unsafe_format"),
        (SKLEARN.format(how="skops", file="../model.skops"), "model_unreadable"),
        (SKLEARN.format(how="skops", file="/etc/passwd"), "model_unreadable"),
        (SKLEARN.format(how="skops", file="absent.skops"), "model_unreadable"),
        (SKLEARN.format(how="skops", file="MLmodel"), "model_unreadable"),
        ("flavors:\n  python_function:\n    loader_module: os\n", "unsupported_model"),
        ("flavors: [sklearn]\n", "model_unreadable"),
        ("just text\n", "model_unreadable"),
        ("a: &x 1\nflavors: *x\n", "model_unreadable"),
        ("flavors: !!python/object/apply:os.system [true]\n", "model_unreadable"),
        ("flavors: {}\nflavors: {}\n", "model_unreadable"),
        ("a: " + "[" * 100_000, "model_unreadable"),
        ("a: 1\n---\nb: 2\n", "model_unreadable"),
        ("x: " + "y" * 300_000, "model_unreadable"),
    ],
)
def test_a_description_that_is_not_sound_is_refused(tmp_path: Path, text: str, code: str) -> None:
    from rearguard.loaders.mlflow import load

    with pytest.raises(RearguardError) as refused:
        load(description(tmp_path, text), ())
    assert refused.value.code == code


# --- a format that runs code


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    (tmp_path / "pickled").mkdir()
    model = LogisticRegression().fit(np.array([[0.0, 0.0], [1.0, 1.0]]), [0, 1])
    joblib.dump(model, tmp_path / "pickled" / "m.joblib")
    return tmp_path / "pickled"


def test_a_good_joblib_is_refused_by_default(office: Office, pickled: Path, golden: Path) -> None:
    with pytest.raises(RefusedError) as refused:
        add(office, pickled, golden)
    assert (refused.value.code, refused.value.exit_code) == ("unsafe_format", 30)


def test_a_good_joblib_is_proven_in_the_sandbox_where_the_policy_allows(
    office: Office, pickled: Path, golden: Path
) -> None:
    office.settings = replace(office.settings, checkpoints=ALLOWED)
    found = add(office, pickled, golden)
    assert (found.format, found.verified_at is not None) == ("sklearn-joblib", True)
    assert any(line.startswith("suspicious: ") for line in bodies(office, "checkpoint_verified")[0]["scan"])


def test_a_policy_that_no_longer_allows_it_fails_the_next_verification(
    office: Office, pickled: Path, golden: Path
) -> None:
    office.settings = replace(office.settings, checkpoints=ALLOWED)
    found = add(office, pickled, golden)
    outcome = verification.verify(found, office.store, CheckpointPolicy(), office.clock)
    assert (outcome.ok, outcome.code) == (False, "unsafe_format")


def test_what_the_scanner_calls_dangerous_is_refused_whatever_the_policy(
    office: Office, tmp_path: Path, golden: Path
) -> None:
    import os
    import pickle

    class Call:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, ("true",)

    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "m.pkl").write_bytes(pickle.dumps(Call()))
    office.settings = replace(office.settings, checkpoints=ALLOWED)
    with pytest.raises(RefusedError) as refused:
        add(office, tmp_path / "evil", golden)
    assert refused.value.code == "unsafe_model"


def test_a_load_that_wants_more_memory_than_the_sandbox_has_fails(pickled: Path) -> None:
    policy = replace(ALLOWED, sandbox_memory_bytes=64 << 20)
    with pytest.raises(IntegrityError) as refused:
        cold_load(folder=pickled, format="sklearn-joblib", requests=[], policy=policy, clock=SystemClock())
    assert refused.value.code == "load_failed"


# --- the folder somebody stands in, and what a load process says


def test_a_module_beside_the_model_is_not_imported(
    office: Office, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python would look for modules in the folder that the command was started in."""
    (weights / "json.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    monkeypatch.chdir(weights)
    add(office, weights)
    assert not (tmp_path / "canary").exists()


GOOD: dict[str, Any] = {
    "ok": True, "load_ms": 1, "import_ms": 1, "peak_rss_bytes": 1, "answers": [], "state_sha256": "", "libraries": {},
    "scan": [],
}  # fmt: skip


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"nonsense",
        b"[]",
        b'{"ok": true}',
        json.dumps(GOOD | {"load_ms": 1.5}).encode(),
        json.dumps(GOOD | {"state_sha256": "x"}).encode(),
        json.dumps(GOOD | {"answers": [{"outputs": [1]}]}).encode(),
        json.dumps(GOOD | {"libraries": 1}).encode(),
        b'{"ok": false, "code": "Robert\\u001b[2J", "message": "x"}',
    ],
)
def test_whatever_a_load_process_says_is_read_with_care(said: bytes) -> None:
    with pytest.raises(IntegrityError) as refused:
        load_probe._read_answer(said, b"", 0, 0, ())
    assert refused.value.code == "load_failed"


def test_what_a_load_process_says_cannot_steer_a_terminal() -> None:
    with pytest.raises(RearguardError) as refused:
        load_probe._read_answer(b'{"ok": false, "code": "load_failed", "message": "a\\u001b[31m\\nb"}', b"", 0, 0, ())
    assert refused.value.message == "a?[31m?b"


def test_an_answer_without_an_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_probe, "MAX_ANSWER_BYTES", 1 << 20)
    process = subprocess.Popen(
        ["cat", "/dev/zero"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        with pytest.raises(IntegrityError) as refused:
            load_probe._converse(process, b"{}", 60, SystemClock())
        process.kill()
    assert refused.value.code == "load_failed"
