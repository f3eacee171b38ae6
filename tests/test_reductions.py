"""Rules that reduce: fused, they have the bits of the plain formulas, in as many passes as their mathematics needs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from formulas import RULES, TRANSFORMS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spaces import Space, assert_same_bits, hard_values

import gpuopt
from gpuopt.engines.passes import passes
from gpuopt.engines.trace import TraceError, trace, traced
from gpuopt.rules import Hyper, Rule
from gpuopt.rules.slots import Given, leaf, shared, starts

FORMULAS = {
    name: rule
    for name, (rule, _) in {**RULES, **TRANSFORMS}.items()
    if not any(isinstance(start, Given) for start in starts(rule.slots).values())  # arrays of other shapes
}
SHAPES: list[tuple[int, ...]] = [(3,), (5000,), (17, 300), (), (0,)]


def values(random: np.random.RandomState, dtype: str, kind: str) -> dict[str, Any]:
    """Leaves of many sizes; "hard" ones have subnormals and the largest numbers, and one leaf has a NaN and infinities."""
    found = {}
    for i, shape in enumerate(SHAPES):
        x = np.asarray(random.standard_normal(shape), dtype)
        if kind == "hard":
            with np.errstate(over="ignore", under="ignore"):
                x = np.asarray(x * np.asarray(10.0, dtype) ** random.uniform(-40, 38, shape), dtype)
        if kind == "hard" and i == 1:
            x = np.where(random.random_sample(shape) < 0.01, hard_values(random, shape, dtype), x)
        found[f"x{i}"] = x
    return found


def run(rule: gpuopt.Rule, space: Space, engine: Any, dtype: str, kind: str, steps: int = 4) -> dict[str, Any]:
    """Parameters and state after some steps, in one of which a leaf has no gradient."""
    random = np.random.RandomState(0)
    opt = gpuopt.Optimizer({k: space.put(x) for k, x in values(random, dtype, kind).items()}, rule, engine=engine)
    for step in range(steps):
        grads: dict[str, Any] = {k: space.put(x) for k, x in values(random, dtype, kind).items()}
        opt.step({**grads, "x1": None} if step == 2 else grads)
    return space.got(opt)


@pytest.fixture(scope="module")
def numpy_space() -> Space:
    from spaces import opened

    return next(opened("numpy"))


@pytest.mark.parametrize("kind", ["plain", "hard"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("rule", FORMULAS.values(), ids=FORMULAS)
def test_fused_has_the_bits_of_the_plain_formulas(
    rule: gpuopt.Rule, dtype: str, kind: str, fused_space: Space, numpy_space: Space
) -> None:
    plain = run(rule, numpy_space, "array", dtype, kind)
    assert_same_bits(run(rule, fused_space, "fused", dtype, kind), plain)


PASSES = {
    "SGD": (gpuopt.SGD(), 0),
    "LAMB": (gpuopt.LAMB(), 1),
    "LARS": (gpuopt.LARS(), 1),
    "Novograd": (gpuopt.Novograd(), 1),
    "Prodigy": (gpuopt.Prodigy(), 1),
    "LBFGS": (gpuopt.LBFGS(memory=2), 1),
    "BarzilaiBorwein": (gpuopt.BarzilaiBorwein(), 1),
    "NonlinearCG": (gpuopt.NonlinearCG(), 1),
    "clipped LAMB with an average": (gpuopt.chain(gpuopt.ClipGlobalNorm(1.0), gpuopt.LAMB(), gpuopt.EMA(0.9)), 2),
}


@pytest.mark.parametrize(("rule", "count"), PASSES.values(), ids=PASSES)
def test_passes_and_launches(rule: gpuopt.Rule, count: int, cupy_space: Space) -> None:
    assert len(passes(trace(rule))) == count
    cudasim = pytest.importorskip("cudasim", reason="counts launches with the emulator")
    params, grads = ([cupy_space.put(np.ones(5000)), cupy_space.put(np.ones(3, "f4"))] for _ in range(2))
    opt = gpuopt.Optimizer(params, rule)
    opt.step(grads)
    with cudasim.count() as counted:
        opt.step(grads)
    assert counted.summary == {**dict.fromkeys(counted.summary, 0), "launches": count + 1}


@dataclass(frozen=True)
class Reducing(Rule):
    """Every reduction, numbers of a leaf and of all, in three passes."""

    lr: Hyper = gpuopt.bounded(0.5, 0)

    slots = {"own": leaf(1.0), "all": shared(2.0), "m": 0.0}  # noqa: RUF012

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        size = xp.where((xp.max(g) > s.own) & (h.t > 1), xp.max(g), xp.norm(s.all * g))
        centred = g - xp.sum(g) / xp.sum(xp.ones_like(g))
        whole = xp.total_max(xp.abs(centred)) + xp.sqrt(xp.total_dot(centred, g) ** 2) + xp.total_norm(centred / size)
        m = xp.where(whole > 1, centred / whole, s.m)
        return p - h.lr * m / (1 + xp.total(xp.abs(m))), {"own": size, "all": whole / (1 + whole), "m": m}


@pytest.mark.parametrize("kind", ["plain", "hard"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_every_reduction(dtype: str, kind: str, fused_space: Space, numpy_space: Space) -> None:
    assert len(passes(trace(Reducing()))) == 3
    plain = run(Reducing(), numpy_space, "array", dtype, kind)
    assert_same_bits(run(Reducing(), fused_space, "fused", dtype, kind), plain)


def test_groups_of_their_own_totals_and_leaves_with_gaps(fused_space: Space, numpy_space: Space) -> None:
    def result(space: Space, engine: Any) -> dict[str, Any]:
        random = np.random.RandomState(0)
        params = {name: space.put(random.standard_normal(900), "strided") for name in ("a.w", "a.v", "b")}
        params["c"] = space.put(np.float32(random.standard_normal(4200)))
        rules = {
            "a.*": gpuopt.Prodigy(d0=1e-2),
            "b": gpuopt.Adam(),
            "*": gpuopt.chain(gpuopt.ClipGlobalNorm(1.0), gpuopt.LAMB()),
        }
        opt = gpuopt.Optimizer(params, rules, engine=engine, clip=gpuopt.clip_by_global_norm(30.0), nonfinite="skip")
        for step in range(5):
            grads = {
                name: space.put(np.asarray(random.standard_normal(p.shape), p.dtype)) for name, p in params.items()
            }
            if step == 3:
                grads["b"] = space.put(np.full(900, np.nan))
            opt.step(
                {**grads, "a.v": None} if step == 1 else {**grads, "a.v": None, "a.w": None} if step == 2 else grads
            )
        assert opt.skipped == 1
        return space.got(opt)

    assert_same_bits(result(fused_space, "auto"), result(numpy_space, "array"))


def test_a_total_over_two_devices_is_right(cupy_space: Space) -> None:
    cupy = cupy_space.xp
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one device")
    two_devices = cupy.cuda.Device(0), cupy.cuda.Device(1)

    def result(devices: tuple[Any, Any]) -> list[Any]:
        params = []
        for device in devices:
            with device:
                params.append(cupy.linspace(1, 2, 5000))
        opt = gpuopt.Optimizer(params, gpuopt.chain(gpuopt.ClipGlobalNorm(1.0), gpuopt.SGD(0.1)))
        for _ in range(3):
            opt.step([p * 2 for p in params])
        return [p.get() for p in params]

    one, two = result((two_devices[0], two_devices[0])), result(two_devices)
    assert_same_bits(dict(enumerate(two)), dict(enumerate(one)))  # type: ignore[arg-type]


MEMBERS = [
    gpuopt.ClipNorm(0.5), gpuopt.ClipGlobalNorm(2.0), gpuopt.AdaptiveClip(0.1), gpuopt.Centralize(), gpuopt.L2(0.1),
    gpuopt.WeightDecay(0.1), gpuopt.ClipValue(0.7), gpuopt.Maximize(),
]  # fmt: skip
AFTER = [gpuopt.Cautious(), gpuopt.NonNegative(), gpuopt.SoftThreshold(0.1), gpuopt.EMA(0.9), gpuopt.Lookahead()]
INNER = [
    gpuopt.SGD(0.1),
    gpuopt.Adam(),
    gpuopt.LAMB(),
    gpuopt.Novograd(),
    gpuopt.Prodigy(d0=1e-2),
    gpuopt.LBFGS(memory=2),
]


@given(
    before=st.lists(st.sampled_from(MEMBERS), max_size=2),
    rule=st.sampled_from(INNER),
    after=st.lists(st.sampled_from(AFTER), max_size=2),
    dtype=st.sampled_from(["f4", "f8"]),
    kind=st.sampled_from(["plain", "hard"]),
)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_chains(before: Any, rule: Any, after: Any, dtype: str, kind: str, numpy_space: Space) -> None:
    try:
        chained = gpuopt.chain(*before, rule, *after)
    except ValueError:  # a transform that stands in the wrong place
        return
    plain = run(chained, numpy_space, "array", dtype, kind, steps=3)
    assert_same_bits(run(chained, numpy_space, "fused", dtype, kind, steps=3), plain)


@dataclass(frozen=True)
class Odd(Rule):
    """Returns a shared number that is not one."""

    lr: Hyper = gpuopt.bounded(0.5, 0)
    slots = {"all": shared(0.0)}  # noqa: RUF012

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * g, {"all": s.all + xp.norm(g)}


def test_a_shared_number_is_made_of_totals() -> None:
    with pytest.raises(TraceError, match=r"shared number all of sums over one leaf.*totals"):
        trace(Odd())
    with pytest.raises(TypeError, match="shared number all"):
        gpuopt.Optimizer([np.ones(2), np.ones(3)], Odd()).step([np.ones(2), np.ones(3)])


REFUSED = {
    "a truth value": lambda xp, p, g: xp.sum(g > 0),
    "a number": lambda xp, p, g: xp.sum(1.0),
    "a number as a condition": lambda xp, p, g: xp.where(xp.sum(g), 1, 0),
    "a branch": lambda xp, p, g: 1 if xp.sum(g) > 0 else 0,
    "a power": lambda xp, p, g: xp.sum(g) ** 0.3,
}


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_fused(function: Any) -> None:
    @dataclass(frozen=True)
    class Own(Rule):
        lr: Hyper = gpuopt.bounded(0.5, 0)

        def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p - function(xp, p, g) * g, {}

    assert traced(Own()) is None
