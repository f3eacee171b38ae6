"""Rules that see the shape of a leaf: whole leaves, sums along axes, slots of rows and columns, and what they are not for."""

import pickle
import re
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from spaces import LAYOUTS, Space, assert_same_bits

import gpuopt
from gpuopt.engines.program.symbols import Kind
from gpuopt.engines.program.trace import trace
from gpuopt.engines.reference import Group, Namespace
from gpuopt.rules.slots import Matrix, columns, rows

ADAFACTOR, MUON = gpuopt.Adafactor(0.05), gpuopt.Muon(0.02)
each_rule = pytest.mark.parametrize("rule", [ADAFACTOR, MUON], ids=lambda rule: rule.name)


def values(seed: int, shape: Any, dtype: str = "f8") -> Any:
    return np.asarray(np.random.RandomState(seed).standard_normal(shape)).astype(dtype)


def moved(rule: gpuopt.Rule, p: Any, gradients: list[Any], **options: Any) -> Any:
    opt = gpuopt.Optimizer(p.copy(), rule, **options)
    for g in gradients:
        opt.step(g)
    return opt.params


# Sums along axes


@dataclass(frozen=True)
class Sums(gpuopt.Rule):
    """Keeps the sums of rows and columns, and moves by all of them."""

    slots = {"r": rows(1.0, Matrix(least=0)), "c": columns(0.0, Matrix(least=0))}  # noqa: RUF012

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        r, c = (xp.sum(g, axis=axis, keepdims=True) for axis in (-1, 0))
        both = xp.sum(g, axis=(0, 1), keepdims=True)
        return p - both, {"r": s.r + r, "c": s.c + c}


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (7, 1), (5, 13), (16, 64), (0, 2), (2, 0)], ids=str)
def test_sums_along_axes(shape: tuple[int, int], space: Space) -> None:
    p, g = np.zeros(shape), values(0, shape)
    opt = gpuopt.Optimizer(space.put(p), Sums())
    opt.step(space.put(g))
    got = space.got(opt)
    np.testing.assert_allclose(got["/r"], 1 + g.sum(-1, keepdims=True), rtol=0, atol=1e-14)
    np.testing.assert_allclose(got["/c"], g.sum(0, keepdims=True), rtol=0, atol=1e-14)
    np.testing.assert_allclose(got[""], p - g.sum(), rtol=0, atol=1e-13)
    numpy = gpuopt.Optimizer(p.copy(), Sums())
    numpy.step(g)
    assert_same_bits(got, {"": numpy.params, **{f"/{k}": x for k, x in numpy.state_dict()["state"][""].items()}})


def test_sums_are_by_halves() -> None:
    """Half the elements twice as far apart as float32 can tell: one after the other, they would be lost."""
    g = np.full((1, 2**20), 2.0**-20, "f4")
    opt = gpuopt.Optimizer(np.zeros((1, 2**20), "f4"), Sums())
    opt.step(g)
    assert opt.state_dict()["state"][""]["r"].tolist() == [[2.0]]


def test_sums_without_kept_axes() -> None:
    @dataclass(frozen=True)
    class Flat(gpuopt.Rule):
        def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p - xp.sum(g, axis=(0, -1))[None, :, None], {}

    g = values(0, (2, 3, 4))
    np.testing.assert_allclose(moved(Flat(), 0 * g, [g])[1, :, 2], -g.sum((0, 2)), atol=1e-14)


# Slots of rows and columns


@pytest.mark.parametrize(
    ("shape", "matrix", "r", "c"),
    [
        ((), Matrix(), (), ()),
        ((5,), Matrix(), (1,), (5,)),
        ((3, 4), Matrix(), (3, 1), (1, 4)),
        ((3, 4), Matrix(least=4), (1, 1), (3, 4)),
        ((2, 3, 4), Matrix(), (2, 3, 1), (2, 1, 4)),
        ((4, 2, 3), Matrix(longest=True), (1, 2, 3), (4, 2, 1)),
        ((4, 2, 3), Matrix(least=4, longest=True), (1, 1, 1), (4, 2, 3)),
    ],
    ids=str,
)
def test_shapes_of_rows_and_columns(shape: Any, matrix: Matrix, r: Any, c: Any) -> None:
    assert (rows(0.0, matrix).shape(shape), columns(0.0, matrix).shape(shape)) == (r, c)
    rule = gpuopt.Adafactor(least=matrix.least, longest=matrix.longest)
    opt = gpuopt.Optimizer(np.ones(shape), rule)
    opt.step(np.ones(shape))
    assert [slot.shape for slot in opt.state_dict()["state"][""].values()] == [r, c]
    state = gpuopt.init(rule, np.ones(shape))
    p, state = gpuopt.update(rule, np.ones(shape), np.ones(shape), state)
    assert [slot.shape for slot in state.slots.values()] == [r, c]
    np.testing.assert_array_equal(p, opt.params)


