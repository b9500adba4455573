"""Runs on a Ray cluster, here one of this machine alone."""

import os
from pathlib import Path

import pytest

from rdrop_trainer.script.jobs import Job
from rdrop_trainer.script.several import run_jobs

pytestmark = pytest.mark.interop
SCRIPT = """
import os, sys, yaml
from pathlib import Path
recipe = yaml.safe_load(open(sys.argv[1]))
folder = Path(recipe["output_dir"])
(folder / "all_results.json").write_text(f"{recipe['code']} {folder}")
(folder / "model.safetensors").write_text("stays")
print("in", os.getcwd(), "threads", os.environ.get("OMP_NUM_THREADS"))
sys.exit(recipe["code"])
"""


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


def test_runs_go_to_the_cluster_and_their_results_come_back(cluster, tmp_path, monkeypatch):
    from rdrop_trainer.script.cluster import OnRay

    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    jobs = [Job(f"run{i}", {"code": i}, Path("runs") / f"run{i}", ["script.py"]) for i in range(3)]
    ended = {each.job.name: each for each in run_jobs(jobs, OnRay(), 3)}
    assert [ended[f"run{i}"].code for i in range(3)] == [0, 1, 2]
    for i in range(3):
        folder = tmp_path / "runs" / f"run{i}"
        assert (folder / "all_results.json").read_text() == f"{i} {folder}"
        assert f"in {os.getcwd()}" in (folder / "run.log").read_text()


def test_what_comes_back_from_a_machine_with_a_disk_of_its_own(cluster, tmp_path, monkeypatch):
    from rdrop_trainer.script import cluster as module

    script, folder = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SCRIPT)
    code, files = module._run_there(Job("run", {"code": 0}, folder, [str(script)]), "/nowhere")
    assert code == 0 and set(files) == {"all_results.json", "run.log", "recipe.yaml"}, "the model stays where it is"
