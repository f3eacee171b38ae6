"""The optimizer: groups, gradients that come and go, hyperparameters that change, state, copies."""

import copy
import gc
import pickle
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from conformance import ROWS
from spaces import DENSE, LAYOUTS, Space, assert_same_bits
from user_rules import HeavyBall

import gpuopt
from gpuopt import schedules, trees
from gpuopt.engines.cpu import kernel as cpu
from gpuopt.stateful import PICKLED


class Pair(NamedTuple):
    first: Any
    second: Any


def nested(space: Space, x: Any) -> dict[str, Any]:
    """Six numbers in a nesting of all common containers."""
    x = np.asarray(x, "f4")
    return {
        "layers": [{"w": space.put(x.reshape(2, 3)), "b": space.put(x[:3])}, (space.put(x),)],
        "scale": OrderedDict(a=space.put(x[0])),
        "pair": Pair(space.put(x), space.put(x)),
    }


def test_paths_and_groups(space: Space) -> None:
    rules = {"*.b": gpuopt.SGD(lr=0.5), "layers.*": gpuopt.SGD(lr=0.25), "*": gpuopt.Adam(lr=0.125)}
    for engine in space.engines:
        x = np.linspace(-1, 1, 6).astype("f4")
        p = nested(space, x)
        opt = gpuopt.Optimizer(p, rules, engine=engine)
        opt.step(nested(space, np.ones(6)))
        got = space.got(opt)
        np.testing.assert_allclose(got["layers.0.w"], x.reshape(2, 3) - 0.25)
        np.testing.assert_allclose(got["layers.0.b"], x[:3] - 0.5)
        np.testing.assert_allclose(got["layers.1.0"], x - 0.25)
        others = ("scale.a", "pair.0", "pair.1")
        for name in others:
            np.testing.assert_allclose(
                got[name], x.reshape(-1)[: got[name].size].reshape(got[name].shape) - 0.125, rtol=1e-6
            )
        assert {name for name in got if "/" in name} == {f"{name}/{slot}" for name in others for slot in "mv"}
        assert opt.params is p
        assert opt.rule == rules
        assert opt.lr == {"*.b": 0.5, "layers.*": 0.25, "*": 0.125}


def test_other_containers_with_the_same_paths_will_do(space: Space) -> None:
    p = {"a": [space.put(np.zeros(2)), space.put(np.zeros(3))], "b": space.put(np.zeros(()))}
    opt = gpuopt.Optimizer(p, gpuopt.SGD(lr=1.0))
    ones = {n: space.put(np.ones(n)) for n in (2, 3)}
    opt.step(OrderedDict(b=space.put(np.ones(())), a=(ones[2], ones[3])))
    opt.step({"a": {0: ones[2], 1: ones[3]}, "b": None})
    assert [x.tolist() for x in space.got(opt).values()] == [[-2.0] * 2, [-2.0] * 3, -1.0]


def test_containers_may_change_at_every_step() -> None:
    """Those that came last are expected to come again; what does not fit is refused all the same."""
    p = [np.zeros(2), np.zeros(3)]
    opt = gpuopt.Optimizer(p, gpuopt.SGD(lr=1.0))
    two, three = np.ones(2), np.ones(3)
    good: list[Any] = [
        (two, three),
        (two, three),
        [two, three],
        OrderedDict([(1, three), (0, two)]),
        {0: two, 1: three},
    ]
    bad: list[Any] = [(two,), (two, three, two), (two, (three,)), [three, two], {0: two}]
    for k, grads in enumerate(good * 2):
        for each in bad:
            with pytest.raises((TypeError, ValueError), match="grads"):
                opt.step(each)
        opt.step(grads)
        assert [x.tolist() for x in p] == [[-k - 1.0] * 2, [-k - 1.0] * 3]


