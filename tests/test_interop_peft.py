"""PEFT adapters: what counts, what is trained, and noise that comes from the adapter alone."""

import json
import logging

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, set_seed

from rdrop_trainer.dropout import active_dropout, set_dropout
from rdrop_trainer.objective import Objective, plan
from support import formulas, tiny, zoo

peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]
VIRTUAL = 4  # tokens of a soft prompt
MODES = ("concat", "sequential", "recompute")
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2}
# B is not zero from the start, so that the adapter shows in the loss
SHOWN = LORA | {"lora_dropout": 0.0, "init_lora_weights": False}
CASES = {
    "lora": ("llama", lambda: peft.LoraConfig(task_type="CAUSAL_LM", **SHOWN)),
    "lora_on_the_head": ("qwen2", lambda: lora("CAUSAL_LM", target_modules=["q_proj", "lm_head"], **SHOWN)),
    "head_trained_whole": ("llama", lambda: lora("CAUSAL_LM", modules_to_save=["lm_head"], **SHOWN)),
    "prompt": ("llama", lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL)),
    "prefix": ("llama", lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL)),
    "seq2seq": ("t5", lambda: peft.LoraConfig(task_type="SEQ_2_SEQ_LM", **SHOWN)),
    "rows": ("single_label", lambda: peft.LoraConfig(task_type="SEQ_CLS", **SHOWN)),
}


def lora(task_type, **settings):
    return peft.LoraConfig(task_type=task_type, **settings)


def noisy(case, num_passes=2):
    """The adapted model in float64, without dropout, with noise that is fixed by the pass."""
    name, config = CASES[case]
    model = zoo.noisy(name, num_passes)
    set_seed(1)
    return peft.get_peft_model(model, config()).double()


def data_of(case, rows=11):
    return zoo.dataset(CASES[case][0], rows)


def predicted(case, logits, labels):
    """By the definition: the logits and labels of the items of one pass."""
    if case == "rows":
        return logits, labels
    if case == "prompt":  # the last virtual token predicts the first of the text
        logits = logits[:, VIRTUAL - 1 : -1]
    elif case != "seq2seq":
        logits, labels = logits[:, :-1], labels[:, 1:]
    return logits[labels != -100], labels[labels != -100]


@pytest.mark.parametrize("case", CASES)
def test_loss_equals_the_definition(case, tmp_path):
    model = noisy(case).train()
    trainer = zoo.trainer(
        CASES[case][0], model, data_of(case), tmp_path, rdrop_alpha=3.0, rdrop_allow_deterministic=True
    )
    batch = dict(next(iter(trainer.get_train_dataloader())))
    labels = batch["labels"]
    loss = trainer.compute_loss(model, batch)
    with torch.no_grad():
        together = model(**{k: torch.cat([v, v]) for k, v in batch.items()}).logits
    passes = [predicted(case, z, labels) for z in together.chunk(2)]
    expected, _, divergence = formulas.rdrop([z for z, _ in passes], passes[0][1].tolist(), 3.0)
    assert divergence > 0 and loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert Objective.of(model, [batch]).window([batch]).task_items.tolist() == [len(passes[0][1])]


@pytest.mark.parametrize("alpha", [0.0, 4.0])
@pytest.mark.parametrize("case", CASES)
def test_accumulation_equals_one_large_batch(case, alpha, tmp_path):
    updates = []
    for rows, steps in ((2, 4), (8, 1)):
        model = noisy(case, 2 if alpha else 1)
        before = tiny.weights(model)
        trainer = zoo.trainer(
            CASES[case][0], model, data_of(case), tmp_path, rdrop_alpha=alpha, rdrop_allow_deterministic=True,
            per_device_train_batch_size=rows, gradient_accumulation_steps=steps, **tiny.PURE_SGD,
        )  # fmt: skip
        trainer.train()
        updates.append(tiny.update(before, tiny.weights(model)))
    assert updates[0].norm() > 0 and tiny.relative(*updates) < 1e-5


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_dropout_of_the_adapter_alone_is_noise_enough(mode, checkpointing, tmp_path):
    """LoRA begins with B = 0: its first passes are alike, and training must not stop for that."""
    model = peft.get_peft_model(zoo.build("llama", 0.0), lora("CAUSAL_LM", **LORA))
    before = tiny.weights(model)
    trainer = zoo.trainer(
        "llama", model, zoo.dataset("llama", 16), tmp_path, rdrop_forward_mode=mode, learning_rate=0.05,
        logging_steps=1, per_device_train_batch_size=4, gradient_checkpointing=checkpointing,
    )  # fmt: skip
    trainer.train()
    divergence = [entry["divergence"] for entry in trainer.state.log_history if "divergence" in entry]
    assert divergence[0] < 1e-12 and all(d > 1e-6 for d in divergence[2:])
    changed = {k for k, v in tiny.weights(model).items() if not torch.equal(v, before[k])}
    assert changed and all("lora_" in k for k in changed)


@pytest.mark.parametrize("case, fuses", [("lora", True), ("prompt", True), ("seq2seq", True), ("prefix", True),
                                         ("lora_on_the_head", False), ("head_trained_whole", False)])  # fmt: skip
