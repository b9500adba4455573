"""What the benchmarks share: the machine they ran on, time, memory, tables and files."""

import contextlib
import ctypes
import json
import os
import platform
import resource
import sys
import time
from pathlib import Path

import torch

_M_MMAP_THRESHOLD = -3

# Of several, plain `Trainer` would use all in one process, and R-Drop one. Read when the GPU is first used
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")


def machine():
    """Versions and the device, in one line."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    if "transformers" in sys.modules:
        versions.append(f"transformers {sys.modules['transformers'].__version__}")
    return ", ".join([*versions, device])


def mark():
    """A moment: on a GPU an event, so that nothing waits while it is taken."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(marks):
    """Seconds from each of several moments to the next."""
    pairs = list(zip(marks, marks[1:], strict=False))
    if not torch.cuda.is_available():
        return [b - a for a, b in pairs]
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in pairs]


def resident():
    """The MiB that this process holds (on a GPU, of the CUDA allocator)."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 2**20
    return _status("VmRSS")


def high_water():
    """The most MiB that this process held since the last reset."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "linux":
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def reset_high_water():
    """Let `high_water` begin again with what is held now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


@contextlib.contextmanager
def freed_memory_given_back():
    """Let freed memory (64 KiB and more) go back to the system at once, so that resident memory is memory in use."""
    libc = ctypes.CDLL(None)
    with_glibc = hasattr(libc, "mallopt")
    if with_glibc:
        libc.mallopt(_M_MMAP_THRESHOLD, 2**16)
        libc.malloc_trim(0)
    yield
    if with_glibc:
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)  # where glibc's own, moving limit ends up


def _status(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def table(rows):
    """Rows {name: {column: number}} as text."""
    columns = list(next(iter(rows.values())))
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{column:>{max(11, len(column) + 2)}s}" for column in columns)]
    for name, row in rows.items():
        cells = "".join(f"{_short(row[column]):>{max(11, len(column) + 2)}s}" for column in columns)
        lines.append(f"{name:{width}s}{cells}")
    return "\n".join(lines)


def _short(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value < 1 else f"{value:.2f}"


def save(path, options, results):
    """Write figures, options and machine as JSON."""
    content = {"machine": machine(), "options": vars(options), "results": results}
    Path(path).write_text(json.dumps(content, indent=2, default=str) + "\n")


def read_runs(path):
    """The runs of a results file, a line each. A line that a stop cut off is taken away."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def add_run(path, run):
    """Add a run to a results file."""
    with path.open("a") as file:
        file.write(json.dumps(run) + "\n")
