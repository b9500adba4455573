"""Jobs on the machines of a Ray cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from .._extras import import_optional
from ..run_folder import EDITS_FILE, LOG, LOGITS_FILE, RESULTS, STATE
from .jobs import RECIPE, Job, Local

# What the report reads, brought back from machines that do not share a disk with this one; models stay where they are
_BROUGHT_BACK = (RESULTS, STATE, EDITS_FILE, LOGITS_FILE, LOG, RECIPE)


class OnRay:
    """Runs jobs as Ray tasks, on the cluster that RAY_ADDRESS names, or on one that it starts here.

    A job gets one GPU, or one processor core in a cluster without. Data and model must be there under the same paths
    (names on the Hub are the same everywhere), and this package must be installed.
    """

    def __init__(self):
        self.ray = import_optional("ray", extra="ray")
        if not self.ray.is_initialized():
            self.ray.init(log_to_driver=False, logging_level="error")
        gpus = self.ray.cluster_resources().get("GPU", 0)
        # Tried again where a machine is lost: the run goes on from its last checkpoint, if that is on a shared disk
        self._run = self.ray.remote(max_retries=2, num_cpus=1, num_gpus=1 if gpus else 0)(_run_there)
        self._tasks: list[Any] = []

    def __call__(self, job: Job) -> int:
        """Run a job to its end, fetch its results, and return its exit code."""
        task = self._run.remote(replace(job, folder=job.folder.absolute()), str(Path.cwd()))
        self._tasks.append(task)
        code, files = self.ray.get(task)
        job.folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = job.folder / name
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)
        return code

    def stop(self) -> None:
        """End all that run; Ray ignores tasks that are over."""
        for task in self._tasks:
            self.ray.cancel(task, force=True)


def _run_there(job: Job, cwd: str) -> tuple[int, dict[str, bytes]]:
    """On a machine of the cluster: run a job; its exit code, and the files the report reads."""
    code = Local(1, cwd if Path(cwd).is_dir() else None)(job)
    paths = [job.folder / name for name in _BROUGHT_BACK]
    return code, {path.name: path.read_bytes() for path in paths if path.exists()}
