"""How stable a trained model's predictions are under dropout, small edits of the text and other seeds; its calibration.

R-Drop trains for the first of these. The others and the calibration change with it, so all are measured beside the
scores.
"""

from .._lazy import lazily

_EXPORTS = {
    "Stability": "measure",
    "dropout_stability": "dropout",
    "perturbation_stability": "perturbation",
    "EditStability": "perturbation",
    "EditedText": "perturbation",
    "EDITS": "edits",
    "seed_stability": "seeds",
    "DivergenceProbe": "probe",
    "expected_calibration_error": "calibration",
    "mean_confidence": "calibration",
}
__all__ = list(_EXPORTS)
__getattr__, __dir__ = lazily(__name__, _EXPORTS)
