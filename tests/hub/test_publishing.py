"""Trainers that push: cards that tell the truth, nothing leaked, and no training that dies over the Hub."""

import json
import logging
import threading

import datasets
import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData, get_session, metadata_load
from safetensors.torch import load
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback

from rdrop_trainer import CardFacts, EvaluationSet, HubError, RDropArguments, RDropMixin
from rdrop_trainer.hub.card_data import EvaluationSet as Set
from rdrop_trainer.hub.card_data import eval_results, is_hub_name, scores_now, settings_block, settings_from_block
from support import tiny

REPO = "ada/run"


@pytest.fixture
def ada(hub):
    hub.user("ada", "hf_" + "a" * 30)
    hub.login("ada")
    return hub


def push_trainer(folder, **arguments):
    arguments = {"push_to_hub": True, "hub_model_id": REPO, "hub_token": "hf_" + "a" * 30, **arguments}
    return tiny.trainer(tiny.bert(), tiny.dataset(), folder / "run", eval_dataset=tiny.dataset(seed=3), **arguments)


def falling_accuracy():
    """A metric that is best after the first epoch."""
    values = iter([0.9, 0.5, 0.4, 0.3])
    return lambda predictions: {"accuracy": next(values)}


def valid(card, hub):
    """The server's word on a card."""
    answer = get_session().post(f"{hub.url}/api/validate-yaml", json={"repoType": "model", "content": str(card)})
    assert answer.status_code == 200, answer.text
    return not answer.json()["errors"]


@pytest.mark.skipif(int(huggingface_hub.__version__[0]) < 2, reason="its validate() asks huggingface.co alone")
def test_the_clients_own_validation(ada, tmp_path):
    trainer = push_trainer(tmp_path, hub_strategy="end", compute_metrics=lambda p: {"pearson": 0.5})
    trainer.evaluate()
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "run" / "README.md")
    card.validate()
    assert ada.seen("validate")
    card.data.base_model = "/a/path"
    with pytest.raises(ValueError, match="base_model"):
        card.validate()


def pushed_card(hub, repo=REPO):
    return ModelCard(hub.files(repo)["README.md"].decode())


def scores(card):
    return {(r.dataset_name, r.dataset_split, r.metric_name): r.metric_value for r in card.data.eval_results}


# ---- Pushing from a trainer ----


def test_a_trainer_pushes_model_and_card_and_nothing_else(ada, tmp_path):
    trainer = push_trainer(
        tmp_path, save_strategy="epoch", rdrop_alpha=3.0, compute_metrics=lambda predictions: {"accuracy": 0.5}
    )
    trainer.train()
    trainer.evaluate()
    commit = trainer.push_to_hub()
    assert set(ada.files(REPO)) == {
        ".gitattributes", "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    card = pushed_card(ada)
    assert valid(card, ada) and card.data.r_drop["alpha"] == 3.0
    assert not [
        name for name, content in ada.files(REPO).items() if b"hf_aaa" in content or str(tmp_path).encode() in content
    ]
    assert commit.oid == ada.commits(REPO)[0].sha
    # A push at each save, as `Trainer`'s default strategy asks for, and the last
    titles = [c.title for c in ada.commits(REPO)]
    assert titles[0] == "End of training" and "Training in progress, epoch 1" in titles
    loaded = AutoModelForSequenceClassification.from_pretrained(REPO)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), trainer.model.cpu().parameters(), strict=True))


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_a_push_during_training_is_of_that_step(ada, tmp_path, strategy):
    """Neither its scores nor its weights are another step's, and no strategy sends the optimizer's state."""
    weights = {}

    class Wait(TrainerCallback):
        def on_save(self, args, state, control, model, **kwargs):
            trainer._finish_current_push()
            weights[state.global_step] = tiny.weights(model)

    trainer = push_trainer(
        tmp_path, save_strategy="epoch", eval_strategy="epoch", num_train_epochs=2, hub_strategy=strategy,
        compute_metrics=falling_accuracy(), callbacks=[Wait()], save_total_limit=1,
    )  # fmt: skip
    trainer.train()
    commits = [c for c in ada.commits(REPO) if c.title.startswith("Training in progress")]
    assert [c.title for c in commits] == ["Training in progress, epoch 2", "Training in progress, epoch 1"]
    for commit, (step, expected), accuracy in zip(reversed(commits), weights.items(), [0.9, 0.5], strict=True):
        files = ada.files(REPO, commit.sha)
        assert not [name for name in files if "/" in name or name.endswith((".pt", ".bin"))]
        assert tiny.identical(load(files["model.safetensors"]), expected), step
        assert set(scores(ModelCard(files["README.md"].decode())).values()) == {accuracy}


