"""The checks of a release, each one command: `nox -s NAME`, after `pip install nox uv` in any environment."""

import hashlib
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["lint", "tests"]

# The lower bounds of pyproject.toml on the oldest Python, and the newest versions there are
VERSIONS = {"oldest": ("3.10", "lowest-direct"), "newest": ("3.11", "highest")}
NOT_DISTRIBUTED = {".ci", ".github", ".gitignore", ".pre-commit-config.yaml"}


@nox.session
@nox.parametrize("python, resolution", list(VERSIONS.values()), ids=list(VERSIONS))
def tests(session, resolution):
    """Run the suite, with the oldest versions that the package claims, or with the newest."""
    session.install("-e", ".[dev]", "--resolution", resolution)
    session.run("uv", "pip", "freeze", external=True)
    session.run("pytest", *session.posargs)


@nox.session
def gpu(session):
    """Run the group `gpu` on a GPU, and measure what is to be reached there: prints a table, and writes gpu.json."""
    session.install("-e", ".[dev]", "-c", "constraints.txt")
    refusal = "nox -s gpu needs a GPU, and torch sees none here"
    session.run("python", "-c", f"import sys, torch; torch.cuda.is_available() or sys.exit('{refusal}')")
    one = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    try:
        # The host takes most of the time of models this small; processes share the kernels that one has compiled
        session.run("pytest", "-n", "4", "--dist", "load", "-m", "gpu", *session.posargs, env=one)
    finally:  # figures are worth having where a test fails
        session.run("python", "benchmarks/gpu.py", "--json", "gpu.json", env=one)


@nox.session
def lint(session):
    """Run ruff, without installing the package."""
    session.install("ruff>=0.15")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def audit(session):
    """Find known vulnerabilities of the versions in constraints.txt; a package that cannot be checked fails it."""
    session.install("pip-audit>=2.7")
    session.run("pip-audit", "--strict", "--disable-pip", "--no-deps", "-r", "constraints.txt", *session.posargs)


@nox.session
def build(session):
    """Build the last commit twice, compare, check the contents, install in an empty environment, copy to dist/."""
    session.install("build>=1.2", "twine>=6.1")
    os.umask(0o022)  # a wheel keeps the modes of its files
    files = set(git(session, "ls-tree", "-r", "--name-only", "HEAD").splitlines())
    first, second = (Build(session, name) for name in ("first", "second"))

    session.log(f"wheel: sha256 {hashlib.sha256(first.wheel.read_bytes()).hexdigest()}")
    if first.wheel.read_bytes() != second.wheel.read_bytes():
        session.error("two builds of the wheel differ")
    if first.in_sdist() != second.in_sdist():  # their bytes differ: setuptools gives new files the time of day
        session.error("the files of two source archives differ")

    wheel = {name for name in first.in_wheel() if ".dist-info/" not in name}
    if wheel != (expected := {name for name in files if name.startswith("rdrop_trainer/")}):
        session.error(f"the wheel holds other files than rdrop_trainer/: {sorted(wheel ^ expected)}")
    if not any(name.endswith("/licenses/LICENSE") for name in first.in_wheel()):
        session.error("the wheel has no LICENSE")
    expected = {name for name in files if name.split("/")[0] not in NOT_DISTRIBUTED}
    if lacking := expected - first.in_sdist().keys():
        session.error(f"the source archive lacks {sorted(lacking)}")
    session.run("twine", "check", "--strict", str(first.wheel), str(first.sdist))

    alone = ["uv", "run", "--no-project", "--isolated", "--with", f"{first.wheel}[report]", "python"]
    with session.chdir(session.create_tmp()):  # away from the sources
        session.run(*alone, "-c", "import rdrop_trainer; print(rdrop_trainer.RDropTrainer)", external=True)
        session.run(*alone, "-m", "rdrop_trainer.report", "--help", external=True)
    shutil.rmtree("dist", ignore_errors=True)
    shutil.copytree(first.wheel.parent, "dist")
    session.log("built and checked: dist/")


class Build:
    """Wheel and source archive of the last commit, built in a folder that holds nothing else."""

    def __init__(self, session, name):
        folder = Path(session.create_tmp(), name).resolve()
        shutil.rmtree(folder, ignore_errors=True)
        source, out = folder / "source", folder / "dist"
        source.mkdir(parents=True)
        git(session, "archive", "--output", str(folder / "source.tar"), "HEAD")
        shutil.unpack_archive(folder / "source.tar", source)
        epoch = git(session, "log", "-1", "--format=%ct").strip()
        session.run(
            "python", "-m", "build", "--outdir", str(out), str(source), env={"SOURCE_DATE_EPOCH": epoch}, silent=True
        )
        (self.wheel,), (self.sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")

    def in_wheel(self):
        with zipfile.ZipFile(self.wheel) as file:
            return set(file.namelist())

    def in_sdist(self):
        """Contents by path; the archive's top folder is left out of the paths."""
        with tarfile.open(self.sdist) as file:
            return {m.name.partition("/")[2]: file.extractfile(m).read() for m in file if m.isfile()}


def git(session, *words):
    return session.run("git", *words, external=True, silent=True)
