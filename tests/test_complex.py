"""Complex leaves: the same bits in every engine, phases that turn, other libraries' conventions, and what is refused."""

import pickle
import re
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
from spaces import LAYOUTS, Space, assert_same_bits, hard_values

import gpuopt
from gpuopt.rules import RULES
from gpuopt.rules.slots import real
from gpuopt.transforms import TRANSFORMS

DTYPES = ["c8", "c16"]
WITH_COMPONENTS = [name for name, rule in RULES.items() if "components" in rule.hyperparameters()]

# Those that are refused, and those that treat both components on their own whatever is said.
REFUSED = {"NonNegative", "Box", "Muon"}
APART = {"Rprop", "ClipValue", "Cautious"}


def values(seed: int, shape: Any, dtype: str = "c16") -> Any:
    random = np.random.RandomState(seed)
    return np.asarray(random.standard_normal(shape) + 1j * random.standard_normal(shape)).astype(dtype)


def hard(seed: int, shape: Any, dtype: str) -> Any:
    """Each part as hard as a real number can be."""
    parts = {"c8": "f4", "c16": "f8"}[dtype]
    random = np.random.RandomState(seed)
    x = np.empty(shape, dtype)
    x.real, x.imag = hard_values(random, shape, parts), hard_values(random, shape, parts)
    return x


def in_chains() -> dict[str, gpuopt.Rule]:
    """A chain with each transform."""
    found: dict[str, gpuopt.Rule] = {}
    for name, transform in TRANSFORMS.items():
        made = transform(np.full(40, 0.5)) if name == "Scale" else transform()
        try:
            found[name] = gpuopt.chain(made, gpuopt.SGD(lr=0.1, momentum=0.9))
            if name not in {"EMA", "Lookahead", "Accelerate", "Magnitude", "SoftThreshold", "Cautious", "Scale"}:
                continue
        except ValueError:
            pass
        found[name] = gpuopt.chain(gpuopt.SGD(lr=0.1, momentum=0.9), made)
    return found


RULE_CASES: dict[str, gpuopt.Rule] = {
    **{name: rule() for name, rule in RULES.items() if name not in REFUSED},
    **{f"{name} of components": RULES[name](components=True) for name in WITH_COMPONENTS},
    "amsgrad": gpuopt.Adam(amsgrad=True),
    "centered": gpuopt.RMSProp(centered=True, momentum=0.9, initial=0.5),
    "everything": gpuopt.chain(
        gpuopt.L2(0.1),
        gpuopt.ClipNorm(1.0),
        gpuopt.AdamW(0.1),
        gpuopt.SoftThreshold(0.01),
        gpuopt.Magnitude(0.5, 2.0),
        gpuopt.EMA(0.9),
    ),
}
CASES = {**RULE_CASES, **{name: rule for name, rule in in_chains().items() if name not in REFUSED}}


def run(rule: gpuopt.Rule, space: Space, engine: Any, dtype: str, steps: int = 3, **options: Any) -> dict[str, Any]:
    """Leaves of many layouts, and what becomes of them."""
    shapes = {"a": (40,), "b": ()} if "Scale" in rule.name else {"a": (4200,), "b": (), "c": (3, 5), "d": (0, 2)}
    if "Scale" in rule.name:
        shapes = {"a": (40,), "e": (40,)}
    params = {name: space.put(hard(1, shape, dtype)) for name, shape in shapes.items()}
    opt = gpuopt.Optimizer(params, rule, engine=engine, **options)
    for step in range(steps):
        opt.step({name: space.put(hard(step + 2, shape, dtype)) for name, shape in shapes.items()})
    return space.got(opt)