def test_a_leaf_without_gradient_is_left_alone_state_and_all(space: Space) -> None:
    for engine in space.engines:
        opt = gpuopt.Optimizer({k: space.put(np.ones(3)) for k in "ab"}, gpuopt.Adam(lr=0.1), engine=engine)
        g = space.put(np.ones(3))
        opt.step({"a": g, "b": g})
        before = space.got(opt)
        for _ in range(2):
            opt.step({"a": g, "b": None})
        after = space.got(opt)
        for name, value in before.items():
            assert np.array_equal(value, after[name]) == name.startswith("b")
        opt.step({"a": None, "b": None})
        assert_same_bits(space.got(opt), after)
        assert opt.steps == 4
        opt.step({"a": None, "b": g})
        assert not np.array_equal(space.got(opt)["b"], before["b"])


def test_steps_count_from_zero(space: Space) -> None:
    seen: list[int] = []

    def lr(step: int) -> float:
        seen.append(step)
        return [1.0, 10.0, 100.0][step]

    w = space.put(np.zeros(1))
    opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=lr))
    rates = []
    for _ in range(3):
        rates.append(opt.lr)
        opt.step(space.put(np.ones(1)))
    assert (rates, opt.steps, space.get(w).tolist()) == ([1.0, 10.0, 100.0], 3, [-111.0])
    assert seen == sorted(seen)


def test_one_bare_array(space: Space) -> None:
    w = space.put(np.ones(()))
    opt = gpuopt.Optimizer(w, gpuopt.Adam(lr=0.5))
    opt.step(space.put(np.ones(())))
    assert opt.params is w
    np.testing.assert_allclose(space.get(w), 0.5)
    assert list(opt.state_dict()["params"]) == [""]


@pytest.mark.parametrize("dtype", ["i1", "u8", "?", "f2", "f8"])
def test_gradients_of_other_dtypes_are_taken_as_what_they_are(dtype: str, fused_space: Space) -> None:
    for engine in fused_space.engines:
        w = fused_space.put(np.zeros(3, "f4"))
        g = np.array([0, 1, 1]).astype(dtype)
        gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0), engine=engine).step(fused_space.put(g))
        assert fused_space.get(w).tolist() == [0, -1, -1]


def test_a_gradient_may_be_a_numpy_scalar_or_of_a_subclass_or_of_foreign_byte_order() -> None:
    class Special(np.ndarray[Any, Any]):
        pass

    for engine in ("array", "fused"):
        w = {"a": np.zeros(()), "b": np.zeros(2).view(Special), "c": np.zeros(2)}
        g = {"a": np.float64(2), "b": np.ones(2).view(Special), "c": np.ones(2, ">f8")}
        gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0), engine=engine).step(g)
        assert [x.tolist() for x in w.values()] == [-2.0, [-1.0, -1.0], [-1.0, -1.0]]


def test_arrays_that_are_not_aligned_to_their_elements() -> None:
    buffer = np.zeros(4 * 101 + 1, np.uint8)[1:].view("f4")
    opt = gpuopt.Optimizer(buffer[:50], gpuopt.SGD(lr=1.0))
    buffer[50:100] = np.arange(50)
    opt.step(buffer[50:100])
    assert buffer[:50].tolist() == (-np.arange(50.0)).tolist()


# Hyperparameters that change


def test_tuning_and_schedules_compile_nothing() -> None:
    def optimizer() -> gpuopt.Optimizer:
        rules = {"a": gpuopt.Adam(lr=schedules.exponential(0.1, 0.9)), "b": gpuopt.SGD(lr=0.1, momentum=0.5)}
        return gpuopt.Optimizer({"a": np.ones(5, "f4"), "b": np.ones(5)}, rules, engine="fused")

    grads = {"a": np.ones(5, "f4"), "b": np.ones(5)}
    first = optimizer()
    compiled = cpu._functions.cache_info().misses
    opt = optimizer()
    for k in range(1, 4):
        opt.step(grads)
        opt.tune("a", lr=0.1 / k, beta1=lambda step: 0.5 / (step + 1), eps=0.0)
        opt.tune("b", momentum=0.1 * k, lr=schedules.constant(k))
        opt.tune(lr=k)
    first.load_state_dict(opt.state_dict())
    copy.deepcopy(opt).step(grads)
    assert cpu._functions.cache_info().misses == compiled


