"""How steady a trained model is: against its own dropout, small edits of the text and the seed; and how sure of itself.

R-Drop trains for the first, and the others and the calibration change with it, so they are measured beside the scores.
"""

from .._lazy import lazily

_EXPORTS = {
    "Agreement": "agreement",
    "dropout_agreement": "noise",
    "perturbation_agreement": "perturbation",
    "EditAgreement": "perturbation",
    "EditedText": "perturbation",
    "EDITS": "edits",
    "seed_agreement": "seeds",
    "DivergenceProbe": "probe",
    "expected_calibration_error": "calibration",
    "mean_confidence": "calibration",
}
__all__ = list(_EXPORTS)
__getattr__, __dir__ = lazily(__name__, _EXPORTS)
