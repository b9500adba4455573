"""README and docs: every Python block runs, every command is one that the programs take, every link leads somewhere."""

import re
import shlex
import sys
import types
from pathlib import PurePath

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, DataCollatorWithPadding

from rdrop_trainer.hub import __main__ as hub_commands
from rdrop_trainer.hub import push_checkpoint
from rdrop_trainer.report import FinishedRun
from rdrop_trainer.report import __main__ as report_command
from rdrop_trainer.script import release
from rdrop_trainer.script.command_line import parse_arguments
from rdrop_trainer.script.demo import make_sentences
from rdrop_trainer.script.scratch import make_bert
from support import tiny, zoo

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

from support import ROOT, blocks_of

TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "recipes" / "README.md"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = ("peft", "trl", "sentence_transformers")
READ_ONLY = ("diff", "bibtex", "text")


def name(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
    languages = set(re.findall(r"(?m)^ *```(\w+)$", page.read_text(encoding="utf-8")))
    assert languages <= {"python", "bash", "yaml", "json", *READ_ONLY}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_package_is_installed_from_where_it_is(page):
    """No index has it: from a clone, `-e ".[report]"`, or from the address of a repository."""
    for requirement in re.findall(r"pip install[^`\n]*?(rdrop-trainer\b[^`\n]*)", page.read_text(encoding="utf-8")):
        assert "@ git+" in requirement


# ---- Python ----


@pytest.fixture
def names(tmp_path, hub, monkeypatch):
    """What the pages take for granted: a model, its data, a trainer, finished runs, a checkpoint on the Hub."""
    words = [text for text, _ in make_sentences(60, seed=3)]
    make_bert(tmp_path / "model", words, hidden_size=16, heads=2, max_length=32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    data = Dataset.from_list(tiny.dataset("single_label", rows=120))
    model = tiny.bert()
    model.resize_token_embeddings(max(len(tokenizer), 40))
    hub.user("me")
    hub.login("me")
    trained = tmp_path / "trained"
    model.save_pretrained(trained)
    tokenizer.save_pretrained(trained)
    push_checkpoint(trained, "me/mrpc-rdrop")
    page = types.ModuleType("page")  # whose classes can be pickled, as those of a script
    monkeypatch.setitem(sys.modules, "page", page)
    vars(page).update(
        {
            "model": model,
            "tokenizer": tokenizer,
            "train_dataset": data,
            "features": data.select(range(8)),
            "rows": [{"sentence": text, "label": 0} for text in words[:8]],
            "collator": DataCollatorWithPadding(tokenizer),
            "language_model": zoo.build("llama"),
            "encoder": model.bert,
            "sentences": data.remove_columns("labels"),
            "texts": Dataset.from_dict({"text": words[:16]}),
            "trainer": tiny.trainer(model, data, tmp_path / "run"),
            "baseline_runs": [FinishedRun(seed, 0.0, {"accuracy": 0.8 + seed / 100}) for seed in (1, 2)],
            "rdrop_runs": [FinishedRun(seed, 4.0, {"accuracy": 0.82 + seed / 100}) for seed in (1, 2)],
        }
    )
    return vars(page)


# Their blocks need what their commands leave, so tests of their own run both
APART = ("your-own-data.md", "your-own-tags.md", "your-own-pairs.md", "your-own-questions.md", "your-own-texts.md")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks_of(page, "python") and page.name not in APART], ids=name
)
def test_python_blocks_run(page, names, here):
    for text in blocks_of(page, "python"):
        if not needed(text):
            exec(compile(text, name(page), "exec"), names)


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("package", OPTIONAL)
def test_examples_over_another_package_run(package, names, here):
    pytest.importorskip(package)
    names["tokenizer"].eos_token = "[SEP]"
    names["language_model"].resize_token_embeddings(len(names["tokenizer"]))
    if package == "sentence_transformers":
        from sentence_transformers.cross_encoder import CrossEncoder

        texts = names["texts"]["text"]
        lists = {"documents": [[a, b] for a, b in zip(texts[1:9], texts[2:10], strict=True)], "labels": [[1, 0]] * 8}
        names["ranking"] = Dataset.from_dict({"query": texts[:8], **lists})
        names["cross_encoder"] = CrossEncoder(str(here / "model"), num_labels=1, device="cpu")
    for text in blocks_of(ROOT / "docs" / "other-trainers.md", "python"):
        if needed(text) in ([], [package]):
            exec(compile(text, package, "exec"), names)


def needed(text):
    """The packages that a block needs and the tests can do without."""
    return [package for package in OPTIONAL if re.search(rf"from {package}[. ]", text)]


# ---- Commands ----


