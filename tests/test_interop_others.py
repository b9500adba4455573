"""`RDropMixin` over trainers with losses and inputs of their own: gliclass's, which fits, and some that do not."""

from dataclasses import dataclass

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, LlamaConfig, LlamaForSequenceClassification, set_seed

from rdrop_trainer import RDropArguments, RDropMixin
from support import formulas, tiny, zoo
from support.device import USE_CPU
from support.tiny import word_tokenizer, words

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]
QUIET = {"report_to": "none", "use_cpu": USE_CPU, "disable_tqdm": True, "save_strategy": "no", "num_train_epochs": 1}


# ---- gliclass: scores for labels that stand in the text, focal loss, a compute_loss and training_step of its own ----


def gliclass_model(dropout=0.1):
    gliclass = pytest.importorskip("gliclass")
    encoder = BertConfig(**tiny.SIZES, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout).to_dict()
    set_seed(0)
    config = gliclass.GLiClassModelConfig(
        encoder, "none", class_token_index=38, text_token_index=39, problem_type="multi_label_classification",
        dropout=dropout, scorer_attn_dropout=dropout, pad_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    return gliclass.GLiClassModel(config)


def gliclass_rows(rows=8):
    """Three labels in front of a text, and which of them hold."""
    g = torch.Generator().manual_seed(0)
    data = []
    for _ in range(rows):
        tokens = torch.randint(5, 37, (int(torch.randint(6, 12, (1,), generator=g)),), generator=g).tolist()
        ids = torch.tensor([38, tokens[0], 38, tokens[1], 38, tokens[2], 39, *tokens[3:]])
        labels = torch.randint(0, 2, (3,), generator=g).float()
        data.append(
            {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "labels_text": ["a"] * 3}
        )
    return data


def gliclass_trainer(model, output_dir, **arguments):
    from gliclass.data_processing import DataCollatorWithPadding
    from gliclass.training import Trainer, TrainingArguments

    class RDropGLiClassTrainer(RDropMixin, Trainer):
        pass

    @dataclass
    class RDropGLiClassArguments(RDropArguments, TrainingArguments):
        pass

    args = RDropGLiClassArguments(str(output_dir), **QUIET | {"logging_steps": 1} | arguments)
    collate = DataCollatorWithPadding("cpu", model.config)
    return RDropGLiClassTrainer(model=model, args=args, train_dataset=gliclass_rows(), data_collator=collate)


def noisy_gliclass(num_passes=2):
    model = gliclass_model(dropout=0.0)
    model.pass_noise = tiny.PassNoise(num_passes)
    model.model.text_projector.register_forward_pre_hook(lambda _, args: (model.pass_noise(args[0]),))
    return model


def test_the_focal_loss_of_gliclass_is_kept(tmp_path):
    model = noisy_gliclass().train()
    trainer = gliclass_trainer(model, tmp_path, rdrop_alpha=3.0, rdrop_allow_deterministic=True)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(model, batch)
    with torch.no_grad():
        together = model(**{k: torch.cat([v, v]) if torch.is_tensor(v) else v for k, v in batch.items()})
    _, _, divergence = formulas.rdrop(together.logits.chunk(2), batch["labels"], 3.0, problem="multi_label")
    assert divergence > 0
    assert loss.item() == pytest.approx(together.loss.item() + 1.5 * divergence.item(), rel=1e-5)


def test_accumulation_with_gliclass_equals_one_large_batch(tmp_path):
    updates = []
    for rows, steps in ((2, 4), (8, 1)):
        model = noisy_gliclass()
        before = tiny.weights(model)
        arguments = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps}
        gliclass_trainer(model, tmp_path, rdrop_allow_deterministic=True, **tiny.PURE_SGD, **arguments).train()
        updates.append(tiny.update(before, tiny.weights(model)))
    assert updates[0].norm() > 0 and tiny.relative(*updates) < 1e-5


def test_a_trainer_that_catches_errors_learns_nothing_without_noise(tmp_path, capsys):
    model = gliclass_model(dropout=0.0)
    before = tiny.weights(model)
    gliclass_trainer(model, tmp_path, per_device_train_batch_size=2).train()
    assert capsys.readouterr().out.count("are identical on the first R-Drop step") == 4
    assert tiny.identical(before, tiny.weights(model))


