"""What a user of RDropTrainer sees: the swap, the heads, the logs, the errors."""

import logging
import types

import pytest
import torch
from transformers import (
    BertForTokenClassification,
    Seq2SeqTrainer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import HPSearchBackend
from transformers.utils import logging as transformers_logging

from rdrop_trainer import (
    RDropArguments,
    RDropMixin,
    RDropSeq2SeqTrainer,
    RDropSeq2SeqTrainingArguments,
    RDropTrainer,
    RDropTrainingArguments,
)
from support import tiny, zoo
from support.device import USE_CPU, on_device


def test_metrics_are_computed_as_by_trainer(tmp_path):
    model, data, results = tiny.bert(), tiny.dataset(), []
    for cls in (Trainer, RDropTrainer):
        settings = {"compute_metrics": lambda found: {"rows": len(found.predictions)}, "per_device_eval_batch_size": 5}
        found = tiny.trainer(model, data, tmp_path, cls, **settings).evaluate(data)
        results.append((found["eval_loss"], found["eval_rows"]))
    assert results[0] == results[1] and results[0][1] == 12


def test_evaluation_during_training_runs_one_forward(tmp_path):
    model, calls = tiny.bert(), []
    model.register_forward_pre_hook(
        lambda m, args, kwargs: calls.append((m.training, len(kwargs["input_ids"]))), with_kwargs=True
    )
    settings = {"eval_dataset": tiny.dataset(rows=6), "eval_strategy": "epoch", "per_device_eval_batch_size": 6}
    tiny.trainer(model, tiny.dataset(rows=8), tmp_path, **settings).train()
    assert calls == [(True, 16), (False, 6)]


def test_one_word_swap_with_plain_training_arguments(tmp_path):
    args = TrainingArguments(str(tmp_path), **tiny.QUIET, logging_steps=1, max_steps=1)
    trainer = RDropTrainer(tiny.bert(), args, train_dataset=tiny.dataset(), processing_class=tiny.tokenizer())
    trainer.train()
    assert trainer.args.rdrop_alpha == 4.0
    assert tiny.logged(trainer, "divergence")[0] > 0


def test_settings_are_read_when_used(tmp_path):
    args = TrainingArguments(str(tmp_path), **tiny.QUIET)
    trainer = RDropTrainer(tiny.bert(), args, train_dataset=tiny.dataset(), processing_class=tiny.tokenizer())
    trainer.model.train()
    batch = tiny.batch_of(trainer)
    losses = []
    for alpha in (0.0, 1e5):
        trainer.args.rdrop_alpha = alpha
        torch.manual_seed(0)
        losses.append(trainer.compute_loss(trainer.model, batch).item())
    assert losses[1] > losses[0]
    trainer.args.rdrop_alpha = -1.0
    with pytest.raises(ValueError, match="rdrop_alpha must be"):
        trainer.compute_loss(trainer.model, batch)


def test_an_unlabeled_batch_learns_from_the_divergence(tmp_path):
    data = tiny.dataset(rows=4, unlabeled=range(4))
    trainer = tiny.trainer(tiny.bert(), data, tmp_path, logging_steps=1)
    before = tiny.weights(trainer.model)
    trainer.train()
    assert tiny.logged(trainer, "task_loss") == [0.0]
    assert not tiny.identical(before, tiny.weights(trainer.model))
    plain = tiny.trainer(tiny.bert(), data, tmp_path, rdrop_alpha=0.0, logging_steps=1, logging_nan_inf_filter=False)
    plain.train()
    assert tiny.logged(plain, "loss") == [0.0]


def test_logged_terms_add_up(tmp_path):
    data = tiny.dataset("token", rows=14)
    windows = {"logging_steps": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    trainer = tiny.trainer(tiny.bert("token"), data, tmp_path, **windows, num_train_epochs=3, rdrop_alpha=3.0)
    trainer.train()
    entries = [e for e in trainer.state.log_history if "divergence" in e]
    assert len(entries) == 6
    for entry in entries:
        assert entry["loss"] == pytest.approx(entry["task_loss"] + 1.5 * entry["divergence"], rel=1e-5)


def test_a_second_training_logs_its_own_terms(tmp_path):
    """The steps of the first were not logged; `Trainer` forgets their loss too."""
    settings = {"max_steps": 2, "logging_steps": 4, "save_strategy": "steps", "save_steps": 2, "rdrop_alpha": 3.0}
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, **settings)
    trainer.train()
    trainer.args.max_steps = 4
    trainer.train(resume_from_checkpoint=True)
    [entry] = [entry for entry in trainer.state.log_history if "divergence" in entry]
    assert entry["loss"] == pytest.approx(entry["task_loss"] + 1.5 * entry["divergence"], rel=1e-5)


def test_another_model_of_a_trainer_is_looked_at_anew(tmp_path):
    trainer = tiny.trainer(tiny.bert().train(), tiny.dataset(), tmp_path)
    batch = on_device(tiny.batch_of(trainer))
    trainer.compute_loss(trainer.model, batch)
    trainer.model = tiny.bert(dropout=0.0).train().to(trainer.args.device)
    with pytest.raises(ValueError, match="identical on the first R-Drop step"):
        trainer.compute_loss(trainer.model, batch)


def test_alpha_warm_up_and_every_n_steps(tmp_path):
    """Steps 0, 3, 6 are R-Drop steps; alpha rises over the first 5 optimizer steps."""
    rows_seen = []
    model = tiny.bert()
    model.register_forward_pre_hook(lambda m, a, kw: rows_seen.append(len(kw["input_ids"])), with_kwargs=True)
    schedule = {"rdrop_every_n_steps": 3, "rdrop_warmup_steps": 5, "rdrop_alpha": 10.0}
    settings = {"logging_steps": 1, "per_device_train_batch_size": 4, **schedule}
    trainer = tiny.trainer(model, tiny.dataset(rows=32), tmp_path, **settings)
    trainer.train()
    assert rows_seen == [8, 4, 4, 8, 4, 4, 8, 4]
    entries = [e for e in trainer.state.log_history if "loss" in e]
    assert [i for i, e in enumerate(entries) if "divergence" in e] == [0, 3, 6]
    for step, alpha in ((0, 2.0), (3, 8.0), (6, 10.0)):
        e = entries[step]
        assert e["loss"] == pytest.approx(e["task_loss"] + alpha / 2 * e["divergence"], rel=1e-5)


def test_sum_reduction_sums_within_the_micro_batch(tmp_path):
    runs, settings = {}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1}
    for reduction in ("mean", "sum"):
        settings |= {"rdrop_reduction": reduction, "rdrop_allow_deterministic": True}
        trainer = tiny.trainer(zoo.noisy("single_label"), tiny.dataset(rows=8), tmp_path, **settings)
        trainer.train()
        runs[reduction] = trainer.state.log_history[0]
    assert runs["sum"]["task_loss"] == pytest.approx(runs["mean"]["task_loss"], rel=1e-6)
    assert runs["sum"]["divergence"] == pytest.approx(4 * runs["mean"]["divergence"], rel=1e-5)


