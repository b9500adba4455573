"""Writes down which rows a process sees at each step of a semi-supervised run, and of the same run resumed from the
middle of its second epoch. torch.distributed.run starts it for test_semi_supervised.py.

    python semi_supervised_run.py FOLDER
"""

import json
import os
import sys
from pathlib import Path

from test_semi_supervised import rows, spy

SETTINGS = {
    "unlabeled_dataset": rows(40, labeled=False),
    "save_strategy": "steps",
    "save_steps": 1,
    "save_only_model": True,
    "per_device_train_batch_size": 2,
    "num_train_epochs": 2,
}

out, rank = Path(sys.argv[1]), os.environ["RANK"]
steps = {}
for name, checkpoint in (("whole", None), ("resumed", str(out / "checkpoint-7"))):
    trainer = spy(rows(22), out, **SETTINGS)
    trainer.train(resume_from_checkpoint=checkpoint)
    steps[name] = trainer.seen
(out / f"seen-{rank}.json").write_text(json.dumps(steps))
