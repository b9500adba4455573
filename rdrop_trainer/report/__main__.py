"""`python -m rdrop_trainer.report FOLDER`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .._console import print_any_text
from ..errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 2 for wrong input."""
    print_any_text()
    options = _parser().parse_args(argv)
    from .writing import report_folder  # with torch and transformers, which --help can do without

    try:
        report = report_folder(options.folder, options.output_dir, options.alpha)
    except InputError as error:
        print(f"rdrop_trainer.report: error: {error}", file=sys.stderr)
        return 2
    print(report.summary())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rdrop_trainer.report",
        description="Does R-Drop help? Report on the finished runs of a comparison.",
    )
    parser.add_argument("folder", type=Path, help="folder that holds the folders of the runs")
    parser.add_argument("--alpha", type=float, help="alpha of the R-Drop runs, where there are several")
    parser.add_argument("--output_dir", type=Path, help="where the report goes; default: the folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
