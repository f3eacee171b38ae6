"""``every=k``: the mean of k gradients makes one update; the means here are NumPy's own."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from spaces import LAYOUTS, Space, assert_same_bits

import gpuopt

SHAPES: dict[str, tuple[int, ...]] = {"a": (5, 3), "b": (), "c": (4200,)}
RULES: dict[str, Any] = {
    "SGD": gpuopt.SGD(0.1, 0.9),
    "Adam": gpuopt.Adam(0.1),
    "NAdam": gpuopt.NAdam(0.1),
    "chain": gpuopt.chain(gpuopt.L2(0.1), gpuopt.Adam(0.1), gpuopt.EMA(0.9)),
    "LAMB": gpuopt.LAMB(0.1),
    "groups": {"b": None, "a": gpuopt.Adam(0.1), "*": gpuopt.SGD(0.1)},
}
GUARDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "value": {"clip": gpuopt.clip_by_value(0.5)},
    "global norm": {"clip": gpuopt.clip_by_global_norm(0.5)},
    "norm, skip": {"clip": gpuopt.clip_by_norm(0.5), "nonfinite": "skip"},
    "raise": {"nonfinite": "raise"},
}


def gradients(calls: int, dtype: str, missing: Callable[[int, str], bool] = lambda *_: False) -> list[dict[str, Any]]:
    random = np.random.RandomState(0)
    return [
        {
            name: None if missing(call, name) else np.asarray(random.standard_normal(shape)).astype(dtype)
            for name, shape in SHAPES.items()
        }
        for call in range(calls)
    ]


def mean(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """As it is documented: sums in the order of the calls, in the dtype of the parameter, divided once."""
    found: dict[str, Any] = {}
    for name in SHAPES:
        given = [g for part in parts if (g := part[name]) is not None]
        total = given[0] if given else None
        for g in given[1:]:
            total = total + g
        found[name] = None if total is None else np.asarray(total / np.asarray(len(parts), total.dtype))
    return found


def put(space: Space, grads: dict[str, Any], layout: str = "C") -> dict[str, Any]:
    return {name: None if g is None else space.put(g, layout) for name, g in grads.items()}


def optimizer(space: Space, rule: Any, dtype: str, layout: str = "C", **options: Any) -> gpuopt.Optimizer:
    params = {name: space.put(np.full(shape, 2.0, dtype), layout) for name, shape in SHAPES.items()}
    return gpuopt.Optimizer(params, rule, **options)


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_is_one_update_by_the_mean(rule: Any, guard: dict[str, Any], dtype: str, space: Space) -> None:
    given = gradients(9, dtype)
    for engine in space.engines:
        opt = optimizer(space, rule, dtype, every=3, engine=engine, **guard)
        plain = optimizer(space, rule, dtype, engine=engine, **guard)
        for i, grads in enumerate(given):
            assert (opt.steps, opt.accumulated) == divmod(i, 3)
            opt.step(put(space, grads))
            if i % 3 == 2:
                plain.step(put(space, mean(given[i - 2 : i + 1])))
                assert_same_bits(space.got(opt), space.got(plain))
                np.testing.assert_equal(opt.gradient_norm, plain.gradient_norm)


# Which of six calls have no gradient of the leaf "a".
MISSING: dict[str, Callable[[int, str], bool]] = {
    "the first of each three": lambda call, name: name == "a" and call % 3 == 0,
    "the last": lambda call, name: name == "a" and call % 3 == 2,
    "all but the second": lambda call, name: name == "a" and call % 3 != 1,
    "the first three": lambda call, name: name == "a" and call < 3,
    "the last three": lambda call, name: name == "a" and call >= 3,
    "all of all leaves": lambda call, name: call >= 3,
}


@pytest.mark.parametrize("missing", MISSING.values(), ids=MISSING)
def test_no_gradient_counts_as_zeros_unless_there_is_none_at_all(
    missing: Callable[[int, str], bool], space: Space
) -> None:
    given = gradients(6, "f4", missing)
    for layout in LAYOUTS if space.name == "numpy" else ("C",):
        opt = optimizer(space, gpuopt.Adam(0.1), "f4", layout, every=3)
        plain = optimizer(space, gpuopt.Adam(0.1), "f4", layout)
        for i, grads in enumerate(given):
            opt.step(put(space, grads))
            if i % 3 == 2:
                plain.step(put(space, mean(given[i - 2 : i + 1])))
        assert opt.steps == 2
        assert_same_bits(space.got(opt), space.got(plain))


def by_file(opt: gpuopt.Optimizer, make: Callable[[], gpuopt.Optimizer], folder: Any) -> gpuopt.Optimizer:
    gpuopt.save(folder / "x.safetensors", opt)
    gpuopt.load(folder / "x.safetensors", new := make())
    return new


def by_state_dict(opt: gpuopt.Optimizer, make: Callable[[], gpuopt.Optimizer], _: Any) -> gpuopt.Optimizer:
    (new := make()).load_state_dict(opt.state_dict())
    return new


WAYS: dict[str, Callable[..., gpuopt.Optimizer]] = {
    "file": by_file,
    "state_dict": by_state_dict,
    "pickle": lambda opt, *_: pickle.loads(pickle.dumps(opt)),
    "deepcopy": lambda opt, *_: copy.deepcopy(opt),
}


@pytest.mark.parametrize("saved_at", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_goes_on_in_the_middle_to_the_same_bits(way: Any, saved_at: int, tmp_path: Any, fused_space: Space) -> None:
    given = gradients(7, "f8", MISSING["the last"])

    def make() -> gpuopt.Optimizer:
        return optimizer(fused_space, RULES["chain"], "f8", every=3, nonfinite="raise")

    whole, first = make(), make()
    for grads in given:
        whole.step(put(fused_space, grads))
    for grads in given[:saved_at]:
        first.step(put(fused_space, grads))
    with fused_space.use():  # CuPy unpickles on the current device
        second = way(first, make, tmp_path)
    assert (second.steps, second.accumulated) == (first.steps, first.accumulated) == divmod(saved_at, 3)
    for grads in given[saved_at:]:
        second.step(put(fused_space, grads))
    assert repr(second).endswith("2 steps, 1 of 3 gradients)")
    assert_same_bits(fused_space.got(second), fused_space.got(whole))


def test_between_updates_states_fit_any_every() -> None:
    given = gradients(4, "f8")
    opts = [gpuopt.Optimizer({k: np.ones(s) for k, s in SHAPES.items()}, gpuopt.Adam(), every=n) for n in (1, 2, 3)]
    opts[1].step(given[0])
    opts[1].step(given[1])
    for opt in opts:
        opt.load_state_dict(opts[1].state_dict())
        assert (opt.steps, opt.accumulated) == (1, 0)
    opts[2].step(given[2])
    opts[2].step(given[3])
    for opt in opts[:2]:
        with pytest.raises(ValueError, match=rf"accumulated: 2 gradients, expected fewer than every={opt._every}"):
            opt.load_state_dict(opts[2].state_dict())
        assert (opt.steps, opt.accumulated) == (1, 0)
    state = copy.deepcopy(opts[2].state_dict())
    state["state"]["a"]["every.count"] = np.array(7.0)
    with pytest.raises(ValueError, match=r"state/a/every.count: 7.0, expected a number of gradients up to 2"):
        opts[2].load_state_dict(state)


@pytest.mark.parametrize("call", [3, 4, 5])
@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_an_update_with_a_bad_gradient_is_dropped(call: int, nonfinite: Any, fused_space: Space) -> None:
    given = gradients(9, "f4")
    bad = {**given[call], "b": np.array(np.inf, "f4")}
    opt = optimizer(fused_space, gpuopt.Adam(0.1), "f4", every=3, nonfinite=nonfinite)
    parts = [put(fused_space, grads) for grads in (*given[:call], bad, *given[call + 1 : 6])]
    for grads in parts[:5]:
        opt.step(grads)

    def last() -> Any:
        opt.step(parts[5])
        return opt.state_dict()  # a GPU is not waited for before

    if nonfinite == "skip":
        last()
    else:
        with pytest.raises(FloatingPointError, match=r"grads\['b'\]: NaN or infinity at step 1"):
            last()
    assert (opt.steps, opt.skipped, opt.accumulated) == ((2, 1, 0) if nonfinite == "skip" else (1, 0, 0))
    for grads in given[6:]:
        opt.step(put(fused_space, grads))
    plain = optimizer(fused_space, gpuopt.Adam(0.1), "f4", nonfinite="skip")
    plain.step(put(fused_space, mean(given[:3])))
    if nonfinite == "skip":
        plain.step(put(fused_space, bad))
    plain.step(put(fused_space, mean(given[6:])))
    assert_same_bits(fused_space.got(opt), fused_space.got(plain))


def test_what_does_not_fit_changes_nothing() -> None:
    given = gradients(3, "f8")
    opt = gpuopt.Optimizer({k: np.ones(s) for k, s in SHAPES.items()}, gpuopt.SGD(lr=lambda step: 0.1 - step), every=3)
    opt.step(given[0])
    for bad, words in (({**given[1], "a": np.ones(2)}, r"grads\['a'\]: shape \(2,\)"), ({"a": None}, "missing")):
        with pytest.raises(ValueError, match=words):
            opt.step(bad)
    before = opt.params["a"]
    for waiting in (1, 2):
        opt.params["a"] = np.ones((5, 3))
        with pytest.raises(ValueError, match=r"params\['a'\]: another array"):
            opt.step(given[waiting])
        opt.params["a"] = before
        assert (opt.steps, opt.accumulated) == (0, waiting)
        opt.step(given[waiting])
    np.testing.assert_array_equal(before, 1 - 0.1 * mean(given)["a"])
    with pytest.raises(ValueError, match="SGD: lr at step 1"):
        opt.step(given[0])
    assert (opt.steps, opt.accumulated) == (1, 0)


@pytest.mark.parametrize("moment", ["bind", "look"])
@pytest.mark.parametrize("engine", ["auto", "array"])
def test_what_interrupts_the_last_call_leaves_all_as_it_was(engine: Any, moment: str, monkeypatch: Any) -> None:
    """A signal handler may raise at any moment, also between the mean and the update."""
    given = gradients(3, "f8")
    opt, plain = (
        gpuopt.Optimizer({k: np.ones(s) for k, s in SHAPES.items()}, gpuopt.Adam(0.1), every=3, engine=engine)
        for _ in range(2)
    )
    for grads in given[:2]:
        opt.step(grads)
    before = copy.deepcopy(opt.state_dict())

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(opt._step, moment, interrupted)
        with pytest.raises(KeyboardInterrupt):
            opt.step(given[2])
    np.testing.assert_equal(opt.state_dict(), before)
    opt.step(given[2])
    for grads in given:
        plain.step(grads)
    np.testing.assert_equal(opt.state_dict(), plain.state_dict())


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("change", ["step", "tune", "load"])
@pytest.mark.parametrize("engine", ["auto", "array"])
def test_what_a_signal_handler_changes_in_the_middle_of_a_step_is_not_lost(
    engine: Any, change: str, every: int, monkeypatch: Any
) -> None:
    """A handler runs in the thread that it interrupts, which no lock keeps out; the step is taken after it, as if called then."""
    given = gradients(7, "f8")

    def make() -> gpuopt.Optimizer:
        params = {k: np.ones(s) for k, s in SHAPES.items()}
        return gpuopt.Optimizer(params, gpuopt.SGD(0.1), every=every, engine=engine, nonfinite="skip")

    opt, plain, start = make(), make(), make().state_dict()
    changes = {
        "step": lambda opt: opt.step(given[6]),
        "tune": lambda opt: opt.tune(momentum=0.5),
        "load": lambda opt: opt.load_state_dict(start),
    }
    for grads in given[:3]:
        opt.step(grads)
        plain.step(grads)
    bind, calls = type(opt._step).bind, list[int]()

    def interrupted(*args: Any) -> Any:
        if args[0] is opt._step and not calls:
            calls.append(1)
            changes[change](opt)
        return bind(*args)

    with monkeypatch.context() as patch:
        patch.setattr(type(opt._step), "bind", interrupted)
        opt.step(given[3])
    changes[change](plain)
    plain.step(given[3])
    for grads in given[4:6]:
        opt.step(grads)
        plain.step(grads)
    np.testing.assert_equal(opt.state_dict(), plain.state_dict())
    assert (calls, opt.steps) == ([1], plain.steps)


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), (1.5, ValueError), ("2", TypeError), (True, TypeError)])
def test_how_many_must_be_a_positive_integer(every: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"every: got .*expected a positive integer"):
        gpuopt.Optimizer(np.ones(1), gpuopt.SGD(), every=every)
