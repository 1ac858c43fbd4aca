"""The smallest settings in which a checkpoint can be registered, and the model and request that most tests register."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

MODEL = Path(onnxruntime.__file__).parent / "datasets" / "mul_1.onnx"
"""It multiplies what it is given, so its answers can be checked by hand."""
REQUEST = {"inputs": [{"name": "X", "shape": [3, 2], "datatype": "FP32", "data": [1, 1, 1, 1, 1, 1]}]}
SETTINGS = """\
version: 1
playbook: rollback_playbook.yaml
channels: {oncall: {kind: file, path: messages.jsonl}}
services:
  fraud:
    environments:
      prod:
        stateless: true
        target: {adapter: command, activate: ["true"], active: ["true"], probe: ["true"]}
        telemetry: {adapter: jsonl, requests: requests.jsonl}
        triggers: {latency: off, compliance: off}
"""
