"""Where runs of the script run: here, or on the machines of a Ray cluster."""

from __future__ import annotations

import threading
from pathlib import Path

from .._extras import import_optional
from ..run_folder import EDITS_FILE, LOG, LOGITS_FILE, RESULTS
from .jobs import Job, Launch, Local

# What the report reads, brought back from machines that do not share a disk with this one; models stay where they are
_BROUGHT_BACK = (RESULTS, "trainer_state.json", EDITS_FILE, LOGITS_FILE, LOG)


def launcher(engine: str, script: str | Path, at_once: int) -> Launch:
    """What runs jobs.

    Args:
        engine: "local" or "ray".
        script: path of the script.
        at_once: how many run at a time.
    """
    return OnRay(script) if engine == "ray" else Local(script, at_once)


class OnRay:
    """Runs jobs as Ray tasks, on the cluster that RAY_ADDRESS names, or on one that it starts here.

    A job gets one GPU, or one processor core in a cluster without. The script, the data and the model must be there
    under the same paths (names on the Hub are the same everywhere), and this package must be installed.

    Args:
        script: path of the script.

    Raises:
        InputError: Ray is not installed.
    """

    def __init__(self, script: str | Path):
        self.ray = import_optional("ray", extra="ray")
        if not self.ray.is_initialized():
            self.ray.init(log_to_driver=False, logging_level="error")
        gpus = self.ray.cluster_resources().get("GPU", 0)
        resources = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": 1}
        # Tried again where a machine is lost: the run goes on from its last checkpoint, if that is on a shared disk
        self._run = self.ray.remote(max_retries=2, **resources)(_run_there)
        self.script = str(Path(script).absolute())
        self._tasks: set = set()
        self._lock = threading.Lock()

    def __call__(self, job: Job) -> int:
        """Run a job to its end, fetch its results, and return its exit code."""
        folder = job.folder.absolute()
        words = [word for word in job.words if not word.startswith("--output_dir")] + [f"--output_dir={folder}"]
        task = self._run.remote(self.script, Job(job.name, tuple(words), folder), str(Path.cwd()))
        with self._lock:
            self._tasks.add(task)
        try:
            code, files = self.ray.get(task)
        finally:
            with self._lock:
                self._tasks.discard(task)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = folder / name
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)
        return code

    def stop(self) -> None:
        """End all that run."""
        with self._lock:
            for task in self._tasks:
                self.ray.cancel(task, force=True)


def _run_there(script: str, job: Job, cwd: str) -> tuple[int, dict[str, bytes]]:
    """On a machine of the cluster: run a job; its exit code, and the files the report reads."""
    code = Local(script, 1, cwd=cwd if Path(cwd).is_dir() else None)(job)
    paths = [job.folder / name for name in _BROUGHT_BACK]
    return code, {path.name: path.read_bytes() for path in paths if path.exists()}
