"""load_checkpoint: every head comes back as it was, and what is not loaded is said in a line, before any of it runs."""

import json
import os
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, Wav2Vec2FeatureExtractor

from rdrop_trainer import RDropArguments
from rdrop_trainer.errors import InputError
from rdrop_trainer.hub import download_checkpoint, load_checkpoint
from rdrop_trainer.hub.model_kinds import pipeline_tag_of
from support import tiny, zoo
from support.hub_files import REPO, changed, model_files, without

RAN = "ran-the-code"


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
def test_every_head_comes_back_as_it_was(public, tmp_path, head, card):
    build, task = HEADS[head]
    model = build()
    files = model_files(tmp_path, model, task=task)
    public.repo("ada/head", files if card else without(files, "README.md"))
    loaded = load_checkpoint("ada/head")
    assert type(loaded.model) is type(model) and not loaded.model.training
    assert tiny.identical(tiny.weights(loaded.model), tiny.weights(model.eval()))
    assert loaded.processing_class is None
    assert loaded.settings == (RDropArguments(rdrop_alpha=2.5, rdrop_num_passes=3) if card else None)


def test_processing_classes(public, files, tmp_path):
    model, tokenizer, settings = load_checkpoint(REPO)
    assert tokenizer("w3")["input_ids"] == [3] and settings.rdrop_alpha == 2.5
    assert model(**tokenizer("w3", return_tensors="pt")).logits.shape == (1, 4)
    public.repo("ada/audio", model_files(tmp_path / "audio", zoo.build("wav2vec2"), Wav2Vec2FeatureExtractor()))
    assert isinstance(load_checkpoint("ada/audio").processing_class, Wav2Vec2FeatureExtractor)


def test_image_processors(public, tmp_path):
    if getattr(AutoImageProcessor, "is_dummy", False):
        pytest.skip("transformers wants Pillow for it, or torchvision too, as 5.17 does")
    image = model_files(tmp_path, zoo.build("vit"))
    image["preprocessor_config.json"] = json.dumps({"image_processor_type": "ViTImageProcessor", "size": 8})
    public.repo("ada/image", image)
    assert "ImageProcessor" in type(load_checkpoint("ada/image").processing_class).__name__


def test_sharded_weights(public, tmp_path):
    model = tiny.bert(vocab_size=4000)
    model.save_pretrained(tmp_path / "from", max_shard_size="100KB")
    public.repo("ada/shards", {path.name: path.read_bytes() for path in (tmp_path / "from").iterdir()})
    assert len(list(download_checkpoint("ada/shards").glob("model-*-of-*.safetensors"))) > 1
    assert tiny.identical(tiny.weights(load_checkpoint("ada/shards").model), tiny.weights(model))


def test_a_folder_is_loaded_without_the_hub(hub, files, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    loaded = load_checkpoint(tmp_path, dtype=torch.float64)
    assert loaded.model.dtype == torch.float64 and loaded.settings.rdrop_alpha == 2.5
    assert hub.requests == []


def test_a_damaged_card_is_no_hindrance(hub, files, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for card in (b"---\na: {{\n---\n", b"\xff\xfe", b"---\npipeline_tag: [x]\nr_drop: [1]\n---\n"):
        (tmp_path / "README.md").write_bytes(card)
        assert load_checkpoint(tmp_path).settings is None


# ---- What is not loaded ----


class Harm:
    """What a pickle can do."""

    def __init__(self, folder):
        self.file = str(folder / RAN)

    def __reduce__(self):
        return open, (self.file, "w")


def test_only_pickled_weights(public, files, tmp_path):
    public.repo(
        "ada/pickled", {**without(files, "model.safetensors"), "pytorch_model.bin": pickle.dumps(Harm(tmp_path))}
    )
    with pytest.raises(InputError, match="holds pytorch_model.bin but no safetensors weights; pickled ones can run"):
        load_checkpoint("ada/pickled")
    assert public.seen("resolve") == [] and not (tmp_path / RAN).exists()
    here = tmp_path / "here"
    here.mkdir()
    (here / "config.json").write_bytes(files["config.json"])
    torch.save(tiny.bert().state_dict(), here / "pytorch_model.bin")  # a harmless one, even
    with pytest.raises(InputError, match="cannot be loaded as .* no file named model.safetensors"):
        load_checkpoint(here)
    public.repo("ada/empty", {"config.json": "{}"})
    with pytest.raises(InputError, match="holds no weights"):
        load_checkpoint("ada/empty")
    public.repo("ada/no-config", without(files, "config.json"))
    with pytest.raises(InputError, match="holds no config.json"):
        load_checkpoint("ada/no-config")


CODE = """
open({file!r}, "w").close()
from transformers import BertConfig, BertForSequenceClassification
class OwnConfig(BertConfig):
    model_type = "own-bert"
class Own(BertForSequenceClassification):
    config_class = OwnConfig
"""


def test_code_of_the_repository(public, files, tmp_path):
    """It is neither fetched nor run unless that is asked for."""
    config = json.loads(files["config.json"])
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.Own"}
    config |= {"architectures": ["Own"], "model_type": "own-bert", "auto_map": own}
    code = CODE.format(file=str(tmp_path / RAN))
    public.repo("ada/own", {**files, "config.json": json.dumps(config), "own.py": code})
    with pytest.raises(InputError, match="for code from the Hub, for Own; read that code, then load it with trust"):
        load_checkpoint("ada/own")
    assert not (tmp_path / RAN).exists()
    assert not any(one.path.endswith(".py") for one in public.requests)
    assert type(load_checkpoint("ada/own", trust_remote_code=True).model).__name__ == "Own"
    assert (tmp_path / RAN).exists()


def tokenizer_with_code(files):
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    return {"tokenizer_config.json": json.dumps(own), "own.py": "raise SystemExit('ran')"}


def test_code_of_a_tokenizer(public, files):
    public.repo("ada/own", {**files, **tokenizer_with_code(files)})
    load_checkpoint("ada/own")  # transformers takes its own class
    assert not any(one.path.endswith(".py") for one in public.requests)


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
