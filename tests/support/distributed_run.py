"""Runs every case of test_distributed.py in forks: on one process, and at the same time on two.

distributed_run.py OUT
"""

import gc
import json
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from rdrop_trainer import RDropTrainer
from rdrop_trainer.objective import lm_head, plan
from support import adversarial, semi_supervised, tiny, zoo
from support.distributed import BARE, FUSED, MODES, OWN_COUNT, ROWS, TRAINED, UNEVEN, UNLABELED, rows_of_rank, split

gc.freeze()  # at every start of a training accelerate collects garbage, among all that was imported
world, rank = split(1, 2)
out = Path(sys.argv[1]) / f"{world}_processes"
BATCH = 4 // world
updates, logs, seen = {}, {}, {}


def rows(head, number=ROWS, unlabeled=(4,)):
    """Rows of unequal token counts. accelerate fills the last batches with rows from the start; one process gets them
    as its last ones.
    """
    data = zoo.dataset(head, rows=number, unlabeled=unlabeled)
    return data + data[: -number % 4] if world == 1 else data


def noisy(head, mode="concat", alpha=4.0):
    return zoo.noisy(head, num_passes=2 if alpha else 1, concat=mode == "concat")


def noise_of(model):
    return next(module for module in model.modules() if isinstance(module, tiny.PassNoise))


def run(case, model, head, data=None, mode="concat", steps=1, alpha=4.0, **arguments):
    """Train, and note what the weights and the logs became."""
    before = tiny.weights(model)
    arguments = {
        "per_device_train_batch_size": BATCH, "gradient_accumulation_steps": steps, "rdrop_forward_mode": mode,
        "rdrop_alpha": alpha, "rdrop_allow_deterministic": True, "logging_steps": 1,
        "train_sampling_strategy": "sequential", **tiny.PURE_SGD, **arguments,
    }  # fmt: skip
    trainer = zoo.trainer(head, model, rows(head) if data is None else data, out / "run", **arguments)
    trainer.train()
    updates[case] = tiny.update(before, tiny.weights(trainer.model))
    terms = ("loss", "task_loss", "divergence")
    logs[case] = [{k: v for k, v in log.items() if k in terms} for log in trainer.state.log_history if "loss" in log]
    return trainer


# ---- Heads, forward modes and accumulation ----

for head, mode, steps, alpha in TRAINED:
    run(f"{head}-{mode}-{steps}-{alpha:g}", noisy(head, mode, alpha), head, None, mode, steps, alpha)
for mode in MODES[1:]:
    run(f"dropout-{mode}", zoo.build("token", dropout=0.2), "token", None, mode, 2)
for head in ("multi_label", "regression"):
    run(head, noisy(head), head, steps=2)

# ---- A fused output head ----

for head, mode, steps in FUSED:
    model = noisy(head, mode)
    shapes = zoo.logits_seen(model)
    run(f"fused-{head}-{mode}-{steps}", model, head, None, mode, steps, rdrop_fused_head=True)
    seen.setdefault("logits", []).append(any(shape[:2] != (1, 1) for shape in shapes))
# Micro-batches of which some have enough logits for "auto", which may be those of one process
lm_head.AUTO_FROM = 2 * BATCH * 11 * zoo.VOCABULARY
chosen, fused = [], plan.Plan.fused
plan.Plan.fused = lambda *args: chosen.append(fused(*args)) or chosen[-1]
run("fused-auto", noisy("masked_lm"), "masked_lm", steps=2)
plan.Plan.fused = fused
seen["fused"] = [head is not None for head in chosen]

# ---- Losses of their own ----


def loss_func(outputs, labels, num_items_in_batch):
    return 3 * torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


data = rows("single_label", unlabeled=())
run("loss_func", noisy("single_label"), "single_label", data, steps=2, compute_loss_func=loss_func)
model = noisy("token")
model._loss_function = torch.nn.CrossEntropyLoss()  # marks its loss as its own; the head computes the same one
run("own_loss", model, "token", steps=2)

# ---- Processes that have nothing to count ----

for name, head, mode in BARE:
    run(f"{name}-{head}-{mode}", noisy(head, mode), head, rows(head, 8, UNLABELED[name]), mode, 2)
# Every process counts for itself: on one process, a run on the rows of each
for name, head, mode in OWN_COUNT:
    data, case = rows(head, 8, UNLABELED[name]), f"own-count-{name}-{head}-{mode}"
    settings = {"average_tokens_across_devices": False, "per_device_train_batch_size": 2}
    if world == 2:
        run(case, noisy(head, mode), head, data, mode, 2, **settings)
    else:
        for of in (0, 1):
            part = [data[i] for i in rows_of_rank(of, 8)]
            run(f"{case}-{of}", noisy(head, mode), head, part, mode, 2, **settings)

# ---- Schedules, unlabeled rows, and which rows there are ----


