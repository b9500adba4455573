"""Which weights of the runs were scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .quantities import in_words
from .runs import FinishedRun

_AT_THE_END = "the weights at the end of the training"


def scored_sentence(arms: Mapping[str, Sequence[FinishedRun]]) -> str:
    """The rule by which the weights were chosen that are scored."""
    rules = {arm: _rule(runs) for arm, runs in arms.items()}
    first = next(iter(rules.values()))
    if len(set(rules.values())) > 1:
        said = "; ".join(f"{arm}: {rule}" for arm, rule in rules.items())
        return f"Scored, by different rules, so that the arms cannot be compared without care: {said}."
    said = f"Scored, by one rule for all arms: {first}."
    if first == _AT_THE_END:
        return said
    return f"{said} The rows that chose it are among those that are scored, so the scores of all arms are optimistic."


def _rule(runs: Sequence[FinishedRun]) -> str:
    settings = runs[0].settings
    if not settings.get("load_best_model_at_end"):
        chosen = any(run.scored_step is not None for run in runs)
        return "a checkpoint that was chosen while the run trained" if chosen else _AT_THE_END
    metric = in_words(str(settings.get("metric_for_best_model") or "loss").removeprefix("eval_"))
    return f"the checkpoint with the {'highest' if settings.get('greater_is_better') else 'lowest'} {metric}"


def weights_of(run: FinishedRun) -> str:
    """Which weights of a run are scored."""
    if run.scored_step is not None:
        return f"checkpoint-{run.scored_step}"
    return "end of training" + (f" (step {run.last_step})" if run.last_step else "")
