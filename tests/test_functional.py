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


@pytest.mark.parametrize(("dtype", "precision"), [("f8", "state32"), ("c8", "state32"), ("f2", "stochastic")])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_keep_the_order_of_memory_that_sums_and_random_bits_go_by(
    layout: str, dtype: str, precision: Any, fused_space: Space
) -> None:
    rng, rule = np.random.default_rng(0), gpuopt.chain(gpuopt.ClipNorm(0.5), gpuopt.LAMB(0.1))
    x, *gradients = (rng.normal(size=(3, 5, 70)).astype(dtype) for _ in range(4))
    opt = gpuopt.Optimizer(fused_space.put(x, layout), rule, precision=precision)
    new = fused_space.put(x, layout)
    state = gpuopt.init(rule, new, precision=precision)
    for g in map(fused_space.put, gradients):
        opt.step(g)
        new, state = gpuopt.update(rule, new, g, state)
    assert_same_bits({"w": fused_space.get(new)}, {"w": fused_space.get(opt.params)})


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


@pytest.mark.parametrize("donate", [False, True])
@each_row
def test_are_fused_with_the_same_bits(row: Row, donate: bool, fused_space: Space) -> None:
    """Over steps whose leaves, layouts and gradients change: a plan that was kept is used only where it fits."""
    random = np.random.RandomState(0)
    rules = {"b": row.make(lr=0.1), "*": gpuopt.Adam()}
    for shape in ((3, 4), (5000,), (3, 4)):
        values: dict[str, Any] = {"a": random.standard_normal(shape).astype("f4"), "b": random.standard_normal(2)}
        held = {name: fused_space.put(x) for name, x in values.items()}
        own: dict[str, Any] = {name: fused_space.put(x) for name, x in values.items()}
        opt = gpuopt.Optimizer(own, rules)
        params, state = held, gpuopt.init(rules, held)
        gradients = [values, {"a": values["a"].astype("f8"), "b": None}, {"a": None, "b": values["b"]}, values]
        for given in gradients:
            grads = {name: None if g is None else fused_space.put(g) for name, g in given.items()}
            opt.step(grads)
            params, state = gpuopt.update(rules, params, grads, state, donate=donate)
        for name, x in own.items():
            assert_same_bits({name: fused_space.get(params[name])}, {name: fused_space.get(x)})
            assert donate or np.array_equal(fused_space.get(held[name]), values[name])


