"""Kills trainings with SIGKILL again and again, and resumes them. test_sudden_death.py runs it.

    python interrupted_run.py FOLDER SEED CASE:TRIALS ...

Every training is a fork of this process, so the imports run once, or two forks that train together. One training runs
without interruption. Each trial is killed at random places and resumed until it ends; the second half of the trials are
killed while they write a checkpoint. Prints what happened in each case as JSON.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from transformers import TrainerCallback

from support import tiny, zoo
from support.distributed import join, meeting

SETTINGS = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "learning_rate": 1e-2,
    "rdrop_warmup_steps": 0.75,
    "rdrop_every_n_steps": 2,
}
STEPS = 12
PROCESSES = {"ranks": 2, "ranks-unlabeled": 2}
EVENTS = ("on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_step_end")


def build(case, folder, callbacks, **settings):
    settings = {**SETTINGS, **settings, "callbacks": callbacks}
    if case == "fused":
        data = zoo.dataset("masked_lm", rows=22)
        return zoo.trainer("masked_lm", zoo.build("masked_lm"), data, folder, rdrop_fused_head=True, **settings)
    if case in PROCESSES:
        settings["num_train_epochs"] *= PROCESSES[case]  # as many steps
    if case.endswith("unlabeled"):
        more = tiny.dataset("token", rows=7, seed=1)
        settings |= {"unlabeled_dataset": more, "rdrop_unlabeled_ratio": 0.7, "rdrop_forward_mode": "recompute"}
    data = tiny.dataset("token", rows=22, unlabeled=(3, 7))
    return tiny.trainer(tiny.bert("token", dropout=0.2), data, folder, **settings)


class Die(TrainerCallback):
    """Kills its process at an event, after that event has come `steps` times in this process."""

    def __init__(self, event, steps):
        self.steps = steps
        setattr(self, event, self.count)

    def count(self, args, state, control, **kwargs):
        self.steps -= 1
        if self.steps < 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Training:
    """Forks that train to the end, from the last whole checkpoint if there is one.

    Args:
        case: the model and data, see `build`.
        folder: the output folder of the training.
        callbacks: those of the victim.
        at_save: the victim writes to the pipe `readable` when it begins a checkpoint of this step or a later one.
        victim: the rank of the fork that may be killed.
        **settings: training arguments.
    """

    def __init__(self, case, folder, callbacks=(), at_save=None, victim=0, **settings):
        world = PROCESSES.get(case, 1)
        self.store, environment = meeting(world)
        self.readable, writable = os.pipe()
        self.pids = []
        for rank in range(world):
            pid = os.fork()
            if not pid:
                join(environment, rank)
                _train(case, folder, *((callbacks, at_save) if rank == victim else ((), None)), writable, settings)
            self.pids.append(pid)
        self.victim = self.pids[victim]
        os.close(writable)

    def kill(self):
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)

    def wait(self):
        """Wait for the end: "killed" or "finished". If one process is killed, so are the others, as by a launcher."""
        status = os.waitpid(self.victim, 0)[1]
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        others = [pid for pid in self.pids if pid != self.victim]
        if killed:
            for pid in others:
                os.kill(pid, signal.SIGKILL)
        statuses = [status, *(os.waitpid(pid, 0)[1] for pid in others)]
        os.close(self.readable)
        assert killed or not any(statuses), "the training failed; see above"
        return "killed" if killed else "finished"


def _train(case, folder, callbacks, at_save, writable, settings):
    """Train in a fork; never returns."""
    code = 1
    try:
        trainer = build(case, folder, list(callbacks), **settings)
        if at_save is not None:
            save = trainer._save_checkpoint

            def signal_and_save(*args):
                if trainer.state.global_step >= at_save:
                    os.write(writable, b"!")
                save(*args)

            trainer._save_checkpoint = signal_and_save
        whole = any((path / "trainer_state.json").exists() for path in folder.glob("checkpoint-*"))
        try:
            trainer.train(resume_from_checkpoint=whole)
        except ValueError as error:
            if "No whole checkpoint" not in str(error):
                raise
            trainer = build(case, folder, list(callbacks), **settings)  # killed while it wrote the first checkpoint
            trainer.train()
        assert trainer.state.global_step == STEPS
        if trainer.is_world_process_zero():
            torch.save(tiny.weights(trainer.model), folder / "final.pt")
        code = 0
    finally:
        if code:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def last_step(folder):
    return max((int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")), default=0)


def killed_and_resumed(folder, case, trials, seed):
    draw, start = random.Random(f"{case} {seed}"), time.time()
    folder.mkdir(parents=True)
    assert Training(case, folder / "whole").wait() == "finished"
    whole = torch.load(folder / "whole" / "final.pt")
    found = {"kills": 0, "kills while writing": 0, "half-written": 0, "different": []}
    for trial in range(trials):
        at = folder / str(trial)
        settings = {"save_total_limit": draw.choice([None, 1, 2])}
        for _ in range(draw.randint(1, 3)):
            victim = draw.randrange(PROCESSES.get(case, 1))
            if trial < trials / 2:
                die = Die(draw.choice(EVENTS), draw.randrange(8))
                died = Training(case, at, [die], victim=victim, **settings).wait()
            else:
                training = Training(case, at, at_save=draw.randint(1, STEPS - 2), victim=victim, **settings)
                if os.read(training.readable, 1):
                    time.sleep(draw.random() * 0.03)
                    training.kill()
                    found["kills while writing"] += 1
                died = training.wait()
            if died == "finished":
                break
            found["kills"] += 1
            newest = at / f"checkpoint-{last_step(at)}"
            found["half-written"] += newest.exists() and not (newest / "trainer_state.json").exists()
        else:
            assert Training(case, at, **settings).wait() == "finished"
        if not tiny.identical(torch.load(at / "final.pt"), whole):
            found["different"].append(trial)
    return {**found, "seconds": round(time.time() - start, 1)}


if __name__ == "__main__":
    folder, seed, *cases = sys.argv[1:]
    found = {}
    for each in cases:
        case, _, trials = each.partition(":")
        found[each] = killed_and_resumed(Path(folder) / case, case, int(trials), seed)
    print(json.dumps(found))