@each_rule
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(rule: gpuopt.Rule, layout: str, fused_space: Space) -> None:
    w, g = fused_space.put(values(0, (4, 6, 5)), layout), [values(k, (4, 6, 5)) for k in range(1, 4)]
    opt = gpuopt.Optimizer(w, rule)
    for x in g:
        opt.step(fused_space.put(x, "F"))
    want = moved(rule, values(0, (4, 6, 5)), g, engine="array")
    np.testing.assert_allclose(fused_space.get(w), want, rtol=1e-12)
    if rule is ADAFACTOR:
        assert_same_bits({"": fused_space.get(w)}, {"": want})
    with fused_space.use():
        copy = pickle.loads(pickle.dumps(opt))  # pickles bring other layouts
    for own in (opt, copy):
        own.step(fused_space.put(values(4, (4, 6, 5))))
    np.testing.assert_allclose(fused_space.get(copy.params), fused_space.get(opt.params), rtol=1e-12)


def test_state_of_rows_and_columns_goes_wherever_state_goes(tmp_path: Any) -> None:
    rule = gpuopt.chain(gpuopt.ClipGlobalNorm(1.0), gpuopt.Adafactor(0.05, momentum=0.9), gpuopt.EMA(0.9))
    shapes = {"a": (3, 4), "b": (5,), "c": (), "d": (2, 3, 4)}

    def made(*names: str) -> gpuopt.Optimizer:
        return gpuopt.Optimizer({name: values(0, shapes[name]) for name in names or shapes}, rule)

    def go(opt: gpuopt.Optimizer, *steps: int) -> gpuopt.Optimizer:
        for k in steps:
            opt.step({name: values(k, x.shape) for name, x in opt.params.items()})
        return opt

    def held(opt: gpuopt.Optimizer) -> Any:
        state = opt.state_dict()
        return {**state["params"], **{f"{p}/{s}": x for p, own in state["state"].items() for s, x in own.items()}}

    whole, first = go(made(), 1, 2, 3, 4), go(made(), 1, 2)
    gpuopt.save(tmp_path / "x.safetensors", first)
    loaded, given = made(), made()
    gpuopt.load(tmp_path / "x.safetensors", loaded)
    given.load_state_dict(first.state_dict())
    for opt in (loaded, given, pickle.loads(pickle.dumps(first)), first.with_params(first.params)):
        assert_same_bits(held(go(opt, 3, 4)), held(whole))
        assert_same_bits(opt.evaluation(), whole.evaluation())
    assert "Adafactor" in first._repr_html_()
    state = first.state_dict()
    state["state"]["a"]["Adafactor.r"] = np.zeros((3, 4))
    with pytest.raises(ValueError, match=r"state/a/Adafactor.r: shape \(3, 4\), expected \(3, 1\)"):
        loaded.load_state_dict(state)
    fewer = gpuopt.Optimizer({"a": np.ones((3, 4))}, gpuopt.Adafactor(least=4))
    gpuopt.save(tmp_path / "y.safetensors", fewer)
    with pytest.raises(gpuopt.CheckpointError, match=r"state/a/c: shape \(3, 4\), expected \(1, 4\)"):
        gpuopt.load(tmp_path / "y.safetensors", gpuopt.Optimizer({"a": np.ones((3, 4))}, gpuopt.Adafactor()))
    with pytest.raises(
        ValueError, match=r"slot r: float64 of \(1, 1\), expected float64 of \(3, 1\); make a new optimizer"
    ):
        fewer.tune(least=1)
    assert fewer.rule == gpuopt.Adafactor(least=4)
    p = np.ones((3, 4))
    other = gpuopt.init(gpuopt.Adafactor(least=4), p)
    with pytest.raises(ValueError, match=r"state.slots\['r'\].*expected a numpy array of \(3, 1\), float64"):
        gpuopt.update(gpuopt.Adafactor(), p, p, other)


