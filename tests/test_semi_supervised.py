"""Semi-supervised batches: which rows the model sees, in which order, and what they do to the loss."""

import datasets
import pytest
import torch
from transformers import default_data_collator

from rdrop_trainer import RDropTrainer
from rdrop_trainer.unlabeled_rows import SemiSupervisedDataset, SemiSupervisedSampler
from support import formulas, tiny, zoo
from support.semi_supervised import flat, rows, seen, spy


@pytest.mark.parametrize(
    "ratio, expected",
    [
        (1.0, [4, 4, 4]),
        (0.5, [2, 2, 2]),
        (2.0, [8, 8, 8]),
        (0.3, [1, 1, 1]),  # floor(4 * 0.3), floor(8 * 0.3), floor(12 * 0.3)
        (0.29, [1, 1, 1]),
        (1.25, [5, 5, 5]),
    ],
)
def test_the_ratio_of_every_batch(ratio, expected, tmp_path):
    batches = seen(rows(12), tmp_path, unlabeled_dataset=rows(30, labeled=False), rdrop_unlabeled_ratio=ratio)
    assert [len(batch[0]) for batch in batches] == [4, 4, 4]
    assert [len(batch[1]) for batch in batches] == expected


def test_a_decimal_ratio_is_exact():
    sampler = SemiSupervisedSampler(range(100), unlabeled_rows=50, ratio=0.29, seed=0)
    assert sum(len(unlabeled) for _, unlabeled in sampler) == 29


@pytest.mark.parametrize(
    "strategy, seedable, epochs",
    [
        ("random", True, 2),
        ("sequential", True, 2),
        # Both draw from the global generator, which dropout also uses
        ("group_by_length", True, 1),
        ("random", False, 1),
    ],
)
def test_labeled_rows_come_as_in_the_supervised_run(strategy, seedable, epochs, tmp_path):
    arguments = {
        "train_sampling_strategy": strategy,
        "num_train_epochs": epochs,
        "accelerator_config": {"use_seedable_sampler": seedable},
        "per_device_train_batch_size": 3,
    }
    supervised = seen(rows(20), tmp_path, **arguments)
    both = seen(rows(20), tmp_path, unlabeled_dataset=rows(9, labeled=False), **arguments)
    assert [batch[0] for batch in both] == [batch[0] for batch in supervised]
    assert not flat(supervised, 1) and len(flat(both, 1)) == 20 * epochs


def test_every_row_before_any_again_and_in_a_new_order(tmp_path):
    settings = {"unlabeled_dataset": rows(8, labeled=False), "num_train_epochs": 4}
    stream = flat(seen(rows(12), tmp_path, **settings), 1)
    rounds = [stream[i : i + 8] for i in range(0, 48, 8)]
    assert all(sorted(round_) == list(range(8)) for round_ in rounds)
    assert len({tuple(round_) for round_ in rounds}) == 6
    assert flat(seen(rows(12), tmp_path, **settings), 1) == stream
    assert flat(seen(rows(12), tmp_path, **settings, data_seed=1), 1) != stream


def test_steps_and_examples_count_labeled_rows(tmp_path):
    trainer = spy(rows(10), tmp_path, unlabeled_dataset=rows(9, labeled=False), rdrop_unlabeled_ratio=3.0)
    loader = trainer.get_train_dataloader()
    assert len(loader) == 3 and trainer.num_examples(loader) == 10
    trainer.train()
    assert trainer.state.global_step == 3 and trainer.state.epoch == 1
    assert len(trainer.train_dataset) == 10 and trainer.train_dataset[0]["labels"] == 0


@pytest.mark.parametrize("kind", ["dataset", "list"])
def test_columns_the_model_does_not_know(kind, tmp_path):
    labeled, unlabeled = rows(6, text="known"), rows(6, labeled=False, text="unknown", source="web")
    for row in unlabeled:
        row["labels"] = 7.5  # not read
    if kind == "dataset":
        labeled, unlabeled = datasets.Dataset.from_list(labeled), datasets.Dataset.from_list(unlabeled)
    batches = seen(labeled, tmp_path, unlabeled_dataset=unlabeled)
    assert [len(batch[1]) for batch in batches] == [4, 2]


@pytest.mark.parametrize("key", ["label", "labels"])
def test_the_collator_of_the_user_and_its_label_key(key, tmp_path):
    data = [{key if k == "labels" else k: v for k, v in row.items()} for row in rows(8)]
    trainer = spy(data if key == "labels" else rows(8), tmp_path, unlabeled_dataset=rows(5, labeled=False))
    trainer.train_dataset, trainer.data_collator = data, default_data_collator
    trainer.train()
    assert sorted(flat(trainer.seen, 0)) == list(range(8)) and len(flat(trainer.seen, 1)) == 8
    assert trainer.data_collator is default_data_collator


