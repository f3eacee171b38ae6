"""Leaves that come and go: an optimizer for others keeps the state of those that stay."""

from typing import Any

import numpy as np
import pytest
from spaces import LAYOUTS, Space, assert_same_bits

import gpuopt
from gpuopt.rules.slots import Shared, starts

SHAPES: dict[str, tuple[int, ...]] = {"a": (4, 3), "b": (), "c": (5000,)}
RULES: dict[str, Any] = {
    "Adam": gpuopt.Adam(0.1),
    "chain": gpuopt.chain(gpuopt.L2(0.1), gpuopt.NAdam(0.1), gpuopt.EMA(0.9)),
    "LBFGS": gpuopt.LBFGS(0.1, memory=2),
    "groups": {"a": gpuopt.Adam(0.1), "*": gpuopt.SGD(0.1, 0.9)},
    "frozen": {"b": None, "*": gpuopt.SGD(0.1, 0.9)},
}


def leaves(space: Space, names: str, seed: int | None = None, layout: str = "C") -> dict[str, Any]:
    """Parameters, or with a seed gradients."""
    random = np.random.RandomState(seed)
    ones = {name: np.ones(shape) for name, shape in SHAPES.items()}
    values = ones if seed is None else {name: random.standard_normal(shape) for name, shape in SHAPES.items()}
    return {name: space.put(values[name], layout) for name in names}


def state_of(opt: gpuopt.Optimizer, space: Space, names: str) -> dict[str, Any]:
    return {key: x for key, x in space.got(opt).items() if key[0] in names}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_leaves_that_stay_go_on_as_if_nothing_had_happened(rule: Any, space: Space) -> None:
    params = leaves(space, "abc")
    opt = gpuopt.Optimizer(params, rule, nonfinite="skip")
    opt.step(leaves(space, "abc", 0))
    opt.tune(lr=0.2)
    opt.step({**leaves(space, "abc", 1), "c": None})
    before = state_of(opt, space, "abc")
    gone = {"a": params["a"], "b": params["b"]}  # c goes, then a new one comes
    less = opt.with_params(gone)
    more = less.with_params(gone | leaves(space, "c"))
    assert (less.steps, more.steps, less.lr, more.lr) == (2, 2, opt.lr, opt.lr)
    assert_same_bits(state_of(less, space, "ab"), {k: x for k, x in before.items() if k[0] in "ab"})
    assert_same_bits(state_of(more, space, "ab"), {k: x for k, x in before.items() if k[0] in "ab"})
    fresh = gpuopt.Optimizer(leaves(space, "abc"), rule).state_dict()["state"]["c"]
    declared = starts(rule.slots) if isinstance(rule, gpuopt.Rule) else {}
    for slot, start in fresh.items():
        value = np.asarray(space.get(more.state_dict()["state"]["c"][slot]))
        is_shared = isinstance(declared.get(slot), Shared)
        np.testing.assert_array_equal(value, before[f"a/{slot}"] if is_shared else space.get(start))
    less.step(leaves(space, "ab", 2))
    less_after = state_of(less, space, "ab")
    assert_same_bits(
        {k: x for k, x in space.got(opt).items() if "/" in k}, {k: x for k, x in before.items() if "/" in k}
    )
    other = gpuopt.Optimizer(leaves(space, "abc"), rule, nonfinite="skip")
    other.step(leaves(space, "abc", 0))
    other.tune(lr=0.2)
    other.step({**leaves(space, "abc", 1), "c": None})
    other.step({**leaves(space, "ab", 2), "c": None})
    assert_same_bits(less_after, state_of(other, space, "ab"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_may_have_moved(layout: str, fused_space: Space) -> None:
    opt = gpuopt.Optimizer(leaves_on_the_host := {n: np.ones(s) for n, s in SHAPES.items()}, gpuopt.Adam(0.1), every=2)
    host = {n: np.random.RandomState(0).standard_normal(s) for n, s in SHAPES.items()}
    for _ in range(3):
        opt.step(host)
    moved = opt.with_params({name: fused_space.put(p, layout) for name, p in leaves_on_the_host.items()})
    assert (moved.steps, moved.accumulated) == (1, 1)
    moved.step({name: fused_space.put(g) for name, g in host.items()})
    opt.step(host)
    assert_same_bits(fused_space.got(moved), {k: np.asarray(x) for k, x in fused_space.got(opt).items()})


def test_gradients_that_wait_go_over() -> None:
    params = {"a": np.ones(2), "b": np.ones(2)}
    opt = gpuopt.Optimizer(params, gpuopt.SGD(1.0), every=2)
    opt.step({"a": np.ones(2), "b": np.ones(2)})
    del params["b"]
    params["c"] = np.ones(2)
    opt = opt.with_params(params)
    opt.step({"a": None, "c": np.ones(2)})
    assert (list(params["a"]), list(params["c"])) == ([0.5, 0.5], [0.5, 0.5])


BAD: dict[str, tuple[Any, Any, str]] = {
    "shape": (
        gpuopt.Adam(),
        {"a": np.ones(3)},
        r"params\['a'\]: shape \(3,\) of float64, expected shape \(2,\) of float64",
    ),
    "dtype": (gpuopt.Adam(), {"a": np.ones(2, "f4")}, r"params\['a'\]: shape \(2,\) of float32, expected shape"),
    "no rule": (
        {"a": gpuopt.Adam()},
        {"a": np.ones(2), "b": np.ones(2)},
        r"no pattern of \['a'\] matches params\['b'\]",
    ),
    "no leaf": ({"a": gpuopt.Adam()}, {"b": np.ones(2)}, "the pattern 'a' matches no leaf"),
    "a tree": (
        gpuopt.chain(gpuopt.SGD(), gpuopt.Scale({"a": np.ones(2)})),
        {"a": np.ones(2), "b": np.ones(2)},
        r"chain\(SGD, Scale\): Scale.factor is a tree like the old parameters; make a new optimizer",
    ),
}


@pytest.mark.parametrize(("rule", "params", "words"), BAD.values(), ids=BAD)
def test_what_does_not_fit(rule: Any, params: Any, words: str) -> None:
    opt = gpuopt.Optimizer({"a": np.ones(2)}, rule)
    with pytest.raises(ValueError, match=words):
        opt.with_params(params)
    opt.step({"a": np.ones(2)})
    assert opt.steps == 1


def test_the_options_stay() -> None:
    options: dict[str, Any] = {"clip": gpuopt.clip_by_norm(1.0), "nonfinite": "skip", "every": 2, "precision": "param"}
    opt = gpuopt.Optimizer({"a": np.ones(3, np.float16)}, gpuopt.Adam(), **options)
    more = opt.with_params({"a": np.ones(3, np.float16), "b": np.ones(2, np.float16)})
    assert {name: getattr(more, f"_{name}") for name in options} == options
    assert {x.dtype for own in more.state_dict()["state"].values() for x in own.values()} == {np.dtype("float16")}
