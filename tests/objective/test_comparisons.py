"""Is a loss what it is taken for? The verdict on losses made for the purpose."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import BertForSequenceClassification

from rdrop_trainer import Objective, StepSettings
from rdrop_trainer.objective.lm_head import LMHead
from rdrop_trainer.objective.loss_comparison import LossComparison
from rdrop_trainer.objective.task_loss import ModelLoss, StockLoss
from rdrop_trainer.objective.training import Training
from support import tiny, zoo


def compare(comparison, own, expected, tolerance=1e-4):
    return comparison.compare(torch.tensor(own), torch.tensor(expected), tolerance, lambda flags: flags.tolist())


def test_half_precision_rounds_the_models_own_loss():
    assert not compare(LossComparison(), 0.692578, 0.692778, 2**-7).differs
    assert compare(LossComparison(), 0.692578, 0.692778).differs


@pytest.mark.parametrize("own, expected, differs", [
    (2.0, 2.0, False), (2.00001, 2.0, False), (2.01, 2.0, True), (2e-7, 1e-7, False),
])  # fmt: skip
def test_losses(own, expected, differs):
    """Small losses, of what is known by heart, are rounding."""
    comparison = compare(LossComparison(), float("nan"), 0.0)  # no labels: nothing decided
    assert comparison == LossComparison()
    for _ in range(1 if differs else LossComparison.ENOUGH):
        assert not comparison.done
        comparison = compare(comparison, own, expected)
    assert comparison.done and comparison.differs is differs


def test_a_loss_that_differs_on_a_later_batch_is_noticed():
    """Class weights cancel in a batch of one class."""
    comparison = compare(LossComparison(), 1.0, 1.0)
    assert not comparison.done
    comparison = compare(comparison, 1.2, 1.0)
    assert comparison.done and comparison.differs


class Rounding(BertForSequenceClassification):
    """Rounds each log-probability to the type of the logits, as CUDA's autocast does and a CPU's does not."""

    weight = None

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        outputs = super().forward(input_ids, attention_mask, **kwargs)
        if labels is not None:
            log_p = outputs.logits.bfloat16().log_softmax(-1).float()
            outputs.loss = nn.functional.nll_loss(log_p, labels, self.weight)
        return outputs


Rounding.forward.__module__ = "transformers.models.rounding.modeling_rounding"  # elsewhere its loss would be its own


@pytest.mark.parametrize("how", ["mixed precision", "half-precision weights"])
@pytest.mark.parametrize("weight, kept", [(None, StockLoss), ([1.0, 1.0, 1.0, 9.0], ModelLoss)])
def test_a_loss_rounded_by_autocast_is_the_stock_loss(how, weight, kept, fresh_accelerate, caplog):
    """Both hand the loss and the logits back in float32."""
    model = tiny.bert(dropout=0.2).train()
    model.__class__ = Rounding
    model.weight = None if weight is None else torch.tensor(weight)
    with torch.no_grad():
        model.classifier.weight.mul_(50)  # predictions that differ, so that weights matter
    mixed = how == "mixed precision"
    if not mixed:
        model.bfloat16()
        model.classifier.register_forward_hook(lambda module, inputs, logits: logits.float())
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if mixed else "no")
    prepared = accelerator.prepare(model) if mixed else model
    assert type(after_comparison(prepared, batch_of_rows(), accelerator)) is kept


@pytest.mark.parametrize(
    "sharpness, wrong, weight, kept",
    [
        (1, 8, None, StockLoss),
        (60, 8, None, StockLoss),
        (60, 0, None, StockLoss),
        (400, 0, None, StockLoss),
        (60, 8, [1.0, 1.0, 1.0, 9.0], ModelLoss),
    ],
)
def test_the_loss_of_half_precision_logits_on_a_cpu(sharpness, wrong, weight, kept):
    """There torch rounds its sums too, which are large beside the loss where the model is sure and right."""
    model = tiny.bert(dropout=0.1).bfloat16()
    model.__class__ = OfHalfLogits
    model.weight = None if weight is None else torch.tensor(weight).bfloat16()
    batch = batch_of_rows()
    with torch.no_grad():
        model.classifier.weight.mul_(sharpness)
        predicted = model.eval()(batch["input_ids"]).logits.argmax(-1)
    batch["labels"] = torch.cat([batch["labels"][:wrong], predicted[wrong:]])
    assert type(after_comparison(model.train(), batch)) is kept


class OfHalfLogits(BertForSequenceClassification):
    weight = None

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        outputs = super().forward(input_ids, attention_mask, **kwargs)
        if labels is not None:
            outputs.loss = nn.functional.cross_entropy(outputs.logits, labels, self.weight)
        return outputs


OfHalfLogits.forward.__module__ = Rounding.forward.__module__


def batch_of_rows():
    rows = [{key: torch.tensor(value) for key, value in row.items()} for row in tiny.dataset(rows=64)]
    inputs = nn.utils.rnn.pad_sequence([row["input_ids"] for row in rows], batch_first=True)
    return {"input_ids": inputs, "labels": torch.stack([row["labels"] for row in rows])}


def after_comparison(model, batch, accelerator=None):
    """The source of the task loss that is trained with once enough batches were compared."""
    objective = Objective.of(model, [batch], accelerator)
    for _ in range(LossComparison.ENOUGH):
        objective(model, batch, objective.window([batch]), StepSettings())
    assert objective.plan.task_loss.comparison is None
    return objective.plan.task_loss


@pytest.mark.parametrize(
    "owner, name, value",
    [
        (torch.backends, "fp32_precision", "tf32"),  # what `Trainer` sets for tf32=True
        (torch.backends.cuda.matmul, "fp32_precision", "tf32"),
        (torch.backends.cuda.matmul, "allow_tf32", True),
    ],
)
def test_products_in_tf32_may_differ_by_its_rounding(owner, name, value):
    """However it was asked for: torch refuses to tell by one name what was set by another."""
    training = Training(tiny.bert())
    training.device = torch.device("cuda")
    before = torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    exact = training.tolerance(by_products=True)
    try:
        setattr(owner, name, value)
        assert exact == training.tolerance() == 1e-4 and training.tolerance(by_products=True) == 2e-2
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


def test_half_precision_may_differ_by_its_rounding():
    exact, half = Training(tiny.bert()), Training(tiny.bert().bfloat16())
    assert exact.tolerance() == exact.tolerance(torch.ones(1), by_products=True) == 1e-4
    assert half.tolerance() == 2**-7 and half.tolerance(by_products=True) == 2e-2
    assert exact.tolerance(torch.ones(1), torch.ones(1).half()) == 2**-5  # a CPU adds up in it, too
    exact.device = torch.device("cuda")
    assert exact.tolerance(torch.ones(1), torch.ones(1).half()) == 2**-7


class Weighing(nn.Module):
    """Has a loss of its own, with weights of which it is not clear whether they are of rows; and little memory."""

    def __init__(self, lack):
        super().__init__()
        self.lack = lack
        self.linear, self.dropout = nn.Linear(1, 2), nn.Dropout(0.5)

    def forward(self, input_ids, weights, labels=None):
        if len(input_ids) > 4:
            raise self.lack
        logits = self.linear(self.dropout(input_ids[:, :1].float()))
        return {
            "loss": (nn.functional.cross_entropy(logits, labels, reduction="none") * weights).mean(),
            "logits": logits,
        }


@pytest.mark.parametrize(
    "lack",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")],
)
def test_a_lack_of_memory_in_a_check_is_passed_on(lack, monkeypatch):
    """`auto_find_batch_size` needs it; the check must not take it for an answer."""
    batch = {"input_ids": torch.ones(4, 3), "labels": torch.tensor([0, 1, 1, 0]), "weights": torch.ones(4)}
    runs = [(Weighing(lack), batch, "false"), (zoo.build("masked_lm"), zoo.batch("masked_lm"), "true")]
    monkeypatch.setattr(LMHead, "matches_logits", lambda *_: runs[0][0](torch.ones(5, 3), None))
    for model, rows, fused in runs:
        objective = Objective.of(model.train(), [rows])
        with pytest.raises(type(lack), match="out of memory"):
            objective(model, rows, objective.window([rows]), StepSettings(fused_head=fused))
