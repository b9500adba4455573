"""The notebooks: kept with what they print and draw, and run again, briefly, in a kernel of their own."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra notebooks")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# One variable is what a reader changes to take a real model
MODELS = re.compile(r"(?m)^\w*MODEL = None\b")
SHORT = {r"(?m)^EPOCHS = \d+": "EPOCHS = 1", r"(?m)^SEEDS = .*": "SEEDS = (1,)"}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_four_of_them():
    names = ["01_swap_trainer", "02_token_and_seq2seq", "03_semi_supervised_chinese", "04_share_on_the_hub"]
    assert [path.stem for path in NOTEBOOKS] == names


def test_says_first_what_one_will_see_and_takes_a_model_of_the_hub(notebook):
    assert notebook.cells[0].cell_type == "markdown"
    assert re.search(r"^# .+\n\n\*\*What you will see\.\*\* ", notebook.cells[0].source)
    assert MODELS.search(code_cells(notebook)[0].source)


def test_is_kept_as_it_ran(notebook):
    """From top to bottom in one go, without an error, a complaint or a path of the machine it ran on."""
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any(output.output_type in ("display_data", "execute_result") for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert "/tmp/" not in str(outputs) and "/home/" not in str(outputs)


@pytest.mark.notebooks
def test_runs(notebook, monkeypatch, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="needs the extra notebooks")
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    settings = code_cells(notebook)[0]
    for old, new in SHORT.items():
        settings.source = re.sub(old, new, settings.source)
    resources = {"metadata": {"path": str(NOTEBOOKS[0].parent)}}
    nbclient.NotebookClient(notebook, timeout=180, kernel_name="python3", resources=resources).execute()
