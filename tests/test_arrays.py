"""Arrays: their library and device in words, and their ways from place to place."""

from typing import Any

import array_api_strict
import numpy as np
import pytest
from stage import documented, run, skip_unless

from gpuopt import arrays
from gpuopt.backends import Backend, BackendUnavailable, backend


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
    assert arrays.place(there) == str(found)
    assert arrays.describe(there) == f"{found} array"
    assert (arrays.is_numpy(there), arrays.is_cupy(there)) == (found.name == "numpy", found.name == "cupy")


def test_own_arrays_are_not_copied(found: Backend) -> None:
    x = found.asarray([1.0, 2.0])
    assert found.asarray(x) is x
    assert found.asarray(x, x.dtype) is x
    host = np.ones(3)
    assert found.to_numpy(host) is host


@pytest.mark.parametrize("dtype", [None, "float32"])
@pytest.mark.parametrize(
    "x",
    [-0.0, np.float32(-0.0), np.array(-0.0), np.array(-0.0, "f4"), np.array(5e-324), [-0.0], np.array([[-0.0, 0.0]])],
    ids=repr,
)
def test_every_bit_arrives(found: Backend, x: Any, dtype: Any) -> None:
    expected = np.asarray(x, dtype)
    there = found.asarray(x, dtype)
    assert found.to_numpy(there).tobytes() == expected.tobytes()
    other = found.asarray(np.ones_like(expected))
    arrays.assign(other, expected)  # as a state is loaded
    assert found.to_numpy(other).tobytes() == expected.tobytes()


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
    assert arrays.place(x) == str(found)


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
    assert arrays.describe(x) == words


@pytest.mark.parametrize("peer", ["0", "1"])
def test_arrays_go_from_device_to_device(peer: str) -> None:
    skip_unless("emulator")
    code = """
import cupy
from gpuopt.arrays import place
from gpuopt.backends import backend
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
