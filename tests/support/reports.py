"""Finished runs to report on."""

import json

from rdrop_trainer.report import FinishedRun

BASELINE = [0.802, 0.796, 0.811, 0.790, 0.805]
HIGHER = [0.815, 0.808, 0.826, 0.801, 0.819]
ROWS = 400


def stability(flips, divergence=0.05, edits=0.08):
    """As a run measures it; the keyboard slips flip twice as many as all edits."""
    slips = None if edits is None else 2 * edits
    kinds = {"slip": {"flip_rate": slips, "divergence": 0.1, "edited": ROWS}}
    return {
        "split": "validation",
        "rows": ROWS,
        "dropout": {"num_samples": 8, "flip_rate": flips, "divergence": divergence},
        "edits": {"flip_rate": edits, "divergence": 0.2, "edited": 2 * ROWS, "by_kind": kinds},
        "calibration": {"expected_calibration_error": 0.1, "mean_confidence": 0.9},
    }


def curve(high):
    steps = range(0, 100, 10)
    return [{"step": s, "probe_divergence": high * s / 100, "probe_loss": 0.7 - s / 200} for s in steps]


def run(seed, alpha, score=0.8, name="accuracy", **changes):
    facts = {
        "scores": {name: score, "loss": 0.5, "runtime": 3.0},
        "headline": [name],
        "log_history": [{"step": 5, "loss": 0.6}, *curve(0.1 if alpha else 0.4)],
        "stability": stability(0.02 if alpha else 0.05),
        "train_seconds": 170.0 if alpha else 100.0,
        "peak_memory": 300 * 2**20 if alpha else 200 * 2**20,
        "rows": {"train": 1000, "validation": ROWS},
    }
    return FinishedRun(seed, alpha, **{**facts, **changes})


def arms(baseline, rdrop, **changes):
    """Runs of the seeds 1, 2, ...; those of R-Drop in another order."""
    first = [run(seed, 0.0, score, **changes) for seed, score in enumerate(baseline, 1)]
    return first, [run(seed, 4.0, score, **changes) for seed, score in enumerate(rdrop, 1)][::-1]


def write_folder(folder, seed, alpha, score, **settings):
    """A run's folder as the script leaves it."""
    folder.mkdir(parents=True)
    found = {
        "task": "sst2",
        "headline": {"eval_accuracy": score},
        "metrics": {"eval_accuracy": score, "eval_loss": 0.4, "eval_runtime": 1.0, "train_loss": 0.3},
        "rows": {"train": 1000, "validation": ROWS},
        "settings": {"rdrop_alpha": alpha, "seed": seed, "output_dir": str(folder), "learning_rate": 2e-5, **settings},
        "given": [],
        "processes": 1,
        "seconds": {"train": 100.0 + 70 * (alpha > 0)},
        "peak_memory": {"bytes": 2**30, "of": "process"},
        "stability": stability(0.02 if alpha else 0.05),
    }
    (folder / "all_results.json").write_text(json.dumps(found))
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": curve(0.1)}))


def longer(scores):
    """Runs of plain fine-tuning for as long as R-Drop."""
    return {"plain_longer": [run(seed, 0.0, score, train_seconds=170.0) for seed, score in enumerate(scores, 1)]}


def best_at(step, **settings):
    """What makes a run one of which the checkpoint of a step was scored."""
    chosen = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
        "greater_is_better": True,
        **settings,
    }
    return {"settings": chosen, "scored_step": step}
