"""Code of the user's that writes to the batch it gets, as it may with `Trainer`."""

import pytest
import torch
from torch import nn
from transformers import BertForTokenClassification, set_seed

from rdrop_trainer import RDropTrainer
from support import tiny


def masked_loss(logits, labels, writes):
    """A mean over the labeled tokens, whose other labels become class 0, in the tensor itself or in a copy."""
    counts = labels != -100
    labels = labels.masked_fill_(~counts, 0) if writes else labels.masked_fill(~counts, 0)
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return (2 * losses * counts.flatten()).sum() / counts.sum()


class Writing(BertForTokenClassification):
    """Words are dropped, and labels filled, in the batch itself."""

    writes = True

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        dropped = torch.rand(input_ids.shape, device=input_ids.device) < 0.1
        input_ids = input_ids.masked_fill_(dropped, 1) if self.writes else input_ids.masked_fill(dropped, 1)
        outputs = super().forward(input_ids, attention_mask)
        outputs.loss = masked_loss(outputs.logits, labels, self.writes)
        return outputs


class Copying(Writing):
    writes = False


def losses_of(writes, how, mode, tmp_path):
    class Trains(RDropTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = masked_loss(outputs.logits, labels, writes)
            return (loss, outputs) if return_outputs else loss

    def function(outputs, labels, num_items_in_batch=None):
        return masked_loss(outputs.logits, labels, writes)

    model, arguments = tiny.bert("token", dropout=0.1), {"logging_steps": 1, "rdrop_forward_mode": mode}
    if how == "model":
        set_seed(0)
        model = (Writing if writes else Copying)(model.config)
    if how == "function":
        arguments["compute_loss_func"] = function
    arguments |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    cls = Trains if how == "trainer" else RDropTrainer
    trainer = tiny.trainer(model, tiny.dataset("token", rows=8), tmp_path, cls, **arguments)
    trainer.train()
    return [(log["task_loss"], log["divergence"]) for log in trainer.state.log_history if "divergence" in log]


@pytest.mark.parametrize(
    "how, mode", [("function", "concat"), ("trainer", "concat"), ("trainer", "recompute"), ("model", "sequential")]
)
def test_code_of_the_users_may_write_to_its_batch(how, mode, tmp_path):
    """With `Trainer` it may, as it sees a batch once; what it writes reaches neither other passes nor the counts."""
    assert losses_of(True, how, mode, tmp_path) == losses_of(False, how, mode, tmp_path)


def test_a_loss_function_that_writes_to_the_logits_is_refused(tmp_path):
    def adjusted(outputs, labels, num_items_in_batch=None):
        outputs.logits += 1
        return nn.functional.cross_entropy(outputs.logits, labels)

    trainer = tiny.trainer(tiny.bert(dropout=0.1), tiny.dataset(), tmp_path, compute_loss_func=adjusted)
    with pytest.raises(ValueError, match="compute_loss_func wrote to 'logits' of the outputs.*: let it change a copy"):
        trainer.train()
