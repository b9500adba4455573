"""Tiny models, data and runs, built without any download."""

import torch
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainingArguments,
    set_seed,
)

from rdrop_trainer import RDropMixin, RDropSeq2SeqTrainingArguments, RDropTrainer, RDropTrainingArguments
from support.device import USE_CPU

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
HEADS = ("single_label", "multi_label", "regression", "token")


def bert(head="single_label", dropout=0.1, **changes):
    config = BertConfig(**{**SIZES, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, **changes})
    set_seed(0)
    if head == "token":
        config.num_labels = 5
        return BertForTokenClassification(config)
    config.num_labels = 1 if head == "regression" else 4
    config.problem_type = "multi_label_classification" if head == "multi_label" else None
    return BertForSequenceClassification(config)


def dataset(head="single_label", rows=12, unlabeled=(), seed=0):
    """Rows of unequal length; token rows have unequal label counts and an ignored first token."""
    g = torch.Generator().manual_seed(seed)
    data = []
    for i in range(rows):
        length = int(torch.randint(3, 12, (1,), generator=g))
        row = {"input_ids": torch.randint(5, 40, (length,), generator=g).tolist(), "attention_mask": [1] * length}
        if head == "token":
            labels = torch.randint(0, 5, (length,), generator=g)
            labels[torch.rand(length, generator=g) < 0.3] = -100
            labels[0] = -100
            row["labels"] = [-100] * length if i in unlabeled else labels.tolist()
        elif head == "single_label":
            row["labels"] = -100 if i in unlabeled else int(torch.randint(0, 4, (1,), generator=g))
        elif head == "multi_label":
            row["labels"] = torch.randint(0, 2, (4,), generator=g).float().tolist()
        else:
            row["labels"] = float(torch.randn(1, generator=g))
        data.append(row)
    return data


def tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    vocab = {"[PAD]": 0, "[UNK]": 1} | {f"w{i}": i for i in range(2, 40)}
    words = Tokenizer(WordLevel(vocab, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="w2")


QUIET = {"report_to": "none", "use_cpu": USE_CPU, "disable_tqdm": True, "save_strategy": "no", "num_train_epochs": 1}
OF_TRAINER = "data_collator processing_class eval_dataset unlabeled_dataset callbacks compute_loss_func compute_metrics"
OF_TRAINER += " optimizers second_view"


def trainer(model, data, output_dir, cls=RDropTrainer, **arguments):
    """A trainer that logs and saves nothing unless asked to.

    Args:
        model: what it trains.
        data: the rows of a `dataset` above, unless there is a `data_collator`.
        output_dir: its folder.
        cls: its class.
        **arguments: of the trainer, or of its training arguments.
    """
    arguments = {**QUIET, "processing_class": tokenizer(), **arguments}
    of_trainer = {name: arguments.pop(name) for name in OF_TRAINER.split() if name in arguments}
    labels = data[0]["labels"] if "data_collator" not in of_trainer else None
    if isinstance(labels, list) and isinstance(labels[0], int):
        of_trainer["data_collator"] = DataCollatorForTokenClassification(of_trainer["processing_class"])
    if issubclass(cls, Seq2SeqTrainer):
        args = RDropSeq2SeqTrainingArguments if issubclass(cls, RDropMixin) else Seq2SeqTrainingArguments
    else:
        args = RDropTrainingArguments if issubclass(cls, RDropMixin) else TrainingArguments
    return cls(model, args(str(output_dir), **arguments), train_dataset=data, **of_trainer)


def batch_of(trainer):
    """The first batch of a training."""
    return next(iter(trainer.get_train_dataloader()))


def logged(trainer, key):
    """All logged values of a name."""
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def loss_of(trainer, batch, seed=0):
    """What a step in training computes for a batch."""
    trainer.model.train()
    torch.manual_seed(seed)
    return trainer.compute_loss(trainer.model, dict(batch))


def weights(model):
    """A copy on the CPU."""
    return {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}


def identical(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def update(before, after):
    """The change of all weights as one vector; with SGD at learning rate 1, minus the gradient."""
    return torch.cat([(after[k] - before[k]).flatten().double() for k in before if before[k].is_floating_point()])


def trained(trainer):
    """Train, and return the update."""
    before = weights(trainer.model)
    trainer.train()
    return update(before, weights(trainer.model))


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


# SGD with learning rate 1, no clipping, no decay: the update of the weights is minus the gradient.
PURE_SGD = {
    "optim": "sgd",
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "weight_decay": 0.0,
}


class PassNoise(nn.Module):
    """Stands in for dropout in front of the classifier: noise fixed by the row's content and the number of the pass.

    The noise is the same however rows are batched, so runs that differ only in batching or forward mode can be
    compared exactly.
    """

    def __init__(self, num_passes=2, concat=True):
        super().__init__()
        self.num_passes, self.concat = num_passes, concat
        self.dropout = 0.3  # by this name it is off where dropout is, as when a loss is checked
        # A buffer, so that a pass that is run again is the pass it was
        self.register_buffer("calls", torch.zeros((), dtype=torch.long), persistent=False)
        # Saved for the backward, so a second forward must not let data parallelism write to it
        self.register_buffer("one", torch.ones(()))

    def forward(self, hidden):
        if not self.training:
            return hidden
        if self.concat:
            k = torch.arange(len(hidden), device=hidden.device) // max(1, len(hidden) // self.num_passes)
        else:
            k = (self.calls % self.num_passes).expand(len(hidden))
        self.calls += 1
        k = k.to(hidden.dtype).reshape(-1, *[1] * (hidden.dim() - 1))
        return hidden * (1 + self.dropout * torch.cos(1.7 * k + 5 * hidden.detach())) * self.one


def in_one_memory(model):
    """The model, whose outputs without a gradient stand in the memory of the last ones, as those of CUDA graphs do."""
    kept = {}

    def hook(module, args, output):
        if torch.is_grad_enabled():
            return None
        return {k: kept.setdefault((k, v.shape), v.clone()).copy_(v) for k, v in output.items()}

    model.register_forward_hook(hook)
    return model


class Sizes(TorchDispatchMode):
    """The memory of the tensors that operations return, each counted once, in elements."""

    def __init__(self):
        super().__init__()
        self.of = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.of[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return result

    def large(self, size, *known):
        known = {t.untyped_storage().data_ptr() for t in known}
        return [n for pointer, n in self.of.items() if n >= size and pointer not in known]


class Drawn(torch.nn.Module):
    """In place of dropout in front of the classifier: keeps, on the CPU, what the model's own dropout let through."""

    def __init__(self, p):
        super().__init__()
        self.dropout, self.seen = torch.nn.Dropout(p), []

    def forward(self, hidden):
        hidden = self.dropout(hidden)
        self.seen.append(hidden.detach().cpu().double())
        return hidden


def words(rows=8, low=4, high=12, seed=0):
    """Lists of words of unequal number, the last one of each the end of the text."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (rows,), generator=g).tolist()
    return [[f"w{i}" for i in torch.randint(3, 40, (n,), generator=g).tolist()] + ["w2"] for n in lengths]


def word_tokenizer():
    tok = tokenizer()
    tok.backend_tokenizer.pre_tokenizer = Whitespace()
    return tok
