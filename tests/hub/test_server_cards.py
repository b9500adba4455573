"""What the tests' Hub makes of cards, and that other libraries and processes take it for the Hub."""

import inspect
import os
import subprocess
import sys

import huggingface_hub as hf
import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from support.hub_calls import CARD, WEIGHTS, add

# ---- What the Hub derives from a card ----


def test_tags_come_from_the_card(hub, api):
    hub.repo("ada/m", {"README.md": CARD, "config.json": '{"model_type": "bert"}', "model.safetensors": WEIGHTS})
    info = api.model_info("ada/m")
    assert set(info.tags) == {
        *("transformers", "safetensors", "bert", "text-classification", "r-drop", "model-index", "license:mit"),
        *("dataset:nyu-mll/glue", "base_model:google-bert/bert-base-cased", "arxiv:2106.14448", "region:us"),
        "base_model:finetune:google-bert/bert-base-cased",
    }
    assert (info.library_name, info.pipeline_tag) == ("transformers", "text-classification")
    assert info.card_data.eval_results[0].metric_value == 0.8 and info.model_index[0]["name"] == "m"
    assert hub.card("ada/m")["license"] == "mit"
    some = api.model_info("ada/m", expand=["tags", "cardData"])
    assert some.tags == info.tags and some.sha is None and some.card_data.license == "mit"


def test_listing_models(hub, api):
    for n in range(7):
        hub.repo(f"ada/m{n}", {"README.md": CARD if n % 2 else "---\ntags: [r-drop]\n---\n"})
    hub.repo("bob/other", {"README.md": "---\ntags: [other]\n---\n"})
    hub.page_size = 2
    assert {one.id for one in api.list_models(filter="r-drop")} == {f"ada/m{n}" for n in range(7)}
    assert len(hub.seen("list")) == 4  # pages
    found = list(api.list_models(filter=["r-drop", "dataset:nyu-mll/glue"], cardData=True))
    assert {one.id for one in found} == {"ada/m1", "ada/m3", "ada/m5"} and found[0].card_data.license == "mit"
    assert {one.id for one in api.list_models(pipeline_tag="text-classification")} == {"ada/m1", "ada/m3", "ada/m5"}
    assert [one.id for one in api.list_models(author="bob")] == ["bob/other"]
    assert [one.id for one in api.list_models(search="OTH", full=True)] == ["bob/other"]
    assert len(list(api.list_models(limit=3))) == 3
    times = [one.last_modified for one in api.list_models(sort="last_modified", expand=["lastModified"])]
    assert len(times) == 8 and times == sorted(times, reverse=True)


@pytest.mark.skipif(
    "constants.ENDPOINT" not in inspect.getsource(ModelCard.validate), reason="this client asks huggingface.co alone"
)
def test_a_card_is_validated_and_pushed(hub, api):
    api.create_repo("m")
    result = EvalResult("text-classification", "nyu-mll/glue", "GLUE", "accuracy", 0.5)
    card = ModelCard.from_template(ModelCardData(license="mit", model_name="m", eval_results=[result]))
    card.push_to_hub("ada/m")
    assert hub.card("ada/m")["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    assert ModelCard.load("ada/m").data.license == "mit"


@pytest.mark.parametrize(
    "change, complaint",
    [
        (("license: mit", "license: my own"), "license"),
        (("[r-drop]", "r-drop"), "tags"),
        (("[r-drop]", "[1]"), "tags"),
        (("google-bert/bert-base-cased", "/home/me/model"), "base_model"),
        (("[nyu-mll/glue]", "[a/b/c]"), "datasets"),
        (("value: 0.8", "value: .nan"), "finite"),
        (("{type: text-classification}", "{}"), "task.type"),
        ((", name: GLUE MRPC", ""), "dataset.name"),
        (("type: accuracy, ", ""), "metrics[0].type"),
        (("tags: [r-drop]", "tags: [r-drop"), "YAML"),
        ((CARD, "---\n- a list\n---\n"), "mapping"),
    ],
)
def test_metadata_the_hub_refuses(hub, change, complaint):
    text = CARD.replace(*change)
    sound, answer = (
        hf.utils.get_session().post(f"{hub.url}/api/validate-yaml", json={"content": one, "repoType": "model"})
        for one in (CARD, text)
    )
    assert sound.json() == {"errors": [], "warnings": []}
    assert answer.status_code == 400 and complaint in str(answer.json()["errors"]), answer.json()


def test_metadata_the_hub_warns_of(hub, api):
    api.create_repo("m")
    for text in ("No metadata", "---\npipeline_tag: mind-reading\n---\n"):
        with pytest.warns(UserWarning, match="empty or missing yaml|not in the official list"):
            add(api, "README.md", text.encode())


# ---- Other libraries ----


def test_transformers_loads_a_model_by_name(hub, api, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from support import tiny

    model = tiny.bert()
    model.push_to_hub("ada/bert", private=True)
    tiny.tokenizer().push_to_hub("ada/bert")
    loaded = AutoModelForSequenceClassification.from_pretrained("ada/bert")
    assert all((a == b).all() for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True))
    assert AutoTokenizer.from_pretrained("ada/bert")("w3")["input_ids"] == [3]
    info = api.model_info("ada/bert")
    assert info.pipeline_tag == "text-classification" and info.safetensors.total == model.num_parameters()
    with pytest.raises(OSError, match="not a valid model identifier"):
        AutoModelForSequenceClassification.from_pretrained("ada/missing")


def test_datasets_loads_a_configuration(hub, tmp_path):
    import datasets

    card = "---\nconfigs:\n"
    files = {}
    for config in ("mrpc", "rte"):
        card += f"- config_name: {config}\n  data_files:\n"
        for split, rows in (("train", 5), ("validation", 3)):
            card += f"  - {{split: {split}, path: {config}/{split}-*}}\n"
            rows = datasets.Dataset.from_dict({"sentence1": [f"{config} {n}" for n in range(rows)]})
            rows.to_parquet(tmp_path / "rows.parquet")
            files[f"{config}/{split}-00000-of-00001.parquet"] = (tmp_path / "rows.parquet").read_bytes()
    hub.repo("nyu-mll/glue", {"README.md": card + "---\n", **files}, kind="dataset")
    loaded = datasets.load_dataset("nyu-mll/glue", "mrpc")
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 5, "validation": 3}
    assert loaded["train"][0] == {"sentence1": "mrpc 0"}
    with pytest.raises(datasets.exceptions.DatasetNotFoundError):
        datasets.load_dataset("nyu-mll/none")
    hub.user("ada")
    hub.login("ada")
    loaded["train"].push_to_hub("ada/rows")
    assert hub.repos["dataset", "ada/rows"].kind == "dataset"
    assert len(datasets.load_dataset("ada/rows", split="train")) == 5


def test_a_child_process_asks_this_hub(hub):
    hub.user("ada")
    hub.login("ada")
    code = "import huggingface_hub as hf; print(hf.whoami()['name']); hf.model_info('ada/none')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "ada\n" and "RepositoryNotFoundError" in done.stderr
    assert [one.status for one in hub.requests] == [200, 404]
    assert os.environ["HF_ENDPOINT"] == hf.constants.ENDPOINT == hub.url
