"""Model formats: detection, refusal of pickles and untrusted types, and real models that answer."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import skops.io
from sklearn.datasets import load_digits, load_iris
from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest, RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from rearguard.errors import ConfigError, RefusedError, UsageError
from rearguard.loaders import answer, get_loader, installed_loaders
from rearguard.loaders.detection import detect

ONNX_SAMPLES = Path(onnxruntime.__file__).parent / "datasets"


def fp64(rows: np.ndarray[Any, Any], name: str = "x") -> dict[str, Any]:
    return {"name": name, "shape": list(rows.shape), "datatype": "FP64", "data": rows.reshape(-1).tolist()}


def save(folder: Path, estimator: Any) -> Path:
    folder.mkdir(exist_ok=True)
    skops.io.dump(estimator, folder / "model.skops")
    return folder


def onnx_folder(tmp_path: Path, sample: str) -> Path:
    shutil.copy(ONNX_SAMPLES / sample, tmp_path / "model.onnx")
    return tmp_path


# --- detection


def test_one_onnx_file_is_onnx(tmp_path: Path) -> None:
    assert detect(onnx_folder(tmp_path, "sigmoid.onnx")).name == "onnx"


def test_one_skops_file_is_sklearn_skops(tmp_path: Path) -> None:
    assert detect(save(tmp_path, LinearRegression())).name == "sklearn-skops"


@pytest.mark.parametrize("name", ["m.pkl", "m.pickle", "m.joblib", "m.dill", "m.cloudpickle", "M.PKL"])
def test_a_format_that_is_unpickled_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(RefusedError) as refused:
        detect(tmp_path)
    assert refused.value.code == "unsafe_format"
    assert refused.value.hint.startswith("save it as skops or ONNX:")


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_a_pickle_under_a_harmless_name_is_refused(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "model.onnx").write_bytes(pickle.dumps({"a": 1}, protocol))
    with pytest.raises(RefusedError) as refused:
        detect(tmp_path)
    assert refused.value.code == "unsafe_format"


def test_a_pickled_call_without_a_protocol_mark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.skops").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(RefusedError) as refused:
        detect(tmp_path)
    assert refused.value.code == "unsafe_format"


def test_a_zip_with_a_pickle_inside_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.skops", "w") as archive:
        archive.writestr("archive/data.pkl", b"anything")
    with pytest.raises(RefusedError) as refused:
        detect(tmp_path)
    assert refused.value.code == "unsafe_format"


def test_external_weights_beside_an_onnx_may_be_called_bin(tmp_path: Path) -> None:
    (onnx_folder(tmp_path, "sigmoid.onnx") / "weights.bin").write_bytes(bytes(64))
    assert detect(tmp_path).name == "onnx"


def test_an_unknown_format_lists_the_accepted_ones(tmp_path: Path) -> None:
    (tmp_path / "model.xyz").write_bytes(b"anything")
    with pytest.raises(UsageError) as refused:
        detect(tmp_path)
    assert refused.value.code == "unknown_format"
    assert "onnx" in refused.value.hint
    assert "sklearn-skops" in refused.value.hint


def test_two_formats_in_one_folder_are_refused(tmp_path: Path) -> None:
    save(onnx_folder(tmp_path, "sigmoid.onnx"), LinearRegression())
    with pytest.raises(UsageError) as refused:
        detect(tmp_path)
    assert refused.value.code == "unknown_format"


# --- loaders by name


def test_the_built_in_loaders_are_installed() -> None:
    assert {"onnx", "sklearn-skops"} <= set(installed_loaders())


def test_an_unknown_loader_lists_what_is_installed() -> None:
    with pytest.raises(ConfigError) as refused:
        get_loader("torch")
    assert refused.value.code == "unknown_loader"
    assert "sklearn-skops" in refused.value.accepted


def test_a_loader_provided_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "other_loader-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: other-loader\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[rearguard.loaders]\nonnx = other_loader:load\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError) as refused:
        get_loader("onnx")
    assert refused.value.code == "unknown_loader"
    assert "other_loader:load" in refused.value.message


# --- ONNX


def test_an_onnx_model_answers(tmp_path: Path) -> None:
    # sigmoid(0) = 1 / (1 + e^0) = 0.5
    model = get_loader("onnx")(onnx_folder(tmp_path, "sigmoid.onnx"), ())
    zeros = {"name": "x", "shape": [3, 4, 5], "datatype": "FP32", "data": [0] * 60}
    assert answer(model, {"inputs": [zeros]}) == [
        {"name": "y", "shape": [3, 4, 5], "datatype": "FP32", "data": [0.5] * 60}
    ]


def test_a_real_onnx_classifier_tells_python_from_javascript(
    tmp_path: Path, require_part: Callable[[str, bool, str], None]
) -> None:
    found = importlib.util.find_spec("magika")
    require_part("magika", found is not None, "pip install magika")
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent / "models" / "standard_v3_3"
    shutil.copy(package / "model.onnx", tmp_path / "model.onnx")
    settings = json.loads((package / "config.min.json").read_text())
    labels, beg, pad = settings["target_labels_space"], settings["beg_size"], settings["padding_token"]
    source = (
        b"import os\n\n\ndef main() -> None:\n    print(os.getcwd())\n\n\nif __name__ == '__main__':\n    main()\n" * 4
    )
    window = [*source, *[pad] * beg][:beg] + [*[pad] * beg, *source][-settings["end_size"] :]
    request = {"inputs": [{"name": "bytes", "shape": [1, len(window)], "datatype": "INT32", "data": window}]}
    scores = answer(get_loader("onnx")(tmp_path, ()), request)[0]["data"]
    assert labels[int(np.argmax(scores))] == "python"


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "z", "shape": [3, 4, 5], "datatype": "FP32", "data": [0] * 60},
        {"name": "x", "shape": [3, 4, 5], "datatype": "FP64", "data": [0] * 60},
        {"name": "x", "shape": [3, 5, 4], "datatype": "FP32", "data": [0] * 60},
        {"name": "x", "shape": [60], "datatype": "FP32", "data": [0] * 60},
    ],
    ids=["name", "datatype", "dimension", "rank"],
)
def test_inputs_that_the_graph_does_not_declare_are_the_clients_mistake(tmp_path: Path, wrong: dict[str, Any]) -> None:
    model = get_loader("onnx")(onnx_folder(tmp_path, "sigmoid.onnx"), ())
    with pytest.raises(UsageError) as refused:
        answer(model, {"inputs": [wrong]})
    assert refused.value.code == "bad_tensor"


def test_an_onnx_output_that_is_no_tensor_is_refused_at_load(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        get_loader("onnx")(onnx_folder(tmp_path, "logreg_iris.onnx"), ())
    assert refused.value.code == "unsupported_model"


def test_broken_onnx_bytes_are_unreadable(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07broken")
    with pytest.raises(UsageError) as refused:
        get_loader("onnx")(tmp_path, ())
    assert refused.value.code == "model_unreadable"


def test_an_output_that_the_model_lacks_is_the_clients_mistake(tmp_path: Path) -> None:
    model = get_loader("onnx")(onnx_folder(tmp_path, "sigmoid.onnx"), ())
    zeros = {"name": "x", "shape": [3, 4, 5], "datatype": "FP32", "data": [0] * 60}
    with pytest.raises(UsageError) as refused:
        answer(model, {"inputs": [zeros], "outputs": [{"name": "nope"}]})
    assert refused.value.code == "bad_tensor"


# --- scikit-learn


def test_a_digits_pipeline_answers_label_and_probability(tmp_path: Path) -> None:
    images, digits = load_digits(return_X_y=True)
    folder = save(tmp_path, make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(images, digits))
    label, probability = answer(get_loader("sklearn-skops")(folder, ()), {"inputs": [fp64(images[:50])]})
    assert (label["name"], label["datatype"], label["shape"]) == ("label", "INT64", [50])
    assert (probability["name"], probability["datatype"], probability["shape"]) == ("probability", "FP64", [50, 10])
    # The model was trained on these images: nearly all must come back as what a person read.
    assert sum(a == b for a, b in zip(label["data"], digits[:50].tolist(), strict=True)) >= 48


def test_a_regressor_has_a_label_only(tmp_path: Path) -> None:
    line = LinearRegression().fit([[0.0], [1.0]], [1.0, 3.0])
    (label,) = answer(get_loader("sklearn-skops")(save(tmp_path, line), ()), {"inputs": [fp64(np.array([[2.0]]))]})
    assert label["data"] == pytest.approx([5.0])  # y = 2 x + 1


def test_named_columns_keep_the_order_given(tmp_path: Path) -> None:
    plane = LinearRegression().fit([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0.0, 1.0, 10.0])
    model = get_loader("sklearn-skops")(save(tmp_path, plane), ())
    columns = [fp64(np.array([2.0]), "first"), fp64(np.array([[3.0]]), "second")]
    assert answer(model, {"inputs": columns})[0]["data"] == pytest.approx([32.0])  # x + 10 y


def test_columns_of_text_become_a_table_of_objects(tmp_path: Path) -> None:
    rows = np.array([["red", "s"], ["blue", "l"]], dtype=object)
    folder = save(tmp_path, make_pipeline(OneHotEncoder(), LogisticRegression()).fit(rows, ["no", "yes"]))
    columns = [
        {"name": "colour", "shape": [1], "datatype": "BYTES", "data": ["blue"]},
        {"name": "size", "shape": [1], "datatype": "BYTES", "data": ["l"]},
    ]
    label = answer(get_loader("sklearn-skops")(folder, ()), {"inputs": columns})[0]
    assert (label["datatype"], label["data"]) == ("BYTES", ["yes"])


def test_one_text_tensor_is_a_list_of_documents(tmp_path: Path) -> None:
    texts = make_pipeline(CountVectorizer(), MultinomialNB()).fit(["good fine", "bad poor"], [1, 0])
    documents = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["poor", "fine"]}
    assert answer(get_loader("sklearn-skops")(save(tmp_path, texts), ()), {"inputs": [documents]})[0]["data"] == [0, 1]


def test_a_wrong_number_of_columns_is_the_clients_mistake(tmp_path: Path) -> None:
    model = get_loader("sklearn-skops")(save(tmp_path, LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])), ())
    with pytest.raises(UsageError) as refused:
        answer(model, {"inputs": [fp64(np.zeros((1, 2)))]})
    assert refused.value.code == "bad_tensor"


def test_a_models_own_exception_passes_through(tmp_path: Path) -> None:
    encoder = make_pipeline(OneHotEncoder(handle_unknown="error"), LogisticRegression())
    folder = save(tmp_path, encoder.fit(np.array([["a"], ["b"]], dtype=object), [0, 1]))
    unseen = {"name": "x", "shape": [1, 1], "datatype": "BYTES", "data": ["c"]}
    model = get_loader("sklearn-skops")(folder, ())
    with pytest.raises(ValueError, match="unknown categories"):
        answer(model, {"inputs": [unseen]})


def test_types_that_nobody_trusts_are_refused_and_listed(tmp_path: Path) -> None:
    folder = save(tmp_path, make_pipeline(FunctionTransformer(shutil.rmtree), LinearRegression()))
    with pytest.raises(RefusedError) as refused:
        get_loader("sklearn-skops")(folder, ())
    assert refused.value.code == "untrusted_types"
    assert "shutil.rmtree" in refused.value.message


def test_a_type_that_the_service_trusts_is_loaded(tmp_path: Path) -> None:
    folder = save(tmp_path, make_pipeline(FunctionTransformer(shutil.disk_usage), LinearRegression()))
    assert get_loader("sklearn-skops")(folder, ("shutil.disk_usage",)) is not None


@pytest.mark.parametrize(
    "estimator",
    [RandomForestClassifier(3), HistGradientBoostingClassifier(max_iter=2), IsolationForest(n_estimators=3)],
    ids=lambda e: type(e).__name__,
)
def test_tree_ensembles_load_without_extra_trust(tmp_path: Path, estimator: Any) -> None:
    flowers, kinds = load_iris(return_X_y=True)
    model = get_loader("sklearn-skops")(save(tmp_path, estimator.fit(flowers, kinds)), ())
    assert answer(model, {"inputs": [fp64(flowers[:2])]})[0]["shape"] == [2]


def test_a_tree_that_reads_a_column_beyond_its_input_is_refused(tmp_path: Path) -> None:
    flowers, kinds = load_iris(return_X_y=True)
    forest = RandomForestClassifier(3, random_state=0).fit(flowers, kinds)
    forest.estimators_[1].tree_.feature[0] = 4_000_000  # the data has 4 columns
    with pytest.raises(RefusedError) as refused:
        get_loader("sklearn-skops")(save(tmp_path, forest), ())
    assert refused.value.code == "unsafe_model"


def test_a_boosted_tree_whose_child_lies_outside_is_refused(tmp_path: Path) -> None:
    flowers, kinds = load_iris(return_X_y=True)
    boosted = HistGradientBoostingClassifier(max_iter=2).fit(flowers, kinds)
    boosted._predictors[0][0].nodes["left"][0] = 4_000_000
    with pytest.raises(RefusedError) as refused:
        get_loader("sklearn-skops")(save(tmp_path, boosted), ())
    assert refused.value.code == "unsafe_model"


def test_a_tree_that_leads_in_a_circle_is_refused(tmp_path: Path) -> None:
    flowers, kinds = load_iris(return_X_y=True)
    forest = RandomForestClassifier(3, random_state=0).fit(flowers, kinds)
    forest.estimators_[0].tree_.children_left[0] = 0
    with pytest.raises(RefusedError) as refused:
        get_loader("sklearn-skops")(save(tmp_path, forest), ())
    assert refused.value.code == "unsafe_model"


def test_broken_skops_bytes_are_unreadable(tmp_path: Path) -> None:
    (tmp_path / "model.skops").write_bytes(b"PK\x03\x04broken")
    with pytest.raises(UsageError) as refused:
        get_loader("sklearn-skops")(tmp_path, ())
    assert refused.value.code == "model_unreadable"


# --- the load probe, as the process that it is


def run_probe(order: Any) -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, "-m", "rearguard.loaders.probe"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


def test_the_probe_answers_in_a_fresh_process_and_times_it(tmp_path: Path) -> None:
    ones = {"name": "X", "shape": [3, 2], "datatype": "FP32", "data": [1] * 6}
    request = {"inputs": [ones]}
    result = run_probe(
        {"path": str(onnx_folder(tmp_path, "mul_1.onnx")), "format": "onnx", "trusted_types": [], "requests": [request]}
    )
    # mul_1 multiplies by its weights 1, 2, 3, 4, 5, 6 (the sample's own documentation).
    assert result["answers"][0]["outputs"][0]["data"] == [1, 2, 3, 4, 5, 6]
    assert 0 < result["import_ms"] <= result["load_ms"] < 30_000
    assert result["peak_rss_bytes"] > 10_000_000


def test_the_probe_reports_a_refusal_as_words(tmp_path: Path) -> None:
    result = run_probe({"path": str(tmp_path), "format": "onnx", "trusted_types": [], "requests": []})
    assert (result["ok"], result["code"]) == (False, "unknown_format")


def test_the_probe_reports_an_order_that_is_none() -> None:
    assert run_probe([])["code"] == "bad_order"


def test_a_library_that_prints_does_not_corrupt_the_probes_answer(tmp_path: Path) -> None:
    package = tmp_path / "loud_loader-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: loud-loader\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[rearguard.loaders]\nloud = loud_loader:load\n")
    (tmp_path / "loud_loader.py").write_text(
        "import os\nprint('hello from python')\nos.write(1, b'hello from C')\n"
        "def load(path, trusted_types):\n    return object()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "rearguard.loaders.probe"],
        input=json.dumps({"path": str(tmp_path), "format": "loud", "requests": []}),
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert json.loads(ended.stdout)["ok"] is True


def test_a_missing_scanner_is_named_and_nothing_is_loaded_without_it() -> None:
    program = (
        "import sys; sys.modules['picklescan'] = None\n"
        "from rearguard.loaders import get_loader\n"
        "from rearguard.errors import ConfigError\n"
        "try:\n    get_loader('sklearn-joblib')\n"
        "except ConfigError as error:\n    print(error.code, error.hint)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.stdout.split(" ", 1)[0] == "missing_extra", ended.stderr
    assert "rearguard[sklearn,scan]" in ended.stdout
