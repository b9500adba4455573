"""Trains under tensor parallelism on the CPU, or in one process; started for test_tensor_parallel.py.

    tp_run.py OUT

accelerate has tensor parallelism on accelerators alone; here its check is left out. Noise is a dropout of whole rows of
embeddings, which is the same however the weights are split.
"""

import os
import sys
from pathlib import Path

import torch
from accelerate.parallelism_config import ParallelismConfig
from torch import nn
from transformers import AutoModelForCausalLM, set_seed

from support import tiny, zoo
from support.distributed import MODES, said_by_us

out, rank = Path(sys.argv[1]), int(os.environ.get("RANK", -1))
if rank >= 0:
    torch.distributed.init_process_group("gloo")
    ParallelismConfig._validate_accelerator = lambda *args, **kwargs: None


def summed(outputs, labels, num_items_in_batch):
    """A loss of one's own, which divides by the number of tokens of the step."""
    losses = nn.functional.cross_entropy(outputs.logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="sum")
    return losses / num_items_in_batch


def train(mode, fused, loss_function=None):
    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(out / "model", tp_plan=None if rank < 0 else "auto")
    model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, states: nn.functional.dropout(states, 0.3, module.training)
    )
    trainer = zoo.trainer(
        "llama", model, zoo.dataset("llama", rows=12), out / "run", rdrop_forward_mode=mode, rdrop_fused_head=fused,
        compute_loss_func=loss_function,
        rdrop_allow_deterministic=True, per_device_train_batch_size=2, gradient_accumulation_steps=2, logging_steps=1,
        **tiny.PURE_SGD,
    )  # fmt: skip
    assert trainer.get_tp_size() == (1 if rank < 0 else 2)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


with said_by_us() as said:
    logs = {mode: train(mode, "false") for mode in MODES}
    logs["compute_loss_func"] = train("concat", "false", summed)
logs["said"] = said
try:
    train("concat", "true")
except ValueError as error:
    logs["refusal"] = str(error)
torch.save(logs, out / f"{rank}.pt")
