"""The R-Drop loss of logits, of hidden states and an output head, and of CTC; SimCSE's. Needs torch alone."""

from .ctc import rdrop_ctc_loss
from .linear import rdrop_linear_loss
from .rdrop import RDropLoss, rdrop_loss
from .simcse import simcse_loss

__all__ = ["RDropLoss", "rdrop_ctc_loss", "rdrop_linear_loss", "rdrop_loss", "simcse_loss"]
