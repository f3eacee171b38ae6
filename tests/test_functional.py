"""The pure functions: for immutable arrays, without a trace in their arguments."""

from typing import Any

import numpy as np
import pytest
from conformance import ROWS, Row
from spaces import LAYOUTS, Space, assert_same_bits, hard_values
from user_rules import Exchange

import gpuopt

each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)


@each_row
def test_agree_with_the_optimizer(row: Row, space: Space) -> None:
    """To the bit, but for subnormals, which CuPy's own kernels make 0."""
    random = np.random.RandomState(0)
    values: dict[str, Any] = {
        "a": random.standard_normal((3, 4)).astype("f4"),
        "b": [random.standard_normal(5), np.array(2.0)],
    }
    rules = {"b.*": row.make(lr=gpuopt.schedules.exponential(0.1, 0.5)), "*": gpuopt.Adam()}

    def put() -> Any:
        return {"a": space.put(values["a"]), "b": [space.put(x) for x in values["b"]]}

    opt = gpuopt.Optimizer(put(), rules)
    params, state = put(), gpuopt.init(rules, put())
    for k in range(5):
        grads = {"a": space.put(values["a"] * k), "b": [None if k == 2 else space.put(values["b"][0]), put()["b"][1]]}
        opt.step(grads)
        params, state = gpuopt.update(rules, params, grads, state)
    assert state.steps == opt.steps == 5
    held = {"a": params["a"], "b.0": params["b"][0], "b.1": params["b"][1]}
    slots = {
        f"{path}/{name}": own
        for name, tree in state.slots.items()
        for path, own in {"a": tree["a"], "b.0": tree["b"][0], "b.1": tree["b"][1]}.items()
        if own is not None
    }
    assert_same_bits({name: space.get(x) for name, x in (held | slots).items()}, space.got(opt))


@each_row
def test_leave_their_arguments_as_they_are(row: Row, space: Space) -> None:
    params, grads = [space.put(np.ones(3)), space.put(np.ones(2))], [space.put(np.ones(3)), None]
    first = gpuopt.init(row.make(), params)
    second, state = gpuopt.update(row.make(), params, grads, first)
    third, later = gpuopt.update(row.make(), second, grads, state)
    assert (first.steps, state.steps, later.steps) == (0, 1, 2)
    assert all(space.get(x).tolist() == [1.0] * x.shape[0] for x in (*params, grads[0], second[1]))
    assert not any(space.get(x).any() for own in first.slots.values() for x in own)
    assert np.all(space.get(third[0]) < space.get(second[0]))
    again, _ = gpuopt.update(row.make(), params, grads, first)
    assert np.array_equal(space.get(again[0]), space.get(second[0]))


def test_share_no_arrays() -> None:
    """Even where a rule hands back what it was given."""
    w, g = np.ones(3), np.zeros(3)
    state = gpuopt.init(Exchange(), w)
    new, after = gpuopt.update(Exchange(), w, g, state)
    held = [w, g, *state.slots.values(), new, *after.slots.values()]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(held) for b in held[:i])


def test_take_read_only_arrays_and_the_same_one_twice() -> None:
    w = np.broadcast_to(np.ones(1), 3)
    params, state = gpuopt.update(gpuopt.Adam(), [w, w], [w, w], gpuopt.init(gpuopt.Adam(), [w, w]))
    assert state.steps == 1
    np.testing.assert_allclose(params, 0.999)


@pytest.mark.peers
def test_take_immutable_arrays() -> None:
    jnp = pytest.importorskip("jax").numpy
    params = {"w": jnp.ones(3)}
    state = gpuopt.init(gpuopt.Adam(lr=0.1), params)
    for _ in range(3):
        params, state = gpuopt.update(gpuopt.Adam(lr=0.1), params, {"w": jnp.ones(3)}, state)
    np.testing.assert_allclose(np.asarray(params["w"]), 0.7, rtol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_take_any_layout(layout: str, fused_space: Space) -> None:
    x = hard_values(np.random.RandomState(0), (3, 4, 5), "f4")
    w = fused_space.put(x, layout)
    new, _ = gpuopt.update(gpuopt.SGD(lr=0.0), w, w, gpuopt.init(gpuopt.SGD(), w))
    finite = np.isfinite(x) & (np.abs(x) >= np.finfo("f4").tiny)
    assert np.array_equal(fused_space.get(new)[finite], x[finite])


def test_slots_are_none_where_the_rule_has_none() -> None:
    rules = {"a": gpuopt.SGD(momentum=0.5), "b": gpuopt.AdaGrad(), "c": gpuopt.SGD()}
    state = gpuopt.init(rules, {name: np.ones(2) for name in "abc"})
    assert {slot: [x for x in "abc" if own[x] is not None] for slot, own in state.slots.items()} == {
        "v": ["a"],
        "cache": ["b"],
    }


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ({}, r"state.slots\['m'\]\['w'\]: None, expected a numpy array of \(3,\), float64"),
        ({"m": {"w": None}, "v": {"w": np.zeros(3)}}, r"state.slots\['m'\]\['w'\]: None, expected"),
        ({"m": {"w": np.zeros(3)}, "v": {"x": np.zeros(3)}}, r"missing state.slots\['v'\]\['w'\]"),
        (
            {"m": {"w": np.zeros(2)}, "v": {"w": np.zeros(3)}},
            r"state.slots\['m'\]\['w'\]: numpy array of \(2,\), float64",
        ),
        (
            {"m": {"w": np.zeros(3)}, "v": {"w": np.zeros(3, "f4")}},
            r"slots\['v'\]\['w'\]: numpy array of \(3,\), float32",
        ),
        ({"m": {"w": np.zeros(3)}, "v": {"w": 0.0}}, r"slots\['v'\]\['w'\]: float, expected a numpy array"),
    ],
    ids=["no slots", "None", "structure", "shape", "dtype", "number"],
)
def test_refuse_the_state_of_others(slots: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        gpuopt.update(gpuopt.Adam(), {"w": np.ones(3)}, {"w": np.ones(3)}, gpuopt.State(0, slots))
