"""docs/your-own-data.md from its first line to its last: commands and Python blocks in their order, in one folder."""

import csv
import re
import shlex

from rdrop_trainer.script.demo import make_sentences
from support import ROOT
from support.runs import FAST, script

PAGE = ROOT / "docs" / "your-own-data.md"


def test_the_page_runs(model, here, capsys):
    for name, rows in (("train", 32), ("dev", 16), ("new", 8)):
        with open(here / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            sentences = enumerate(make_sentences(rows, seed=rows))
            csv.writer(file).writerows([("id", "review", "sentiment"), *((f"a{i}", *one) for i, one in sentences)])
    names = {}
    for language, text in re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, PAGE.name, "exec"), names)
        elif language == "bash" and "--use_peft" not in text:  # as in test_adapter.py
            python, program, *flags = shlex.split(text.replace("\\\n", " "))
            assert (python, program) == ("python", "run_glue_rdrop.py")
            quick = [flag for flag in FAST if flag not in ("--save_strategy", "no", "--num_train_epochs", "1")]
            flags = [str(model) if flag == "bert-base-cased" else "2" if flag == "10" else flag for flag in flags]
            assert script.main([*flags, *quick]) == 0
    screen = capsys.readouterr().out
    assert "columns   text: review; label: sentiment" in screen and "positive was predicted as" in screen
    assert "'label': 'positive'" in screen or "'label': 'negative'" in screen
    written = (here / "runs/reviews-new/custom_test_predict.tsv").read_text().splitlines()
    assert written[0] == "id\tprediction" and len(written) == 9 and written[1].startswith("a0\t")