@each_rule
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_leaves_of_16_bits_are_computed_in_float32(rule: gpuopt.Rule, dtype: str) -> None:
    kind = np.dtype(getattr(pytest.importorskip("ml_dtypes"), dtype)) if dtype == "bfloat16" else np.dtype(dtype)
    w, g = values(0, (4, 6)).astype(kind), [values(k, (4, 6)).astype(kind) for k in range(1, 4)]
    opt = gpuopt.Optimizer(w.copy(), rule)
    p, state = w, gpuopt.init(rule, w.astype("f4"))
    for x in g:
        opt.step(x)
        wide, state = gpuopt.update(rule, p.astype("f4"), x.astype("f4"), state)
        p = wide.astype(kind)
    np.testing.assert_array_equal(opt.params.astype("f4"), p.astype("f4"))
    assert {str(slot.dtype) for slot in opt.state_dict()["state"][""].values()} == {"float32"}


# The rules


def test_convolution_kernels_are_flattened_to_a_row_for_each_output(space: Space) -> None:
    p, g = values(0, (4, 2, 3, 3)), values(1, (4, 2, 3, 3))
    w = space.put(p)
    gpuopt.Optimizer(w, MUON).step(space.put(g))
    flat = moved(MUON, p.reshape(4, 18), [g.reshape(4, 18)])
    np.testing.assert_allclose(space.get(w).reshape(4, 18), flat, rtol=1e-12)


@pytest.mark.peers
def test_muon_of_optax_is_two_rules_here() -> None:
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    like = gpuopt.like.optax
    rule = {"kernel": like.muon(0.01), "*": like.adamw(0.01, weight_decay=0.0, nesterov=True)}
    params = {"kernel": values(0, (5, 3)), "bias": values(1, (3,)), "gate": values(2, (2, 3, 2))}
    theirs, made = {name: x.copy() for name, x in params.items()}, optax.contrib.muon(0.01)
    opt = gpuopt.Optimizer(params, rule)
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        own = {name: jax.numpy.asarray(x) for name, x in theirs.items()}
        state = made.init(own)
        for step in range(5):
            g = {name: values(10 * step + i, x.shape) for i, (name, x) in enumerate(theirs.items())}
            opt.step(g)
            updates, state = made.update({name: jax.numpy.asarray(x) for name, x in g.items()}, state, own)
            own = optax.apply_updates(own, updates)
        for name, p in params.items():
            np.testing.assert_allclose(p, np.asarray(own[name]), rtol=1e-10)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_moves_of_muon_do_not_depend_on_the_size_of_the_gradient(dtype: str, size: float) -> None:
    g = values(0, (5, 7), dtype)
    rule, p = gpuopt.Muon(1.0, eps=0.0), np.zeros((5, 7), dtype)
    want = np.linalg.svd(moved(rule, p, [g]), compute_uv=False)
    assert np.all((want > 0.6) & (want < 1.3))
    np.testing.assert_allclose(
        np.linalg.svd(moved(rule, p, [g * g.dtype.type(size)]), compute_uv=False), want, rtol=1e-4
    )


@each_rule
def test_nothing_comes_of_nothing(rule: gpuopt.Rule, space: Space) -> None:
    for shape in ((3, 2), (0, 2), (3, 0)):
        w = space.put(np.ones(shape))
        opt = gpuopt.Optimizer(w, rule)
        opt.step(space.put(np.zeros(shape)))
        assert not any(map(np.any, map(np.isnan, space.got(opt).values())))
        np.testing.assert_array_equal(space.get(w), np.ones(shape))


