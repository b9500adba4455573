"""A training_step, batches or labels of one's own around R-Drop: the same update, or refused with a sentence."""

import pytest
import torch
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from rdrop_trainer import RDropMixin, RDropTrainer
from support import tiny, zoo
from support.overrides import run


def test_a_training_step_of_its_own(tmp_path):
    class Adversarial(RDropTrainer):
        """FGM and its like: a step of their own, whose loss is ours."""

        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
            self.accelerator.backward(loss)
            return loss.detach()

    class Divides(Adversarial):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = self.compute_loss(model, self._prepare_inputs(inputs)) / self.args.gradient_accumulation_steps
            self.accelerator.backward(loss)
            return loss.detach()

    class DividesBehind(RDropMixin, type("Own", (Trainer,), {"training_step": Divides.training_step})):
        pass

    class Copied(RDropTrainer):
        """Of transformers 5.23, in short: it asks whether the loss is scaled, and does other sums with the steps."""

        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
            if not self.loss_is_scaled_for_ga:
                loss = loss / self.current_gradient_accumulation_steps
            self.accelerator.backward(loss)
            return loss.detach()

    class ByItself(RDropTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = model.train()(**self._prepare_inputs(inputs)).loss
            self.accelerator.backward(loss)
            return loss.detach()

    for cls in (Adversarial, Copied):
        assert torch.equal(run(cls, tmp_path)[0], run(RDropTrainer, tmp_path)[0])
    for cls, name in ((Divides, "Divides"), (DividesBehind, "Own")):
        with pytest.raises(ValueError, match=f"training_step of {name} divides by the accumulation steps"):
            run(cls, tmp_path)
    of_package = type("Trainer", (Trainer,), {"training_step": Divides.training_step, "__module__": "gliner.training"})
    with pytest.raises(ValueError, match=r"training_step of gliner\.Trainer divides"):
        run(type("Over", (RDropMixin, of_package), {}), tmp_path)
    run(Divides, tmp_path, rows=8, steps=1)  # by 1
    for steps in (1, 4):
        with pytest.raises(ValueError, match="did not come through R-Drop: let the training_step of ByItself call"):
            run(ByItself, tmp_path, rows=2, steps=steps)


def test_batches_that_are_not_counted_are_refused(tmp_path):
    class Own(RDropTrainer):
        def get_batch_samples(self, epoch_iterator, num_batches, device):
            return [next(epoch_iterator) for _ in range(num_batches)], None

    with pytest.raises(ValueError, match=r"get_batch_samples of Own call super\(\).get_batch_samples"):
        run(Own, tmp_path)


def test_a_compute_loss_that_a_trainer_sets_on_itself_is_refused(tmp_path):
    class Sets(Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.compute_loss = lambda model, inputs, **kwargs: model(**inputs).loss

    with pytest.raises(ValueError, match="did not come through R-Drop.*set on a trainer belongs into its class"):
        run(type("Over", (RDropMixin, Sets), {}), tmp_path)


def test_a_trainer_that_says_that_its_own_loss_is_to_be_divided(tmp_path):
    class Says(Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.loss_is_scaled_for_ga = False

    class SaysInFront(RDropTrainer):
        loss_is_scaled_for_ga = False

    updates = []
    for cls, rows, steps in ((RDropTrainer, 8, 1), (type("Over", (RDropMixin, Says), {}), 4, 2), (SaysInFront, 4, 2)):
        trainer = tiny.trainer(
            zoo.noisy("single_label"), tiny.dataset(rows=8), tmp_path, cls, per_device_train_batch_size=rows,
            gradient_accumulation_steps=steps, train_sampling_strategy="sequential", **tiny.PURE_SGD,
        )  # fmt: skip
        updates.append(tiny.trained(trainer))
    assert updates[0].norm() > 0 and tiny.relative(updates[1], updates[0]) < 1e-5
    assert tiny.relative(updates[2], updates[0]) < 1e-5


def own_loop(loss_of):
    def loop(self, *args, **kwargs):
        self.model.train()
        for batch in self.get_train_dataloader():
            loss_of(self, batch)
        return TrainOutput(1, 0.0, {})

    return loop


def loss_of_model(trainer, batch):
    trainer.model(**batch).loss.backward()


def loss_of_step(trainer, batch):
    trainer.training_step(trainer.model, batch)


@pytest.mark.parametrize("method", ["train", "_inner_training_loop"])
def test_a_training_loop_of_its_own_is_refused(method, tmp_path):
    """Behind R-Drop, where it would train without it and say nothing."""

    def trainer(loss_of, **settings):
        cls = type("Over", (RDropMixin, type("Own", (Trainer,), {method: own_loop(loss_of)})), {})
        return tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, cls, **settings)

    with pytest.raises(
        ValueError, match=f"No loss of this training came through R-Drop: the {method} of Own is a loop"
    ):
        trainer(loss_of_model).train()
    trainer(loss_of_model, rdrop_alpha=0.0).train()
    if method != "train":  # which says that a training is under way
        with pytest.raises(ValueError, match=rf"let the {method} of Own take them from self.get_batch_samples\("):
            trainer(loss_of_step).train()


def test_a_copy_of_train_is_a_loop_of_its_own(tmp_path):
    def train(self, trial=None):
        self._hp_search_setup(trial)
        return own_loop(loss_of_model)(self)

    cls = type("Over", (RDropMixin, type("Own", (Trainer,), {"train": train})), {})
    with pytest.raises(ValueError, match="the train of Own is a loop"):
        tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, cls).train()


def test_a_training_loop_of_its_own_is_refused_at_its_first_log(tmp_path):
    seen = []

    def logs(trainer, batch):
        seen.append(batch)
        trainer.log({"loss": 1.0})

    cls = type("Over", (RDropMixin, type("Own", (Trainer,), {"_inner_training_loop": own_loop(logs)})), {})
    with pytest.raises(ValueError, match="the _inner_training_loop of Own is a loop"):
        tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, cls, per_device_train_batch_size=1).train()
    assert len(seen) == 1


