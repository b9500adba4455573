"""Runs in processes of their own: how many at a time, on what, what is kept of them, and how they end."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.run_folder import settings_of
from rdrop_trainer.script import jobs
from rdrop_trainer.script.command_line import flags_of, parse_arguments
from rdrop_trainer.script.jobs import Job, Local
from rdrop_trainer.script.several import run_jobs
from rdrop_trainer.script.worker import Worker

# A script that says what it was started with, and ends with the code that its recipe asks for
SCRIPT = """
import os, sys, yaml
recipe = yaml.safe_load(open(sys.argv[1]))
print("电影 α")
print("threads", os.environ.get("OMP_NUM_THREADS"), "gpu", os.environ.get("CUDA_VISIBLE_DEVICES"), *sys.argv[2:])
print("run_glue_rdrop.py: error: asked to end with", recipe["code"])
sys.exit(recipe["code"])
"""


def job(tmp_path, name, code=0):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    return Job(name, {"code": code}, tmp_path / name, [str(script)])


def test_every_run_ends_with_its_code_and_leaves_its_log(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")  # as a file has it on Windows
    todo = [job(tmp_path, f"run{code}", code) for code in (0, 1, 7)]
    ended = {each.job.name: each for each in run_jobs(todo, Local(1), 1)}
    assert [each.code for each in ended.values()] == [0, 1, 7]
    assert ended["run7"].last_line == "asked to end with 7"
    log = (tmp_path / "run1" / "run.log").read_text(encoding="utf-8")
    assert log.splitlines()[:2] == ["电影 α", "threads None gpu "]


FLAGS = [
    *("--model_name_or_path", "a model", "--rdrop_alpha=0.1", "--learning_rate", "1e-5", "--seed=3", "--run_name="),
    *("--text_columns", "null", "yes", "--label_column=-1", "--train_file=浙 \u2028'a\": #.csv", "--cache_dir=~"),
    *("--bf16", "False", "--use_cpu", "--max_steps=-1", "--warmup_steps=0.06", "--eval_strategy=no"),
    *("--optim_args", "a=1,b=2", "--lr_scheduler_kwargs={}", "--debug=underflow_overflow", "--logging-steps=5"),
    *("--label_names=-x", "--data_dir=2024-01-01", "--report_to=None", "--resume_from_checkpoint=none"),
    "--no-log-on-each-node",
]


def test_a_recipe_holds_what_the_flags_said(tmp_path):
    wanted = parse_arguments([*FLAGS, f"--output_dir={tmp_path / 'run'}"])
    read = parse_arguments(Job("run", parse_arguments(FLAGS).given, tmp_path / "run").write())
    assert read.given == wanted.given and read.given["log_on_each_node"] is False
    for name in ("model", "adapter", "data", "training"):
        assert settings_of(getattr(read, name)) == settings_of(getattr(wanted, name))


def test_flags_of_a_recipe():
    recipe = {"fsdp": True, "tf32": True, "dropout": None, "seeds": [1, 2], "text_columns": ["-a"]}
    assert flags_of(recipe) == ["--fsdp", "--tf32=True", "--seeds", "1", "2", "--text_columns=-a"]


def test_tokens_stay_off_the_disk(tmp_path):
    run = Job("run", {"seed": 1, "token": "hf_secret", "hub_token": "hf_other"}, tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.yaml"
    assert run.write() == [str(recipe), "--token=hf_secret", "--hub_token=hf_other"]
    assert recipe.read_text() == f"seed: 1\noutput_dir: {tmp_path / 'run'}\n"


def test_cores_are_shared_and_each_run_gets_a_gpu(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(jobs, "_cores", lambda: 8)
    todo = [job(tmp_path, f"run{i}") for i in range(4)]
    assert len(list(run_jobs(todo, Local(2), 2))) == 4
    said = [(each.folder / "run.log").read_text(encoding="utf-8").splitlines()[1].split()[:4] for each in todo]
    assert {tuple(words[:2]) for words in said} == {("threads", "4")}
    assert {words[3] for words in said} == {"3", "5"}
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    list(run_jobs([job(tmp_path, "own")], Local(2), 2))
    assert "threads 6" in (tmp_path / "own" / "run.log").read_text()


def test_no_more_at_a_time_than_asked_for(tmp_path):
    running, most, lock = [], [], threading.Lock()

    def launch(each):
        with lock:
            running.append(each)
            most.append(len(running))
        time.sleep(0.05)
        with lock:
            running.remove(each)
        return 0

    todo = [job(tmp_path, f"run{i}") for i in range(7)]
    assert len(list(run_jobs(todo, launch, 3))) == 7 and max(most) == 3


def test_a_refused_run_ends_the_waiting_for_the_others_and_a_failed_one_does_not(tmp_path):
    started = []

    def launch(each):
        started.append(each.name)
        return {"b": 1, "c": 2}.get(each.name, 0)

    ended = list(run_jobs([job(tmp_path, name) for name in "abcd"], launch, 1))
    assert started == ["a", "b", "c"] and [each.code for each in ended] == [0, 1, 2]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=300):
    """A busy machine takes its time; the runs below would go on for longer by themselves."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


