"""The rows that a process sees at each step of a run with unlabeled rows, and of the same run resumed from the middle
of its second epoch; started by torch.distributed.run for test_semi_supervised.py.
"""

import json
import os
import sys
from pathlib import Path

from test_semi_supervised import rows, spy

out, rank = Path(sys.argv[1]), os.environ["RANK"]
steps = {}
for name, checkpoint in (("whole", None), ("resumed", str(out / "checkpoint-7"))):
    trainer = spy(
        rows(22), out, unlabeled_dataset=rows(40, labeled=False), save_strategy="steps",
        save_steps=1, save_only_model=True, per_device_train_batch_size=2, num_train_epochs=2,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=checkpoint)
    steps[name] = trainer.seen
(out / f"seen-{rank}.json").write_text(json.dumps(steps))