def test_a_push_goes_where_the_arguments_say(ada, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    trainer = push_trainer(tmp_path, hub_strategy="end", hub_private_repo=True, hub_revision="v2")
    trainer.model.add_model_tags(["mine"])
    trainer.push_to_hub(tags="yours")
    assert set(ada.files(REPO)) == {".gitattributes"} and "model.safetensors" in ada.files(REPO, "v2")
    assert ada.repos["model", REPO].private
    assert {"r-drop", "mine", "yours"} <= set(ModelCard(ada.files(REPO, "v2")["README.md"].decode()).data.tags)
    del ada.repos["model", REPO]  # the push makes it anew, and as private
    trainer.push_to_hub()
    assert ada.repos["model", REPO].private


def test_a_base_trainer_is_handed_only_what_the_caller_gave(ada, tmp_path):
    """`init_hf_repo` takes a token alone before transformers 5.23, and so in trainers that were written for it."""

    class Old(Trainer):
        def init_hf_repo(self, token=None):
            super().init_hf_repo(token)

    class Pushes(RDropMixin, Old):
        pass

    arguments = {"push_to_hub": True, "hub_model_id": REPO, "hub_token": "hf_" + "a" * 30}
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path / "run", Pushes, **arguments)
    assert ("model", REPO) in ada.repos
    with pytest.raises(HubError, match="private"):  # not left out in silence
        trainer.init_hf_repo(private=True)


def test_the_best_checkpoint_is_pushed_with_its_own_scores(ada, tmp_path):
    trainer = push_trainer(
        tmp_path, save_strategy="epoch", eval_strategy="epoch", num_train_epochs=3, hub_strategy="end",
        load_best_model_at_end=True, metric_for_best_model="accuracy", compute_metrics=falling_accuracy(),
    )  # fmt: skip
    trainer.train()
    trainer.push_to_hub()
    card = pushed_card(ada)
    assert set(scores(card).values()) == {0.9}
    assert "| unknown | eval | accuracy | 0.9000 |" in card.text and "0.4" not in card.text.split("## Model desc")[0]


def test_a_failed_push_at_save_model_does_not_end_the_script(ada, tmp_path, caplog):
    trainer = push_trainer(tmp_path, hub_strategy="end")
    trainer.train()
    ada.fail("commit", status=503, times=None)
    with caplog.at_level(logging.ERROR):
        trainer.save_model()
    assert "python -m rdrop_trainer.hub push" in caplog.text and "hf_aaa" not in caplog.text
    with pytest.raises(HubError, match="python -m rdrop_trainer.hub push"):
        trainer.push_to_hub()
    ada.faults.clear()
    trainer.push_to_hub()
    assert "model.safetensors" in ada.files(REPO)


def test_the_command_that_continues_is_the_end_of_what_is_said(ada, tmp_path, caplog):
    trainer = push_trainer(tmp_path, save_strategy="epoch")
    ada.fail("commit", status=403, times=None)
    trainer.train()
    for _ in range(200):  # it is said in the background
        said = [message for message in caplog.messages if "was not pushed" in message]
        threading.Event().wait(0 if said else 0.01)
    assert len(said) == 1 and said[0].startswith("Training goes on, but ")
    assert said[0].endswith(f"python -m rdrop_trainer.hub push {tmp_path / 'run'} {REPO}")


def test_training_goes_on_while_the_hub_is_away(ada, tmp_path, caplog):
    ada.fail("*", status=503, times=None)
    trainer = push_trainer(tmp_path, save_strategy="epoch")
    assert "Training goes on" in caplog.text
    trainer.train()
    assert trainer.state.global_step > 0
    ada.faults.clear()
    trainer.push_to_hub()
    assert "model.safetensors" in ada.files(REPO)


def test_a_refusal_comes_before_training(ada, tmp_path):
    with pytest.raises(HubError, match="ada/run cannot be pushed to: the token is missing, wrong"):
        push_trainer(tmp_path, hub_token="hf_wrong")
    with pytest.raises(HubError, match="eve/run cannot be pushed to: this account may not"):
        push_trainer(tmp_path, hub_model_id="eve/run")


def test_a_push_in_the_background_is_waited_for_before_its_files_change(ada, tmp_path):
    trainer = push_trainer(tmp_path, hub_strategy="end")
    ada.delay("preupload", 0.3)
    push = trainer.push_to_hub(blocking=False, commit_message="first")
    before = tiny.weights(trainer.model)
    with torch.no_grad():
        trainer.model.classifier.bias.fill_(7.0)
    trainer.push_to_hub(commit_message="second")
    first, second = (next(c for c in ada.commits(REPO) if c.title == title) for title in ("first", "second"))
    assert push.result().oid == first.sha
    assert tiny.identical(load(ada.files(REPO, first.sha)["model.safetensors"]), before)
    assert (load(ada.files(REPO, second.sha)["model.safetensors"])["classifier.bias"] == 7).all()


def test_a_baseline_is_no_r_drop_checkpoint(ada, tmp_path):
    trainer = push_trainer(tmp_path, rdrop_alpha=0.0)
    trainer.push_to_hub()
    card = pushed_card(ada)
    assert "r-drop" not in card.data.tags and card.data.r_drop["alpha"] == 0
    assert "plain fine-tuning" in card.text and valid(card, ada)


