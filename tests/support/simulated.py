"""A device in software: what a GPU would refuse, and what a program would wait for, shows on a machine without one.

`RDROP_TEST_DEVICE=simulated pytest -m gpu` trains on it. Its tensors hold a tensor of the CPU, which does the work, and
its generator is another than the CPU's. As CUDA does, it refuses operations on tensors of two devices, and autocast
rounds what CUDA's lists say. Tied weights are untied on the way there. `start` opens it for the whole process, by
torch's way to write a backend in Python.
"""

import contextlib
import os
import sys
import types
from pathlib import Path

import torch
from accelerate import accelerator
from torch._C import DispatchKey, DispatchKeySet, _ExcludeDispatchKeyGuard
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers import training_args

import rdrop_trainer
from rdrop_trainer.losses import backends
from rdrop_trainer.objective import lm_head

NAME = "npu"  # a name that accelerate knows as that of a device with fp16
PACKAGE = str(Path(rdrop_trainer.__file__).parent)
WAIT = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "allclose", "is_nonzero", "bincount", "_unique2"}
RANDOM = ("bernoulli", "rand", "normal", "uniform", "multinomial", "exponential", "dropout")
# What the lists of torch's autocast for CUDA have of the operations of models; the last get a type from their caller
IN_HALF = (
    "linear matmul mm mv bmm addmm addmv baddbmm prelu convolution _convolution conv1d conv2d "
    "scaled_dot_product_attention"
)
IN_FLOAT = (
    "exp expm1 log log10 log2 log1p rsqrt reciprocal pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar softplus acos asin "
    "cosh sinh tan erfinv layer_norm native_layer_norm group_norm cosine_similarity cdist dist renorm logsumexp "
    "nll_loss nll_loss_nd kl_div mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy_with_logits "
    "cosine_embedding_loss hinge_embedding_loss margin_ranking_loss soft_margin_loss triplet_margin_loss"
)
IN_FLOAT_UNLESS_TOLD = "softmax.int log_softmax.int sum cumsum prod"

_waits = []  # what the package would have waited for, with its line
_state = {"watched": False}
_libraries = []  # torch forgets what the others registered


class Backend(types.ModuleType):
    """`torch.npu`: one device, and its generator."""

    _initialized = True
    device = contextlib.nullcontext  # a context that makes it the current one

    def __init__(self):
        super().__init__(f"torch.{NAME}")
        self.manual_seed_all(0)

    def manual_seed_all(self, seed):
        self.state = torch.Generator().manual_seed(seed).get_state()

    def get_rng_state(self, device=None):
        return self.state.clone()

    def set_rng_state(self, state, device=None):
        self.state = state.clone()

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def is_available(self):
        return True

    def _is_in_bad_fork(self):
        return False

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]


class Simulated(torch.Tensor):
    """A tensor of the device; `held`: the one of the CPU behind it."""

    @staticmethod
    def __new__(cls, held):
        self = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=torch.device(NAME, 0),
        )  # fmt: skip
        self.held = held
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _computed(function, args, kwargs or {})

    def tolist(self):
        _wait("tolist")
        return self.held.tolist()

    def __format__(self, form):
        _wait("format")
        return format(self.held, form)


