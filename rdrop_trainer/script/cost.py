"""What a run costs: seconds and memory."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


class Clock:
    """The `seconds` spent in each part of a run: `with clock("load"): ...`; `on_part` is told which part begins."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.on_part: Callable[[str], None] = lambda part: None

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self.on_part(part)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = round(self.seconds.get(part, 0.0) + time.perf_counter() - start, 3)

    def move(self, part: str, to: str, seconds: float) -> None:
        """Count seconds that were spent within a part as another's."""
        self.seconds[part], self.seconds[to] = round(self.seconds[part] - seconds, 3), round(seconds, 3)


def peak_memory(device: torch.device) -> dict[str, Any] | None:
    """The most memory this process has held so far: `bytes`, `of` the CUDA allocator ("cuda") or the "process".

    None where the system does not say.
    """
    if device.type == "cuda":
        return {"bytes": torch.cuda.max_memory_allocated(), "of": "cuda"}
    try:  # not `getrusage`, whose figure may be that of the process that started this one
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return {"bytes": int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024, "of": "process"}
    except OSError:
        if sys.platform == "win32":
            return None
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "of": "process"}
