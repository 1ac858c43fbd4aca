"""What every test may ask for."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import settings

# A shared machine is slow at times; a law does not fail for that. Under CI Hypothesis brings a profile of its own
# (no deadline, the same examples each time).
settings.register_profile("rearguard", deadline=None)
if os.environ.get("CI") != "true":
    settings.load_profile("rearguard")

RequirePart = Callable[[str, bool, str], None]


@pytest.fixture(scope="session")
def require_part() -> RequirePart:
    """`require_part(name, present, hint)`: go on only when a real part outside Python is there.

    Absent, the test is skipped with the hint; where CI=true it fails, so that no check is lost unseen.
    """

    def require(name: str, present: bool, hint: str) -> None:
        if present:
            return
        reason = f"{name} is missing: {hint}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)

    return require
