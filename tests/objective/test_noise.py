"""Is there noise? The verdict on passes made for the purpose."""

import pytest
import torch
from huggingface_hub import ModelCard

from rdrop_trainer.objective.heads import SINGLE_LABEL
from rdrop_trainer.objective.noise import PATIENCE, NoiseWatch
from rdrop_trainer.objective.noise_of import noise_of
from rdrop_trainer.objective.training import Training
from rdrop_trainer.objective.window import StepSettings, Window
from support import tiny, zoo


def window():
    return Window.count(SINGLE_LABEL, [{"labels": torch.tensor([0])}])


def watch(logits, again=None, allowed=False, model=None, before=None):
    """The watch after one window; None where noise was seen."""
    model = model or tiny.bert(dropout=0.0)
    passes = logits.unflatten(0, (2, -1)) if len(logits) else logits
    again_in_passes = again and (lambda: again().unflatten(0, (2, -1)))
    before = before or NoiseWatch()
    settings = StepSettings(allow_deterministic=allowed)
    return before.compare(Training(model), settings, window(), passes, again_in_passes)


def patient(model, logits, **arguments):
    """The watch after as many windows as it has patience for, but one."""
    found = None
    for _ in range(PATIENCE - 1):
        found = watch(logits, model=model, before=found, **arguments)
    return found


def test_rounding_is_no_noise_when_the_same_forward_repeats_itself():
    """One forward may round a row differently at another place; run again, a model without noise repeats its bits."""
    row = torch.tensor([[1.0, -2.0, float("-inf")]])
    logits = torch.cat([row, row * (1 + 1e-6)])
    with pytest.raises(ValueError, match="identical on the first R-Drop step"):
        watch(logits, again=lambda: logits.clone())
    assert watch(logits, again=lambda: logits * (1 + 1e-6)) is None


def test_rounding_does_not_hide_that_dropout_never_reaches_the_predictions():
    logits, model = torch.tensor([[1.0, -2.0], [1.0 + 1e-6, -2.0]]), tiny.bert(dropout=0.1)
    alike = patient(model, logits, again=lambda: logits.clone())
    with pytest.raises(ValueError, match="still identical after 20 R-Drop steps"):
        watch(logits, again=lambda: logits.clone(), model=model, before=alike)


def test_micro_batches_of_one_window_count_once():
    passes, of_one, found = torch.ones(2, 1, 3), window(), NoiseWatch()
    for _ in range(PATIENCE + 1):
        found = found.compare(Training(tiny.bert()), StepSettings(), of_one, passes)
    assert found.windows_alike == 1


def test_all_processes_compute_again_or_none():
    """A sharded model runs on all of them at once: one whose passes are alike follows one that has doubts."""
    again = []
    row = torch.tensor([[1.0, -2.0]])
    passes = torch.stack([row, row])

    def run_again():
        again.append(1)
        return passes * 2

    class Others(Training):
        """Of two processes, with what the other one answers."""

        answer = 0.0

        def sum_over_processes(self, tensor):
            return tensor + self.answer * float(tensor.dim() == 0)

    training = Others(tiny.bert(dropout=0.0))
    NoiseWatch().compare(training, StepSettings(allow_deterministic=True), window(), passes, run_again)
    assert not again
    training.answer = 1.0
    NoiseWatch().compare(training, StepSettings(allow_deterministic=True), window(), passes, run_again)
    assert again == [1]
    # Its own passes are no rounding, even if they repeat their bits
    differing = torch.stack([row, row * 2])
    assert NoiseWatch().compare(training, StepSettings(), window(), differing, lambda: differing) is None


def test_passes_that_clearly_differ_are_noise_however_they_came_about():
    logits = torch.tensor([[1.0, 2.0], [1.1, 2.0]])
    assert watch(logits, again=lambda: logits.clone()) is None


def test_no_items_decide_nothing_and_nan_is_not_alike():
    assert watch(torch.empty(0, 3)) == NoiseWatch()
    assert watch(torch.full((2, 3), float("nan"))) is None


def test_only_settings_that_are_0_are_named():
    model = tiny.bert(dropout=0.0)
    model.config.classifier_dropout = 0.3  # since it was made
    with pytest.raises(
        ValueError, match=r"settings are 0: (hidden|attention_probs)_dropout_prob, (\w+)_dropout_prob\)"
    ):
        watch(torch.ones(2, 3), model=model)


def test_allowed_warns_once():
    assert watch(torch.ones(2, 3), allowed=True) is None


def test_layer_drop_may_drop_nothing_for_a_while():
    model = tiny.bert(dropout=0.0)
    model.config.layerdrop = 0.1
    alike = patient(model, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"although it has noise: LayerDrop 0.1 \(layerdrop\). That does not reach"):
        watch(torch.ones(2, 3), model=model, before=alike)


@pytest.mark.parametrize("mode", ["concat", "sequential", "recompute"])
def test_neftune_alone_is_noise_enough(mode, tmp_path):
    """Stock decoders have no dropout; the noise on their embeddings makes the passes differ from the first step on."""
    settings = {"rdrop_forward_mode": mode, "logging_steps": 1, "per_device_train_batch_size": 4}
    model = zoo.build("llama", 0.0)
    trainer = zoo.trainer("llama", model, zoo.dataset("llama", 8), tmp_path, neftune_noise_alpha=5.0, **settings)
    trainer.train()
    divergences = [entry["divergence"] for entry in trainer.state.log_history if "divergence" in entry]
    assert len(divergences) == 2 and min(divergences) > 1e-6
    assert noise_of(model) == [], "it is taken away when the training ends"
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data["r_drop"]["noise"] == "NEFTune alpha 5 (the input embeddings)"


def test_neftune_that_does_not_reach_the_predictions_is_named():
    """As where a batch brings its own embeddings."""
    model = zoo.build("llama", 0.0)
    model.get_input_embeddings().neftune_noise_alpha = 5.0
    alike = patient(model, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"although it has noise: NEFTune alpha 5 \(the input embeddings\)"):
        watch(torch.ones(2, 3), model=model, before=alike)


def test_sources_of_noise_are_named():
    model = tiny.bert(dropout=0.1, classifier_dropout=0.3, num_hidden_layers=2)
    model.config.layerdrop = 0.25
    model.config.drop_path_rate = 0.2
    model.config.apply_spec_augment, model.config.mask_time_prob = True, 0.05
    assert list(map(str, noise_of(model, neftune_alpha=5))) == [
        "dropout 0.1 (bert.embeddings.dropout, bert.encoder.layer.*.attention.self.dropout, "
        "bert.encoder.layer.*.attention.output.dropout and 1 more)",
        "dropout 0.3 (dropout)",
        "LayerDrop 0.25 (layerdrop)",
        "stochastic depth 0.2 (drop_path_rate)",
        "SpecAugment 0.05 (mask_time_prob)",
        "NEFTune alpha 5 (the input embeddings)",
    ]


def test_the_dropout_of_an_adapter_is_named_by_what_it_adapts():
    """The copy of the head that PEFT keeps, and does not run, is none of the sources."""
    peft = pytest.importorskip("peft")
    model = tiny.bert(dropout=0.1)
    settings = {"target_modules": ["query", "dense"], "modules_to_save": ["classifier", "bert.embeddings"]}
    adapted = peft.get_peft_model(model, peft.LoraConfig(lora_dropout=0.05, **settings))
    adapter, own = sorted(noise_of(adapted), key=lambda source: source.strength)
    assert str(adapter) == "adapter dropout 0.05 (query, dense)"
    assert own.kind == "dropout" and own.where == noise_of(tiny.bert(dropout=0.1))[0].where
