#!/usr/bin/env python
# For `uv run run_glue_rdrop.py` in a clone. Elsewhere: `uv run --with PACKAGE`, or where the package is installed
# /// script
# requires-python = ">=3.10"
# dependencies = [
#   "torch>=2.11",
#   "transformers>=5.19,<6",
#   "tokenizers!=0.23.1,!=0.23.2",
#   "datasets>=4.0",
#   "accelerate>=1.10",
#   "evaluate>=0.4.6",
#   "huggingface_hub>=1.31",
#   "scikit-learn>=1.4.2",
#   "scipy>=1.15",
#   "seqeval>=1.2.2",
#   "matplotlib>=3.8.4",
#   "rouge-score>=0.1.2",
#   "sacrebleu>=2.4",
# ]
# ///
"""Fine-tune on GLUE, CLUE or your own data with R-Drop: `python run_glue_rdrop.py --help`."""

import sys

from rdrop_trainer.script.main import main

if __name__ == "__main__":
    sys.exit(main())
