"""The programs of benchmarks/ that the pages give as commands."""

import runpy

import pytest

from support import ROOT


@pytest.mark.parametrize("name", ["single-label (BERT)", "causal LM (Llama)"])
def test_the_errors_of_a_head_are_computed(name, tmp_path):
    heads = runpy.run_path(str(ROOT / "benchmarks" / "heads.py"))
    errors = heads["against_definition"](heads["CASES"][name], tmp_path)
    assert errors.keys() == {"loss", "divergence"} and max(errors.values()) < 1e-5
