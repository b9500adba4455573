"""`--demo`: R-Drop beside the baseline on data and a model made on the spot, without a network."""

from __future__ import annotations

import csv
import os
import random
import shlex
from itertools import count
from pathlib import Path

from ..errors import InputError
from . import program
from .command_line import parse_arguments
from .comparison import compare_baseline
from .output_dir import check_writable
from .scratch import make_bert

SEEDS = (1, 2, 3)
TRAIN_ROWS, VALIDATION_ROWS = 200, 600
# Share of wrong training labels, as real annotation has them, for a model to overfit to
WRONG_LABELS = 0.15
FLAGS = (
    "--per_device_train_batch_size 16 --per_device_eval_batch_size 100 --num_train_epochs 20 --learning_rate 1e-3 "
    "--warmup_steps 0.1 --max_seq_length 32 --save_strategy no --logging_strategy no --do_train --do_eval "
    "--log_level error"
)

_THINGS = {
    "en": "film book hotel phone song meal show game room trip lamp coat car shop class desk".split(),
    "zh": "电影 小说 酒店 手机 歌曲 晚餐 演出 游戏 房间 旅行 台灯 外套 汽车 商店 课程 书桌".split(),
}
_GOOD = {
    "en": "wonderful charming excellent lovely superb delightful splendid pleasant brilliant fine".split(),
    "zh": "精彩 舒适 出色 可爱 完美 愉快 优秀 漂亮 贴心 满意".split(),
}
_BAD = {
    "en": "terrible boring awful ugly poor dreadful tedious nasty useless dull".split(),
    "zh": "糟糕 无聊 失望 难看 差劲 痛苦 乏味 粗糙 劣质 难受".split(),
}
# (template, whether it negates the word)
_TEMPLATES = {
    "en": [
        ("the {0} was {1}", False),
        ("i found this {0} really {1}", False),
        ("what a {1} {0} that was", False),
        ("we all thought the {0} was {1}", False),
        ("the {0} was not {1} at all", True),
        ("i will come back for this {1} {0}", False),
    ],
    "zh": [
        ("这{0}很{1}", False),
        ("我觉得这次的{0}非常{1}", False),
        ("大家都说{0}{1}", False),
        ("没想到{0}这么{1}", False),
        ("这{0}一点也不{1}", True),
        ("下次还要找这么{1}的{0}", False),
    ],
}


def make_sentences(rows: int, seed: int, wrong_labels: float = 0.0) -> list[tuple[str, str]]:
    """Made-up sentences, half English and half Chinese, each with "negative" or "positive"."""
    rng = random.Random(seed)
    sentences = []
    for i in range(rows):
        language = ("en", "zh")[i % 2]
        template, negates = rng.choice(_TEMPLATES[language])
        good = rng.random() < 0.5
        word = rng.choice((_GOOD if good else _BAD)[language])
        positive = (good != negates) != (rng.random() < wrong_labels)
        text = template.format(rng.choice(_THINGS[language]), word)
        sentences.append((text, "positive" if positive else "negative"))
    return sentences


def run_demo(output_dir: Path | None = None, use_cpu: bool = True) -> int:
    """Compare baseline and R-Drop on several seeds; the exit code of the comparison.

    Args:
        output_dir: the comparison's folder; by default the first of runs/demo, runs/demo-2, ... that does not exist.
        use_cpu: train on the CPU, which is as fast for a model this small, and gives the same figures everywhere.
    """
    if output_dir is None:
        names = (Path("runs") / ("demo" if i == 1 else f"demo-{i}") for i in count(1))
        output_dir = next(path for path in names if not path.exists())
    check_writable(output_dir)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise InputError(f"{output_dir}: holds files already; choose another --output_dir for the demo")
    train = make_sentences(TRAIN_ROWS, seed=1, wrong_labels=WRONG_LABELS)
    validation = make_sentences(VALIDATION_ROWS, seed=2)
    output_dir.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("validation", validation)):
        with open(output_dir / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("sentence", "label"), *rows])
    make_bert(output_dir / "model", [text for text, _ in make_sentences(4000, seed=3)])
    print(
        f"Demo: {TRAIN_ROWS} made-up English and Chinese sentences, {WRONG_LABELS:.0%} of them labeled wrongly, to "
        f"train on; {VALIDATION_ROWS} to evaluate; a two-layer BERT with random weights; {len(SEEDS)} seeds each."
    )
    argv = [
        *shlex.split(FLAGS),
        f"--use_cpu={use_cpu}",
        f"--model_name_or_path={output_dir / 'model'}",
        f"--train_file={output_dir / 'train.csv'}",
        f"--validation_file={output_dir / 'validation.csv'}",
        f"--output_dir={output_dir}",
        "--compare_baseline",
        f"--parallel={min(len(SEEDS), os.cpu_count() or 1)}",
        "--seeds",
        *map(str, SEEDS),
    ]
    code = compare_baseline(parse_arguments(argv))
    print(f"\nMade-up data and {len(SEEDS)} seeds show that both run, not what R-Drop does on yours.")
    print(f"next      {program.in_short()} --help")
    return code