def test_tuning_to_what_it_is_looks_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    opt = gpuopt.Optimizer(np.ones(3), gpuopt.chain(gpuopt.SGD(lr=0.1), gpuopt.EMA(0.5)))
    opt.tune(lr=0.2, **{"EMA.decay": 0.25})
    monkeypatch.setattr("gpuopt.engines.step.Step.computes", lambda step, rules: pytest.fail("looked"))
    opt.tune(lr=0.2, **{"EMA.decay": 0.25})
    opt.lr = 0.2
    assert opt.lr == 0.2


@pytest.mark.parametrize(("count", "collects"), [(10, True), (2000, False)])
def test_the_garbage_collector_is_on_again_whatever_happens(
    count: int, collects: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def interrupted(optimizer: gpuopt.Optimizer) -> None:
        seen.append(gc.isenabled())
        raise KeyboardInterrupt

    monkeypatch.setattr(gpuopt.Optimizer, "_prepare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gpuopt.Optimizer([np.zeros(1) for _ in range(count)], gpuopt.SGD())
    assert (seen, gc.isenabled()) == ([collects], True)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("weight_decay", ""),
        ("learning_rate", "'lr'"),
        ("betas", "'beta1' or 'beta2'"),
        ("weigth_decay", "'weight_decay'"),
    ],
)
def test_no_attribute_is_called_like_a_hyperparameter(name: str, told: str) -> None:
    """Such an assignment would change nothing, in silence."""
    opt = gpuopt.Optimizer(np.ones(3), gpuopt.AdamW())
    with pytest.raises(AttributeError, match=rf"{name}: no attribute of an optimizer.*{told}.*opt\.tune"):
        setattr(opt, name, 0.1)
    opt.note = "of the user's own"
    assert not hasattr(opt, name)


def test_tuning_is_as_good_as_having_been_made_so(space: Space) -> None:
    g = space.put(np.array([1.0, -2.0]))
    for engine in space.engines:
        for row in ROWS:
            tuned = gpuopt.Optimizer(space.put(np.ones(2)), row.rule(**row.h), engine=engine)
            made = gpuopt.Optimizer(space.put(np.ones(2)), row.make(lr=0.5), engine=engine)
            tuned.tune(lr=0.5)
            for opt in (tuned, made):
                opt.step(g)
            assert_same_bits(space.got(tuned), space.got(made))
            assert tuned.rule == made.rule


def test_momentum_may_come_and_go(space: Space) -> None:
    """What is not there starts at 0."""
    for engine in space.engines:
        w = space.put(np.zeros(1))
        g = space.put(np.ones(1))
        opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0), engine=engine)
        positions = []
        for momentum in (0.0, 0.5, 0.5, 0.0, 0.5):
            opt.tune(momentum=momentum)
            opt.step(g)
            positions.append(space.get(w).tolist()[0])
        assert positions == [-1.0, -2.0, -3.5, -4.5, -5.5]
        assert opt.steps == 5


def test_a_momentum_schedule_that_starts_at_zero_has_state_from_the_start() -> None:
    w = np.zeros(1)
    opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0, momentum=lambda step: 0.5 * (step > 0)))
    for _ in range(3):
        opt.step(np.ones(1))
    assert w.tolist() == [-1 - 1.5 - 1.75]


def test_tuning_all_rules_or_one() -> None:
    p = {"a": np.zeros(1), "b": np.zeros(1)}
    opt = gpuopt.Optimizer(p, {"a": gpuopt.Adam(), "b": gpuopt.SGD()})
    opt.tune(lr=0.5)
    opt.tune("b", lr=0.25, momentum=0.5)
    opt.tune(beta1=0.8)  # only Adam has one
    assert opt.rule == {"a": gpuopt.Adam(lr=0.5, beta1=0.8), "b": gpuopt.SGD(lr=0.25, momentum=0.5)}


