"""Every rule: the formula it claims to be, its defaults, and what holds for all of them."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from conformance import DEFAULTS, ROWS, Row
from formulas import MATRICES
from formulas import RULES as FORMULAS
from spaces import DENSE, LAYOUTS, Space, assert_same_bits

import gpuopt
from gpuopt.rules import RULES

DTYPES = ["f4", "f8"]

each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
each_engine = pytest.mark.parametrize("engine", ["array", "fused"])


def problem(steps: int = 1000, size: int = 64) -> tuple[Any, list[Any]]:
    """Parameters between 1 and 2, and gradients of many sizes, all of them float32 numbers."""
    random = np.random.RandomState(0)
    sizes = 10.0 ** random.uniform(-3, 0, size)
    p = 1 + random.random_sample(size)
    gradients = [random.standard_normal(size) * sizes for _ in range(steps)]
    return p.astype("f4"), [g.astype("f4") for g in gradients]


def ulps(got: Any, want: Any, scale: Any = 0.0) -> float:
    """The largest error, in units of the last bit at the size of what is wanted, or of ``scale`` where that is more."""
    error = np.abs(got.astype("f8") - want)
    return float(np.max(error / (np.finfo(got.dtype).eps * np.maximum(np.abs(want), scale))))


def exact(row: Row) -> dict[str, Any]:
    """Hyperparameters near those of the row that are exact in float32, as are their differences from 1.

    What is compared is then the arithmetic, and not the rounding of the hyperparameters, which 1 / (1 - beta2) would
    magnify.
    """
    return {name: (round(1024 * x) / 1024 or x) if isinstance(x, float) else x for name, x in row.h.items()}


SCHEDULES: dict[str, Any] = {
    "lr": gpuopt.schedules.inverse_time(1e-2, 1e-2),
    "eps": lambda step: 1e-7 / (step + 1),
}


@each_row
@pytest.mark.parametrize("changed", ["constant", "scheduled"])
def test_agrees_with_the_recurrence(row: Row, space: Space, changed: str) -> None:
    h = exact(row)
    if changed == "scheduled":
        h |= {name: schedule for name, schedule in SCHEDULES.items() if name in h}
    p, gradients = problem(1000 if changed == "constant" else 100)
    want, want_slots, largest = row.run(p.astype("f8"), [g.astype("f8") for g in gradients], **h)
    # It checks every operation, which takes its time.
    dtypes = ["f4"] if (space.name, changed) == ("array_api_strict", "constant") else DTYPES
    for engine in space.engines:
        opt = gpuopt.Optimizer({d: space.put(p.astype(d)) for d in dtypes}, row.make(**h), engine=engine)
        for g in gradients:
            opt.step({d: space.put(g.astype(d)) for d in dtypes})
        got = space.got(opt)
        for d in dtypes:
            assert ulps(got[d], want) < row.ulps
            for slot, value in want_slots.items():
                assert ulps(got[f"{d}/{slot}"], value, scale=largest[slot]) < row.ulps


@pytest.mark.peers
@pytest.mark.parametrize("row", [row for row in ROWS if row.torch], ids=lambda row: row.id)
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_torch(row: Row, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    assert row.torch is not None
    p, gradients = problem()
    theirs = torch.tensor(p.astype(dtype), requires_grad=True)
    optimizer = row.torch(torch, [theirs], row.h)
    ours = p.astype(dtype)
    opt = gpuopt.Optimizer(ours, row.make())
    for g in gradients:
        opt.step(g.astype(dtype))
        theirs.grad = torch.tensor(g.astype(dtype))
        optimizer.step()
    assert ulps(ours, theirs.detach().numpy().astype("f8")) < 64


@pytest.mark.parametrize(
    ("rule", "first", "second"),
    [
        (gpuopt.AdaGrad(lr=1.0), [4, 16, 9], [8, 32, 18]),
        (gpuopt.RMSProp(lr=1.0, rho=0.75), [1, 4, 2.25], [1.75, 7, 3.9375]),
    ],
    ids=["adagrad", "rmsprop"],
)
def test_integer_gradients_by_hand(rule: gpuopt.Rule, first: list[float], second: list[float], space: Space) -> None:
    """The squares of 2, 4 and 3, which all these formats hold exactly."""
    for engine in space.engines:
        w = space.put(np.zeros(3))
        opt = gpuopt.Optimizer(w, rule, engine=engine)
        g = space.put(np.array([2, 4, 3]))
        expected = np.zeros(3)
        for cache in (first, second):
            opt.step(g)
            expected -= np.array([2, 4, 3]) / (np.sqrt(cache) + 1e-7)
            assert space.got(opt)["/cache"].tolist() == cache
            np.testing.assert_allclose(space.get(w), expected, rtol=1e-15)


# What holds for every rule there is


def test_every_rule_has_its_rows() -> None:
    assert {row.rule for row in ROWS} | {type(rule) for rule, _ in (FORMULAS | MATRICES).values()} == set(
        RULES.values()
    )
    assert len({row.id for row in ROWS}) == len(ROWS)
    assert len(DEFAULTS) == sum(row.defaults is not None for row in ROWS)


@pytest.mark.parametrize("name", sorted({row.rule.__name__ for row in ROWS}))
def test_defaults(name: str) -> None:
    assert name in DEFAULTS, f"no row of {name} says what its defaults are"
    assert dataclasses.asdict(RULES[name]()) == DEFAULTS[name]


@each_row
def test_slots(row: Row) -> None:
    assert tuple(row.make().slots) == row.slots


@each_row
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 0, 2), (2, 3, 5)], ids=str)
def test_keeps_dtype_shape_and_strides(row: Row, shape: tuple[int, ...], space: Space) -> None:
    layouts = LAYOUTS if space.name != "array_api_strict" else ["C"]
    keys = [(d, layout) for d in DTYPES for layout in layouts]
    params = [space.put(np.ones(shape, d), layout) for d, layout in keys]
    for engine in ("array", "auto"):
        opt = gpuopt.Optimizer(params, row.make(), engine=engine)
        opt.step([space.put(np.ones(shape, d)) for d, _ in keys])
        state = opt.state_dict()
        for i, (p, (_, layout)) in enumerate(zip(params, keys, strict=True)):
            assert state["params"][str(i)] is p
            assert list(state["state"][str(i)]) == list(row.slots)
            for slot in state["state"][str(i)].values():
                assert (slot.dtype, slot.shape) == (p.dtype, p.shape)
                if layout in DENSE and space.name != "array_api_strict":
                    assert slot.strides == p.strides or p.size < 2


@each_row
def test_zero_gradients_from_the_start(row: Row, space: Space) -> None:
    p = np.array([1.5, -2.0, 0.0])
    moved, slots, _ = row.run(p, [np.zeros(3)] * 3)
    assert row.moves_at_rest == (not np.array_equal(moved, p) or any(map(np.any, slots.values())))
    for engine in space.engines:
        opt = gpuopt.Optimizer({d: space.put(p.astype(d)) for d in DTYPES}, row.make(), engine=engine)
        for _ in range(3):
            opt.step({d: space.put(np.zeros(3, d)) for d in DTYPES})
        for name, value in space.got(opt).items():
            path, _, slot = name.partition("/")
            want = slots[slot] if slot else moved
            if row.moves_at_rest:
                assert ulps(value, want, scale=np.finfo(value.dtype).tiny) < row.ulps, path
            else:
                np.testing.assert_array_equal(value, want)


@each_row
@each_engine
def test_an_eps_of_zero_divides_by_zero_only_where_the_gradient_is_zero(row: Row, engine: Any) -> None:
    if "eps" not in row.h:
        return
    w = np.ones(3, "f4")
    gpuopt.Optimizer(w, row.make(eps=0.0), engine=engine).step(np.array([1.0, 0.0, -1.0], "f4"))
    assert np.isnan(w).tolist() == [False, True, False]


@each_row
def test_goes_on_from_its_state_to_the_same_bits(row: Row, space: Space) -> None:
    random = np.random.RandomState(1)
    gradients = [{d: random.standard_normal(9).astype(d) for d in DTYPES} for _ in range(6)]

    def optimizer(engine: Any) -> gpuopt.Optimizer:
        rule = row.make(lr=gpuopt.schedules.exponential(0.1, 0.9))
        return gpuopt.Optimizer({d: space.put(np.ones(9, d)) for d in DTYPES}, rule, engine=engine)

    def run(opt: gpuopt.Optimizer, steps: slice) -> gpuopt.Optimizer:
        for g in gradients[steps]:
            opt.step({d: space.put(x) for d, x in g.items()})
        return opt

    for engine in space.engines:
        whole = space.got(run(optimizer(engine), slice(0, 6)))
        for cut in (0, 3):
            first, second = run(optimizer(engine), slice(0, cut)), run(optimizer(engine), slice(0, 2))
            second.load_state_dict(first.state_dict())
            assert second.steps == cut
            assert_same_bits(space.got(run(second, slice(cut, 6))), whole)
            assert first.steps == cut
