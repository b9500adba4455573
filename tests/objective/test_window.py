"""Counting items, choosing them from logits, and averaging what is logged."""

from dataclasses import replace

import pytest
import torch

from rdrop_trainer.objective.heads import (
    CAUSAL_LM,
    MULTI_LABEL,
    MULTIPLE_CHOICE,
    QUESTION_ANSWERING,
    REGRESSION,
    ROWS,
    SEQ2SEQ,
    SINGLE_LABEL,
    TOKEN,
    TOKENS,
)
from rdrop_trainer.objective.window import Window
from support.operations import Operations


def counted(items, num_passes=1):
    [part] = items
    chosen, labels = part.counted(num_passes)
    return chosen.flatten(0, 1), labels


def test_items_of_tokens_after_a_soft_prompt():
    """Positions that the model put before the text are left out: logits and labels align from the right."""
    labels = torch.tensor([[-100, 1, 2], [0, -100, -100]])
    logits = torch.arange(4 * 5 * 3.0).reshape(4, 5, 3)  # two passes of two rows, two positions of a prompt
    chosen, kept = counted(TOKEN.items({"logits": (logits,)}, {"labels": labels}, num_passes=2), 2)
    assert kept.tolist() == [1, 2, 0]
    expected = [logits[0, 3], logits[0, 4], logits[1, 2], logits[2, 3], logits[2, 4], logits[3, 2]]
    assert torch.equal(chosen, torch.stack(expected))


def test_items_of_a_language_model_after_a_soft_prompt():
    """The last position of the prompt predicts the first token of the text."""
    batch = {"labels": torch.tensor([[7, 1, -100]])}
    logits = torch.arange(5 * 9.0).reshape(1, 5, 9)
    chosen, kept = counted(CAUSAL_LM.items({"logits": (logits[:, 2:],)}, batch, num_passes=1))
    assert kept.tolist() == [1] and torch.equal(chosen, logits[0, 2:3]) and CAUSAL_LM.count(batch)[0, 0] == 1
    prompted = replace(CAUSAL_LM, soft_prompt=True)
    chosen, kept = counted(prompted.items({"logits": (logits,)}, batch, num_passes=1))
    assert kept.tolist() == [7, 1] and torch.equal(chosen, logits[0, 1:3]) and prompted.count(batch)[0, 0] == 2
    shifted = {"labels": batch["labels"], "shift_labels": torch.tensor([[-100, 4, 5]])}
    chosen, kept = counted(CAUSAL_LM.items({"logits": (logits[:, 2:],)}, shifted, num_passes=1))
    assert kept.tolist() == [4, 5] and torch.equal(chosen, logits[0, 3:])


def test_unlabeled_targets_of_a_decoder_count_where_their_mask_says():
    labels = torch.tensor([[4, -100, -100], [-100, -100, -100]])
    assert SEQ2SEQ.count({"labels": labels}).tolist() == [[1, 1]]
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert SEQ2SEQ.count({"labels": labels, "decoder_attention_mask": mask}).tolist() == [[1, 3]]
    assert SEQ2SEQ.count({"labels": labels, "attention_mask": mask}).tolist() == [[1, 1]]


def test_answers_outside_the_text_are_ignored_in_their_part_alone():
    batch = {"input_ids": torch.zeros(3, 4), "start_positions": torch.tensor([0, 3, 4])}
    batch["end_positions"] = torch.tensor([[9], [3], [9]])
    assert QUESTION_ANSWERING.count(batch).tolist() == [[2, 3], [1, 3]]
    logits = {"start_logits": (torch.zeros(6, 4),), "end_logits": (torch.ones(6, 4),)}
    start, end = QUESTION_ANSWERING.items(logits, batch, num_passes=2)
    assert start.labels.tolist() == [0, 3, -100] and end.labels.tolist() == [-100, 3, -100]


