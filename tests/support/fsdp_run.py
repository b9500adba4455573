"""Trains under FSDP on the CPU, and under DistributedDataParallel; started by torch.distributed.run for test_fsdp.py.

accelerate turns FSDP on for accelerators alone, and trains with DistributedDataParallel on a CPU, without a word; here
it shards all the same, which torch does over gloo.
"""

import os
import sys
from pathlib import Path

import accelerate
import torch
import transformers.trainer
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from support import tiny, zoo
from support.distributed import LAYERS, MODES, said_by_us

out, rank = Path(sys.argv[1]), int(os.environ["RANK"])
# By version of FSDP
WRAPPERS = {None: DistributedDataParallel, 1: FullyShardedDataParallel, 2: FSDPModule}
updates, logs = {}, {}


class Sharding(accelerate.Accelerator):
    def __init__(self, *args, fsdp_plugin=None, **kwargs):
        super().__init__(*args, fsdp_plugin=fsdp_plugin, **kwargs)
        kind = DistributedType.FSDP if fsdp_plugin else DistributedType.MULTI_CPU
        settings = {"distributed_type": kind, "device": torch.device("cpu")}  # FSDP 1 does not take "cpu:0"
        for shared in (accelerate.PartialState._shared_state, self.state._shared_state):
            shared.update(settings)
        self.state.fsdp_plugin = fsdp_plugin
        if fsdp_plugin and self.mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self.mixed_precision)


transformers.trainer.Accelerator = Sharding


def build(name, version, **arguments):
    """A trainer on 13 rows; `version` of FSDP, None for DistributedDataParallel."""
    arguments = {"per_device_train_batch_size": 2, "logging_steps": 1, **tiny.PURE_SGD, **arguments}
    if version is not None:
        sharding = {"reshard_after_forward": "full_shard", "sync_module_states": False} if version == 1 else {}
        config = {"version": version, "transformer_layer_cls_to_wrap": [LAYERS[name]], **sharding}
        arguments |= {"fsdp": True, "fsdp_config": config}
    data = zoo.dataset(name, rows=13, unlabeled=(4,))
    return zoo.trainer(name, zoo.build(name, dropout=0.2), data, out / "run", **arguments)


def whole_weights(model):
    """The weights of all processes together, by the model's own names."""
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            weights = {name: value.detach().clone() for name, value in model.named_parameters()}
        return {name.replace("_fsdp_wrapped_module.", ""): value for name, value in weights.items()}
    weights = {name.removeprefix("module."): value for name, value in tiny.weights(model).items()}
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in weights.items()}


def run(case, name, version, resume_from=None, **arguments):
    trainer = build(name, version, **arguments)
    before = tiny.weights(trainer.model)
    trainer.train(resume_from_checkpoint=resume_from)
    assert isinstance(trainer.model_wrapped, WRAPPERS[version])
    updates[case] = tiny.update(before, whole_weights(trainer.model_wrapped))
    terms = ("loss", "task_loss", "divergence")
    logs[case] = [{key: entry[key] for key in terms} for entry in trainer.state.log_history if "loss" in entry]
    return trainer


for name in LAYERS:
    for mode in MODES:
        for version in (None, 1, 2):
            run(f"{name}-{mode}-{version}", name, version, rdrop_forward_mode=mode, gradient_accumulation_steps=2)

with said_by_us() as said:
    for name in LAYERS:
        for version in (1, 2):
            run(f"{name}-bf16-{version}", name, version, bf16=True, gradient_accumulation_steps=2)
logs["said"] = said

saving = {
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
    "save_strategy": "steps",
    "save_steps": 3,
    "num_train_epochs": 2,
}
trainer = run("whole", "llama", 2, **saving)
run("resumed", "llama", 2, resume_from=str(out / "run" / "checkpoint-6"), **saving)
trainer.save_model(str(out / "saved"))
trainer.create_model_card()

try:
    run("fused", "llama", 2, rdrop_fused_head=True)
except ValueError as error:
    logs["refusal"] = str(error)

# One process alone sees it: what it then asks about the weights must not wait for the others
trainer = build("token", 2)
compute_loss = trainer.compute_loss
trainer.compute_loss = lambda *args, **kwargs: compute_loss(*args, **kwargs) * (float("nan") if rank == 1 else 1)
try:
    trainer.train()
except FloatingPointError as error:
    logs["nan"] = str(error)
except RuntimeError:
    pass  # the other process is gone
torch.save((updates, logs), out / f"found-{rank}.pt")
