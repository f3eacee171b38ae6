"""Compiled CUDA kernels on disk: whatever is wrong with the folder costs a compilation and nothing else."""

import errno
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from spaces import Space

import gpuopt
from gpuopt import nvrtc
from gpuopt.engines.cuda import cache

TEXT = 'extern "C" __global__ void nothing() {}'


@pytest.fixture
def compilations(cupy_space: Space, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs that are compiled, one after the other."""
    seen: list[str] = []
    real = nvrtc.compiled

    def compiled(source: str) -> bytes:
        seen.append(source)
        return real(source)

    monkeypatch.setattr(nvrtc, "compiled", compiled)
    return seen


def take_a_step(space: Space) -> None:
    """Compile or find the kernel of a rule, load it, and see whether it does what it should."""
    cache.function.cache_clear()
    w = space.put([1.0, 2.0])
    gpuopt.Optimizer(w, gpuopt.SGD(lr=0.5), engine="fused").step(space.put([1.0, 1.0]))
    assert space.get(w).tolist() == [0.5, 1.5]


def kept_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.startswith("gpuopt_"))


def test_a_kernel_is_compiled_once(
    cupy_space: Space, compilations: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "new" / "folder"))
    for _ in range(3):
        take_a_step(cupy_space)
    assert len(compilations) == 1
    assert len(kept_files(tmp_path / "new" / "folder")) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:20],
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: content[: cache.DIGEST] + bytes(len(content) - cache.DIGEST),
        lambda content: content[cache.DIGEST :],
    ],
    ids=["empty", "digest cut", "end cut", "longer", "zeros", "no digest"],
)
def test_a_damaged_file_is_replaced(
    damage: Callable[[bytes], bytes],
    cupy_space: Space,
    compilations: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    take_a_step(cupy_space)
    (kept,) = kept_files(tmp_path)
    content = kept.read_bytes()
    kept.write_bytes(damage(content))
    for _ in range(2):
        take_a_step(cupy_space)
    assert len(compilations) == 2
    assert kept_files(tmp_path) == [kept]


def test_a_relative_folder(
    cupy_space: Space, compilations: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUPY_CACHE_DIR", "kernels")
    for _ in range(2):
        take_a_step(cupy_space)
    assert len(compilations) == 1
    assert kept_files(tmp_path / "kernels")


def no_home(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that the system does not know."""

    def unknown(*_: object) -> None:
        raise KeyError

    monkeypatch.delenv("CUPY_CACHE_DIR")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)


def a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file where the folder should be."""
    (folder / "file").write_bytes(b"")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(folder / "file"))


def below_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file where a folder above should be."""
    (folder / "file").write_bytes(b"")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(folder / "file" / "kernels"))


def a_folder_for_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder where the kernel's file should be."""
    real = cache._write

    def occupied(path: Path, content: bytes) -> None:
        (path / "something").mkdir(parents=True, exist_ok=True)
        real(path, content)

    monkeypatch.setattr(cache, "_write", occupied)


def read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file can be made in the folder; other folders are as ever."""
    real = tempfile.NamedTemporaryFile

    def refuse(*arguments: Any, **options: Any) -> Any:
        if Path(options["dir"]) == folder:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(*arguments, **options)

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)


def full(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk on which files can be made, and nothing written to them, the folder for temporary files included."""
    real = Path.write_bytes

    def write_bytes(path: Path, content: Any) -> int:
        if path.is_relative_to("/proc"):
            return real(path, content)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    made = tempfile.NamedTemporaryFile

    def cramped(*arguments: Any, **options: Any) -> Any:
        file = made(*arguments, **options)
        device = os.open("/dev/full", os.O_WRONLY)
        os.dup2(device, file.fileno())
        os.close(device)
        return file

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", cramped)


def no_temporary_folder(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder at all that could be written to."""

    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)


@pytest.mark.skipif(sys.platform != "linux", reason="stages what is wrong as Linux has it")
@pytest.mark.parametrize(
    "wrong", [no_home, a_file, below_a_file, a_folder_for_a_file, read_only, full, no_temporary_folder]
)
def test_a_folder_that_cannot_be_used_costs_the_compilation(
    wrong: Callable[[Path, pytest.MonkeyPatch], None],
    cupy_space: Space,
    compilations: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    wrong(tmp_path, monkeypatch)
    for _ in range(2):
        take_a_step(cupy_space)
    assert len(compilations) == 2
    assert not [path for path in kept_files(tmp_path) if path.is_file()]


PROGRAM = """
import sys, time
from pathlib import Path
import cupy
from gpuopt.engines.cuda import cache

text, begin = sys.argv[1], float(sys.argv[2])
time.sleep(max(0, begin - time.time()))
for _ in range(20):
    assert cache.compiled(text)
    for path in Path(sys.argv[3]).glob("gpuopt_*.kernel"):
        path.unlink(missing_ok=True)
cache.function(text, "nothing", 0)((1,), (1,), ())
"""


def test_several_processes_at_once(compilations: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each finds no file, half of a file never, and what is left is whole."""
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    command = [sys.executable, "-c", PROGRAM, TEXT, str(time.time() + 3), str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        _, said = process.communicate(timeout=100)
        assert process.returncode == 0, said
    assert len(kept_files(tmp_path)) == 1
    cache.function.cache_clear()
    cache.function(TEXT, "nothing", 0)
    assert not compilations


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        (90, "sm_90"),
        (89, "sm_89"),
        (87, "sm_86"),
        (61, "sm_61"),
        (100, "compute_90"),
        (121, "compute_90"),
        (50, "sm_50"),
    ],
)
def test_what_code_is_made_for_which_device(capability: int, expected: str) -> None:
    assert nvrtc._architecture(capability, [60, 61, 70, 80, 86, 89, 90]) == expected


def test_a_program_that_is_wrong(cupy_space: Space) -> None:
    with cupy_space.use(), pytest.raises(nvrtc.CompilationError, match="undeclared"):
        nvrtc.compiled('extern "C" __global__ void wrong() { undeclared(); }')


def test_exactly_these_options(cupy_space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[bytes, ...]] = []
    library = nvrtc._library()

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(library, name)

        def __getitem__(self, name: str) -> Any:
            return library[name]

        def nvrtcCompileProgram(self, program: Any, count: int, options: Any) -> int:  # noqa: N802 - NVRTC's name
            given.append(tuple(options[:count]))
            return int(library.nvrtcCompileProgram(program, count, options))

    monkeypatch.setattr(nvrtc, "_library", Spy)
    with cupy_space.use():
        capability = cupy_space.device.compute_capability
        assert nvrtc.compiled(TEXT)
    assert given == [(b"-fmad=false", b"-ftz=false", f"--gpu-architecture=sm_{capability}".encode())]
