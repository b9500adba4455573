"""No test reaches for a network: a model or data set that is not on disk fails at once."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
