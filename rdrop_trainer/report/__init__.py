"""Does R-Drop help? A report on the finished runs of a comparison: `python -m rdrop_trainer.report FOLDER`.

It compares baseline (alpha 0) and R-Drop runs of the same seeds pair by pair: scores, stability under dropout, small
edits and other seeds, calibration, time and memory. Tables and figures go into `report.md` and `report.json`,
pictures beside them. Needs the extra `report` (SciPy; Matplotlib for the pictures).
"""

from .._lazy import lazily

_EXPORTS = {
    "write_report": "writing",
    "report_folder": "writing",
    "Report": "report",
    "draw_curves": "pictures",
    "FinishedRun": "runs",
    "pair_runs": "runs",
    "Quantity": "quantities",
    "PairedDifference": "paired",
    "SpreadRatio": "paired",
    "paired_difference": "paired",
    "spread_ratio": "paired",
}
__all__ = list(_EXPORTS)
__getattr__, __dir__ = lazily(__name__, _EXPORTS)
