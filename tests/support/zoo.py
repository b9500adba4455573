"""One tiny model, and data, for every head R-Drop supports, and what each head's items are, written down independently.

`CASES[name]` builds the model; `items(name, outputs, batch)` says by the definition which logits are compared with
which labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    DataCollatorForMultipleChoice,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Seq2SeqTrainer,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
    default_data_collator,
    set_seed,
)

from rdrop_trainer import Objective, RDropSeq2SeqTrainer, RDropTrainer, StepSettings
from support import formulas, tiny

VOCABULARY = 40
WAV2VEC2_DROPOUT = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")
DECODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SEQ2SEQ = {
    "vocab_size": VOCABULARY, "d_model": 16, "max_position_embeddings": 32,
    "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32,
    "pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip


@dataclass
class Case:
    """One head.

    Attributes:
        kind: what its data and items are.
        build: makes the model, given a dropout probability.
        head: name of the module that turns hidden states into logits.
        problem: which divergence and task loss `formulas` takes.
    """

    kind: str
    build: Callable[[float], nn.Module]
    head: str
    problem: str = "single_label"


def bert(cls):
    def build(p):
        return cls(BertConfig(**tiny.SIZES, hidden_dropout_prob=p, attention_probs_dropout_prob=p))

    return build


def decoder(cls, config_cls, **changes):
    def build(p):
        return cls(config_cls(vocab_size=VOCABULARY, **DECODER, attention_dropout=p, bos_token_id=2, **changes))

    return build


def seq2seq(cls, config_cls):
    def build(p):
        return cls(config_cls(**SEQ2SEQ, dropout=p, attention_dropout=p, activation_dropout=0.0))

    return build


def gpt2(p):
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=2)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = p
    return GPT2LMHeadModel(config)


def t5(p):
    config = T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    config.dropout_rate = p
    return T5ForConditionalGeneration(config)


def vit(p):
    dropout = {"hidden_dropout_prob": p, "attention_probs_dropout_prob": p}
    return ViTForImageClassification(ViTConfig(**DECODER, **dropout, image_size=8, patch_size=4, num_labels=4))


def wav2vec2(cls, p, **changes):
    encoder = {"conv_dim": (8, 8), "conv_stride": (4, 4), "conv_kernel": (8, 4), "num_feat_extract_layers": 2}
    encoder |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16}
    dropout = dict.fromkeys(WAV2VEC2_DROPOUT, p)
    changes = {"num_labels": 4, "vocab_size": 8, "layerdrop": 0.0, "apply_spec_augment": False, **changes}
    return cls(cls.config_class(**DECODER, **encoder, **dropout, **changes))


CASES = {
    "single_label": Case("rows", partial(tiny.bert, "single_label"), "classifier"),
    "multi_label": Case("rows", partial(tiny.bert, "multi_label"), "classifier", "multi_label"),
    "regression": Case("rows", partial(tiny.bert, "regression"), "classifier", "regression"),
    "token": Case("token", partial(tiny.bert, "token"), "classifier"),
    "choice": Case("choice", bert(BertForMultipleChoice), "classifier"),
    "question": Case("question", bert(BertForQuestionAnswering), "qa_outputs"),
    "masked_lm": Case("masked_lm", bert(BertForMaskedLM), "cls"),
    "gpt2": Case("causal_lm", gpt2, "lm_head"),
    "llama": Case("causal_lm", decoder(LlamaForCausalLM, LlamaConfig), "lm_head"),
    "qwen2": Case("causal_lm", decoder(Qwen2ForCausalLM, Qwen2Config, num_key_value_heads=2), "lm_head"),
    "t5": Case("seq2seq", t5, "lm_head"),
    "bart": Case("seq2seq", seq2seq(BartForConditionalGeneration, BartConfig), "lm_head"),
    "marian": Case("seq2seq", seq2seq(MarianMTModel, MarianConfig), "lm_head"),
    "mbart": Case("seq2seq", seq2seq(MBartForConditionalGeneration, MBartConfig), "lm_head"),
    "vit": Case("image", vit, "classifier"),
    "wav2vec2": Case("audio", partial(wav2vec2, Wav2Vec2ForSequenceClassification), "classifier"),
    "ctc": Case("speech", partial(wav2vec2, Wav2Vec2ForCTC, ctc_loss_reduction="mean"), "lm_head"),
}

ONE_OF_A_KIND = ("choice", "question", "masked_lm", "gpt2", "t5", "vit", "ctc")
# What depends on what an item is, and not on the architecture, is tried with one model of each kind
EVERY_KIND = (*tiny.HEADS, *ONE_OF_A_KIND)


def build(name, dropout=0.1):
    set_seed(0)
    return CASES[name].build(dropout)


def noisy(name, num_passes=2, concat=True, dtype=torch.float64):
    """A model without dropout, with `tiny.PassNoise` in front of its head; it casts its inputs to its type."""

    def cast(module, args, kwargs):
        return args, {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in kwargs.items()}

    model = build(name, dropout=0.0).to(dtype)
    model.pass_noise = tiny.PassNoise(num_passes, concat)
    model.get_submodule(CASES[name].head).register_forward_pre_hook(lambda _, args: (model.pass_noise(args[0]),))
    model.register_forward_pre_hook(cast, with_kwargs=True)
    return model


def dataset(name, rows=11, seed=0, unlabeled=()):
    """Rows of unequal length, with unequal numbers of labels where the items are tokens.

    `unlabeled` numbers the rows without a label, for heads that have a mark for it.
    """
    if name in tiny.HEADS:
        return tiny.dataset(name, rows, unlabeled, seed)
    g = torch.Generator().manual_seed(seed)

    def tokens(low, high):
        return torch.randint(5, VOCABULARY, (int(torch.randint(low, high, (1,), generator=g)),), generator=g).tolist()

    def some(ids, share):
        return [i if torch.rand(1, generator=g) < share else -100 for i in ids]

    def row(kind):
        label = int(torch.randint(0, 3, (1,), generator=g))
        if kind == "choice":
            choices = [tokens(3, 9) for _ in range(3)]
            return {"input_ids": choices, "attention_mask": [[1] * len(c) for c in choices], "label": label}
        if kind == "question":  # padding is not masked in these heads, so all rows have one length
            ids = tokens(10, 11)
            end = 9 if torch.rand(1, generator=g) < 0.7 else 99  # an answer cut off by the end of the row
            return {"input_ids": ids, "attention_mask": [1] * 10, "start_positions": label, "end_positions": end}
        if kind == "image":
            return {"pixel_values": torch.randn(3, 8, 8, generator=g), "labels": label}
        if kind == "audio":
            return {"input_values": torch.randn(200, generator=g), "labels": label}
        if kind == "speech":  # characters 1 to 7; padded, as a row of a batch is
            labels = torch.randint(1, 8, (5,), generator=g)
            labels[int(torch.randint(1, 5, (1,), generator=g)) :] = -100
            mask = (torch.arange(200) < torch.randint(120, 200, (1,), generator=g)).long()
            return {"input_values": torch.randn(200, generator=g) * mask, "attention_mask": mask, "labels": labels}
        ids = tokens(3, 12)
        entry = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        if kind == "masked_lm":
            return entry | {"labels": some(ids, 0.4)}
        if kind == "causal_lm":
            return entry | {"labels": ids[:1] + some(ids[1:], 0.7)}
        return entry | {"labels": tokens(2, 9)}

    data = [row(CASES[name].kind) for _ in range(rows)]
    for i in unlabeled:
        if isinstance(data[i].get("labels"), list):
            data[i]["labels"] = [-100] * len(data[i]["labels"])
    return data


def collator(name, model=None):
    tok = tiny.tokenizer()
    kind = CASES[name].kind
    if kind == "choice":
        return DataCollatorForMultipleChoice(tok)
    if kind == "seq2seq":
        return DataCollatorForSeq2Seq(tok, model=model)
    if kind in ("token", "masked_lm", "causal_lm"):
        return DataCollatorForTokenClassification(tok)
    return DataCollatorWithPadding(tok) if kind in ("rows", "question") else default_data_collator


def batch(name, model=None, rows=5, seed=0, unlabeled=()):
    """On the device of the model."""
    device = "cpu" if model is None else next(model.parameters()).device
    tensors = collator(name, model)(dataset(name, rows, seed, unlabeled))
    return {key: value.to(device) for key, value in tensors.items()}


def batches(name, rows=11, size=4):
    """Micro-batches, of which the last may be short."""
    data, collate = dataset(name, rows), collator(name)
    return [dict(collate(data[i : i + size])) for i in range(0, rows, size)]


def trainer(name, model, data, output_dir, plain=False, **arguments):
    """As `tiny.trainer`; `plain` for transformers' own, which takes no settings of R-Drop."""
    if plain:
        arguments = {key: value for key, value in arguments.items() if not key.startswith("rdrop_")}
    if CASES[name].kind == "seq2seq":
        cls = Seq2SeqTrainer if plain else RDropSeq2SeqTrainer
    else:
        cls = Trainer if plain else RDropTrainer
    # With a tokenizer the trainer would change special tokens in the model's configuration
    arguments = {"cls": cls, "processing_class": None, "data_collator": collator(name, model), **arguments}
    return tiny.trainer(model, data, output_dir, **arguments)


