"""The command that writes a report, and what it refuses."""

import json

import pytest

from rdrop_trainer.errors import InputError
from rdrop_trainer.report import write_report
from rdrop_trainer.report.__main__ import main
from support.reports import run, write_folder


def refused(capsys, *argv):
    assert main([str(word) for word in argv]) == 2
    return capsys.readouterr().err


def test_the_command(runs, capsys, tmp_path):
    assert main([str(runs), "--output_dir", str(tmp_path / "there")]) == 0
    assert "R-Drop (alpha 4) against its baseline, 5 seeds" in capsys.readouterr().out
    assert (tmp_path / "there" / "report.md").exists() and not (runs / "report.md").exists()


def test_several_alphas_need_a_choice(runs, capsys):
    write_folder(runs / "other", 1, 2.0, 0.9)
    assert "R-Drop runs with alpha 2, 4: choose one of them" in refused(capsys, runs)
    assert main([str(runs), "--alpha", "2"]) == 0
    report = json.loads((runs / "report.json").read_text())
    assert report["alpha"] == 2 and report["seeds"] == [1] and report["incomplete_seeds"] == [2, 3, 4, 5]
    assert "one of the two runs is missing: seed 2, 3, 4, 5" in (runs / "report.md").read_text()


def test_what_cannot_be_compared(runs, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no finished run" in refused(capsys, tmp_path / "empty")
    write_folder(runs / "again", 1, 4.0, 0.9)
    two = f"({runs / 'again'} and {runs / 'rdrop1'})"
    assert f"two runs with alpha 4 and seed 1 {two}: leave one of them out" in refused(capsys, runs)
    (runs / "again" / "all_results.json").write_text("{")
    assert "again/all_results.json: is not that of a finished run" in refused(capsys, runs)
    (runs / "again" / "all_results.json").unlink()
    assert main([str(runs)]) == 0
    write_folder(runs / "longer", 6, 4.0, 0.9, learning_rate=1e-4)
    write_folder(runs / "shorter", 6, 0.0, 0.9)
    line = refused(capsys, runs)
    assert "learning_rate is 2e-05 with seed 1 and alpha 0, 0.0001 with seed 6 and alpha 4" in line
    assert "alpha 0 is the baseline" in refused(capsys, runs, "--alpha", "0")
    with pytest.raises(InputError, match=r"no seed has both .* \(seeds: baseline 1; R-Drop 2\)"):
        write_report([run(1, 0.0)], [run(2, 4.0)], tmp_path)


@pytest.mark.parametrize("name", ["eval_logits.npz", "trainer_state.json"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off"])
def test_the_file_that_is_damaged_is_named(runs, capsys, name, content):
    (runs / "plain1" / name).write_bytes(content)
    assert f"plain1/{name}: is not that of a finished run" in refused(capsys, runs)


def test_r_drops_own_settings_may_differ_from_the_baselines_and_not_among_themselves(runs, capsys):
    write_folder(runs / "plain6", 6, 0.0, 0.8, rdrop_num_passes=2)
    write_folder(runs / "rdrop6", 6, 4.0, 0.8, rdrop_num_passes=3)
    assert main([str(runs)]) == 0, "runs 1 to 5 do not say"
    write_folder(runs / "plain7", 7, 0.0, 0.8, rdrop_num_passes=2)
    write_folder(runs / "rdrop7", 7, 4.0, 0.8, rdrop_num_passes=2)
    (runs / "rdrop1" / "all_results.json").unlink()
    for seed in range(2, 6):
        (runs / f"rdrop{seed}" / "all_results.json").unlink()
    assert "rdrop_num_passes is 3 with seed 6" in refused(capsys, runs)
