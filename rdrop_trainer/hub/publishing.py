"""Pushing from a trainer: whole checkpoints with a full card, and failures that do not end the training."""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, ModelCard
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import PushInProgress, logging

from .. import __version__
from .._mixin_base import MixinBase
from ..dropout import dropout_settings
from ..errors import InputError
from ..objective.noise_of import noise_of
from ..run_folder import replacing, write_text
from ..training_args import RDropArguments
from .card_data import EvaluationSet, is_hub_name, scores_now, settings_block
from .client import check_repo_id, connect, failure, reason, repo_name, seconds_to_wait, with_retries
from .folder import CARD, Checkpoint, Weights, read_checkpoint
from .model_card import CardFacts, rdrop_card
from .push import push_checkpoint
from .quantization import in_words

logger = logging.get_logger(__name__)

# `Trainer` guesses data sets that are not named from how they were loaded: "generator", say
_UNNAMED_DATA: dict[str, list] = {"dataset_tags": [], "dataset_args": []}
_COPY = ".push-"  # folders in `output_dir`, of checkpoints that are being pushed


class PublishingMixin(MixinBase):
    """`Trainer`'s methods for the Hub, so that nothing is lost and nothing leaks.

    The model, its tokenizer or processor and the card are pushed, as `push_checkpoint` chooses them. The state of the
    optimizer and `training_args.bin`, which holds the token, are not. The strategies "checkpoint" and "all_checkpoints"
    push the model at every save, as "every_save" does. Pushes during the training are made one after the other, each
    from a copy of its checkpoint. Nothing about a card or such a push ends a training: failures are logged.

    Attributes:
        card_facts: what the card says and the trainer does not know; see `CardFacts`.
    """

    card_facts: CardFacts
    unlabeled_dataset: Any
    second_view: Any
    args: Any  # its strategies are texts to a type checker, but members of an enumeration
    push_in_progress: Any

    def __init__(self, *args, **kwargs):
        self.card_facts = CardFacts()
        self._pusher: ThreadPoolExecutor | None = None
        super().__init__(*args, **kwargs)

    def init_hf_repo(self, token: str | None = None, *args, **kwargs) -> None:
        """`Trainer.init_hf_repo`. If the Hub cannot be reached, it warns, and later pushes try again.

        Args:
            token, *args, **kwargs: as the base trainer takes them; `private` needs transformers 5.23.

        Raises:
            HubError: the Hub refuses.
        """
        self.push_in_progress = None
        if not self.is_world_process_zero():
            return
        for left in Path(self.args.output_dir).glob(f"{_COPY}*"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        try:
            name = check_repo_id(self._repo_name)
        except InputError as error:
            if self.args.hub_model_id is not None:
                raise
            raise InputError(f"{error} It is that of the output folder; hub_model_id gives another.") from error
        connect(token or self.args.hub_token)
        try:
            with_retries(lambda: super(PublishingMixin, self).init_hf_repo(token, *args, **kwargs))
        except Exception as error:
            refused = failure(f"{name} cannot be pushed to", error)
            if seconds_to_wait(error) is None:
                raise refused from None
            logger.warning(f"{refused}. Training goes on, and pushing is tried again when there is something to push.")

    def create_model_card(self, *args, **kwargs) -> None:
        """`Trainer.create_model_card`, with the R-Drop settings, all scores of the present weights, the baseline and
        the stability of `card_facts`, and how to load the model.

        If the base trainer has a card of its own, that is kept, and the R-Drop section is added to it. If no card can
        be made, the reason is logged, an older one is put aside, and the training goes on.
        """
        if not self.is_world_process_zero():
            return
        path = Path(self.args.output_dir, CARD)
        try:
            _put_aside_if_damaged(path)
            for picture in map(Path, self.card_facts.pictures):
                if picture.resolve().parent != path.resolve().parent:
                    shutil.copy(picture, path.parent)
            super().create_model_card(*args, **{**self._unnamed_data(), **kwargs})
            text = path.read_text(encoding="utf-8-sig")  # with line feeds; on Windows `Trainer` writes others
            card = ModelCard(text, ignore_metadata_errors=True)
            write_text(path, str(self._with_rdrop(card, kwargs.get("tags"), _named_data(kwargs))))
        except Exception as error:  # a training shall not end over a card
            logger.error(
                f"{path} could not be written: {type(error).__name__}: {reason(error)}. The training goes on; call "
                "trainer.create_model_card() when that is mended"
            )
            _put_aside(path)

    def _unnamed_data(self) -> dict[str, Any]:
        """The arguments without which `Trainer` would guess data sets, where every card maker down to it takes them."""
        cards = [vars(cls)["create_model_card"] for cls in type(self).__mro__ if "create_model_card" in vars(cls)]
        parameters = [inspect.signature(card).parameters.values() for card in cards]
        hands_on = all(any(p.kind == p.VAR_KEYWORD or p.name == "dataset_tags" for p in each) for each in parameters)
        return dict(_UNNAMED_DATA) if hands_on else {}

    def _with_rdrop(self, card: ModelCard, tags: str | list[str] | None, named: EvaluationSet) -> ModelCard:
        """A card that the base trainer wrote, with what is known of R-Drop and of the present weights. Data that do not
        know their origin are the `named` ones.
        """
        settings, facts = RDropArguments.of(self.args), self.card_facts
        model = self.accelerator.unwrap_model(self.model)
        is_adapter = hasattr(model, "get_base_model")  # PEFT
        if is_adapter:
            model = model.get_base_model()
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        rows = self.eval_dataset
        sets = {f"eval_{name}": part for name, part in rows.items()} if isinstance(rows, Mapping) else {"eval": rows}
        origins = {key: EvaluationSet.of(part) for key, part in sets.items()}
        origins = {key: named if data == EvaluationSet() else data for key, data in origins.items()}
        facts = replace(
            facts,
            tags=[*facts.tags, *([tags] if isinstance(tags, str) else tags or ())],  # PEFT's card loses them
            scores={**scores_now(self.state.log_history, self.state.global_step, best), **facts.scores},
            evaluation_sets={**origins, **facts.evaluation_sets},
        )
        with_unlabeled = self.unlabeled_dataset is not None and settings.rdrop_alpha > 0
        block = settings_block(settings, dropout_settings(model.config), __version__, with_unlabeled)
        quantization = getattr(model.config, "quantization_config", None)
        words = in_words(quantization)
        # A base model that is stored so comes so by itself
        is_stored_so = words and getattr(getattr(model, "hf_quantizer", None), "pre_quantized", False)
        noise = [*map(str, noise_of(model, self.args.neftune_noise_alpha)), *["a second view"] * bool(self.second_view)]
        return rdrop_card(
            card,
            facts,
            {**block, "noise": "; ".join(noise) or "none", **({"base_weights": words} if words else {})},
            architecture=type(model).__name__.removeprefix("FSDP"),  # FSDP2 makes a new class of each
            base=getattr(model.config, "_name_or_path", None) or "",
            repo_id=self.hub_model_id or self.args.hub_model_id,
            is_adapter=is_adapter,
            quantization=None if is_stored_so else quantization,
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """`Trainer.save_model`. If a push in it fails, the failure is logged and the script goes on."""
        super().save_model(output_dir, _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            try:
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
            except Exception as error:  # a training shall not end over a push
                logger.error(reason(error))

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
            The commit, or with `blocking=False` a future of it; None on all processes but the first.

        Raises:
            HubError: the Hub refused or could not be reached; everything is in `output_dir`.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._finish_current_push()  # before the files that it names are written again
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        tags = kwargs.pop("tags", None) or []
        tags = [*([tags] if isinstance(tags, str) else tags), *(getattr(self.model, "model_tags", None) or ())]
        name = self._repo_name.split("/")[-1]
        self.create_model_card(**{"model_name": name, "tags": list(dict.fromkeys(tags)) or None, **kwargs})
        return self._push(commit_message, blocking, token=token, revision=revision, private=private)

    @property
    def _repo_name(self) -> str:
        return self.hub_model_id or repo_name(self.args.hub_model_id, self.args.output_dir)

    def _push(
        self,
        message: str | None,
        blocking: bool,
        *,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        finished: Path | None = None,
    ) -> CommitInfo | Future:
        """Push `output_dir`, or in the background a copy of it; `finished` has the same weights, for links to them."""
        token = token or self.args.hub_token
        checkpoint = read_checkpoint(self.args.output_dir, token)

        def push(read: Checkpoint, copy: ExitStack) -> CommitInfo:
            with copy:
                return push_checkpoint(
                    read,
                    self._repo_name,
                    private=self.args.hub_private_repo if private is None else private,
                    token=token,
                    revision=revision or self.args.hub_revision,
                    commit_message=message,
                )

        if blocking:
            return push(checkpoint, ExitStack())
        with ExitStack() as until_pushed:  # the copy goes when it has arrived, or when it cannot be made
            copy = tempfile.TemporaryDirectory(prefix=_COPY, dir=self.args.output_dir, ignore_cleanup_errors=True)
            checkpoint = checkpoint.copied_to(Path(until_pushed.enter_context(copy)), finished)
            self._pusher = self._pusher or ThreadPoolExecutor(max_workers=1)  # one after the other
            pushed = self._pusher.submit(push, checkpoint, until_pushed.pop_all())
        self.push_in_progress = PushInProgress([pushed])  # type: ignore[arg-type]  # it says one, and takes several
        return pushed

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the model of a checkpoint while training goes on, unless the last push is still running."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            logger.warning_once(
                f"hub_strategy {self.args.hub_strategy.value}: the model is pushed at every save; optimizer states and "
                "other pickled files are not, they stay in the checkpoint folders"
            )
        if not (self.args.hub_always_push or self.push_in_progress is None or self.push_in_progress.is_done()):
            return
        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        done = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch)}"
        try:
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            for name, content in read_checkpoint(checkpoint_folder).files.items():
                with replacing(Path(self.args.output_dir, name)) as temporary:
                    if isinstance(content, Weights):
                        shutil.copyfile(content.path, temporary)
                    else:
                        temporary.write_bytes(content)
            self.create_model_card()
            push = self._push(f"Training in progress, {done}", blocking=False, finished=Path(checkpoint_folder))
            push.add_done_callback(_log_failure)
        except Exception as error:  # a training shall not end over a push
            logger.error(f"Training goes on, but {checkpoint_folder} is not pushed: {reason(error)}")


def _named_data(arguments: Mapping[str, Any]) -> EvaluationSet:
    """The data set that arguments of `create_model_card` name; unknown if they name none, or several."""
    given = (arguments.get(key) for key in ("dataset", "dataset_tags", "dataset_args"))
    name, repo_id, config = (one[0] if isinstance(one, list) and len(one) == 1 else one for one in given)
    if not isinstance(name, str):
        return EvaluationSet()
    if not is_hub_name(repo_id):
        return EvaluationSet(name)
    return EvaluationSet(name, repo_id, config if isinstance(config, str) else None)


def _put_aside(path: Path) -> None:
    with suppress(OSError):
        os.replace(path, path.with_name(f"{path.name}.old"))


def _put_aside_if_damaged(path: Path) -> None:
    """Put a card aside whose metadata `Trainer` could not read."""
    try:
        ModelCard.load(path) if path.exists() else None
    except Exception as error:  # YAML and encodings raise their own errors
        logger.warning(f"{path}: its metadata cannot be read ({type(error).__name__}); it is now {path.name}.old")
        _put_aside(path)


def _log_failure(push: Future[Any]) -> None:
    if (error := push.exception()) is not None:
        logger.error(f"Training goes on, but {error}")
