"""The recipes of docs/if-you-come-from.md do what they say, next to R-Drop."""

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy

from rdrop_trainer import RDropTrainer
from support import formulas, names_of, tiny, zoo
from support.device import on_device

DATA = tiny.dataset(rows=8)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        return names_of("docs/if-you-come-from.md", model=tiny.bert(), tokenizer=tiny.tokenizer(),
                        train_dataset=Dataset.from_list(DATA))  # fmt: skip


def run(tmp_path, cls=RDropTrainer, model=None, **arguments):
    arguments = {"per_device_train_batch_size": 8, "logging_steps": 1, "learning_rate": 0.0, **arguments}
    trainer = tiny.trainer(model or loud(), DATA, tmp_path, cls, **arguments)
    trainer.train()
    return trainer, [log for log in trainer.state.log_history if "loss" in log]


def two_passes(model):
    """The logits of the passes over all rows, and their labels, in order."""
    batch = tiny.trainer(model, DATA, "unused").data_collator(DATA)
    labels = batch.pop("labels")
    both = on_device({key: torch.cat([value, value]) for key, value in batch.items()})
    return model.train()(**both).logits.detach().cpu().split(8), labels


def check(log, task, passes, labels):
    divergence = formulas.rdrop(passes, labels.tolist(), 4.0)[2]
    assert divergence > 1e-3 and log["task_loss"] == pytest.approx(task.item(), rel=1e-5)
    assert log["divergence"] == pytest.approx(divergence.item(), rel=1e-4)
    assert log["loss"] == pytest.approx((task + 2 * divergence).item(), rel=1e-5)


def loud():
    model = zoo.noisy("single_label")
    model.classifier.weight.data *= 50
    return model


def test_class_weights(page, tmp_path):
    _, [log] = run(tmp_path, page["WeightedTrainer"], loud())
    passes, labels = two_passes(loud())
    weights = torch.arange(1.0, 5.0).double()[labels]
    losses = [-(z.log_softmax(-1).gather(-1, labels[:, None])[:, 0] * weights).sum() / weights.sum() for z in passes]
    check(log, sum(losses) / 2, passes, labels)


def test_focal_loss(page, tmp_path):
    passes, labels = two_passes(loud())
    p = [z.softmax(-1).gather(-1, labels[:, None]) for z in passes]
    task = sum((-((1 - q) ** 2) * q.log()).mean() for q in p) / 2
    for rows, steps in ((8, 1), (2, 4)):
        _, [log] = run(tmp_path, model=loud(), compute_loss_func=page["focal_loss"], per_device_train_batch_size=rows,
                       gradient_accumulation_steps=steps, train_sampling_strategy="sequential")  # fmt: skip
        check(log, task, passes, labels)


def test_ema(page, tmp_path):
    seen = []

    class Sees(page["EMA"]):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            super().on_step_end(args, state, control, model=model)
            seen.append({name: value.detach().clone() for name, value in model.named_parameters()})

    trainer, _ = run(tmp_path, model=tiny.bert(), callbacks=[Sees(0.9)], learning_rate=0.01, num_train_epochs=4)
    for name, value in trainer.model.named_parameters():
        expected = seen[0][name]
        for later in seen[1:]:
            expected = 0.9 * expected + 0.1 * later[name]
        assert len(seen) == 4 and torch.allclose(value, expected, atol=1e-6)
    assert not torch.equal(seen[-1]["classifier.weight"], trainer.model.classifier.weight)


def test_llrd(page, tmp_path):
    model = tiny.bert(num_hidden_layers=2)
    groups = page["layer_wise"](model, 1.0, 0.5)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    expected = {"embeddings": 0.125, "layer.0.": 0.25, "layer.1.": 0.5, "pooler": 1.0, "classifier": 1.0}
    for name, parameter in model.named_parameters():
        assert rate.pop(id(parameter)) == next(value for part, value in expected.items() if part in name)
    assert not rate
    trainer, [log] = run(tmp_path, model=model, optimizers=(torch.optim.SGD(groups), None))
    assert log["divergence"] > 0 and len(trainer.optimizer.param_groups) == 4


def test_multi_sample_dropout(page, tmp_path):
    model = page["MultiSampleBert"](tiny.bert(dropout=0.3).config).train()
    batch = on_device(tiny.trainer(model, DATA, "unused").data_collator(DATA))
    drawn = []
    model.classifier.register_forward_hook(lambda module, inputs, logits: drawn.append(logits))
    loss, logits = model(**batch)[:2]
    assert len(drawn) == 5 and torch.allclose(logits, sum(drawn) / 5)
    assert torch.allclose(loss, sum(cross_entropy(z, batch["labels"]) for z in drawn) / 5)
    drawn.clear()
    _, [log] = run(tmp_path, model=model)
    assert log["divergence"] > 0 and log["loss"] == pytest.approx(log["task_loss"] + 2 * log["divergence"], rel=1e-5)
