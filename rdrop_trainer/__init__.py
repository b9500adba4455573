"""R-Drop for the Hugging Face `Trainer`.

The public names load on first use, so that `rdrop_trainer.losses` needs nothing but torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {
    "RDropMixin": "trainer",
    "RDropTrainer": "trainer",
    "RDropSeq2SeqTrainer": "trainer",
    "RDropArguments": "training_args",
    "RDropTrainingArguments": "training_args",
    "RDropSeq2SeqTrainingArguments": "training_args",
    "RDropLoss": "losses",
    "rdrop_linear_loss": "losses",
    "rdrop_loss": "losses",
    "active_dropout": "dropout",
    "set_dropout": "dropout",
    "CardFacts": "model_card",
    "EvaluationSet": "card_data",
    "dropout_agreement": "stability",
    "perturbation_agreement": "stability",
    "InputError": "errors",
    "HubError": "errors",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
