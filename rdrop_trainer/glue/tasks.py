"""All named tasks, and looking them up."""

from __future__ import annotations

import difflib

from ..errors import InputError
from .clue_tasks import CLUE
from .glue_tasks import GLUE
from .task import Task

TASKS: dict[str, Task] = {task.name: task for task in (*GLUE, *CLUE)}


def get_task(name: str) -> Task:
    """The task of a name, or of the name of a folder such as "SST-2", in upper or lower case.

    Examples:
        >>> get_task("SST-2").labels
        ('negative', 'positive')
    """
    spellings = {spelling.lower(): task for task in TASKS.values() for spelling in (task.name, *task.folders)}
    key = name.strip().lower()
    if key in spellings:
        return spellings[key]
    close = difflib.get_close_matches(key, TASKS, n=3, cutoff=0.5)
    hint = f" did you mean {' or '.join(close)}?" if close else ""
    raise InputError(f"unknown task {name!r}:{hint} The tasks are {', '.join(TASKS)}.")
