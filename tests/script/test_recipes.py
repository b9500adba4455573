"""The recipes: what they say of themselves, that they agree with their table, and a dry run of each on tiny models."""

import json
import re
from pathlib import Path

import pytest
import yaml

from rdrop_trainer.glue.tasks import TASKS
from rdrop_trainer.script.command_line import parse_arguments
from rdrop_trainer.script.scratch import make_bart, make_bert
from support import ROOT
from support.device import USE_CPU
from support.runs import script

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

LINES = [f"the film number {i} was fine" for i in range(9)]
ROWS = range(8)


def glue_folder(folder, task):
    """A task's official .tsv files, from few rows; the cells that nothing reads hold a dash."""
    texts, label, _ = task.tsv
    classes = task.raw_labels or task.labels or ("1.5", "4.0")
    width = max(*texts, label, 3) + (2 if label == -1 else 1)
    header = [] if task.headerless else [[f"c{i}" for i in range(width)]]
    if header:
        for column, name in zip(texts, task.text_columns, strict=True):
            header[0][column] = task.sources(name)[-1]
        header[0][label] = task.label_sources[-1]
    rows = [["-"] * width for _ in ROWS]
    for i, row in enumerate(rows):
        for column in texts:
            row[column] = LINES[(i + column) % 9]
        row[label] = classes[i % len(classes)]
    folder = folder / task.folders[0]
    folder.mkdir()
    for split in task.files:
        if not split.startswith("test"):
            lines = ["\t".join(row) + "\n" for row in header + rows]
            (folder / f"{task.files[split][0]}.tsv").write_text("".join(lines), encoding="utf-8")


CLUE_ROWS = {
    "tnews": lambda i: {"label": ("100", "116")[i % 2], "label_desc": "-", "sentence": LINES[i]},
    "iflytek": lambda i: {"label": str(i), "label_des": "-", "sentence": LINES[i]},
    "csl": lambda i: {"id": i, "abst": LINES[i], "keyword": ["film", "number"], "label": str(i % 2)},
    "csl_title": lambda i: {"title": LINES[i][:8], "abst": LINES[i]},
}


