"""The pictures of a report."""

import math
import statistics
import struct
from dataclasses import replace

import numpy as np
import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.report import draw_curves, write_report
from rdrop_trainer.report.calibration import draw_reliability, reliability_of
from rdrop_trainer.report.over_time import draw_against_seconds, draw_learning_curves
from support.reports import BASELINE, HIGHER, arms, best_at, curve, longer, run


def size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_the_pictures(tmp_path, written):
    report = write_report(*arms(BASELINE, HIGHER), tmp_path)
    assert [path.name for path in report.pictures] == ["scores.png", "seconds.png", "curves.png", "flips.png"]
    assert all(size(path)[0] == 1600 for path in report.pictures)
    assert all(f"({path.name})" in report.markdown() for path in report.pictures)


def test_what_is_not_known_is_not_drawn(tmp_path, drawn):
    first, second = [run(1, 0.0, log_history=[], stability=None)], [run(1, 4.0, log_history=[], stability=None)]
    untimed = [[replace(run, train_seconds=None) for run in arm] for arm in (first, second)]
    assert [path.name for path in write_report(*untimed, tmp_path).pictures] == ["scores.png"]
    assert [path.name for path in write_report(first, second, tmp_path).pictures] == ["scores.png", "seconds.png"]
    assert "curves.png" not in drawn and draw_curves([{"step": 1, "loss": 1.0}], 4.0, tmp_path) == {}
    assert [path.name for path in draw_curves(curve(0.2), 0.0, tmp_path)] == ["curves.png"] and "curves.png" in drawn


