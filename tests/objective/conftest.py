"""What the tests of the objective share."""

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture
def fresh_accelerate():
    """Trainers of other tests leave settings that an `Accelerator` could not change."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
