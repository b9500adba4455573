"""The R-Drop loss as a function of logits, or of hidden states and an output head; SimCSE's. Needs torch alone."""

from .linear import rdrop_linear_loss
from .rdrop import RDropLoss, rdrop_loss
from .simcse import simcse_loss

__all__ = ["RDropLoss", "rdrop_linear_loss", "rdrop_loss", "simcse_loss"]
