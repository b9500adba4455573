"""download_checkpoint and load_checkpoint with the real clients against a local Hub: nothing false, nothing outside."""

import hashlib
import json
import os
import pickle
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForSequenceClassification, Wav2Vec2FeatureExtractor

from rdrop_trainer import RDropArguments
from rdrop_trainer.errors import HubError, InputError
from rdrop_trainer.hub import download_checkpoint, load_checkpoint
from rdrop_trainer.hub.__main__ import main
from rdrop_trainer.hub.adapter import Adapter
from rdrop_trainer.hub.model_kinds import pipeline_tag_of
from support import tiny, zoo

REPO = "ada/model"
CARD = (
    "---\ntags: [r-drop]\npipeline_tag: {task}\nr_drop: {{alpha: 2.5, num_passes: 3, version: 1.0}}\n---\n# A model\n"
)
RAN = "ran-the-code"


def saved(folder, model, processor=None, task="text-classification"):
    """The files of a model's folder."""
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    (folder / "README.md").write_text(CARD.format(task=task))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("saved"), tiny.bert(), tiny.tokenizer())


@pytest.fixture
def ada(hub, files):
    hub.user("ada")
    hub.user("eve")
    hub.repo(REPO, files)
    return hub


def below(folder):
    """Every file below a folder, by its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def whole(files):
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


# ---- What is downloaded ----


def test_a_checkpoint_and_nothing_else_is_downloaded(ada, files):
    others = (
        "optimizer.pt pytorch_model.bin training_args.bin train.py .env checkpoint-5/model.safetensors pictures/a.png"
    )
    ada.repo(REPO, {**dict.fromkeys(others.split(), "x"), "logs/a.json": "{}"})
    assert below(download_checkpoint(REPO)) == whole(files)
    assert {one.path.split("/")[-1] for one in ada.seen("resolve")} == set(files)


def test_what_is_there_is_not_fetched_again(ada, files, tmp_path):
    folder = download_checkpoint(REPO)
    assert below(folder) == whole(files) and folder.is_relative_to(os.environ["HF_HOME"])
    ada.requests.clear()
    assert download_checkpoint(REPO) == folder and not ada.seen("resolve")
    (folder / "config.json").write_text("{}")  # damaged on the disk
    assert below(download_checkpoint(REPO)) == whole(files)
    assert download_checkpoint(REPO, cache_dir=tmp_path).is_relative_to(tmp_path)


def test_revisions_and_tokens(ada, files):
    old = ada.repos["model", REPO].resolve("main").sha
    ada.repo(REPO, {"config.json": json.dumps({**json.loads(files["config.json"]), "x": 1})})
    assert "x" in json.loads((download_checkpoint(REPO) / "config.json").read_text())
    assert below(download_checkpoint(REPO, revision=old)) == whole(files)
    ada.repo("ada/secret", files, private=True)
    assert below(download_checkpoint("ada/secret", token="hf_ada")) == whole(files)
    for name, options, said in (
        (REPO, {"revision": "v9"}, "ada/model at v9 was not downloaded: no such repository, revision or file"),
        ("ada/none", {}, "no such repository"),
        ("ada/secret", {}, "hf auth login"),
        ("ada/secret", {"token": "hf_eve"}, "no such repository"),
        ("ada/secret", {"token": "hf_wrong"}, "the token is missing, wrong"),
    ):
        with pytest.raises(HubError, match=said) as error:
            load_checkpoint(name, **options)
        assert "\n" not in str(error.value) and "hf_" not in str(error.value)


def test_sharded_weights(ada, tmp_path):
    model = tiny.bert(vocab_size=4000)
    model.save_pretrained(tmp_path / "from", max_shard_size="100KB")
    ada.repo("ada/shards", {path.name: path.read_bytes() for path in (tmp_path / "from").iterdir()})
    assert len(list(download_checkpoint("ada/shards").glob("model-*-of-*.safetensors"))) > 1
    assert tiny.identical(tiny.weights(load_checkpoint("ada/shards").model), tiny.weights(model))


def test_only_pickled_weights(ada, files, tmp_path):
    ada.repo("ada/pickled", {**without(files, "model.safetensors"), "pytorch_model.bin": pickle.dumps(Harm(tmp_path))})
    with pytest.raises(InputError, match="holds pytorch_model.bin but no safetensors weights; pickled ones can run"):
        load_checkpoint("ada/pickled")
    assert ada.seen("resolve") == [] and not (tmp_path / RAN).exists()
    here = tmp_path / "here"
    here.mkdir()
    (here / "config.json").write_bytes(files["config.json"])
    torch.save(tiny.bert().state_dict(), here / "pytorch_model.bin")  # a harmless one, even
    with pytest.raises(InputError, match="cannot be loaded as .* no file named model.safetensors"):
        load_checkpoint(here)
    ada.repo("ada/empty", {"config.json": "{}"})
    with pytest.raises(InputError, match="holds no weights"):
        load_checkpoint("ada/empty")
    ada.repo("ada/no-config", without(files, "config.json"))
    with pytest.raises(InputError, match="holds no config.json"):
        load_checkpoint("ada/no-config")


class Harm:
    """What a pickle can do."""

    def __init__(self, folder):
        self.file = str(folder / RAN)

    def __reduce__(self):
        return open, (self.file, "w")


def without(files, *names):
    return {name: content for name, content in files.items() if name not in names}


# ---- Damage on the way ----

ONCE = {
    "a wrong byte": ("corrupt", "model.safetensors", {}),
    "a wrong byte in a small file": ("corrupt", "/config.json", {}),
    "cut short": ("truncate", "model.safetensors", {}),
    "a small file cut short": ("truncate", "tokenizer.json", {}),
    "a reset": ("drop", "resolve", {"after": 1000, "method": "GET", "path": "model.safetensors"}),
    "an early end": ("drop", "resolve", {"after": 1000, "method": "GET", "path": "model.safetensors", "hard": False}),
    "a fault of the server": ("fail", "resolve", {"status": 503, "method": "GET"}),
    "a limit": ("fail", "info", {"status": 429, "headers": {"Retry-After": "7"}}),
}


@pytest.mark.parametrize("case", ONCE)
def test_damage_that_passes(ada, files, case):
    fault, where, options = ONCE[case]
    getattr(ada, fault)(where, **options)
    assert below(download_checkpoint(REPO)) == whole(files)


@pytest.mark.parametrize(
    ("fault", "where", "said"),
    [
        ("corrupt", "model.safetensors", "has another hash than the server states. Nothing of it was kept"),
        ("corrupt", "/config.json", "config.json has another hash"),
        ("truncate", "model.safetensors", "model.safetensors has another hash than the server states"),
    ],
)
def test_damage_that_stays(ada, files, fault, where, said, caplog):
    getattr(ada, fault)(where, times=None)
    with pytest.raises(HubError, match=said):
        load_checkpoint(REPO)
    assert "it is fetched once more" in caplog.text
    kept = list(Path(os.environ["HF_HOME"]).rglob("snapshots/*/*"))
    assert all(path.read_bytes() == files[path.name] for path in kept), "what is damaged does not stay in the cache"
    assert where.strip("/") not in {path.name for path in kept}


def test_a_broken_connection_is_gone_on_with(ada, files):
    ada.drop("resolve", method="GET", path="model.safetensors", times=None)
    with pytest.raises(HubError, match="at main was not downloaded: the connection.*The same command goes on"):
        download_checkpoint(REPO)
    ada.faults.clear()
    ada.requests.clear()
    assert below(download_checkpoint(REPO)) == whole(files)
    assert "README.md" not in {one.path.split("/")[-1] for one in ada.seen("resolve")}, "that one is there already"


# ---- A server that lies ----


@pytest.mark.parametrize(
    "name",
    ["/evil.json", "x/../../evil.json", "..\\evil.json", "\\evil.json", "C:evil.json", "a\x00.json", "\x1b[2J.json"],
)
def test_names_that_lead_outside(ada, tmp_path, name):
    ada.rename("tokenizer.json", name)
    with pytest.raises(HubError, match="which leads outside") as error:
        download_checkpoint(REPO, cache_dir=tmp_path)
    assert below(tmp_path) == {} and ada.seen("resolve") == [] and str(error.value).isprintable()


@pytest.mark.parametrize("header", ["ETag", "X-Linked-Etag", "X-Repo-Commit"])
@pytest.mark.parametrize("value", ["../../../../evil", "/evil", "0" * 40])
def test_headers_that_lead_outside(ada, files, tmp_path, header, value):
    """The client makes paths of them."""
    home = Path(os.environ["HF_HOME"])

    def outside():
        return {*home.parent.glob("*evil*"), *home.rglob("*evil*"), *tmp_path.rglob("*evil*")}

    before = outside()
    ada.lie(header, value)
    try:
        assert below(download_checkpoint(REPO, cache_dir=tmp_path / "a" / "b" / "c")) == whole(files)
    except HubError as error:
        assert "was not downloaded" in str(error)
    assert outside() == before
    assert {path.name for path in tmp_path.iterdir()} <= {"a"}


def change_facts(**changes):
    """The listing of the files, with other facts of the weights."""

    def change(answer):
        weights = [file["rfilename"] == "model.safetensors" for file in answer.body["siblings"]]
        files = zip(answer.body["siblings"], weights, strict=True)
        return replace(answer, body={**answer.body, "siblings": [{**f, **changes} if w else f for f, w in files]})

    return change


def change_commit(sha):
    return lambda answer: replace(answer, body={**answer.body, "sha": sha})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_commit("../../evil"), "the server calls its commit '../../evil', which is none"),
        (change_commit(None), "which is none"),
        (change_facts(lfs=None, blobId=None), "states no hash of model.safetensors"),
        (change_facts(lfs=None, blobId="../evil"), "states no hash of model.safetensors"),
        (change_facts(lfs=None, blobId="0" * 40), "model.safetensors has another hash than the server states"),
        (change_facts(rfilename=7), "no safetensors|no weights"),
    ],
)
def test_facts_that_are_none(ada, change, said):
    ada.lie("X-Any", "any", route="info").change = change
    with pytest.raises((HubError, InputError), match=said):
        download_checkpoint(REPO)


# ---- What is loaded ----

TASKS = {
    "choice": "multiple-choice",
    "question": "question-answering",
    "masked_lm": "fill-mask",
    "gpt2": "text-generation",
    "t5": "summarization",
    "bart": "translation",
    "vit": "image-classification",
    "wav2vec2": "audio-classification",
    "ctc": "automatic-speech-recognition",
}
HEADS = {
    "sequence": (tiny.bert, "text-classification"),
    "token": (lambda: tiny.bert("token"), "token-classification"),
    **{name: (partial(zoo.build, name), task) for name, task in TASKS.items()},
}


def test_the_task_of_a_model_for_ctc_is_known():
    assert pipeline_tag_of("Wav2Vec2ForCTC") == TASKS["ctc"]


@pytest.mark.parametrize(("head", "card"), [*((head, True) for head in HEADS), ("question", False), ("bart", False)])
def test_every_head_comes_back_as_it_was(ada, tmp_path, head, card):
    build, task = HEADS[head]
    model = build()
    files = saved(tmp_path, model, task=task)
    ada.repo("ada/head", files if card else without(files, "README.md"))
    loaded = load_checkpoint("ada/head")
    assert type(loaded.model) is type(model) and not loaded.model.training
    assert tiny.identical(tiny.weights(loaded.model), tiny.weights(model.eval()))
    assert loaded.processing_class is None
    assert loaded.settings == (RDropArguments(rdrop_alpha=2.5, rdrop_num_passes=3) if card else None)


def test_processing_classes(ada, files, tmp_path):
    model, tokenizer, settings = load_checkpoint(REPO)
    assert tokenizer("w3")["input_ids"] == [3] and settings.rdrop_alpha == 2.5
    assert model(**tokenizer("w3", return_tensors="pt")).logits.shape == (1, 4)
    ada.repo("ada/audio", saved(tmp_path / "audio", zoo.build("wav2vec2"), Wav2Vec2FeatureExtractor()))
    assert isinstance(load_checkpoint("ada/audio").processing_class, Wav2Vec2FeatureExtractor)


def test_image_processors(ada, tmp_path):
    if getattr(AutoImageProcessor, "is_dummy", False):
        pytest.skip("transformers wants Pillow for it, or torchvision too, as 5.17 does")
    image = saved(tmp_path, zoo.build("vit"))
    image["preprocessor_config.json"] = json.dumps({"image_processor_type": "ViTImageProcessor", "size": 8})
    ada.repo("ada/image", image)
    assert "ImageProcessor" in type(load_checkpoint("ada/image").processing_class).__name__


def test_a_folder_is_loaded_without_the_hub(hub, files, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    loaded = load_checkpoint(tmp_path, dtype=torch.float64)
    assert loaded.model.dtype == torch.float64 and loaded.settings.rdrop_alpha == 2.5
    assert hub.requests == []


# ---- What is not loaded ----

CODE = """
open({file!r}, "w").close()
from transformers import BertConfig, BertForSequenceClassification
class OwnConfig(BertConfig):
    model_type = "own-bert"