# ---- The card ----


def test_all_of_a_card(ada, tmp_path, here):
    (here / "a curve.png").write_bytes(b"\x89PNG")
    trainer = push_trainer(
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
    assert scores(card) == {**expected, ("unknown", None, "public_accuracy"): 0.7}
    one = next(r for r in card.data.eval_results if r.metric_name == "pearson")
    assert (one.dataset_type, one.dataset_config, one.dataset_revision) == ("nyu-mll/glue", "mnli", sha)
    assert one.metric_type == "pearsonr" and card.data.datasets == ["nyu-mll/glue"]
    assert "| MNLI | validation_matched | accuracy | 0.7500 | 0.7000 | +0.0500 |" in card.text
    assert "macro_f1 | not defined" in card.text and "| flip rate | 0.0125 |" in card.text
    assert "![loss and divergence](a%20curve.png)" in card.text and ada.files(REPO)["a curve.png"] == b"\x89PNG"
    assert (
        'load_checkpoint("ada/run")' in card.text and "AutoModelForSequenceClassification.from_pretrained" in card.text
    )
    assert "https://arxiv.org/abs/2106.14448" in card.text
    assert "a share of 0.5 of each batch goes through the model 3 times" in card.text


@pytest.mark.parametrize("strategy", ["no", "epoch"])
def test_a_table_of_the_training_without_rows_is_none(ada, tmp_path, strategy):
    trainer = push_trainer(tmp_path, hub_strategy="end", eval_strategy=strategy)
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card()
    text = (tmp_path / "run" / "README.md").read_text()
    assert ("### Training results" in text) == ("| Validation Loss |" in text) == (strategy == "epoch")


def test_making_a_card_twice_says_everything_once(ada, tmp_path):
    trainer = push_trainer(tmp_path, hub_strategy="end")
    trainer.create_model_card()
    trainer.create_model_card(tags="mine", model_name="A name")
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.text.count("## R-Drop") == 1 and "mine" in card.data.tags and "# A name" in card.text


def test_a_card_with_the_line_ends_of_windows_is_the_same(ada, tmp_path, monkeypatch):
    write, trainer = Trainer.create_model_card, push_trainer(tmp_path)
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
    trainer = push_trainer(tmp_path, hub_strategy="end")
    path = tmp_path / "run" / "README.md"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    trainer.create_model_card()
    assert "r-drop" in ModelCard.load(path).data.tags
    assert content in (b"no metadata", b"") or (tmp_path / "run" / "README.md.old").read_bytes() == content


@pytest.mark.parametrize("argument", [True, False])
def test_a_local_base_model_is_not_told(ada, tmp_path, argument):
    base = tmp_path / "secret-place"
    tiny.bert().save_pretrained(base)
    trainer = push_trainer(tmp_path, hub_strategy="end")
    trainer.model = AutoModelForSequenceClassification.from_pretrained(base)
    trainer.create_model_card(**({"finetuned_from": str(base)} if argument else {}))
    text = (tmp_path / "run" / "README.md").read_text()
    assert "secret-place" not in text and "fine-tuned version of a local model" in text
    assert metadata_load(tmp_path / "run" / "README.md").get("base_model") is None


def test_a_local_base_model_whose_name_is_a_word_changes_no_other_words(ada, tmp_path, here):
    (here / "model").mkdir()
    trainer = push_trainer(tmp_path, hub_strategy="end")
    trainer.push_to_hub(finetuned_from="model")
    text = pushed_card(ada).text
    assert "This model is a fine-tuned version of a local model" in text and "\nmodel, processing_class, " in text


def test_a_base_model_on_the_hub_is_told_with_its_licence(ada, tmp_path):
    ada.repo("eve/base", {"README.md": "---\nlicense: mit\n---\n", "config.json": tiny.bert().config.to_json_string()})
    trainer = push_trainer(tmp_path, hub_strategy="end")
    trainer.model.config._name_or_path = "eve/base"
    trainer.push_to_hub()
    card = pushed_card(ada)
    assert card.data.base_model == "eve/base" and card.data.license == "mit" and valid(card, ada)


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


@pytest.mark.parametrize("tags", [{}, {"dataset_tags": ["imdb"], "dataset": "IMDB"}])
def test_data_of_ones_own_have_no_name(ada, tmp_path, tags):
    rows = [{key: row[key] for key in ("input_ids", "attention_mask", "labels")} for row in tiny.dataset()]
    for data in (datasets.Dataset.from_list(rows), datasets.Dataset.from_generator(lambda: iter(rows))):
        trainer = tiny.trainer(tiny.bert(), rows, tmp_path / "run", eval_dataset=data)
        trainer.create_model_card(**tags)
        card = ModelCard.load(tmp_path / "run" / "README.md")
        assert card.data.datasets == tags.get("dataset_tags") and "None" not in card.text
        assert ("on the IMDB dataset." in card.text) == bool(tags) and "generator dataset" not in card.text


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
