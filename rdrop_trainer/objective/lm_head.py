"""The output head of a language model, and a forward pass that ends in front of it: hidden states instead of logits.

Logits of a large vocabulary take more memory than the rest of a training step; `rdrop_linear_loss` does without them.
To use it, the last linear layer of the model must be known, and everything that happens behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..losses import RDropLoss, rdrop_linear_loss

# Classes of transformers whose forward does nothing behind the output head but what `LMHead` describes, and whose
# loss is the stock loss of their head (that of BartForCausalLM, say, is not: it does not shift the labels). Of others
# this is found out by the logits of a whole row, which the fused head is to save
KNOWN = frozenset(
    {
        "GPT2LMHeadModel",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "T5ForConditionalGeneration",
        "MT5ForConditionalGeneration",
        "BartForConditionalGeneration",
        "MBartForConditionalGeneration",
        "MarianMTModel",
        "PegasusForConditionalGeneration",
    }
)


# With fewer logits in a micro-batch, "auto" makes them: there is little to save
AUTO_FROM = 2**24
# Nor on a GPU of whose memory they take less than 1 %, at 2 bytes each: a fused head saves no time there. With their
# gradient and the rest it was 5 times that at the peak (H200: BART-large 1.8 of 15 GiB, Qwen2-0.5B 26 of 59)
AUTO_PER_BYTE = 1 / 200


class CannotFuse(Exception):
    """Why the head of a model stays as it is; `sharded` if because no process holds the whole of it."""

    def __init__(self, reason: str, sharded: bool = False):
        super().__init__(reason)
        self.sharded = sharded


@dataclass(frozen=True)
class LMHead:
    """logits = cap(scale * (linear(hidden) + bias)), where cap(x) = softcap * tanh(x / softcap).

    Attributes:
        linear: the model's output embeddings.
        bias: what the model adds behind them (BART's `final_logits_bias`), (C,).
        logit_scale: factor on the logits (Cohere, Granite).
        softcap: soft-capping of the logits (Gemma 2).
        verified: it does just that: the model's class is known to, or its logits were compared.
    """

    linear: nn.Linear
    bias: torch.Tensor | None = None
    logit_scale: float = 1.0
    softcap: float | None = None
    verified: bool = False

    @classmethod
    def of(cls, model: nn.Module) -> LMHead:
        """The output head of a model, unwrapped.

        Raises:
            CannotFuse: it is none that could be computed in chunks.
        """
        embeddings = getattr(model, "get_output_embeddings", None)
        linear = None if embeddings is None else embeddings()
        if linear is None:
            raise CannotFuse(f"{type(model).__name__} names no output embeddings")
        if type(linear) is not nn.Linear:
            raise CannotFuse(f"the output head is a {type(linear).__module__}.{type(linear).__name__}, no plain Linear")
        if hasattr(linear.weight, "device_mesh") or hasattr(linear.weight, "ds_id"):  # a DTensor, DeepSpeed's ZeRO 3
            raise CannotFuse("the weights of the output head are sharded over processes", sharded=True)
        if type(linear.weight.data) is not torch.Tensor:
            raise CannotFuse(f"the weight of the output head is a {type(linear.weight.data).__name__}, no plain tensor")
        if linear._forward_hooks or "forward" in vars(linear):
            raise CannotFuse("the output head carries hooks or a forward of its own")
        config = _text_config(model)
        bias = getattr(model, "final_logits_bias", None)
        scale = getattr(config, "logit_scale", None) or 1.0
        divisor = getattr(config, "logits_scaling", None) or 1.0
        return cls(
            linear,
            bias=None if bias is None else bias.reshape(-1),
            logit_scale=scale / divisor if isinstance(scale, (int, float)) else 1.0,
            softcap=getattr(config, "final_logit_softcapping", None),
            verified=_is_known(model),
        )

    @property
    def classes(self) -> int:
        """C."""
        return len(self.linear.weight)

    def call(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Run a model as far as its head: {"hidden_states": (B, T, H)}, in the type the head would compute in.

        The head itself sees the first position alone, so that distributed training finds its weights used.
        """
        hidden = self._run(model, inputs, lambda states: states[:1, :1])[0]
        return {"hidden_states": hidden}

    def matches_logits(self, model: nn.Module, inputs: dict[str, Any], is_rounded: bool) -> tuple[bool, Any]:
        """Whether the logits a model returns for some inputs are those of this head; and all it returned.

        They are not where weights behind the head take part, even if these do nothing yet (a bias that starts at 0):
        they would never learn. So gradients are recorded from the head on, and the logits must have none.
        """

        def record(*_: Any) -> None:
            torch.set_grad_enabled(True)

        handle = self.linear.register_forward_hook(record)
        try:
            with torch.no_grad():
                hidden, outputs = self._run(model, inputs, lambda states: states)
        finally:
            handle.remove()
        given = outputs["logits"]
        if given.requires_grad:
            return False, outputs
        logits = F.linear(hidden, self.linear.weight.to(hidden.dtype), self._bias(hidden.dtype)) * self.logit_scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        tolerance = 5e-2 if is_rounded or min(hidden.dtype.itemsize, given.dtype.itemsize) < 4 else 1e-4
        same = given.shape == logits.shape and torch.allclose(given.float(), logits.float(), tolerance, tolerance)
        return same, outputs

    def loss(
        self, hidden: tuple[torch.Tensor, ...], labels: torch.Tensor | None, mask: torch.Tensor | None, **settings: Any
    ) -> RDropLoss:
        """The R-Drop loss of the hidden states of all passes; settings as in `rdrop_loss`.

        A model on several devices (`device_map`) may have its head on another one than its last layer. The loss is
        where the labels are, as that of the logits is, which such a model hands back there.
        """
        here = self.linear.weight.device
        home = hidden[0].device if labels is None else labels.device
        terms = rdrop_linear_loss(
            tuple(states.to(here) for states in hidden),
            self.linear.weight,
            None if labels is None else labels.to(here),
            bias=self._bias(),
            logit_scale=self.logit_scale,
            softcap=self.softcap,
            mask=None if mask is None else mask.to(here),
            **settings,
        )
        return RDropLoss(*(term.to(home) for term in terms))

    def _bias(self, dtype: torch.dtype | None = None) -> torch.Tensor | None:
        here = self.linear.weight.device
        terms = [bias.to(here, dtype or bias.dtype) for bias in (self.linear.bias, self.bias) if bias is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def _run(
        self, model: nn.Module, inputs: dict[str, Any], handed_on: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, Any]:
        """The hidden states that reach the head in a forward pass, and what the model returns."""
        caught = []

        def catch(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            (hidden,) = arguments
            device = hidden.device.type
            mixed = torch.is_autocast_enabled(device)
            caught.append(hidden.to(torch.get_autocast_dtype(device)) if mixed else hidden)
            return (handed_on(hidden),)

        handle = self.linear.register_forward_pre_hook(catch)
        try:
            outputs = model(**inputs)
        finally:
            handle.remove()
        if len(caught) != 1 or caught[0].dim() != 3:
            raise CannotFuse("the model does not call its output head once, on hidden states (B, T, H)")
        return caught[0], outputs


def _is_known(model: nn.Module) -> bool:
    """Whether a model runs the forward of a class that is known, and nothing else behind its head."""
    forward = type(model).forward
    is_known = forward.__module__.startswith("transformers.") and forward.__qualname__.split(".")[0] in KNOWN
    return is_known and "forward" not in vars(model) and not model._forward_hooks


def auto_from(device: torch.device) -> int:
    """From how many logits in a micro-batch on "auto" fuses the head."""
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return max(AUTO_FROM, int(memory * AUTO_PER_BYTE))


def vocabulary_size(model: nn.Module) -> int:
    """C by the configuration of a model whose head is not known; 0 where that does not say."""
    size = getattr(_text_config(model), "vocab_size", None)
    return size if isinstance(size, int) else 0


def _text_config(model: nn.Module) -> Any:
    """The part of a model's configuration that describes its text output; None where it has no configuration."""
    config = getattr(model, "config", None)
    try:
        return config.get_text_config(decoder=True)
    except (AttributeError, ValueError):  # a configuration of another library, or one with several such parts
        return config


def is_compiled(model: nn.Module) -> bool:
    """A compiled model runs without the hook that catches its hidden states."""
    return hasattr(model, "_orig_mod") or model._compiled_call_impl is not None
