"""The operations that a piece of code dispatches, and those that would wait for a device."""

import sys
from contextlib import ExitStack
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# They read values, or make a tensor whose size depends on them, or copy a value from the program to the device
WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "item", "is_nonzero", "unique", "lift_fresh")
READ = ("tolist", "numpy", "cpu", "__array__")


class Operations(TorchDispatchMode):
    """Notes operations, on whatever device they run.

    Args:
        of: note only what is called from a file below this folder, and not by what that calls; None: everything.

    Attributes:
        names: of all operations, in order.
        that_wait: of those for which a program would wait if their tensors were on a device, with the line.
    """

    def __init__(self, of=None):
        super().__init__()
        self.of, self.names, self.that_wait = of, [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = str(function), kwargs or {}
        place = self._place()
        if place is not None:
            self.names.append(name)
            by_mask = name.startswith(("aten.index.", "aten.index_put")) and any(
                isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in tree_leaves(args[1])
            )
            if by_mask or name.split(".")[1] in WAIT:
                self.that_wait.append(f"{name} at {place}")
        return function(*args, **kwargs)

    def __enter__(self):
        self._patches = ExitStack()
        for method in READ:
            self._patches.enter_context(mock.patch.object(torch.Tensor, method, self._noted(method)))
        return super().__enter__()

    def __exit__(self, *error):
        self._patches.close()
        return super().__exit__(*error)

    def _noted(self, method):
        original, mode = getattr(torch.Tensor, method), self

        def read(tensor, *args, **kwargs):
            if (place := mode._place()) is not None:
                mode.that_wait.append(f"{method} at {place}")
            return original(tensor, *args, **kwargs)

        return read

    def _place(self):
        """The line of the nearest caller outside torch; None: it is not below `of`."""
        frame = sys._getframe(2)
        while frame is not None and _is_inside(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is None:
            return None if self.of else "the autograd engine"
        file = frame.f_code.co_filename
        return f"{file}:{frame.f_lineno}" if self.of is None or file.startswith(str(self.of)) else None


def _is_inside(file):
    return "/torch/" in file or file.startswith("<") or file == __file__
