"""Machine code that cannot be had: `auto` goes on without, and says so; "fused" says why."""

import itertools
import pickle
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from spaces import assert_same_bits

import gpuopt
from gpuopt.engines.cpu import lookup, machine
from gpuopt.engines.cpu.kernel import CPU, HUGE
from gpuopt.engines.memory import Layout

# How machine code is made impossible in a fresh process, and what is then said.
HINDRANCES = {
    "no llvmlite": ("sys.modules['llvmlite'] = None\n", "ModuleNotFoundError"),
    "an unknown processor": (
        """
import llvmlite.binding as llvm
def refuse(): raise RuntimeError("failed to get host cpu features.")
llvm.get_host_cpu_features = refuse
""",
        "failed to get host cpu features",
    ),
    "an LLVM that cannot read our text": (
        """
import llvmlite.binding as llvm
def refuse(*_): raise RuntimeError("LLVM IR parsing error")
llvm.parse_assembly = refuse
""",
        "LLVM IR parsing error",
    ),
    "an LLVM without its optimizer": (
        """
import llvmlite.binding as llvm
def refuse(*_): raise OSError("symbol not found in flat namespace")
llvm.create_pass_builder = refuse
""",
        "symbol not found",
    ),
    "no executable memory": (
        """
import ctypes
PR_SET_MDWE = 65
if ctypes.CDLL(None).prctl(PR_SET_MDWE, 1, 0, 0, 0):
    print("cannot be tried")
    sys.exit()
""",
        "no process execute memory",
    ),
}
PROGRAM = """
import warnings
import numpy as np, gpuopt
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(2):
        w = np.zeros(20_000, np.float32)
        opt = gpuopt.Optimizer({"w": w, "v": np.zeros((4, 4))[::2]}, gpuopt.SGD(lr=1.0), clip=gpuopt.clip_by_norm(1e9))
        opt.step({"w": np.ones_like(w), "v": np.ones((2, 4))})
print(np.unique(w), len(said), said[0].category.__name__, said[0].message)
try:
    gpuopt.Optimizer(w, gpuopt.SGD(), engine="fused")
except RuntimeError as error:
    print("fused:", error)
"""


@pytest.mark.parametrize(("hindrance", "reason"), HINDRANCES.values(), ids=HINDRANCES)
def test_without_machine_code(hindrance: str, reason: str) -> None:
    if "prctl" in hindrance and sys.platform != "linux":
        pytest.skip("memory is denied by a call that Linux has")
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + hindrance + PROGRAM], capture_output=True, text=True, check=False
    )
    if "cannot be tried" in done.stdout:
        pytest.skip("this Linux cannot deny a process executable memory")
    assert done.returncode == 0, done.stderr
    auto, fused = done.stdout.splitlines()
    assert auto.startswith("[-1.] 1 RuntimeWarning no machine code can be made here"), auto
    assert reason in auto
    assert fused.startswith("fused: engine='fused': no machine code can be made here")
    assert reason in fused


def test_of_a_process_that_has_it() -> None:
    assert machine.why_unavailable() == ""


@pytest.mark.parametrize("known", [True, False])
def test_where_numpys_structures_are_unknown(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a free-threaded Python: every array gets the full check."""
    monkeypatch.setattr(lookup, "structures_are_known", lambda: known)
    w, v = np.ones((3, 4), "f4"), np.ones((4, 6))[:, ::2]
    expected: Any = [w.copy(), v.copy()]
    state = gpuopt.init(gpuopt.Adam(), expected)
    opt = gpuopt.Optimizer([w, v], gpuopt.Adam())
    for k in range(6):
        g = [np.full((3, 4), k, "f8" if k == 2 else "f4"), None if k == 3 else np.full((4, 3), k)]
        opt.step(g)
        expected, state = gpuopt.update(gpuopt.Adam(), expected, g, state)
    assert_same_bits(dict(enumerate([w, v])), dict(enumerate(expected)))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy plans to take this away
        w.shape = (4, 3)
    with pytest.raises(ValueError, match=r"params\[0\]: shape \(4, 3\), expected \(3, 4\)"):
        opt.step([np.ones((4, 3), "f4"), None])


@pytest.mark.skipif(not lookup.structures_are_known(), reason="every array gets the full check")
def test_arrays_that_were_pickled_are_looked_up_as_others() -> None:
    """Their dtypes are equal, but other objects: the full check of each takes fifty times as long."""
    w = np.zeros(3)
    pickled: Any = [pickle.loads(pickle.dumps(w)) for _ in range(2)]
    assert pickled[0].dtype is not w.dtype
    for p, g in itertools.product([w, *pickled], repeat=2):
        looked = lookup.Lookup([p], [p], np.zeros(1, np.int64))
        assert looked([g], [p]) == []
        others: Any = (g.astype("f4"), g.view("i8"), g.view("M8[s]"), g.astype(">f8"), g[:2], [1.0])
        assert [looked([other], [p]) for other in others] == [[0]] * len(others)


@pytest.mark.parametrize("size", [0, 5, HUGE // 8, HUGE // 4 + 1, HUGE])
def test_arrays_in_huge_pages_are_zero_and_apart(size: int) -> None:
    layout = Layout((size,), np.dtype(np.float32), (4,))
    first, second = CPU().zeros([layout, layout])
    assert first.shape == second.shape == (size,)
    assert not np.shares_memory(first, second)
    assert not first.any()
    first[:] = 1
    assert not second.any()
