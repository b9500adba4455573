"""Trainings on a GPU, in the precisions users train in. Where there is none, the same tests run on the CPU, or, with
RDROP_TEST_DEVICE=simulated, on a device in software that refuses and waits as a GPU does.

A group (`pytest -m gpu`): one training per head, forward mode and precision, which several tests look at.
"""

import json
import logging
import math
import warnings
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from rdrop_trainer.objective import plan
from rdrop_trainer.objective.loss_comparison import LossComparison
from support import device, runs, simulated, tiny, zoo
from support.resumed import whole_cut_and_resumed

pytestmark = pytest.mark.gpu

SIMULATED = device.NAME == "simulated"
GPU = torch.cuda.is_available() and not SIMULATED
not_simulated = pytest.mark.skipif(SIMULATED, reason="tensors of the simulated device cannot be saved")
MODES = ("concat", "sequential", "recompute")
not_fp16 = pytest.mark.skipif(not (GPU or SIMULATED), reason="fp16 needs a GPU")
PRECISIONS = ("float32", "bf16", pytest.param("fp16", marks=not_fp16))
# By how much a result of this precision may differ, relative
ROUNDING = {"float32": 2e-5, "bf16": 4e-3, "fp16": 1e-3}
LANGUAGE_MODELS = ("masked_lm", "gpt2", "llama", "qwen2", "t5", "bart", "marian", "mbart")
TRAININGS = {name: (name, "plain") for name in zoo.CASES}
TRAININGS |= {f"{name}, fused": (name, "fused") for name in LANGUAGE_MODELS}
TRAININGS |= {f"{name}, unlabeled rows": (name, "unlabeled") for name in ("single_label", "token", "vit")}
TRAININGS |= {f"{name}, LoRA": (name, "lora") for name in ("single_label", "llama", "t5")}
STEPS = LossComparison.ENOUGH + 2  # the checks of the first batches are over then


@pytest.fixture(scope="module", autouse=True)
def deterministic():
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def precision_of(precision):
    return {"use_cpu": not (GPU or SIMULATED), "bf16": precision == "bf16", "fp16": precision == "fp16"}


@dataclass
class Watched:
    """What a training does behind its first steps.

    Attributes:
        inputs: of the last micro-batch.
        passes: the logits of each forward over it, in float64, on the CPU.
        forwards: how many there were, or had begun: recomputing ends where all is there again.
        waits: where something other than the model waited for the device.
        warned: what the package warned of.
        logs: the training logs that hold the terms of R-Drop.
    """

    inputs: dict = None
    passes: list = field(default_factory=list)
    forwards: int = 0
    waits: list = field(default_factory=list)
    warned: list = field(default_factory=list)
    logs: list = field(default_factory=list)


def watch(trainer, fused):
    """Train, and see what happens in the last training steps."""
    seen, model, hidden = Watched(), trainer.model, []
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = ("start_logits", "end_logits") if hasattr(base, "qa_outputs") else ("logits",)
    step = trainer.training_step

    def is_late():
        return trainer.state.global_step >= STEPS - 2

    def waiting(mode):
        if GPU:
            torch.cuda.set_sync_debug_mode(mode)
        elif SIMULATED:
            simulated.watch(mode == "warn")

    def before(*_):
        seen.forwards += 1
        waiting("default")  # what the model itself waits for is its own

    def after(module, inputs, outputs):
        if is_late():
            seen.passes.append(logits_of(hidden.pop()) if fused else {k: exact(outputs[k]) for k in names})
            waiting("warn")

    def logits_of(states):
        head = base.get_output_embeddings()
        bias = None if head.bias is None else exact(head.bias)
        return {"logits": nn.functional.linear(states, exact(head.weight), bias)}

    def training_step(model, inputs, *args, **kwargs):
        if not is_late():
            return step(model, inputs, *args, **kwargs)
        seen.inputs, seen.passes, seen.forwards = {k: v.cpu() for k, v in inputs.items()}, [], 0
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            waiting("warn")
            try:
                return step(model, inputs, *args, **kwargs)
            finally:
                waiting("default")
                waited = [w for w in found if "synchronizing" in str(w.message)]
                # That is what waits in the backward: a model's operations, and the package's own, which go unseen here
                seen.waits += [f"{w.filename}:{w.lineno}" for w in waited if "autograd/graph.py" not in w.filename]
                seen.waits += simulated.taken() if SIMULATED else []

    class Warned(logging.Handler):
        def emit(self, record):
            seen.warned.append(record.getMessage())

    if fused:
        base.get_output_embeddings().register_forward_pre_hook(lambda _, args: hidden.append(exact(args[0])))
    model.register_forward_pre_hook(before)
    model.register_forward_hook(after)
    trainer.training_step = training_step
    plan.logger.warning_once.cache_clear()
    handler, logger = Warned(logging.WARNING), logging.getLogger("rdrop_trainer")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as found:
            trainer.train()
    finally:
        logger.removeHandler(handler)
    seen.warned += [str(w.message) for w in found if "rdrop_trainer" in w.filename]
    seen.logs = [entry for entry in trainer.state.log_history if "divergence" in entry]
    return seen