# State


@pytest.mark.parametrize("layout", LAYOUTS)
def test_state_goes_between_engines_and_layouts(layout: str, fused_space: Space) -> None:
    space = fused_space

    def optimizer(layout: str, engine: Any) -> gpuopt.Optimizer:
        x = np.linspace(0, 1, 24).reshape(2, 3, 4).astype("f4")
        rules = {"a": HeavyBall(), "b": gpuopt.Adam(lr=0.1)}
        return gpuopt.Optimizer({k: space.put(x, layout) for k in "ab"}, rules, engine=engine)

    g = {k: space.put(np.linspace(-1, 1, 24).reshape(2, 3, 4).astype("f4")) for k in "ab"}
    whole = optimizer("C", "fused")
    first, second = optimizer("C", "fused"), optimizer(layout, "fused" if layout in DENSE else "auto")
    for _ in range(4):
        whole.step(g)
    for _ in range(2):
        first.step(g)
    first.tune("b", eps=1e-7)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.step(g)
    assert_same_bits(space.got(second), space.got(whole))


def test_state_goes_between_libraries(space: Space) -> None:
    ours, theirs = (np.ones(3, "f4") for _ in range(2))
    first = gpuopt.Optimizer(ours, gpuopt.Adam(lr=0.1))
    first.step(np.ones(3, "f4"))
    second = gpuopt.Optimizer(space.put(theirs), gpuopt.Adam(lr=0.1))
    second.load_state_dict(first.state_dict())
    assert_same_bits(space.got(second), host(first))
    if space.name != "array_api_strict":  # NumPy cannot read from its devices
        third = gpuopt.Optimizer(np.zeros(3, "f4"), gpuopt.Adam(lr=0.1))
        third.load_state_dict(second.state_dict())
        assert_same_bits(host(third), host(first))


def host(opt: gpuopt.Optimizer) -> dict[str, Any]:
    held = opt.state_dict()
    return {"": held["params"][""], **{f"/{slot}": x for slot, x in held["state"][""].items()}}


def test_what_was_tuned_is_part_of_the_state_and_the_rest_is_not() -> None:
    cosine = schedules.cosine(0.5, steps=10)
    first = gpuopt.Optimizer(np.ones(3), gpuopt.Adam(lr=0.1, eps=1e-3))
    first.tune(lr=cosine, beta1=0.5)
    second = gpuopt.Optimizer(np.ones(3), gpuopt.Adam(lr=0.2, eps=1e-5))
    second.tune(beta2=0.9)
    second.load_state_dict(first.state_dict())
    assert second.rule == gpuopt.Adam(lr=cosine, beta1=0.5, eps=1e-5)


def test_tuned_momentum_is_loaded_with_its_state() -> None:
    first = gpuopt.Optimizer(np.ones(3), gpuopt.SGD())
    first.tune(momentum=0.9)
    first.step(np.ones(3))
    second = gpuopt.Optimizer(np.ones(3), gpuopt.SGD())
    second.load_state_dict(first.state_dict())
    for opt in (first, second):
        opt.step(np.ones(3))
    assert_same_bits(host(first), host(second))


def test_the_state_is_live_and_loading_copies() -> None:
    first = gpuopt.Optimizer(np.ones(3), gpuopt.Adam())
    held = first.state_dict()
    second = gpuopt.Optimizer(np.ones(3), gpuopt.Adam())
    second.load_state_dict(held)
    before = copy.deepcopy(host(second))
    first.step(np.ones(3))
    assert held["state"][""]["m"].any()
    assert_same_bits(host(second), before)


