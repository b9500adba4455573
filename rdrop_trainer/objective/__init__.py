"""The R-Drop loss of a batch, and the passes over it, without a `Trainer`: for training loops of one's own."""

from .._lazy import lazily

_EXPORTS = {
    "Objective": "objective",
    "StepSettings": "window",
    "Window": "window",
    "Plan": "plan",
    "PredictionHead": "heads",
    "Passes": "passes",
    "run_passes": "passes",
}
__all__ = list(_EXPORTS)
__getattr__, __dir__ = lazily(__name__, _EXPORTS)
