"""The data of a card: scores of the weights that are there, data sets by their names, settings that come back."""

import json

import datasets
import pytest
from huggingface_hub import ModelCard

from rdrop_trainer import CardFacts, RDropArguments
from rdrop_trainer.hub.card_data import EvaluationSet as Set
from rdrop_trainer.hub.card_data import eval_results, is_hub_name, scores_now, settings_block, settings_from_block
from support import tiny


def test_the_scores_of_the_weights_that_are_there():
    end = {"train_runtime": 1.0, "total_flos": 1.0, "step": 4}

    def log(step, value, prefix="eval"):
        return {f"{prefix}_accuracy": value, f"{prefix}_loss": 1.0, f"{prefix}_runtime": 1.0, "epoch": 1, "step": step}

    history = [log(2, 0.9), {"loss": 1.0, "step": 3}, log(4, 0.5)]
    assert scores_now(history, 4, None) == {"eval_accuracy": 0.5}
    assert scores_now([*history, end], 4, None) == {"eval_accuracy": 0.5}
    assert scores_now([*history, end], 4, 2) == {"eval_accuracy": 0.9}
    assert scores_now([*history, end, log(4, 0.91)], 4, 2) == {"eval_accuracy": 0.91}
    assert scores_now(history, 5, None) == {}  # trained on since
    both = [*history, end, log(4, 0.8, "eval_mm")]
    assert scores_now(both, 4, 2) == {"eval_accuracy": 0.9, "eval_mm_accuracy": 0.8}
    assert scores_now([], 0, None) == {} and scores_now([log(0, 0.3)], 0, None) == {"eval_accuracy": 0.3}


def test_scores_that_are_not_defined_are_in_no_index():
    found = eval_results({"eval_pearson": float("nan"), "eval_f1": 1}, {"eval": Set("a", "b")}, None)
    assert [(r.metric_type, r.metric_value) for r in found] == [("f1", 1.0)]


def test_settings_come_back_from_a_card():
    settings = RDropArguments(
        rdrop_alpha=1.5, rdrop_num_passes=3, rdrop_warmup_steps=0.1, rdrop_forward_mode="recompute"
    )
    block = json.loads(json.dumps(settings_block(settings, {"p": 0.1}, "1")))
    assert settings_from_block(block) == settings
    wrong = [{"alpha": "high"}, {"alpha": -1}, {"alpha": 1, "num_passes": [2]}, {"alpha": None}]
    assert not any(settings_from_block(block) for block in (None, "text", [], {}, *wrong))


def test_names_of_models_on_the_hub(here):
    assert is_hub_name("bert-base-cased") and is_hub_name("a/b")
    assert not any(map(is_hub_name, ["/a/b", "a/b/c", None, "", ".."]))
    (here / "a" / "b").mkdir(parents=True)
    assert not is_hub_name("a/b")


@pytest.mark.parametrize("tags", [{}, {"dataset_tags": ["imdb"], "dataset": "IMDB"}])
def test_data_of_ones_own_have_no_name(ada, tmp_path, tags):
    rows = [{key: row[key] for key in ("input_ids", "attention_mask", "labels")} for row in tiny.dataset()]
    for data in (datasets.Dataset.from_list(rows), datasets.Dataset.from_generator(lambda: iter(rows))):
        trainer = tiny.trainer(tiny.bert(), rows, tmp_path / "run", eval_dataset=data)
        trainer.create_model_card(**tags)
        card = ModelCard.load(tmp_path / "run" / "README.md")
        assert card.data.datasets == tags.get("dataset_tags") and "None" not in card.text
        assert ("on the IMDB dataset." in card.text) == bool(tags) and "generator dataset" not in card.text


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"dataset": "GLUE MRPC", "dataset_tags": "glue", "dataset_args": "mrpc"}, ("GLUE MRPC", "glue", "mrpc")),
        ({"dataset": ["IMDB"], "dataset_tags": ["imdb"]}, ("IMDB", "imdb", None)),
        ({"dataset": "my reviews"}, ("my reviews", "unknown", None)),
        ({"dataset": "my reviews", "dataset_tags": "/my/reviews"}, ("my reviews", "unknown", None)),
        ({"dataset": ["one", "two"], "dataset_tags": ["a", "b"]}, ("unknown", "unknown", None)),
    ],
)
def test_scores_are_on_the_data_that_a_script_names(ada, tmp_path, given, expected):
    """As the examples of transformers do in `create_model_card(**kwargs)`, also of data without an origin."""
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path / "run", eval_dataset=tiny.dataset())
    trainer.card_facts = CardFacts(scores={"eval_accuracy": 0.5})
    trainer.create_model_card(**given)
    card = ModelCard.load(tmp_path / "run" / "README.md")
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.dataset_type, result.dataset_config) == expected
    assert f"| {expected[0]} | eval | accuracy | 0.5000 |" in card.text


def test_data_of_the_hub_know_their_commit(ada, tmp_path):
    """As `load_dataset` gives them, and after `map`."""
    rows = {"input_ids": [[5, 6]] * 4, "attention_mask": [[1, 1]] * 4, "labels": [0, 1, 2, 3]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "rows.parquet")
    card = "---\nconfigs: [{config_name: small, data_files: [{split: test, path: small/test.parquet}]}]\n---\n"
    files = {"README.md": card, "small/test.parquet": (tmp_path / "rows.parquet").read_bytes()}
    repo = ada.repo("eve/rows", files, "dataset")
    data = datasets.load_dataset("eve/rows", "small", split="test").map(lambda row: row)
    expected = Set("rows small", "eve/rows", "small", "test", repo.resolve("main").sha)
    assert Set.of(data) == expected and Set.of(data.select(range(2))) == expected
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path / "run", eval_dataset=data)
    trainer.card_facts = CardFacts(scores={"eval_f1": 1.0, "eval_one_f1": 0.5, "eval_two_f1": 0.25})
    for sets, places in ((data, {1.0: "test"}), ({"one": data, "two": tiny.dataset()}, {0.5: "test"})):
        trainer.eval_dataset = sets
        trainer.create_model_card()
        card = ModelCard.load(tmp_path / "run" / "README.md")
        told = {r.metric_value: r.dataset_split for r in card.data.eval_results if r.dataset_type == "eve/rows"}
        assert told.items() >= places.items() and card.data.datasets == ["eve/rows"]
