"""R-Drop over sentence-transformers' `CrossEncoderTrainer`, by formulas written out over the scores of each pass."""

from functools import partial

import pytest
import torch
from datasets import Dataset
from transformers.trainer_utils import SaveStrategy

from support import formulas, tiny
from support.device import USE_CPU
from support.tiny import word_tokenizer, words

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]
ce = pytest.importorskip("sentence_transformers.cross_encoder")
losses = ce.losses

ALPHA, QUERIES = 3.0, 5
QUIET = {"report_to": "none", "use_cpu": USE_CPU, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
TEXTS = [" ".join(row) for row in words()]
PAIRS = {"query": TEXTS[:5], "answer": TEXTS[1:6]}
LISTS = {
    "query": TEXTS[:5],
    "documents": [TEXTS[2:4], TEXTS[3:6], TEXTS[1:3], TEXTS[4:7], TEXTS[5:6]],
    "labels": [[1.0, 0.0], [0.0, 1.0, 1.0], [0.5, 0.5], [2.0, 1.0, 0.0], [1.0]],
}


class Recording(ce.CrossEncoderDataCollator):
    """Keeps the batches."""

    def __call__(self, features):
        batch = super().__call__(features)
        self.batches = [*getattr(self, "batches", []), batch]
        return batch


def trainer_of(folder, loss, data, num_labels=1, base=False, **arguments):
    from rdrop_trainer import cross_encoder as ours

    model = tiny.bert("regression" if num_labels == 1 else "single_label", dropout=0.3, initializer_range=0.5)
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    model = ce.CrossEncoder(str(folder), num_labels=num_labels, device="cpu")
    args, trainer = ours.RDropCrossEncoderTrainingArguments, ours.RDropCrossEncoderTrainer
    if base:
        args, trainer = ce.CrossEncoderTrainingArguments, ce.CrossEncoderTrainer
    args = args(str(folder), **QUIET, **arguments)
    return trainer(model, args, train_dataset=Dataset.from_dict(data), loss=loss(model), data_collator=Recording(None))


def listnet(scores, relevance):
    target = torch.tensor(relevance, dtype=torch.double).softmax(0)
    return -(target * scores.log_softmax(0)).sum()


def sigmoid_of_mse(model):
    return losses.MSELoss(model, activation_fn=torch.nn.Sigmoid())


def by_formula(scores, batches, problem):
    """(task loss, divergence), means over all items, of the scores of two passes over each micro-batch in turn."""
    tasks, divergences = [], []
    for i, batch in enumerate(batches):
        both = scores[2 * i : 2 * i + 2]
        if problem == "listwise":
            documents = [len(labels) for labels in batch["label"]]
            for a, b, labels in zip(*(z.view(-1).split(documents) for z in both), batch["label"], strict=True):
                tasks.append((listnet(a, labels.tolist()) + listnet(b, labels.tolist())) / 2)
                divergences.append(formulas.pair_divergence(a, b, "single_label"))
            continue
        for row, label in enumerate(batch["label"].tolist()):
            a, b = (z.view(len(batch["label"]), -1)[row] for z in both)
            tasks.append(sum(formulas.task_loss(z, label, problem) for z in (a, b)) / 2)
            divergences.append(formulas.pair_divergence(a, b, problem))
    assert len(tasks) == QUERIES
    return torch.stack(tasks).mean().item(), torch.stack(divergences).mean().item()


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize(
    "loss, data, num_labels, problem",
    [
        (losses.BinaryCrossEntropyLoss, {**PAIRS, "label": [1, 0, 1, 1, 0]}, 1, "multi_label"),
        (losses.CrossEntropyLoss, {**PAIRS, "label": [3, 0, 1, 2, 0]}, 4, "single_label"),
        (losses.MSELoss, {**PAIRS, "score": [0.1, 0.9, 0.5, 0.3, 0.2]}, 1, "regression"),
        (sigmoid_of_mse, {**PAIRS, "score": [0.1, 0.9, 0.5, 0.3, 0.2]}, 1, "regression"),
        (partial(losses.ListNetLoss, mini_batch_size=-1), LISTS, 1, "listwise"),
    ],
    ids=["binary", "classes", "scores", "activated", "lists"],
)
def test_loss_and_divergence_are_means_over_the_pairs_or_queries_of_a_step(
    loss, data, num_labels, problem, micro_batches, tmp_path
):
    trainer = trainer_of(
        tmp_path, loss, data, num_labels, rdrop_alpha=ALPHA, max_steps=2, learning_rate=0.0,
        per_device_train_batch_size=-(-QUERIES // micro_batches), gradient_accumulation_steps=micro_batches,
    )  # fmt: skip
    scores = []
    trainer.model.register_forward_hook(lambda module, args, output: scores.append(output["scores"].detach().double()))
    trainer.train()
    found = [log for log in trainer.state.log_history if "loss" in log][-1]  # the first step also had a first look
    if getattr(trainer.loss, "activation_fn", None) is not None:
        scores = [trainer.loss.activation_fn(z) for z in scores]
    scores, batches = scores[-2 * micro_batches :], trainer.data_collator.batches[-micro_batches:]
    task, divergence = by_formula(scores, batches, problem)
    assert divergence > 1e-4
    assert found["task_loss"] == pytest.approx(task, rel=1e-5)
    assert found["divergence"] == pytest.approx(divergence, rel=1e-4)
    assert found["loss"] == pytest.approx(task + ALPHA / 2 * divergence, rel=1e-5)


@pytest.mark.parametrize("name", ["LambdaLoss", "PListMLELoss", "ListMLELoss", "RankNetLoss", "ADRMSELoss"])
def test_every_loss_over_lists_of_documents_is_taken(name, tmp_path):
    trainer = trainer_of(tmp_path, getattr(losses, name), LISTS, max_steps=1, rdrop_alpha=ALPHA)
    trainer.train()
    assert trainer.state.log_history[0]["divergence"] > 0


def test_alpha_0_is_the_trainer_of_sentence_transformers(tmp_path):
    weights = []
    for base in (True, False):
        own = {} if base else {"rdrop_alpha": 0.0}
        trainer = trainer_of(tmp_path, losses.ListNetLoss, LISTS, base=base, max_steps=2, **own)
        trainer.train()
        weights.append(tiny.weights(trainer.model))
    assert tiny.identical(*weights)


def test_losses_that_draw_their_own_pairs_are_refused(tmp_path):
    trainer = trainer_of(tmp_path, losses.MultipleNegativesRankingLoss, PAIRS, max_steps=1)
    with pytest.raises(ValueError, match="pairs or lists that have labels, but this data has query, answer"):
        trainer.train()


def test_labels_in_lists_for_documents_in_columns_are_refused(tmp_path):
    data = {"query": TEXTS[:5], "right": TEXTS[1:6], "wrong": TEXTS[2:7], "label": [[1.0, 0.0]] * 5}
    with pytest.raises(ValueError, match=r"a document a column \(query, right, wrong\)"):
        trainer_of(tmp_path, losses.MarginMSELoss, data, max_steps=1).train()


def test_heads_are_refused(tmp_path):
    heads = [{"logits": "scores", "labels": "label"}]
    trainer = trainer_of(tmp_path, losses.MSELoss, {**PAIRS, "label": [1.0] * 5}, max_steps=1, rdrop_heads=heads)
    with pytest.raises(ValueError, match="rdrop_heads: a cross-encoder has one head"):
        trainer.train()


def test_the_problem_can_be_said(tmp_path):
    data = {**PAIRS, "label": [1, 0, 1, 1, 0]}
    trainer = trainer_of(tmp_path, losses.BinaryCrossEntropyLoss, data, max_steps=1, rdrop_problem="regression")
    trainer.train()
    assert trainer._training().heads[0].problem == "regression"
    assert trainer.state.log_history[0]["divergence"] > 0


def test_saved_resumed_and_evaluated(tmp_path):
    """A run that goes on from its checkpoint ends with the same weights, its best checkpoint is loaded, and a
    CrossEncoder loads what was saved.
    """
    from sentence_transformers.cross_encoder.evaluation import CrossEncoderCorrelationEvaluator

    pairs = list(zip(*PAIRS.values(), strict=True))
    data = {**PAIRS, "label": [0.0, 1.0, 1.0, 0.0, 1.0]}
    settings = {"rdrop_alpha": ALPHA, "per_device_train_batch_size": 2, "max_steps": 6, "seed": 3}
    whole, resumed, best = (
        trainer_of(tmp_path / name, losses.BinaryCrossEntropyLoss, data, **settings) for name in ("a", "b", "c")
    )
    for trainer in (whole, resumed, best):
        trainer.args.save_strategy, trainer.args.save_steps = SaveStrategy.STEPS, 3
        trainer.evaluator = CrossEncoderCorrelationEvaluator(pairs, [0.1, 0.9, 0.4, 0.3, 0.7])
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert tiny.identical(tiny.weights(whole.model), tiny.weights(resumed.model))
    assert {"eval_pearson", "eval_spearman"} <= resumed.evaluate().keys()

    best.state.best_model_checkpoint = str(tmp_path / "a" / "checkpoint-3")
    best._load_best_model()
    loaded = ce.CrossEncoder(best.state.best_model_checkpoint, device="cpu")
    assert tiny.identical(tiny.weights(best.model), tiny.weights(loaded))
    whole.save_model(str(tmp_path / "saved"))
    loaded = ce.CrossEncoder(str(tmp_path / "saved"), device="cpu")
    assert (loaded.predict(pairs) == whole.model.predict(pairs)).all()
