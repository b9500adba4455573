"""The public names: each is in docs/api.md, and its docstring explains its parameters and shows examples that run."""

import dataclasses
import doctest
import importlib
import inspect
import re
import subprocess
import sys

import pytest

from support import ROOT

PACKAGES = ["rdrop_trainer", *(f"rdrop_trainer.{name}" for name in ("losses", "hub", "report", "stability"))]
PUBLIC = {name: getattr(module, name) for module in map(importlib.import_module, PACKAGES) for name in module.__all__}
CALLABLES = {name: value for name, value in PUBLIC.items() if callable(value)}


def documented():
    """The entries of docs/api.md, which name modules and what is in them."""
    return re.findall(r"(?m)^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"))


def test_every_public_name_stands_in_the_api_page():
    entries = documented()
    assert len(entries) == len(set(entries))
    lacking = PUBLIC.keys() - {entry.rpartition(".")[2] for entry in entries}
    assert not lacking, f"docs/api.md lacks {', '.join(sorted(lacking))}"


@pytest.mark.parametrize("entry", documented())
def test_entries_name_where_things_are_defined(entry):
    module, *names = re.split(r"\.(?=[A-Z])|\.(?=[^.]+$)", entry)
    found = importlib.import_module(module)
    for name in names:
        found = getattr(found, name)
    assert getattr(found, "__module__", module) == module
    assert found is PUBLIC.get(names[-1], found)


def fields_of(value):
    """The names that a docstring must explain: parameters of a function or of a class, fields of a data class."""
    if not inspect.isclass(value):
        return list(inspect.signature(value).parameters)
    if issubclass(value, Exception):
        return []
    if dataclasses.is_dataclass(value):
        # The help text of a setting stands in its metadata
        return [field.name for field in dataclasses.fields(value) if "help" not in field.metadata]
    if "__init__" in vars(value):
        return list(inspect.signature(value).parameters)
    return list(getattr(value, "_fields", ()))


@pytest.mark.parametrize("name", [name for name in CALLABLES if not name.endswith("TrainingArguments")])
def test_docstrings_are_complete(name):
    value = CALLABLES[name]
    doc = inspect.getdoc(value)
    assert doc
    explained = {word.strip(" *") for line in re.findall(r"(?m)^    ([\w*, ]+): \S", doc) for word in line.split(",")}
    assert set(fields_of(value)) <= explained
    if not inspect.isclass(value):
        assert inspect.signature(value).return_annotation == "None" or "\nReturns:\n" in doc


def examples():
    for path in sorted((ROOT / "rdrop_trainer").rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            yield from (test for test in doctest.DocTestFinder().find(module) if test.examples)


@pytest.mark.parametrize("example", list(examples()), ids=lambda test: test.name)
def test_examples_in_docstrings(example):
    if example.name.startswith("rdrop_trainer.report"):
        pytest.importorskip("scipy", reason="needs the extra report")
    failed = []
    doctest.DocTestRunner().run(example, out=failed.append)
    assert not failed, "".join(failed)


def test_the_site_is_built_without_a_warning(tmp_path):
    for package in ("mkdocs", "mkdocstrings_handlers.python"):
        pytest.importorskip(package, reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "docs" / "api" / "index.html").read_text(encoding="utf-8")
    for entry in documented():
        assert f'id="{entry}"' in page
