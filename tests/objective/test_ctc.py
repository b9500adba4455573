"""Speech recognition by CTC: frames are compared, transcripts are of rows. The zoo has the rest of the invariants."""

import pytest
import torch
import transformers
from packaging.version import Version

from rdrop_trainer import Objective, StepSettings, rdrop_ctc_loss
from rdrop_trainer.objective.ctc import CTCHead
from rdrop_trainer.objective.task_loss import StockLoss
from rdrop_trainer.objective.window import Window
from support import formulas, tiny, zoo

BLANK = 3
# A character twice, an empty transcript, padding by -100 and by the blank, and a row of too few frames
LABELS = torch.tensor([[1, 1, 2, -100], [-100, -100, -100, -100], [4, BLANK, BLANK, BLANK], [1, 2, 4, 5]])
LENGTHS = torch.tensor([7, 5, 6, 3])
TRANSCRIPTS = [[1, 1, 2], [], [4]]


@pytest.mark.parametrize("num_passes", [2, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_and_gradient_are_those_of_the_definition(reduction, num_passes):
    g = torch.Generator().manual_seed(0)
    z = [torch.randn(4, 7, 6, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(num_passes)]
    # The last row has no way through: its loss counts as 0, and its frames are compared all the same
    expected = formulas.rdrop_ctc([x[:3] for x in z], TRANSCRIPTS, LENGTHS[:3], 0.0, BLANK, reduction == "mean")[1]
    if reduction == "mean":
        expected = expected * 3 / 4
    frames = [torch.cat([x[i, :n] for i, n in enumerate(LENGTHS)]) for x in z]
    count = None if reduction == "mean" else 1
    expected = expected + formulas.rdrop(frames, [-100] * 21, 0.0, num_divergence_items=count)[2] * 3.0 / 2
    gradients = torch.stack(torch.autograd.grad(expected, z))

    settings = {"num_passes": num_passes, "blank": BLANK, "reduction": reduction, "zero_infinity": True, "alpha": 3.0}
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        together = torch.cat(z).detach().to(dtype).requires_grad_()
        terms = rdrop_ctc_loss(together, LABELS, LENGTHS, **settings)
        terms.loss.backward()
        assert terms.loss.item() == pytest.approx(expected.item(), rel=tolerance) and terms.loss.dtype == dtype
        assert formulas.relative(together.grad.unflatten(0, (num_passes, 4)), gradients) < 10 * tolerance
        assert not together.grad.unflatten(0, (num_passes, 4))[:, 1, 5:].any()  # behind the valid frames
        apart = rdrop_ctc_loss(tuple(x.detach().to(dtype) for x in z), LABELS, LENGTHS, **settings)
        assert apart.loss.item() == pytest.approx(terms.loss.item(), rel=1e-6)


def test_half_precision_logits_have_the_loss_of_their_values():
    logits = torch.randn(8, 7, 6, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    settings = {"blank": BLANK, "zero_infinity": True, "alpha": 3.0}
    loss = rdrop_ctc_loss(logits, LABELS, LENGTHS, **settings).loss
    assert loss.dtype == torch.float32 and loss == rdrop_ctc_loss(logits.float(), LABELS, LENGTHS, **settings).loss
    loss.backward()
    assert logits.grad.dtype == torch.bfloat16 and logits.grad.isfinite().all()


def test_without_transcripts_the_frames_are_compared_all_the_same():
    logits = torch.randn(8, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    settings = {"blank": BLANK, "zero_infinity": True, "alpha": 3.0}
    divergence = rdrop_ctc_loss(logits, LABELS, LENGTHS, **settings).divergence
    assert rdrop_ctc_loss(logits, None, LENGTHS, **settings) == (1.5 * divergence, 0, divergence)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"logits": torch.zeros(6, 7, 6)}, "num_passes \\* B, T, C"),
        ({"logits": torch.zeros(8, 7)}, "num_passes \\* B, T, C.* got \\(8, 7\\)"),
        ({"logits": [torch.zeros(4, 7, 6)] * 3}, "or 2 of \\(B, T, C\\)"),
        ({"logits": [torch.zeros(4, 7, 6), torch.zeros(4, 7, 5)]}, "got \\(4, 7, 6\\), \\(4, 7, 5\\)"),
        ({"lengths": LENGTHS[:, None]}, "lengths \\(B,\\).* and \\(4, 1\\)"),
        ({"lengths": torch.tensor(7)}, "lengths \\(B,\\).* and \\(\\)"),
        ({"labels": torch.zeros(4)}, "integers of shape \\(B, U\\)"),
        ({"labels": torch.zeros(4, dtype=torch.long)}, "integers of shape \\(B, U\\)"),
        ({"labels": torch.zeros(4, 2)}, "got torch.float32 of \\(4, 2\\)"),
        ({"labels": LABELS[:3]}, "for 4 rows, got torch.int64 of \\(3, 4\\)"),
        ({"reduction": "none"}, "reduction='none' is unknown"),
    ],
)
def test_arguments_that_do_not_fit(changes, message):
    arguments = {"logits": torch.zeros(8, 7, 6), "labels": LABELS, "lengths": LENGTHS, "alpha": 1.0, **changes}
    with pytest.raises(ValueError, match=message):
        rdrop_ctc_loss(**arguments)


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 8}
CONVOLUTIONS = {"conv_dim": (8, 8), "conv_stride": (4, 4), "conv_kernel": (8, 4), "num_feat_extract_layers": 2}
CONVOLUTIONS |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "layerdrop": 0.0}
# Frames of 400, 320 and 250 samples, or of 100, 80 and 60 columns of a spectrogram, by the definition of each encoder
WAVE = {name: [zoo.speech_frames(n) for n in (400, 320, 250)] for name in (
    "HubertForCTC", "WavLMForCTC", "Wav2Vec2ForCTC", "Wav2Vec2ConformerForCTC", "SEWForCTC", "SEWDForCTC",
    "UniSpeechForCTC", "UniSpeechSatForCTC", "Data2VecAudioForCTC",
)}  # fmt: skip
COLUMNS = {
    "Wav2Vec2BertForCTC": [100, 80, 60], "ParakeetForCTC": [13, 10, 8], "LasrForCTC": [22, 17, 12],
    "GraniteSpeech5ForCTC": [25, 20, 15],
}  # fmt: skip
# Before transformers 5.21, their own loss knows padding by the blank alone
PADDED_BY_BLANK = {"ParakeetForCTC", "LasrForCTC", "GraniteSpeech5ForCTC"}
PADDED_BY_BLANK = PADDED_BY_BLANK if Version(transformers.__version__) < Version("5.21") else set()


