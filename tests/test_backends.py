"""Choosing a backend: its names, the environment variable, and what is remembered."""

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from stage import STAGE, on, run, skip_unless

from gpuopt import backends, nvrtc
from gpuopt.backends import Backend, BackendUnavailable, backend, discovery


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
    discovery.count_devices.cache_clear()
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


def test_nothing_is_compiled_for_the_gpus_of_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    rocm = SimpleNamespace(cuda=SimpleNamespace(runtime=SimpleNamespace(is_hip=True)))
    monkeypatch.setitem(sys.modules, "cupy", rocm)
    monkeypatch.setattr(nvrtc, "_library", nvrtc._library.__wrapped__)
    with pytest.raises(OSError, match=r"for AMD GPUs \(ROCm\), and code is compiled for NVIDIA GPUs alone"):
        nvrtc.compiled("")


def test_a_backend_is_a_value() -> None:
    assert Backend("cupy", 1, "here") == Backend("cupy", 1, "there") != Backend("cupy", 0, "here")
    assert len({Backend("numpy", None, "a"), Backend("numpy", None, "b")}) == 1
    with pytest.raises(AttributeError):
        backend("numpy").name = "cupy"  # type: ignore[misc]
