"""Updates as strangers write them: the same numbers from every engine, or a sentence that says what to do."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from spaces import Space

import gpuopt
from gpuopt.rules.slots import leaf, shared

Update = Callable[..., Any]

P = np.ones((2, 3))
G = np.array([[1.0, 2.0, 3.0], [4.0, -5.0, 0.5]])
LR = 0.125
UP, NORM = G > 0, math.sqrt(np.sum(G * G))
EARLY, LATE = 1.0, 0.0
"""A truth value that holds at the first of two steps alone, as a number."""


def rule(update: Update, **more: Any) -> Any:
    """A rule with this update."""

    def own(self: object, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        return update(xp, p, g, s, h)

    fields = {"lr": gpuopt.Hyper, "flag": bool}
    body = {"update": own, "__annotations__": fields, "lr": LR, "flag": False, **more}
    kind: Any = type("Own", (gpuopt.Rule,), body)
    return dataclass(frozen=True)(kind)()


def moving(by: Update) -> Update:
    """The update that subtracts what a function of the gradient gives."""
    return lambda xp, p, g, s, h: (p - by(xp, g, h), {})


def caught(xp: Any, g: Any, h: Any) -> Any:
    try:
        size = float(xp.norm(g))
    except TypeError:
        size = 1000.0
    return size * g


# Name: what is subtracted from the parameter in each step, and how much that is in the first and in the second one.
ALIKE: dict[str, tuple[Update, Any, Any]] = {
    "not of a number": (lambda xp, g, h: xp.where(~(h.t > 1), 1.0, 2.0) * g, G, 2 * G),
    "not, times an array": (lambda xp, g, h: ~(h.t > 1) * g, EARLY * G, LATE * G),
    "not, and": (lambda xp, g, h: (~(h.t > 1) & (g > 0)) * g, UP * G, LATE * G),
    "not, or": (lambda xp, g, h: ((g > 0) | ~(h.t > 1)) * g, G, UP * G),
    "not, compared": (lambda xp, g, h: xp.where((g > 0) == ~(h.t > 1), 1.0, 2.0), np.where(UP, 1, 2), 1 + UP),
    "not, on the right": (lambda xp, g, h: ((g > 0) & ~(h.t > 1)) * g, UP * G, LATE * G),
    "not of both": (lambda xp, g, h: xp.where(~((g > 0) & (h.t > 1)), g, 0.0), G, ~UP * G),
    "not of a flag": (lambda xp, g, h: xp.where(~h.flag, 1.0, 2.0) * g, G, G),
    "a branch on a flag": (lambda xp, g, h: g if h.flag else 2 * g, 2 * G, 2 * G),
    "truth values beside sums": (
        lambda xp, g, h: xp.where(~(h.t > 1) | (xp.norm(g) > 1), 1.0, 2.0) * g,
        G,
        G,
    ),
    "truth values as numbers": (lambda xp, g, h: (0.5 + (h.t > 1) + (xp.norm(g) > 1)) * g, 1.5 * G, 2.5 * G),
    "a constant condition": (lambda xp, g, h: xp.where(True, g, 2 * g), G, G),
    "a step as an index": (lambda xp, g, h: (0.5, 2.0, 3.0)[h.t % 3] * g, 2 * G, 3 * G),
    "a loop over steps": (lambda xp, g, h: sum(h.lr**k for k in range(h.t)) * g, G, (1 + LR) * G),
    "NumPy's root": (lambda xp, g, h: np.sqrt(4 * h.lr * 2) * g, G, G),
    "NumPy's least": (lambda xp, g, h: np.minimum(2 * h.lr, 1 / h.t) * g, 0.25 * G, 0.25 * G),
    "NumPy's where": (lambda xp, g, h: np.where(g > 0, h.lr, g), np.where(UP, LR, G), np.where(UP, LR, G)),
    "in place": (lambda xp, g, h: g.__imul__(h.lr), LR * G, LR * G),
    "the largest along an axis": (
        lambda xp, g, h: xp.max(g, axis=1, keepdims=True) * g,
        [[3], [4]] * G,
        [[3], [4]] * G,
    ),
    "an axis of NumPy's": (lambda xp, g, h: xp.sum(g, axis=np.int64(0)) * g, G.sum(0) * G, G.sum(0) * G),
    "an error that is caught": (caught, NORM * G, NORM * G),
    "a number for whole arrays": (
        lambda xp, g, h: xp.whole(lambda xp, x, a: x * a, g, xp.sqrt(8 * h.lr)),
        G,
        G,
    ),
    "a choice before whole arrays": (
        lambda xp, g, h: xp.whole(lambda xp, x: 2 * x, xp.where(~(h.t > 1), g, -g)),
        2 * G,
        -2 * G,
    ),
}


@pytest.mark.parametrize("way", ["auto", "array", "update"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", ALIKE)
def test_every_engine_takes_the_same_step(case: str, dtype: str, way: Any) -> None:
    by, first, second = ALIKE[case]
    p, g, own = P.astype(dtype), G.astype(dtype), rule(moving(by))
    if way == "update":
        state = gpuopt.init(own, p)
        for _ in range(2):
            p, state = gpuopt.update(own, p, g, state)
    else:
        opt = gpuopt.Optimizer(p, own, engine=way)
        for _ in range(2):
            opt.step(g)
    np.testing.assert_allclose(p, P - first - second, rtol=1e-6 if dtype == "float32" else 1e-15, atol=1e-6)


@pytest.mark.peers
@pytest.mark.parametrize("library", ["torch", "jax.numpy"])
@pytest.mark.parametrize("case", [name for name in ALIKE if name.startswith(("not", "truth"))])
def test_truth_values_beside_arrays_of_other_libraries(case: str, library: str) -> None:
    xp = pytest.importorskip(library)
    by, first, second = ALIKE[case]
    own, p, g = rule(moving(by)), xp.asarray(P.astype("f4")), xp.asarray(G.astype("f4"))
    state = gpuopt.init(own, p)
    for _ in range(2):
        p, state = gpuopt.update(own, p, g, state)
    np.testing.assert_allclose(np.asarray(p), P - first - second, rtol=1e-6, atol=1e-6)


REFUSED: dict[str, tuple[Update, str, type[Exception], str]] = {
    "no such axis": (moving(lambda xp, g, h: xp.sum(g, axis=5) * g), "float32", ValueError, "axis 5 is out of bounds"),
    "an axis twice": (moving(lambda xp, g, h: xp.sum(g, axis=(0, -2)) * g), "float32", ValueError, "repeated axis"),
    "a sum of truth values": (
        moving(lambda xp, g, h: xp.sum(g > 0, axis=0) * g),
        "float32",
        TypeError,
        r"^Own\.update reduces truth values, expected numbers, as xp\.where",
    ),
    "another dtype": (
        moving(lambda xp, g, h: np.cumsum(g, dtype="f8").reshape(g.shape)),
        "float32",
        TypeError,
        r"dtype float64, expected float32: an operand was of another dtype; Python's numbers, .* leave it as it is$",
    ),
    "no array": (lambda xp, p, g, s, h: ([0.0], {}), "float32", TypeError, r"returned p: list, expected an array$"),
    "a row for a complex leaf": (
        lambda xp, p, g, s, h: (xp.sum(g, axis=0, keepdims=True), {}),
        "complex64",
        ValueError,
        r"^Own\.update returned p with shape \(1, 3\), expected \(2, 3\)$",
    ),
    "a complex number": (
        lambda xp, p, g, s, h: (xp.sum(g), {}),
        "complex64",
        TypeError,
        r"^Own\.update returned p: a complex number, expected an array like the parameter$",
    ),
    "NumPy's mean of a complex leaf": (
        moving(lambda xp, g, h: g - np.mean(g)),
        "complex64",
        TypeError,
        r"Own\.update calls numpy\.mean of a complex value, expected the functions of xp",
    ),
    "NumPy's modulus": (
        moving(lambda xp, g, h: np.abs(g)),
        "complex64",
        TypeError,
        r"Own\.update calls numpy\.absolute of a complex value, expected the functions of xp",
    ),
    "a hyperparameter by brackets": (
        moving(lambda xp, g, h: h["lr"] * g),
        "float32",
        TypeError,
        r"^Own: a hyperparameter is asked for by \['lr'\], expected an attribute, such as \.lr$",
    ),
}


@pytest.mark.parametrize("engine", ["auto", "array"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_no_engine_can_do_is_told(case: str, engine: Any) -> None:
    update, dtype, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        gpuopt.Optimizer(P.astype(dtype), rule(update), engine=engine)


def test_a_float64_number_beside_a_complex_leaf_is_told() -> None:
    """Recorded, it is a number like any other; on the arrays its products are of another dtype, and their bits are others."""
    own = rule(moving(lambda xp, g, h: np.float64(0.1) * g))
    gpuopt.Optimizer(P.astype("complex64"), own, engine="fused")
    with pytest.raises(TypeError, match=r"^Own\.update returned p with dtype float64, expected float32: an operand"):
        gpuopt.Optimizer(P.astype("complex64"), own, engine="array")


# Totals over leaves of several shapes, for which the update is not the same: the sums that come between them.
def centred(xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
    u = g / xp.norm(g) if p.ndim > 1 else g
    return p - u / xp.total_norm(u), {}


def chosen(xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
    size = xp.norm(g)
    both = xp.where(xp.total_norm(p) > size**4, xp.total_norm(g), size)
    return p - both * g / xp.total_norm(both * g), {}


SHAPES: dict[str, Any] = {
    "a total that one leaf chooses": lambda: rule(chosen),
    "another sum before it": lambda: rule(centred),
    "a sum after it": lambda: gpuopt.chain(
        gpuopt.ClipGlobalNorm(1.0), gpuopt.Centralize(), gpuopt.Adafactor(longest=True)
    ),
    "sums for matrices alone": lambda: gpuopt.chain(
        gpuopt.ClipGlobalNorm(0.5), gpuopt.AdaptiveClip(), gpuopt.Centralize(-1), gpuopt.AdaGrad()
    ),
}


@pytest.mark.parametrize("case", SHAPES)
def test_totals_over_leaves_with_other_updates(case: str) -> None:
    ended = []
    for engine in ("auto", "array"):
        leaves = {"matrix": np.ones((4, 5)), "vector": np.ones(3), "number": np.ones(())}
        opt = gpuopt.Optimizer(leaves, SHAPES[case](), engine=engine)
        for step in range(3):
            opt.step({name: np.random.RandomState(step).standard_normal(p.shape) for name, p in leaves.items()})
        ended.append(b"".join(p.tobytes() for p in leaves.values()))
    assert ended[0] == ended[1]


@pytest.mark.parametrize("way", ["auto", "fused", "array", "update"])
@pytest.mark.parametrize("shapes", [[(0, 3)], [(0, 3), (0,)], [(0, 3), (2,)]], ids=str)
def test_numbers_of_leaves_without_elements(shapes: Any, way: Any, fused_space: Space) -> None:
    """They go on, although no element is updated, and no kernel runs where there is none."""

    def update(xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p, {"each": s.each + 1 + xp.sum(g), "all": xp.total(g) + h.t}

    own = rule(update, slots={"each": leaf(0.0), "all": shared(0.0)})
    leaves = [fused_space.put(np.ones(shape)) for shape in shapes]
    gradients = [fused_space.put(np.ones(shape)) for shape in shapes]
    with fused_space.use():
        if way == "update":
            state = gpuopt.init(own, leaves)
            for _ in range(2):
                leaves, state = gpuopt.update(own, leaves, gradients, state)
            found = [(state.slots["each"][i], state.slots["all"][i]) for i in range(len(shapes))]
        else:
            opt = gpuopt.Optimizer(leaves, own, engine=way)
            for _ in range(2):
                opt.step(gradients)
            found = [(own["each"], own["all"]) for own in opt.state_dict()["state"].values()]
    sizes = [math.prod(shape) for shape in shapes]
    assert [(float(a), float(b)) for a, b in found] == [(2 + 2 * size, 2 + sum(sizes)) for size in sizes]


def evaluating(function: Update, **more: Any) -> Any:
    """A rule with this evaluation, and a slot that is the sum of the gradients."""

    def evaluation(self: object, xp: Any, p: Any, s: Any, h: Any) -> Any:
        return function(xp, p, s, h)

    return rule(lambda xp, p, g, s, h: (p - g, {"m": s.m + g}), slots=("m",), evaluation=evaluation, **more)


EVALUATED: dict[str, tuple[Update, Any]] = {
    "a slot": (lambda xp, p, s, h: s.m, 2 * G),
    "written into": (lambda xp, p, s, h: p.__imul__(2), 2 * (P - 2 * G)),
    "a slot written into": (lambda xp, p, s, h: s.m.__iadd__(p), P),
    "by the step": (lambda xp, p, s, h: xp.where(~(h.t > 1), p, s.m), 2 * G),
    "the parameter": (lambda xp, p, s, h: p, P - 2 * G),
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64"])
@pytest.mark.parametrize("case", EVALUATED)
def test_evaluations_are_theirs_alone(case: str, dtype: str) -> None:
    """What an evaluation writes into is neither the parameter nor its state."""
    function, expected = EVALUATED[case]
    own, p, g = evaluating(function), P.astype(dtype), G.astype(dtype)
    opt, state, q = gpuopt.Optimizer(p, own), gpuopt.init(own, p), p.copy()
    for _ in range(2):
        opt.step(g)
        q, state = gpuopt.update(own, q, g, state)
    for _ in range(2):
        for found in (opt.evaluation(), gpuopt.evaluation(own, q, state)):
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(p, P - 2 * G)


NOT_EVALUATED: dict[str, tuple[Update, str, type[Exception], str]] = {
    "a number": (
        lambda xp, p, s, h: 1.0,
        "float32",
        TypeError,
        r"^Own\.evaluation returned p: float, expected an array",
    ),
    "nothing": (
        lambda xp, p, s, h: None,
        "float32",
        TypeError,
        r"^Own\.evaluation returned p: None, expected an array",
    ),
    "the other way round": (
        lambda xp, p, s, h: p.T,
        "float32",
        ValueError,
        r"^Own\.evaluation returned p with shape \(3, 2\), expected \(2, 3\)$",
    ),
    "one row": (lambda xp, p, s, h: p[:1], "complex64", ValueError, r"p with shape \(1, 3\), expected \(2, 3\)$"),
    "imaginary": (lambda xp, p, s, h: 1j * p, "float32", TypeError, r"p with dtype complex64, expected float32"),
    "totals": (
        lambda xp, p, s, h: p / xp.total_norm(p),
        "float32",
        TypeError,
        r"^Own\.evaluation asks for totals over all leaves, expected what a slot `shared` keeps of them$",
    ),
}


@pytest.mark.parametrize("case", NOT_EVALUATED)
def test_what_evaluations_may_not_return(case: str) -> None:
    function, dtype, error, words = NOT_EVALUATED[case]
    own, p = evaluating(function), P.astype(dtype)
    with pytest.raises(error, match=words):
        gpuopt.Optimizer(p, own).evaluation()
    with pytest.raises(error, match=words):
        gpuopt.evaluation(own, p, gpuopt.init(own, p))
