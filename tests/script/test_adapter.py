"""--use_peft: adapters over encoders and decoders, from the command line to a file of predictions."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    BitsAndBytesConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    set_seed,
)

from rdrop_trainer.hub import load_checkpoint
from rdrop_trainer.script import release
from support.runs import InProcess, fails, launched_by, results, run, words, write_csv

peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]
DECODERS = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "gemma": (GemmaConfig, GemmaForCausalLM),
}
WIDTH = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
LABELS = ("bad", "good", "mixed")
FILES = "--train_file a.csv --validation_file a.csv --use_peft --lora_r 4 --learning_rate 1e-2"


@pytest.fixture(scope="module")
def bases(model, tmp_path_factory):
    """Folders of tiny language models without dropout, padding token and classifier, as decoders come."""
    folder = tmp_path_factory.mktemp("bases")
    for name, (config, cls) in DECODERS.items():
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.eos_token, tokenizer.pad_token = tokenizer.sep_token, None
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        tokenizer.save_pretrained(folder / name)
        set_seed(0)
        tokens = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
        cls(config(vocab_size=len(tokenizer), num_key_value_heads=1, **WIDTH, **tokens)).save_pretrained(folder / name)
    return folder


@pytest.fixture
def here(here):
    write_csv(here / "a.csv", labels=LABELS)
    return here


def weights_of(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_gets_a_head_and_a_padding_token_that_come_back(name, bases, here, capsys):
    """Trained by the noise of the adapter alone; scored again and used from its folder, alone and in a batch."""
    assert run(bases / name, FILES, "--measure full --output_dir out") == 0
    said, found = capsys.readouterr().out, results("out")
    assert "noise     adapter dropout 0.05 (q_proj, v_proj)\n" in said
    assert found["adapter"]["base"] == str(bases / name) and "pipeline(" not in said
    assert found["adapter"]["trained"] == 2 * 2 * 4 * 16 + 2 * 4 * (16 + 8) + 3 * 16 < found["adapter"]["weights"]
    assert found["stability"]["dropout"]["num_samples"] == 8
    card = (here / "out" / "README.md").read_text()
    assert "| noise | adapter dropout 0.05 (q_proj, v_proj) |" in card and "transformers alone" not in card
    assert {path.name for path in (here / "out").glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert run("out", "--validation_file a.csv --test_file a.csv --do_eval --do_predict --output_dir again") == 0
    again = results("again")["metrics"]
    assert again["eval_loss"] == found["metrics"]["eval_loss"] and again["test_accuracy"] == again["eval_accuracy"]
    model, tokenizer, settings = load_checkpoint("out")
    assert model.config.id2label == dict(enumerate(LABELS)) and settings.rdrop_alpha == 4
    texts = ["a good film", "what a truly lovely day it was"]
    together = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    alone = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    torch.testing.assert_close(together, torch.stack(alone))


def test_an_interrupted_adapter_goes_on_bit_for_bit(bases, here, capsys):
    steps = "--save_strategy steps --save_steps 2 --max_steps 4 --do_train"
    assert run(bases / "qwen2", FILES, steps, "--output_dir whole") == 0
    resumed = "--resume_from_checkpoint whole/checkpoint-2 --output_dir"
    assert run(bases / "qwen2", FILES, steps, resumed, "resumed") == 0
    whole, again = weights_of(here / "whole"), weights_of(here / "resumed")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    for flags, message in {
        f"{FILES} --lora_r 8": "--lora_r 8: the adapter in --resume_from_checkpoint whole/checkpoint-2 has 4; give",
        f"{FILES} --lora_alpha 8": "--lora_alpha 8: the adapter in",
        f"{FILES} --lora_target_modules q_proj": "--lora_target_modules q_proj: the adapter in",
        f"{FILES} --use_peft False --dropout 0.1": "holds an adapter alone; add --use_peft",
    }.items():
        said = fails(capsys, "--model_name_or_path", bases / "qwen2", flags, steps, "--use_cpu True", resumed, "x")
        assert message in said
    (here / "whole/checkpoint-2/adapter_config.json").rename(here / "whole/checkpoint-2/model.safetensors.index.json")
    said = fails(capsys, "--model_name_or_path", bases / "qwen2", FILES, steps, "--use_cpu True", resumed, "x")
    assert "holds a whole model; leave out --use_peft" in said
    before = weights_of(here / "whole" / "checkpoint-2")
    assert any(not torch.equal(value, before[name]) for name, value in whole.items())


def test_random_weights_below_an_adapter_are_trained_and_saved(model, here):
    """Of a masked language model, the pooler is missing: another one would be drawn where the adapter is loaded."""
    masked = here / "masked"
    shutil.copytree(model, masked)
    BertForMaskedLM.from_pretrained(model).save_pretrained(masked)
    assert run(masked, FILES, "--output_dir out") == 0
    saved = weights_of(here / "out")
    assert {"base_model.model.bert.pooler.dense.weight", "base_model.model.classifier.weight"} <= saved.keys()
    assert run("out", "--validation_file a.csv --seed 7 --do_eval --output_dir again") == 0
    assert results("again")["metrics"]["eval_loss"] == results("out")["metrics"]["eval_loss"]


def test_an_adapter_of_a_language_model_is_scored_again(bases, here):
    (here / "a.txt").write_text("a good film\n" * 8)
    lines = "--task_type lm --validation_file a.txt"
    assert run(bases / "qwen2", lines, "--train_file a.txt --use_peft --output_dir out") == 0
    assert run("out", lines, "--do_eval --output_dir again") == 0
    assert results("again")["metrics"]["eval_loss"] == results("out")["metrics"]["eval_loss"]


def test_an_adapter_is_trained_on(model, here, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert run(model, FILES, "--output_dir out") == 0
    assert run("~/out", "--train_file a.csv --do_train --learning_rate 1e-2 --output_dir more") == 0
    first, second = weights_of(here / "out"), weights_of(here / "more")
    assert first.keys() == second.keys() and all(not torch.equal(first[name], second[name]) for name in first)
    assert results("more")["adapter"] == results("out")["adapter"]
    flags = "--train_file a.csv --do_train --use_cpu True --output_dir x --model_name_or_path"
    said = fails(capsys, flags, "out", "--use_peft --lora_r 8")
    assert "--lora_r 8: out is an adapter with 4 already" in said and str(model) in said
    assert "--lora_r 16: out is an adapter with 4" in fails(capsys, flags, "out", "--use_peft --lora_r 16")
    for names, shown in (("query key", "key query"), ("query", "query")):
        said = fails(capsys, flags, "out", "--use_peft --lora_target_modules", *names.split())
        assert f"--lora_target_modules {shown}: out is an adapter with query value already" in said
    write_csv(here / "a.csv", labels=("no", "yes"))
    assert "is an adapter for other labels; start from its base model" in fails(capsys, flags, "out")


def test_a_comparison_trains_adapters_and_an_arm_may_train_all_weights(bases, here, monkeypatch):
    launched_by(InProcess(), monkeypatch)
    arms = "--compare_baseline --seeds 1 --output_dir both --dropout 0.1 --arms plain rdrop full:use_peft=False"
    assert run(bases / "qwen2", FILES, arms) == 0
    noise = {arm: results(here / "both" / f"{arm}-seed1")["noise"] for arm in ("plain", "rdrop", "full")}
    adapter = "adapter dropout {} (q_proj, v_proj)"
    own = "dropout 0.1 (model.layers.*.self_attn.attention_dropout)"
    assert noise == {"plain": [adapter.format(0.05)], "rdrop": [own, adapter.format(0.1)], "full": [own]}
    assert (here / "both" / "full-seed1" / "model.safetensors").is_file()


def test_a_pushed_adapter_is_used_with_its_base(bases, here, ada):
    ada.repo("ada/base", {path.name: path.read_bytes() for path in (bases / "qwen2").iterdir()})
    push = words("--push_to_hub --hub_model_id", "ada/adapter")
    assert run("ada/base", FILES, "--output_dir out", *push) == 0
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(ada.files("ada/adapter"))
    assert json.loads(ada.files("ada/adapter")["adapter_config.json"])["base_model_name_or_path"] == "ada/base"
    assert load_checkpoint("ada/adapter").model.config.id2label == dict(enumerate(LABELS))
    shutil.move(here / "out", here / "gone")
    assert run("ada/adapter", "--validation_file a.csv --do_eval --output_dir again") == 0
    assert results("again")["metrics"]["eval_loss"] == results(here / "gone")["metrics"]["eval_loss"]


def test_what_no_adapter_can_do(bases, here, capsys):
    flags = ["--model_name_or_path", bases / "qwen2", "--use_cpu True --output_dir x", FILES]
    for flag in ("--lora_target_modules q_proj none_such", "--lora_modules_to_save none_such"):
        said = fails(capsys, *flags, flag)
        assert "none_such: Qwen2ForSequenceClassification has no module of this name" in said
    assert "cannot be adapted: " in fails(capsys, *flags, "--lora_target_modules none.*such")
    said = fails(capsys, *flags, "--lora_target_modules ((")
    assert "lora_target_modules must be names, all-linear or a regular expression, got '((': missing )" in said
    said = fails(capsys, *flags, "--lora_dropout 0")
    assert "Qwen2ForSequenceClassification has no active dropout" in said and "--lora_dropout 0.05 or --dropout" in said
    assert "; add --dropout 0.1, or" in fails(capsys, *flags, "--dropout 0")  # which --lora_dropout would not overrule
    said = fails(capsys, *flags, "--push_to_hub")
    assert f"the base model of the adapter is the folder {bases / 'qwen2'}, which others do not have" in said
    recipe = {"model_name_or_path": str(bases / "qwen2"), "train_file": "a.csv", "use_peft": True}
    (here / "lora.yaml").write_text(json.dumps(recipe | {"validation_file": "a.csv"}))
    assert release.main(["lora.yaml", "--namespace", "ada"]) == 2  # not after hours of training
    assert f"lora.yaml: --use_peft: others do not have {bases / 'qwen2'}" in capsys.readouterr().err
    plain = ["--model_name_or_path", bases / "qwen2", "--validation_file a.csv --train_file a.csv --output_dir x"]
    assert "is no adapter, and this run does not train one" in fails(capsys, *plain, "--use_peft --do_eval")


def test_a_base_that_is_stored_in_4_bits(bases, here, capsys):
    """Its own list of whole modules lacks the head, which is trained all the same, and comes back."""
    pytest.importorskip("bitsandbytes")
    base = here / "bits"
    shutil.copytree(bases / "qwen2", base)
    (base / "model.safetensors").unlink()
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["lm_head"])
    Qwen2ForCausalLM.from_pretrained(bases / "qwen2", quantization_config=bits).save_pretrained(base)
    said = fails(capsys, "--model_name_or_path", base, "--train_file a.csv --use_cpu True --output_dir x")
    assert "its weights are stored in few bits, which cannot be trained; add --use_peft" in said
    said = fails(
        capsys, "--model_name_or_path", base, FILES, "--use_cpu True --output_dir x --lora_modules_to_save k_proj"
    )
    assert "holds k_proj in few bits, and only whole weights can be trained" in said
    assert run(base, FILES, "--output_dir out") == 0
    card = (here / "out" / "README.md").read_text()
    assert "base_weights: 4 bits" in card and "BitsAndBytesConfig" not in card
    assert {p.dtype for p in load_checkpoint("out").model.parameters()} == {torch.float32, torch.uint8}
