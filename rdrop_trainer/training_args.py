"""The R-Drop settings, and `TrainingArguments` that carry them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Real
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from .head import Head, heads_from_setting
from .losses.validation import PROBLEMS, REDUCTIONS

FORWARD_MODES = ("concat", "sequential", "recompute")
FUSED_HEAD = ("auto", "true", "false")


@dataclass
class RDropArguments:
    """The R-Drop settings, read at every step: a change on `trainer.args` takes effect at the next one.

    `rdrop_problem`, `rdrop_heads`, `rdrop_dropout` and `rdrop_unlabeled_ratio` are read once, when a training begins.

    Raises:
        ValueError: a value out of range, naming the field and the value.
    """

    rdrop_alpha: float = field(
        default=4.0,
        metadata={
            "help": "Weight of the symmetric KL between the passes, at least 0: loss = task loss + alpha / 2 * "
            "divergence, which is the paper's alpha on the scale of a plain run. 0 is plain fine-tuning, one forward "
            "per step. The R-Drop authors used 5 for translation, 1 for language models and 0.7 for summarisation, "
            "bojone/r-drop 4 for Chinese text classification. Too large a value pulls all predictions together."
        },
    )
    rdrop_num_passes: int = field(
        default=2,
        metadata={
            "help": "How many times each example goes through the model with fresh dropout, at least 2. Time and "
            "activation memory grow in proportion; the divergence is the mean over all pairs of passes."
        },
    )
    rdrop_every_n_steps: int = field(
        default=1,
        metadata={
            "help": "R-Drop on optimizer steps 0, n, 2n, ... and plain one-pass training on the others. 1: every "
            "step. The paper's ablation tried 1, 2, 5 and 10: 1 was best, larger values are faster."
        },
    )
    rdrop_warmup_steps: float = field(
        default=0.0,
        metadata={
            "help": "Optimizer steps over which alpha rises linearly from alpha / W to alpha: a whole number of "
            "steps, or a share of all steps as a float below 1. 0: no warm-up."
        },
    )
    rdrop_row_share: float = field(
        default=1.0,
        metadata={
            "help": "Share of the rows of each micro-batch that go through more than the first pass, in (0, 1], "
            "rounded up and evenly spaced: 0.5 for every second one of the shuffled rows. A micro-batch of one row has "
            "it in all passes. The divergence is the mean over their items, the task loss that over all. For the usual "
            "losses alone: one of your own, or of the model's, is refused."
        },
    )
    rdrop_forward_mode: str = field(
        default="concat",
        metadata={
            "help": "concat: one forward of m*B rows, the fastest on a GPU. sequential: m forwards of B rows, for "
            "inputs that cannot be repeated. recompute: m forwards of which all but the last are run again during the "
            "backward pass: about the activation memory of plain training, at one more forward per extra pass.",
            "choices": list(FORWARD_MODES),
        },
    )
    rdrop_reduction: str = field(
        default="mean",
        metadata={
            "help": "mean: divergence averaged over the items of the whole optimizer step. sum: summed within each "
            "micro-batch, and averaged over the micro-batches and processes of the step; only to reproduce the "
            "official GLUE runs. The task loss is a mean either way.",
            "choices": list(REDUCTIONS),
        },
    )
    rdrop_problem: str = field(
        default="auto",
        metadata={
            "help": "What the model predicts, and so the divergence. single_label: one of several classes "
            "(categorical). multi_label: yes or no for each logit (Bernoulli), also for a single one. regression: "
            "numbers (squared difference). auto: config.problem_type, else the model's class and the labels. The task "
            "loss stays the model's. Read when training starts.",
            "choices": ["auto", *PROBLEMS],
        },
    )
    rdrop_heads: Sequence[Head | dict[str, Any]] | str | None = field(
        default=None,
        metadata={
            "help": "What the outputs of a model of your own predict, where R-Drop cannot know it: several heads, "
            "labels of other names, logits somewhere in a tuple, or labels that stand elsewhere than the logits. A "
            "list of rdrop_trainer.Head, of dicts, or its JSON; kept as dicts. It says the problem of each head, so "
            "rdrop_problem stays auto. Default: as found. Read when training starts."
        },
    )
    rdrop_unlabeled_ratio: float = field(
        default=1.0,
        metadata={
            "help": "With unlabeled rows: how many go along with each labeled row in every batch, more than 0. A "
            "batch holds per_device_train_batch_size labeled rows and this many times as many unlabeled ones (0.5: "
            "one for every second labeled row), and its forward passes and memory grow by them. Steps, epochs and "
            "schedules count labeled rows, so the supervised run of the same settings has the same steps."
        },
    )
    rdrop_fused_head: str = field(
        default="auto",
        metadata={
            "help": "Language models: compute the output head and the loss together, some rows at a time, so that the "
            "logits never exist as a whole: less memory than plain training with a large vocabulary, and the same "
            "arithmetic. auto: where a micro-batch has 2^24 logits or more, on a GPU where at 2 bytes each they would "
            "take a hundredth of its memory or more. true: always. false: never. A model for which that is not "
            "possible trains without it, and one warning says why."
            # Without choices, because a parser would then refuse True, which a recipe's true becomes
        },
    )
    rdrop_allow_deterministic: bool = field(
        default=False,
        metadata={
            "help": "Go on when the passes are identical because the model has no active dropout, instead of "
            "stopping with an error. R-Drop then does nothing."
        },
    )
    rdrop_allow_nonfinite: bool = field(
        default=False,
        metadata={
            "help": "Go on when a loss is NaN or infinite, because your own code handles overflow, instead of stopping "
            "with an error that names step, rows and last checkpoint. With fp16 the gradient scaler handles it anyway."
        },
    )
    rdrop_dropout: float | None = field(
        default=None,
        metadata={
            "help": "Set every dropout of the model, and of an adapter, to this probability, in [0, 1), with alpha 0 "
            "too. R-Drop needs dropout: the Chinese text classification of bojone/r-drop used 0.3, most BERT models "
            "come with 0.1, ModernBERT and most decoder models with 0. Default: as the model has it."
        },
    )

    def __post_init__(self):
        # A hyper-parameter search casts its values to the type of the default: with an int alpha, 0.5 would become 0
        self.rdrop_alpha = _number("rdrop_alpha", self.rdrop_alpha)
        self.rdrop_warmup_steps = warmup = _number("rdrop_warmup_steps", self.rdrop_warmup_steps)
        self.rdrop_num_passes = _whole("rdrop_num_passes", self.rdrop_num_passes, at_least=2)
        self.rdrop_every_n_steps = _whole("rdrop_every_n_steps", self.rdrop_every_n_steps, at_least=1)
        self.rdrop_unlabeled_ratio = _number("rdrop_unlabeled_ratio", self.rdrop_unlabeled_ratio)
        if self.rdrop_unlabeled_ratio <= 0:
            raise ValueError(f"rdrop_unlabeled_ratio must be more than 0, got {self.rdrop_unlabeled_ratio}.")
        self.rdrop_row_share = _number("rdrop_row_share", self.rdrop_row_share)
        if not 0 < self.rdrop_row_share <= 1:
            raise ValueError(f"rdrop_row_share must be above 0 and at most 1, got {self.rdrop_row_share}.")
        if self.rdrop_dropout is not None and not 0 <= _number("rdrop_dropout", self.rdrop_dropout) < 1:
            raise ValueError(f"rdrop_dropout must be in [0, 1), got {self.rdrop_dropout}.")
        if self.rdrop_alpha < 0:
            raise ValueError(f"rdrop_alpha must be a finite number of at least 0, got {self.rdrop_alpha}.")
        if warmup < 0 or (warmup >= 1 and warmup != int(warmup)):
            raise ValueError(
                "rdrop_warmup_steps must be a whole number of optimizer steps (0, 1, 2, ...) or a share of all steps "
                f"as a float below 1, got {warmup}."
            )
        self.rdrop_fused_head = str(self.rdrop_fused_head).lower()  # a bool is welcome
        for name, choices in (
            ("rdrop_forward_mode", FORWARD_MODES),
            ("rdrop_reduction", REDUCTIONS),
            ("rdrop_problem", ("auto", *PROBLEMS)),
            ("rdrop_fused_head", FUSED_HEAD),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        self.rdrop_heads = [asdict(head) for head in heads_from_setting(self.rdrop_heads)] or None  # as JSON has it
        if self.rdrop_heads and self.rdrop_problem != "auto":
            raise ValueError(
                f"rdrop_problem={self.rdrop_problem!r} is for a head that R-Drop finds; with rdrop_heads, set "
                "`problem` in each of these."
            )
        # In RDropTrainingArguments the next class is TrainingArguments; RDropArguments alone has none
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()

    @classmethod
    def of(cls, args: object, known: RDropArguments | None = None) -> RDropArguments:
        """The R-Drop settings of any arguments object, checked; defaults for those that it does not have.

        Args:
            known: what an earlier call returned; it is returned again where nothing has changed.
        """
        settings = {name: getattr(args, name, default) for name, default in _DEFAULTS.items()}
        return RDropArguments(**settings) if known is None or vars(known) != settings else known

    def is_rdrop_step(self, step: int) -> bool:
        """Whether optimizer step `step` (from 0) runs several passes.

        Examples:
            >>> [step for step in range(7) if RDropArguments(rdrop_every_n_steps=3).is_rdrop_step(step)]
            [0, 3, 6]
        """
        return self.rdrop_alpha > 0 and step % self.rdrop_every_n_steps == 0

    def alpha_at(self, step: int, max_steps: int) -> float:
        """alpha at optimizer step `step` (from 0) of `max_steps`, warm-up applied: alpha * min(1, (step + 1) / W).

        Examples:
            >>> settings = RDropArguments(rdrop_alpha=4.0, rdrop_warmup_steps=4)
            >>> [settings.alpha_at(step, max_steps=10) for step in range(5)]
            [1.0, 2.0, 3.0, 4.0, 4.0]
        """
        warmup = self.rdrop_warmup_steps
        if 0 < warmup < 1:
            warmup = math.ceil(warmup * max_steps)
        return self.rdrop_alpha * min(1.0, (step + 1) / warmup) if warmup else self.rdrop_alpha


_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(RDropArguments)}


@dataclass
class RDropTrainingArguments(RDropArguments, TrainingArguments):
    """`transformers.TrainingArguments` plus the R-Drop settings of `RDropArguments`."""


@dataclass
class RDropSeq2SeqTrainingArguments(RDropArguments, Seq2SeqTrainingArguments):
    """`transformers.Seq2SeqTrainingArguments` plus the R-Drop settings of `RDropArguments`."""


def _number(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}.")
    return float(value)


def _whole(name: str, value: int, at_least: int) -> int:
    if _number(name, value) != int(value) or value < at_least:
        raise ValueError(f"{name} must be a whole number of at least {at_least}, got {value}.")
    return int(value)
