"""Gradients that share memory with what a step writes: all of them count as read before anything is written."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from spaces import Space, assert_same_bits
from user_rules import Exchange, HeavyBall

import gpuopt

N = 5000  # more than a chunk

Arrays = dict[str, Any]

# Name: from a buffer of 4*N numbers, the parameters; from these and the optimizer's state, the gradients.
CASES: dict[str, tuple[Callable[[Any], Arrays], Callable[[Any, Arrays, Arrays], Arrays]]] = {
    "its own parameter": (
        lambda b: {"p": b[:N], "q": b[N : 2 * N]},
        lambda b, params, state: dict(params),
    ),
    "a view of its own parameter": (
        lambda b: {"p": b[:N], "q": b[N : 2 * N]},
        lambda b, params, state: {name: p[:] for name, p in params.items()},
    ),
    "the other's parameter": (
        lambda b: {"p": b[:N], "q": b[N : 2 * N]},
        lambda b, params, state: {"p": params["q"], "q": params["p"]},
    ),
    "the other's, one of them with gaps": (
        lambda b: {"p": b[:N], "q": b[N : 3 * N : 2]},
        lambda b, params, state: {"p": params["q"], "q": params["p"]},
    ),
    "the other's, both with gaps": (
        lambda b: {"p": b[: 2 * N : 2], "q": b[1 : 2 * N : 2]},
        lambda b, params, state: {"p": params["q"], "q": params["p"]},
    ),
    "one parameter for both": (
        lambda b: {"p": b[:N], "q": b[N : 2 * N]},
        lambda b, params, state: {"p": params["q"], "q": params["q"]},
    ),
    "backwards": (
        lambda b: {"p": b[:N], "q": b[N : 3 * N : 2]},
        lambda b, params, state: {name: p[::-1] for name, p in params.items()},
    ),
    "transposed": (
        lambda b: {"p": b[:4900].reshape(70, 70), "q": b[N : N + 9800].reshape(70, 140)[:, ::2]},
        lambda b, params, state: {name: p.T for name, p in params.items()},
    ),
    "shifted by one": (
        lambda b: {"p": b[1 : N + 1], "q": b[N + 1 : 2 * N + 1]},
        lambda b, params, state: {"p": b[:N], "q": b[N + 2 : 2 * N + 2]},
    ),
    "shifted by one, with gaps": (
        lambda b: {"p": b[2 : 2 * N + 2 : 2], "q": b[2 * N + 3 :: 2]},
        lambda b, params, state: {"p": b[: 2 * N : 2], "q": b[2 * N + 1 : -2 : 2]},
    ),
    "across both": (
        lambda b: {"p": b[:N], "q": b[N : 2 * N]},
        lambda b, params, state: {"p": b[N // 2 : N // 2 + N], "q": b[: 2 * N : 2]},
    ),
    "in the gaps": (
        lambda b: {"p": b[: 2 * N : 2], "q": b[2 * N : 3 * N]},
        lambda b, params, state: {"p": b[1 : 2 * N : 2], "q": b[3 * N :]},
    ),
    "one number for all": (
        lambda b: {"p": b[:N], "q": b[N : 2 * N]},
        lambda b, params, state: {name: np.broadcast_to(b[7:8], (N,)) for name in params},
    ),
    "its own state": (
        lambda b: {"p": b[:N], "q": b[N : 3 * N : 2]},
        lambda b, params, state: {name: next(iter(state[name].values())) for name in params},
    ),
    "the other's state": (
        lambda b: {"p": b[:N], "q": b[N : 2 * N]},
        lambda b, params, state: {"p": next(iter(state["q"].values())), "q": next(iter(state["p"].values()))},
    ),
    "another dtype's bytes": (
        lambda b: {"p": b[:N], "q": b[N : N + N // 2].view("f8")},
        lambda b, params, state: {"p": b[N : 2 * N], "q": b[: N // 2].view("f8")},
    ),
}
RULES = [gpuopt.Adam(lr=0.1), gpuopt.SGD(lr=0.1, momentum=0.9), Exchange(), HeavyBall()]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_gradients_count_as_read_before_anything_is_written(case: str, rule: gpuopt.Rule, fused_space: Space) -> None:
    space, (make_params, make_grads) = fused_space, CASES[case]
    values = np.random.RandomState(0).standard_normal(4 * N).astype("f4")
    for engine in space.engines[:1] if space.name == "numpy" else ():
        check(space, engine, values, rule, make_params, make_grads)
    check(space, "auto", values, rule, make_params, make_grads)


def check(space: Space, engine: Any, values: Any, rule: Any, make_params: Any, make_grads: Any) -> None:
    buffer = space.put(values)
    with space.use():
        params = make_params(buffer)
        opt = gpuopt.Optimizer(params, rule, engine=engine)
        plain = {name: space.put(np.ones(p.shape, p.dtype)) for name, p in params.items()}
    for gradients in (plain, None, None, plain, None):
        state = opt.state_dict()["state"]
        with space.use():
            grads = gradients or make_grads(buffer, params, state)
        before = {name: space.get(p) for name, p in params.items()}
        slots = {slot: {name: space.get(state[name][slot]) for name in params} for slot in rule.slots}
        held = {name: space.get(g) for name, g in grads.items()}
        expected, after = gpuopt.update(rule, before, held, gpuopt.State(opt.steps, slots))
        opt.step(grads)
        wanted = expected | {f"{name}/{slot}": after.slots[slot][name] for slot in rule.slots for name in params}
        assert_same_bits(space.got(opt), wanted)


def test_parameters_may_be_interleaved(fused_space: Space) -> None:
    with fused_space.use():
        w = fused_space.put(np.arange(10.0))
        gpuopt.Optimizer([w[::2], w[1::2]], gpuopt.SGD(lr=1.0)).step([w[::2] * 0 + 1, w[1::2] * 0 + 2])
    np.testing.assert_array_equal(fused_space.get(w), np.arange(10.0) - np.array([1, 2] * 5))


def test_parameters_may_be_many_columns(fused_space: Space) -> None:
    """Pairs of a thousand would take seconds to be compared."""
    with fused_space.use():
        matrix = fused_space.put(np.zeros((3, 1000)))
        columns = [matrix[:, k] for k in range(1000)]
        opt = gpuopt.Optimizer(columns, gpuopt.SGD(lr=1.0))
        opt.step([column * 0 + k for k, column in enumerate(columns)])
        for more in (matrix[1:2, 7], matrix[::-1][:, 7], matrix.reshape(-1)[2007:2008]):
            with pytest.raises(ValueError, match=r"^params\[7\] and params\[1000\] share memory"):
                gpuopt.Optimizer([*columns, more], gpuopt.SGD(lr=1.0))
    np.testing.assert_array_equal(fused_space.get(matrix), -np.tile(np.arange(1000.0), (3, 1)))


def test_a_gradient_is_told_from_an_earlier_one_of_the_same_address(fused_space: Space) -> None:
    """A new array may lie where one lay that is gone, and have its ``id``."""
    with fused_space.use():
        w = fused_space.put(np.zeros(4))
        opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0))
        total = np.zeros(4)
        for k in range(20):
            g = np.full(4, k, ["f8", "f4", "i8"][k % 3])
            opt.step(fused_space.put(g))
            total -= g
    np.testing.assert_array_equal(fused_space.get(w), total)
