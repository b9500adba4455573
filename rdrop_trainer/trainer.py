"""`RDropMixin` and `RDropTrainer`: swap `Trainer` for `RDropTrainer` and nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from transformers import Seq2SeqTrainer, Trainer
from transformers.utils import logging

from .base_loss import BaseLossMixin
from .dropout import set_dropout
from .head import heads_from_setting
from .hub.publishing import PublishingMixin
from .logged_terms import LoggedTerms
from .objective.inspect import first_plan
from .objective.noise import trains
from .objective.noise_of import noise_of
from .objective.objective import Objective
from .objective.plain import counts_right, plain_loss
from .objective.rows import find_batch_size, spread_rows
from .objective.training import Training
from .objective.view import SecondView
from .objective.window import StepSettings, Window
from .overrides import check_not_divided_again, check_order, overriding, own_loop, takes
from .reliability.checkpoints import RenamedWeightsMixin
from .reliability.finite import FiniteLossGuard
from .reliability.full_windows import FullWindowsMixin
from .reliability.processes import EqualBatches, check_parallelism, explain_reentrant_checkpoints, use_one_gpu
from .reliability.resuming import ResumingMixin
from .search import SearchMixin
from .semi_supervised import UnlabeledRowsMixin
from .training_args import RDropArguments

logger = logging.get_logger(__name__)


class RDropMixin(
    UnlabeledRowsMixin,
    ResumingMixin,
    RenamedWeightsMixin,
    SearchMixin,
    PublishingMixin,
    FullWindowsMixin,
    BaseLossMixin,
):
    """R-Drop for any trainer derived from `transformers.Trainer`: `class MyRDropTrainer(RDropMixin, MyTrainer)`.

    On an R-Drop step every example runs through the model several times with fresh dropout, and the loss is

        task loss + alpha / 2 * divergence

    (`rdrop_loss`; Liang et al., 2021). Both terms are means over the items of the whole optimizer step, counted over
    its micro-batches and processes, so gradient accumulation and data parallelism give the gradient of one large batch.
    With alpha = 0, and on the steps between R-Drop steps, training is plain fine-tuning: `Trainer`'s own arithmetic
    where the step is one batch on one process, the same exact normalisation elsewhere. (With GPT-2 and some other
    models `Trainer` also counts the first token of a row, which nothing predicts; here it is not counted.) Evaluation
    and prediction are `Trainer`'s. With `average_tokens_across_devices=False` every process counts for itself, as the
    name says.

    The settings are those of `RDropArguments`, read from `args` at every step; arguments without them get the defaults.
    Training logs `task_loss` and `divergence` beside `loss`: averages over the R-Drop steps since the last log.

    Args:
        unlabeled_dataset: rows without labels (any they have are ignored). `rdrop_unlabeled_ratio` of them go along
            with each labeled row in every training batch: they have no task loss, but their divergence counts. Steps,
            epochs and `num_examples` go on counting labeled rows, in the order of the run without unlabeled ones; the
            forward passes grow by the ratio, also on steps that are no R-Drop steps, where unlabeled rows have no
            effect. With alpha = 0 they are left out.
        second_view: `second_view(batch, pass_index)` returns what the later passes of an R-Drop step, 1, 2, ..., see in
            the place of the micro-batch: other inputs, and the same labels and rows. `rdrop_trainer.views` has some.
        *args: those of the trainer.
        **kwargs: those of the trainer.

    Raises:
        ValueError: at `train()`, for context or sequence parallelism, unsupported heads and a checkpoint that is not
            whole; at the first R-Drop step, for a model without active dropout; for an `unlabeled_dataset` that is
            empty, has no length, or goes along with labels that have no mark for an unlabeled row.
        FloatingPointError: a loss that is NaN or infinite, or such weights before a checkpoint; with alpha = 0 too.
    """

    # `compute_loss` normalises over the accumulation window, so `training_step` must not divide again.
    loss_is_scaled_for_ga = True
    _window: Window | None = None  # the micro-batches of this optimizer step, while `train` runs
    _losses_made = 0  # in this window
    _train_ran = False  # as far as the loop, in this training
    _objective: Objective | None = None
    _settings: RDropArguments | None = None  # the last that were read

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        check_order(cls, RDropMixin, Trainer)

    def __init__(self, *args: Any, unlabeled_dataset: Any = None, second_view: SecondView | None = None, **kwargs: Any):
        try:
            super().__init__(*args, **kwargs)
        except AttributeError:
            given = getattr(self, "args", None)  # whatever place the trainer's own __init__ has for them
            if isinstance(self, Seq2SeqTrainer) and given is not None and not hasattr(given, "predict_with_generate"):
                raise ValueError(
                    f"{type(self).__name__} needs RDropSeq2SeqTrainingArguments (or Seq2SeqTrainingArguments) as args, "
                    f"got {type(given).__name__}."
                ) from None
            raise
        if (self.args.log_level if self.args.should_log else self.args.log_level_replica) != "passive":
            # As `Trainer` sets that of its own
            logging.get_logger(__package__).setLevel(self.args.get_process_log_level())
        use_one_gpu(self)
        self.second_view = second_view
        self._set_unlabeled_dataset(unlabeled_dataset)
        # A hyper-parameter search sets only attributes that are there.
        for field in fields(RDropArguments):
            if not hasattr(self.args, field.name):
                setattr(self.args, field.name, field.default)
        self._finite_loss_guard = FiniteLossGuard()
        self.add_callback(self._finite_loss_guard)
        self._logged_terms = LoggedTerms()
        self.add_callback(self._logged_terms)
        self.add_callback(EqualBatches)
        self._set_dropout()

    # ---- The loss of a micro-batch ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The R-Drop loss of one micro-batch while the model trains; `Trainer`'s loss otherwise.

        Args:
            model: the model as `Trainer` wrapped it.
            inputs: one micro-batch of B rows, with labels; not changed.
            return_outputs: also return the outputs of the first pass, of B rows.
            num_items_in_batch: `Trainer`'s count; only handed on to it or to a user's `compute_loss_func`.

        Returns:
            This micro-batch's share of the loss of the optimizer step; outside `train()`, the loss of this batch.
        """
        if not self._is_training(model):
            return self._base_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        window, settings = self._window_of(inputs), self._step_settings()
        self._losses_made += 1
        if settings.num_passes == 1 and counts_right(self._objective.training, window, inputs):
            return plain_loss(
                self._objective, self._base_loss, model, inputs, window, return_outputs, num_items_in_batch
            )
        terms, passes = self._objective(model, inputs, window, settings, num_items_in_batch, whole=return_outputs)
        if settings.num_passes > 1 and self._window is not None:
            self._logged_terms.add(terms)
        return (terms.loss, passes.first_output(terms.loss)) if return_outputs else terms.loss

    def _is_training(self, model: nn.Module) -> bool:
        if self._phase == "train":  # the flag of a wrapper may be wrong, those of the modules in it are not
            return trains(model)
        return self._phase is None and model.training

    def _step_settings(self) -> StepSettings:
        settings, step = self._rdrop_settings(), self.state.global_step
        return StepSettings(
            alpha=settings.alpha_at(step, self.state.max_steps),
            num_passes=settings.rdrop_num_passes if settings.is_rdrop_step(step) else 1,
            forward_mode=settings.rdrop_forward_mode,
            reduction=settings.rdrop_reduction,
            fused_head=settings.rdrop_fused_head,
            allow_deterministic=settings.rdrop_allow_deterministic,
            second_view=self.second_view,
        )

    def _rdrop_settings(self) -> RDropArguments:
        """Those of `args` now, which may change at any time."""
        self._settings = RDropArguments.of(self.args, self._settings)
        return self._settings

    def _window_of(self, inputs: Mapping[str, Any]) -> Window:
        if self._window is None and self._phase == "train" and self.is_in_train:
            owner = overriding(type(self), "get_batch_samples", RDropMixin) or type(self)
            loop = own_loop(type(self), RDropMixin, Trainer, self._train_ran)
            raise ValueError(
                "R-Drop did not see the batches of this step: let the "
                + (f"{loop} take them from self" if loop else f"get_batch_samples of {owner.__name__} call super()")
                + ".get_batch_samples(...), which counts their items."
            )
        return self._window or self._counted([inputs], shared=False)

    def _counted(self, batches: list[Mapping[str, Any]], shared: bool) -> Window:
        """The window of some micro-batches. The first ones of a model also tell what it predicts."""
        if self._objective is None or self._objective.training.model is not self.model:
            training = self._training()
            self._objective = Objective(first_plan(training, batches), training)
        settings = self._rdrop_settings()
        share = settings.rdrop_row_share if settings.is_rdrop_step(self.state.global_step) else 1.0
        return self._objective.window(batches, shared, share)

    def _training(self) -> Training:
        half = {p.dtype for p in self.model.parameters() if p.requires_grad and p.dtype.itemsize < 4}
        if half and not self.is_deepspeed_enabled:  # which updates weights of its own, in float32
            logger.warning_once(
                f"Trainable weights are in {', '.join(map(str, half))}, in which most updates of a small learning rate "
                "round away. Load the model with dtype=torch.float32; bf16=True or fp16=True makes the passes as fast."
            )
        liger, hidden_by = self.args.liger_kernel_config or {}, None
        if self.args.use_liger_kernel and liger.get("fused_linear_cross_entropy", True):
            hidden_by = "use_liger_kernel=True; pass liger_kernel_config={'fused_linear_cross_entropy': False}"
        settings, trainer_loss, function = RDropArguments.of(self.args), self._trainer_loss(), self.compute_loss_func
        if trainer_loss and function and not takes(function, "num_items_in_batch"):
            function = None  # only that compute_loss knows how to call it
        return Training(
            self.model,
            self.accelerator,
            label_smoothing=self.args.label_smoothing_factor if self.label_smoother else 0.0,
            loss_function=function,
            trainer_loss=trainer_loss,
            hidden_by=hidden_by,
            is_sharded=self.is_fsdp_enabled,
            is_compiled=self.args.torch_compile,
            problem=settings.rdrop_problem,
            heads=heads_from_setting(settings.rdrop_heads),
            label_names=self.args.label_names or (),
            replicas=self.get_tp_size(),
            shares_counts=self.args.average_tokens_across_devices,
        )

    # ---- The training around it ----

    def train(self, *args, **kwargs):
        """`Trainer.train`, refusing the set-ups in which R-Drop could not be exact."""
        # Checked and converted: where somebody assigned an int, a hyper-parameter search would cast its alphas to int
        vars(self.args).update(vars(RDropArguments.of(self.args)))
        use_one_gpu(self)
        check_parallelism(self.get_cp_size(), self.get_sp_size())
        if self.args.gradient_accumulation_steps > 1:
            check_not_divided_again(type(self), RDropMixin, Trainer)
        self.loss_is_scaled_for_ga = True  # a base trainer may say otherwise of its own loss, in its __init__
        self._window = self._objective = None
        self._losses_made, self._train_ran = 0, False
        self._logged_terms.forget()
        try:
            with self._before_overrides(RDropMixin):
                output = super().train(*args, **kwargs)
            self._check_losses_came_through()
            self._check_loop()
            return output
        finally:
            self._window = self._objective = None
            self._finite_loss_guard.forget()

    def _inner_training_loop(self, *args, **kwargs):
        self._train_ran = True
        return super()._inner_training_loop(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """`Trainer.get_batch_samples`, counting the items of the accumulation window it returns."""
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._check_losses_came_through()
        self._window = None
        self._logged_terms.start_window(self.state.global_step)
        if batches:
            self._window = self._counted(batches, shared=True)
        return batches, num_items_in_batch

    def _check_losses_came_through(self) -> None:
        """Stop where a step went by without our loss: an override in front of it runs the model by itself."""
        if self._window is not None and self._losses_made == 0:
            owner = overriding(type(self), "training_step", RDropMixin) or type(self)
            raise ValueError(
                f"The loss of step {self.state.global_step} did not come through R-Drop: let the training_step of "
                f"{owner.__name__} call super().training_step(...), or self.compute_loss(...) for its loss, and a "
                "compute_loss super().compute_loss(...)."
                + (" One that is set on a trainer belongs into its class." if "compute_loss" in vars(self) else "")
            )
        self._losses_made = 0

    def _check_loop(self) -> None:
        """Refuse a loop that is not `Trainer`'s and took no batches from us: at its first log, or when it ends."""
        loop = own_loop(type(self), RDropMixin, Trainer, self._train_ran)
        if loop and self._objective is None and self.args.rdrop_alpha > 0:
            raise ValueError(
                f"No loss of this training came through R-Drop: the {loop} is a loop of its own. Let it take its "
                "batches from self.get_batch_samples(...), and their losses from self.training_step(...)."
            )

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """`Trainer.training_step`; a loss that is NaN or infinite stops the training."""
        try:
            with self._in_phase("train"):
                loss = super().training_step(*args, **kwargs)
        except BaseException as error:
            self._losses_made += 1  # no loss was missed: `auto_find_batch_size` begins again, others catch and go on
            explain_reentrant_checkpoints(error, self.args.rdrop_forward_mode)
            raise
        self._finite_loss_guard.watch(loss)
        return loss

    def evaluation_loop(self, *args, **kwargs):
        """`Trainer.evaluation_loop`, whose losses are `Trainer`'s, even if a `prediction_step` in front of ours keeps
        dropout on.
        """
        with self._in_phase("evaluate"):
            return super().evaluation_loop(*args, **kwargs)

    def prediction_step(self, *args, **kwargs):
        """`Trainer.prediction_step`, whose losses are `Trainer`'s."""
        with self._in_phase("evaluate"), self._before_overrides(RDropMixin):
            return super().prediction_step(*args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs) -> None:
        self._finite_loss_guard.check()
        super()._save_checkpoint(*args, **kwargs)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """`Trainer.log`; a training log also gets `task_loss` and `divergence`, averaged over R-Drop steps."""
        # What is logged within a step is the user's: maybe of one process, and before the step has all its terms
        if "loss" in logs and self._phase is None:
            if self.is_in_train:
                self._check_loop()
            logs = {**logs, **self._logged_terms.take(lambda sums: self.accelerator.reduce(sums, "mean"))}
            if logs.get("divergence") == 0:
                self._warn_of_lost_noise()
        super().log(logs, *args, **kwargs)

    def _warn_of_lost_noise(self) -> None:
        had_noise = self._objective is not None and self._objective.plan.noise is None
        if not had_noise or self.args.rdrop_allow_deterministic:
            return
        # Of few rows, stochastic depth may by chance leave out the same layers in all passes
        if not noise_of(self.model, self.args.neftune_noise_alpha):
            logger.warning_once(
                "The logged divergence is exactly 0: the passes are alike now, and R-Drop has no effect. Does a "
                "callback set dropout to 0, or put layers into evaluation mode?"
            )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """`Trainer.floating_point_ops` of all passes of this step."""
        once, more = super().floating_point_ops(inputs), self._step_settings().num_passes - 1
        if more and (share := self.args.rdrop_row_share) < 1:
            rows = find_batch_size(self.model, inputs)
            return once + once * more * len(spread_rows(share, rows)) // rows
        return once + once * more

    # ---- Dropout ----

    def _hp_search_setup(self, *args, **kwargs) -> None:
        """`Trainer._hp_search_setup`, which `train` calls in any case, and only after making a trial's model."""
        super()._hp_search_setup(*args, **kwargs)
        self._set_dropout()

    def _set_dropout(self) -> None:
        if self.args.rdrop_dropout is not None:
            set_dropout(self.model, self.args.rdrop_dropout)


class RDropTrainer(RDropMixin, Trainer):
    """`transformers.Trainer` with R-Drop; the same arguments, methods and checkpoints."""


class RDropSeq2SeqTrainer(RDropMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` with R-Drop; it generates during evaluation (`predict_with_generate`) as before."""