@pytest.mark.peers
def test_adafactor_is_that_of_optax_with_a_decay_in_float64() -> None:
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    rms, clip = optax.scale_by_factored_rms, optax.clip_by_block_rms
    shapes = [(), (7,), (4, 3), (5, 2, 6)]
    rule = gpuopt.like.optax.adafactor(0.01, min_dim_size_to_factor=3)
    with jax.enable_x64(True):
        theirs = optax.chain(
            rms(min_dim_size_to_factor=3, decay_rate_fn=lambda step, power: 1 - (step + 1.0) ** -power),
            clip(1.0),
            optax.scale(0.01),
            optax.scale_by_param_block_rms(),
            optax.scale(-1),
        )
        p = [values(k, shape) for k, shape in enumerate(shapes)]
        opt = gpuopt.Optimizer([x.copy() for x in p], rule)
        q = [jax.numpy.asarray(x) for x in p]
        state, update = theirs.init(q), jax.jit(theirs.update)
        for step in range(200):
            g = [values(10 * step + k, shape) * 10.0 ** -(step % 4) for k, shape in enumerate(shapes)]
            moves, state = update([jax.numpy.asarray(x) for x in g], state, q)
            q = optax.apply_updates(q, moves)
            opt.step(g)
    for ours, own, start in zip(opt.params, q, p, strict=True):
        assert np.max(np.abs(ours - np.asarray(own))) <= 1e-11 * np.max(np.abs(ours - start))


@pytest.mark.peers
@each_rule
def test_under_jit(rule: gpuopt.Rule) -> None:
    jax = pytest.importorskip("jax")
    p, g = values(0, (4, 3), "f4"), values(1, (4, 3), "f4")
    want, _ = gpuopt.update(rule, p, g, gpuopt.init(rule, p))
    w = jax.numpy.asarray(p)
    step = jax.jit(lambda p, g, state: gpuopt.update(rule, p, g, state))
    got, state = step(w, jax.numpy.asarray(g), gpuopt.init(rule, w))
    np.testing.assert_allclose(np.asarray(got), want, rtol=1e-5)
    assert int(state.steps) == 1


# Fused

SEVERAL = {
    "Adafactor": ADAFACTOR,
    "Adafactor of torch": gpuopt.like.torch.Adafactor(),
    "Adafactor of Optax": gpuopt.like.optax.adafactor(0.01, momentum=0.9, min_dim_size_to_factor=3),
    "Adafactor in a chain": gpuopt.chain(gpuopt.ClipGlobalNorm(1.0), gpuopt.Adafactor(0.05), gpuopt.EMA(0.9)),
    "Muon": MUON,
    "Muon in a chain": gpuopt.chain(gpuopt.L2(0.1), gpuopt.ClipGlobalNorm(1.0), MUON, gpuopt.EMA(0.9)),
}
SHAPES = {
    "a": (33, 70),
    "b": (2, 3, 4),
    "c": (5, 1),
    "d": (1, 6),
    "e": (0, 3),
    "f": (16, 8, 3, 3),
    "g": (7,),
    "h": (),
    "i": (1,),
    "j": (3, 5, 2, 4),
}
several_rules = pytest.mark.parametrize("rule", SEVERAL.values(), ids=SEVERAL)


def stepped(
    rule: gpuopt.Rule, space: Space, engine: Any, dtype: str, *, steps: int = 4, **options: Any
) -> dict[str, Any]:
    """What an optimizer has after some steps, one of them without some of the gradients."""
    shapes = {name: shape for name, shape in SHAPES.items() if not rule.unfit(shape)}

    def drawn(seed: int) -> dict[str, Any]:
        found = {}
        for k, (name, shape) in enumerate(shapes.items()):
            x = values(100 * seed + k, shape)
            own = x + 1j * values(100 * seed + 50 + k, shape) if dtype.startswith("c") else x
            found[name] = space.put(np.asarray(own).astype(dtype), "F" if k == 0 else "C")
        return found

    opt = gpuopt.Optimizer(drawn(0), rule, engine=engine, **options)
    for step in range(1, steps + 1):
        opt.step({name: None if step == 2 and name in "bg" else g for name, g in drawn(step).items()})
        if step == 3:
            opt.tune(lr=0.01)
    return space.got(opt)


@several_rules
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "c8", "c16"])
@pytest.mark.parametrize("precision", ["state32", "param"])
def test_fused_or_not_the_bits_are_the_same(rule: gpuopt.Rule, dtype: str, precision: Any, fused_space: Space) -> None:
    if "Muon" in rule.name and (dtype[0] == "c" or fused_space.name != "numpy"):
        pytest.skip("Muon is for real numbers, and has the bits of its library's products")
    if precision == "param" and dtype != "f2":
        pytest.skip("for 16 bits")
    numpy = Space("numpy", np, None, nullcontext)
    want = stepped(rule, numpy, "array", dtype, precision=precision)
    assert_same_bits(stepped(rule, fused_space, "fused", dtype, precision=precision), want)