@cache
def by_arrays(name: str, dtype: str) -> dict[str, Any]:
    """What NumPy makes of a case."""
    return run(CASES[name], Space("numpy", np, None, nullcontext), "array", dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_every_engine_gives_the_same_bits(name: str, dtype: str, space: Space) -> None:
    if (space.name, dtype) == ("array_api_strict", "c8"):
        return  # it checks every operation, which takes its time
    assert_same_bits(run(CASES[name], space, space.engines[-1], dtype), by_arrays(name, dtype))


@pytest.mark.parametrize(
    "options",
    [
        {"clip": c, "nonfinite": n}
        for n in ("ignore", "skip")
        for c in (None, gpuopt.clip_by_value(0.5), gpuopt.clip_by_norm(0.5), gpuopt.clip_by_global_norm(0.5))
    ],
    ids=str,
)
def test_guards_and_clipping(options: dict[str, Any], fused_space: Space) -> None:
    numpy = Space("numpy", np, None, nullcontext)
    for dtype in DTYPES:
        want = run(gpuopt.Adam(), numpy, "array", dtype, **options)
        # CuPy's own kernels, which its array engine runs, take subnormal numbers for zero.
        for engine in ("array", "fused") if fused_space.name == "numpy" else ("fused",):
            assert_same_bits(run(gpuopt.Adam(), fused_space, engine, dtype, **options), want)


def test_the_norm_is_that_of_the_moduli(fused_space: Space) -> None:
    p = {"a": fused_space.put(np.zeros(2, "c8")), "b": fused_space.put(np.zeros(1))}
    for engine in ("array", "fused"):
        opt = gpuopt.Optimizer(p, gpuopt.SGD(lr=1.0), clip=gpuopt.clip_by_global_norm(1.0), engine=engine)
        opt.step({"a": fused_space.put(np.array([3 + 4j, 0], "c8")), "b": fused_space.put(np.array([12.0]))})
        assert opt.gradient_norm == 13.0


def test_a_formula_sees_the_shape(space: Space) -> None:
    w, g = space.put(np.zeros((3, 4), "c16")), values(1, (3, 4))
    opt = gpuopt.Optimizer(w, gpuopt.chain(gpuopt.Centralize(outputs=0), gpuopt.SGD(lr=1.0)))
    opt.step(space.put(g))
    np.testing.assert_allclose(space.get(opt.params), g.mean(axis=1, keepdims=True) - g, rtol=1e-14)


def test_bad_steps_are_skipped(fused_space: Space) -> None:
    w = fused_space.put(np.ones(3, "c16"))
    opt = gpuopt.Optimizer(w, gpuopt.Adam(), nonfinite="skip")
    opt.step(fused_space.put(np.array([1, 1j * np.nan, 0])))
    assert opt.skipped == 1
    np.testing.assert_array_equal(fused_space.get(w), 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout: str, fused_space: Space) -> None:
    w = fused_space.put(values(0, (3, 4, 5)), layout)
    plain = fused_space.put(values(0, (3, 4, 5)))
    g = values(1, (3, 4, 5))
    gpuopt.Optimizer(w, gpuopt.Adam(0.1)).step(fused_space.put(g, "F"))
    gpuopt.Optimizer(plain, gpuopt.Adam(0.1)).step(fused_space.put(g.astype("c8").astype("c16") * 0 + g))
    assert_same_bits({"w": fused_space.get(w)}, {"w": fused_space.get(plain)})


@pytest.mark.parametrize(
    "rule",
    [
        gpuopt.chain(gpuopt.ClipGlobalNorm(0.5), gpuopt.LAMB(0.1), gpuopt.EMA(0.9)),
        gpuopt.chain(gpuopt.Centralize(), gpuopt.ClipGlobalNorm(0.5), gpuopt.AdamW(0.1)),
        gpuopt.chain(gpuopt.Centralize(outputs=-1), gpuopt.AdamW(0.1)),
        gpuopt.Prodigy(),
        gpuopt.LBFGS(memory=3),
        gpuopt.NonlinearCG(0.1),
        gpuopt.BarzilaiBorwein(0.1),
    ],
    ids=lambda rule: rule.name,
)
def test_totals_over_real_and_complex_leaves(rule: gpuopt.Rule, space: Space) -> None:
    def leaves(seed: int) -> dict[str, Any]:
        return {
            "a": values(seed, 5000, "c8"),
            "b": values(seed, 300).real.astype("f4"),
            "c": values(seed, (7, 3)),
            "d": values(seed, ()).real,
        }

    def ran(space: Space, engine: Any) -> dict[str, Any]:
        opt = gpuopt.Optimizer({k: space.put(x) for k, x in leaves(0).items()}, rule, engine=engine)
        for step in range(4):
            opt.step({k: space.put(x) for k, x in leaves(step + 1).items()})
        return space.got(opt)

    want = ran(Space("numpy", np, None, nullcontext), "array")
    for engine in space.engines:
        assert_same_bits(ran(space, engine), want)


# Phases


def turned(rule: gpuopt.Rule, phase: complex) -> tuple[Any, Any]:
    """Where the first of two leaves goes to, and where it came from."""
    params = {"a": values(0, 40) * phase, "b": values(1, 40) * phase}
    start = params["a"].copy()
    opt = gpuopt.Optimizer(params, rule)
    for step in range(10):
        opt.step({name: values(2 * step + k, 40) * phase for k, name in enumerate(params)})
    return params["a"], start


MODULUS = {name: rule for name, rule in CASES.items() if name not in APART and "components" not in name}
MODULUS |= {
    "Yogi": gpuopt.Yogi(initial=0.0),
    "Prodigy": gpuopt.Prodigy(d0=0.01),
}  # both moments of Yogi start somewhere


@pytest.mark.parametrize("rule", MODULUS.values(), ids=MODULUS)
def test_turning_all_phases_turns_the_trajectory(rule: gpuopt.Rule) -> None:
    phase = np.exp(0.7j)
    (plain, start), (other, _) = turned(rule, 1.0), turned(rule, phase)
    assert np.max(np.abs(other - plain * phase)) < 1e-11 * np.max(np.abs(plain - start))


@pytest.mark.parametrize(
    "name", [*(f"{name} of components" for name in WITH_COMPONENTS), *sorted(APART - {"Cautious"})]
)
def test_components_on_their_own_are_those_of_twice_as_many_real_numbers(name: str) -> None:
    rule = CASES[name]
    w, g = values(0, 40), [values(k + 1, 40) for k in range(4)]
    as_real = w.view("f8").copy()
    plain, pairs = gpuopt.Optimizer(as_real, rule), gpuopt.Optimizer(w, rule)
    for x in g:
        plain.step(x.view("f8"))
        pairs.step(x)
    if isinstance(rule, gpuopt.LAMB | gpuopt.Prodigy):  # sums in another order
        np.testing.assert_allclose(w.view("f8"), as_real, rtol=1e-12)
    else:
        assert_same_bits({"w": w.view("f8")}, {"w": as_real})


def test_every_rule_says_what_it_does() -> None:
    modulus = {name for name, rule in RULES.items() if not rule.components and name not in WITH_COMPONENTS} - REFUSED
    assert modulus == {
        *("SGD", "ASGD", "LARS", "Fromage", "Novograd", "LBFGS", "BarzilaiBorwein", "NonlinearCG", "ScheduleFreeSGD"),
        "Adafactor",
    }, "linear in the gradient, or by norms: the same either way; Adafactor"
    assert {name for name, thing in (RULES | TRANSFORMS).items() if thing.components} == APART
    assert {name for name, thing in (RULES | TRANSFORMS).items() if thing.real_only} == REFUSED


# Other libraries


@pytest.mark.peers
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name", ["adam", "adamw", "rmsprop", "adagrad", "adamax", "adabelief", "yogi", "amsgrad", "sgd", "adan"]
)
def test_moduli_as_optax(name: str, dtype: str) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    w = values(0, 50, dtype)
    start, most = w.copy(), {"c8": 1e-4, "c16": 1e-12}[dtype]
    with jax.enable_x64(True):
        theirs, p = getattr(optax, name)(2.0**-6), jax.numpy.asarray(w)
        state = theirs.init(p)
        opt = gpuopt.Optimizer(w, getattr(gpuopt.like.optax, name)(2.0**-6))
        for step in range(40):
            g = values(step + 1, 50, dtype)
            change, state = theirs.update(jax.numpy.asarray(g), state, p)
            p = optax.apply_updates(p, change)
            opt.step(g)
        assert np.max(np.abs(w - np.asarray(p))) <= most * np.max(np.abs(w - start))


