"""Trains under DeepSpeed on the CPU, and under DistributedDataParallel; started by torch.distributed.run for
test_deepspeed.py, once for each, since a process stays with what it began.

    deepspeed_run.py OUT [STAGE]
"""

import os
import sys
from pathlib import Path

import torch

from support import tiny, zoo
from support.distributed import ZERO, said_by_us
from support.resumed import whole_cut_and_resumed

out, stage = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None
updates, logs = {}, {}
SETTINGS = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    # ZeRO-3 would leave weights as small as these whole
    "zero_optimization": {"stage": stage, "overlap_comm": False, "stage3_param_persistence_threshold": 0},
    "zero_allow_untested_optimizer": True,
}


def whole_weights(model):
    """Of all processes together: ZeRO-3 leaves each a part of them."""
    if stage != 3:
        return tiny.weights(model)
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        return tiny.weights(model)


for case in ZERO:
    name, mode, fused = case.split("-")
    arguments = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
        "rdrop_forward_mode": mode,
        "rdrop_fused_head": fused,
        **tiny.PURE_SGD,
    }
    if stage is not None:
        arguments["deepspeed"] = SETTINGS
    model, data = zoo.build(name, dropout=0.2), zoo.dataset(name, rows=13, unlabeled=(4,))
    shapes = zoo.logits_seen(model)
    trainer = zoo.trainer(name, model, data, out / "run", **arguments)
    before = tiny.weights(trainer.model)
    try:
        trainer.train()
    except ValueError as refusal:  # of ZeRO-3: a fused head
        logs[case] = str(refusal)
        continue
    assert type(trainer.model_wrapped).__name__ == ("DistributedDataParallel" if stage is None else "DeepSpeedEngine")
    assert any(shape[:2] != (1, 1) for shape in shapes) == (fused == "false")
    updates[case] = tiny.update(before, whole_weights(trainer.model))
    terms = ("loss", "task_loss", "divergence")
    logs[case] = [{key: entry[key] for key in terms} for entry in trainer.state.log_history if "loss" in entry]
with said_by_us() as said:
    for name in ("single_label", "llama") if stage is not None else ():
        bf16 = {"bf16": True, "deepspeed": SETTINGS | {"bf16": {"enabled": "auto"}}, "logging_steps": 1}
        trainer = zoo.trainer(name, zoo.build(name, dropout=0.2), zoo.dataset(name, rows=13), out / "run", **bf16)
        trainer.train()
        assert {p.dtype for p in trainer.model.parameters()} == {torch.bfloat16}
logs["said"] = said

resumed = None
if stage is not None:
    few_steps = {"num_train_epochs": 3, "deepspeed": SETTINGS}
    resumed = whole_cut_and_resumed("token", out / f"resumed-{stage}", whole_weights, **few_steps)
torch.save((updates, logs, resumed), out / f"{stage}-{os.environ['RANK']}.pt")
