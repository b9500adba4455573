"""Pushing from a trainer: a card that tells all, whole checkpoints only, and no training that ends over it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, ModelCard
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging

from .. import __version__
from ..dropout import dropout_settings
from ..errors import HubError, InputError
from ..objective.behind import TrainerBehind
from ..training_args import RDropArguments
from .card_data import EvaluationSet, scores_now, settings_block
from .client import check_repo_id, connect, failure, patient, seconds_to_wait
from .folder import CARD, read_checkpoint
from .model_card import CardFacts, TrainedModel, extend_card, forget_guessed_data, write_card
from .push import push_checkpoint

logger = logging.get_logger(__name__)


class PublishingMixin(TrainerBehind):
    """What `Trainer` does with the Hub, so that nothing is lost and nothing leaks.

    Pushed are the model, its tokenizer or processor and the card, as `push_checkpoint` chooses them: not the state of
    the optimizer, nor `training_args.bin`, which holds the token. The strategies "checkpoint" and "all_checkpoints"
    push the model at every save, as "every_save" does.

    Attributes:
        card_facts: what the card tells that the trainer does not know; see `CardFacts`.
    """

    card_facts: CardFacts
    unlabeled_dataset: Any

    def __init__(self, *args, **kwargs):
        self.card_facts = CardFacts()
        super().__init__(*args, **kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """`Trainer.init_hf_repo`. Where the Hub cannot be reached, a warning: the pushes to come try again.

        Raises:
            HubError: the Hub refuses.
        """
        self.push_in_progress = None
        if not self.is_world_process_zero():
            return
        name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        check_repo_id(name, with_owner=False)
        private = self.args.hub_private_repo if private is None else private
        api = connect(token or self.args.hub_token)
        try:
            self.hub_model_id = patient(lambda: api.create_repo(name, private=private, exist_ok=True)).repo_id
        except Exception as error:
            refused = failure(f"{name} cannot be pushed to", error)
            if seconds_to_wait(error, 1.0) is None:
                raise refused from None
            logger.warning(f"{refused}. Training goes on, and pushing is tried again when there is something to push.")

    def create_model_card(self, *args, **kwargs) -> None:
        """`Trainer.create_model_card`, and beside what that tells: the R-Drop settings, every score of the weights that
        the model has now, the baseline and steadiness of `card_facts`, and how to load the model."""
        path = Path(self.args.output_dir) / CARD
        if self.is_world_process_zero() and path.exists():
            _check_readable(path)
        super().create_model_card(*args, **kwargs)
        if not self.is_world_process_zero():
            return
        card = ModelCard.load(path, ignore_metadata_errors=True)
        if not kwargs.keys() & {"dataset", "dataset_tags"}:
            forget_guessed_data(card)
        for picture in map(Path, self.card_facts.pictures):
            if picture.resolve().parent != path.resolve().parent:
                shutil.copy(picture, path.parent)
        extend_card(card, self._trained_model(), self.card_facts)
        write_card(path, card)

    def _trained_model(self) -> TrainedModel:
        settings, model = RDropArguments.of(self.args), self.accelerator.unwrap_model(self.model)
        if hasattr(model, "get_base_model"):  # PEFT
            model = model.get_base_model()
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        with_unlabeled = self.unlabeled_dataset is not None and settings.rdrop_alpha > 0
        return TrainedModel(
            architecture=type(model).__name__.removeprefix("FSDP"),  # FSDP2 makes a class of its own of each
            base=getattr(model.config, "_name_or_path", None) or "",
            settings=settings,
            block=settings_block(settings, dropout_settings(model.config), __version__, with_unlabeled),
            scores=scores_now(self.state.log_history, self.state.global_step, best),
            evaluation_sets=self._evaluation_sets(),
            repo_id=self.hub_model_id or self.args.hub_model_id,
        )

    def _evaluation_sets(self) -> dict[str, EvaluationSet]:
        if isinstance(self.eval_dataset, Mapping):
            return {f"eval_{name}": EvaluationSet.of(rows) for name, rows in self.eval_dataset.items()}
        return {"eval": EvaluationSet.of(self.eval_dataset)}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """`Trainer.save_model`; where that pushes and the push fails, the failure is logged and the script goes on."""
        super().save_model(output_dir, _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            try:
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
            except (HubError, InputError) as error:
                logger.error(str(error))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:
        """`Trainer.push_to_hub`: save model and card in `output_dir`, then push that folder by `push_checkpoint`.

        Args:
            commit_message, blocking, token, revision, private, **kwargs: as in `Trainer.push_to_hub`.

        Returns:
            The commit, or with `blocking=False` a future that gives it; None on all processes but the first.

        Raises:
            HubError: the Hub refused or could not be reached; all of it is in `output_dir`.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._finish_current_push()  # it reads the files that are written now
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        name = self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        tags = kwargs.pop("tags", None) or []
        tags = [tags] if isinstance(tags, str) else list(tags)
        tags += [tag for tag in getattr(self.model, "model_tags", None) or [] if tag not in tags]
        self.create_model_card(**{"model_name": name.split("/")[-1], "tags": tags or None, **kwargs})
        return self._push(commit_message, blocking, token, revision, private)

    def _push(
        self,
        message: str | None,
        blocking: bool,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> CommitInfo | Future:
        def push() -> CommitInfo:
            return push_checkpoint(
                self.args.output_dir,
                self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name,
                private=self.args.hub_private_repo if private is None else private,
                token=token or self.args.hub_token,
                revision=revision or self.args.hub_revision,
                commit_message=message,
            )

        if blocking:
            return push()
        self.push_in_progress = connect().run_as_future(push)
        return self.push_in_progress

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the model of a checkpoint while training goes on, unless the last push is still under way."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            logger.warning_once(
                f"hub_strategy {self.args.hub_strategy.value}: the model is pushed at every save; optimizer states and "
                "other pickled files are not, they stay in the checkpoint folders"
            )
        if not (self.args.hub_always_push or self.push_in_progress is None or self.push_in_progress.done()):
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        done = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch)}"
        try:
            # Copied, since a checkpoint may be deleted before it is sent
            for name, path in read_checkpoint(checkpoint_folder).files.items():
                _copy(path, Path(self.args.output_dir) / name)
            self.create_model_card()
        except (OSError, ValueError) as error:
            logger.error(f"{checkpoint_folder} is not pushed: {error}")
            return
        self._push(f"Training in progress, {done}", blocking=False).add_done_callback(_tell)

    def _finish_current_push(self) -> None:
        if getattr(self, "push_in_progress", None) is not None and not self.push_in_progress.done():
            logger.warning("Waiting until the checkpoint that is being pushed has arrived.")
            self.push_in_progress.exception()


def _check_readable(path: Path) -> None:
    """Put a card aside whose metadata cannot be read: `Trainer` reads it before it writes a new one."""
    try:
        ModelCard.load(path)
    except Exception as error:  # YAML and encodings fail in errors of their own
        aside = path.with_name(path.name + ".old")
        logger.warning(f"{path}: its metadata cannot be read ({type(error).__name__}); it is now {aside.name}")
        os.replace(path, aside)


def _copy(source: Path, target: Path) -> None:
    """Copy so that a push that reads the target meanwhile gets the old file whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".part")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def _tell(push: Future[Any]) -> None:
    if (error := push.exception()) is not None:
        logger.error(f"Training goes on, but {error}")