TORCH = ["Adam", "AdamW", "RMSprop", "Adagrad", "Adamax", "Adadelta", "SGD", "NAdam", "RAdam"]


@pytest.mark.peers
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TORCH)
def test_components_as_torch(name: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    w = values(0, 50, dtype)
    start, most = w.copy(), {"c8": 1e-4, "c16": 1e-7 if name == "NAdam" else 1e-12}[dtype]
    theirs = torch.tensor(w, requires_grad=True)
    optimizer = getattr(torch.optim, name)([theirs], lr=2.0**-6)
    opt = gpuopt.Optimizer(w, getattr(gpuopt.like.torch, name)(lr=2.0**-6))
    for step in range(40):
        g = values(step + 1, 50, dtype)
        theirs.grad = torch.tensor(g)
        optimizer.step()
        opt.step(g)
    assert np.max(np.abs(w - theirs.detach().numpy())) <= most * np.max(np.abs(w - start))


@pytest.mark.peers
def test_the_gradient_that_torch_returns_goes_downhill() -> None:
    torch = pytest.importorskip("torch")
    target, w = torch.tensor([1 + 2j, -3j]), torch.zeros(2, dtype=torch.complex128, requires_grad=True)
    ours = np.zeros(2, complex)
    opt = gpuopt.Optimizer(ours, gpuopt.SGD(lr=0.25))
    for _ in range(60):
        w = torch.tensor(ours, requires_grad=True)
        (torch.abs(w - target) ** 2).sum().backward()
        opt.step(w.grad.numpy())
    np.testing.assert_allclose(ours, target.numpy())


@pytest.mark.peers
def test_under_jit() -> None:
    jax = pytest.importorskip("jax")
    rule, w, g = gpuopt.Adam(0.1), values(0, 5, "c8"), values(1, 5, "c8")
    want, _ = gpuopt.update(rule, w, g, gpuopt.init(rule, w))
    w, g = jax.numpy.asarray(w), jax.numpy.asarray(g)
    state = gpuopt.init(rule, w)

    def step(w: Any, g: Any, slots: Any) -> Any:
        return gpuopt.update(rule, w, g, gpuopt.State(0, slots))[0]

    np.testing.assert_allclose(np.asarray(jax.jit(step)(w, g, state.slots)), want, rtol=1e-6)


# State


def test_slots_of_moduli_are_real_and_start_where_they_say() -> None:
    w = np.zeros(3, "c8")
    opt = gpuopt.Optimizer(w, gpuopt.RMSProp(initial=0.5, momentum=0.9))
    state = opt.state_dict()["state"][""]
    assert (state["cache"].dtype, state["v"].dtype) == ("f4", "c8")
    np.testing.assert_array_equal(state["cache"], 0.5)
    opt = gpuopt.Optimizer(w, gpuopt.RMSProp(initial=0.5, components=True))
    np.testing.assert_array_equal(opt.state_dict()["state"][""]["cache"], 0.5 + 0.5j)


@pytest.mark.parametrize("name", ["Adam", "Adam of components", "everything", "LAMB", "Novograd"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_goes_on_from_a_file_to_the_same_bits(name: str, dtype: str, tmp_path: Any) -> None:
    def made() -> gpuopt.Optimizer:
        return gpuopt.Optimizer(
            {"a": values(0, (3, 4), dtype), "b": np.ones(3), "c": values(0, (), dtype)}, CASES[name]
        )

    def step(opt: gpuopt.Optimizer, k: int) -> None:
        opt.step({"a": values(k, (3, 4), dtype), "b": np.ones(3) * k, "c": values(k, (), dtype)})

    whole, first, second = made(), made(), made()
    for k in range(3):
        step(whole, k)
        step(first, k)
    gpuopt.save(tmp_path / "run.safetensors", first)
    gpuopt.load(tmp_path / "run.safetensors", second)
    third = pickle.loads(pickle.dumps(first))
    for k in range(3, 5):
        for opt in (whole, second, third):
            step(opt, k)

    def held(opt: gpuopt.Optimizer) -> dict[str, Any]:
        state = opt.state_dict()
        return {
            **state["params"],
            **{f"{p}/{s}": np.asarray(x) for p, own in state["state"].items() for s, x in own.items()},
        }

    assert_same_bits(held(second), held(whole))
    assert_same_bits(held(third), held(whole))


def test_a_file_of_real_leaves_does_not_fit(tmp_path: Any) -> None:
    gpuopt.save(tmp_path / "a", gpuopt.Optimizer({"w": np.ones((3, 2), "f4")}, gpuopt.SGD()))
    w = np.ones(3, "c8")
    with pytest.raises(gpuopt.CheckpointError, match="params/w: shape"):
        gpuopt.load(tmp_path / "a", gpuopt.Optimizer({"w": w}, gpuopt.SGD()))
    np.testing.assert_array_equal(w, 1)


# What is refused


@dataclass(frozen=True)
class Divides(gpuopt.Rule):
    """The square of a gradient, which of a complex number is not that of its modulus."""

    kind: float = 0

    slots = {"v": real(0.0)}  # noqa: RUF012

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        wrong: dict[int, Any] = {
            0: lambda: p - g / p,
            1: lambda: xp.where(g > 0, p, -p),
            2: lambda: p - g * g,
            3: lambda: p - xp.sqrt(g),
            4: lambda: xp.maximum(p, 0.0),
            5: lambda: p**2,
            6: lambda: xp.where(p, p, g),
            7: lambda: p - abs(g),
        }
        return wrong[int(self.kind)](), {"v": s.v}


@pytest.mark.parametrize("engine", ["auto", "array", "fused"])
@pytest.mark.parametrize(
    ("kind", "words"),
    list(
        enumerate(
            [
                "divides by a complex value",
                "compares complex values",
                "multiplies a complex value by a complex one",
                "calls xp.sqrt of a complex value",
                "calls xp.maximum of a complex value",
                "raises a complex value to a power",
                "takes a complex value for a truth value",
                "calls Python's abs of a complex value",
            ]
        )
    ),
)
def test_what_has_no_one_meaning(kind: int, words: str, engine: Any) -> None:
    p = {"w": np.ones(3, "c8")}
    with pytest.raises(
        TypeError, match=rf"params\['w'\]: dtype complex64: Divides.update {re.escape(words)}.*components"
    ):
        gpuopt.Optimizer(p, Divides(kind), engine=engine)
    with pytest.raises(TypeError, match=re.escape(words)):
        gpuopt.init(Divides(kind), p)
    np.testing.assert_array_equal(p["w"], 1)


@pytest.mark.parametrize("engine", ["auto", "array", "fused"])
def test_a_complex_slot_takes_real_numbers(engine: Any) -> None:
    @dataclass(frozen=True)
    class KeepsModulus(gpuopt.Rule):
        slots = {"v": 0.0}  # noqa: RUF012

        def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p, {"v": xp.abs2(g)}

    opt = gpuopt.Optimizer({"w": np.ones(3, "c8")}, KeepsModulus(), engine=engine)
    opt.step({"w": np.full(3, 3 + 4j, "c8")})
    np.testing.assert_array_equal(opt.state_dict()["state"]["w"]["v"], np.full(3, 25 + 0j, "c8"))


def test_a_real_slot_cannot_become_complex() -> None:
    @dataclass(frozen=True)
    class Mixes(gpuopt.Rule):
        slots = {"v": real(0.0)}  # noqa: RUF012

        def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p, {"v": s.v + g}

    with pytest.raises(TypeError, match="returns complex numbers for v, expected real ones"):
        gpuopt.Optimizer(np.ones(3, "c8"), Mixes())


@pytest.mark.parametrize("name", sorted(REFUSED & set(TRANSFORMS)))
@pytest.mark.parametrize("engine", ["auto", "array"])
def test_constraints_on_real_numbers(name: str, engine: Any) -> None:
    rule = gpuopt.chain(gpuopt.Adam(), TRANSFORMS[name]())
    with pytest.raises(TypeError, match=rf"params\['w'\]: dtype complex128: .*{name}.*real leaves only; Magnitude"):
        gpuopt.Optimizer({"w": np.ones(3, complex)}, rule, engine=engine)


@pytest.mark.parametrize(
    ("p", "g", "words"),
    [
        (np.ones(3, "c8"), np.ones(3, "f4"), r"grads\['w'\]: dtype float32, expected a complex one.*conjugate"),
        (np.ones(3, "f4"), np.ones(3, "c8"), r"grads\['w'\]: dtype complex64, expected a real one"),
    ],
)
def test_gradients_of_the_other_kind(p: Any, g: Any, words: str) -> None:
    for engine in ("array", "fused"):
        opt = gpuopt.Optimizer({"w": p}, gpuopt.Adam(), engine=engine)
        with pytest.raises(TypeError, match=words):
            opt.step({"w": g})
        assert opt.steps == 0
    with pytest.raises(TypeError, match=words):
        gpuopt.update(gpuopt.Adam(), {"w": p}, {"w": g}, gpuopt.init(gpuopt.Adam(), {"w": p}))


def test_other_precisions_of_gradients(fused_space: Space) -> None:
    for engine in ("array", "fused"):
        w = fused_space.put(np.zeros(3, "c16"))
        gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0), engine=engine).step(fused_space.put(values(0, 3, "c8")))
        np.testing.assert_array_equal(fused_space.get(w), -values(0, 3, "c8").astype("c16"))


def test_magnitude() -> None:
    w = np.array([0, 3 + 4j, 0.03 + 0.04j, np.nan + 1j, 0.6 - 0.8j, 1e-300j])
    gpuopt.Optimizer(w, gpuopt.chain(gpuopt.SGD(), gpuopt.Magnitude(0.5, 2.0))).step(np.zeros(6, complex))
    np.testing.assert_allclose(w[[0, 1, 2, 4, 5]], [0.5, 1.2 + 1.6j, 0.3 + 0.4j, 0.6 - 0.8j, 0.5j], rtol=1e-15)
    assert np.isnan(w[3])
    x = np.array([-3.0, 0.1, 0.0])
    gpuopt.Optimizer(x, gpuopt.chain(gpuopt.SGD(), gpuopt.Magnitude(0.5, 2.0))).step(np.zeros(3))
    np.testing.assert_array_equal(x, [-2.0, 0.5, 0.5])
    with pytest.raises(ValueError, match=r"Magnitude: low 2\.0, high 1\.0, expected low <= high"):
        gpuopt.Magnitude(2.0, 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_moduli_neither_overflow_nor_vanish(dtype: str, fused_space: Space) -> None:
    limits = np.finfo(dtype)
    big, small = limits.max / 4, limits.tiny * 16
    for engine in ("array", "fused"):
        w = fused_space.put(np.zeros(2, dtype))
        g = np.array([big + big * 1j, small - small * 1j], dtype)
        gpuopt.Optimizer(w, gpuopt.Lion(lr=1.0), engine=engine).step(fused_space.put(g))
        np.testing.assert_allclose(np.abs(fused_space.get(w)), 1, rtol=0.3)


@pytest.mark.parametrize("engine", ["array", "fused"])
def test_components_cannot_be_tuned(engine: Literal["array", "fused"]) -> None:
    opt = gpuopt.Optimizer(np.ones(3, "c8"), gpuopt.Adam(), engine=engine)
    with pytest.raises(ValueError, match=r"slot v: float32.*complex64"):
        opt.tune(components=True)
    opt.step(np.ones(3, "c8"))