@several_rules
@pytest.mark.parametrize(
    "options",
    [
        {"clip": gpuopt.clip_by_norm(0.5)},
        {"clip": gpuopt.clip_by_global_norm(0.5), "nonfinite": "skip"},
        {"scale": gpuopt.DynamicScale(4.0, every=2)},
        {"every": 2},
    ],
    ids=str,
)
def test_options_of_an_optimizer(rule: gpuopt.Rule, options: dict[str, Any], fused_space: Space) -> None:
    if "Muon" in rule.name and fused_space.name != "numpy":
        pytest.skip("it has the bits of its library's products")
    numpy = Space("numpy", np, None, nullcontext)
    assert_same_bits(
        stepped(rule, fused_space, "fused", "f4", **options), stepped(rule, numpy, "array", "f4", **options)
    )


@several_rules
def test_a_step_that_is_skipped_changes_nothing(rule: gpuopt.Rule, fused_space: Space) -> None:
    w = fused_space.put(values(0, (4, 6)))
    opt = gpuopt.Optimizer(w, rule, engine="fused", nonfinite="skip")
    opt.step(fused_space.put(values(1, (4, 6))))
    before = {name: x.copy() for name, x in fused_space.got(opt).items()}
    opt.step(fused_space.put(values(2, (4, 6)) * np.nan))
    assert opt.skipped == 1
    assert_same_bits(fused_space.got(opt), before)


@dataclass(frozen=True)
class Failing(gpuopt.Rule):
    """Fails on the whole, when it is told to."""

    lr: gpuopt.Hyper = 0.1
    slots = ("m",)

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        def f(xp: Any, u: Any) -> Any:
            if h.t == 2:
                raise ZeroDivisionError("on the whole")
            return u[:1] if h.t == 3 else u

        m = s.m + g
        return p - h.lr * xp.whole(f, m), {"m": m}


@pytest.mark.parametrize("engine", ["array", "fused"])
@pytest.mark.parametrize("skips", [False, True])
def test_what_fails_on_the_whole_changes_nothing(engine: Any, skips: bool, fused_space: Space) -> None:
    p, g = values(0, (3, 4)), values(1, (3, 4))
    options: Any = {"scale": gpuopt.DynamicScale(4.0, every=1), "nonfinite": "skip"} if skips else {}
    opt = gpuopt.Optimizer({"a": fused_space.put(p), "b": fused_space.put(p)}, Failing(), engine=engine, **options)
    opt.step({"a": fused_space.put(g), "b": fused_space.put(g)})
    before = {name: x.copy() for name, x in fused_space.got(opt).items()}
    with pytest.raises(ZeroDivisionError, match="on the whole"):
        opt.step({"a": fused_space.put(g), "b": fused_space.put(g)})
    assert (opt.steps, opt.skipped, opt.scale) == (1, 0, 8.0 if skips else 1.0)
    assert_same_bits(fused_space.got(opt), before)


def test_what_is_not_like_the_leaf_on_the_whole() -> None:
    opt = gpuopt.Optimizer(values(0, (3, 4)), Failing(), engine="fused")
    opt.load_state_dict({**opt.state_dict(), "steps": 2})
    with pytest.raises(
        TypeError, match=r"Failing.update: what it gives to xp.whole returned float64 of \(1, 4\), expected "
    ):
        opt.step(values(1, (3, 4)))


OTHERS: dict[str, Any] = {
    "another shape": lambda xp, p, g: p - xp.whole(lambda xp, u: xp.sum(u, axis=0, keepdims=True), g),
    "a value that it is not given": lambda xp, p, g: p - xp.whole(lambda xp, u: u * g, g),
    "a number": lambda xp, p, g: p - xp.whole(lambda xp, u, n: u * n, g, xp.norm(g)),
    "an index": lambda xp, p, g: p - xp.sum(g, axis=0)[None, :],
}


