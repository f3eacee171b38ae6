"""Tracing: every operation is NumPy's, and what cannot be traced is refused by name."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from spaces import Space, hard_values, opened, same_bits

import gpuopt
from gpuopt.engines.program.functions import Namespace
from gpuopt.engines.program.symbols import OPERATIONS as RECORDED
from gpuopt.engines.program.symbols import TraceError
from gpuopt.engines.program.trace import trace
from gpuopt.rules import Array, Hyper, Rule

Update = Callable[[Any, Array, Array, Any], Array]


@dataclass(frozen=True)
class Plain(Rule):
    """A rule whose new parameter is a function of p and g, and of the hyperparameters a = 0.3 and b = 7."""

    lr: Hyper = 0.0
    a: Hyper = 0.3
    b: Hyper = 7.0
    function: Update = lambda xp, p, g, h: p  # like a schedule, and never asked for a number: `at` is overridden

    def at(self, step: int, given: Mapping[str, float] | None = None) -> dict[str, float]:
        return {"lr": 0.0, "a": 0.3, "b": 7.0, "t": step + 1}

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        return self.function(xp, p, g, h), {}


OPERATIONS: dict[str, Update] = {
    # arithmetic, with arrays, numbers and hyperparameters on either side
    "+": lambda xp, p, g, h: p + g,
    "-": lambda xp, p, g, h: p - g,
    "*": lambda xp, p, g, h: p * g,
    "/": lambda xp, p, g, h: p / g,
    "-p": lambda xp, p, g, h: -p,
    "+p": lambda xp, p, g, h: +p,
    "p**2": lambda xp, p, g, h: p**2,
    "p**2.0": lambda xp, p, g, h: p**2.0,
    "0.1 + p": lambda xp, p, g, h: 0.1 + p,
    "0.1 - p": lambda xp, p, g, h: 0.1 - p,
    "3 * p": lambda xp, p, g, h: 3 * p,
    "1 / p": lambda xp, p, g, h: 1 / p,
    "p / 3": lambda xp, p, g, h: p / 3,
    "h / p": lambda xp, p, g, h: h.a / p,
    "p - h": lambda xp, p, g, h: p - h.b,
    "p * 1e-300": lambda xp, p, g, h: p * 1e-300,
    "p * 1e300": lambda xp, p, g, h: p * 1e300,
    "p * inf": lambda xp, p, g, h: p * float("inf"),
    "p + nan": lambda xp, p, g, h: p + float("nan"),
    "scalars": lambda xp, p, g, h: p * (-(1 - h.a**h.t) / (2 * h.b + 1) - +h.a),
    "in order": lambda xp, p, g, h: p + (1 - h.a) * g * g / 3 * h.b,
    # functions
    "add": lambda xp, p, g, h: xp.add(p, g),
    "subtract": lambda xp, p, g, h: xp.subtract(p, 2),
    "multiply": lambda xp, p, g, h: xp.multiply(0.3, g),
    "divide": lambda xp, p, g, h: xp.divide(p, g),
    "negative": lambda xp, p, g, h: xp.negative(p),
    "sqrt": lambda xp, p, g, h: xp.sqrt(p),
    "root as power": lambda xp, p, g, h: p**0.5,
    "abs": lambda xp, p, g, h: xp.abs(p),
    "Python's abs": lambda xp, p, g, h: abs(p) * abs(h.a - h.b),
    "square": lambda xp, p, g, h: xp.square(p),
    "sign": lambda xp, p, g, h: xp.sign(p),
    "minimum": lambda xp, p, g, h: xp.minimum(p, g),
    "maximum": lambda xp, p, g, h: xp.maximum(p, g),
    "minimum of a number": lambda xp, p, g, h: xp.minimum(p, 0.1),
    "maximum of a number": lambda xp, p, g, h: xp.maximum(0.1, p),
    "clip": lambda xp, p, g, h: xp.clip(p, -1, h.a),
    "clip by arrays": lambda xp, p, g, h: xp.clip(p, xp.abs(g), xp.abs(g) + 1),
    "clip below": lambda xp, p, g, h: xp.clip(p, 0.1, None),
    "clip above": lambda xp, p, g, h: xp.clip(p, None, 0.1),
    "zeros_like": lambda xp, p, g, h: xp.zeros_like(p),
    "ones_like": lambda xp, p, g, h: p * xp.ones_like(p),
    # truth values
    "<": lambda xp, p, g, h: xp.where(p < g, p, 1),
    "<=": lambda xp, p, g, h: xp.where(p <= g, p, 1),
    ">": lambda xp, p, g, h: xp.where(p > 0, 2.5, g),
    ">=": lambda xp, p, g, h: xp.where(p >= h.a, p, g),
    "==": lambda xp, p, g, h: xp.where(p == g, 0.5, p),
    "!=": lambda xp, p, g, h: xp.where(p != 0, p, g),
    "0 <": lambda xp, p, g, h: xp.where(0 < p, p, g),  # noqa: SIM300 - reflected
    "&": lambda xp, p, g, h: xp.where((p > 0) & (g > 0), p, g),
    "|": lambda xp, p, g, h: xp.where((p > 0) | (g > 0), p, g),
    "~": lambda xp, p, g, h: xp.where(~(p > 0), p, g),
    "less": lambda xp, p, g, h: xp.where(xp.less(p, g), p, g),
    "less_equal": lambda xp, p, g, h: xp.where(xp.less_equal(p, g), p, g),
    "greater": lambda xp, p, g, h: xp.where(xp.greater(p, g), p, g),
    "greater_equal": lambda xp, p, g, h: xp.where(xp.greater_equal(p, g), p, g),
    "equal": lambda xp, p, g, h: xp.where(xp.equal(p, g), p, 1),
    "not_equal": lambda xp, p, g, h: xp.where(xp.not_equal(p, g), p, 1),
    "logical_and": lambda xp, p, g, h: xp.where(xp.logical_and(p > 0, g > 0), p, g),
    "logical_or": lambda xp, p, g, h: xp.where(xp.logical_or(p > 0, g > 0), p, g),
    "logical_not": lambda xp, p, g, h: xp.where(xp.logical_not(p > 0), p, g),
    "isnan": lambda xp, p, g, h: xp.where(xp.isnan(p), g, p),
    "isfinite": lambda xp, p, g, h: xp.where(xp.isfinite(p), g, p),
    "isinf": lambda xp, p, g, h: xp.where(xp.isinf(p), g, p),
    "where": lambda xp, p, g, h: xp.where(p > g, p, g),
    "comparing truth values": lambda xp, p, g, h: xp.where((p > 0) == (g > 0), p, 0.5),
    "telling truth values apart": lambda xp, p, g, h: xp.where((p > 0) != (g > 0), p, 0.5),
    "product with a truth value": lambda xp, p, g, h: (
        (p + 0.2) * ((p > 0) != (g > 0)) + (p * 0.8) * ((p > 0) == (g > 0))
    ),
    "sum with a truth value": lambda xp, p, g, h: (p > g) + p - (p > 0),
}
INEXACT: dict[str, Update] = {
    "exp": lambda xp, p, g, h: xp.exp(xp.clip(p, -80, 80)),
    "log": lambda xp, p, g, h: xp.log(xp.abs(p)),
    "tanh": lambda xp, p, g, h: xp.tanh(p),
}


def values(dtype: str) -> tuple[Any, Any]:
    """Pairs of all kinds of numbers, some of them equal."""
    random = np.random.RandomState(3)
    p, g = hard_values(random, (999,), dtype), hard_values(random, (999,), dtype)
    g[::5] = p[::5]
    return p, g


def applied(space: Space, update: Update, p: Any, g: Any) -> Any:
    w = space.put(p)
    gpuopt.Optimizer(w, Plain(function=update), engine="fused").step(space.put(g))
    return space.get(w)


def by_numpy(update: Update, p: Any, g: Any) -> Any:
    with np.errstate(all="ignore"):
        return np.broadcast_to(update(np, p, g, SimpleNamespace(**Plain().at(0))), p.shape)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_on_numpy_operations_are_numpys(name: str, dtype: str) -> None:
    (numpy,) = opened("numpy")
    p, g = values(dtype)
    got, want = applied(numpy, OPERATIONS[name], p, g), by_numpy(OPERATIONS[name], p, g)
    assert same_bits(got, want), [x[got != want][:5] for x in (p, g, got, want)]
    assert trace(Plain(function=OPERATIONS[name])).exact


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_on_cupy_operations_are_numpys(dtype: str, cupy_space: Space) -> None:
    """One kernel for all of them: a sum would hide errors, so each has its leaf."""
    p, g = values(dtype)
    names = [*OPERATIONS]
    for some in (names[:20], names[20:40], names[40:]):
        params = [cupy_space.put(p) for _ in some]
        rules = {str(i): Plain(function=OPERATIONS[name]) for i, name in enumerate(some)}
        gpuopt.Optimizer(params, rules, engine="fused").step([cupy_space.put(g) for _ in some])
        wrong = [
            name
            for name, w in zip(some, params, strict=True)
            if not same_bits(cupy_space.get(w), by_numpy(OPERATIONS[name], p, g))
        ]
        assert not wrong


@pytest.mark.parametrize("name", INEXACT)
def test_functions_of_the_mathematical_library_are_close(name: str, fused_space: Space) -> None:
    for dtype in ("f4", "f8"):
        p, g = values(dtype)
        got, want = applied(fused_space, INEXACT[name], p, g), by_numpy(INEXACT[name], p, g)
        np.testing.assert_allclose(got, want, rtol=float(8 * np.finfo(dtype).eps))
    assert not trace(Plain(function=INEXACT[name])).exact


def test_numbers_of_numpy_are_numbers() -> None:
    got = trace(Plain(function=lambda xp, p, g, h: np.float64(2) * p - g / np.float32(0.5) + np.float64(3) * h.a))
    assert got == trace(Plain(function=lambda xp, p, g, h: 2 * p - g / 0.5 + 3 * h.a))


def test_every_operation_has_its_row() -> None:
    derived = {name for name in vars(Namespace) if not name.startswith("_")}
    reductions = {f"{over}{kind}" for over in ("", "total_") for kind in ("sum", "dot", "norm", "max")}
    reductions = reductions - {"total_sum"} | {"total"}  # `test_passes.py` walks them
    assert {*RECORDED, *derived} - reductions - {"whole", "finfo"} <= {*OPERATIONS, *INEXACT}


def test_an_expression_that_occurs_twice_is_computed_once() -> None:
    program = trace(Plain(function=lambda xp, p, g, h: (p + g) * (p + g) + (h.a * h.b) * p + (h.a * h.b) * g))
    ops = [node.op for node in program.nodes]
    assert (ops.count("add"), len(program.coefficients)) == (3, 1)


def test_scalars_are_computed_in_float64_and_rounded_once() -> None:
    program = trace(gpuopt.Adam())
    for t in (1, 2, 1000):
        wanted = {0.9, 1 - 0.9, 0.999, 1 - 0.999, 1 / (1 - 0.9**t), 1 / (1 - 0.999**t), 1e-3, 1e-7}
        assert set(program.evaluate(gpuopt.Adam().at(t - 1))) == wanted


REFUSED: dict[str, tuple[Update, str]] = {
    "if": (lambda xp, p, g, h: p if p > 0 else g, r"branches on a value.*xp\.where"),
    "and": (lambda xp, p, g, h: xp.where(p > 0 and g > 0, p, g), "branches on a value"),
    "not": (lambda xp, p, g, h: xp.where(not p, p, g), "branches on a value"),
    "max": (lambda xp, p, g, h: max(p, g), r"branches on a value.*xp\.maximum"),
    "chained": (lambda xp, p, g, h: xp.where(0 < p < 1, p, g), "branches on a value"),
    "if on a hyperparameter": (lambda xp, p, g, h: p if h.a > 1 else g, "branches on a value"),
    "max of hyperparameters": (lambda xp, p, g, h: p * max(h.a, h.b), "branches on a value"),
    "float": (lambda xp, p, g, h: p * float(g), "as a Python number"),
    "int": (lambda xp, p, g, h: p * int(h.t), "as a Python number"),
    "math.sqrt": (lambda xp, p, g, h: p * math.sqrt(h.a), "as a Python number"),
    "math.sqrt of an array": (lambda xp, p, g, h: math.sqrt(p), "as a Python number"),
    "round": (lambda xp, p, g, h: round(p), "round"),
    "unknown function": (lambda xp, p, g, h: xp.cumulative_sum(p), r"calls xp\.cumulative_sum.*sqrt"),
    "unknown constant": (lambda xp, p, g, h: p * xp.pi, r"xp\.pi"),
    "function of numbers": (lambda xp, p, g, h: p * xp.exp(h.a), r"calls xp\.exp on numbers alone"),
    "NumPy's function": (lambda xp, p, g, h: np.sqrt(p), r"calls numpy\.sqrt; .*the functions of xp"),
    "NumPy's function of two": (lambda xp, p, g, h: np.add(p, g), r"calls numpy\.add"),
    "NumPy's function of a number": (lambda xp, p, g, h: p * np.sqrt(h.a), r"calls numpy\.sqrt"),
    "method": (lambda xp, p, g, h: p.clip(0, 1), r"uses \.clip of a value"),
    "dtype": (lambda xp, p, g, h: xp.zeros_like(p, dtype=np.int32), "makes an array of .*int32.*float64 like the leaf"),
    "power": (lambda xp, p, g, h: p**3, "power other than 2"),
    "fourth root as power": (lambda xp, p, g, h: p**0.25, "power other than 2 and 0.5.*xp.sqrt"),
    "power of a number": (lambda xp, p, g, h: 2**p, "power other than 2"),
    "floor division": (lambda xp, p, g, h: p // 2, "floordiv"),
    "modulo": (lambda xp, p, g, h: p % 2, "mod"),
    "index": (lambda xp, p, g, h: p[0], "getitem"),
    "length": (lambda xp, p, g, h: p * len(p), "len"),
    "iteration": (lambda xp, p, g, h: sum(p), "iter"),
    "string": (lambda xp, p, g, h: p + "x", "uses 'x' .str"),
    "array": (lambda xp, p, g, h: p * np.ones(3), "ndarray"),
    "array of a value": (lambda xp, p, g, h: p * np.asarray(g), "makes an array of a value"),
    "None": (lambda xp, p, g, h: None, "None"),
    "truth value": (lambda xp, p, g, h: p > 0, "returns a truth value"),
    "truth value beside a number": (lambda xp, p, g, h: p * (h.a * (g > 0)), "truth values to 'mul'"),
    "product of truth values": (lambda xp, p, g, h: p * ((g > 0) * (p > 0)), "truth values to 'mul'"),
    "number as truth value": (lambda xp, p, g, h: xp.where(p, p, g), "numbers to 'where'"),
    "logic of numbers": (lambda xp, p, g, h: p & g, "numbers to 'and'"),
    "root of a truth value": (lambda xp, p, g, h: xp.sqrt(p > 0), "truth values to 'sqrt'"),
    "where of truth values": (lambda xp, p, g, h: xp.where(p > 0, p > 0, g > 0), "truth values to 'where'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(name: str) -> None:
    update, words = REFUSED[name]
    with pytest.raises(TypeError, match=words) as error:
        gpuopt.Optimizer(np.ones(3), Plain(function=update), engine="fused")
    assert isinstance(error.value, TraceError)
    assert str(error.value).startswith("Plain.update")


@pytest.mark.parametrize("engine", ["array", "fused"])
@pytest.mark.parametrize(
    ("slots", "returned", "words"),
    [
        (("m",), {}, r"returned the slots \[\], expected \['m'\]"),
        (("m",), {"m": 0, "v": 0}, r"returned the slots \['m', 'v'\], expected \['m'\]"),
        ((), {"m": 0}, r"returned the slots \['m'\], expected \[\]"),
    ],
)
def test_the_wrong_slots_are_refused(engine: Any, slots: Any, returned: Any, words: str) -> None:
    wanted = slots

    @dataclass(frozen=True)
    class Wrong(Rule):
        lr: Hyper = 0.0
        slots = wanted

        def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> Any:
            return p, dict.fromkeys(returned, g)

    with pytest.raises(TypeError, match=f"Wrong.update {words}"):
        gpuopt.Optimizer(np.ones(3), Wrong(), engine=engine)


@pytest.mark.parametrize("what", ["p", "m"])
def test_another_dtype_is_refused(what: str) -> None:
    @dataclass(frozen=True)
    class Wrong(Rule):
        lr: Hyper = 0.0
        slots = ("m",)

        def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> Any:
            new = {"p": p, "m": s.m}
            new[what] = xp.astype(new[what], xp.float64)
            return new["p"], {"m": new["m"]}

    with pytest.raises(TypeError, match=f"Wrong.update returned {what} with dtype float64, expected float32"):
        gpuopt.Optimizer(np.ones(3, np.float32), Wrong(), engine="array")


# Numbers of the host alone: in float64, and rounded once where they meet an array.
ON_HOST: dict[str, Update] = {
    "where of hyperparameters": lambda xp, p, g, h: p * xp.where(h.a > h.b, h.a, 3 * h.b) + xp.where(h.a < h.b, p, g),
    "logic of hyperparameters": lambda xp, p, g, h: xp.where(
        (h.a > h.b) | xp.logical_not(h.a == h.b) & (h.b != 7.0), p, g
    ),
    "sqrt of hyperparameters": lambda xp, p, g, h: p * xp.sqrt(h.a) + xp.sqrt(h.b * h.b + 2) * g,
    "maximum of hyperparameters": lambda xp, p, g, h: p * xp.maximum(h.a, h.b) - xp.minimum(h.a, 2.0) * g,
}


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", ON_HOST)
def test_numbers_of_the_host_are_computed_alike(name: str, dtype: str) -> None:
    found = []
    for engine in ("fused", "array"):
        p, g = values(dtype)
        gpuopt.Optimizer(p, Plain(function=ON_HOST[name]), engine=engine).step(g)
        found.append(p)
    assert same_bits(*found)