def test_the_script_names_what_the_package_needs():
    """For `uv run`, and not by a path: `hf jobs uv run` sends the file alone."""
    text = (ROOT / "run_glue_rdrop.py").read_text(encoding="utf-8")
    (block,) = re.findall(r"(?m)^# /// script$\s((?:^#(?:| .*)$\s)+)^# ///$", text)  # PEP 723's own expression
    header = tomllib.loads(re.sub(r"(?m)^# ?", "", block))
    extras = PROJECT["optional-dependencies"]
    wanted = {*PROJECT["dependencies"], *extras["glue"], *extras["report"], *extras["seq2seq"]}
    assert set(header["dependencies"]) == wanted and len(header["dependencies"]) == len(wanted)
    assert header["requires-python"] == PROJECT["requires-python"] and header.keys() == {
        "dependencies",
        "requires-python",
    }


def commands(page):
    for text in blocks_of(page, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                yield words[:end]
                words = words[end + 1 :]


def takes(words):
    """Parse a command as its program would."""
    program, *rest = words
    if program in ("torchrun", "accelerate"):
        at = rest.index("run_glue_rdrop.py")
        return takes(["python", *rest[at:]])
    if program == "pip":
        extras = {extra for word in rest for found in re.findall(r"\[(.+?)\]", word) for extra in found.split(",")}
        assert extras <= PROJECT["optional-dependencies"].keys()
        return None
    if program in ("pytest", "nox", "mkdocs"):
        return None
    if program in ("uv", "hf"):  # options of theirs, and then what they start
        start = next((i for i, word in enumerate(rest) if word in ("python", "run_glue_rdrop.py")), None)
        return start and takes(rest[start:] if rest[start] == "python" else ["python", *rest[start:]])
    assert program == "python", words
    if rest[0] == "run_glue_rdrop.py":
        return parse_arguments(rest[1:])
    if rest[:3] == ["-m", "rdrop_trainer.hub", "release"]:
        return release.parser().parse_args(rest[3:])
    if rest[0] == "-m":
        parsers = {"rdrop_trainer.hub": hub_commands._parser, "rdrop_trainer.report": report_command._parser}
        return parsers[rest[1]]().parse_args(rest[2:])
    source = (ROOT / rest[0]).read_text(encoding="utf-8")
    assert all(f'"{word}"' in source for word in rest[1:] if word.startswith("--")), words
    return None


@pytest.fixture
def recipes(here):
    """The published ones, and one that a search left: it names no folder."""
    (here / "recipes").symlink_to(ROOT / "recipes")
    found = here / "runs" / "mrpc-search" / "recipe.yaml"
    found.parent.mkdir(parents=True)
    text = (ROOT / "recipes" / "bert-base-mrpc.yaml").read_text(encoding="utf-8")
    found.write_text(re.sub("(?m)^output_dir: .*\n", "", text), encoding="utf-8")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page, "bash")], ids=name)
def test_commands_are_taken(page, recipes):
    for words in commands(page):
        takes(words)


# What a command may change that is given again for the same folder
FREE = {"arms", "seeds", "parallel", "dry_run", "push_to_hub", "hub_model_id", "output_dir"}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page, "bash")], ids=name)
def test_runs_of_a_page_have_folders_of_their_own(page, recipes):
    """Who runs a page from its first line to its last is not told that a folder holds another run."""
    runs = {}
    for taken in map(takes, commands(page)):
        if not hasattr(taken, "training") or taken.data.demo or taken.data.dry_run:
            continue
        several = "comparison" if taken.several.compare_baseline else "search" if taken.several.tune else None
        alpha, seed = taken.training.rdrop_alpha, taken.training.seed
        default = f"runs/{taken.data.task_name or 'custom'}-{several or f'alpha{alpha:g}-seed{seed}'}"
        folder = taken.given.get("output_dir") or default
        settings = {key: value for key, value in taken.given.items() if key not in FREE}
        assert settings == runs.setdefault(folder, settings), f"{folder} is that of another command"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page, "bash")], ids=name)
def test_folders_of_runs_are_made_by_a_command_above(page, recipes):
    made = set()
    for words in commands(page):
        folders = [PurePath(taken.training.output_dir) for taken in [takes(words)] if hasattr(taken, "training")]
        made |= {str(folder) for made_now in folders for folder in (made_now, *made_now.parents[:-2])}
        if words[:3] in (["python", "-m", "rdrop_trainer.report"], ["python", "-m", "rdrop_trainer.hub"]):
            read = {word for word in words[3:] if word.startswith("runs/")}
            assert read <= made, f"{read - made} is made by no command above"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "hub.md"], ids=name)
def test_no_private_push_to_what_a_command_above_made_public(page):
    public = set()
    for words in commands(page):
        if "--private" in words:
            assert not public & set(words)
        elif "--hub_model_id" in words:
            public.add(words[words.index("--hub_model_id") + 1])
    assert public
