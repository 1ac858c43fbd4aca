"""Train the demo's two pipelines on real handwritten digits and write what the demo needs to serve and judge them.

The good one is a support vector machine on scaled pixels. The bad one is bad for a reason that happens to people:

- `errors`: retrained on an extract, with the border pixels one-hot encoded and scikit-learn's default
  `handle_unknown="error"`; inputs with an intensity that the extract never had make it raise (about 5 % of them);
- `latency`: nearest neighbours over an augmented training set with a costly metric: accurate, and slow;
- `compliance`: trained on images shifted by one pixel (a preprocessing slip), so it is wrong on the real ones.

Run as a process of its own: `python -m rearguard.demo.models BREACH FOLDER`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

TRAIN_ROWS = 1200
"""The rest of the 1,797 images is what clients send: rows that no model has seen."""
EXTRACT_ROWS = 500
SEED = 20_251_012
SLOW_MS = 80.0
"""The slow model must need at least this long for one image; its training set grows until it does. With four clients in
a queue that is some 320 ms an answer."""
GOLDEN_REQUESTS = 6


def train(breach: str, folder: Path) -> None:
    """Write good/model.skops, bad/model.skops, their golden files, and traffic.json (inputs with true labels)."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler
    from sklearn.svm import SVC

    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.data))
    rows, labels = digits.data[order], digits.target[order]
    known, known_labels = rows[:TRAIN_ROWS], labels[:TRAIN_ROWS]
    unseen, unseen_labels = rows[TRAIN_ROWS:], labels[TRAIN_ROWS:]

    good = make_pipeline(MinMaxScaler(), SVC(C=10.0, gamma="scale")).fit(known, known_labels)
    bad = {"errors": _raises, "latency": _slow, "compliance": _shifted}[breach](known, known_labels)
    for name, model in (("good", good), ("bad", bad)):
        _write(folder / name, model, known)
    traffic = [{"request": request(row), "label": int(label)} for row, label in zip(unseen, unseen_labels, strict=True)]
    (folder / "traffic.json").write_text(json.dumps(traffic), encoding="utf-8")


def request(row: Any) -> dict[str, Any]:
    """One image as an Open Inference Protocol request."""
    return {"inputs": [{"name": "pixels", "shape": [1, 64], "datatype": "FP64", "data": [float(x) for x in row]}]}


def _write(folder: Path, model: Any, known: Any) -> None:
    import skops.io

    folder.mkdir(parents=True, exist_ok=True)
    skops.io.dump(model, folder / "model.skops")
    golden = "".join(json.dumps(request(row)) + "\n" for row in known[:GOLDEN_REQUESTS])
    folder.with_suffix(".golden.jsonl").write_text(golden, encoding="utf-8")


def _raises(known: Any, labels: Any) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, OneHotEncoder
    from sklearn.svm import SVC

    borders = [row * 8 + column for row in range(8) for column in (0, 7)]
    encode = ColumnTransformer([("border", OneHotEncoder(), borders)], remainder=MinMaxScaler())
    return make_pipeline(encode, SVC(C=10.0, gamma="scale")).fit(known[:EXTRACT_ROWS], labels[:EXTRACT_ROWS])


def _shifted(known: Any, labels: Any) -> Any:
    import numpy as np
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler
    from sklearn.svm import SVC

    moved = np.roll(known.reshape(-1, 8, 8), 1, axis=2).reshape(-1, 64)
    return make_pipeline(MinMaxScaler(), SVC(C=10.0, gamma="scale")).fit(moved, labels)


def _slow(known: Any, labels: Any) -> Any:
    import numpy as np
    from sklearn.neighbors import KNeighborsClassifier

    random = np.random.default_rng(SEED)
    copies = 8
    while True:
        images = np.concatenate([known + random.normal(0.0, 0.4, known.shape) for _ in range(copies)])
        model = KNeighborsClassifier(n_neighbors=5, algorithm="brute", metric="minkowski", p=3)
        model.fit(images, np.tile(labels, copies))
        model.predict(known[:1])
        started = time.perf_counter()
        for row in known[1:4]:
            model.predict(row.reshape(1, -1))
        if (time.perf_counter() - started) * 1000 / 3 >= SLOW_MS or copies >= 64:
            return model
        copies *= 2


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]))
