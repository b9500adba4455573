"""Rows that their tokens identify, and a trainer that keeps the rows it sees."""

from rdrop_trainer import RDropTrainer
from support import tiny


def rows(number, labeled=True, **columns):
    """Rows whose tokens identify them: 5 for labeled or 6 for unlabeled, then the row's number in two digits."""
    kind = 5 if labeled else 6
    return [
        {"input_ids": [kind, 10 + i // 20, 10 + i % 20], "attention_mask": [1, 1, 1], "labels": i % 4, **columns}
        for i in range(number)
    ]


def of_batch(input_ids):
    """The labeled and the unlabeled rows of a batch, by number."""
    numbers = [(row[0], (row[1] - 10) * 20 + row[2] - 10) for row in input_ids.tolist()]
    return [[number for kind, number in numbers if kind == wanted] for wanted in (5, 6)]


class Spy(RDropTrainer):
    """Keeps the rows of every training batch in `seen`, a list of [labeled, unlabeled]."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            seen = of_batch(inputs["input_ids"])
            assert (inputs["labels"] == -100).sum() == len(seen[1])
            self.seen.append(seen)
        return super().compute_loss(model, inputs, *args, **kwargs)


def spy(data, output_dir, **arguments):
    arguments = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, **arguments}
    trainer = tiny.trainer(tiny.bert(dropout=0.2), data, output_dir, cls=Spy, **arguments)
    trainer.seen = []
    return trainer


def seen(data, output_dir, **arguments):
    trainer = spy(data, output_dir, **arguments)
    trainer.train()
    return trainer.seen


def flat(batches, kind):
    return [number for batch in batches for number in batch[kind]]
