"""What the tests of reports share."""

import pytest

from support.reports import BASELINE, HIGHER, write_folder


@pytest.fixture
def runs(tmp_path):
    for seed, (a, b) in enumerate(zip(BASELINE, HIGHER, strict=True), 1):
        write_folder(tmp_path / "runs" / f"plain{seed}", seed, 0.0, a)
        write_folder(tmp_path / "runs" / f"rdrop{seed}", seed, 4.0, b)
    return tmp_path / "runs"


@pytest.fixture
def written():
    """For tests of the files of the pictures."""


@pytest.fixture
def drawn(monkeypatch):
    """File name -> figure of the pictures, which are not written: that takes a second each."""
    figures = {}
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda figure, path, **_: figures.update({path.name: figure})
    )
    return figures


@pytest.fixture(autouse=True)
def matplotlib(request, monkeypatch):
    """Only the tests of the pictures draw them."""
    if not {"drawn", "written"} & set(request.fixturenames):
        monkeypatch.setattr("rdrop_trainer.report.pictures.find_spec", lambda name: None)