# ---- Trainers whose batches hold no labels ----


def preferences():
    rows = zip(words(), words(seed=3), strict=True)
    return Dataset.from_list(
        [{"prompt": "w5 ", "chosen": " ".join(chosen), "rejected": " ".join(rejected)} for chosen, rejected in rows]
    )


def reward_trainer(output_dir):
    trl = pytest.importorskip("trl")
    config = LlamaConfig(vocab_size=40, **zoo.DECODER, attention_dropout=0.1, num_labels=1, pad_token_id=0)
    return trl.RewardTrainer, {
        "model": LlamaForSequenceClassification(config),
        "args": trl.RewardConfig(output_dir, bf16=False, **QUIET),
        "train_dataset": preferences(),
    }


def dpo_trainer(output_dir):
    trl = pytest.importorskip("trl")
    return trl.DPOTrainer, {
        "model": zoo.build("llama"),
        "ref_model": zoo.build("llama"),
        "args": trl.DPOConfig(output_dir, bf16=False, **QUIET),
        "train_dataset": preferences(),
    }


def kto_trainer(output_dir):
    trl = pytest.importorskip("trl")
    rows = [{"prompt": "w5 ", "completion": " ".join(row), "label": i % 2 == 0} for i, row in enumerate(words())]
    return trl.KTOTrainer, {
        "model": zoo.build("llama"),
        "ref_model": zoo.build("llama"),
        "args": trl.KTOConfig(output_dir, bf16=False, **QUIET),
        "train_dataset": Dataset.from_list(rows),
    }


def grpo_trainer(output_dir):
    trl = pytest.importorskip("trl")
    args = {"num_generations": 2, "per_device_train_batch_size": 2, "max_completion_length": 4, "max_steps": 1}
    return trl.GRPOTrainer, {
        "model": zoo.build("llama"),
        "reward_funcs": lambda completions, **_: [0.0] * len(completions),
        "args": trl.GRPOConfig(output_dir, bf16=False, **QUIET, **args),
        "train_dataset": Dataset.from_dict({"prompt": ["w5", "w6"]}),
    }


def cross_encoder_trainer(output_dir):
    ce = pytest.importorskip("sentence_transformers.cross_encoder")
    tiny.bert().save_pretrained(output_dir)
    word_tokenizer().save_pretrained(output_dir)
    return ce.CrossEncoderTrainer, {
        "model": ce.CrossEncoder(output_dir, device="cpu"),
        "args": ce.CrossEncoderTrainingArguments(output_dir, **QUIET),
        "train_dataset": Dataset.from_dict({"a": ["w5", "w6"], "b": ["w7", "w8"], "label": [0, 1]}),
    }


def sentence_trainer(output_dir):
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.models import Pooling, Transformer

    tiny.bert().save_pretrained(output_dir)
    word_tokenizer().save_pretrained(output_dir)
    return st.SentenceTransformerTrainer, {
        "model": st.SentenceTransformer(modules=[Transformer(output_dir), Pooling(16)], device="cpu"),
        "args": st.SentenceTransformerTrainingArguments(output_dir, **QUIET),
        "train_dataset": Dataset.from_dict({"a": ["w5", "w6"], "b": ["w7", "w8"], "label": [0.0, 1.0]}),
    }


@pytest.mark.parametrize(
    "build",
    [reward_trainer, dpo_trainer, kto_trainer, grpo_trainer, cross_encoder_trainer, sentence_trainer],
    ids=lambda f: f.__name__,
)
def test_batches_without_labels_are_refused_by_the_name_of_the_trainer(build, tmp_path):
    cls, arguments = build(str(tmp_path))
    if "sentence" not in cls.__module__:
        arguments["processing_class"] = word_tokenizer()
    mixed = type("Mixed", (RDropMixin, cls), {})
    with pytest.raises(ValueError, match=f"R-Drop does not fit {cls.__name__}: its batches hold no `labels`"):
        mixed(**arguments).train()
