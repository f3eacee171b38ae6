"""Settings and fixtures that all tests share."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# The products of tests are small: OpenBLAS has its threads wait for each other in loops, for longer than one of them multiplies. It reads
# this when NumPy is imported, here and in the processes that tests start.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

pytest.register_assert_rewrite("spaces")

import spaces
from hypothesis import settings
from spaces import Space

from gpuopt.engines.cpu import machine

# An emulator of CUDA that offers a second device lets every test run on one that is not the current device.
if os.environ.get("CUDASIM") == "1":
    os.environ.setdefault("CUDASIM_DEVICES", "2")

# Reports are drawn by the tests that look at them.
os.environ.setdefault("GPUOPT_REPORT", "0")

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


# Modules whose tests get near CuPy without saying so by a fixture or by "cuda" in their names, as `gpuopt train` does.
NEAR_CUPY = {"test_arrays", "test_backends", "test_check", "test_explosions", "test_killed", "test_training_on_gpu"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under the emulator leave out what does not get near CuPy: without the emulator it runs just the same."""
    if os.environ.get("CUDASIM") != "1":
        return

    def is_elsewhere(item: pytest.Item) -> bool:
        assert isinstance(item, pytest.Function)
        given = item.callspec.params if hasattr(item, "callspec") else {}
        libraries = {given[name] for name in ("space", "fused_space", "library", "found") if name in given}
        without = bool(libraries) and "cupy" not in libraries
        staged = getattr(given.get("situation"), "needs", None) in {"", "NVRTC"}  # CuPy and driver are made up
        named = "cupy" in libraries or "cupy_space" in item.fixturenames
        named |= "cuda" in item.name or item.name.startswith("test_on_cupy")
        near = item.path.stem in NEAR_CUPY or item.path.stem.startswith("test_cuda")
        quiet = not near or item.name.startswith("test_on_numpy")
        return without or staged or (quiet and not named)

    config.hook.pytest_deselected(items=[item for item in items if is_elsewhere(item)])
    items[:] = [item for item in items if not is_elsewhere(item)]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="try many more damaged files and killed runs")


@pytest.fixture(scope="session", autouse=True)
def object_files(request: pytest.FixtureRequest) -> Iterator[None]:
    """LLVM compiles a module once for all processes and sessions: it takes a third of the time, and the same text gives the same file."""
    cache = getattr(request.config, "cache", None)  # pytest may be told to have none
    if machine.why_unavailable() or cache is None:
        yield
        return
    import llvmlite.binding as llvm

    folder = cache.mkdir("object_files")
    known = llvm.llvm_version_info, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    compiler = machine._Compiler
    compile_ = compiler.image

    def image(self: machine._Compiler, text: str, *, optimize: bool) -> bytes:
        path = Path(folder, hashlib.sha256(repr((text, optimize, known)).encode()).hexdigest())
        if path.exists():
            return path.read_bytes()
        made = compile_(self, text, optimize=optimize)
        new = path.with_suffix(f".{os.getpid()}")
        new.write_bytes(made)
        new.replace(path)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "image", image)
        yield


@pytest.fixture(params=["numpy", "array_api_strict", "cupy"])
def space(request: pytest.FixtureRequest) -> Iterator[Space]:
    """Each array library in turn; of CuPy the last device, which with several is not the current one."""
    yield from spaces.opened(request.param)


@pytest.fixture(params=["numpy", "cupy"])
def fused_space(request: pytest.FixtureRequest) -> Iterator[Space]:
    """The libraries that have a fused engine."""
    yield from spaces.opened(request.param)


@pytest.fixture
def cupy_space() -> Iterator[Space]:
    """CuPy alone."""
    yield from spaces.opened("cupy")