def test_flops_count_every_pass(tmp_path):
    flops = []
    for alpha in (0.0, 4.0):
        trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, rdrop_alpha=alpha, rdrop_num_passes=3)
        trainer.train()
        flops.append(trainer.state.total_flos)
    assert flops[1] == 3 * flops[0] > 0


def test_checks_of_reentrant_checkpoints_do_not_warn_of_gradients(tmp_path, recwarn):
    tiny.trainer(
        tiny.bert(), tiny.dataset(), tmp_path, rdrop_forward_mode="recompute", max_steps=1,
        gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True},
    ).train()  # fmt: skip
    assert not [warning for warning in recwarn if "requires_grad" in str(warning.message)]


def test_log_level_is_that_of_our_warnings_too(tmp_path, caplog):
    settings = {"rdrop_allow_deterministic": True, "max_steps": 1}
    logging.getLogger("rdrop_trainer").setLevel(logging.CRITICAL)
    try:
        for level, warnings in (("passive", 0), ("error", 0), ("warning", 1)):
            tiny.trainer(tiny.bert(dropout=0.0), tiny.dataset(), tmp_path, log_level=level, **settings).train()
            assert sum("are identical" in record.message for record in caplog.records) == warnings
    finally:
        transformers_logging.set_verbosity_warning()
        logging.getLogger("rdrop_trainer").setLevel(logging.NOTSET)


def test_labels_with_a_dimension_of_one(tmp_path):
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(rows=4), tmp_path)
    trainer.model.train()
    batch = tiny.batch_of(trainer)
    torch.manual_seed(0)
    flat = trainer.compute_loss(trainer.model, batch)
    torch.manual_seed(0)
    column = trainer.compute_loss(trainer.model, {**batch, "labels": batch["labels"][:, None]})
    assert flat == column


def test_a_loss_computed_twice_per_micro_batch_keeps_its_weight(tmp_path):
    """As adversarial training does: the second loss belongs to the same window."""

    class Twice(RDropTrainer):
        losses = []

        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            for _ in range(2):
                self.losses.append(self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch).item())
            return super().training_step(model, inputs, num_items_in_batch)

    for alpha in (0.0, 4.0):
        Twice.losses = []
        model = zoo.noisy("single_label", 2 if alpha else 1)
        tiny.trainer(model, tiny.dataset(rows=8), tmp_path, Twice, rdrop_alpha=alpha, per_device_train_batch_size=2,
                     gradient_accumulation_steps=4).train()  # fmt: skip
        assert max(Twice.losses) < 0.5  # each a quarter of about 1.39