def exact(tensor):
    return tensor.detach().cpu().double()


@pytest.fixture(scope="module", params=PRECISIONS)
def precision(request):
    return request.param


@pytest.fixture(scope="module", params=MODES)
def mode(request):
    return request.param


@pytest.fixture(scope="module", params=TRAININGS)
def training(request):
    return TRAININGS[request.param]


@pytest.fixture(scope="module")
def watched(training, mode, precision, tmp_path_factory):
    name, kind = training
    model, data = zoo.build(name, dropout=0.3), zoo.dataset(name)
    if kind == "lora":
        peft = pytest.importorskip("peft")
        task = {"rows": "SEQ_CLS", "causal_lm": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}[zoo.CASES[name].kind]
        model = peft.get_peft_model(model, peft.LoraConfig(task_type=task, r=4, lora_dropout=0.2))
    trainer = zoo.trainer(
        name, model, data, tmp_path_factory.mktemp("run"), rdrop_forward_mode=mode, rdrop_alpha=2.0, logging_steps=1,
        rdrop_fused_head=kind == "fused", max_steps=STEPS, per_device_train_batch_size=4,
        logging_nan_inf_filter=False,  # with it `Trainer` itself reads every loss
        unlabeled_dataset=zoo.dataset(name, seed=1) if kind == "unlabeled" else None, **precision_of(precision),
    )  # fmt: skip
    assert trainer.args.device.type == ("cuda" if GPU else device.DEVICE.type)
    return watch(trainer, kind == "fused")


def test_the_logged_terms_are_those_of_the_definition(watched, training, mode, precision):
    """In float64, of the logits (with a fused head the hidden states) that the model returned."""
    name, kind = training
    rows = len(next(iter(watched.inputs.values())))
    passes = watched.passes[:2]
    if mode == "concat":
        passes = [{k: v[i * rows : (i + 1) * rows] for k, v in passes[0].items()} for i in range(2)]
    loss, task_loss, divergence = zoo.by_definition(name, passes, watched.inputs, 2.0)
    logged = watched.logs[-1]
    assert len(watched.logs) == STEPS and divergence > 0
    rounding = ROUNDING[precision if kind == "fused" else "float32"]
    assert logged["task_loss"] == pytest.approx(task_loss.item(), rel=rounding)
    # Made of differences of logits, which are rounded worse than the logits are
    assert logged["divergence"] == pytest.approx(divergence.item(), rel=5 * rounding)
    assert logged["loss"] == pytest.approx(loss.item(), rel=rounding)


def test_a_step_runs_the_model_as_often_as_it_says(watched, mode):
    assert watched.forwards == {"concat": 1, "sequential": 2, "recompute": 3}[mode]


def test_nothing_is_warned_of(watched):
    assert watched.warned == []


@pytest.mark.skipif(not (GPU or SIMULATED), reason="nothing waits for a CPU")
def test_a_step_does_not_wait_for_the_device(watched):
    assert watched.waits == []


