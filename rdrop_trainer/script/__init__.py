"""The script `run_glue_rdrop.py` and command `rdrop-glue`. `main` reads the flags and does what they ask for.

* Flags: `command_line`, `arguments`, `adapter` (LoRA), `refusals`; `program` knows how it was started, and exit codes.
* One run: `run` goes through `resolve`, `prepare` (`source`, `checkpoint`, `saved_adapter`, `model_labels`,
  `processors`), `train`, `evaluate` (`stability` as far as `extent` allows), `predict` and `publish` (`card`), and
  prints the `summary`.
* Its folder and its costs: `output_dir`, `interrupts`, `progress`, `cost`, `training_time`; before it, `dry_run` and
  `estimate`.
* Several runs: `comparison` of `arms`, and `tuning` with its `trials`; both by `several`, which runs `jobs` (in a
  `worker`, or on a `cluster`), shows them on a `board` and can `plan` them.
* `demo` with a model from `scratch`; `release` of a `release_pair` of checkpoints.

What a user has to mend is an `InputError`, wherever it is found; `main` prints it.
"""
