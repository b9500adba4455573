"""`python -m rdrop_trainer.script`."""

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())
