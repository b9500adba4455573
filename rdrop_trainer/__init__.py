"""R-Drop for the Hugging Face `Trainer`.

The public names are imported on first use, so `rdrop_trainer.losses` needs nothing but torch.
"""

from ._lazy import lazily

__version__ = "0.1.0"

_EXPORTS = {
    "RDropMixin": "trainer",
    "RDropTrainer": "trainer",
    "RDropSeq2SeqTrainer": "trainer",
    "RDropArguments": "training_args",
    "RDropTrainingArguments": "training_args",
    "RDropSeq2SeqTrainingArguments": "training_args",
    "Head": "head",
    "Objective": "objective",
    "StepSettings": "objective",
    "RDropLoss": "losses",
    "rdrop_ctc_loss": "losses",
    "rdrop_linear_loss": "losses",
    "rdrop_loss": "losses",
    "default_hp_space": "search",
    "active_dropout": "dropout",
    "set_dropout": "dropout",
    "CardFacts": "hub.model_card",
    "EvaluationSet": "hub.card_data",
    "dropout_stability": "stability",
    "perturbation_stability": "stability",
    "DivergenceProbe": "stability",
    "InputError": "errors",
    "HubError": "errors",
}
__all__ = list(_EXPORTS)
__getattr__, __dir__ = lazily(__name__, _EXPORTS)
