"""What the tests of the script share."""

import pytest

from rdrop_trainer.script.demo import make_sentences
from rdrop_trainer.script.scratch import make_bert


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    texts = [text for text, _ in make_sentences(200, seed=3)] + ["浙商银行叶老桂在上海", "the cat sat on a mat"]
    make_bert(folder, texts, hidden_size=16, heads=2, max_length=32)
    return folder
