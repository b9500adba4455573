"""The package's structure, read from its source: lazy at the top, imports pointing downwards only."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import rdrop_trainer

PACKAGE = Path(rdrop_trainer.__file__).parent
# From the top down; a folder (or a module of the top level) may import only what stands below it.
FOLDERS = [
    ["script", "cross_encoder"],
    ["trainer", "report"],
    ["glue"],
    ["hub"],
    ["reliability", "stability"],
    ["semi_supervised", "search", "views", "base_loss", "logged_terms"],
    ["objective"],
    ["dropout", "training_args", "run_folder"],
    ["head", "unlabeled_rows"],
    ["losses", "_extras", "_dropout_places", "_twins"],
    ["errors", "_console", "_lazy", "_mixin_base", "overrides"],
]


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix(".__init__") if name != "__init__" else "", path


def imports_of(name, path):
    """Modules of the package that a file imports, anywhere in it."""
    package = name.split(".") if path.name == "__init__.py" and name else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            yield from (
                [".".join(base)]
                if node.module
                else [".".join([*base, a.name]) for a in node.names if a.name != "__version__"]
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rdrop_trainer"):
            yield node.module.removeprefix("rdrop_trainer").lstrip(".")


def test_folders_import_downwards():
    rank = {name: i for i, row in enumerate(FOLDERS) for name in row}
    for name, path in modules():
        if path.name == "__init__.py" and name != "losses":
            assert set(imports_of(name, path)) <= {"_lazy"}, f"{path} must not import eagerly"
            continue
        folder = name.split(".")[0]
        assert folder in rank, f"{folder} has no place in FOLDERS"
        for target in {target.split(".")[0] for target in imports_of(name, path)} - {folder}:
            assert rank[target] > rank[folder], f"{name} imports {target}, which does not stand below it"


def test_no_circles():
    graph = {name: set(imports_of(name, path)) - {name} for name, path in modules()}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_only_kernel_files_import_triton():
    for name, path in modules():
        kernels = name in ("losses.kernels", "losses.sweeps", "losses.terms", "losses.triton")
        assert kernels or not re.search(r"^\s*(import|from) triton", path.read_text("utf-8"), re.M)


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_losses_need_torch_alone():
    done = run(
        "import sys\n"
        "for name in ('transformers', 'datasets', 'accelerate', 'evaluate', 'huggingface_hub', 'numpy.testing'):\n"
        "    sys.modules[name] = None\n"
        "import torch, rdrop_trainer\n"
        "from rdrop_trainer.losses import rdrop_loss\n"
        "assert rdrop_trainer.rdrop_loss is rdrop_loss\n"
        "print(rdrop_loss(torch.randn(4, 3), torch.tensor([0, 1]), alpha=4.0).loss.item())\n"
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_nothing_heavy():
    done = run("import sys, rdrop_trainer; print([m for m in ('torch', 'transformers') if m in sys.modules])")
    assert done.stdout.strip() == "[]"


def test_public_names_exist():
    for name in rdrop_trainer.__all__:
        assert getattr(rdrop_trainer, name) is not None
