#!/usr/bin/env python
"""Fine-tune on GLUE, CLUE or your own data with R-Drop: `python run_glue_rdrop.py --help`."""

import sys

from rdrop_trainer.script.main import main

if __name__ == "__main__":
    sys.exit(main())