TOGETHER: dict[str, Any] = {
    "sums": lambda: gpuopt.chain(gpuopt.ClipGlobalNorm(0.1), gpuopt.LAMB(lr=0.1), gpuopt.EMA(0.9)),
    "numbers": lambda: {"b": gpuopt.Prodigy(), "*": gpuopt.Adam()},
    "many slots": lambda: gpuopt.LBFGS(lr=0.1, memory=2),
    "stages": lambda: gpuopt.chain(gpuopt.Adafactor(lr=0.1), gpuopt.NonNegative()),
    "whole arrays": lambda: {"b": gpuopt.Adafactor(), "*": gpuopt.Muon()},
}


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("dtype", ["f4", "f8", "c8"])
@pytest.mark.parametrize("name", TOGETHER)
def test_sums_and_stages_are_fused_too(
    name: str, dtype: str, donate: bool, fused_space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the bits of `Optimizer`; the arguments stay as they are, unless they are donated."""
    if dtype == "c8" and name in ("stages", "whole arrays"):
        pytest.skip("for real numbers only")
    monkeypatch.setattr("gpuopt.engines.array.update_group", None)
    random = np.random.RandomState(0)

    def put(values: dict[str, Any]) -> Any:
        return {key: None if x is None else fused_space.put(x) for key, x in values.items()}

    def draw() -> dict[str, Any]:
        found = {"a": random.standard_normal((2, 50, 100)), "b": random.standard_normal((2, 3, 4))}
        return {key: (x[0] + 1j * x[1] if dtype == "c8" else x[0]).astype(dtype) for key, x in found.items()}

    start = draw()
    own, params, rules = put(start), put(start), TOGETHER[name]()
    opt, state = gpuopt.Optimizer(own, rules), gpuopt.init(rules, params)
    for k in range(4):
        grads = draw() | ({"b": None} if k == 2 else {})
        before = {key: fused_space.get(x).copy() for key, x in params.items()}
        given = params
        opt.step(put(grads))
        params, state = gpuopt.update(rules, params, put(grads), state, donate=donate)
        if not donate:
            assert_same_bits({key: fused_space.get(x) for key, x in given.items()}, before)
    found: dict[str, Any] = {key: fused_space.get(x) for key, x in params.items()}
    found |= {
        f"{key}/{slot}": x if isinstance(x, float) else fused_space.get(x)
        for slot, tree in state.slots.items()
        for key, x in tree.items()
        if x is not None
    }
    assert_same_bits({key: np.asarray(x) for key, x in found.items()}, fused_space.got(opt))


def test_donated_arrays_are_written_to_where_that_can_be_done() -> None:
    rule = gpuopt.SGD(lr=1.0)
    w, fixed = np.zeros(3), np.zeros(3)
    fixed.flags.writeable = False
    (new,), _ = gpuopt.update(rule, [w], [np.ones(3)], gpuopt.init(rule, [w]), donate=True)
    assert new is w
    (new,), _ = gpuopt.update(rule, [fixed], [np.ones(3)], gpuopt.init(rule, [fixed]), donate=True)
    assert (new.tolist(), fixed.tolist()) == ([-1.0] * 3, [0.0] * 3)
    (one, two), _ = gpuopt.update(rule, [fixed, fixed], [np.ones(3)] * 2, gpuopt.init(rule, [w, w]), donate=True)
    assert one is not two
    # A gradient that lies where another leaf is written to is read before.
    a = np.arange(6.0)
    new, _ = gpuopt.update(rule, [a[:3], a[3:]], [a[3:], a[:3]], gpuopt.init(rule, [a[:3], a[3:]]), donate=True)
    assert [x.tolist() for x in new] == [[-3.0] * 3, [3.0] * 3]


def jitted() -> Any:
    jax = pytest.importorskip("jax")

    def run(rule: Any, steps: int = 3, **options: Any) -> tuple[Any, Any]:
        params = {"w": jax.numpy.ones((2, 3)), "b": jax.numpy.ones(2)}
        grads = {"w": jax.numpy.full((2, 3), 0.3), "b": jax.numpy.full(2, -0.1)}
        update = jax.jit(lambda p, g, s: gpuopt.update(rule, p, g, s), **options)
        state, plain, other = gpuopt.init(rule, params), params, gpuopt.init(rule, params)
        params = jax.tree.map(jax.numpy.array, params)
        for _ in range(steps):
            plain, other = gpuopt.update(rule, plain, grads, other)
            params, state = update(params, grads, state)
        assert int(state.steps) == other.steps == steps
        return params, plain

    return run


@pytest.mark.peers
@pytest.mark.parametrize("options", [{}, {"donate_argnums": (0, 2)}], ids=["kept", "donated"])
@pytest.mark.parametrize(
    "rule",
    [
        gpuopt.SGD(lr=0.1, momentum=0.9, dampening=0.5),
        gpuopt.Adam(lr=gpuopt.schedules.inverse_time(0.1, decay=0.1)),
        gpuopt.NAdam(),
        gpuopt.chain(gpuopt.ClipValue(0.2), gpuopt.AdamW(lr=lambda step: 0.1 / (1 + step)), gpuopt.Lookahead(every=2)),
    ],
    ids=["SGD", "schedule", "carried", "chain"],
)
def test_are_compiled_by_jax(rule: Any, options: Any) -> None:
    params, plain = jitted()(rule, **options)
    for name in params:
        np.testing.assert_allclose(np.asarray(params[name]), np.asarray(plain[name]), rtol=1e-5)


@pytest.mark.peers
def test_a_state_of_compiled_code_goes_on_outside_of_it() -> None:
    jax = pytest.importorskip("jax")
    rule, w = gpuopt.NAdam(), jax.numpy.ones(3)
    state = gpuopt.init(rule, w)
    w, state = jax.jit(lambda p, g, s: gpuopt.update(rule, p, g, s))(w, w, state)
    for given in (state, jax.device_put(state)):
        _, after = gpuopt.update(rule, w, w, given)
        assert (type(after.steps), type(after.carried["*"]["product"])) == (int, float)


@pytest.mark.peers
@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (gpuopt.Adam(lr=gpuopt.schedules.cosine(0.1, steps=5)), r"Adam: lr: cannot be traced, .* outside of jit"),
        (gpuopt.ScheduleFreeSGD(), r"ScheduleFreeSGD: coefficients: cannot be traced"),
        (gpuopt.Prodigy(), r"a number of the host that is not known yet; Prodigy cannot be traced"),
        (gpuopt.LAMB(), r"LAMB takes a norm or a sum of an array whose values are not known yet"),
    ],
    ids=["schedule", "coefficients", "numbers", "norms"],
)
def test_what_cannot_be_compiled_by_jax_is_named(rule: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        jitted()(rule)


@pytest.mark.peers
def test_are_differentiated_and_mapped() -> None:
    jax, torch = pytest.importorskip("jax"), pytest.importorskip("torch")
    rule = gpuopt.SGD(lr=0.1)

    def after(x: Any) -> Any:
        return (gpuopt.update(rule, x, 2 * x, gpuopt.init(rule, x))[0] ** 2).sum()

    np.testing.assert_allclose(jax.grad(after)(jax.numpy.ones(3)), 1.28, rtol=1e-6)
    x = torch.ones(3, requires_grad=True)
    after(x).backward()
    np.testing.assert_allclose(x.grad.numpy(), 1.28, rtol=1e-6)

    def of_one(x: Any) -> Any:
        return gpuopt.update(gpuopt.Adam(lr=0.1), x, x, gpuopt.init(gpuopt.Adam(), x))[0]

    np.testing.assert_allclose(jax.vmap(of_one)(jax.numpy.ones((4, 3))), 0.9, rtol=1e-5)
    np.testing.assert_allclose(torch.vmap(of_one)(torch.ones(4, 3)), 0.9, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["f2", "c8", "c16"])
def test_leaves_that_are_not_fused_are_updated_beside_others(dtype: str) -> None:
    rule = gpuopt.Adam(lr=0.1)
    params = {"a": np.ones(5, "f4"), "b": np.arange(5).astype(dtype)}
    own = {name: p.copy() for name, p in params.items()}
    opt, state = gpuopt.Optimizer(own, rule), gpuopt.init(rule, params)
    for _ in range(3):
        grads = {name: np.full_like(p, 2) for name, p in params.items()}
        params, state = gpuopt.update(rule, params, grads, state)
        opt.step(grads)
    assert_same_bits(params, own)


def test_slots_in_another_order_are_the_same_state() -> None:
    rule = {"w": gpuopt.Adam(lr=0.1), "*": gpuopt.SGD(momentum=0.9)}
    params, state = {"w": np.ones(3), "b": np.ones(2)}, None
    for reverse in (False, True):
        p, s = params, gpuopt.init(rule, params)
        for _ in range(3):
            if reverse:
                s = s._replace(slots=dict(reversed(s.slots.items())))
            p, s = gpuopt.update(rule, p, params, s)
        found = {name: (own["w"], own["b"]) for name, own in sorted(s.slots.items())}
        state = state or (p, found)
    np.testing.assert_equal((p, found), state)
    assert [name for name, own in found.items() if own[1] is None] == ["m"]
