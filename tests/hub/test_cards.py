"""The card of a trainer: all that it says, beside cards of others, and no places of this machine."""

import datasets
import huggingface_hub
import pytest
from huggingface_hub import ModelCard, ModelCardData, metadata_load
from transformers import AutoModelForSequenceClassification, Trainer

from rdrop_trainer import CardFacts, EvaluationSet, RDropMixin
from support import tiny
from support.pushing import REPO, pushed_card, scores_of, trainer_of, valid


def test_all_of_a_card(ada, tmp_path, here):
    (here / "a curve.png").write_bytes(b"\x89PNG")
    trainer = trainer_of(
        tmp_path, hub_strategy="end", rdrop_alpha=2.0, rdrop_num_passes=3, rdrop_every_n_steps=2, rdrop_row_share=0.5,
        compute_metrics=lambda p: {"pearson": 0.5, "f1_address": 0.25, "macro_f1": float("nan"), "accuracy": 0.75},
    )  # fmt: skip
    sha = "0123456789" * 4
    trainer.card_facts = CardFacts(
        task="token-classification",
        language="zh",
        tags=["clue", "cluener"],
        evaluation_sets={
            "eval": EvaluationSet("MNLI", "nyu-mll/glue", "mnli", "validation_matched", sha),
            "eval_mm": EvaluationSet("MNLI", "nyu-mll/glue", "mnli", "validation_mismatched", sha),
        },
        scores={"test_public_accuracy": 0.7},
        baseline={"eval_accuracy": 0.7},
        stability={"flip rate": 0.0125},
        pictures={here / "a curve.png": "loss and divergence"},
    )
    trainer.evaluate()
    trainer.evaluate(metric_key_prefix="eval_mm")
    trainer.push_to_hub()
    card = pushed_card(ada)
    assert valid(card, ada)
    assert card.data.r_drop == {
        "alpha": 2.0, "num_passes": 3, "every_n_steps": 2, "row_share": 0.5, "warmup_steps": 0.0,
        "forward_mode": "concat",
        "reduction": "mean", "dropout": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
        "version": "0.1.0",
        "noise": "dropout 0.1 (bert.embeddings.dropout, bert.encoder.layer.*.attention.self.dropout, "
                 "bert.encoder.layer.*.attention.output.dropout and 2 more)",
    }  # fmt: skip
    assert card.data.tags[:4] == ["r-drop", "token-classification", "clue", "cluener"]
    assert card.data.pipeline_tag == "token-classification" and card.data.language == "zh"
    expected = {("MNLI", split, name): value for split in ("validation_matched", "validation_mismatched")
                for name, value in [("pearson", 0.5), ("f1_address", 0.25), ("accuracy", 0.75)]}  # fmt: skip
    assert scores_of(card) == {**expected, ("unknown", None, "public_accuracy"): 0.7}
    one = next(r for r in card.data.eval_results if r.metric_name == "pearson")
    assert (one.dataset_type, one.dataset_config, one.dataset_revision) == ("nyu-mll/glue", "mnli", sha)
    assert one.metric_type == "pearsonr" and card.data.datasets == ["nyu-mll/glue"]
    assert "| MNLI | validation_matched | accuracy | 0.7500 | 0.7000 | +0.0500 |" in card.text
    assert "macro_f1 | not defined" in card.text and "| flip rate | 0.0125 |" in card.text
    assert "![loss and divergence](a%20curve.png)" in card.text and ada.files(REPO)["a curve.png"] == b"\x89PNG"
    assert (
        'load_checkpoint("ada/model")' in card.text
        and "AutoModelForSequenceClassification.from_pretrained" in card.text
    )
    assert "https://arxiv.org/abs/2106.14448" in card.text
    assert "a share of 0.5 of each batch goes through the model 3 times" in card.text


@pytest.mark.skipif(int(huggingface_hub.__version__[0]) < 2, reason="its validate() asks huggingface.co alone")
def test_the_clients_own_validation(ada, tmp_path):
    trainer = trainer_of(tmp_path, hub_strategy="end", compute_metrics=lambda p: {"pearson": 0.5})
    trainer.evaluate()
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "run" / "README.md")
    card.validate()
    assert ada.seen("validate")
    card.data.base_model = "/a/path"
    with pytest.raises(ValueError, match="base_model"):
        card.validate()


@pytest.mark.parametrize("strategy", ["no", "epoch"])
def test_a_table_of_the_training_without_rows_is_none(ada, tmp_path, strategy):
    trainer = trainer_of(tmp_path, hub_strategy="end", eval_strategy=strategy)
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card()
    text = (tmp_path / "run" / "README.md").read_text()
    assert ("### Training results" in text) == ("| Validation Loss |" in text) == (strategy == "epoch")