def test_a_part_without_any_label_takes_no_share_of_an_own_loss():
    """Of two micro-batches of one and two rows, where no answer ends in the text."""
    batches = [
        {
            "input_ids": torch.zeros(rows, 4, dtype=torch.long),
            "start_positions": torch.ones(rows, dtype=torch.long),
            "end_positions": torch.full((rows,), 9),
        }
        for rows in (1, 2)
    ]
    window = Window.count(QUESTION_ANSWERING, batches)
    assert [window.share(batch).item() for batch in batches] == pytest.approx([1 / 3, 2 / 3])


def test_positions_after_the_text_are_no_soft_prompt():
    """LayoutLMv3 has those of the page's image there; a prompt stands in front."""
    batch = {"input_ids": torch.zeros(2, 4), "start_positions": torch.tensor([0, 3])}
    batch["end_positions"] = batch["start_positions"]
    logits = {"start_logits": (torch.arange(12.0).reshape(2, 6),), "end_logits": (torch.zeros(2, 6),)}
    assert torch.equal(QUESTION_ANSWERING.items(logits, batch, 1)[0].outputs[0], logits["start_logits"][0])
    prompted = replace(QUESTION_ANSWERING, soft_prompt=True)
    assert torch.equal(prompted.items(logits, batch, 1)[0].outputs[0], logits["start_logits"][0][:, 2:])


@pytest.mark.parametrize(
    "head, shape", [(SINGLE_LABEL, (2, 5)), (SINGLE_LABEL, (4, 5, 6)), (SINGLE_LABEL, (3,)), (REGRESSION, (2, 1))]
)
def test_outputs_of_another_shape_are_refused(head, shape):
    with pytest.raises(ValueError, match=rf"{head.name}, whose 'logits' .* returned \("):
        head.items({"logits": (torch.zeros(shape),)}, {"labels": torch.tensor([0, 1])}, num_passes=2)


def test_which_of_several_labels_count():
    """Without its label of -100 a class does not count; nor does a row without any, but a token of unlabeled text."""
    labels = torch.tensor([[[1, -100], [-100, -100], [0, 1]], [[-100, -100]] * 3])
    [rows] = MULTI_LABEL.items({"logits": (torch.zeros(6, 2),)}, {"labels": labels.flatten(0, 1)}, num_passes=1)
    assert rows.mask.tolist() == [[True, False], [False, False], [True, True], *[[False, False]] * 3]
    assert rows.counted(1)[1].tolist() == [[1, -100], [0, 1]]
    which, size = MULTI_LABEL.rows_of_items({"labels": labels.flatten(0, 1)})
    assert which.tolist() == [0, 2] and size == 6
    batch = {"labels": labels, "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    [tokens] = TOKENS["multi_label"].items({"logits": (torch.zeros(2, 3, 2),)}, batch, num_passes=1)
    assert tokens.mask.tolist() == [*rows.mask.tolist()[:3], [True, True], [True, True], [False, False]]


def test_counts():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    labels = torch.tensor([[-100, 1, -100], [-100, -100, -100], [2, -100, -100]])
    # one label in rows 0 and 2, no label and two attended tokens in row 1
    assert TOKEN.count({"labels": labels, "attention_mask": mask}).tolist() == [[2, 4]]
    assert TOKEN.count({"labels": labels}).tolist() == [[2, 5]]
    assert TOKEN.count({"labels": labels, "attention_mask": mask[:, None]}).tolist() == [[2, 5]]  # of pairs of tokens
    assert SINGLE_LABEL.count({"labels": torch.tensor([0, -100, 3])}).tolist() == [[2, 3]]
    assert REGRESSION.count({"labels": torch.tensor([0.5, -100.0])}).tolist() == [[2, 2]]


def test_padding_that_a_loss_of_ones_own_may_know_by_the_attention_mask():
    """In a batch of tags without any -100; the loss of a causal model counts padding that has labels."""
    batch = {"labels": torch.ones(2, 4, dtype=torch.long), "attention_mask": torch.tensor([[1, 1, 1, 0], [1] * 4])}
    own, causal = replace(TOKEN, own_loss=True), replace(CAUSAL_LM, own_loss=True)
    assert TOKEN.count(batch).tolist() == [[8, 8]] and own.count(batch).tolist() == [[7, 7]]
    assert CAUSAL_LM.count(batch).tolist() == causal.count(batch).tolist() == [[6, 6]]
    batch["labels"][1, 2:] = -100
    assert own.count(batch).tolist() == [[6, 6]]  # of the marks alone


def test_windows_add_up_over_batches_and_processes():
    batches = [{"labels": torch.tensor([0, -100])}, {"labels": torch.tensor([1, 2, 3])}]
    window = Window.count(SINGLE_LABEL, batches, torch.device("cpu"))
    assert window.items.tolist() == [[4, 5]] and len(window.counts) == 2
    assert not window.is_one_batch and window.share(batches[1]) == 3 / 4
    shared = Window.count(SINGLE_LABEL, batches[:1], torch.device("cpu"), 2, lambda counts: 3 * counts)
    assert shared.items.tolist() == [[3, 6]] and not shared.is_one_batch
    assert shared.share(batches[0]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "problem, labels, changed",
    [
        ("single_label", torch.tensor([0, 3]), torch.tensor([[0], [3]])),
        ("single_label", torch.tensor([[0], [3]]), torch.tensor([0, 3])),
        ("multi_label", torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])),
        ("regression", torch.tensor([0, 3]), torch.tensor([0.0, 3.0])),
        ("regression", torch.tensor([0.5, 3.0]), torch.tensor([[0.5], [3.0]])),
    ],
)
def test_an_override_may_write_the_same_labels_in_another_way(problem, labels, changed):
    """A compute_loss that makes floating-point numbers of yes and no, or drops a dimension of 1."""
    Window.count(ROWS[problem], [{"labels": labels}]).check({"labels": changed})