def test_an_unlabeled_row_has_the_label_key_of_the_labeled_alone():
    labeled, unlabeled = [{"input_ids": [5], "label": 1}], [{"input_ids": [6], "labels": 2, "label_ids": 3}]
    assert SemiSupervisedDataset(labeled, unlabeled)[0, (0,)] == [labeled[0], {"input_ids": [6], "label": -100}]


def test_loader_workers(tmp_path):
    arguments = {"unlabeled_dataset": rows(9, labeled=False), "num_train_epochs": 2}
    assert seen(rows(10), tmp_path, dataloader_num_workers=2, **arguments) == seen(rows(10), tmp_path, **arguments)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_in_closed_form(reduction, tmp_path):
    """Cross-entropy over the labeled rows, divergence over all."""
    data, unlabeled = rows(4), rows(6, labeled=False)
    settings = {"rdrop_unlabeled_ratio": 1.5, "rdrop_alpha": 3.0, "rdrop_reduction": reduction}
    settings |= {"per_device_train_batch_size": 4, "rdrop_allow_deterministic": True}
    trainer = tiny.trainer(zoo.noisy("single_label"), data, tmp_path, unlabeled_dataset=unlabeled, **settings)
    model = trainer.model.train()
    model.classifier.weight.data *= 50
    (batch,) = trainer.get_train_dataloader()
    with torch.no_grad():
        loss = trainer.compute_loss(model, batch)
        twice = model(**{k: torch.cat([v, v]) for k, v in batch.items() if k != "labels"}).logits
    labels = batch["labels"].tolist()
    assert labels[4:] == [-100] * 6 and -100 not in labels[:4]
    expected, _, divergence = formulas.rdrop(
        list(twice.chunk(2)), labels, 3.0, num_items=4, num_divergence_items=10 if reduction == "mean" else 1
    )
    assert divergence > 1e-3
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_tokens(tmp_path):
    """A row whose tokens are labeled gets -100 for each token, whatever labels it had."""
    labeled, unlabeled = tiny.dataset("token", rows=6), tiny.dataset("token", rows=4, seed=1)
    trainer = tiny.trainer(tiny.bert("token"), labeled, tmp_path, unlabeled_dataset=unlabeled)
    (batch,) = trainer.get_train_dataloader()
    assert (batch["labels"][:6] != -100).any(-1).all() and (batch["labels"][6:] == -100).all()
    assert batch["labels"].shape == batch["input_ids"].shape
    trainer.train()
    assert trainer.state.global_step == 1


def test_plain_training_leaves_them_out(tmp_path):
    weights = []
    for unlabeled in (None, rows(5, labeled=False)):
        trainer = spy(rows(8), tmp_path, unlabeled_dataset=unlabeled, rdrop_alpha=0.0)
        trainer.train()
        assert not flat(trainer.seen, 1)
        weights.append(tiny.weights(trainer.model))
    assert tiny.identical(*weights)


def test_evaluation_sees_the_rows_it_is_given(tmp_path):
    trainer = spy(rows(8), tmp_path, unlabeled_dataset=rows(5, labeled=False), eval_dataset=rows(3))
    assert trainer.predict(rows(3)).predictions.shape == (3, 4)
    assert trainer.evaluate()["eval_loss"] > 0


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(rows(4))


def with_labels(labels):
    return [{**row, "labels": labels} for row in rows(4)]


