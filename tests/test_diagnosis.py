"""Why a GPU cannot be used: every situation in a process of its own, with what is chosen, why, and what cures it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stage import STAGE, documented, on, run, skip_unless

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
    # CuPy for AMD's GPUs
    Situation(
        "ROCm",
        ("is for AMD GPUs (ROCm)", "NVIDIA GPUs alone", "use NumPy arrays"),
        on(None, "cupy(hip=True)", "cupy-rocm-7-0"),
        report={"cupy": "14.0.0", "cupy_packages": ["cupy-rocm-7-0"], "driver": None, "devices": []},
        unsaid=("CUDA", "pip", "driver"),
    ),
    Situation(
        "ROCm, an NVIDIA driver",
        ("is for AMD GPUs (ROCm)", "CUDA 12.4", "pip uninstall -y cupy-rocm-7-0", CUDA12),
        on(12040, "cupy(hip=True)", "cupy-rocm-7-0"),
        report={"driver": "12.4", "extra": "cuda12"},
    ),
    Situation(
        "ROCm, which is not installed itself",
        ("is for AMD GPUs (ROCm)", "use NumPy arrays"),
        on(None, "", "cupy-rocm-7-0"),
        files={"cupy/__init__.py": "raise ImportError('libamdhip64.so.7: cannot open shared object file')\n"},
        unsaid=("CUDA", "pip"),
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


@pytest.mark.parametrize(
    "situation",
    [pytest.param(s, id=s.id, marks=[pytest.mark.slow] if s.needs in {"", "NVRTC"} else []) for s in SITUATIONS],
)
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
