"""What the tests of the objective share."""

import pytest
from accelerate.state import AcceleratorState
from transformers.utils import logging


@pytest.fixture
def fresh_accelerate():
    """Trainers of other tests leave settings that an `Accelerator` could not change."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def said(caplog):
    """What is logged."""
    logging.enable_propagation()
    logging.get_logger("rdrop_trainer.objective.alignment").warning_once.__func__.cache_clear()
    yield caplog
    logging.disable_propagation()