def items(name, outputs, batch):
    """By the definition: [(logits (n, C), labels (n,))] of the items of one pass, one entry per part of the head."""
    kind = CASES[name].kind
    if kind == "question":
        parts = []
        for part in ("start", "end"):
            logits, position = outputs[f"{part}_logits"], batch[f"{part}_positions"]
            outside = position >= logits.shape[1]
            parts.append((logits, torch.where(outside, -100, position)))
        return parts
    logits, labels = outputs["logits"], batch["labels"]
    if kind in ("rows", "choice", "image", "audio"):
        return [(logits, labels)]
    if kind == "token":  # of a row without any label, the tokens that are attended to
        counted = (labels != -100) | (labels == -100).all(1, keepdim=True) & batch["attention_mask"].bool()
        return [(logits[counted], labels[counted])]
    if kind == "causal_lm":
        logits, labels = logits[:, :-1], labels[:, 1:]
    return [(logits[labels != -100], labels[labels != -100])]


def speech_frames(positions):
    """The frames that the two convolutions of `wav2vec2` make of so many positions."""
    return ((positions - 8) // 4 + 1 - 4) // 4 + 1


def by_definition(name, passes, batch, alpha, smoothing=0.0):
    """(loss, task loss, divergence) of the model's outputs in each pass."""
    if CASES[name].kind == "speech":
        transcripts = [[label for label in row if label != -100] for row in batch["labels"].tolist()]
        lengths = [speech_frames(positions) for positions in batch["attention_mask"].sum(-1).tolist()]
        return formulas.rdrop_ctc([outputs["logits"] for outputs in passes], transcripts, lengths, alpha)
    parts = zip(*(items(name, outputs, batch) for outputs in passes), strict=True)
    problem = CASES[name].problem
    terms = [formulas.rdrop([z for z, _ in part], part[0][1], alpha, problem, smoothing=smoothing) for part in parts]
    return tuple(sum(values) / len(terms) for values in zip(*terms, strict=True))


def sgd_update(name, model, tmp_path, rows=11, unlabeled=(), **arguments):
    """Minus the summed gradients of one epoch of SGD, as one vector."""
    arguments = {"rdrop_allow_deterministic": True, **tiny.PURE_SGD, **arguments}
    run = trainer(name, model, dataset(name, rows, unlabeled=unlabeled), tmp_path, **arguments)
    return tiny.trained(run)


def gradient(model, batches, label_smoothing=0.0, **settings):
    """The gradient of one optimizer step over micro-batches, as one vector, by the objective without a `Trainer`."""
    objective = Objective.of(model.train(), batches, label_smoothing=label_smoothing)
    window, settings = objective.window(batches), StepSettings(allow_deterministic=True, **settings)
    for batch in batches:
        objective(model, batch, window, settings)[0].loss.backward()
    return gradient_of(model)


def gradient_of(model):
    """As one vector; what has no gradient counts as 0."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


def logits_seen(model):
    """The shapes of the logits a model returns while it trains, but for the row that is checked."""
    shapes = []

    def see(module, inputs, outputs):
        shape = tuple(outputs["logits"].shape)
        if module.training and (shape[0] > 1 or shape[1] == 1):
            shapes.append(shape)

    model.register_forward_hook(see)
    return shapes


def warnings_of(caplog):
    return [record.message for record in caplog.records if "is not fused" in record.message]


def moved(batch, pass_index):
    """A second view without chance, another in every pass: another second token, louder sound, brighter images."""
    [key] = [key for key in ("input_ids", "input_values", "pixel_values") if key in batch]
    changed = batch[key].clone()
    if key == "input_ids":
        changed[..., 1] = 10 + pass_index
    else:
        changed *= 1 + 0.3 * pass_index
    return {**batch, key: changed}