def test_making_a_card_twice_says_everything_once(ada, tmp_path):
    trainer = trainer_of(tmp_path, hub_strategy="end")
    trainer.create_model_card()
    trainer.create_model_card(tags="mine", model_name="A name")
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.text.count("## R-Drop") == 1 and "mine" in card.data.tags and "# A name" in card.text


# ---- Cards that are there ----


def test_a_card_with_the_line_ends_of_windows_is_the_same(ada, tmp_path, monkeypatch):
    write, trainer = Trainer.create_model_card, trainer_of(tmp_path)
    path = tmp_path / "run" / "README.md"

    def write_as_windows(self, *args, **kwargs):
        write(self, *args, **kwargs)
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))

    trainer.evaluate()
    trainer.create_model_card()
    before = path.read_bytes()
    monkeypatch.setattr(Trainer, "create_model_card", write_as_windows)
    trainer.create_model_card()
    assert path.read_bytes() == before and b"It achieves" not in before


def test_the_card_of_another_template_is_kept_and_extended(ada, tmp_path):
    class OwnCard(Trainer):
        def create_model_card(self, dataset_name=None):
            data = ModelCardData(datasets=dataset_name, tags=["theirs"])
            ModelCard(f"---\n{data.to_yaml()}\n---\n# Theirs\n\nTheir words.").save(tmp_path / "run" / "README.md")

    class Extended(RDropMixin, OwnCard):
        pass

    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path / "run", cls=Extended)
    for _ in range(2):
        trainer.create_model_card(dataset_name="imdb")
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert {"theirs", "r-drop"} <= set(card.data.tags) and card.data.datasets == ["imdb"]
    assert card.text.count("# Theirs") == card.text.count("Their words.") == card.text.count("## R-Drop") == 1
    assert valid(card, ada) and "## Training procedure" not in card.text


def test_a_card_that_builds_on_trainers_guesses_no_data(ada, tmp_path):
    class Adds(Trainer):
        def create_model_card(self, *args, **kwargs):
            super().create_model_card(*args, **kwargs)

    class Extended(RDropMixin, Adds):
        pass

    data = datasets.Dataset.from_generator(lambda: iter(tiny.dataset()))
    trainer = tiny.trainer(tiny.bert(), data, tmp_path / "run", cls=Extended)
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert not card.data.datasets and "generator" not in card.text and "## R-Drop" in card.text
    trainer.create_model_card(dataset="Mine", dataset_tags="mine")
    assert ModelCard.load(tmp_path / "run" / "README.md").data.datasets == ["mine"]


@pytest.mark.parametrize("content", [b"---\n: [\n---\n", b"---\n- a list\n---\n", b"\xff\xfe", b"no metadata", b""])
def test_a_damaged_card_is_put_aside(ada, tmp_path, content):
    trainer = trainer_of(tmp_path, hub_strategy="end")
    path = tmp_path / "run" / "README.md"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    trainer.create_model_card()
    assert "r-drop" in ModelCard.load(path).data.tags
    assert content in (b"no metadata", b"") or (tmp_path / "run" / "README.md.old").read_bytes() == content


# ---- The base model ----


@pytest.mark.parametrize("argument", [True, False])
def test_a_local_base_model_is_not_told(ada, tmp_path, argument):
    base = tmp_path / "secret-place"
    tiny.bert().save_pretrained(base)
    trainer = trainer_of(tmp_path, hub_strategy="end")
    trainer.model = AutoModelForSequenceClassification.from_pretrained(base)
    trainer.create_model_card(**({"finetuned_from": str(base)} if argument else {}))
    text = (tmp_path / "run" / "README.md").read_text()
    assert "secret-place" not in text and "fine-tuned version of a local model" in text
    assert metadata_load(tmp_path / "run" / "README.md").get("base_model") is None


def test_a_local_base_model_whose_name_is_a_word_changes_no_other_words(ada, tmp_path, here):
    (here / "model").mkdir()
    trainer = trainer_of(tmp_path, hub_strategy="end")
    trainer.push_to_hub(finetuned_from="model")
    text = pushed_card(ada).text
    assert "This model is a fine-tuned version of a local model" in text and "\nmodel, processing_class, " in text


def test_a_base_model_on_the_hub_is_told_with_its_licence(ada, tmp_path):
    ada.repo("eve/base", {"README.md": "---\nlicense: mit\n---\n", "config.json": tiny.bert().config.to_json_string()})
    trainer = trainer_of(tmp_path, hub_strategy="end")
    trainer.model.config._name_or_path = "eve/base"
    trainer.push_to_hub()
    card = pushed_card(ada)
    assert card.data.base_model == "eve/base" and card.data.license == "mit" and valid(card, ada)
