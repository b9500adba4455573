"""A small training run in a process of its own, which can kill itself and be resumed. Run by test_invariants.py."""

import argparse
import os
import signal

import tiny
import torch
import zoo
from transformers import TrainerCallback

parser = argparse.ArgumentParser()
parser.add_argument("output_dir")
parser.add_argument("--kill_at", type=int)
parser.add_argument("--resume", action="store_true")
parser.add_argument("--unlabeled", action="store_true")
parser.add_argument("--fused", action="store_true")
options = parser.parse_args()


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == options.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


settings = {
    "callbacks": [Kill()],
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "learning_rate": 1e-2,
    "rdrop_warmup_steps": 0.75,
    "rdrop_every_n_steps": 2,
}
if options.fused:
    data = zoo.dataset("masked_lm", rows=22)
    trainer = zoo.trainer(
        "masked_lm", zoo.build("masked_lm"), data, options.output_dir, rdrop_fused_head=True, **settings
    )
else:
    trainer = tiny.trainer(
        tiny.bert("token", dropout=0.2),
        tiny.dataset("token", rows=22, unlabelled=(3, 7)),
        options.output_dir,
        unlabeled_dataset=tiny.dataset("token", rows=7, seed=1) if options.unlabeled else None,
        rdrop_unlabeled_ratio=0.7,
        **settings,
    )
trainer.train(resume_from_checkpoint=options.resume)
assert trainer.state.global_step == 12
torch.save(tiny.weights(trainer.model), os.path.join(options.output_dir, "final.pt"))
