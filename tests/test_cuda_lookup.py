"""Fresh gradients on a GPU: one that does not fit among many that do is found, whatever is wrong with it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from spaces import Space, assert_same_bits

import gpuopt

LEAVES = 5
SHAPE = (3, 4)

# What replaces one gradient of five: how it is made of the right values, and the error, or None where it is as good.
ODD: dict[str, tuple[Callable[[Space, Any], Any], type[Exception] | None, str]] = {
    "shape": (lambda s, x: s.put(x[:2]), ValueError, r"grads\[3\]: shape \(2, 4\), expected \(3, 4\)"),
    "size alike": (lambda s, x: s.put(x.reshape(4, 3)), ValueError, r"grads\[3\]: shape \(4, 3\), expected \(3, 4\)"),
    "complex": (lambda s, x: s.put(x.astype("c8")), TypeError, r"grads\[3\]: dtype complex64, expected a real one"),
    "NumPy": (lambda s, x: x, TypeError, r"grads\[3\]: a numpy array, expected a cupy:\d array"),
    "a list": (lambda s, x: [1.0], TypeError, r"grads\[3\]: list, expected a cupy:\d array"),
    "a number": (lambda s, x: 1.0, TypeError, r"grads\[3\]: float, expected a cupy:\d array"),
    "None": (lambda s, x: None, None, ""),
    "float64": (lambda s, x: s.put(x.astype("f8")), None, ""),
    "Fortran order": (lambda s, x: s.put(x, "F"), None, ""),
    "with gaps": (lambda s, x: s.put(x, "strided"), None, ""),
    "reversed": (lambda s, x: s.put(x, "reversed"), None, ""),
    "shifted": (lambda s, x: s.put(x, "shifted"), None, ""),
}


def draw(random: np.random.RandomState) -> list[np.ndarray[Any, Any]]:
    return [random.standard_normal(SHAPE).astype("f4") for _ in range(LEAVES)]


@pytest.mark.parametrize("odd", ODD)
def test_one_that_is_odd_among_fresh_ones(odd: str, cupy_space: Space) -> None:
    make, error, words = ODD[odd]
    random = np.random.RandomState(0)
    start = draw(random)
    opt = gpuopt.Optimizer([cupy_space.put(x) for x in start], gpuopt.Adam(), engine="fused")
    reference = gpuopt.Optimizer([x.copy() for x in start], gpuopt.Adam(), engine="array")
    for _ in range(3):
        values = draw(random)
        fresh = [cupy_space.put(x) for x in values]
        fresh[3] = make(cupy_space, values[3])
        if error is not None:
            before = cupy_space.got(opt)
            for _ in range(2):
                with pytest.raises(error, match=words):
                    opt.step(fresh)
            assert_same_bits(cupy_space.got(opt), before)
            fresh[3] = cupy_space.put(values[3])
        for _ in range(3):  # the same ones again, of which the host then knows
            opt.step(fresh)
            reference.step([None if g is None else x for g, x in zip(fresh, values, strict=True)])
    found = cupy_space.got(opt)
    state = reference.state_dict()
    expected = dict(state["params"]) | {
        f"{path}/{slot}": x for path, own in state["state"].items() for slot, x in own.items()
    }
    assert opt.steps == reference.steps == 9
    assert_same_bits(found, expected)


@pytest.mark.parametrize("absent", [[0], [1, 4], list(range(LEAVES))])
def test_some_without_gradient_and_then_with(absent: list[int], cupy_space: Space) -> None:
    """Neither an address of the step before nor the parameter that is looked at in its place is taken for a gradient."""
    ones = [np.ones(SHAPE, "f4")] * LEAVES
    params = [cupy_space.put(np.zeros(SHAPE, "f4")) for _ in ones]
    opt = gpuopt.Optimizer(params, gpuopt.SGD(lr=1.0), engine="fused")
    full = [cupy_space.put(x) for x in ones]
    some = [None if i in absent else g for i, g in enumerate(full)]
    taken = 0
    for grads in (full, some, some, some, full, full, some, [cupy_space.put(x) for x in ones], some):
        opt.step(grads)
        taken += grads is some
        steps = [opt.steps - (taken if i in absent else 0) for i in range(LEAVES)]
        assert [cupy_space.get(p)[0, 0] for p in params] == [-n for n in steps]


def test_a_gradient_that_is_gone_and_its_address_taken_by_another(cupy_space: Space) -> None:
    w = cupy_space.put(np.zeros(1000, "f4"))
    opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0), engine="fused")
    expected = 0.0
    for k in range(1, 6):
        g = cupy_space.put(np.full(1000, k, "f4"))
        for _ in range(3):
            opt.step(g)
        expected -= 3 * k
        del g
        opt.step(None)
        assert cupy_space.get(w)[0] == expected


def test_gradients_that_are_other_parameters(cupy_space: Space) -> None:
    """Read before they are written to: they are copied, a parameter that is its own gradient is not."""
    values = [np.full(SHAPE, k + 1, "f4") for k in range(3)]
    params = [cupy_space.put(x) for x in values]
    opt = gpuopt.Optimizer(params, gpuopt.SGD(lr=0.5), engine="fused")
    for _ in range(3):
        opt.step([params[0], params[2], params[1]])
        values = [values[0] / 2, values[1] - values[2] / 2, values[2] - values[1] / 2]
    for p, x in zip(params, values, strict=True):
        assert np.array_equal(cupy_space.get(p), x)