def classified(seed, alpha, sharp=1.0):
    """A run with logits of 200 rows."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, 200)
    logits = sharp * (random.normal(size=(200, 3)) + 1.5 * np.eye(3)[labels])
    labels[:5] = -100
    return run(seed, alpha, logits=logits.astype(np.float32), labels=labels)


def test_the_reliability_diagram_by_plain_arithmetic(tmp_path, drawn):
    runs = [classified(1, 0.0), classified(2, 0.0)]
    rows = []
    for found in runs:
        for z, label in zip(found.logits.tolist(), found.labels.tolist(), strict=True):
            if label != -100:
                shares = [math.exp(value) / sum(map(math.exp, z)) for value in z]
                rows.append((max(shares), shares.index(max(shares)) == label))
    bins = reliability_of(runs)
    assert bins.rows.sum() == len(rows) == 390
    for i in range(10):
        inside = [(sure, right) for sure, right in rows if i / 10 <= sure < (i + 1) / 10]
        assert bins.rows[i] == len(inside)
        if inside:
            assert bins.confidence[i] == pytest.approx(100 * statistics.mean(sure for sure, _ in inside), abs=1e-4)
            assert bins.accuracy[i] == pytest.approx(100 * statistics.mean(right for _, right in inside))
    report = write_report(runs, [classified(1, 4.0), classified(2, 4.0)], tmp_path)
    assert tmp_path / "reliability.png" in report.pictures
    figure = draw_reliability({"baseline": runs, "rdrop": runs, "mild": runs, "regression": [run(1, 0.0)]}, "title")
    left, right = figure.axes
    assert left.get_legend_handles_labels()[1] == ["calibrated", "baseline", "R-Drop", "mild"]
    shown = bins.rows >= 20  # fewer say little
    assert (
        shown.any()
        and (bins.rows[~shown] > 0).any()
        and np.array_equal(left.lines[1].get_xydata()[:, 0], bins.confidence[shown])
    )
    assert np.allclose(right.patches[0].get_data().values, 100 * bins.rows / 390)
    assert reliability_of([run(1, 0.0)]) is None and reliability_of([]) is None
    assert reliability_of([replace(runs[0], logits=None)]) is None
    assert reliability_of([replace(runs[0], labels=np.full(200, -100))]) is None
    assert reliability_of([replace(runs[0], labels=runs[0].labels / 2)]) is None, "a regression's"


def stars(axes):
    return [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "*" and len(line.get_xydata())]


def test_the_score_against_seconds_marks_what_is_scored(tmp_path, drawn):
    history = [{"step": s, "eval_accuracy": v, "eval_loss": 0.4} for s, v in ((10, 0.6), (20, 0.9), (40, 0.7))]
    history.append({"step": 40, "train_runtime": 9.9})
    trained = {"log_history": history, "train_seconds": 80.0, "scores": {"accuracy": 0.9, "loss": 0.4}}
    first = [run(1, 0.0, **trained, **best_at(20))]
    second = [run(1, 4.0, **{**trained, "train_seconds": 160.0}, settings=first[0].settings)]
    longer = [run(1, 0.0, 0.75, log_history=[], train_seconds=160.0)]
    score = write_report(first, second, tmp_path).quantities[0]
    panel = draw_against_seconds([score], {"baseline": first, "rdrop": second, "longer": longer}, "").axes[0]
    # 20 of 40 steps of 80 s; the end of 160 s, where the score is that of the weights; no curve, so the end
    assert stars(panel) == [(40.0, pytest.approx(90)), (160.0, pytest.approx(90)), (160.0, pytest.approx(75))]
    thick = [line.get_xydata().tolist() for line in panel.lines if line.get_linewidth() == 2]
    assert thick[0] == [[20.0, pytest.approx(60)], [40.0, pytest.approx(90)], [80.0, pytest.approx(70)]]
    names = [text.get_text() for text in panel.figure.legends[0].texts]
    assert names == ["baseline", "R-Drop", "longer", "scored weights"]
    untimed = [replace(longer[0], train_seconds=None)]
    assert draw_against_seconds([score], {"baseline": first, "rdrop": untimed}, "") is None


def test_the_learning_curves_mark_what_is_scored(drawn):
    first, second = [run(1, 0.0)], [run(1, 4.0, scored_step=45)]
    panel = draw_learning_curves({"baseline": first, "rdrop": second}, True, "").axes[1]
    assert stars(panel) == [(90.0, pytest.approx(0.36)), (45.0, pytest.approx(0.045))]


def test_pictures_say_what_they_are_of_and_show_all_arms(tmp_path, drawn):
    first, second = ([replace(run, name="sst2") for run in arm] for arm in arms(BASELINE, HIGHER))
    write_report(first, second, tmp_path, others=longer(BASELINE) | {"empty": []})
    assert all(
        figure.legends[0].get_title().get_text() == "sst2: R-Drop with alpha 4, 5 seeds" for figure in drawn.values()
    )
    for name in ("scores.png", "seconds.png"):
        assert {"baseline", "R-Drop", "plain_longer"} <= {text.get_text() for text in drawn[name].legends[0].texts}
    labels = [label.get_text() for label in drawn["flips.png"].axes[0].get_yticklabels()]
    assert labels == ["dropout", "small edits", "wrong key"]


def test_without_matplotlib_there_is_a_report_without_pictures(tmp_path):
    report = write_report(*arms(BASELINE, HIGHER), tmp_path)
    assert not report.pictures and not list(tmp_path.glob("*.png"))
    assert 'pip install "rdrop-trainer[report]"' in report.markdown()


@pytest.mark.parametrize("name", ["report.md", "report.json", ""])
def test_a_report_that_cannot_be_written(tmp_path, name):
    if name:
        (tmp_path / "out" / name).mkdir(parents=True)
    else:
        (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="the report cannot be written there .*The runs are kept"):
        write_report(*arms([0.4, 0.5], [0.5, 0.7]), tmp_path / "out")


def test_the_classes_of_both_arms(tmp_path):
    """Means and deviations over seeds, and the counts of all of them; no section where a run has none."""

    def classes(right):
        scores = {
            "no": {"rows": 10, "precision": right / 10, "recall": right / 10, "f1": right / 10},
            "yes|maybe": {"rows": 5, "precision": 1.0, "recall": 0.0, "f1": 0.5},
        }
        return {
            "scores": scores,
            "confusion": {"no": {"no": right, "yes|maybe": 10 - right}, "yes|maybe": {"no": 1500}},
        }

    arms = [
        [run(seed, alpha, by_class=classes(right + seed)) for seed in (1, 2)] for alpha, right in ((0.0, 5), (4.0, 7))
    ]
    page = write_report(*arms, tmp_path).markdown()
    assert "| no | 10 | 65.0 ± 7.1 / 85.0 ± 7.1 | 65.0 ± 7.1 / 85.0 ± 7.1 | 65.0 ± 7.1 / 85.0 ± 7.1 |" in page
    assert "| yes\\|maybe | 5 | 100.0 ± 0.0 / 100.0 ± 0.0 |" in page
    assert "| no | 13 | 7 |" in page and "| no | 17 | 3 |" in page and page.count("| yes\\|maybe | 3,000 | 0 |") == 2
    arms[0][0] = run(1, 0.0)
    assert "## Classes" not in write_report(*arms, tmp_path / "other").markdown()
