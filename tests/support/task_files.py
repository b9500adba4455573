"""Files of tasks as the tests write them, and what is read of them."""

import json

from rdrop_trainer.glue.data import load_task
from rdrop_trainer.glue.tasks import TASKS


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def tsv(*rows):
    return "".join("\t".join(row) + "\n" for row in rows)


def jsonl(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def load(task, data_dir, **options):
    return {
        split: {name: list(data[name]) for name in data.column_names}
        for split, data in load_task(TASKS[task], data_dir=data_dir, **options).items()
    }


NEWS = {"id": 7, "sentence": "好", "label": "104", "label_desc": "news_finance"}
WSC = {"text": "小明说他来了", "target": {"span1_text": "小明", "span1_index": 0, "span2_text": "他", "span2_index": 3}}
