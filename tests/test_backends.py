"""Choosing a backend: every situation in a process of its own, with what is chosen, why, and what cures it."""

import ctypes.util
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest

from gpuopt import backends
from gpuopt.backends import Backend, BackendUnavailable, backend

EMULATED = os.environ.get("CUDASIM") == "1"
HAS_CUPY = importlib.util.find_spec("cupy") is not None
HAS_NVRTC = "nvidia-cuda-nvrtc-cu12" in {d.name for d in importlib.metadata.distributions()}


# What a situation may be made of: names for its `setup`, which runs before gpuopt is imported.
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

def cupy(cuda=12, devices=1, looking=None, compiling=None, answer=42, multiplying="libcublas.so.12: not found"):
    """A CuPy for this CUDA: the number of devices, what looking for them, compiling and multiplying raise, the kernel's
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
            runtimeGetVersion=lambda: 1000 * cuda, getDeviceCount=count, getDevice=lambda: 0,
            getDeviceProperties=lambda index: {"name": b"Fake GPU", "major": 9, "minor": 0},
            memGetInfo=lambda: (1, 2)))
    sys.modules["cupy"] = fake
'''

ASK = """
import dataclasses
import gpuopt.backends as b
from gpuopt.cli import app
from typer.testing import CliRunner

def gpuopt(*arguments):
    done = CliRunner().invoke(app, arguments, prog_name="gpuopt")
    return [done.exit_code, done.stdout, done.stderr]

def ask(name):
    try:
        return str(b.backend(name))
    except b.BackendUnavailable as error:
        return f"unavailable: {error}"

first, second = b.backend("auto"), b.backend("auto")
assert first == second and first.reason == second.reason
print(json.dumps({
    "auto": str(first), "reason": first.reason, "report": dataclasses.asdict(b.report()),
    **{name: ask(name) for name in ("cupy", "cuda", "cupy:0", "cuda:1", "cupy:7")},
    "info": gpuopt("info"),
    "train": gpuopt("train", "--epochs", "2", "--hidden", "4", "--out", sys.argv[1] + "/auto"),
    "train on cuda": gpuopt("train", "--epochs", "2", "--device", "cuda", "--out", sys.argv[1] + "/cuda")}))