def clue_folder(folder, task):
    """A task's official .json files."""
    (folder / task.name).mkdir()
    for split in ("train", "validation"):
        lines = [json.dumps(CLUE_ROWS[task.name](i)) + "\n" for i in ROWS]
        (folder / task.name / f"{task.files[split][0]}.json").write_text("".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folders of models, by kind of head, and of the data of all tasks that a recipe trains on."""
    folder = tmp_path_factory.mktemp("tiny")
    make_bert(folder / "bert", LINES, hidden_size=16, heads=2, max_length=32)
    make_bart(folder / "bart", LINES, hidden_size=16, heads=2, max_length=32)
    for name in {yaml.safe_load(path.read_text("utf-8"))["task_name"] for path in RECIPES}:
        (glue_folder if TASKS[name].suite == "glue" else clue_folder)(folder, TASKS[name])
    return folder


def dry_run(tiny, recipe, *flags):
    kind = "bart" if "bart" in Path(recipe).stem else "bert"
    local = ["--model_name_or_path", tiny / kind, "--data_dir", tiny, "--use_cpu", str(USE_CPU), "--dry_run"]
    return script.main([str(word) for word in (recipe, *local, *flags)])


def settings_of(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def files(folder):
    """With their times; not the lock, whose time filelock may change."""
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path.name != ".lock"}


def test_the_published_settings_are_there():
    names = {path.stem for path in RECIPES}
    for task in ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"):
        assert {f"bert-base-{task}", f"roberta-large-{task}"} <= names
    for task in ("tnews", "iflytek", "csl"):
        settings = settings_of(ROOT / "recipes" / f"bert-base-chinese-{task}.yaml")
        assert (settings["task_name"], settings["rdrop_alpha"], settings["dropout"]) == (task, 4, 0.3)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_states_its_source_and_its_figure(path):
    text = path.read_text(encoding="utf-8")
    head = re.match(r"(#.*\n)+", text).group()
    for key in ("Source", "Expected", "Cost"):
        assert re.search(rf"^# {key}: \S", head, re.M), f"{path.name} states no {key}"
    settings, steps = settings_of(path), re.search(r"Cost: ([\d,]+) steps of (\d+) rows", head)
    if "max_steps" in settings:
        batch = settings["per_device_train_batch_size"] * settings.get("gradient_accumulation_steps", 1)
        assert (settings["max_steps"], batch) == tuple(int(n.replace(",", "")) for n in steps.groups())
    assert settings["output_dir"] == f"runs/rdrop-{path.stem}"  # also the repository's name, and each its own


def test_the_table_agrees_with_the_recipes():
    text = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| \[(\S+)\]\((\S+)\) \| (\S+) \| [^|]* \| ([\d.]+)( \(sum\))? \| ([\d.]+) \| (\S+) \|", text, re.M
    )
    assert [f"{row[0]}.yaml" for row in rows] == [row[1] for row in rows]
    assert sorted(row[1] for row in rows) == [path.name for path in RECIPES]
    for _, file, task, alpha, summed, dropout, rate in rows:
        settings = settings_of(ROOT / "recipes" / file)
        assert settings["task_name"] == task
        assert settings["rdrop_alpha"] == float(alpha)
        assert settings.get("rdrop_reduction", "mean") == ("sum" if summed else "mean")
        assert settings["dropout"] == float(dropout)
        assert settings["learning_rate"] == float(rate)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_dry(path, tiny, here, capsys):
    before = files(tiny)
    assert dry_run(tiny, path, "--push_to_hub") == 0
    assert not list(here.iterdir()) and files(tiny) == before
    said, settings = capsys.readouterr().out, settings_of(path)
    batch = settings["per_device_train_batch_size"] * settings.get("gradient_accumulation_steps", 1)
    steps = settings.get("max_steps") or settings["num_train_epochs"]  # few rows: one step an epoch
    assert f"training  {steps:,} steps" in said and f"of {batch} rows" in said
    assert f"noise     dropout {settings['dropout']} (" in said
    held_out = [split for split in TASKS[settings["task_name"]].files if split.startswith("validation")]
    assert re.findall(r"^loss      \d\S+ \((\w+),", said, re.M) == ["train", *held_out]
    assert f"would go to {settings['output_dir']}\n" in said
    assert f"would be pushed to rdrop-{path.stem}, in your own namespace" in said
    command = said.strip().rpartition("next      ")[2]
    assert "--dry_run" not in command and "--push_to_hub" in command


@pytest.mark.parametrize(
    "changed, message",
    [
        ("task_name: mrcp", "mrpc"),
        ("rdrop_alpha: -1", "rdrop_alpha"),
        ("learning_rate: fast", "fast"),
        ("rdrop_alhpa: 1", "unknown flag --rdrop_alhpa; did you mean --rdrop_alpha"),
        ("lr_scheduler_type: steps", "steps"),
        ("warmup_steps: -3", "warmup_steps"),
        ("hub_model_id: a/b/c", "is no repository's name"),
    ],
)
def test_a_wrong_recipe_is_refused(changed, message, tiny, here, capsys):
    text = (ROOT / "recipes" / "bert-base-mrpc.yaml").read_text(encoding="utf-8")
    kept = [line for line in text.splitlines() if line.split(":")[0] != changed.split(":")[0]]
    (here / "recipe.yaml").write_text("\n".join([*kept, changed]), encoding="utf-8")
    assert dry_run(tiny, "recipe.yaml", "--push_to_hub") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("run_glue_rdrop.py: error: ") and message in lines[-1]
    assert [path.name for path in here.iterdir()] == ["recipe.yaml"]


# ---- The dry run itself ----

MRPC = ROOT / "recipes" / "bert-base-mrpc.yaml"


def test_a_dry_run_finds_what_the_run_would_refuse(tiny, here, capsys):
    (here / "finished").mkdir()
    (here / "finished" / "all_results.json").write_text("{}")
    assert dry_run(tiny, MRPC, "--output_dir", "finished") == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert dry_run(tiny, MRPC, "--output_dir", "finished", "--overwrite_output_dir") == 0
    assert "would be deleted" in capsys.readouterr().out
    assert (here / "finished" / "all_results.json").read_text() == "{}"
    assert dry_run(tiny, MRPC, "--dropout", "0") == 2
    assert "has no active dropout" in capsys.readouterr().err
    assert dry_run(tiny, MRPC, "--optim", "lomo") == 2  # needs a package; seen only when the optimizer is made


def test_a_dry_run_says_where_an_interrupted_run_goes_on(tiny, here, capsys):
    flags = ["--output_dir", "out", "--max_steps", "4", "--warmup_steps", "1", "--disable_tqdm", "True"]
    local = ["--model_name_or_path", str(tiny / "bert"), "--data_dir", str(tiny), "--use_cpu", str(USE_CPU)]
    assert script.main([str(MRPC), *local, *flags]) == 0
    (here / "out" / "all_results.json").unlink()
    before = files("out")
    assert dry_run(tiny, MRPC, *flags) == 0
    assert "resumes   at step 4" in capsys.readouterr().out and files("out") == before


def test_a_dry_run_of_a_prediction(tiny, here, capsys):
    flags = ["--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no", "--output_dir", "out"]
    train = ["--model_name_or_path", str(tiny / "bert"), "--data_dir", str(tiny), "--use_cpu", str(USE_CPU)]
    assert script.main([str(MRPC), *train, *flags]) == 0
    capsys.readouterr()
    (here / "test.csv").write_text("sentence1,sentence2\na film,a film\n", encoding="utf-8")
    predict = [
        "--model_name_or_path",
        "out",
        "--task_name",
        "mrpc",
        "--test_file",
        "test.csv",
        "--use_cpu",
        str(USE_CPU),
    ]
    assert script.main([*predict, "--dry_run", "--output_dir", "answers"]) == 0
    said = capsys.readouterr().out
    assert "no labels (test, the first 1 rows)" in said and "training" not in said and "nothing would be pushed" in said
    assert not (here / "answers").exists()


def test_every_recipe_is_read_as_it_is_written():
    for path in RECIPES:
        command = parse_arguments([str(path)])
        values = vars(command.model) | vars(command.data) | vars(command.training)
        for name, value in settings_of(path).items():
            name = {"dropout": "rdrop_dropout"}.get(name, name)  # the one flag of another name
            assert name in command.given
            found = values[name]
            assert (found.value if hasattr(found, "value") else found) == value, f"{path.name}: {name}"
