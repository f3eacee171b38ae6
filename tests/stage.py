"""Machines that are made up: drivers, installed packages and CuPys, each in an interpreter of its own."""

import ctypes.util
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EMULATED = os.environ.get("CUDASIM") == "1"
HAS_CUPY = importlib.util.find_spec("cupy") is not None
HAS_NVRTC = "nvidia-cuda-nvrtc-cu12" in {d.name for d in importlib.metadata.distributions()}


# What such a machine is made of: names for the statements that run before gpuopt is imported.
STAGE = '''
import contextlib, ctypes, importlib.metadata, json, os, sys, types

def driver(version):
    """An NVIDIA driver for this version of CUDA, or none."""
    real = ctypes.CDLL
    def load(name, *arguments, **options):
        if name not in ("libcuda.so.1", "nvcuda.dll"):
            return real(name, *arguments, **options)
        if version is None:
            raise OSError(f"{name}: cannot open shared object file")
        def get(reference):
            reference._obj.value = version
            return 0
        return types.SimpleNamespace(cuDriverGetVersion=get)
    ctypes.CDLL = load

def packages(*names):
    """The installed distributions of CuPy."""
    real = importlib.metadata.distribution
    def distribution(name):
        if name.startswith("cupy") and name not in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return None if name.startswith("cupy") else real(name)
    importlib.metadata.distribution = distribution

def no_cupy():
    sys.modules["cupy"] = None

def no_cublas():
    """A real CuPy that does not find cuBLAS."""
    from cuda import pathfinder
    load = pathfinder.load_nvidia_dynamic_lib
    def find(name):
        if name.startswith("cublas"):
            raise pathfinder.DynamicLibNotFoundError(f'Failure finding "lib{name}.so.12"')
        return load(name)
    pathfinder.load_nvidia_dynamic_lib = find

def nvrtc(source):
    """What NVRTC itself says of a source that it cannot compile; it needs no device."""
    import importlib.util, pathlib
    folder = pathlib.Path(*importlib.util.find_spec("nvidia.cuda_nvrtc").submodule_search_locations)
    library = ctypes.CDLL(str(next(folder.glob("lib/libnvrtc.so.*"))))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"k.cu", 0, None, None) == 0
    assert library.nvrtcCompileProgram(program, 0, None) != 0
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    return log.value.decode()

def cupy(cuda=12, devices=1, looking=None, compiling=None, answer=42, multiplying="libcublas.so.12: not found",
         hip=False):
    """A CuPy for this CUDA, or for AMD's: the number of devices, what looking for them, compiling and multiplying raise, the kernel's
    result."""
    calls = []
    def count():
        calls.append("count")
        if looking: raise RuntimeError(looking)
        return devices
    def compile(source):
        calls.append("compile")
        if compiling: raise RuntimeError(compiling)
        return b""
    class ndarray:
        def __iadd__(self, other): return self
        def get(self): return [answer]
        def __matmul__(self, other): raise ImportError(multiplying)
    import gpuopt.nvrtc
    gpuopt.nvrtc.compiled, gpuopt.nvrtc.loaded = compile, lambda image, name: lambda *launch: None
    fake = types.ModuleType("cupy")
    fake.__version__, fake.ndarray, fake.calls = "14.0.0", ndarray, calls
    fake.empty = fake.ones = lambda size, dtype: ndarray()
    fake.cuda = types.SimpleNamespace(
        Device=lambda index: contextlib.nullcontext(),
        runtime=types.SimpleNamespace(
            is_hip=hip, runtimeGetVersion=lambda: 1000 * cuda, getDeviceCount=count, getDevice=lambda: 0,
            getDeviceProperties=lambda index: {"name": b"Fake GPU", "major": 9, "minor": 0},
            memGetInfo=lambda: (1, 2)))
    sys.modules["cupy"] = fake
'''


def on(driver: int | None, cupy: str, *packages: str) -> str:
    """Statements for a driver, a CuPy and its distributions."""
    return f"driver({driver})\n{cupy}\npackages{packages}"


def run(
    code: str,
    env: dict[str, str] | None = None,
    path: Path | None = None,
    warnings: str = "error",
    *,
    emulated: bool = True,
) -> str:
    """Run code in a fresh interpreter, where a warning is an error; nothing may reach its stderr.

    `path` goes on PYTHONPATH, and is the argument of the code. Not `emulated`: without the emulator, if there is one.
    """
    unset = {"GPUOPT_BACKEND", "CUDA_VISIBLE_DEVICES", "CUDASIM_DEVICES"}
    clean = {k: v for k, v in os.environ.items() if k not in unset}
    if not emulated and EMULATED:
        outside = [folder for folder in clean["PYTHONPATH"].split(os.pathsep) if "cudasim" not in folder]
        clean["PYTHONPATH"] = os.pathsep.join(outside)
    if path is not None:
        clean["PYTHONPATH"] = os.pathsep.join([str(path), *filter(None, [clean.get("PYTHONPATH")])])
    command = [sys.executable, "-W", warnings, "-c", code, str(path)]
    done = subprocess.run(command, env=clean | (env or {}), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def documented(reason: str) -> bool:
    """Whether a row of docs/gpu-faults.md has this sentence, its cause in one column and its cure in the next."""
    text = (Path(__file__).parent.parent / "docs" / "gpu-faults.md").read_text()
    table = text.partition("<!--")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    sentences = (re.escape(f"{said}; {cure}").replace("…", ".*") for _, said, cure in rows[2:])
    return any(re.fullmatch(sentence, reason) for sentence in sentences)


def skip_unless(needs: str) -> None:
    if needs == "NVRTC" and not HAS_NVRTC:
        pytest.skip("needs NVIDIA's package of NVRTC")
    if needs == "emulator" and not EMULATED:
        pytest.skip("needs an emulated device")
    if needs == "no driver" and not HAS_CUPY:
        pytest.skip("needs CuPy")
    if needs == "no driver" and ctypes.util.find_library("cuda") is not None:
        pytest.skip("needs a machine without an NVIDIA driver")