class _Everywhere(TorchDispatchMode):
    """Sees what makes tensors of the device of none."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _computed(function, args, kwargs or {})


def watch(watched):
    """Whether it is noted from here on where the package waits."""
    _state["watched"] = watched


def taken():
    """What was noted since the last call."""
    found = _waits.copy()
    _waits.clear()
    return found


def _wait(what):
    if _state["watched"]:
        frame = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        if frame is not None:  # else it is the backward of a model's operation
            _waits.append(f"{what} at {frame.f_code.co_filename}:{frame.f_lineno}")


def _look_at(name, args, kwargs, others, from_here, to_here):
    """Refuse what CUDA refuses of tensors on two devices, and note what waits for the device.

    Args:
        others: the tensors of the arguments that are not on the device.
        from_here, to_here: whether some of them are, and whether the result is.
    """
    copies = name in ("copy_", "_to_copy")
    indexes = name in ("index", "index_put", "index_put_") and isinstance(args[0], Simulated)
    given = args[2:3] if indexes else others  # an index may come from there
    strays = [x for x in given if not isinstance(x, Simulated) and x.device.type == "cpu"]
    if from_here and not copies and any(x.dim() or name in ("cat", "stack") for x in strays):  # so may scalars
        raise RuntimeError(f"{name}: expected all tensors on one device, got {NAME} and cpu")
    by_mask = indexes and any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1])
    fills = by_mask and args[2:] and args[2].numel() == 1
    target = isinstance(args[0], Simulated) if name == "copy_" else to_here
    crosses = copies and isinstance(args[name == "copy_"], Simulated) != target
    at_once = crosses and not (kwargs.get("non_blocking") or any(args[2:]))
    if (from_here and name in WAIT) or (by_mask and not fills) or at_once:
        _wait(name)


def _computed(function, args, kwargs):
    """What an operation gives, on the device if it has one tensor there, or is told to make one there."""
    leaves = tree_leaves((args, kwargs))
    here = [x for x in leaves if isinstance(x, Simulated)]
    others = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, Simulated)]
    name, device = function._schema.name.split("::")[1], kwargs.get("device")
    is_here = bool(here) if device is None else torch.device(device).type == NAME
    if name in ("_pin_memory", "is_pinned"):
        return args[0].clone() if name == "_pin_memory" else False
    _look_at(name, args, kwargs, others, bool(here), is_here)

    def to_held(x):
        if isinstance(x, Simulated):
            return x.held
        return torch.device("cpu") if isinstance(x, torch.device) and x.type == NAME else x

    known = {id(x.held): x for x in here}  # what an operation in place returns is what it was given

    def from_held(x):
        if not is_here or not isinstance(x, torch.Tensor) or any(x is other for other in others):
            return x
        return known[id(x)] if id(x) in known else Simulated(x)

    draws = is_here and any(part in name for part in RANDOM)
    if draws:
        before, backend = torch.get_rng_state(), torch.get_device_module(NAME)
        torch.set_rng_state(backend.state)
    try:
        result = function(*tree_map(to_held, args), **tree_map(to_held, kwargs))
    finally:
        if draws:
            backend.state = torch.get_rng_state()
            torch.set_rng_state(before)
    return tree_map(from_held, result)


def start():
    """Open the device, for good: trainings run on it from here on, where nothing else was asked for."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    _register_autocast()
    _make_elsewhere("tensor", "as_tensor")
    backends.CHUNKED_FROM = 0  # the models of tests have few logits
    os.environ["ACCELERATE_TORCH_DEVICE"] = f"{NAME}:0"
    training_args.is_torch_bf16_gpu_available = lambda: True
    accelerator.get_grad_scaler = lambda *args, **kwargs: torch.amp.GradScaler(NAME, **kwargs)
    lm_head.type = lambda x: torch.Tensor if isinstance(x, Simulated) else type(x)  # they are its plain tensors
    _Everywhere().__enter__()


def _make_elsewhere(*makers):
    """These make a tensor behind the back of modes: on the CPU, then, and it is moved."""

    def elsewhere(make):
        def made(data, *args, device=None, requires_grad=False, **kwargs):
            made = data if isinstance(data, Simulated) else make(data, *args, **kwargs)
            made = made.to(device or made.device, kwargs.get("dtype") or made.dtype)
            return made.requires_grad_() if requires_grad else made

        return made

    _device_constructors()  # torch.device("meta") as a context knows these functions, and remembers them from here on
    for name in makers:
        setattr(torch, name, elsewhere(getattr(torch, name)))
    torch.Tensor.new_tensor = lambda self, data, dtype=None, device=None, **kwargs: torch.tensor(
        data, dtype=dtype or self.dtype, device=device or self.device, **kwargs
    )


def _register_autocast():
    behind = DispatchKeySet(DispatchKey.AutocastPrivateUse1)
    others = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    others.fallback(torch.library.fallthrough_kernel)
    library = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    _libraries.extend((others, library))

    def is_cast(x):
        return isinstance(x, torch.Tensor) and x.is_floating_point() and x.dtype != torch.float64

    def cast(operation, dtype):
        def run(*args, **kwargs):
            to = dtype or torch.get_autocast_dtype(NAME)
            with _ExcludeDispatchKeyGuard(behind):
                args, kwargs = tree_map(lambda x: x.to(to) if is_cast(x) else x, (args, kwargs))
                return operation(*args, **kwargs)

        return run

    def told(operation):
        def run(*args, **kwargs):
            place = [argument.name for argument in operation._schema.arguments].index("dtype")
            if is_cast(args[0]) and args[place:] in ((), (None,)) and kwargs.get("dtype") is None:
                args, kwargs["dtype"] = args[:place], torch.float32
            with _ExcludeDispatchKeyGuard(behind):
                return operation(*args, **kwargs)

        return run

    for names, kernel in (
        (IN_HALF, lambda op: cast(op, None)),
        (IN_FLOAT, lambda op: cast(op, torch.float32)),
        (IN_FLOAT_UNLESS_TOLD, told),
    ):
        for name in names.split():
            packet, _, overload = name.partition(".")
            operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
            library.impl(name, kernel(operation))