def build(name, **changes):
    cls, sizes = getattr(transformers, name), dict(SIZES)
    if name in WAVE:
        sizes |= CONVOLUTIONS
    elif name == "Wav2Vec2BertForCTC":
        sizes |= {"feature_projection_input_dim": 16, "layerdrop": 0.0, "conv_depthwise_kernel_size": 3}
    else:
        encoder = {**sizes, "num_mel_bins": 16, "subsampling_conv_channels": 4, "dropout": 0.2}
        if name == "GraniteSpeech5ForCTC":
            encoder |= {"num_mel_bins": 4, "context_size": 20, "max_position_embeddings": 32, "attention_dropout": 0.2}
        sizes = {"vocab_size": sizes["vocab_size"], "pad_token_id": 0, "encoder_config": encoder}
    if name == "Data2VecAudioForCTC":
        sizes |= {"conv_pos_kernel_size": 3, "num_conv_pos_embeddings": 2}
    transformers.set_seed(0)
    return cls(cls.config_class(**sizes, **changes)).train()


def batch_of(name):
    g = torch.Generator().manual_seed(0)
    key, shape, lengths = (
        ("input_values", (3, 400), (400, 320, 250)) if name in WAVE else ("input_features", (3, 100, 16), (100, 80, 60))
    )
    attended = torch.arange(lengths[0]) < torch.tensor(lengths)[:, None]
    labels = torch.randint(1, 8, (3, 5), generator=g)
    labels[1, 3:] = 0 if name in PADDED_BY_BLANK else -100
    return {key: torch.randn(*shape, generator=g), "attention_mask": attended.long(), "labels": labels}


