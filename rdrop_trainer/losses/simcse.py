"""The contrast between passes: where R-Drop pulls two passes over a text together, SimCSE also pushes others away."""

import torch
import torch.nn.functional as F


def simcse_loss(embeddings: torch.Tensor, num_passes: int = 2, temperature: float = 0.05) -> torch.Tensor:
    """Unsupervised SimCSE: InfoNCE between the embeddings of two passes over the same texts, under dropout.

    For each text of the first pass, cross-entropy over the cosines to all B texts of the second, divided by the
    temperature; the right one is the same text. The mean over texts, and over all pairs of passes a < b. For two passes
    that is sentence-transformers' `MultipleNegativesRankingLoss` on pairs of a text and itself, with scale
    1 / temperature.

    Args:
        embeddings: (num_passes * B, H), floating point; all texts of the first pass first, as `run_passes` has them. In
            half precision the loss is computed in float32.
        num_passes: at least 2.
        temperature: above 0.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: a shape, number or temperature that does not fit.

    References:
        Gao et al., SimCSE, EMNLP 2021, equation 4.

    Examples:
        >>> import torch
        >>> simcse_loss(torch.eye(3).repeat(2, 1)).item() < 1e-7
        True
    """
    if embeddings.dim() != 2 or num_passes < 2 or len(embeddings) % num_passes:
        raise ValueError(
            f"embeddings must have the shape (num_passes * texts, size) with at least 2 passes, got "
            f"{tuple(embeddings.shape)} and num_passes={num_passes}."
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}.")
    wide = embeddings.float() if embeddings.dtype.itemsize < 4 else embeddings
    passes = F.normalize(wide, dim=-1).chunk(num_passes)  # (B, H) each
    same = torch.arange(len(passes[0]), device=embeddings.device)
    pairs = [(a, b) for k, a in enumerate(passes) for b in passes[k + 1 :]]
    return torch.stack([F.cross_entropy(a @ b.T / temperature, same) for a, b in pairs]).mean()
