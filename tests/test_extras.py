"""Versions of other packages that lose text are named before they can."""

import logging

import datasets
import pytest

from rdrop_trainer import _extras
from rdrop_trainer.errors import InputError
from rdrop_trainer.glue.questions import make_question_features
from rdrop_trainer.objective import Objective, inspect
from support import tiny, zoo


@pytest.mark.parametrize("version, loses", [("0.22.2", False), ("0.23.1", True), ("0.23.2", True), ("0.23.3", False)])
def test_tokenizers_that_lose_windows(version, loses, monkeypatch, caplog):
    logging.getLogger("transformers").propagate = True
    inspect.logger.warning_once.cache_clear()
    monkeypatch.setattr(_extras, "version", lambda package: version)
    batch = zoo.batch("question")
    Objective.of(zoo.build("question"), [batch])
    Objective.of(zoo.build("masked_lm"), [zoo.batch("masked_lm")])  # has no windows
    assert [f"tokenizers {version} loses" in message for message in caplog.messages] == [True] * loses
    row = {"question": "w3", "context": "w5 w6", "answers": ["w5"], "starts": [0]}
    rows = datasets.Dataset.from_list([row])
    if loses:
        with pytest.raises(InputError, match=f"tokenizers {version} loses .* pip install"):
            make_question_features(rows, tiny.tokenizer(), 24, 4)
