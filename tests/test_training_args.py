"""The settings: defaults, ranges, and how they reach the parser."""

from dataclasses import dataclass, fields

import pytest
from transformers import HfArgumentParser, TrainingArguments

from rdrop_trainer import RDropArguments, RDropTrainer, RDropTrainingArguments
from rdrop_trainer.dropout import active_dropout
from support import tiny


def test_defaults_and_help():
    settings = RDropArguments()
    values = {f.name: getattr(settings, f.name) for f in fields(settings)}
    assert values == {
        "rdrop_alpha": 4.0,
        "rdrop_num_passes": 2,
        "rdrop_every_n_steps": 1,
        "rdrop_row_share": 1.0,
        "rdrop_warmup_steps": 0,
        "rdrop_forward_mode": "concat",
        "rdrop_reduction": "mean",
        "rdrop_problem": "auto",
        "rdrop_heads": None,
        "rdrop_unlabeled_ratio": 1.0,
        "rdrop_fused_head": "auto",
        "rdrop_allow_deterministic": False,
        "rdrop_allow_nonfinite": False,
        "rdrop_dropout": None,
    }
    assert all(len(f.metadata["help"]) > 60 for f in fields(settings))


@pytest.mark.parametrize(
    "name, value",
    [
        ("rdrop_alpha", -0.1),
        ("rdrop_alpha", float("inf")),
        ("rdrop_alpha", float("nan")),
        ("rdrop_num_passes", 1),
        ("rdrop_num_passes", 2.5),
        ("rdrop_num_passes", float("nan")),
        ("rdrop_alpha", "4"),
        ("rdrop_alpha", True),
        ("rdrop_every_n_steps", 0),
        ("rdrop_warmup_steps", -1),
        ("rdrop_warmup_steps", 2.5),
        ("rdrop_warmup_steps", float("nan")),
        ("rdrop_unlabeled_ratio", 0.0),
        ("rdrop_unlabeled_ratio", float("inf")),
        ("rdrop_dropout", 1.0),
        ("rdrop_dropout", -0.1),
        ("rdrop_dropout", "0.1"),
        ("rdrop_forward_mode", "parallel"),
        ("rdrop_reduction", "batchmean"),
        ("rdrop_problem", "ranking"),
    ],
)
@pytest.mark.parametrize("cls", [RDropArguments, RDropTrainingArguments])
def test_ranges(cls, name, value, tmp_path):
    arguments = {"output_dir": str(tmp_path)} if cls is RDropTrainingArguments else {}
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        cls(**arguments, **{name: value})


def test_whole_floats_become_integers():
    settings = RDropArguments(rdrop_num_passes=3.0, rdrop_every_n_steps=2.0, rdrop_alpha=1)
    assert [type(v) for v in (settings.rdrop_num_passes, settings.rdrop_every_n_steps, settings.rdrop_alpha)] == [
        int,
        int,
        float,
    ]


def test_both_parents_are_initialised(tmp_path):
    args = RDropTrainingArguments(str(tmp_path), rdrop_alpha=1.0, learning_rate=1e-3, report_to="none")
    assert isinstance(args, TrainingArguments) and args.rdrop_alpha == 1.0 and args.device is not None
    assert args.to_dict()["rdrop_alpha"] == 1.0


def test_parser(tmp_path):
    parser = HfArgumentParser(RDropTrainingArguments)
    (args,) = parser.parse_args_into_dataclasses(
        f"--output_dir {tmp_path} --rdrop_alpha 2 --rdrop_forward_mode recompute --rdrop_warmup_steps 0.1".split()
    )
    assert (args.rdrop_alpha, args.rdrop_forward_mode, args.rdrop_warmup_steps) == (2.0, "recompute", 0.1)


@dataclass
class HeadArguments:
    """A user's own."""

    dropout: float = 0.5


@dataclass
class OwnArguments(TrainingArguments):
    dropout: float = 0.5


def test_a_dropout_of_the_users_own_is_his(tmp_path):
    parser = HfArgumentParser([RDropTrainingArguments, HeadArguments])
    flags = f"--output_dir {tmp_path} --report_to none --dropout 0.4 --rdrop_dropout 0.2".split()
    args, head = parser.parse_args_into_dataclasses(flags)
    assert (args.rdrop_dropout, head.dropout) == (0.2, 0.4)
    model = tiny.bert(dropout=0.1)
    RDropTrainer(model, OwnArguments(str(tmp_path), report_to="none"))
    assert {place.p for place in active_dropout(model)} == {0.1} and model.config.hidden_dropout_prob == 0.1


@pytest.mark.parametrize(
    "warmup, max_steps, expected",
    [
        (0, 10, [4.0] * 4),
        (4, 10, [1.0, 2.0, 3.0, 4.0]),
        (0.2, 10, [2.0, 4.0, 4.0, 4.0]),
        (0.15, 10, [2.0, 4.0, 4.0, 4.0]),
        (1, 10, [4.0] * 4),
    ],
)
def test_alpha_schedule(warmup, max_steps, expected):
    settings = RDropArguments(rdrop_warmup_steps=warmup)
    assert [settings.alpha_at(step, max_steps) for step in range(4)] == expected


def test_rdrop_steps():
    settings = RDropArguments(rdrop_every_n_steps=3)
    assert [settings.is_rdrop_step(s) for s in range(7)] == [True, False, False, True, False, False, True]
    assert not RDropArguments(rdrop_alpha=0).is_rdrop_step(0)


def test_settings_are_checked_again_only_where_one_has_changed():
    args = TrainingArguments("unused", report_to="none", use_cpu=True)
    known = RDropArguments.of(args)
    assert RDropArguments.of(args, known) is known
    args.rdrop_alpha, args.rdrop_heads = 2, [{"logits": "a", "labels": "b"}]
    changed = RDropArguments.of(args, known)
    assert (changed.rdrop_alpha, changed.rdrop_heads[0]["align"]) == (2.0, "auto") and known.rdrop_alpha == 4.0
    args.rdrop_alpha = float("nan")
    with pytest.raises(ValueError, match="rdrop_alpha must be"):
        RDropArguments.of(args, changed)