@pytest.mark.parametrize("name", [name for name in zoo.CASES if name != "gpt2"])  # for which `Trainer` miscounts
def test_alpha_zero_is_trainer_bit_for_bit(name, precision, tmp_path):
    finals = []
    for plain in (True, False):
        settings = {"rdrop_alpha": 0.0, "num_train_epochs": 2, "per_device_train_batch_size": 4}
        trainer = zoo.trainer(
            name, zoo.build(name), zoo.dataset(name), tmp_path, plain, **settings, **precision_of(precision)
        )
        loss = trainer.train().training_loss
        finals.append((loss, tiny.weights(trainer.model)))
    assert finals[0][0] == finals[1][0] and math.isfinite(loss)
    assert tiny.identical(finals[0][1], finals[1][1])


@pytest.mark.parametrize("name", zoo.CASES)
def test_accumulation_equals_one_large_batch(name, mode, precision, tmp_path):
    """4 x 2 rows and 1 x 8, also in the last window of 2 + 1 rows, with rows and tokens without a label."""
    updates, unlabeled = [], (2, 9) if name in tiny.HEADS else ()
    for rows, steps in ((2, 4), (8, 1)):
        model = zoo.noisy(name, concat=mode == "concat", dtype=torch.float32)
        before = tiny.weights(model)
        trainer = zoo.trainer(
            name, model, zoo.dataset(name, unlabeled=unlabeled), tmp_path, rdrop_forward_mode=mode,
            per_device_train_batch_size=rows, gradient_accumulation_steps=steps, rdrop_allow_deterministic=True,
            **tiny.PURE_SGD, **precision_of(precision),
        )  # fmt: skip
        if precision == "fp16":  # a larger scale overflows, and the scaler leaves the step out
            trainer.accelerator.scaler = torch.amp.GradScaler(trainer.args.device.type, init_scale=64.0)
        trainer.train()
        updates.append(tiny.update(before, tiny.weights(model)))
    assert updates[0].norm() > 0 and tiny.relative(*updates) < 5 * ROUNDING[precision]


@pytest.mark.parametrize("name", zoo.ONE_OF_A_KIND)
def test_recompute_trains_as_sequential_under_dropout(name, precision, tmp_path):
    """A pass that runs again in the backward draws from the generator of its device what it drew at first."""
    updates = []
    for mode in ("sequential", "recompute"):
        model = zoo.build(name, dropout=0.3)
        before = tiny.weights(model)
        trainer = zoo.trainer(
            name, model, zoo.dataset(name), tmp_path, rdrop_forward_mode=mode, max_steps=3,
            per_device_train_batch_size=4, **tiny.PURE_SGD, **precision_of(precision),
        )  # fmt: skip
        trainer.train()
        updates.append(tiny.update(before, tiny.weights(model)))
    assert updates[0].norm() > 0 and tiny.relative(*updates) < ROUNDING[precision]


@not_simulated
@pytest.mark.parametrize("name", zoo.ONE_OF_A_KIND)
def test_stopped_and_resumed_equals_uninterrupted(name, precision, tmp_path):
    whole, cut, resumed = whole_cut_and_resumed(name, tmp_path, **precision_of(precision))
    assert tiny.identical(whole, resumed) and not tiny.identical(whole, cut)


# ---- The script ----

TRAINED_ON = "cuda" if GPU else "process"


def devices(folder):
    """Whose memory the runs in a folder report."""
    return [json.loads(path.read_text())["peak_memory"]["of"] for path in folder.glob("*/all_results.json")]


@not_simulated
def test_the_demo(here):
    assert runs.script.main(runs.words("--demo", "--use_cpu False")) == 0
    report = json.loads((here / "runs" / "demo" / "report.json").read_text())
    assert min(report["quantities"]["accuracy"]["rdrop"]["values"]) > 55
    assert devices(here / "runs" / "demo") == [TRAINED_ON] * 6


@not_simulated
def test_a_comparison(here):
    runs.make_place(here, rows=16)
    flags = f"--bf16 {GPU} --use_cpu False --max_seq_length 16 --disable_tqdm True --save_strategy no --seeds 1 2"
    files = "--train_file=train.csv --validation_file=dev.csv --output_dir=compared --num_train_epochs 1"
    assert runs.script.main(runs.words("--model_name_or_path=model", "--compare_baseline", flags, files)) == 0
    assert devices(here / "compared") == [TRAINED_ON] * 4