DUPLICATES: dict[str, Any] = {"copy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=DUPLICATES)
def test_a_model_and_its_optimizer_are_copied_together(duplicate: Any, fused_space: Space) -> None:
    """Not only alike: the optimizer's copy updates the copy of the model."""
    with fused_space.use():
        model: dict[str, Any] = {"params": {"w": fused_space.put(np.ones(3))}}
        model["opt"] = gpuopt.Optimizer(model["params"], gpuopt.SGD(lr=1.0))
        other = duplicate(model)
        other["opt"].step({"w": fused_space.put(np.ones(3))})
    assert [fused_space.get(each["params"]["w"]).tolist() for each in (model, other)] == [[1.0] * 3, [0.0] * 3]


@pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=DUPLICATES)
def test_a_copy_is_independent_and_goes_on_alike(duplicate: Any, fused_space: Space) -> None:
    space = fused_space
    rules = {"layers.*": gpuopt.Adam(lr=schedules.exponential(0.1, 0.9)), "*": gpuopt.SGD(momentum=0.9)}
    for engine in space.engines:
        with space.use():
            opt = gpuopt.Optimizer(nested(space, np.linspace(-1, 1, 6)), rules, engine=engine)
            opt.step(nested(space, np.arange(6)))
            opt.tune("*", lr=0.5)
            other = duplicate(opt)
            before = space.got(opt)
            assert_same_bits(space.got(other), before)
            assert (other.steps, other.rule, other.lr) == (opt.steps, opt.rule, opt.lr)
            other.step(nested(space, np.ones(6)))
            assert_same_bits(space.got(opt), before)
            opt.step(nested(space, np.ones(6)))
            assert_same_bits(space.got(opt), space.got(other))


@pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=DUPLICATES)
@pytest.mark.parametrize("layout", [*LAYOUTS, "F with gaps"])
def test_a_copy_may_lie_otherwise_in_memory(duplicate: Any, layout: str, fused_space: Space) -> None:
    x = np.arange(24.0).reshape(4, 6)
    with fused_space.use():
        gaps = layout == "F with gaps"
        w = fused_space.put(np.repeat(x, 2, axis=0), "F")[::2] if gaps else fused_space.put(x, layout)
        opt = gpuopt.Optimizer(w, gpuopt.Adam(lr=0.1))
        opt.step(fused_space.put(x))
        other = duplicate(opt)
        for each in (opt, other):
            each.step(fused_space.put(x))
    assert_same_bits(fused_space.got(opt), fused_space.got(other))


def test_a_pickle_of_another_version_is_refused() -> None:
    state = gpuopt.Optimizer(np.zeros(3), gpuopt.Adam()).__getstate__()
    assert state.keys() == PICKLED
    for name in PICKLED:
        with pytest.raises(
            ValueError, match=rf"^Optimizer: a pickle of another version of gpuopt, without {name}; expected"
        ):
            object.__new__(gpuopt.Optimizer).__setstate__({key: x for key, x in state.items() if key != name})


def test_a_state_made_of_the_optimizers_own_arrays(space: Space) -> None:
    for engine in space.engines:
        params = {"a": space.put(np.full(3, 1.0)), "b": space.put(np.full(3, 2.0))}
        opt = gpuopt.Optimizer(params, gpuopt.SGD(), engine=engine)
        state = opt.state_dict()
        opt.load_state_dict({**state, "params": {"a": params["b"], "b": params["a"]}})
        assert [space.get(params[name]).tolist() for name in "ab"] == [[2.0] * 3, [1.0] * 3]


def test_a_state_made_of_the_optimizers_own_parameters_and_slots(space: Space) -> None:
    """Each is read before any of them is written, also a parameter that is to become a slot."""
    for engine in space.engines:
        opt = gpuopt.Optimizer(space.put(np.ones(3)), gpuopt.Adam(), engine=engine)
        opt.step(space.put(np.ones(3)))
        state = opt.state_dict()
        own = state["state"][""]
        p, m, v = (space.get(x).copy() for x in (opt.params, own["m"], own["v"]))
        opt.load_state_dict({**state, "params": {"": own["v"]}, "state": {"": {"m": opt.params, "v": own["m"]}}})
        own = opt.state_dict()["state"][""]
        np.testing.assert_array_equal([space.get(x) for x in (opt.params, own["m"], own["v"])], [v, p, m])