@pytest.mark.parametrize("name", [*WAVE, *COLUMNS])
def test_every_family_has_the_loss_of_its_valid_frames(name):
    """With the reduction that its configuration has by default; the model's own loss is seen to be the same."""
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    model, batch = build(name), batch_of(name)
    objective = Objective.of(model, [batch])
    terms, passes = objective(model, batch, objective.window([batch]), StepSettings(alpha=3.0))
    with torch.no_grad():
        expected = formulas.rdrop_ctc(
            passes["logits"][0].split(3),
            [[label for label in row if label > 0] for row in batch["labels"].tolist()],
            {**WAVE, **COLUMNS}[name],
            3.0,
            mean=model.config.ctc_loss_reduction == "mean",
        )
    assert expected[2] > 0
    for got, wanted in zip(terms, expected, strict=True):
        assert got.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert isinstance(objective.plan.task_loss, StockLoss) and objective.plan.task_loss.comparison.batches == 1


def test_sums_add_up_over_micro_batches_and_processes(tmp_path):
    """`ctc_loss_reduction="sum"`: of task loss and divergence, over all rows and frames of the optimizer step."""
    gradients = []
    for size in (2, 7):
        model = zoo.noisy("ctc")
        model.config.ctc_loss_reduction = "sum"
        gradients.append(zoo.gradient(model, zoo.batches("ctc", rows=7, size=size)))
    mean = zoo.gradient(zoo.noisy("ctc"), zoo.batches("ctc", rows=7, size=7))
    assert tiny.relative(*gradients) < 1e-5 and tiny.relative(gradients[0], mean) > 1
    window = Window.count(
        CTCHead.of(model), zoo.batches("ctc", rows=7), processes=2, sum_over_processes=lambda n: 2 * n
    )
    # The gradients of two processes are averaged, also those of a loss that is kept as it is
    assert window.divisors == [(0.5, 0.5)] and window.share(zoo.batch("ctc")) == 2

    runs = []  # `Trainer` adds them up too
    for plain in (True, False):
        model = zoo.build("ctc", dropout=0.0)
        model.config.ctc_loss_reduction = "sum"
        settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "rdrop_alpha": 0.0}
        runs.append(zoo.sgd_update("ctc", model, tmp_path, rows=6, plain=plain, **{**settings, "learning_rate": 1e-3}))
    assert tiny.relative(*runs) < 1e-4


@pytest.mark.parametrize("mode", ["concat", "sequential", "recompute"])
def test_masked_time_is_noise_of_its_own_in_every_pass(mode):
    """SpecAugment without any dropout."""
    dropout = dict.fromkeys(zoo.WAV2VEC2_DROPOUT, 0.0)
    model = build("Wav2Vec2ForCTC", **dropout, mask_time_prob=0.5, mask_time_length=4)
    batch = batch_of("Wav2Vec2ForCTC")
    del batch["attention_mask"]  # all frames count, as in the model's own loss
    objective = Objective.of(model, [batch])
    assert objective.window([batch]).items[:, 1].tolist() == [3 * zoo.speech_frames(400)]
    terms, _ = objective(model, batch, objective.window([batch]), StepSettings(forward_mode=mode))
    assert terms.divergence > 0 and objective.plan.noise is None


def test_refusals(tmp_path):
    data = zoo.dataset("ctc")
    with pytest.raises(ValueError, match="label_smoothing_factor=0.1 does not fit speech recognition by CTC"):
        zoo.trainer("ctc", zoo.build("ctc"), data, tmp_path, label_smoothing_factor=0.1).train()
    with pytest.raises(ValueError, match="a row of -100 alone is an empty transcript"):
        zoo.trainer("ctc", zoo.build("ctc"), data, tmp_path, unlabeled_dataset=data).train()
    data[3] = {**data[3], "labels": torch.tensor([1, 8, -100, -100, -100])}
    with pytest.raises(ValueError, match="A label is 8, but Wav2Vec2ForCTC knows 8 classes"):
        zoo.trainer("ctc", zoo.build("ctc"), data, tmp_path, per_device_train_batch_size=11).train()
    model = zoo.build("ctc")
    model.config.ctc_loss_reduction = "none"
    with pytest.raises(ValueError, match="ctc_loss_reduction must be one of mean, sum, got 'none'"):
        Objective.of(model, [zoo.batch("ctc")])