def test_a_train_around_that_of_trainer_goes_on_even_if_nothing_is_left_to_train(tmp_path):
    trainers_own = Trainer.train

    class Around(Trainer):
        def train(self, *args, **kwargs):
            return trainers_own(self, *args, **kwargs)  # in a way that its code does not show

    cls = type("Over", (RDropMixin, Around), {})
    first, again = (tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, cls, save_strategy="epoch") for _ in range(2))
    first.train()
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == first.state.global_step == 2


def test_running_out_of_memory_before_the_loss_is_no_override(tmp_path):
    class Short(RDropTrainer):
        tries = 0

        def _prepare_inputs(self, inputs):
            self.tries += 1
            if self.tries == 1:
                raise RuntimeError("CUDA out of memory. Tried to allocate")
            return super()._prepare_inputs(inputs)

    trainer = tiny.trainer(
        tiny.bert(), tiny.dataset(), tmp_path, Short, auto_find_batch_size=True, per_device_train_batch_size=8
    )
    assert trainer.train().training_loss > 0 and trainer.tries > 2


def masked(batch):
    """Every second token has no label any more."""
    labels = batch["labels"].clone()
    labels[:, ::2] = -100
    return {**batch, "labels": labels}


def softened(batch):
    return {**batch, "labels": nn.functional.one_hot(batch["labels"], 4) * 0.8 + 0.05}


class ByLoss(RDropTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, self.change(inputs), *args, **kwargs)


class ByStep(RDropTrainer):
    def training_step(self, model, inputs, *args, **kwargs):
        return super().training_step(model, self.change(inputs), *args, **kwargs)


@pytest.mark.parametrize("head, change", [("token", masked), ("single_label", softened)])
@pytest.mark.parametrize("base", [ByLoss, ByStep])
def test_labels_that_change_after_they_were_counted_are_refused(base, head, change, tmp_path):
    """A mean over the items of the step would be over others than there are."""
    cls = type("Changes", (base,), {"change": staticmethod(change)})
    # A GPU that stops at them could do nothing more for the tests behind
    settings = {"gradient_accumulation_steps": 2, "use_cpu": True}
    trainer = tiny.trainer(tiny.bert(head), tiny.dataset(head), tmp_path, cls, **settings)
    with pytest.raises(ValueError, match="labels of a batch are not those that R-Drop counted when the step began"):
        trainer.train()


class InParts(RDropTrainer):
    """Takes the rows of a batch one after another, to save memory."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs:
            return super().compute_loss(model, inputs, True, num_items_in_batch)
        rows = [{key: value[i : i + 1] for key, value in inputs.items()} for i in range(len(inputs["labels"]))]
        return sum(super(InParts, self).compute_loss(model, row, num_items_in_batch=num_items_in_batch) for row in rows)


def test_a_batch_may_be_handed_on_in_parts(tmp_path):
    updates = []
    for cls in (RDropTrainer, InParts):
        model = tiny.bert("token", dropout=0.0)
        trainer = tiny.trainer(
            model, tiny.dataset("token"), tmp_path, cls, rdrop_allow_deterministic=True,
            gradient_accumulation_steps=2, **tiny.PURE_SGD,
        )  # fmt: skip
        updates.append(tiny.trained(trainer))
    assert updates[0].norm() > 0 and tiny.relative(*updates) < 1e-5


def test_an_evaluation_with_dropout_on_has_the_plain_loss(tmp_path):
    """As Monte Carlo dropout predicts, between two steps of a training too."""
    seen = []

    class MonteCarlo(RDropTrainer):
        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            model.train()
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad():
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
            seen.append(nn.functional.cross_entropy(outputs.logits, inputs["labels"]).item())
            return loss, outputs.logits, inputs["labels"]

    settings = {"rdrop_alpha": 1e4, "eval_strategy": "steps", "eval_steps": 1, "eval_dataset": tiny.dataset(rows=8)}
    trainer = tiny.trainer(tiny.bert(dropout=0.5), tiny.dataset(rows=16), tmp_path, MonteCarlo, **settings)
    trainer.train()
    assert len(seen) == 2 and tiny.logged(trainer, "eval_loss") == pytest.approx(seen, rel=1e-5)
