"""What a search leaves: the table of its trials, the winning recipe, and a summary that does not promise too much."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from .._console import typed
from ..report.quantities import lower_is_better
from ..run_folder import name_of_data, write_json, write_text
from ..search import SPACE
from . import program
from .command_line import CommandLine
from .jobs import RECIPE, recipe_text
from .several import OF_THE_COMMAND, score_text
from .summary import scores_to_show

TABLE, TABLE_JSON = "trials.md", "trials.json"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "checkpoint-*")
_NOT_IN_RECIPE = OF_THE_COMMAND | {
    *("overwrite_output_dir", "resume_from_checkpoint", "run_name", "hub_model_id", "push_to_hub"),
}


@dataclass(frozen=True)
class Trial:
    """A finished trial: its number (0 has alpha 0, 1 the given settings), the folder of its run, and what that left.

    `metric` is the score that it is judged by; None: the first headline score.
    """

    number: int
    folder: Path
    results: dict[str, Any]
    metric: str | None = None

    @property
    def scores(self) -> dict[str, float | None]:
        """The one that it is judged by, and the headline scores."""
        return scores_to_show(self.results, self.metric)

    @property
    def score_name(self) -> str | None:
        """The score on the validation rows that it is judged by."""
        if self.metric is not None:
            return f"eval_{self.metric}"
        return next((name for name in self.results["headline"] if name.startswith("eval_")), None)

    @property
    def score(self) -> float | None:
        """Its value; None where it is not defined."""
        return self.scores.get(self.score_name)

    @property
    def values(self) -> dict[str, float | None]:
        """alpha, dropout (None: as the model has it) and learning rate."""
        return {name: self.results["settings"][name] for name in SPACE}

    @property
    def seconds(self) -> float:
        """All that its run took."""
        return sum(self.results["seconds"].values())


def metric_of(command: CommandLine) -> str | None:
    """The score that a search is by, without `eval_`; None: the first headline score of the task."""
    name = command.several.tune_metric or ("perplexity" if command.data.task_type == "lm" else None)
    return None if name is None else name.removeprefix("eval_")


def is_lower_better(metric: str | None) -> bool:
    """Whether lower values of the score of a search are better."""
    return metric is not None and lower_is_better(metric)


def delete_weights(trials: Sequence[Trial]) -> None:
    """Delete the weights and checkpoints of all trials but the first."""
    for path in (path for trial in trials[1:] for pattern in _WEIGHTS for path in trial.folder.glob(pattern)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_trials(folder: Path, trials: Sequence[Trial], command: CommandLine) -> None:
    """Write the table of the trials, the best first, as Markdown and as JSON."""
    names = [name for name in trials[0].scores if name.startswith("eval_")]
    columns = ["trial", *SPACE, *names, "seconds"]
    table = [columns, ["---:"] * len(columns)]
    for trial in trials:
        values = ["as the model has it" if value is None else f"{value:g}" for value in trial.values.values()]
        scores = [score_text(trial.scores.get(name)) for name in names]
        table.append([str(trial.number), *values, *scores, f"{trial.seconds:.0f}"])
    rows = "\n".join(f"| {' | '.join(row)} |" for row in table)
    legend = "Trial 0 is the given settings with alpha 0, trial 1 the given settings."
    text = f"# {_title(trials, command)}\n\n{rows}\n\n{legend}\n\n{_caution(trials)}\n"
    if check := _check_command(folder, trials, command):
        text += f"\nThe best trial with R-Drop beside plain fine-tuning, on other seeds:\n\n```bash\n{check}\n```\n"
    write_text(folder / TABLE, text)
    found = [
        {"trial": trial.number, "folder": trial.folder.name, **trial.values}
        | {"scores": trial.scores, "seconds": round(trial.seconds, 3)}
        for trial in trials
    ]
    about = {"score": trials[0].score_name, "seed": command.training.seed}
    write_json(folder / TABLE_JSON, about | {"trials": found})


def write_recipe(folder: Path, trials: Sequence[Trial], command: CommandLine) -> None:
    """Write the flags of the command with the values of the best trial, for the script to read."""
    best = trials[0]
    recipe = {name: value for name, value in command.given.items() if name not in _NOT_IN_RECIPE}
    recipe |= {name: value for name, value in best.values.items() if value is not None}
    recipe |= {} if best.metric is None else {"metric_for_best_model": best.metric}
    head = f"# The best of {len(trials)} trials, {best.folder.name}: {best.score_name} {score_text(best.score)}\n"
    if best.number == 0:
        head += f"# No trial with R-Drop was better. {TABLE} has the command that compares the best of those.\n"
    write_text(folder / RECIPE, head + recipe_text(recipe))


def summary(folder: Path, trials: Sequence[Trial], command: CommandLine) -> str:
    """One screen: the best values, their score beside those of the given settings, and what to run next."""
    scored = [trial for trial in trials if trial.score is not None]
    if not scored:
        return f"No trial has a score: the trials' folders in {folder} say what happened."
    lines, best = [_title(trials, command)], scored[0]
    about = {1: "given", 0: "alpha 0"}
    rows_of = [("best", best), *((about[trial.number], trial) for trial in trials if trial.number in about)]
    rows = next(count for split, count in best.results["rows"].items() if split.startswith("validation"))
    lower = ", the lower the better" if is_lower_better(best.metric) else ""
    lines.append(f"score     {best.score_name} of {rows:,} validation rows{lower}")
    for name, trial in dict(rows_of).items():
        values = ", ".join(f"{key} {value:g}" for key, value in trial.values.items() if value is not None)
        lines.append(f"{name:<10}{score_text(trial.score)}  trial {trial.number}: {values}")
    lines += [f"trials    {folder / TABLE}", f"recipe    {folder / RECIPE}", f"model     {best.folder}"]
    if best.number == 0:
        lines.append("No trial with R-Drop was better than plain fine-tuning (alpha 0), which the recipe therefore is.")
    lines.append(_caution(trials))
    if check := _check_command(folder, trials, command):
        lines.append(f"check     {check}")
    return "\n".join(lines)


def _check_command(folder: Path, trials: Sequence[Trial], command: CommandLine) -> str | None:
    """The comparison of the best R-Drop trial with its baseline, on seeds that the search did not see; None without
    such a trial.
    """
    scored = [trial for trial in trials if trial.score is not None]
    candidate = next((trial for trial in scored if trial.number), None)
    if candidate is None:
        return None
    seeds = islice((str(seed) for seed in count(1) if seed != command.training.seed), 5)
    words = [*program.words(), str(folder / RECIPE)]
    if candidate is not scored[0]:
        words += [f"--{name}={value}" for name, value in candidate.values.items() if value is not None]
    return typed([*words, f"--output_dir={folder / 'comparison'}", "--compare_baseline", "--seeds", *seeds])


def _title(trials: Sequence[Trial], command: CommandLine) -> str:
    task, model = name_of_data(trials[0].results), command.model.model_name_or_path
    return f"{task}: {len(trials)} trials, seed {command.training.seed}, {model}"


def _caution(trials: Sequence[Trial]) -> str:
    return (
        f"The best of {len(trials)} trials was chosen on the rows that its score is of, so that score is optimistic; "
        "other seeds, and rows that no trial was judged on, say what is left of it."
    )