SLOW = """
import os, sys, time
from rdrop_trainer.script.jobs import end_with_parent
end_with_parent()
print(os.getpid(), flush=True)
time.sleep(900)
"""
PARENT = """
import sys
from pathlib import Path
from rdrop_trainer.script.interrupts import terminated_as_interrupted
from rdrop_trainer.script.jobs import Job, Local
from rdrop_trainer.script.several import run_jobs
with terminated_as_interrupted():
    list(run_jobs([Job("slow", {}, Path(sys.argv[2]), [sys.argv[1]])], Local(1), 1))
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    "how", [signal.SIGKILL, *(pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGTERM, signal.SIGINT))]
)
def test_runs_end_with_the_process_that_started_them(tmp_path, how):
    (tmp_path / "slow.py").write_text(SLOW)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "slow.py"), str(tmp_path / "run")], stderr=subprocess.DEVNULL
    )
    log = tmp_path / "run" / "run.log"
    wait_until(lambda: log.exists() and log.read_text().endswith("\n"))
    child = int(log.read_text())
    assert alive(child)
    os.kill(parent.pid, how)
    parent.wait(300)
    wait_until(lambda: not alive(child))


def test_what_is_about_to_start_is_stopped_too(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("open('started', 'w')")
    launch = Local(1, cwd=str(tmp_path))
    launch.stop()
    assert launch(Job("late", {}, tmp_path / "late", [str(script)])) == -signal.SIGTERM
    assert not (tmp_path / "started").exists()


def test_a_module_of_the_user_is_not_taken_for_a_library(tmp_path, monkeypatch):
    (tmp_path / "datasets.py").write_text("raise SystemExit('the wrong datasets')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (ended,) = run_jobs([Job("run", {"seed": -1}, tmp_path / "run")], Local(1), 1)
    assert (ended.code, ended.last_line) == (2, "seed must be a number of at least 0, got -1.")


def test_a_run_whose_folder_cannot_be_made(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(InputError, match="the run cannot begin there .*the same command goes on"):
        list(run_jobs([job(tmp_path, "run")], Local(1), 1))


@pytest.mark.skipif(sys.platform != "linux", reason="where processes can be forked")
def test_runs_of_a_place_are_forked_from_one_process_and_fail_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    launch = Local(1)
    todo = [Job(f"run{i}", {"seed": seed}, tmp_path / f"run{i}") for i, seed in enumerate((-1, -2, -3))]
    workers = []
    for each in todo:
        ended = run_jobs([each], launch, 1)
        assert [(e.code, e.last_line[:23]) for e in ended] == [(2, "seed must be a number o")]
        workers += [process.pid for process in launch._processes]
    assert len(set(workers)) == 1
    # One that is killed, as by the system that lacks memory, is replaced
    os.kill(workers[0], signal.SIGKILL)
    (ended,) = run_jobs([Job("next", {}, tmp_path / "next")], launch, 1)
    assert ended.code == -signal.SIGKILL
    (ended,) = run_jobs([Job("next", {"seed": -4}, tmp_path / "next")], launch, 1)
    assert ended.code == 2 and ended.last_line.endswith("got -4.")
    launch.stop()


WORKING = """
import json, sys
from rdrop_trainer.script import worker
worker.main = lambda argv: exec(argv[0], {})
run = worker.Worker(sys.stdout)(sys.stdin)
run and run()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="where processes can be forked")
@pytest.mark.parametrize("how, code", [(signal.SIGTERM, "7"), (signal.SIGKILL, None)])
def test_a_forked_run_ends_with_its_worker(tmp_path, how, code):
    """It gets the signal that asks it to stop, and ends with a worker that is killed."""
    log = tmp_path / "run.log"
    run = (
        "import os, signal, sys, time\nfrom rdrop_trainer.script.jobs import end_with_parent\nend_with_parent()\n"
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(7))\nprint(os.getpid(), flush=True)\ntime.sleep(900)"
    )
    program = [sys.executable, "-c", WORKING]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        print(json.dumps({"argv": [run], "log": str(log)}), file=process.stdin, flush=True)
        wait_until(lambda: log.exists() and log.read_text().endswith("\n"))
        child = int(log.read_text())
        process.send_signal(how)
        if code is not None:
            assert process.stdout.readline().strip() == code
        wait_until(lambda: not alive(child))
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="where processes can be forked")
def test_a_worker_whose_starter_died_while_it_began_runs_nothing(monkeypatch):
    """The same command, given again, would meet that run in its folder."""
    monkeypatch.setenv(jobs.PARENT, "1")
    monkeypatch.setattr(os, "fork", lambda: subprocess.Popen(["sleep", "9"]).pid)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    answers = io.StringIO()
    try:
        Worker(answers)(io.StringIO('{"argv": [], "log": ""}\n'))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert answers.getvalue() == f"{-signal.SIGKILL}\n"
