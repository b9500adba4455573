"""The R-Drop loss as a plain function of logits. Needs torch alone."""

from .rdrop import RDropLoss, rdrop_loss

__all__ = ["RDropLoss", "rdrop_loss"]
