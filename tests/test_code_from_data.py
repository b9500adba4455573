"""Nothing that is read is run: not a recipe, a model's folder, a checkpoint or saved predictions."""

import ast
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import rdrop_trainer
from rdrop_trainer.errors import InputError
from rdrop_trainer.report.runs import FinishedRun
from support import SCRIPT
from support.device import USE_CPU
from support.runs import fails, make_model, script, write_csv

SOURCES = [SCRIPT, *sorted(Path(rdrop_trainer.__file__).parent.rglob("*.py"))]

# ---- What the source says ----

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FUNCTIONS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    "os": {"system", "popen"},
    "torch": {"load"},
    "yaml": {"load", "load_all", "full_load", "unsafe_load"},
    "pd": {"read_pickle"},
    "hub": {"load"},
    "evaluate": {"load"},
}
FLAGS = {"allow_pickle": True, "shell": True, "trust_remote_code": True, "weights_only": False}


def ways_to_run_data(source):
    """What in a source text could run what it reads: modules, functions, and flags that are on."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            yield from MODULES & {name.split(".")[0] for name in names}
        elif isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in FUNCTIONS:
                yield function.id
            if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                if function.attr in METHODS.get(function.value.id, ()):
                    yield f"{function.value.id}.{function.attr}"
            for flag in node.keywords:
                if flag.arg in FLAGS and isinstance(flag.value, ast.Constant) and flag.value.value is FLAGS[flag.arg]:
                    yield flag.arg
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in FLAGS:
            if any(one.value is FLAGS[node.target.id] for one in ast.walk(node) if isinstance(one, ast.Constant)):
                yield node.target.id
        elif isinstance(node, ast.arguments):
            positional = zip(reversed([*node.posonlyargs, *node.args]), reversed(node.defaults), strict=False)
            for argument, default in [*positional, *zip(node.kwonlyargs, node.kw_defaults, strict=True)]:
                if argument.arg in FLAGS and getattr(default, "value", None) is FLAGS[argument.arg]:
                    yield argument.arg


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_source_runs_what_it_reads(path):
    assert list(ways_to_run_data(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source, found",
    [
        ("import pickle", "pickle"),
        ("from dill import loads", "dill"),
        ("eval('1')", "eval"),
        ("torch.load(path)", "torch.load"),
        ("yaml.load(text, Loader)", "yaml.load"),
        ("run(words, shell=True)", "shell"),
        ("np.load(path, allow_pickle=True)", "allow_pickle"),
        ("def load(name, trust_remote_code=True): pass", "trust_remote_code"),
        ("def load(name, trust_remote_code=True, dtype=None): pass", "trust_remote_code"),
        ("def load(name, *, token, trust_remote_code=True): pass", "trust_remote_code"),
        ("class A:\n    trust_remote_code: bool = field(default=True)", "trust_remote_code"),
    ],
)
def test_that_reading_finds_it(source, found):
    assert list(ways_to_run_data(source)) == [found]


# ---- What happens ----


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def place(model, here):
    """A folder with a model and data."""
    shutil.copytree(model, here / "model")
    write_csv(here / "train.csv", rows=8)
    return here


@pytest.fixture
def ran(tmp_path_factory):
    """The file that code makes when it runs."""
    return tmp_path_factory.mktemp("ran") / "ran"


FLAGS_OF_A_RUN = ["--model_name_or_path", "model", "--train_file", "train.csv", "--output_dir", "out"]
RESUMED = ["--resume_from_checkpoint", "out/checkpoint-1", "--output_dir", "again"]
FLAGS_OF_A_RUN += ["--max_seq_length", "16", "--use_cpu", str(USE_CPU), "--disable_tqdm", "True", "--save_steps", "1"]
FLAGS_OF_A_RUN += ["--per_device_train_batch_size", "4", "--num_train_epochs", "1", "--do_train"]


def test_the_payload_works(ran):
    pickle.loads(pickle.dumps(Payload(ran)))
    assert ran.exists()


def test_a_recipe(ran, here, capsys):
    (here / "recipe.yaml").write_text(f"seed: !!python/object/apply:os.system ['touch {ran}']\n")
    assert "recipe.yaml:1: not valid YAML: could not determine a constructor" in fails(capsys, "recipe.yaml")
    assert not ran.exists()


CODE = """
from pathlib import Path
Path({file!r}).touch()
from transformers import BertConfig, BertForSequenceClassification
class OwnConfig(BertConfig):
    model_type = "own-bert"
class Own(BertForSequenceClassification):
    config_class = OwnConfig
"""


def test_a_folder_that_brings_its_model(place, ran, capsys):
    config = json.loads((place / "model" / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.Own"}
    config |= {"architectures": ["Own"], "model_type": "own-bert", "auto_map": own}
    (place / "model" / "config.json").write_text(json.dumps(config))
    (place / "model" / "own.py").write_text(CODE.format(file=str(ran)))
    assert "contains custom code" in (said := fails(capsys, *FLAGS_OF_A_RUN))
    assert said.endswith("read it, then pass --trust_remote_code")
    assert not ran.exists() and not (place / "out").exists()
    assert script.main([*FLAGS_OF_A_RUN, "--trust_remote_code"]) == 0
    assert ran.exists()


def test_a_folder_that_brings_code_for_a_model_of_transformers(place, ran):
    config = json.loads((place / "model" / "config.json").read_text())
    (place / "model" / "config.json").write_text(
        json.dumps({**config, "auto_map": {"AutoModelForSequenceClassification": "own.Own"}})
    )
    tokenizer = json.loads((place / "model" / "tokenizer_config.json").read_text())
    (place / "model" / "tokenizer_config.json").write_text(
        json.dumps({**tokenizer, "auto_map": {"AutoTokenizer": ["own.Own", None]}})
    )
    (place / "model" / "own.py").write_text(CODE.format(file=str(ran)))
    assert script.main(FLAGS_OF_A_RUN) == 0
    assert not ran.exists()


def test_pickled_weights(place, ran, capsys):
    (place / "model" / "model.safetensors").unlink()
    torch.save({"a": Payload(ran)}, place / "model" / "pytorch_model.bin")
    assert "model: cannot be loaded" in fails(capsys, *FLAGS_OF_A_RUN)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_to_resume_from(name, place, ran):
    assert script.main([*FLAGS_OF_A_RUN, "--max_steps", "1"]) == 0
    torch.save(Payload(ran), place / "out" / "checkpoint-1" / name)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        script.main([*FLAGS_OF_A_RUN, *RESUMED])
    assert not ran.exists()


def test_pickled_arguments_are_not_read(place, ran):
    assert script.main([*FLAGS_OF_A_RUN, "--max_steps", "1"]) == 0
    torch.save(Payload(ran), place / "out" / "checkpoint-1" / "training_args.bin")
    assert script.main([*FLAGS_OF_A_RUN, *RESUMED]) == 0
    assert not ran.exists()


def test_saved_predictions(ran, tmp_path):
    (tmp_path / "all_results.json").write_text("{}")
    arrays = {"logits": np.array([Payload(ran)], dtype=object), "labels": np.zeros(1)}
    np.savez(tmp_path / "eval_logits.npz", **arrays)
    with pytest.raises(InputError, match="eval_logits.npz: is not that of a finished run .*allow_pickle=False"):
        FinishedRun.read(tmp_path)
    assert not ran.exists()
