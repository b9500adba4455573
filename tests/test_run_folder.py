"""The files of a run: whole or as they were, plain JSON, and what of their settings is compared."""

import json

import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.run_folder import (
    CONTENTS,
    changed_settings,
    comparable_settings,
    read_results,
    write_json,
    write_text,
)


def test_json_is_plain(tmp_path):
    write_json(tmp_path / "made" / "a.json", {"a": float("nan"), 1: (float("inf"), {2}), "b": tmp_path, "c": "é"})
    text = (tmp_path / "made" / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": None, "1": [None, [2]], "b": str(tmp_path), "c": "é"} and "é" in text


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "before")

    def full(*_):
        raise OSError("no space")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        write_text(tmp_path / "a", "after")
    assert (tmp_path / "a").read_text() == "before"


@pytest.mark.parametrize(
    "text, reason", [(None, "there is none"), ("{", "JSONDecodeError"), ("[]", "TypeError: expected a mapping")]
)
def test_results_that_are_none(text, reason, tmp_path):
    if text is not None:
        (tmp_path / "all_results.json").write_text(text)
    with pytest.raises(InputError, match=rf"all_results.json: is not that of a finished run \({reason}"):
        read_results(tmp_path)


def test_only_what_changes_a_training_is_compared():
    before = {"seed": 1, "save_steps": 5, "rdrop_alpha": 4.0, "gone": 1}
    assert not changed_settings(before, {"seed": 1, "save_steps": 6, "columns": None})
    assert list(map(str, changed_settings(before, {"rdrop_alpha": 2.0, "new": (1,)}))) == [
        "rdrop_alpha was 4.0, now 2.0",
        "new was None, now [1]",
    ]
    assert not changed_settings(before, {"seed": 2}, free={"seed"})


def test_a_baseline_differs_in_r_drop_alone():
    settings = {"seed": 1, "learning_rate": 1e-3, "max_eval_samples": 5}
    free = {"rdrop_alpha": 4.0, "hub_revision": "x", "unlabeled_file": "a.txt", "output_dir": "a"}
    assert comparable_settings(settings | free) == settings


def test_a_file_is_another_or_was_edited():
    a, b = ({"train_file": name, f"{CONTENTS}train_file": name} for name in ("a.csv", "b.csv"))
    assert list(map(str, changed_settings(a, b))) == ["train_file was 'a.csv', now 'b.csv'"]
    edited = {**a, f"{CONTENTS}train_file": "other"}
    assert list(map(str, changed_settings(a, edited))) == ["the train_file was edited since"]
