"""Make a small BERT from scratch, its tokenizer made of the texts of JSON-lines files.

python benchmarks/small_bert.py --output_dir small_bert data/tnews/train.json data/tnews/unlabeled.json
"""

import argparse
import json
from pathlib import Path

from rdrop_trainer.script.scratch import make_bert

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("files", nargs="+", type=Path, help="JSON-lines files; all their text fields are used")
parser.add_argument("--output_dir", required=True, type=Path)
parser.add_argument("--vocab_size", type=int, default=8000)
parser.add_argument("--hidden_size", type=int, default=256)
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--heads", type=int, default=4)
parser.add_argument("--max_length", type=int, default=128)
options = vars(parser.parse_args())


def texts(files):
    for path in files:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield from (value for key, value in row.items() if isinstance(value, str) and "label" not in key)


make_bert(options.pop("output_dir"), texts(options.pop("files")), **options)