class Own(BertForSequenceClassification):
    config_class = OwnConfig
"""


def test_code_of_the_repository(ada, files, tmp_path):
    """It is neither fetched nor run unless that is asked for."""
    config = json.loads(files["config.json"])
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.Own"}
    config |= {"architectures": ["Own"], "model_type": "own-bert", "auto_map": own}
    code = CODE.format(file=str(tmp_path / RAN))
    ada.repo("ada/own", {**files, "config.json": json.dumps(config), "own.py": code})
    with pytest.raises(InputError, match="for code from the Hub, for Own; read that code, then load it with trust"):
        load_checkpoint("ada/own")
    assert not (tmp_path / RAN).exists()
    assert not any(one.path.endswith(".py") for one in ada.requests)
    assert type(load_checkpoint("ada/own", trust_remote_code=True).model).__name__ == "Own"
    assert (tmp_path / RAN).exists()


def tokenizer_with_code(files):
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    return {"tokenizer_config.json": json.dumps(own), "own.py": "raise SystemExit('ran')"}


def test_code_of_a_tokenizer(ada, files):
    ada.repo("ada/own", {**files, **tokenizer_with_code(files)})
    load_checkpoint("ada/own")  # transformers takes its own class
    assert not any(one.path.endswith(".py") for one in ada.requests)


def changed(**changes):
    return lambda files: {"config.json": json.dumps({**json.loads(files["config.json"]), **changes})}


def headless(files):
    config, weights = json.loads(files["config.json"]), files["model.safetensors"]
    path = Path(os.environ["HF_HOME"]) / "headless.safetensors"
    path.write_bytes(weights)
    save_file({k: v for k, v in load_file(path).items() if "classifier" not in k}, path, metadata={"format": "pt"})
    return {"config.json": json.dumps(config), "model.safetensors": path.read_bytes()}


REFUSED = {
    "no head": (headless, "its weights lack classifier.bias, classifier.weight, which would be random"),
    "other shapes": (changed(hidden_size=32), "the shapes of its weights are not those that its config.json tells"),
    "no size": (changed(hidden_size="x"), "cannot be loaded as AutoModelForSequenceClassification"),
    "no heads": (changed(num_attention_heads=0), "cannot be loaded as"),
    "labels that are none": (changed(id2label=5), "cannot be loaded as"),
    "an unknown type": (changed(model_type="own"), "cannot be loaded as .*does not recognize this architecture"),
    "a kernel of the Hub's": (changed(_attn_implementation="eve/kernel"), "asks for code from the Hub"),
    "a kernel below": (changed(text_config={"attn_implementation": "eve/kernel@v1"}), "asks for code from the Hub"),
    "a class that is none": (changed(architectures=["Own"]), "cannot be loaded|says how to load it"),
    "classes that are a number": (changed(architectures=7), "cannot be loaded|says how to load it"),
    "classes that are numbers": (changed(architectures=[7]), "cannot be loaded|says how to load it"),
    "no configuration": (lambda files: {"config.json": "[1]"}, "expected an object, got list"),
    "a broken configuration": (lambda files: {"config.json": "{"}, "config.json:1: not valid JSON"),
    "a broken tokenizer": (lambda files: {"tokenizer.json": "{}"}, "cannot be loaded as"),
    "broken weights": (lambda files: {"model.safetensors": "no weights" * 9}, "cannot be loaded as"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_loaded_is_said_in_a_line(hub, files, tmp_path, case):
    change, said = REFUSED[case]
    for name, content in {**without(files, "README.md"), **change(files)}.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=said) as error:
        load_checkpoint(tmp_path)
    assert "\n" not in str(error.value) and hub.requests == []


def test_a_damaged_card_is_no_hindrance(hub, files, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for card in (b"---\na: {{\n---\n", b"\xff\xfe", b"---\npipeline_tag: [x]\nr_drop: [1]\n---\n"):
        (tmp_path / "README.md").write_bytes(card)
        assert load_checkpoint(tmp_path).settings is None


@pytest.mark.parametrize("name", ["../x", "/no/such/folder", ""])
def test_names_that_are_none(hub, name):
    with pytest.raises(InputError, match="is no repository's name"):
        download_checkpoint(name)
    assert hub.requests == []


# ---- Adapters ----


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter with a head of 3 labels, over a model with one of 4; its files and its logits."""
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapter")
    saved(folder / "base", tiny.bert(), tiny.tokenizer())
    model = AutoModelForSequenceClassification.from_pretrained(
        folder / "base", num_labels=3, ignore_mismatched_sizes=True
    )
    settings = peft.LoraConfig(task_type="SEQ_CLS", init_lora_weights=False, base_model_name_or_path=REPO)
    model = peft.get_peft_model(model, settings).eval()
    model.peft_config["default"].base_model_name_or_path = REPO
    logits = model(torch.tensor([[3, 4, 5]])).logits
    return saved(folder / "adapter", model, tiny.tokenizer()), logits