@pytest.mark.parametrize("formula", OTHERS.values(), ids=OTHERS)
def test_what_cannot_be_fused_is_run_on_the_arrays(formula: Any, fused_space: Space) -> None:
    @dataclass(frozen=True)
    class Other(gpuopt.Rule):
        def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
            return formula(xp, p, g), {}

    p, g = values(0, (3, 4)), values(1, (3, 4))
    with pytest.raises(TypeError, match=r"Other.update"):
        gpuopt.Optimizer(fused_space.put(p), Other(), engine="fused")
    opt = gpuopt.Optimizer(fused_space.put(p), Other())
    opt.step(fused_space.put(g))
    np.testing.assert_allclose(fused_space.get(opt.params), formula(gpuopt_numpy(p), p, g), rtol=1e-12)


REDUCED: dict[str, Any] = {"sum": np.sum, "max": np.max, "norm": np.linalg.norm, "total": np.sum, "total_max": np.max}


@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("name", REDUCED)
def test_sums_along_an_axis_are_reduced_each_of_them_once(name: str, keepdims: bool, space: Space) -> None:
    @dataclass(frozen=True)
    class Reduced(gpuopt.Rule):
        def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p - getattr(xp, name)(xp.sum(g, axis=1, keepdims=keepdims)) * xp.ones_like(p), {}

    g = values(1, (3, 4))
    opt = gpuopt.Optimizer(space.put(np.zeros((3, 4))), Reduced())
    opt.step(space.put(g))
    np.testing.assert_allclose(space.get(opt.params), np.full((3, 4), -REDUCED[name](g.sum(axis=1))), rtol=1e-12)


def gpuopt_numpy(like: Any) -> Any:
    """The functions that a rule sees of NumPy's arrays."""
    return Namespace(np, like, Group("a rule"))


@dataclass(frozen=True)
class PerShape(gpuopt.Rule):
    """Another formula for each shape."""

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - g / p.shape[0], {}


def test_a_formula_for_each_of_many_shapes_is_not_compiled_for_each() -> None:
    few, many = ([values(k, (k,)) for k in range(1, n)] for n in (4, 40))
    gpuopt.Optimizer(few, PerShape(), engine="fused")
    with pytest.raises(TypeError, match="is another formula for each of 17 kinds of leaves, expected at most 16"):
        gpuopt.Optimizer(many, PerShape(), engine="fused")
    opt = gpuopt.Optimizer([x.copy() for x in many], PerShape())
    opt.step(many)
    for k, (p, x) in enumerate(zip(opt.params, many, strict=True)):
        np.testing.assert_array_equal(p, x - x / (k + 1))


def test_whole_is_not_exact() -> None:
    assert not trace(MUON).exact
    assert trace(ADAFACTOR, kind=Kind((3, 4), "float64")).exact


# What they are not for


@pytest.mark.parametrize("rule", [MUON, gpuopt.chain(gpuopt.L2(0.1), MUON, gpuopt.EMA())], ids=["alone", "in a chain"])
@pytest.mark.parametrize("shape", [(), (3,)], ids=str)
def test_muon_is_for_matrices(rule: gpuopt.Rule, shape: Any) -> None:
    p = {"w": np.ones((2, 2)), "b": np.ones(shape)}
    words = re.escape(
        f"params['b']: shape {shape}: Muon is for matrices; give others a rule by their path, such as {{'*.b'"
    )
    for make in (gpuopt.Optimizer, lambda p, rule: gpuopt.init(rule, p)):
        with pytest.raises(ValueError, match=words):
            make(p, rule)


@pytest.mark.parametrize("engine", ["auto", "array"])
def test_muon_is_for_real_numbers(engine: Any) -> None:
    with pytest.raises(TypeError, match=r"params\['w'\]: dtype complex64: Muon is for real leaves only; split"):
        gpuopt.Optimizer({"w": np.ones((2, 2), "c8")}, MUON, engine=engine)


def test_what_torch_does_not_know() -> None:
    with pytest.raises(ValueError, match="adjust_lr_fn: 'rms', expected 'original' or 'match_rms_adamw'"):
        gpuopt.like.torch.Muon(adjust_lr_fn="rms")


@dataclass(frozen=True)
class Wrong(Sums):
    """Keeps something of another shape than it says."""

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        new, slots = super().update(xp, p, g, s, h)
        return new, {**slots, "r": xp.sum(g, axis=(0, 1), keepdims=True)}


def test_a_slot_of_another_shape_than_it_says() -> None:
    with pytest.raises(ValueError, match=r"Wrong.update returned r with shape \(1, 1\), expected \(3, 1\)"):
        gpuopt.Optimizer(np.ones((3, 2)), Wrong())
