"""Running the script in this process, and the files it reads."""

import csv
import json
import shutil
import threading
from pathlib import Path

from rdrop_trainer.script import main as script
from rdrop_trainer.script import several
from rdrop_trainer.script.command_line import parse_arguments
from rdrop_trainer.script.demo import make_sentences
from rdrop_trainer.script.scratch import make_bert
from support.device import USE_CPU

FAST = f"--max_seq_length 16 --use_cpu {USE_CPU} --disable_tqdm True --save_strategy no".split()
FAST += "--per_device_train_batch_size 8 --num_train_epochs 1".split()


def make_model(folder):
    """Save a tiny BERT, without a head, that knows the words of the sentences below."""
    texts = [text for text, _ in make_sentences(200, seed=3)] + ["浙商银行叶老桂在上海", "the cat sat on a mat"]
    make_bert(folder, texts, hidden_size=16, heads=2, max_length=32)
    return folder


def make_place(folder, rows):
    """Put a tiny model and files of sentences, `rows` of them to train on, where comparisons and searches run."""
    for name, sentences in (("train", make_sentences(rows, seed=1)), ("dev", make_sentences(16, seed=2))):
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("sentence", "label"), *sentences])
    make_model(folder / "model")


def words(*flags):
    """A command line; an argument that begins with -- may hold several words."""
    return [word for flag in map(str, flags) for word in (flag.split() if flag.startswith("--") else [flag])]


def run(model, *flags, fast=FAST):
    return script.main(words("--model_name_or_path", model, *fast, *flags))


def fails(capsys, *flags):
    """Run with flags that must be refused; the one line on standard error."""
    capsys.readouterr()
    assert script.main(words(*flags)) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert "Traceback" not in captured.err
    assert lines[-1].startswith("run_glue_rdrop.py: error: ")
    return lines[-1]


def results(folder):
    return json.loads((Path(folder) / "all_results.json").read_text(encoding="utf-8"))


def write_tsv(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")


def write_json(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_csv(path, rows=24, labels=("negative", "positive"), header=("sentence", "label")):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for i, (text, _) in enumerate(make_sentences(rows, seed=5)):
            writer.writerow((text, labels[i % len(labels)]))
    return path


def make_cola(folder, train=24):
    sentences = [text for text, _ in make_sentences(train, seed=1)]
    write_tsv(folder / "train.tsv", *(("x", i % 2, "", s) for i, s in enumerate(sentences)))
    write_tsv(folder / "dev.tsv", *(("x", i % 2, "", s) for i, s in enumerate(sentences[:7])))
    write_tsv(folder / "test.tsv", ("index", "sentence"), *enumerate(sentences[:5]))


def launched_by(launch, patch):
    """Let comparisons and searches run their jobs by `launch`, which is returned."""
    patch.setattr(several, "launcher", lambda *_: launch)
    return launch


_ALONE = threading.Lock()


class InProcess:
    """Runs jobs in this process; `codes` says which of them fail, and how, instead."""

    def __init__(self, **codes):
        self.codes, self.started = codes, []

    def __call__(self, job):
        self.started.append(job.folder.name)
        code = self.codes.get(job.folder.name.replace("-", "_"))
        if code is None:
            with _ALONE:
                return script.main(job.write())
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "run.log").write_text("run_glue_rdrop.py: error: this is why\n")
        if isinstance(code, type):
            raise code
        return code

    def stop(self):
        self.stopped = True


class Pretended(InProcess):
    """Runs that are over at once: a copy of a finished run, with the job's settings and a score of ours.

    Args:
        finished: the folder of that run.
        scores: the accuracy of each job by its name; 0.25 for the others.
        **codes: as for `InProcess`.
    """

    def __init__(self, finished, scores=(), **codes):
        super().__init__(**codes)
        self.finished, self.scores = finished, dict(scores)

    def __call__(self, job):
        if job.folder.name.replace("-", "_") in self.codes:
            return super().__call__(job)
        self.started.append(job.folder.name)
        shutil.copytree(self.finished, job.folder, dirs_exist_ok=True)
        with _ALONE:  # transformers' parser changes the fields of its dataclasses as it reads them
            found, command = results(job.folder), parse_arguments(job.flags)
        for name in ("rdrop_alpha", "rdrop_dropout", "learning_rate", "num_train_epochs", "seed", "output_dir"):
            found["settings"][name] = getattr(command.training, name)
        found["given"] = sorted(command.given)
        found["headline"] = {"eval_accuracy": self.scores.get(job.folder.name, 0.25)}
        (job.folder / "all_results.json").write_text(json.dumps(found))
        (job.folder / "model.safetensors").write_text("weights")
        return 0