def test_a_micro_batch_that_nobody_changed_is_not_counted_again():
    batches = [{"input_ids": torch.zeros(2, 3), "labels": torch.tensor([k, 1])} for k in range(3)]
    window = Window.count(SINGLE_LABEL, batches)
    with Operations() as operations:
        for batch in batches:
            window.check(dict(batch))
    assert operations.names == []
    with torch.inference_mode():
        taught = {"labels": torch.tensor([1, 2])}
        window_of_taught = Window.count(SINGLE_LABEL, [taught])
        window_of_taught.check(taught)
        taught["labels"][0] = -100
        with pytest.raises(ValueError, match="are not those that R-Drop counted"):
            window_of_taught.check(taught)
    batches[2]["labels"][0] = -100  # by an override
    with pytest.raises(ValueError, match="are not those that R-Drop counted"):
        window.check(batches[2])
    window.check({**batches[0], "input_ids": torch.ones(2, 3)})
    with Operations() as operations:
        window.check({**batches[0], "attention_mask": torch.ones(2, 3)})  # which may say what counts
    assert operations.names


def test_one_logit_says_yes_or_no_but_of_one_choice_or_position():
    heads, logit = (SINGLE_LABEL, MULTIPLE_CHOICE, QUESTION_ANSWERING), torch.zeros(2, 1)
    assert [head.problem_of(logit) for head in heads] == ["multi_label", "single_label", "single_label"]


def test_classes_that_became_probabilities_are_others():
    """Of tokens, of which there are as many."""
    window = Window.count(TOKEN, [{"labels": torch.tensor([[0, 3]])}])
    with pytest.raises(ValueError, match="are not those that R-Drop counted"):
        window.check({"labels": torch.eye(4)[torch.tensor([[0, 3]])]})


def test_a_part_may_have_as_many_rows_as_a_smaller_micro_batch():
    whole, small = torch.tensor([[1, 1], [1, -100], [-100, 1], [-100, 0]]), torch.tensor([[1, 0], [1, 1]])
    window = Window.count(TOKEN, [{"labels": whole}, {"labels": small}])
    for labels in (whole, whole[:2], whole[2:], small):
        window.check({"labels": labels})
    for labels in (whole.clamp(min=0), torch.cat([whole, whole])):
        with pytest.raises(ValueError, match="are not those that R-Drop counted"):
            window.check({"labels": labels})