def test_an_adapter_comes_with_the_model_below_it(ada, adapter, tmp_path):
    files, logits = adapter
    ada.repo("ada/adapter", files)
    loaded = load_checkpoint("ada/adapter")
    assert type(loaded.model).__name__ == "PeftModelForSequenceClassification" and not loaded.model.training
    torch.testing.assert_close(loaded.model(torch.tensor([[3, 4, 5]])).logits, logits)
    assert loaded.processing_class("w3")["input_ids"] == [3] and loaded.settings.rdrop_alpha == 2.5
    ada.corrupt(f"{REPO}/resolve", times=None)
    for blob in (Path(os.environ["HF_HOME"]) / "hub" / "models--ada--model" / "blobs").iterdir():
        blob.write_bytes(b"x" * blob.stat().st_size)
    with pytest.raises(HubError, match="has another hash than the server states"):
        load_checkpoint("ada/adapter")


def below_is_pickled(hub, files):
    hub.repos.clear()
    hub.repo(REPO, {"config.json": "{}", "pytorch_model.bin": "x"})


def below_is_code(hub, files):
    hub.repo(REPO, changed(auto_map={"AutoModel": "own.Own"})(hub.files(REPO)))


def is_pickled(hub, files):
    files["adapter_model.bin"] = files.pop("adapter_model.safetensors")


