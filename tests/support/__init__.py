"""What the tests share: tiny models, independent formulas, a Hub, and the scripts they run in processes."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "run_glue_rdrop.py"
