"""Running a model several times: what is repeated, what is not, and what is refused."""

import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_outputs import SequenceClassifierOutput

from rdrop_trainer import Objective, StepSettings
from rdrop_trainer.objective.passes import run_passes, without_ddp
from rdrop_trainer.objective.rows import repeat_rows
from rdrop_trainer.objective.snapshot import Snapshot
from support import tiny


def test_rows_are_repeated_batch_after_batch():
    ids = torch.arange(6).reshape(3, 2)
    repeated = repeat_rows({"input_ids": ids, "names": ["a", "b", "c"]}, 2, 3)
    assert repeated["input_ids"].tolist() == ids.tolist() * 2
    assert repeated["names"] == ["a", "b", "c"] * 2


def test_what_is_no_batch_entry_is_passed_on():
    positions = torch.arange(4)[None]  # (1, T): broadcasts over rows
    flags = {"use_cache": False, "scale": 2.0, "temperature": torch.tensor(3.0), "nothing": None}
    repeated = repeat_rows({"input_ids": torch.zeros(3, 4), "position_ids": positions, **flags}, 2, 3)
    assert repeated["position_ids"] is positions
    assert all(repeated[k] is v for k, v in flags.items())


def test_settings_and_axes_that_look_like_rows():
    """As many axes, or listed layers, as there are rows."""
    ids, positions = torch.zeros(3, 4), torch.arange(36).reshape(3, 3, 4)
    repeated = repeat_rows({"input_ids": ids, "position_ids": positions, "output_layers": [0, 1, 2]}, 2, 3)
    assert torch.equal(repeated["position_ids"], torch.cat([positions, positions], dim=1))
    assert repeated["output_layers"] == [0, 1, 2]


def test_nested_entries():
    hidden = torch.randn(3, 4, 5)
    repeated = repeat_rows({"encoder_outputs": (hidden,), "extra": OrderedDict(mask=torch.ones(3, 4))}, 3, 3)
    assert torch.equal(repeated["encoder_outputs"][0], torch.cat([hidden] * 3))
    assert repeated["extra"]["mask"].shape == (9, 4)


@pytest.mark.parametrize(
    "key, value",
    [
        ("pixel_values", torch.zeros(7, 3)),
        ("cu_seq_lens_q", torch.tensor([0, 2, 5])),
        ("max_length_q", 5),
        ("boxes", [[1], [2]]),
        ("spans", torch.zeros(2)),
        ("position_ids", torch.zeros(3, 2, 4)),
    ],
)
def test_layouts_that_cannot_be_repeated_name_sequential(key, value):
    with pytest.raises(ValueError, match=f'{key}.*rdrop_forward_mode="sequential"'):
        repeat_rows({"input_ids": torch.zeros(3, 4), key: value}, 2, 3)


@pytest.mark.parametrize("mode", ["concat", "sequential", "recompute"])
def test_outputs_of_a_pass_have_its_rows(mode):
    model = tiny.bert(dropout=0.3).train()
    batch = {"input_ids": torch.randint(5, 40, (3, 6)), "output_hidden_states": True}
    passes = run_passes(model, batch, 2, mode)
    assert [z.shape for z in passes["logits"]] == [(6, 4)] if mode == "concat" else [(3, 4)] * 2
    for k in range(2):
        output = passes.output(k)
        assert isinstance(output, SequenceClassifierOutput)
        assert torch.equal(output.logits, torch.cat(passes["logits"])[3 * k : 3 * k + 3])
        assert len(output.hidden_states) == 2 and all(h.shape[0] == 3 for h in output.hidden_states)
    assert not torch.equal(passes.output(0).logits, passes.output(1).logits)


def test_sequences_packed_into_one_row_are_known_by_their_positions():
    """Flash attention keeps them apart only while the batch is that single row."""
    packed = {"input_ids": torch.zeros(1, 5), "position_ids": torch.tensor([[0, 1, 2, 0, 1]])}
    with pytest.raises(ValueError, match='position_ids.*packed.*rdrop_forward_mode="sequential"'):
        repeat_rows(packed, 2, 1)
    single = {"input_ids": torch.zeros(1, 5), "position_ids": torch.tensor([[0, 1, 2, 3, 4]])}
    assert repeat_rows(single, 2, 1)["position_ids"].shape == (2, 5)
    padded = {**packed, "attention_mask": torch.tensor([[0, 0, 1, 1, 1]])}
    assert repeat_rows(padded, 2, 1)["position_ids"].shape == (2, 5)


class TupleModel(nn.Module):
    def forward(self, input_ids, labels=None):
        logits = input_ids.float()
        return (logits.mean(), logits) if labels is not None else (logits,)


def test_tuples_and_missing_outputs():
    ids = torch.arange(4).reshape(2, 2)
    plain = run_passes(TupleModel(), {"input_ids": ids}, 2, "concat")
    assert plain["logits"][0].shape == (4, 2)
    with_loss = run_passes(TupleModel(), {"input_ids": ids, "labels": torch.zeros(2)}, 2, "sequential")
    assert [z.shape for z in with_loss["logits"]] == [(2, 2), (2, 2)] and with_loss.loss() == 1.5
    for passes in (plain, with_loss):
        loss, logits = passes.first_output(torch.tensor(7.0))
        assert loss == 7 and torch.equal(logits, ids.float())
    with pytest.raises(ValueError, match="'scores'.*loss, logits"):
        with_loss["scores"]


