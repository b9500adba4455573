"""`RDropMixin` over trainers of other packages: trl's `SFTTrainer`, and what others can or cannot do."""

from dataclasses import dataclass

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import MixtralConfig, MixtralForCausalLM, set_seed

from rdrop_trainer import Objective, RDropArguments, RDropMixin
from support import formulas, tiny, zoo
from support.device import USE_CPU
from support.tiny import word_tokenizer, words

trl = pytest.importorskip("trl")
pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]
MODES = ("concat", "sequential", "recompute")


class RDropSFTTrainer(RDropMixin, trl.SFTTrainer):
    pass


@dataclass
class RDropSFTConfig(RDropArguments, trl.SFTConfig):
    pass


def texts(**kwargs):
    return Dataset.from_dict({"text": [" ".join(row) for row in words(**kwargs)]})


def prompts(**kwargs):
    rows = [{"prompt": " ".join(row[:2]) + " ", "completion": " ".join(row[2:])} for row in words(**kwargs)]
    return Dataset.from_list(rows)


def sft(cls, model, data, output_dir, **arguments):
    tok = word_tokenizer()
    tok.chat_template = arguments.pop("chat_template", None)
    defaults = {"report_to": "none", "use_cpu": USE_CPU, "bf16": False, "disable_tqdm": True, "save_strategy": "no"}
    arguments = defaults | {"num_train_epochs": 1, "per_device_train_batch_size": 4, "logging_steps": 1} | arguments
    extra = {k: arguments.pop(k) for k in ("peft_config", "compute_loss_func", "eval_dataset") if k in arguments}
    config = RDropSFTConfig if any(key.startswith("rdrop_") for key in arguments) else trl.SFTConfig
    args = config(str(output_dir), **arguments)
    return cls(model, args, train_dataset=data, processing_class=tok, **extra)


def logs_of(trainer, key="divergence"):
    return [entry for entry in trainer.state.log_history if key in entry]


def noisy(name="llama", num_passes=2):
    """A float64 model without dropout, with `tiny.PassNoise` in the body, where the fused head sees it too."""
    model = zoo.build(name, dropout=0.0).double()
    model.pass_noise = tiny.PassNoise(num_passes)
    model.model.norm.register_forward_pre_hook(lambda _, args: (model.pass_noise(args[0]),))
    return model