@pytest.mark.parametrize("mode", ["concat", "sequential"])
def test_a_fused_output_head(case, fuses, mode, tmp_path, caplog):
    """Frozen or tied it is fused; with an adapter of its own it is not, and one warning says so."""
    logging.getLogger("transformers").propagate = True
    plan.logger.warning_once.cache_clear()
    updates = []
    for fused in (False, True):
        model = noisy(case)
        for module in model.modules():
            if isinstance(module, tiny.PassNoise):
                module.concat = mode == "concat"
        shapes = zoo.logits_seen(model)
        before = tiny.weights(model)
        trainer = zoo.trainer(
            CASES[case][0], model, data_of(case), tmp_path, rdrop_fused_head=fused, rdrop_forward_mode=mode,
            rdrop_allow_deterministic=True, per_device_train_batch_size=4, **tiny.PURE_SGD,
        )  # fmt: skip
        trainer.train()
        updates.append(tiny.update(before, tiny.weights(model)))
        assert any(shape[:2] != (1, 1) for shape in shapes) != (fused and fuses)
    assert updates[0].norm() > 0 and tiny.relative(*updates) < 1e-6
    warned = [record.message for record in caplog.records if "is not fused" in record.message]
    assert len(warned) == (not fuses) and all("no plain Linear" in message for message in warned)


ADAPTERS = {
    "lora": ("LoraConfig", "lora_dropout", {"r": 4}),
    "dora": ("LoraConfig", "lora_dropout", {"r": 4, "use_dora": True}),
    "vera": ("VeraConfig", "vera_dropout", {"r": 4}),
    "delora": ("DeloraConfig", "module_dropout", {"r": 4}),
    "boft": ("BOFTConfig", "boft_dropout", {"boft_block_size": 4}),
    "loha": ("LoHaConfig", "rank_dropout", {"r": 4}),
}


@pytest.mark.parametrize("first", [0.0, 0.1])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_dropout_of_an_adapter_is_stored_with_it(kind, first, tmp_path, monkeypatch):
    """What was 0 is trained at the new value, and the adapter that is loaded again has it, head and body included."""
    config, entry, settings = ADAPTERS[kind]
    said = []
    monkeypatch.setattr("rdrop_trainer.dropout.logger.warning_once", said.append)
    config = getattr(peft, config)(task_type="SEQ_CLS", target_modules=["query"], **settings, **{entry: first})
    model = peft.get_peft_model(tiny.bert(dropout=0.1), config)
    set_dropout(model, 0.3)
    assert getattr(model.peft_config["default"], entry) == 0.3 and model.config.hidden_dropout_prob == 0.3
    found = {str(place) for place in active_dropout(model)}
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny.bert(dropout=0.3), tmp_path, is_trainable=True)
    loaded = {str(place) for place in active_dropout(again)}
    if kind == "boft" and not first:  # its own kind of dropout is not there to be set, which is said
        assert len(loaded) > len(found) and len(said) == 1 and "boft_dropout.default (Identity)" in said[0]
    else:
        assert loaded == found and all(place.endswith("(p=0.3)") for place in found) and not said


def test_the_dropout_of_adapters_that_transformers_adds(tmp_path):
    model = tiny.bert(dropout=0.1)
    model.add_adapter(peft.LoraConfig(target_modules=["query"], lora_dropout=0.0), "a")
    model.add_adapter(peft.LoraConfig(target_modules=["value"], lora_dropout=0.2), "b")
    set_dropout(model, 0.3)
    assert {config.lora_dropout for config in model.peft_config.values()} == {0.3}
    found = active_dropout(model)
    assert {place.p for place in found} == {0.3} and sum("lora_dropout" in place.name for place in found) == 2


def test_lora_on_parameters_takes_no_dropout():
    inner = zoo.build("llama", 0.0)
    names = ["layers.0.mlp.up_proj.weight"]
    model = peft.get_peft_model(inner, lora("CAUSAL_LM", target_modules=["q_proj"], target_parameters=names))
    with pytest.raises(ValueError, match="take no dropout: set the model's dropout before"):
        set_dropout(model, 0.3)
    assert active_dropout(model) == [] and model.peft_config["default"].lora_dropout == 0.0


def test_the_trainer_stores_the_dropout_of_an_adapter(tmp_path):
    model = peft.get_peft_model(zoo.build("llama", 0.0), lora("CAUSAL_LM", **LORA | {"lora_dropout": 0.0}))
    trainer = zoo.trainer("llama", model, zoo.dataset("llama", 8), tmp_path, rdrop_dropout=0.3, max_steps=1)
    trainer.train()
    trainer.save_model()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_dropout"] == 0.3


def test_an_adapter_is_pushed_and_loaded(hub, tmp_path):
    """Only the adapter is sent; it is loaded over the base model, which is on the Hub too."""
    from rdrop_trainer.hub import load_checkpoint

    hub.user("ada")
    hub.login("ada")
    base = tmp_path / "base"
    tiny.bert().save_pretrained(base)
    hub.repo("ada/base", {path.name: path.read_bytes() for path in base.iterdir()})
    model = peft.get_peft_model(AutoModelForSequenceClassification.from_pretrained("ada/base"), lora("SEQ_CLS", **LORA))
    trainer = zoo.trainer("single_label", model, tiny.dataset(), tmp_path / "run", hub_model_id="ada/adapter")
    trainer.train()
    trainer.push_to_hub()
    weights = {name for name in hub.files("ada/adapter") if name.endswith((".safetensors", ".bin", ".pt"))}
    assert weights == {"adapter_model.safetensors"}
    card = ModelCard(hub.files("ada/adapter")["README.md"].decode())
    assert card.data.base_model == "ada/base" and {"r-drop", "lora"} <= set(card.data.tags)
    loaded = load_checkpoint("ada/adapter")
    assert loaded.settings.rdrop_alpha == 4.0
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    expected = trainer.model.eval().cpu()(**batch).logits
    assert torch.equal(loaded.model(**batch).logits, expected)
