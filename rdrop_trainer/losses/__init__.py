"""The R-Drop loss as a function of logits, or of hidden states and an output head. Needs torch alone."""

from .ctc import rdrop_ctc_loss
from .linear import rdrop_linear_loss
from .rdrop import RDropLoss, rdrop_loss

__all__ = ["RDropLoss", "rdrop_ctc_loss", "rdrop_linear_loss", "rdrop_loss"]