def test_numbers_of_a_state_may_be_numpys() -> None:
    """As they come out of `numpy.savez` and of HDF5."""

    def optimizer() -> gpuopt.Optimizer:
        options: dict[str, Any] = {"every": 3, "precision": "stochastic", "scale": gpuopt.DynamicScale(2.0**9)}
        return gpuopt.Optimizer(np.ones(3, "f2"), gpuopt.NAdam(), **options)

    first, second = optimizer(), optimizer()
    for opt in (first, second)[:1] * 4:
        opt.step(np.ones(3, "f2"))
    plain = first.state_dict()
    state = {**plain, "scale": [np.float32(x) for x in plain["scale"]]}
    state |= {name: np.array(plain[name]) for name in ("steps", "accumulated")} | {"seed": np.uint64(plain["seed"])}
    own = plain["rules"]["*"]
    state["rules"] = {"*": {**own, "carried": {name: np.float64(x) for name, x in own["carried"].items()}}}
    second.load_state_dict(state)
    for opt in (first, second):
        opt.step(np.ones(3, "f2"))
    np.testing.assert_equal(second.state_dict(), first.state_dict())


def test_a_state_that_cannot_be_read_changes_nothing(space: Space) -> None:
    from types import SimpleNamespace

    params = {"a": space.put(np.zeros(3)), "b": space.put(np.zeros(3))}
    opt = gpuopt.Optimizer(params, gpuopt.SGD())
    given = {"a": np.ones(3), "b": SimpleNamespace(shape=(3,), dtype=np.dtype("f8"))}
    with pytest.raises(ValueError, match="params/b: SimpleNamespace that cannot be read"):
        opt.load_state_dict({**opt.state_dict(), "params": given})
    assert space.get(params["a"]).tolist() == [0] * 3


FIVE = namedtuple("FIVE", "a b c d e")  # noqa: PYI024 - as people make them
CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "deque": deque,
    "namedtuple": lambda leaves: FIVE(*leaves),
}


@pytest.mark.parametrize("given", CONTAINERS.values(), ids=CONTAINERS)
def test_gradients_in_another_container_are_looked_through_once(
    given: Callable[[list[Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = [np.zeros(2) for _ in range(5)]
    opt = gpuopt.Optimizer(params, gpuopt.SGD(lr=1.0))
    grads = [np.full(2, i) for i in range(5)]
    opt.step(given(grads))

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("paths are made anew")

    monkeypatch.setattr(trees, "flatten", refused)
    opt.step(given(grads))
    assert [p.tolist() for p in params] == [[-2 * i, -2 * i] for i in range(5)]


def test_dicts_of_another_kind_and_order() -> None:
    params = {"b": np.zeros(1), "a": np.zeros(1)}
    opt = gpuopt.Optimizer(params, gpuopt.SGD(lr=1.0))
    for _ in range(2):
        opt.step(OrderedDict(b=np.array([1.0]), a=np.array([2.0])))
    opt.step({"a": np.array([2.0]), "b": np.array([1.0])})
    assert (params["a"].tolist(), params["b"].tolist()) == ([-6.0], [-3.0])
    with pytest.raises(ValueError, match=r"grads: another structure than params: missing grads\['b'\]"):
        opt.step(OrderedDict(a=np.array([2.0])))


def test_a_container_of_parameters_that_has_changed() -> None:
    params = {"a": np.zeros(1)}
    opt = gpuopt.Optimizer(params, gpuopt.SGD(lr=1.0))
    params["b"] = np.zeros(1)
    with pytest.raises(ValueError, match=r"params: another structure than when .* made: unexpected params\['b'\]"):
        opt.step({"a": np.ones(1)})