def test_a_plain_config_gets_the_defaults_and_the_logged_terms_add_up(tmp_path):
    trainer = sft(RDropSFTTrainer, zoo.build("llama"), texts(), tmp_path, per_device_train_batch_size=2,
                  gradient_accumulation_steps=2)  # fmt: skip
    trainer.train()
    assert (trainer.args.rdrop_alpha, trainer.args.rdrop_forward_mode) == (4.0, "concat")
    logs = logs_of(trainer)
    assert len(logs) == 2 and all(entry["divergence"] > 0 for entry in logs)
    for entry in logs:
        assert entry["loss"] == pytest.approx(entry["task_loss"] + 2 * entry["divergence"], rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("data", [texts, prompts])
def test_loss_and_its_gradient_equal_the_definition(data, smoothing, tmp_path):
    model = noisy().train()
    trainer = sft(RDropSFTTrainer, model, data(), tmp_path, rdrop_alpha=3.0, rdrop_allow_deterministic=True,
                  label_smoothing_factor=smoothing)  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(model, dict(batch))
    loss.backward()
    gradient = model.model.embed_tokens.weight.grad.clone()
    model.zero_grad()

    both = model(**{k: torch.cat([v, v]) for k, v in batch.items() if k != "labels"}).logits
    targets = batch["labels"][:, 1:]
    assert (targets == -100).any() and (data is texts or (batch["labels"][:, :2] == -100).all())
    passes = [z[:, :-1][targets != -100] for z in both.chunk(2)]
    expected, _, divergence = formulas.rdrop(passes, targets[targets != -100].tolist(), 3.0, smoothing=smoothing)
    assert divergence > 0 and loss.item() == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    assert tiny.relative(gradient, model.model.embed_tokens.weight.grad) < 1e-6


@pytest.mark.parametrize("alpha", [0.0, 4.0])
@pytest.mark.parametrize("data", [texts, prompts])
def test_accumulation_equals_one_large_batch(data, alpha, tmp_path):
    updates = []
    for rows, steps in ((2, 4), (8, 1)):
        model = noisy(num_passes=2 if alpha else 1)
        before = tiny.weights(model)
        trainer = sft(RDropSFTTrainer, model, data(rows=10), tmp_path, rdrop_alpha=alpha, **tiny.PURE_SGD,
                      rdrop_allow_deterministic=True, per_device_train_batch_size=rows,
                      gradient_accumulation_steps=steps)  # fmt: skip
        trainer.train()
        updates.append(tiny.update(before, tiny.weights(model)))
    assert updates[0].norm() > 0 and tiny.relative(*updates) < 1e-5


@pytest.mark.parametrize("make", [texts, prompts])
def test_the_head_is_fused_under_a_trainer_that_hides_its_logits(make, tmp_path):
    updates = []
    for fused in (False, True):
        model, shapes = noisy(), []
        model.register_forward_hook(
            lambda *args, shapes=shapes: shapes.append(getattr(getattr(args[-1], "logits", None), "shape", None))
        )
        before = tiny.weights(model)
        trainer = sft(RDropSFTTrainer, model, make(rows=10), tmp_path, rdrop_fused_head=fused, **tiny.PURE_SGD,
                      rdrop_allow_deterministic=True)  # fmt: skip
        trainer.train()
        updates.append(tiny.update(before, tiny.weights(model)))
        assert ((1, 1, 40) in shapes) == fused
    assert updates[0].norm() > 0 and tiny.relative(updates[1], updates[0]) < 1e-6


def test_alpha_zero_and_evaluation_are_sft_trainers_bit_for_bit(tmp_path):
    runs = []
    for cls in (trl.SFTTrainer, RDropSFTTrainer):
        model = zoo.build("llama")
        trainer = sft(cls, model, texts(), tmp_path, rdrop_alpha=0.0, num_train_epochs=2, eval_dataset=texts(seed=1))
        trainer.train()
        timed = ("runtime", "per_second")
        metrics = {k: v for k, v in trainer.evaluate().items() if not k.endswith(timed)}
        logs = [entry["loss"] for entry in logs_of(trainer, "loss")]
        runs.append((tiny.weights(model), logs, metrics, trainer.predict(trainer.eval_dataset).predictions))
    assert tiny.identical(runs[0][0], runs[1][0])
    assert runs[0][1:3] == runs[1][1:3] and len(runs[0][1]) == 4 and "eval_mean_token_accuracy" in runs[0][2]
    assert (runs[0][3] == runs[1][3]).all()


def test_resumed_equals_uninterrupted(tmp_path):
    weights = []
    for resume in (False, True):
        arguments = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
        trainer = sft(RDropSFTTrainer, zoo.build("llama"), texts(), tmp_path, **arguments)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if resume else None)
        weights.append(tiny.weights(trainer.model))
    assert tiny.identical(*weights)


def test_a_loss_of_its_own_without_logits_is_refused(tmp_path):
    trainer = sft(RDropSFTTrainer, zoo.build("llama"), texts(), tmp_path, loss_type="dft")
    with pytest.raises(
        ValueError, match=r"compute_loss of RDropSFTTrainer returns .* and no logits beside it that have a gradient"
    ):
        trainer.train()


def test_compute_loss_func(tmp_path):
    def summed(outputs, labels, num_items_in_batch=None):
        return 2 * outputs.logits[:, :-1].logsumexp(-1)[labels[:, 1:] != -100].sum() / num_items_in_batch

    trainer = sft(RDropSFTTrainer, zoo.build("llama"), texts(), tmp_path, compute_loss_func=summed)
    trainer.train()
    for entry in logs_of(trainer):
        assert 5 < entry["task_loss"] < 10 and entry["divergence"] > 0
        assert entry["loss"] == pytest.approx(entry["task_loss"] + 2 * entry["divergence"], rel=1e-5)


