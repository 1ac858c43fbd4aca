"""scikit-learn estimators and pipelines in the skops format, which is not pickle.

A skops file names the types that it builds. A type that neither skops trusts, nor the short list here, nor the
service's own `trusted_types`, is refused before anything is built. skops checks types and not content, so the node
tables of decision trees, which scikit-learn follows without bounds checks, are checked here after loading
(https://github.com/scikit-learn/scikit-learn/pull/34558).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import skops.io
from sklearn.base import BaseEstimator
from sklearn.ensemble import IsolationForest
from sklearn.ensemble._forest import BaseForest
from sklearn.ensemble._gb import BaseGradientBoosting
from sklearn.ensemble._hist_gradient_boosting.gradient_boosting import BaseHistGradientBoosting
from sklearn.tree import BaseDecisionTree
from sklearn.tree._tree import Tree

from rearguard.errors import RefusedError, UsageError

Array = np.ndarray[Any, Any]

_LOSSES = (
    "AbsoluteError",
    "ExponentialLoss",
    "HalfBinomialLoss",
    "HalfGammaLoss",
    "HalfMultinomialLoss",
    "HalfPoissonLoss",
    "HalfSquaredError",
    "HuberLoss",
    "PinballLoss",
)
_LINKS = ("HalfLogitLink", "IdentityLink", "Interval", "LogitLink", "LogLink", "MultinomialLogit")

TRUSTED_BY_US = frozenset(
    {
        # Node tables of trees and forests. Building one copies numbers into arrays and runs no code of the file;
        # their danger, an index out of the table, is what `_check_trees` looks for.
        "sklearn.tree._tree.Tree",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        # Bin edges of histogram boosting: an array of thresholds, searched with bounds.
        "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
        # Loss and link functions kept in a fitted booster: stateless formulas without a constructor argument that
        # is called. skops trusts them itself since 0.15; 0.14 does not.
        *(f"sklearn._loss.loss.{name}" for name in _LOSSES),
        *(f"sklearn._loss._loss.Cy{name}" for name in _LOSSES),
        *(f"sklearn._loss.link.{name}" for name in _LINKS),
        # What a perceptron leaves behind from training: arrays and rates; prediction does not touch it.
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        # A calibrated classifier's parts: two numbers, and a list of estimators that are audited themselves.
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        # A dict with attribute access (named estimators of stacking and voting).
        "sklearn.utils._bunch.Bunch",
        # What a grid search leaves behind: how folds were cut and that the estimator's own score was used. Plain
        # attributes; prediction does not touch them.
        "sklearn.metrics._scorer._PassthroughScorer",
        "sklearn.model_selection._split.KFold",
        "sklearn.model_selection._split.StratifiedKFold",
        # Distance functions of neighbours: formulas over two vectors, with a length that the tree gives.
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.metrics._dist_metrics.ManhattanDistance64",
        "sklearn.metrics._dist_metrics.ChebyshevDistance64",
    }
)
"""Library types that run no code of the file when they are built. Not in it, on purpose: `KDTree` and `BallTree`
(unchecked indices and no check of ours yet), `functools.partial`, function transformers and everything that calls a
function named by the file."""


class SklearnModel:
    """An estimator behind named tensors."""

    def __init__(self, estimator: Any) -> None:
        self._estimator = estimator

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """`label`, and `probability` (FP64, one column a class) when the estimator has it.

        One 2-D tensor is used as X; one 1-D text tensor is a list of documents; several tensors of one column each
        become the columns of X in the order given. Raises `UsageError` (`bad_tensor`) for anything else.
        """
        table = _as_table(inputs)
        wanted = getattr(self._estimator, "n_features_in_", None)
        if wanted is not None and table.ndim == 2 and table.shape[1] != wanted:
            raise UsageError(
                "bad_tensor", f"{table.shape[1]} columns, the model needs {wanted}", f'set "shape": [rows, {wanted}]'
            )
        if table.shape[0] == 0:
            raise UsageError("bad_tensor", "there is no row to predict")
        outputs = {"label": np.asarray(self._estimator.predict(table))}
        if hasattr(self._estimator, "predict_proba"):
            outputs["probability"] = np.asarray(self._estimator.predict_proba(table), dtype=np.float64)
        return outputs

    def example_inputs(self) -> dict[str, Array] | None:
        """One row of zeros, or None when the estimator does not know its number of columns."""
        wanted = getattr(self._estimator, "n_features_in_", None)
        return None if wanted is None else {"x": np.zeros((1, wanted), dtype=np.float64)}


def load(path: Path, trusted_types: tuple[str, ...]) -> SklearnModel:
    """The one estimator in the folder `path`.

    Raises `RefusedError` (`untrusted_types`, listing them; `unsafe_model` for a tree whose nodes point outside it)
    and `UsageError` (`unknown_format`, `model_unreadable`, `unsupported_model`).
    """
    files = sorted(path.glob("*.skops"))
    if len(files) != 1:
        raise UsageError("unknown_format", f"{path} holds {len(files)} files named *.skops", "keep exactly one")
    file = files[0]
    try:
        named = skops.io.get_untrusted_types(file=file)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise _unreadable(file, error) from error
    refused = sorted(set(named) - TRUSTED_BY_US - set(trusted_types))
    if refused:
        raise RefusedError(
            "untrusted_types",
            f"{file.name} builds types that are not trusted: {', '.join(refused)}",
            "if you know them, add them to checkpoints.trusted_types",
        )
    try:
        estimator = skops.io.load(file, trusted=list(named))
    except Exception as error:  # each library class in the file may raise its own while its state is set
        raise _unreadable(file, error) from error
    _check_trees(file, estimator)
    if not hasattr(estimator, "predict"):
        raise UsageError("unsupported_model", f"{file.name} is a {type(estimator).__name__} that cannot predict")
    return SklearnModel(estimator)


def _unreadable(file: Path, error: Exception) -> UsageError:
    return UsageError("model_unreadable", f"{file.name}: {type(error).__name__}: {error}"[:400], "save it again")


def _as_table(inputs: dict[str, Array]) -> Array:
    arrays = list(inputs.values())
    if len(arrays) == 1:
        only = arrays[0]
        if only.ndim == 2 or (only.ndim == 1 and only.dtype == object):
            return only
        raise UsageError("bad_tensor", f"one tensor of shape {list(only.shape)}", "send shape [rows, columns]")
    rows = {a.shape[0] if a.ndim else -1 for a in arrays}
    if len(rows) != 1 or not all(a.ndim == 1 or (a.ndim == 2 and a.shape[1] == 1) for a in arrays):
        raise UsageError("bad_tensor", "several tensors, not all of one column and the same number of rows")
    columns = [a.reshape(-1) for a in arrays]
    if any(c.dtype == object for c in columns):
        table: Array = np.empty((rows.pop(), len(columns)), dtype=object)
        for index, column in enumerate(columns):
            table[:, index] = column
        return table
    return np.column_stack(columns)


def _check_trees(file: Path, estimator: Any) -> None:
    """Refuse node tables that lead scikit-learn's unchecked loops outside of an array.

    This closes the known holes of the types trusted above, not every thinkable one; the digest of the file and the
    process of its own are the other two guards.
    """
    for part in _parts(estimator):
        if not all(_is_sound_tree(tree, columns) for tree, columns in _trees_of(part)):
            raise RefusedError(
                "unsafe_model",
                f"{file.name} holds a decision tree whose nodes point outside it",
                "do not load this file; look where it came from",
            )


def _trees_of(part: Any) -> Iterator[tuple[Any, int]]:
    """Node tables that `part` walks, each with the number of columns that `part` makes sure of.

    An estimator that was never fitted, such as the pattern that a forest keeps of its members, has none.
    """
    fitted = vars(part) if isinstance(part, BaseEstimator) else {}
    if isinstance(part, Tree):
        yield part, part.n_features
    elif not fitted.keys() & {"tree_", "estimators_", "_predictors"}:
        return
    elif isinstance(part, BaseDecisionTree):
        yield part.tree_, part.n_features_in_
    elif isinstance(part, IsolationForest):
        for member, features in zip(part.estimators_, part.estimators_features_, strict=True):
            yield member.tree_, min(len(features), part.n_features_in_)
    elif isinstance(part, (BaseForest, BaseGradientBoosting)):
        for member in np.asarray(part.estimators_, dtype=object).reshape(-1):
            yield member.tree_, part.n_features_in_
    elif isinstance(part, BaseHistGradientBoosting):
        for predictors in part._predictors:
            yield from ((predictor, part.n_features_in_) for predictor in predictors)


def _is_sound_tree(tree: Any, columns: int) -> bool:
    """True when every inner node has both children further down the table and a column below `columns`."""
    if isinstance(tree, Tree):
        inner = tree.children_left != -1
        left, right, feature = tree.children_left[inner], tree.children_right[inner], tree.feature[inner]
    else:
        nodes = tree.nodes[tree.nodes["is_leaf"] == 0]
        inner = tree.nodes["is_leaf"] == 0
        left, right, feature = nodes["left"], nodes["right"], nodes["feature_idx"]
        if not (nodes["bitset_idx"][nodes["is_categorical"] != 0] < len(tree.raw_left_cat_bitsets)).all():
            return False
    # Children further down than their parent: nowhere to leave the table, and no loop.
    parents = np.flatnonzero(inner)
    return (
        len(inner) > 0
        and all(
            bool((child.astype(np.int64) > parents).all() and (child < len(inner)).all()) for child in (left, right)
        )
        and bool((feature >= 0).all() and (feature < columns).all())
    )


def _parts(root: Any) -> Iterator[Any]:
    """Every object reachable from `root` by attributes, containers and object arrays, each once."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        part = waiting.pop()
        if id(part) in seen or isinstance(part, (str, bytes, int, float, type(None))):
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, dict):
            waiting.extend(part.values())
        elif isinstance(part, (list, tuple, set, frozenset)):
            waiting.extend(part)
        elif isinstance(part, np.ndarray):
            waiting.extend(part.reshape(-1).tolist() if part.dtype == object else ())
        if hasattr(part, "__dict__") and not isinstance(part, type):
            waiting.extend(vars(part).values())