def adapter_config(**content):
    return lambda hub, files: files.update({"adapter_config.json": json.dumps(content)})


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (below_is_pickled, "ada/model at main: holds pytorch_model.bin but no safetensors weights"),
        (lambda hub, files: hub.corrupt(f"{REPO}/resolve", times=None), "has another hash than the server states"),
        (below_is_code, "asks for code from the Hub"),
        (
            adapter_config(task_type="SEQ_CLS", base_model_name_or_path="/"),
            "is an adapter of the model in /, which is not there",
        ),
        (adapter_config(task_type="SEQ_CLS"), "does not name the model that it is an adapter of"),
        (is_pickled, "no safetensors weights"),
        (lambda _, files: files.update({"adapter_model.safetensors": b"x" * 99}), "_model.safetensors is damaged"),
    ],
)
def test_adapters_that_are_not_loaded(ada, adapter, harm, said):
    files = dict(adapter[0])
    harm(ada, files)
    ada.repo("ada/adapter", files)
    with pytest.raises((InputError, HubError), match=said):
        load_checkpoint("ada/adapter")


NAMES = {str(i): f"name {i}" for i in range(12)}


@pytest.mark.parametrize(
    "known, expected",
    [
        ({"id2label": dict(sorted(NAMES.items())), "pad_token_id": 7}, list(NAMES.values())),  # as JSON is written
        ({"id2label": {"0": "a", "2": "b"}, "pad_token_id": "x"}, None),
        ({"id2label": {"0": "a", "1": ["b"]}, "pad_token_id": True}, None),
        ({"id2label": ["a", "b"]}, None),
        ("text", None),
        (None, None),
    ],
)
def test_the_labels_that_an_adapter_names(known, expected, tmp_path):
    found = Adapter(tmp_path, REPO, None, None, {"score.weight": [3, 8]}, {"auto_mapping": known}).model_arguments
    if expected is None:
        assert found == {"num_labels": 3, "ignore_mismatched_sizes": True}
    else:
        assert found["num_labels"] == 12 and found["pad_token_id"] == 7
        assert found["id2label"] == dict(enumerate(expected)) and found["label2id"]["name 11"] == 11


def test_an_adapter_without_peft(ada, adapter, monkeypatch):
    ada.repo("ada/adapter", adapter[0])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match="ada/adapter: is an adapter; pip install peft to load it"):
        load_checkpoint("ada/adapter")


# ---- The command line ----


def test_push_and_download_again(hub, files, tmp_path, capsys):
    hub.user("ada")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert main(["push", str(tmp_path), "ada/new", "--private", "--token", "hf_ada"]) == 0
    assert capsys.readouterr().out.startswith(f"{hub.url}/ada/new/commit/")
    assert main(["download", "ada/new", "--token", "hf_ada"]) == 0
    assert below(Path(capsys.readouterr().out.strip())) == whole(without(hub.files("ada/new"), ".gitattributes"))