"""


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


@dataclass(frozen=True)
class Situation:
    """What is there, and what has to be said about it."""

    id: str
    words: tuple[str, ...]  # in the reason of "auto" and in the error of "cupy"
    setup: str = ""  # calls of STAGE
    needs: str = ""  # "" (made by `setup` alone), "NVRTC", "emulator", "no driver" (and the real CuPy)
    env: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # on PYTHONPATH
    auto: str = "numpy"
    report: dict[str, Any] = field(default_factory=dict)
    unsaid: tuple[str, ...] = ()


CUDA12, CUDA13 = 'pip install "gpuopt[cuda12]"', 'pip install "gpuopt[cuda13]"'
TWO_WHEELS = ("cupy-cuda12x and cupy-cuda13x overwrite each other", "pip uninstall -y cupy-cuda13x", CUDA12)
SECOND_WHEEL = {
    "cupy_cuda13x-14.2.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: cupy-cuda13x\nVersion: 14.2.0\n"
}


def on(driver: int | None, cupy: str, *packages: str) -> str:
    """Statements for a driver, a CuPy and its distributions."""
    return f"driver({driver})\n{cupy}\npackages{packages}"


SITUATIONS = [
    # CuPy is not there
    Situation(
        "not installed, no driver",
        ("CuPy is not installed", "no NVIDIA driver was found (libcuda.so.1", "install its driver", CUDA12),
        on(None, "no_cupy()"),
        report={"cupy": None, "driver": None, "extra": None, "runtime": None, "devices": [], "cupy_packages": []},
    ),
    Situation(
        "not installed, driver for CUDA 12",
        ("CuPy is not installed", "CUDA 12.4", CUDA12),
        on(12040, "no_cupy()"),
        report={"cupy": None, "driver": "12.4", "extra": "cuda12"},
    ),
    Situation(
        "not installed, driver for CUDA 13",
        ("CuPy is not installed", "CUDA 13.0", CUDA13),
        on(13000, "no_cupy()"),
        report={"driver": "13.0", "extra": "cuda13"},
    ),
    Situation(
        "not installed, driver too old",
        ("CuPy is not installed", "CUDA 11.4", "update the driver to 525.60", CUDA12),
        on(11040, "no_cupy()"),
        report={"driver": "11.4", "extra": None},
    ),
    # CuPy is there in parts
    Situation(
        "a shared library is missing",
        ("import cupy fails", "libstdc++.so.6: version not found", "pip uninstall -y cupy-cuda12x", CUDA12),
        on(12040, "", "cupy-cuda12x"),
        files={
            "cupy/__init__.py": "try:\n    raise ImportError('libstdc++.so.6: version not found')\n"
            "except ImportError as error:\n    raise ImportError('====\\nFailed to import CuPy.\\n====') from error\n"
        },
        report={"cupy": None, "cupy_packages": ["cupy-cuda12x"], "driver": "12.4"},
        unsaid=("====",),
    ),
    Situation(
        "import leaves",
        ("import cupy fails", "SystemExit: odd"),
        on(12040, "", "cupy-cuda12x"),
        files={"cupy/__init__.py": "raise SystemExit('odd')\n"},
    ),
    Situation(
        "import raises what has no words",
        ("import cupy fails", "Odd: without words"),
        on(12040, "", "cupy-cuda12x"),
        files={
            "cupy/__init__.py": "class Odd(BaseException):\n"
            "    def __str__(self): raise ValueError('no str')\nraise Odd\n"
        },
    ),
    Situation(
        "import fails, two wheels",
        ("import cupy fails", *TWO_WHEELS),
        on(12040, "", "cupy-cuda12x", "cupy-cuda13x"),
        files={"cupy/__init__.py": "raise ImportError('libcudart.so.13')\n"},
        unsaid=("each other; run",),  # what is to be done is said once
    ),
    Situation(
        "import raises an AttributeError",
        ("import cupy fails", "AttributeError: module 'numpy' has no attribute 'bool8'", CUDA13),
        on(13000, "", "cupy-cuda12x"),
        files={"cupy/__init__.py": "import warnings\nwarnings.warn('odd')\nimport numpy\nnumpy.bool8\n"},
    ),
    Situation(
        "a dependency of CuPy is missing",
        ("import cupy fails", "No module named 'fastrlock'", CUDA12),
        on(12040, ""),
        files={"cupy/__init__.py": "import fastrlock\n"},
    ),
    Situation(
        "an uninstalled CuPy left its folder",
        ("import cupy fails", "has no attribute 'cuda'", CUDA12),
        on(12040, ""),
        files={"cupy/__init__.py": ""},
    ),
    Situation(
        "import needs the driver",
        ("no NVIDIA driver was found",),
        on(None, "", "cupy-cuda12x"),
        files={"cupy/__init__.py": "raise ImportError('libcuda.so.1: cannot open shared object file')"},
        unsaid=("import cupy fails",),
    ),
    # CuPy and the driver
    Situation(
        "no driver",
        ("no NVIDIA driver was found", "install its driver", "start the container with access"),
        on(None, "cupy(looking='cudaErrorInsufficientDriver: CUDA driver version is insufficient')", "cupy-cuda12x"),
        report={"cupy": "14.0.0", "runtime": "12.0", "driver": None, "devices": []},
        unsaid=("too old", "nsufficient"),
    ),
    Situation(
        "driver too old for CUDA 13, not for CUDA 12",
        ("CUDA 12.4", "too old", "needs CUDA 13.0", "580.65", "pip uninstall -y cupy-cuda13x", CUDA12),
        on(12040, "cupy(13, looking='cudaErrorInsufficientDriver: insufficient')", "cupy-cuda13x"),
        report={"driver": "12.4", "runtime": "13.0", "extra": "cuda12", "cupy_packages": ["cupy-cuda13x"]},
    ),
    Situation(
        "driver too old for any CuPy",
        ("CUDA 11.4", "too old", "needs CUDA 12.0", "update the driver to 525.60 or newer"),
        on(11040, "cupy(looking='cudaErrorInsufficientDriver: insufficient')", "cupy-cuda12x"),
        unsaid=("pip",),
    ),
    Situation(
        "driver does not start",
        ("looking for a GPU failed", "cudaErrorSystemDriverMismatch", "nvidia-smi"),
        on(12040, "cupy(looking='cudaErrorSystemDriverMismatch: mismatch')"),
    ),
    Situation(
        "a forked process",
        ("fork", "cudaErrorInitializationError", '"spawn"'),
        on(12040, "cupy(looking='cudaErrorInitializationError: initialization error')"),
    ),
    Situation(
        "no device",
        ("(for CUDA 12.4) sees no GPU", "nvidia-smi"),
        on(12040, "cupy(looking='cudaErrorNoDevice: no CUDA-capable device is detected')"),
        unsaid=("CUDA_VISIBLE_DEVICES",),
    ),
    # The first kernel
    Situation(
        "NVRTC missing, older CuPy",
        ("NVRTC", "was not found", 'pip install -U "cupy-cuda12x[ctk]"'),
        on(12040, "cupy(compiling='CuPy failed to load libnvrtc.so.12: OSError')", "cupy-cuda12x"),
    ),
    Situation(
        "NVRTC missing, CuPy not from a wheel",
        ("NVRTC", "was not found", "install the CUDA Toolkit 12"),
        on(12040, "cupy(compiling='CuPy failed to load libnvrtc.so.12: OSError')", "cupy"),
        unsaid=("ctk",),
    ),
    Situation(
        "headers missing",
        ("CUDA headers", "vector_types.h", 'pip install -U "cupy-cuda13x[ctk]"'),
        on(13000, "cupy(13, compiling='k.cu(3): error: cannot open source file \"vector_types.h\"')", "cupy-cuda13x"),
    ),
    Situation(
        "headers missing, in NVRTC's own words",
        ("CUDA headers", "vector_types.h", 'pip install -U "cupy-cuda12x[ctk]"'),
        on(12090, "cupy(compiling=nvrtc('#include <vector_types.h>'))", "cupy-cuda12x"),
        needs="NVRTC",
    ),
    Situation(
        "device too old for CUDA 13",
        ("no code for this device", "pip uninstall -y cupy-cuda13x", CUDA12),
        on(13000, "cupy(13, compiling='invalid value for --gpu-architecture (-arch)')", "cupy-cuda13x"),
    ),
    Situation(
        "device too new for the toolkit",
        ("no code for this device", 'pip install -U "cupy-cuda12x[ctk]"'),
        on(12080, "cupy(compiling='CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image')", "cupy-cuda12x"),
    ),
    Situation(
        "no memory",
        ("no memory left", "end the processes that hold it"),
        on(12040, "cupy(compiling='cudaErrorMemoryAllocation: out of memory')"),
        report={
            "devices": [
                {"index": 0, "name": "Fake GPU", "compute_capability": "9.0", "free_bytes": 1, "total_bytes": 2}
            ]
        },
    ),
    Situation(
        "device taken",
        ("another process holds the device", "choose another device"),
        on(12040, "cupy(compiling='cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy')"),
    ),
    Situation(
        "the kernel does nothing",
        ("a first kernel on cupy:0 failed", "it gave 1, not 42", "nvidia-smi"),
        on(12040, "cupy(answer=1)"),
    ),
    Situation(
        "all well",
        ("CuPy 14.0.0 runs on cupy:0 (Fake GPU, compute capability 9.0, driver for CUDA 12.4)",),
        on(12040, "cupy()", "cupy-cuda12x"),
        auto="cupy:0",
    ),
    Situation(
        "all well but for a second wheel",
        ("CuPy 14.0.0 runs on cupy:0", *TWO_WHEELS),
        on(12040, "cupy()", "cupy-cuda12x", "cupy-cuda13x"),
        auto="cupy:0",
        report={"cupy_packages": ["cupy-cuda12x", "cupy-cuda13x"]},
    ),
    # The real CuPy
    Situation("real CuPy, no driver", ("no NVIDIA driver was found",), needs="no driver", unsaid=("too old",)),
    Situation(
        "real CuPy, no driver, two wheels",
        ("no NVIDIA driver was found", *TWO_WHEELS[:2]),
        needs="no driver",
        files=SECOND_WHEEL,
    ),
    Situation(
        "emulated device",
        ("runs on cupy:0", "compute capability 9.0"),
        needs="emulator",
        auto="cupy:0",
        report={"driver": "12.9", "runtime": "12.9", "extra": "cuda12"},
    ),
    Situation(
        "emulated device, two wheels",
        ("runs on cupy:0", *TWO_WHEELS),
        needs="emulator",
        files=SECOND_WHEEL,
        auto="cupy:0",
    ),
    Situation(
        "emulated: no device",
        ("(for CUDA 12.9) sees no GPU", "nvidia-smi"),
        needs="emulator",
        env={"CUDASIM_NO_DEVICE": "1"},
        report={"devices": []},
    ),
    *(
        Situation(
            f"emulated: devices hidden by {value!r}",
            (f"CUDA_VISIBLE_DEVICES={value!r} hides every GPU", "unset it"),
            needs="emulator",
            env={"CUDASIM_NO_DEVICE": "1", "CUDA_VISIBLE_DEVICES": value},
        )
        for value in ("", "-1")
    ),
    Situation(
        "emulated: driver too old",
        ("CUDA 11.4", "too old", "needs CUDA 12.0", "update the driver to 525.60 or newer"),
        needs="emulator",
        env={"CUDASIM_OLD_DRIVER": "1"},
        report={"driver": "11.4", "extra": None, "devices": []},
    ),
    Situation(
        "emulated: no NVRTC",
        ("NVRTC", "was not found", 'pip install -U "cupy-cuda12x[ctk]"'),
        needs="emulator",
        env={"CUDASIM_NO_NVRTC": "1"},
    ),
    Situation(
        "emulated: first launch fails",
        ("a first kernel on cupy:0 failed", "LAUNCH_OUT_OF_RESOURCES"),
        needs="emulator",
        env={"CUDASIM_FAIL_LAUNCH": "1"},
    ),
    Situation(
        "emulated: first launch breaks the context",
        ("a first kernel on cupy:0 failed", "LAUNCH_FAILED"),
        needs="emulator",
        env={"CUDASIM_FAIL_LAUNCH": "1:719"},
    ),
]


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


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda s: s.id)
def test_situation(situation: Situation, tmp_path: Path) -> None:
    skip_unless(situation.needs)
    for name, text in situation.files.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    emulated = situation.needs != "no driver"
    said = json.loads(run(STAGE + situation.setup + ASK, situation.env, tmp_path, emulated=emulated))

    reason = said["reason"]
    assert said["auto"] == situation.auto
    assert all(words in reason for words in situation.words), reason
    assert not any(words in reason for words in situation.unsaid), reason
    assert "\n" not in reason
    assert not reason.endswith(".")
    assert documented(reason) or reason.startswith("CuPy 14")

    if situation.auto == "numpy":  # an explicit choice raises, with the same cause and cure
        assert said["cupy"] == f"unavailable: backend 'cupy': {reason}"
        assert said["cuda"] == f"unavailable: backend 'cuda': {reason}"
        assert said["cupy:0"] == f"unavailable: backend 'cupy:0': {reason}"
        assert said["cuda:1"].startswith("unavailable: backend 'cuda:1': ")
    else:
        assert said["cupy"] == said["cuda"] == said["cupy:0"] == "cupy:0"
        assert "there is no device cupy:1; choose one that CuPy sees, only cupy:0" in said["cuda:1"]

    # The command line: the reason stands in the first line, or, for an explicit choice, the cure in the only one.
    code, out, err = said["info"]
    assert (code, out.count(reason), err) == (0, 1, "")
    if situation.auto == "numpy":
        code, out, err = said["train"]
        assert (code, out.splitlines()[0], out.count(reason), err) == (0, f"Device:  cpu ({reason})", 1, "")
        assert said["train on cuda"] == [2, "", f"gpuopt: backend 'cuda': {reason}\n"]
    elif situation.needs == "emulator":
        for code, out, err in (said["train"], said["train on cuda"]):
            assert (code, out.splitlines()[0], out.count(reason), err) == (0, f"Device:  cuda:0 ({reason})", 1, "")

    report = said["report"]
    assert (report["backend"], report["reason"]) == (situation.auto, reason)
    assert report["numpy"] == np.__version__
    assert {key: report[key] for key in situation.report} == situation.report


@pytest.mark.parametrize("needs", ["", "emulator"])
def test_without_cublas_the_library_runs_and_training_does_not(needs: str, tmp_path: Path) -> None:
    skip_unless(needs)
    setup = "no_cublas()" if needs else on(12040, "cupy()", "cupy-cuda12x")
    said = json.loads(run(STAGE + setup + ASK, {"CUDASIM_DEVICES": "1"}, tmp_path))
    assert said["auto"] == said["cuda"] == "cupy:0"
    reason = 'cuBLAS, with which CuPy multiplies matrices, was not found; run `pip install -U "cupy-cuda12x[ctk]"`'
    assert documented(reason)
    assert said["report"]["training"] == f"numpy: {reason}"
    assert said["info"][1].splitlines()[-1].split(maxsplit=2) == ["for", "training", f"numpy: {reason}"]
    code, out, err = said["train"]
    assert (code, out.splitlines()[0], err) == (0, f"Device:  cpu ({reason})", "")
    assert said["train on cuda"] == [2, "", f"gpuopt: backend 'cuda': {reason}\n"]


# The names of backends and GPUOPT_BACKEND


@pytest.mark.parametrize("name", ["numpy", "cpu", "NumPy", " cpu "])
def test_numpy_is_always_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUOPT_BACKEND", "cupy")  # overrides "auto" only
    found = backend(name)
    assert (found.name, found.device, found.reason) == ("numpy", None, "NumPy was asked for")


@pytest.mark.parametrize(
    "name", ["", "tpu", "cupy:", "cupy:-1", "cupy:x", "cpu:0", "auto:0", "gpu", "numpy cupy", None]
)
def test_unknown_name(name: Any) -> None:
    with pytest.raises(ValueError, match=r'expected "auto", "numpy", "cupy" or "cupy:N"') as raised:
        backend(name)
    assert str(raised.value).startswith(f"backend {name!r}: ")


def test_variable_overrides_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("numpy", "cpu"):
        monkeypatch.setenv("GPUOPT_BACKEND", value)
        assert backend("auto") == backend("numpy")
        assert backend().reason == f"GPUOPT_BACKEND={value!r}"
    monkeypatch.setenv("GPUOPT_BACKEND", "")  # as if unset
    assert "GPUOPT_BACKEND" not in backend("auto").reason


def test_unknown_value_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUOPT_BACKEND", "tpu")
    with pytest.raises(ValueError, match=r'^GPUOPT_BACKEND=\'tpu\': expected "auto", "numpy", "cupy" or "cupy:N"'):
        backend("auto")
    report = backends.report()
    assert report.backend is None
    assert report.reason.startswith("GPUOPT_BACKEND='tpu': expected")


def test_variable_asks_for_a_cupy_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    backends._count_devices.cache_clear()
    monkeypatch.setenv("GPUOPT_BACKEND", "cupy:1")
    with pytest.raises(BackendUnavailable, match=r"^GPUOPT_BACKEND='cupy:1': CuPy is not installed.*pip install"):
        backend("auto")
    assert backends.report().backend is None
    assert issubclass(BackendUnavailable, RuntimeError)


# What is remembered


def test_devices_are_tried_once() -> None:
    code = on(12040, "cupy()") + "\nfrom gpuopt.backends import backend\n"
    code += "for name in 2 * ['auto', 'cupy', 'cupy:0', 'cuda']: backend(name)\n"
    assert run(STAGE + code + "print(sys.modules['cupy'].calls)") == "['count', 'compile']\n"


def test_a_failure_is_remembered() -> None:
    code = on(12040, "cupy(compiling='failed')") + "\nfrom gpuopt.backends import backend\n"
    code += "backend(); backend()\n"
    assert run(STAGE + code + "print(sys.modules['cupy'].calls)") == "['count', 'compile']\n"


def test_cupy_may_be_installed_meanwhile() -> None:
    code = on(12040, "no_cupy()") + "\nfrom gpuopt.backends import backend\n"
    code += "print(backend()); cupy(); print(backend())"
    assert run(STAGE + code) == "numpy\ncupy:0\n"


def test_the_variable_is_read_every_time() -> None:
    code = on(12040, "cupy()") + "\nfrom gpuopt.backends import backend\n"
    code += "print(backend()); os.environ['GPUOPT_BACKEND'] = 'numpy'; print(backend(), backend('cupy'))"
    assert run(STAGE + code) == "cupy:0\nnumpy cupy:0\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_looks_again() -> None:
    code = on(12040, "cupy()") + "\nfrom gpuopt.backends import backend\nprint(backend(), flush=True)\n"
    code += "if os.fork() == 0:\n    cupy(compiling='CUDA_ERROR_NOT_INITIALIZED')\n    print(backend().reason, flush=True)\n"
    code += "    os._exit(0)\nos.wait()\nprint(backend())"
    parent, child, after = run(STAGE + code, warnings="ignore").splitlines()
    assert (parent, after) == ("cupy:0", "cupy:0")
    assert "after a fork" in child


def test_import_is_light() -> None:
    code = "import gpuopt.backends as b, sys; assert not b.is_cupy(1); b.backend('numpy'); b.describe([1]);"
    code += "print([name for name in ('cupy', 'array_api_compat.numpy', 'llvmlite') if name in sys.modules])"
    assert run(code) == "[]\n"


def test_only_what_is_asked_for_runs_on_the_device() -> None:
    skip_unless("emulator")
    code = "import cudasim, gpuopt.backends as b; b.backend()\nwith cudasim.count() as c:\n    b.backend('cupy')\n"
    code += "assert not any(c.summary.values()), c.summary"
    run(code)


# Arrays


@pytest.fixture(params=["numpy", "cupy"])
def found(request: pytest.FixtureRequest) -> Backend:
    try:
        return backend(request.param)
    except BackendUnavailable as error:
        pytest.skip(f"needs a device, real or emulated: {error}")


@pytest.mark.parametrize("dtype", [None, "float32", np.float64, np.dtype("int8")])
@pytest.mark.parametrize("x", [[[1, 2], [3, 4]], 5.0, np.asfortranarray(np.ones((2, 3), np.float32)), np.zeros((0, 2))])
def test_arrays_go_there_and_back(found: Backend, x: Any, dtype: Any) -> None:
    there = found.asarray(x, dtype)
    back = found.to_numpy(there)
    expected = np.asarray(x, dtype)
    assert type(back) is np.ndarray
    assert (back.dtype, back.flags.f_contiguous) == (expected.dtype, expected.flags.f_contiguous)
    np.testing.assert_array_equal(back, expected)
    assert backends.place(there) == str(found)
    assert backends.describe(there) == f"{found} array"
    assert (backends.is_numpy(there), backends.is_cupy(there)) == (found.name == "numpy", found.name == "cupy")


def test_own_arrays_are_not_copied(found: Backend) -> None:
    x = found.asarray([1.0, 2.0])
    assert found.asarray(x) is x
    assert found.asarray(x, x.dtype) is x
    host = np.ones(3)
    assert found.to_numpy(host) is host


def test_arrays_of_other_libraries(found: Backend) -> None:
    x = array_api_strict.asarray([1.0, 2.0])
    np.testing.assert_array_equal(found.to_numpy(found.asarray(x)), [1.0, 2.0])
    np.testing.assert_array_equal(backend("numpy").asarray(found.asarray([3.0])), [3.0])
    np.testing.assert_array_equal(found.to_numpy(x), [1.0, 2.0])


def test_namespace_device_and_waiting(found: Backend) -> None:
    assert found.xp.__name__ == f"array_api_compat.{found.name}"
    assert found.xp is found.xp
    with found.use():
        x = found.xp.ones(3)
    found.synchronize()
    assert backends.place(x) == str(found)


def test_a_backend_is_a_value() -> None:
    assert Backend("cupy", 1, "here") == Backend("cupy", 1, "there") != Backend("cupy", 0, "here")
    assert len({Backend("numpy", None, "a"), Backend("numpy", None, "b")}) == 1
    with pytest.raises(AttributeError):
        backend("numpy").name = "cupy"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros(2), "numpy array"),
        (np.float32(2), "numpy scalar"),
        (array_api_strict.zeros(2), "array_api_strict:CPU_DEVICE array"),
        (None, "None"),
        ([1.0], "list"),
        (2.0, "float"),
    ],
)
def test_arrays_in_words(x: Any, words: str) -> None:
    assert backends.describe(x) == words


@pytest.mark.parametrize("peer", ["0", "1"])
def test_arrays_go_from_device_to_device(peer: str) -> None:
    skip_unless("emulator")
    code = """
import cupy
from gpuopt.backends import backend, place
first, second = backend("cupy:0"), backend("cuda:1")
with second.use():
    assert str(backend("cupy")) == "cupy:1"
assert str(backend("cupy")) == "cupy:0"
x = first.asarray([[1, 2, 3], [4, 5, 6]])
for dtype in (None, "float32"):
    y = second.asarray(x, dtype)
    assert (place(x), place(y), str(y.dtype)) == ("cupy:0", "cupy:1", dtype or "int64")
    assert (second.to_numpy(y) == first.to_numpy(x)).all()
assert cupy.cuda.Device().id == 0
try:
    backend("cuda:2")
except RuntimeError as error:
    print(error)
"""
    said = run(code, {"CUDASIM_DEVICES": "2", "CUDASIM_PEER": peer})
    reason = "there is no device cupy:2; choose one that CuPy sees, cupy:0 to cupy:1"
    assert said == f"backend 'cuda:2': {reason}\n"
    assert documented(reason)
