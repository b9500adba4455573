"""Runs every case of test_distributed.py in each of its processes; started by torch.distributed.run."""

import functools
import json
import os
import sys

import tiny
import torch
import zoo
from test_distributed import FUSED, HEADS, MODES

from rdrop_trainer import RDropTrainer, fused_head

out, world = sys.argv[1], int(os.environ["WORLD_SIZE"])
rank = int(os.environ["RANK"])
updates, logs = {}, {}


def run(case, model, head, mode, steps, alpha, **arguments):
    before = tiny.weights(model)
    # 13 rows: unequal token counts per rank, and a last batch that is short
    if head in zoo.CASES:
        make, data = functools.partial(zoo.trainer, head), zoo.dataset(head, rows=13)
    else:
        unlabelled = () if "compute_loss_func" in arguments else (4,)
        make, data = tiny.trainer, tiny.dataset(head, rows=13, unlabelled=unlabelled)
    trainer = make(
        model,
        data,
        os.path.join(out, case),
        per_device_train_batch_size=4 // world,
        gradient_accumulation_steps=steps,
        rdrop_forward_mode=mode,
        rdrop_alpha=alpha,
        logging_steps=100,
        logging_first_step=True,
        dataloader_drop_last=True,
        rdrop_allow_deterministic=True,
        **tiny.PURE_SGD,
        **arguments,
    )
    trainer.train()
    updates[case] = tiny.update(before, tiny.weights(trainer.model))
    logs[case] = {k: v for k, v in trainer.state.log_history[0].items() if k in ("loss", "task_loss", "divergence")}
    return trainer


for head in HEADS:
    for mode in MODES:
        for steps in (1, 2):
            for alpha in (0.0, 4.0) if mode == "concat" else (4.0,):
                if mode == "recompute":
                    # The pass noise counts calls, which a recomputed forward would upset: no noise in this mode
                    model = tiny.bert(head, dropout=0.0).double()
                else:
                    model = tiny.noisy_bert(head, num_passes=2 if alpha else 1, concat=mode == "concat")
                run(f"{head}-{mode}-{steps}-{alpha:g}", model, head, mode, steps, alpha)
for mode in MODES[1:]:
    for head in tiny.HEADS:
        run(f"dropout-{mode}-{head}", tiny.bert(head, dropout=0.2), head, mode, 2, 4.0)
for name in zoo.ONE_OF_A_KIND:
    for mode in MODES:
        for alpha in (0.0, 4.0) if mode == "concat" else (4.0,):
            if mode == "recompute":
                model = zoo.build(name, dropout=0.0).double()
                model.register_forward_pre_hook(zoo.in_float64, with_kwargs=True)
            else:
                model = zoo.noisy(name, num_passes=2 if alpha else 1, concat=mode == "concat")
            run(f"{name}-{mode}-2-{alpha:g}", model, name, mode, 2, alpha)
for name in FUSED:
    for mode in MODES:
        for steps in (1, 2) if mode == "concat" else (2,):
            if mode == "recompute":
                model = zoo.build(name, dropout=0.0).double()
            else:
                model = zoo.noisy(name, concat=mode == "concat")
            trainer = run(f"fused-{name}-{mode}-{steps}", model, name, mode, steps, 4.0, rdrop_fused_head=True)
            assert trainer._output_head is not None
# Micro-batches of which some have enough logits for "auto", which may be those of one process
fused_head.AUTO_FROM = 2 * (4 // world) * 11 * zoo.VOCABULARY
chosen, head_to_fuse = [], RDropTrainer._head_to_fuse
RDropTrainer._head_to_fuse = lambda *args: chosen.append(head_to_fuse(*args)) or chosen[-1]
run("fused-auto", zoo.noisy("masked_lm"), "masked_lm", "concat", 2, 4.0)
RDropTrainer._head_to_fuse = head_to_fuse
logs["chosen"] = [head is not None for head in chosen]
for head in ("multi_label", "regression"):
    run(f"{head}", tiny.noisy_bert(head), head, "concat", 2, 4.0)


def loss_func(outputs, labels, num_items_in_batch):
    return 3 * torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


run("loss_func", tiny.noisy_bert("single_label"), "single_label", "concat", 2, 4.0, compute_loss_func=loss_func)
model = tiny.noisy_bert("token")
model._loss_function = torch.nn.CrossEntropyLoss()  # marks its loss as its own; the head computes the same one
run("own_loss", model, "token", "concat", 2, 4.0)

if rank == 0:
    torch.save(updates, os.path.join(out, "updates.pt"))
with open(os.path.join(out, f"logs-{rank}.json"), "w") as f:
    json.dump(logs, f)
