"""A watcher killed at any fault point of a rollback leaves a run that the next watcher finishes exactly once.

The watcher really dies by SIGKILL, in the middle of real traffic. The points are those that the engine derives from the
list of steps, so a new step is in this matrix by itself.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stage import Policy, Prepared, Server, Stage, prepare, wait_until

from rearguard.database import officer_alive
from rearguard.engine.faults import fault_points
from rearguard.model.run import RunState
from rearguard.model.settings import STEP_NAMES

THROUGH_DETECTION = ("activate",)
"""Steps whose points are reached through a breach that the watcher itself detects."""
ALWAYS = ("lock", "activate", "window", "record")
"""Steps whose points every run of the suite kills at: the others have no effect of their own or the same shape."""

OF_ONE_RUN = {
    "incident_opened": 1,
    "rollback_started": 1,
    "deployments_frozen": 1,
    "target_selected": 1,
    "target_verified": 1,
    "traffic_switched": 1,
    "golden_answered": 1,
    "window_held": 1,
    "rollback_finished": 1,
    "incident_closed": 1,
    "rollback_closed": 1,
}
"""Every record of a rollback that succeeded, each exactly once."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory.mktemp("prepared"))