@pytest.mark.parametrize(
    "labeled, unlabeled, message",
    [
        (rows(4), [], "unlabeled_dataset is empty"),
        (rows(4), Stream(), "unlabeled_dataset is a Stream without length"),
        (with_labels(0.5), rows(4), "no mark for an unlabeled row"),
        (with_labels([0.0, 1.0, 0.0, 1.0]), rows(4), "no mark for an unlabeled row"),
        (with_labels([1, 2]), rows(4), "must bring labels of its own, all -100"),
        (
            rows(4),
            ["a text", "another"],
            r"row of unlabeled_dataset is a str; .* tokenize texts first: \[tok",
        ),
        (rows(4), [{"text": "a"}], "lack input_ids, attention_mask, .* hold only: text. .* must be tokenized"),
        (rows(4), datasets.Dataset.from_dict({"text": ["a", "b"]}), "lack input_ids, attention_mask"),
        (datasets.Dataset.from_list(rows(4)), datasets.Dataset.from_dict({"text": ["a"]}), "lack input_ids"),
        (rows(4), {"input_ids": [[5]]}, "unlabeled_dataset is a dict of columns"),
        (
            rows(4),
            datasets.DatasetDict(a=datasets.Dataset.from_list(rows(2))),
            "unlabeled_dataset is a DatasetDict of splits [(]a[)]",
        ),
        (rows(4), tiny.word_tokenizer()(["w5 w6", "w7"]), "unlabeled_dataset is a BatchEncoding of columns"),
        ([{"input_ids": [5], "start_positions": 0, "end_positions": 1}], rows(4), "got only: input_ids, start_pos"),
    ],
)
def test_refusals(labeled, unlabeled, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer = spy(rows(4), tmp_path, unlabeled_dataset=unlabeled)
        trainer.train_dataset = labeled
        trainer.train()


def test_language_models_are_refused(tmp_path):
    """Rows of -100 alone would count nowhere, without a word."""
    data = [{**row, "labels": row["input_ids"]} for row in rows(4)]
    trainer = tiny.trainer(zoo.build("gpt2"), data, tmp_path, unlabeled_dataset=rows(4, labeled=False))
    with pytest.raises(ValueError, match="no effect on causal language modelling"):
        trainer.train()


@pytest.mark.parametrize("how", ["num_labels", "problem_type", "another divergence", "own class"])
def test_regressions_are_refused_whatever_the_type_of_their_labels(how, tmp_path):
    """Stars from 1 to 5: every unlabeled row would be trained towards -100."""
    model = tiny.bert("regression" if how in ("num_labels", "another divergence") else "single_label")
    if how in ("problem_type", "own class"):
        model.config.problem_type = "regression"
    if how == "own class":
        model.__class__ = type("Own", (torch.nn.Module,), {"forward": type(model).forward})
    settings = {"rdrop_problem": "multi_label"} if how == "another divergence" else {}
    trainer = tiny.trainer(model, rows(4), tmp_path, unlabeled_dataset=rows(4, labeled=False), **settings)
    with pytest.raises(ValueError, match="unlabeled_dataset does not fit regression, which takes -100"):
        trainer.train()


@pytest.mark.parametrize("how", ["compute_loss_func", "compute_loss"])
def test_a_loss_of_the_user_may_leave_unlabeled_rows_out(how, tmp_path):
    """One logit, yes or no, in a stock class whose own loss would take -100 for a value."""

    def binary(outputs, labels, num_items_in_batch=None):
        known, logits = labels != -100, outputs.logits[:, 0]
        return torch.nn.functional.binary_cross_entropy_with_logits(logits[known], labels[known].to(logits))

    class Own(RDropTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            return (binary(outputs, labels), outputs) if return_outputs else binary(outputs, labels)

    model = tiny.bert(dropout=0.3)
    model.config.problem_type, model.num_labels = "multi_label_classification", 1
    model.classifier = torch.nn.Linear(16, 1)
    data = [{**row, "labels": row["labels"] % 2} for row in rows(8)]
    own = {"cls": Own} if how == "compute_loss" else {"compute_loss_func": binary}
    trainer = tiny.trainer(model, data, tmp_path, unlabeled_dataset=rows(8, labeled=False), logging_steps=1, **own)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "divergence" in log]
    assert logs and all(log["divergence"] > 0 and 0.4 < log["task_loss"] < 1 for log in logs)


def test_a_stream_of_labeled_rows_is_refused(tmp_path):
    trainer = spy(rows(4), tmp_path, unlabeled_dataset=rows(4, labeled=False), max_steps=2)
    trainer.train_dataset = Stream()
    with pytest.raises(ValueError, match="train_dataset is a Stream without length"):
        trainer.train()


def test_samplers_that_cannot_add_unlabeled_rows_are_refused(tmp_path):
    unlabeled = rows(4, labeled=False)
    arguments = {"unlabeled_dataset": unlabeled, "train_sampling_strategy": "batch_rebalance"}
    with pytest.raises(ValueError, match="does not go with .*batch_rebalance"):
        seen(rows(4), tmp_path, **arguments)

    class OwnLoader(RDropTrainer):
        def _get_dataloader(self, dataset, **kwargs):
            return torch.utils.data.DataLoader(dataset, collate_fn=self.data_collator)

    trainer = tiny.trainer(tiny.bert(), rows(4), tmp_path, cls=OwnLoader, unlabeled_dataset=unlabeled)
    with pytest.raises(ValueError, match="the trainer's own sampler"):
        trainer.train()


def test_targets_of_their_own_that_are_marked(tmp_path):
    """Labels that are another sequence than the input: unlabeled rows bring theirs."""
    data, unlabeled = with_labels([1, 2]), [{**row, "labels": [-100, -100]} for row in rows(3, labeled=False)]
    trainer = spy(data, tmp_path, unlabeled_dataset=unlabeled)
    trainer.data_collator = default_data_collator
    (batch,) = trainer.get_train_dataloader()
    assert batch["labels"].tolist() == [[1, 2]] * 4 + [[-100, -100]] * 4