def test_recompute_keeps_no_activations_of_the_first_pass():
    """The tensors saved for the backward: recompute saves one pass, sequential two."""

    def saved(mode):
        model = tiny.bert(dropout=0.1).train()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            logits = run_passes(model, {"input_ids": torch.randint(5, 40, (4, 8))}, 3, mode)["logits"]
        assert all(z.requires_grad for z in logits)
        return sum(sizes)

    one = saved("sequential") / 3
    assert saved("recompute") < 1.1 * one


class OtherNoise(nn.Module):
    """Noise that is not torch's, and buffers that move in a forward."""

    def __init__(self, hidden_counter=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm, self.out = nn.Embedding(40, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.register_buffer("bank", torch.zeros(8))
        self.dropout, self.calls, self.hidden_counter = nn.Dropout(0.1), 0, hidden_counter

    def forward(self, input_ids, labels=None):
        self.calls += 1
        hidden = self.norm(self.dropout(self.embed(input_ids).mean(1)))
        hidden = hidden * torch.tensor(np.random.uniform(0.5, 1.5, 8), dtype=hidden.dtype)  # SpecAugment's generator
        hidden = hidden + (random.random() < 0.5) + self.bank  # word dropout's
        self.bank = 0.9 * self.bank + 0.1 * hidden.detach().mean(0)
        logits = self.out(hidden + (self.calls if self.hidden_counter else 0))
        return {"logits": logits, "loss": nn.functional.cross_entropy(logits, labels)}


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("mode", ["concat", "sequential", "recompute"])
def test_one_pass_goes_through_the_wrapper_of_a_compiled_model(mode, one_process):
    """accelerate compiles the model together with `DistributedDataParallel`."""
    model, seen = tiny.bert(), []
    wrapper = DistributedDataParallel(model)
    wrapper.register_forward_pre_hook(lambda *args: seen.append("wrapper"))
    model.register_forward_pre_hook(lambda *args: seen.append("model"))
    compiled = torch.compile(wrapper, backend="eager")
    assert type(without_ddp(compiled)) is type(compiled) and without_ddp(compiled)._orig_mod is model
    with torch.compiler.set_stance("force_eager"):
        passes = run_passes(compiled, {"input_ids": torch.full((2, 5), 7)}, 3, mode)
        sum(logits.sum() for logits in passes["logits"]).backward()
    forwards = {"concat": 1, "sequential": 3, "recompute": 5}[mode]
    assert seen.count("wrapper") == 1 and seen.count("model") == forwards


def test_recomputed_passes_repeat_all_noise_and_move_buffers_once():
    """As two passes by hand do; probing forwards, too, leave no trace."""
    batch = {"input_ids": torch.arange(20).reshape(4, 5), "labels": torch.tensor([0, 1, 2, 0])}
    found = []
    for mode in ("by hand", "sequential", "recompute"):
        model = OtherNoise().train()
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        if mode == "by hand":
            outputs = [model(**batch) for _ in range(2)]
            (sum(output["loss"] for output in outputs) / 2).backward()
        else:
            objective = Objective.of(model, [batch])
            terms, _ = objective(model, batch, objective.window([batch]), StepSettings(alpha=0.0, forward_mode=mode))
            terms.loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        moved = torch.cat([buffer.flatten().float() for buffer in model.buffers()])
        found.append((gradient, moved, random.random(), np.random.rand(), torch.rand(())))
    for other in found[1:]:
        for got, wanted in zip(other, found[0], strict=True):
            assert torch.allclose(torch.as_tensor(got), torch.as_tensor(wanted), rtol=1e-6)


@pytest.mark.parametrize("whole", [False, True])
def test_state_that_cannot_be_put_back_is_refused(whole):
    batch = {"input_ids": torch.arange(20).reshape(4, 5), "labels": torch.tensor([0, 1, 2, 0])}
    model = tiny.in_one_memory(OtherNoise(hidden_counter=True).train())
    objective = Objective.of(model, [batch])
    with pytest.raises(ValueError, match='OtherNoise makes other predictions.*Use "concat" or "sequential"'):
        objective(model, batch, objective.window([batch]), StepSettings(forward_mode="recompute"), whole=whole)
    objective(model, batch, objective.window([batch]), StepSettings(forward_mode="sequential"))


def test_rounding_is_no_other_prediction():
    """As of sums that a device adds up in any order, beside the largest logit."""

    class Rounding(OtherNoise):
        def forward(self, input_ids, labels=None):
            outputs = super().forward(input_ids, labels)
            return {**outputs, "logits": outputs["logits"] * torch.tensor([30.0, 30.0, 0.0]) + 1e-3 * self.calls}

    batch = {"input_ids": torch.arange(20).reshape(4, 5), "labels": torch.tensor([0, 1, 2, 0])}
    objective = Objective.of(model := Rounding().train(), [batch])
    settings = StepSettings(forward_mode="recompute")
    terms, _ = objective(model, batch, objective.window([batch]), settings)
    assert terms.divergence > 0 and objective.plan.repeats


def test_only_buffers_that_may_move_are_copied():
    module = nn.Module()
    module.register_buffer("expanded", torch.ones(1).expand(4))
    module.register_buffer("quantised", torch.ones(5000, dtype=torch.int32))
    module.register_buffer("counter", torch.zeros(1, dtype=torch.long))
    module.register_buffer("mean", torch.zeros(3))
    before = Snapshot(module, torch.device("cpu"))
    module.counter += 1
    module.mean = module.mean + 1
    before.restore()
    assert module.counter == 0 and not module.mean.any()
    assert len(before._buffers) == 2
