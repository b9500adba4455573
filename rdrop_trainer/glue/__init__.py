"""GLUE, CLUE, FewCLUE and own files: what the tasks are, reading their files, scoring, and writing leaderboard files.

* A `task` is data: `glue_tasks`, `clue_tasks`; of own files (`own_files`) it is found in their `columns`, `labels` or
  `pairs`.
* Rows: `data` loads them from `sources`, by `readers` (`textfiles`, `strict`, `conll`), into `examples` (`tag_rows`) or
  `passages`.
* Features, and answers from predictions: `features`, `tag_features`, `choice`, `questions`, `generation`,
  `language_models`.
* Scores: `metrics` over `answer_scores`, `tag_scores`, `overlap` and `by_class`; files of answers: `submission`.

What is wrong with data, a setting or an installation is an `InputError`; of a file it names the line.
"""
