"""What every adapter promises, as pytest classes to inherit from.

Subclass one in a test module, under a name that starts with `Test`, and override its fixtures::

    class TestMyTarget(TargetConformance):
        @pytest.fixture
        def target(self): ...
        @pytest.fixture
        def orders(self): ...
        @pytest.fixture
        def golden(self): ...
        @pytest.fixture
        def dead_target(self): ...
"""

from rearguard.testing.conformance.copies import CheckpointCopyConformance
from rearguard.testing.conformance.formats import LoaderConformance
from rearguard.testing.conformance.targets import TargetConformance, WarmTargetConformance

__all__ = ["CheckpointCopyConformance", "LoaderConformance", "TargetConformance", "WarmTargetConformance"]
