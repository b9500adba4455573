"""What the tests share: tiny models, independent formulas, a Hub, and the scripts they run in processes."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "run_glue_rdrop.py"


def blocks_of(page, *languages):
    """The blocks of code of a page in some languages."""
    found = re.findall(r"(?ms)^ *```(\w*)\n(.*?)^ *```$", page.read_text(encoding="utf-8"))
    return [text for language, text in found if language in languages]


def names_of(page, **names):
    """What the Python blocks of a page define, run one after another."""
    names["__name__"] = page
    for text in blocks_of(ROOT / page, "python"):
        exec(compile(text, page, "exec"), names)
    return names