@pytest.mark.parametrize("packed", [{"packing": True, "max_length": 64}, {"padding_free": True, "max_length": None}])
def test_packed_rows_are_refused_in_one_forward_and_right_in_two(packed, tmp_path):
    """Without noise, packed rows must have the loss of the same rows apart."""
    arguments = {"rdrop_allow_deterministic": True, "per_device_train_batch_size": 8}
    losses = []
    for changes in ({}, {"rdrop_forward_mode": "sequential"} | packed, {"rdrop_forward_mode": "recompute"} | packed):
        trainer = sft(RDropSFTTrainer, zoo.build("llama", 0.0), texts(), tmp_path, **arguments | changes)
        trainer.train()
        losses.append(logs_of(trainer)[0]["task_loss"])
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-6)
    trainer = sft(RDropSFTTrainer, zoo.build("llama"), texts(), tmp_path, **arguments | packed)
    with pytest.raises(ValueError, match='packed into .* rdrop_forward_mode="sequential"'):
        trainer.train()


@pytest.mark.parametrize("mode", MODES)
def test_lora_with_no_other_dropout(mode, tmp_path):
    config = pytest.importorskip("peft").LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.2)
    model = zoo.build("llama", 0.0)
    before = tiny.weights(model)
    trainer = sft(RDropSFTTrainer, model, texts(rows=16), tmp_path, peft_config=config, rdrop_forward_mode=mode,
                  learning_rate=0.05, label_smoothing_factor=0.1)  # fmt: skip
    trainer.train()
    divergence = [entry["divergence"] for entry in logs_of(trainer)]
    assert divergence[0] < 1e-12 and all(d > 1e-6 for d in divergence[2:])
    after = {k.replace("base_layer.", ""): v for k, v in tiny.weights(trainer.model.get_base_model()).items()}
    assert tiny.identical(before, {k: v for k, v in after.items() if "lora_" not in k})


def test_assistant_only_loss(tmp_path):
    turns = [[("user", row[:3]), ("assistant", row[3:])] for row in words()]
    data = [{"messages": [{"role": role, "content": " ".join(said)} for role, said in turn]} for turn in turns]
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}w9 {% generation %}{{ m['content'] }}"
        "{% endgeneration %}{% else %}w8 {{ m['content'] }} {% endif %}{% endfor %}"
    )
    trainer = sft(RDropSFTTrainer, zoo.build("llama"), Dataset.from_list(data), tmp_path, chat_template=template,
                  assistant_only_loss=True)  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    window = Objective.of(trainer.model, [batch]).window([batch])
    assert window.items[:, 1].tolist() == [(batch["labels"] != -100).sum()]
    assert (batch["labels"][:, :5] == -100).all() and (batch["labels"][:, 5] != -100).all()
    trainer.train()
    assert all(entry["divergence"] > 0 for entry in logs_of(trainer))


def test_a_router_loss_is_kept(tmp_path):
    sizes = {"vocab_size": 40, **zoo.DECODER, "num_key_value_heads": 2, "attention_dropout": 0.1, "bos_token_id": 2}
    model = MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=4, router_aux_loss_coef=0.5))
    trainer = sft(RDropSFTTrainer, model, texts(), tmp_path, rdrop_alpha=0.0, per_device_train_batch_size=4)
    batch = next(iter(trainer.get_train_dataloader()))
    set_seed(0)
    plain = trainer.compute_loss(model.train(), dict(batch)).item()
    trainer.args.rdrop_alpha, trainer.args.rdrop_forward_mode = 1e-9, "sequential"
    kept = []
    for seed in (0, 0):
        set_seed(seed)
        kept.append(trainer.compute_loss(model, dict(batch)).item())
    assert kept == pytest.approx([plain] * 2, rel=1e-3)  # of two passes, the second with other noise
    with torch.no_grad():
        model.config.output_router_logits = False
        without = model(**batch).loss.item()
    assert plain > without + 0.5


def test_the_card_of_trl_is_kept_and_extended(hub, tmp_path):
    hub.user("ada")
    hub.login("ada")
    trainer = sft(RDropSFTTrainer, zoo.build("llama"), texts(), tmp_path / "run", hub_model_id="ada/sft")
    trainer.train()
    trainer.push_to_hub()
    card = ModelCard(hub.files("ada/sft")["README.md"].decode())
    assert {"trl", "sft", "r-drop", "text-generation"} <= set(card.data.tags) and card.data.r_drop["alpha"] == 4.0
    assert "TRL" in card.text and card.text.count("## R-Drop") == 1
    assert not [name for name in hub.files("ada/sft") if name.endswith((".bin", ".pt"))]