class OnePassBetween(TrainerCallback):
    """Where a step is no R-Drop step all its rows belong to one pass."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        noise_of(model).num_passes = 1 if state.global_step % 2 else 2


run("schedule", noisy("token"), "token", steps=2, num_train_epochs=3, rdrop_every_n_steps=2, rdrop_warmup_steps=5,
    callbacks=[OnePassBetween()])  # fmt: skip


def other_tokens(batch, pass_index):
    """A second view, which makes the passes differ without chance."""
    ids = batch["input_ids"].clone()
    ids[:, 1] = 10 + pass_index
    return {**batch, "input_ids": ids}


for mode in MODES:
    run(f"row_share-{mode}", zoo.build("token", dropout=0.0), "token", None, mode, 2, rdrop_row_share=0.5,
        second_view=other_tokens)  # fmt: skip
    run(f"all-used-{mode}", noisy("token", mode), "token", None, mode, 2, ddp_find_unused_parameters=False)
more = tiny.dataset("token", rows=9, seed=1)
run("unlabeled_dataset", noisy("token", "recompute"), "token", rows("token", 16), "recompute", 3, num_train_epochs=2,
    unlabeled_dataset=more)  # fmt: skip
run("shuffled", noisy("token"), "token", rows("token", 12), steps=2, train_sampling_strategy="random",
    num_train_epochs=2)  # fmt: skip
for head, mode in UNEVEN:
    # Not filled: the last row of 15 is alone in the second process's batch
    data = rows(head, 15)[:15]
    run(f"uneven-{head}-{mode}", noisy(head, mode), head, data, mode, 3, accelerator_config={"even_batches": False})


for name, cls in adversarial.RECIPES.items():
    run(name, adversarial.model(), "single_label", rows("single_label", 16, ()), steps=2, cls=cls,
        callbacks=[adversarial.OnePassOfThePlainLoss()])  # fmt: skip


class Stream(torch.utils.data.IterableDataset):
    """The first process reads it and sends the others theirs; its last batch is filled to a row for each."""

    def __iter__(self):
        return iter([*zoo.dataset("vit", ROWS), *zoo.dataset("vit", 1)][: ROWS + world % 2])


run("stream", noisy("vit"), "vit", Stream(), steps=2, max_steps=2)


class Spy(TrainerCallback):
    """Notes the rows of every micro-batch."""

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        numbers = {tuple(row["input_ids"]): i for i, row in enumerate(tiny.dataset(rows=ROWS))}
        for batch in train_dataloader:
            ids = [
                tuple(row[mask.bool()].tolist())
                for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
            ]
            seen["rows"].append([numbers[row] for row in ids])


seen["rows"] = []
run("rows", noisy("single_label"), "single_label", tiny.dataset(rows=ROWS), callbacks=[Spy()])

# ---- Which unlabeled rows the processes see, and see again when they resume in the second epoch ----

settings = {
    "unlabeled_dataset": semi_supervised.rows(40, labeled=False), "per_device_train_batch_size": 2,
    "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1, "save_only_model": True,
}  # fmt: skip
for name, checkpoint in (("whole", None), ("resumed", str(out / "semi" / "checkpoint-7"))) if world == 2 else ():
    trainer = semi_supervised.spy(semi_supervised.rows(22), out / "semi", **settings)
    trainer.train(resume_from_checkpoint=checkpoint)
    seen[name] = trainer.seen

# ---- What stops all processes ----


def stopped(error, trainer, **train):
    try:
        trainer.train(**train)
    except error as refusal:
        return str(refusal)


data = tiny.dataset(rows=ROWS)
for row in (5, 6):  # one of each process, in one step
    data[row]["input_ids"][1] = 39
model = tiny.bert()
model.get_input_embeddings().weight.data[39] = float("nan")
settings = {"per_device_train_batch_size": BATCH, "train_sampling_strategy": "sequential", "max_steps": 1}
settings["gradient_accumulation_steps"] = 2
seen["poisoned"] = stopped(FloatingPointError, tiny.trainer(model, data, out / "poisoned", **settings))
# Folders that the processes do not share
settings |= {"save_strategy": "steps", "save_steps": 1}
tiny.trainer(tiny.bert(), tiny.dataset(rows=ROWS), out / "0", **settings).train()
trainer = tiny.trainer(tiny.bert(), tiny.dataset(rows=ROWS), out / str(rank), **settings)
seen["apart"] = stopped(ValueError, trainer, resume_from_checkpoint=True)

# Of 6 rows by 2 the first process gets two batches, the second one
settings = {"per_device_train_batch_size": 2, "accelerator_config": {"even_batches": False}, "num_train_epochs": 2}
for name, end in {"unequal": {}, "unequal-before": {"max_steps": 1}, "unequal-after": {"max_steps": 2}}.items():
    seen[name] = stopped(ValueError, tiny.trainer(tiny.bert(), tiny.dataset(rows=6), out / name, **settings, **end))


class Ending(torch.utils.data.IterableDataset):
    """A part of the data for each process, that of the first longer."""

    def __iter__(self):
        return iter(tiny.dataset(rows=6 - 2 * rank))


class OwnLoader(RDropTrainer):
    def get_train_dataloader(self):
        return torch.utils.data.DataLoader(Ending(), batch_size=2, collate_fn=self.data_collator)


trainer = tiny.trainer(tiny.bert(), tiny.dataset(), out / "ending", OwnLoader, max_steps=4)
seen["ending"] = stopped(ValueError, trainer)
for mode in MODES:
    settings = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    trainer = tiny.trainer(tiny.bert(), tiny.dataset(), out / mode, rdrop_forward_mode=mode, **settings)
    seen[f"reentrant-{mode}"] = stopped(ValueError, trainer)

if rank == 0:
    torch.save(updates, out / "updates.pt")
(out / f"found-{rank}.json").write_text(json.dumps({"logs": logs, "seen": seen}))
