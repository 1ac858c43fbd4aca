"""The page of the metrics and the code say the same, and alerts ask for nothing that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

from rearguard.officer.metric_names import METRICS

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROW = re.compile(r"^\| `(rearguard_[a-z_]+)` \| (\w+) \| ([^|]*) \|", re.MULTILINE)


def test_the_page_lists_every_metric_with_its_kind_and_labels() -> None:
    rows = ROW.findall((DOCS / "reference" / "metrics.md").read_text(encoding="utf-8"))
    listed = {(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert listed == {(metric.name, metric.kind, metric.labels) for metric in METRICS}


def test_alerts_use_metrics_that_exist() -> None:
    text = (DOCS / "how-to" / "prometheus-alerts.yaml").read_text(encoding="utf-8")
    used = set(re.findall(r"\brearguard_[a-z_]+", text))
    assert used
    assert used <= {metric.name for metric in METRICS}