def test_an_endless_data_set_leaves_out_an_unfilled_window(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(tiny.dataset(rows=7))

    trainer = RDropTrainer(
        tiny.bert(),
        RDropTrainingArguments(str(tmp_path), report_to="none", use_cpu=USE_CPU, disable_tqdm=True, save_strategy="no",
                               logging_steps=1, max_steps=4, per_device_train_batch_size=2,
                               gradient_accumulation_steps=3, rdrop_alpha=3.0),
        train_dataset=Stream(),
        processing_class=tiny.tokenizer(),
    )  # fmt: skip
    trainer.train()
    entries = [e for e in trainer.state.log_history if "divergence" in e]
    assert len(entries) == 4
    for e in entries:
        assert e["loss"] == pytest.approx(e["task_loss"] + 1.5 * e["divergence"], rel=1e-5)
        assert e["loss"] == pytest.approx(1.39, rel=0.1)


class NoLogits(BertForTokenClassification):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        return {"loss": outputs.loss, "scores": outputs.logits}


def test_no_logits_names_what_the_model_returns(tmp_path):
    model = NoLogits(tiny.bert("token").config)
    with pytest.raises(ValueError, match="'logits'.*scores"):
        tiny.trainer(model, tiny.dataset("token"), tmp_path, remove_unused_columns=False).train()


@pytest.mark.parametrize("cls", [TrainingArguments, RDropTrainingArguments])
def test_hyperparameter_search_sets_the_settings(cls, tmp_path):
    """`hyperparameter_search` casts its values to the type of the attribute that is there: none may be lost."""
    integers = {"rdrop_alpha": 4, "rdrop_warmup_steps": 0} if cls is RDropTrainingArguments else {}
    args = cls(str(tmp_path), report_to="none", use_cpu=USE_CPU, max_steps=1, save_strategy="no", disable_tqdm=True,
               **integers)  # fmt: skip
    trainer = RDropTrainer(model_init=lambda: tiny.bert(), args=args, train_dataset=tiny.dataset(),
                           processing_class=tiny.tokenizer())  # fmt: skip
    trainer.hp_search_backend = HPSearchBackend.OPTUNA
    trial = types.SimpleNamespace(params={"rdrop_alpha": 0.5, "rdrop_warmup_steps": 0.25, "rdrop_num_passes": 3})
    trial.items = trial.params.items
    trainer.hp_space = lambda _: trial.params
    trainer._hp_search_setup(trial)
    settings = RDropArguments.of(trainer.args)
    assert (settings.rdrop_alpha, settings.rdrop_warmup_steps, settings.rdrop_num_passes) == (0.5, 0.25, 3)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_a_second_training_starts_afresh(tmp_path):
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), tmp_path, logging_steps=100, callbacks=[StopAt(1)])
    trainer.train()
    trainer.args.logging_steps = trainer.state.logging_steps = 1
    trainer.train()
    (entry,) = [e for e in trainer.state.log_history if "divergence" in e]
    assert entry["loss"] == pytest.approx(entry["task_loss"] + 2 * entry["divergence"], rel=1e-5)


def test_training_arguments_survive_a_round_trip(tmp_path):
    args = RDropTrainingArguments(str(tmp_path), rdrop_alpha=2.5, rdrop_forward_mode="recompute", report_to="none")
    trainer = RDropTrainer(tiny.bert(), args, train_dataset=tiny.dataset())
    trainer.save_model(str(tmp_path / "saved"))
    loaded = torch.load(tmp_path / "saved" / "training_args.bin", weights_only=False)
    assert (loaded.rdrop_alpha, loaded.rdrop_forward_mode) == (2.5, "recompute")


@pytest.mark.parametrize("args", [RDropTrainingArguments, TrainingArguments, None])
def test_a_seq2seq_trainer_names_the_arguments_it_needs(args, tmp_path):
    class Own(RDropMixin, Seq2SeqTrainer):
        pass

    given = args and args(str(tmp_path))
    for cls in (RDropSeq2SeqTrainer, Own):
        with pytest.raises(ValueError, match=f"{cls.__name__} needs RDropSeq2SeqTrainingArguments .* got .*"):
            cls(zoo.build("t5"), given)
        with pytest.raises(ValueError, match="RDropSeq2SeqTrainingArguments"):
            cls(model=zoo.build("t5"), args=given)


def test_a_trainer_whose_arguments_have_another_order(tmp_path):
    class Distilled(Seq2SeqTrainer):
        def __init__(self, config, teacher, student):
            self.teacher = teacher
            super().__init__(args=config, model=student)

    class Broken(Seq2SeqTrainer):
        def __init__(self, model, args):
            super().__init__(model, args)
            self.teacher.eval()

    args = RDropSeq2SeqTrainingArguments(str(tmp_path), rdrop_alpha=2.5, report_to="none")
    trainer = type("Over", (RDropMixin, Distilled), {})(args, "teacher", zoo.build("t5"))
    assert trainer.teacher == "teacher" and trainer.args.rdrop_alpha == 2.5
    with pytest.raises(AttributeError, match="teacher"):
        type("Over", (RDropMixin, Broken), {})(zoo.build("t5"), args)
