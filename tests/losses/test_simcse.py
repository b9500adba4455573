"""SimCSE's loss between passes, against its equation in float64 and against sentence-transformers."""

import math

import pytest
import torch

from rdrop_trainer.losses import simcse_loss


def embeddings(num_passes, texts=5, size=7, dtype=torch.float64):
    return torch.randn(num_passes * texts, size, generator=torch.Generator().manual_seed(0)).to(dtype)


def by_equation(found, num_passes, temperature):
    """-log exp(cos(a_i, b_i) / t) / sum_j exp(cos(a_i, b_j) / t), mean over texts i and pairs of passes a < b."""
    passes = [z.tolist() for z in found.double().chunk(num_passes)]

    def cosine(u, v):
        return sum(x * y for x, y in zip(u, v, strict=True)) / math.hypot(*u) / math.hypot(*v)

    terms = []
    for k in range(num_passes):
        for other in passes[k + 1 :]:
            for i, u in enumerate(passes[k]):
                similar = [math.exp(cosine(u, v) / temperature) for v in other]
                terms.append(-math.log(similar[i] / sum(similar)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("num_passes", [2, 3])
@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
def test_it_is_the_equation(num_passes, dtype, error):
    found = embeddings(num_passes, dtype=dtype)
    loss = simcse_loss(found, num_passes, temperature=0.1)
    assert loss.item() == pytest.approx(by_equation(found, num_passes, 0.1), rel=error)


def test_its_gradient_is_that_of_the_equation():
    assert torch.autograd.gradcheck(lambda z: simcse_loss(z, 2, 0.3), embeddings(2, texts=3, size=4).requires_grad_())


@pytest.mark.parametrize(
    "shape, arguments", [((4, 3, 2), {}), ((5, 3), {}), ((4, 3), {"num_passes": 1}), ((4, 3), {"temperature": 0.0})]
)
def test_what_does_not_fit_is_refused(shape, arguments):
    with pytest.raises(ValueError, match="must"):
        simcse_loss(torch.zeros(shape), **arguments)


@pytest.mark.interop
def test_it_is_multiple_negatives_ranking_loss_on_pairs_of_a_text_and_itself():
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    found = embeddings(2, dtype=torch.float32)
    theirs = losses.MultipleNegativesRankingLoss(torch.nn.Identity(), scale=20.0)
    expected = theirs.compute_loss_from_embeddings(list(found.chunk(2)), None)
    assert simcse_loss(found).item() == pytest.approx(expected.item(), rel=1e-6)
