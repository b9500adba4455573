"""Logits of every kind of label are found in what a model returns: tuples, tensors, dictionaries within one."""

import pytest
import torch
import torch.nn.functional as F

from rdrop_trainer import Head
from support.returning import IDS, KEPT, TAGS, Returning, divergence, is_close, terms_of, token_loss

CLASSES = torch.tensor([0, 1, 2, 0])
YES_AND_NO = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
LABELS = {
    "tags": (5, TAGS, "single_label", token_loss),
    "yes and no": (3, YES_AND_NO, "multi_label", F.binary_cross_entropy_with_logits),
    "numbers": (3, YES_AND_NO * 7, "regression", F.mse_loss),
}


@pytest.mark.parametrize("kind", LABELS)
def test_logits_behind_features_in_a_tuple(kind):
    classes, labels, problem, loss = LABELS[kind]
    model = Returning(classes, lambda z, h, y: (loss(z, y), h, z), pooled=kind != "tags")
    setting = "regression" if kind == "numbers" else "auto"
    terms, passes, _ = terms_of(model, {"input_ids": IDS, "labels": labels}, problem=setting)
    counted = [z[KEPT] for z in passes] if kind == "tags" else passes
    assert is_close(terms.divergence, divergence(counted, problem))


class Spans(Returning):
    """The start and the end of an answer, and whether there is one."""

    def forward(self, input_ids, start_positions, end_positions, labels=None):
        hidden = self.dropout(self.embed(input_ids))
        start, end, answered = logits = (*self.out(hidden).unbind(-1)[:2], self.out(hidden[:, 0]))
        self.seen.append([z.detach().double() for z in logits])
        loss = F.cross_entropy(start, start_positions) + F.cross_entropy(end, end_positions, ignore_index=6)
        return (
            self.returned(loss, hidden, logits)
            if labels is None
            else (loss + F.cross_entropy(answered, labels), *logits)
        )


SPANS = {"input_ids": IDS, "start_positions": CLASSES, "end_positions": CLASSES + 4}  # one of them behind the text


def test_answers_in_a_tuple():
    model = Spans(3, lambda loss, hidden, logits: (loss / 2, *logits[:2], hidden))
    terms, (first, second), _ = terms_of(model, SPANS)
    start, end = (divergence(pair) for pair in list(zip(first, second, strict=True))[:2])
    assert is_close(terms.divergence, (start + end) / 2)


def test_answers_and_whether_there_are_any():
    heads = [Head(0, "start_positions"), Head(1, "end_positions"), Head(2, "labels")]
    terms, (first, second), objective = terms_of(Spans(3, None), {**SPANS, "labels": CLASSES}, heads=heads)
    assert is_close(terms.divergence, sum(map(divergence, zip(first, second, strict=True))))
    assert objective.plan.task_loss.of_heads


@pytest.mark.parametrize(
    "returned, name",
    [(lambda z, h, y: z, "logits"), (lambda z, h, y: {"logits": {"intent": z, "slots": h}}, "logits.intent")],
)
def test_a_tensor_or_a_dictionary_within_one(returned, name):
    def function(outputs, labels, num_items_in_batch=None):
        return F.cross_entropy(outputs if name == "logits" else outputs["logits"]["intent"], labels)

    batch = {"input_ids": IDS, "labels": CLASSES}
    terms, passes, _ = terms_of(Returning(3, returned, pooled=True), batch, loss_function=function, heads=[Head(name)])
    assert is_close(terms.divergence, divergence(passes))


def test_yes_of_a_few_classes_by_their_numbers():
    """Labels that are not one for each logit, which the model's own loss reads."""
    numbers = torch.tensor([[0, -100], [1, 2], [2, -100], [-100, -100]])

    def returned(z, h, y):
        yes = torch.zeros(4, 4).scatter(1, y.where(y >= 0, 3), 1)[:, :3]
        return F.binary_cross_entropy_with_logits(z, yes), z

    terms, passes, _ = terms_of(
        Returning(3, returned, pooled=True), {"input_ids": IDS, "labels": numbers}, problem="multi_label"
    )
    labeled = [z[:3] for z in passes]  # a row without any label counts nowhere
    assert is_close(terms.divergence, divergence(labeled, "multi_label"))
