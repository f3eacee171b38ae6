"""Bad parameters, rules and gradients: the type of the error, what its message names, and that nothing has changed."""

import copy
import json
import pickle
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest
from spaces import Space, assert_same_bits

import gpuopt

Engine = Any


def good(space: Space, value: float = 1.0) -> dict[str, Any]:
    """Two leaves, or their gradients."""
    w = np.arange(6, dtype="f4").reshape(3, 2) + np.float32(value)
    return {"dense": {"w": space.put(w), "b": space.put(np.full(2, value))}}


def engines(space: Space) -> tuple[Engine, ...]:
    return (*space.engines, "auto")


# Parameters and rules. Name: params, rule, error, words.

ONES = np.ones(3)
Make = Callable[[Space], Any]
CONSTRUCTION: dict[str, tuple[Make, Any, type[Exception], str]] = {
    "None": (lambda s: None, gpuopt.SGD(), TypeError, r"params: None, expected an array of float32, float64"),
    "None as a leaf": (lambda s: {"w": None}, gpuopt.SGD(), TypeError, r"params\['w'\]: None, expected an array"),
    "no leaf": (lambda s: {"a": [], "b": {}}, gpuopt.SGD(), ValueError, r"params: .* has no leaf"),
    "Python's float": (lambda s: {"w": 1.0}, gpuopt.SGD(), TypeError, r"params\['w'\]: float.*numpy\.array"),
    "list of floats": (lambda s: [1.0, 2.0], gpuopt.SGD(), TypeError, r"params\[0\]: float, expected an array"),
    "string": (lambda s: "w", gpuopt.SGD(), TypeError, r"params: str, expected an array"),
    "NumPy scalar": (lambda s: [np.float32(1)], gpuopt.SGD(), TypeError, r"params\[0\]: numpy scalar.*numpy\.array"),
    **{
        dtype: (
            lambda s, dtype=dtype: {"w": s.put(ONES.astype(dtype))},  # type: ignore[misc]
            gpuopt.SGD(),
            TypeError,
            rf"params\['w'\]: dtype \S*{dtype}\S*, expected float32, float64",
        )
        for dtype in ("int32", "uint8", "bool")
    },
    **{
        f"in a {name}": (
            lambda s, make=make: make(s.put(ONES)),  # type: ignore[misc]
            gpuopt.SGD(),
            TypeError,
            rf"^params: {name}, expected an array .*; nestings are of dicts, lists and tuples, as {how}\(x\) is$",
        )
        for name, make, how in (
            ("mappingproxy", lambda w: types.MappingProxyType({"w": w}), "dict"),
            ("dict_values", lambda w: {"w": w}.values(), "list"),
            ("SimpleNamespace", lambda w: types.SimpleNamespace(w=w), "vars"),
            ("Leaves", lambda w: type("Leaves", (list,), {})([w]), "list"),
        )
    },
    "same array twice": (
        lambda s: dict.fromkeys("ab", s.put(ONES)),
        gpuopt.SGD(),
        ValueError,
        r"params\['a'\] and params\['b'\] are the same array",
    ),
    "same path twice": (
        lambda s: {"a.b": s.put(ONES), "a": {"b": s.put(ONES)}},
        gpuopt.SGD(),
        ValueError,
        r"params\['a'\]\['b'\] and params\['a\.b'\] have the same path 'a\.b'; rename",
    ),
    "a class as the rule": (good, gpuopt.Adam, TypeError, r"rule: .*did you mean Adam\(\)\?"),
    "a name as the rule": (good, "adam", TypeError, r"rule: 'adam', expected a rule such as Adam\(\)"),
    "a transform as the rule": (
        good,
        gpuopt.EMA(0.9),
        TypeError,
        r"^rule: EMA\(decay=0\.9\), .*; a transform belongs around one: gpuopt\.chain\(gpuopt\.Adam\(\), EMA\(decay=0\.9\)\)",
    ),
    "no rule": (good, None, TypeError, r"rule: None, expected a rule"),
    "a class by pattern": (good, {"*": gpuopt.Adam}, TypeError, r"rule: .*expected a rule such as Adam\(\) by a glob"),
    "a pattern that is no string": (good, {0: gpuopt.SGD()}, TypeError, r"rule: \{0: SGD.*glob"),
    "no pattern for a leaf": (good, {"*.w": gpuopt.SGD()}, ValueError, r"matches params\['dense'\]\['b'\].*'dense\.b'"),
    "no patterns": (good, {}, ValueError, r"no pattern of \[\] matches params\['dense'\]"),
    "a pattern without leaf": (
        good,
        {"*.kernel": gpuopt.SGD(), "*": gpuopt.SGD()},
        ValueError,
        r"the pattern '\*\.kernel' matches no leaf; there are 'dense\.b', 'dense\.w'",
    ),
}


@pytest.mark.parametrize("case", CONSTRUCTION)
def test_construction(case: str, space: Space) -> None:
    make, rule, error, words = CONSTRUCTION[case]
    for engine in engines(space):
        with pytest.raises(error, match=words):
            gpuopt.Optimizer(make(space), rule, engine=engine)
    if case != "same array twice":  # pure functions do not mind
        with pytest.raises(error, match=words):
            gpuopt.init(rule, make(space))
        with pytest.raises(error, match=words):
            gpuopt.update(rule, make(space), make(space), gpuopt.State(0, {}))


def frozen(x: Any) -> Any:
    x.flags.writeable = False
    return x


def slices(*cuts: Any) -> Make:
    """Views of one buffer."""

    def make(space: Space) -> Any:
        with space.use():
            whole = space.put(np.arange(10.0))
            return {"xyz"[i]: whole[cut] for i, cut in enumerate(cuts)}

    return make


MEMORY: dict[str, tuple[Make, str]] = {
    "overlapping": (slices(slice(0, 6), slice(5, 10)), r"params\['x'\] and params\['y'\] share memory"),
    "one inside of the other": (slices(slice(0, 10), slice(4, 5)), r"params\['x'\] and params\['y'\] share memory"),
    "the same elements": (slices(slice(0, 5), slice(None, 5, None)), r"params\['x'\] and params\['y'\] share memory"),
    "interleaved, in part": (slices(slice(0, 10, 3), slice(0, 10, 2)), r"share memory, expected distinct arrays"),
    "third overlaps first": (slices(slice(0, 9, 4), slice(1, 3), slice(8, 10)), r"params\['x'\] and params\['z'\]"),
    "broadcast": (
        lambda s: {"x": s.xp.broadcast_to(s.put(np.ones(1)), (3,))} if s.name != "numpy" else {"x": spread()},
        r"params\['x'\]: its elements share memory|params\['x'\]: a read-only",
    ),
}


def test_memory_that_is_shared_in_part() -> None:
    for shape, strides in (((3,), (4,)), ((2, 2), (8, 8)), ((3, 2), (16, 24))):
        w = np.lib.stride_tricks.as_strided(np.ones(9), shape, strides)
        with pytest.raises(ValueError, match=r"params\['w'\]: its elements share memory"):
            gpuopt.Optimizer({"w": w}, gpuopt.SGD())


def deep() -> Any:
    nested: Any = np.ones(3)
    for _ in range(5000):
        nested = [nested]
    return nested


def circular() -> Any:
    nested: dict[str, Any] = {"w": np.ones(3)}
    nested["self"] = nested
    return nested


@pytest.mark.parametrize("make", [deep, circular])
def test_nestings_without_end(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="too deep, or holds itself"):
        gpuopt.Optimizer(make(), gpuopt.SGD())
    opt = gpuopt.Optimizer({"w": np.ones(3)}, gpuopt.SGD())
    with pytest.raises(ValueError, match=r"too deep, or holds itself|another structure"):
        opt.step(make())
    assert opt.steps == 0


# What a schedule may give from the second step on; error, words.
SCHEDULED: dict[str, tuple[Any, type[Exception], str]] = {
    "text": ("x", TypeError, r"SGD: lr at step 1, by its schedule: got 'x' \(str\), expected a number"),
    "None": (None, TypeError, "SGD: lr at step 1, by its schedule: got None"),
    "complex": (1j, TypeError, "got 1j"),
    "list": ([1.0], TypeError, r"got \[1.0\]"),
    "NaN": (float("nan"), ValueError, r"got nan, expected a number in \[0"),
    "infinity": (float("inf"), ValueError, "got inf"),
    "negative": (-1.0, ValueError, "got -1.0"),
    "too large": (10**400, ValueError, "got inf"),
}


@pytest.mark.parametrize("case", SCHEDULED)
def test_what_schedules_give(case: str, space: Space) -> None:
    value, error, words = SCHEDULED[case]
    for engine in engines(space):
        opt = gpuopt.Optimizer(good(space), gpuopt.SGD(lr=lambda t: value if t == 1 else 0.1), engine=engine)
        opt.step(good(space))
        before = space.got(opt)
        with pytest.raises(error, match=words):
            opt.step(good(space))
        assert opt.steps == 1
        assert_same_bits(space.got(opt), before)
        with pytest.raises(error):
            gpuopt.SGD(lr=value)


@pytest.mark.parametrize("state", [None, {}, gpuopt.State(-1, {}), gpuopt.State("1", {})])  # type: ignore[arg-type]
def test_states_of_pure_functions(state: Any) -> None:
    with pytest.raises(TypeError, match=r"state: .*, expected what gpuopt\.init or gpuopt\.update returned"):
        gpuopt.update(gpuopt.SGD(), np.ones(3), np.ones(3), state)


# States of pure functions. Name: a change of the state that Adam and NAdam start with; error, words.
STATES: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "None": (lambda s: None, TypeError, "state: None, expected what gpuopt.init"),
    "no slots": (lambda s: s._replace(slots=None), TypeError, "state: State.*, expected what gpuopt.init"),
    "a list of slots": (lambda s: s._replace(slots=[ONES]), TypeError, "state: State.*, expected what gpuopt.init"),
    "no numbers": (lambda s: s._replace(carried=None), TypeError, "state: State.*, expected what gpuopt.init"),
    "a slot less": (lambda s: s._replace(slots={"m": ONES}), ValueError, r"state.slots\['v'\]: None, expected a numpy"),
    "a slot more": (
        lambda s: s._replace(slots={**s.slots, "x": ONES}),
        ValueError,
        "state.slots: unexpected 'x'; NAdam has none of that name",
    ),
    "masked": (lambda s: s._replace(slots={**s.slots, "m": np.ma.ones(3)}), TypeError, r"state.slots\['m'\]: a masked"),
    "shape": (
        lambda s: s._replace(slots={**s.slots, "m": np.ones(4)}),
        ValueError,
        r"state.slots\['m'\]: numpy array of \(4,\)",
    ),
    "numbers less": (
        lambda s: s._replace(carried={}),
        ValueError,
        r"state.carried: {}, expected numbers {'\*': \['product'\]}",
    ),
    "numbers of another pattern": (
        lambda s: s._replace(carried={"a": {"product": 1.0}}),
        ValueError,
        "state.carried: {'a': .*, expected numbers",
    ),
    "numbers more": (
        lambda s: s._replace(carried={"*": {"product": 1.0, "x": 1.0}}),
        ValueError,
        "state.carried: .*'x'.*, expected numbers",
    ),
    "a text": (
        lambda s: s._replace(carried={"*": {"product": "x"}}),
        TypeError,
        r"state.carried\['\*'\]\['product'\]: 'x', expected a number",
    ),
}


@pytest.mark.parametrize(("change", "error", "words"), STATES.values(), ids=STATES)
def test_states_that_were_changed(change: Callable[[Any], Any], error: type[Exception], words: str) -> None:
    rule, w = gpuopt.NAdam(), np.ones(3)
    for _ in range(2):  # at first everything is looked at
        state = gpuopt.init(rule, w)
        with pytest.raises(error, match=words):
            gpuopt.update(rule, w, w, change(state))
        with pytest.raises(error, match=words):
            gpuopt.evaluation(rule, w, change(state))
        gpuopt.update(rule, w, w, state)


@pytest.mark.parametrize("opt", [None, np.ones(3), "opt"])
def test_what_is_no_optimizer(opt: Any, tmp_path: Path) -> None:
    for use in (gpuopt.save, gpuopt.load):
        with pytest.raises(TypeError, match=r"opt: .*, expected a gpuopt\.Optimizer"):
            use(tmp_path / "file", opt)
    assert not list(tmp_path.iterdir())


def spread() -> Any:
    return np.lib.stride_tricks.as_strided(np.ones(1), (3,), (0,))


@pytest.mark.parametrize("case", MEMORY)
def test_memory_that_is_shared(case: str, fused_space: Space) -> None:
    make, words = MEMORY[case]
    for engine in engines(fused_space):
        with pytest.raises(ValueError, match=words):
            gpuopt.Optimizer(make(fused_space), gpuopt.SGD(), engine=engine)


NUMPY_ONLY: dict[str, tuple[Any, type[Exception], str]] = {
    "longdouble": (
        np.ones(3, "g"),
        TypeError,
        r"params\['w'\]: dtype \S*float\S*, expected float32, float64.*; x\.astype\(numpy\.float64\)",
    ),
    "object": (
        np.ones(3, object),
        TypeError,
        r"params\['w'\]: dtype object, expected float32, float64.*; of arrays, a list",
    ),
    "string": (np.array(["1"]), TypeError, r"params\['w'\]: dtype <U1, expected float32, float64"),
    "foreign byte order": (
        np.ones(3, ">f8"),
        TypeError,
        r"params\['w'\]: dtype >f8, .*; x\.astype\(x\.dtype\.newbyteorder",
    ),
    "structured": (
        np.zeros(3, [("re", "f4")]),
        TypeError,
        r"params\['w'\]: dtype .*; x\['re'\] is the array of one of",
    ),
    "complex longdouble": (np.ones(3, "G"), TypeError, r"dtype complex.*; x\.astype\(numpy\.complex128\)"),
    "read-only": (frozen(np.ones(3)), ValueError, r"params\['w'\]: a read-only numpy array.*copy it"),
    "broadcast": (np.broadcast_to(np.ones(1), 3), ValueError, r"params\['w'\]: a read-only numpy array"),
}


@pytest.mark.parametrize("engine", ["auto", "array", "fused"])
@pytest.mark.parametrize("case", NUMPY_ONLY)
def test_numpy_arrays_that_cannot_be_updated(case: str, engine: Engine) -> None:
    w, error, words = NUMPY_ONLY[case]
    with pytest.raises(error, match=words):
        gpuopt.Optimizer({"w": w}, gpuopt.SGD(), engine=engine)


@pytest.mark.peers
def test_immutable_arrays_are_sent_to_the_pure_functions() -> None:
    jax = pytest.importorskip("jax")
    with pytest.raises(ValueError, match=r"params\['w'\]: a read-only jax.*gpuopt\.update"):
        gpuopt.Optimizer({"w": jax.numpy.ones(3)}, gpuopt.SGD())


def test_a_limit_that_is_no_clipping() -> None:
    with pytest.raises(TypeError, match=r"clip: 1.0, expected one such as gpuopt.clip_by_global_norm\(1.0\)"):
        gpuopt.Optimizer(np.ones(3), gpuopt.SGD(), clip=1.0)  # type: ignore[arg-type]


def groups() -> gpuopt.Optimizer:
    return gpuopt.Optimizer({"a": np.ones(3), "b": np.ones(3)}, {"a": gpuopt.SGD(lr=0.5), "b": gpuopt.SGD(lr=0.25)})


# Calls that do not fit. Name: call, words of the TypeError.
CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "a hyperparameter": (
        lambda: gpuopt.Optimizer(ONES, gpuopt.SGD(), lr=0.1),  # type: ignore[call-arg]
        r"^Optimizer: unknown argument 'lr'; usage: Optimizer\(params, rule, .*; hyperparameters go to the rule, as in gpuopt",
    ),
    "a rate alone": (lambda: gpuopt.Optimizer(ONES, lr=0.1), "^Optimizer: unknown argument 'lr'; usage"),  # type: ignore[call-arg]
    "a misspelling": (
        lambda: gpuopt.Optimizer(ONES, gpuopt.SGD(), nonfinit="skip"),  # type: ignore[call-arg]
        r"unknown argument 'nonfinit' \(did you mean 'nonfinite'\?\)",
    ),
    "no rule": (lambda: gpuopt.Optimizer(ONES), "^Optimizer: missing a required argument: 'rule'; usage"),  # type: ignore[call-arg]
    "the rule first": (
        lambda: gpuopt.Optimizer(gpuopt.SGD(), ONES),  # type: ignore[arg-type]
        "^params: SGD, expected an array of .*; the parameters come first, then the rule$",
    ),
    "the rule last": (
        lambda: gpuopt.init(ONES, gpuopt.SGD()),  # type: ignore[arg-type]
        "^params: SGD, expected an array of .*; the rule comes first, then the parameters$",
    ),
    "torch's name": (
        lambda: gpuopt.clip_by_norm(max_norm=1.0),  # type: ignore[call-arg]
        r"^clip_by_norm: unknown argument 'max_norm' \(did you mean 'limit'\?\); usage: clip_by_norm\(limit\)$",
    ),
    "SciPy's name": (
        lambda: gpuopt.minimize(lambda x: (0.0, x), ONES, gpuopt.SGD(), maxiter=3),  # type: ignore[call-arg]
        "^minimize: unknown argument 'maxiter'; usage: minimize",
    ),
    "a rate into what is shown": (
        lambda: groups().lr.update(a=0.1),
        "^a dict that is to be read alone, expected opt.tune",
    ),
    "a rule into what is shown": (
        lambda: groups().rules.__setitem__("a", gpuopt.Adam()),
        "^a dict that is to be read alone, expected opt.tune",
    ),
    "rates by pattern": (
        lambda: setattr(groups(), "lr", {"a": 0.1}),
        r"^lr: a dict, expected a number or a schedule for all rules; opt.tune\(PATTERN, lr=...\)",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_calls_that_do_not_fit(case: str) -> None:
    call, words = CALLS[case]
    with pytest.raises(TypeError, match=words):
        call()


def test_what_is_shown_can_be_copied() -> None:
    rates = groups().lr
    for copied in (
        copy.copy(rates),
        copy.deepcopy(rates),
        pickle.loads(pickle.dumps(rates)),
        json.loads(json.dumps(rates)),
    ):
        copied["a"] = 1.0
    assert rates == {"a": 0.5, "b": 0.25}


def test_unknown_engine() -> None:
    with pytest.raises(ValueError, match="engine: 'fast', expected one of 'auto', 'array', 'fused'"):
        gpuopt.Optimizer(np.ones(3), gpuopt.SGD(), engine="fast")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("w", "words"),
    [
        (np.ones(6)[::2], r"params\['w'\]: a numpy array of strides \(16,\), expected a contiguous.*engine='auto'"),
        (array_api_strict.ones(3), r"params\['w'\]: a array_api_strict\S* array.*expected a contiguous NumPy or CuPy"),
    ],
    ids=["strided", "foreign"],
)
def test_what_cannot_be_fused(w: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        gpuopt.Optimizer({"w": w}, gpuopt.SGD(), engine="fused")


# Gradients. Name: from good ones, bad ones; error, words.

W = r"grads\['dense'\]\['w'\]"
GRADIENTS: dict[str, tuple[Callable[[Space, Any], Any], type[Exception], str]] = {
    "missing leaf": (lambda s, g: {"dense": {"w": g["w"]}}, ValueError, r"missing grads\['dense'\]\['b'\].*None"),
    "extra leaf": (lambda s, g: {"dense": g | {"c": g["w"]}}, ValueError, r"unexpected grads\['dense'\]\['c'\]"),
    "other names": (lambda s, g: {"dense": {"v": g["w"], "b": g["b"]}}, ValueError, rf"missing {W}, unexpected"),
    "other structure": (lambda s, g: [g["w"], g["b"]], ValueError, r"grads: another structure than params"),
    "leaf for a tree": (lambda s, g: {"dense": g["w"]}, ValueError, r"grads: another structure than params"),
    "tree for a leaf": (
        lambda s, g: with_w(g, [g["w"]]),
        TypeError,
        rf"{W}: list, expected an? \S+ array like its param",
    ),
    "a container of another kind": (
        lambda s, g: types.MappingProxyType(g),
        ValueError,
        r"grads: another structure than params: .*; a mappingproxy is no nesting, as dicts, lists and tuples are$",
    ),
    "None for all": (lambda s, g: None, ValueError, r"grads: another structure than params"),
    "None for a tree": (lambda s, g: {"dense": None}, ValueError, r"grads: another structure than params"),
    "shape": (lambda s, g: with_w(g, s.put(np.ones((2, 3)))), ValueError, rf"{W}: shape \(2, 3\), expected \(3, 2\)"),
    "broadcastable shape": (
        lambda s, g: with_w(g, s.put(np.ones((1, 2)))),
        ValueError,
        rf"{W}: shape \(1, 2\), expect",
    ),
    "more axes": (lambda s, g: with_w(g, s.put(np.ones((1, 3, 2)))), ValueError, rf"{W}: shape \(1, 3, 2\), expected"),
    "no axes": (lambda s, g: with_w(g, s.put(np.ones(()))), ValueError, rf"{W}: shape \(\), expected \(3, 2\)"),
    "complex": (lambda s, g: with_w(g, s.put(np.ones((3, 2)) + 0j)), TypeError, rf"{W}: dtype \S*complex128.*real"),
    "Python's float": (
        lambda s, g: with_w(g, 1.0),
        TypeError,
        rf"{W}: float, expected an? \S+ array like its parameter",
    ),
    "nested lists": (lambda s, g: with_w(g, [[1.0, 2.0]] * 3), TypeError, rf"{W}: list, expected a"),
    "string": (lambda s, g: with_w(g, "g"), TypeError, rf"{W}: str, expected a"),
    "of another library": (
        lambda s, g: with_w(g, np.ones((3, 2)) if s.name != "numpy" else Unshared()),
        TypeError,
        rf"{W}: an? \S+ array, expected an? \S+ array like its parameter",
    ),
    "on another device": (
        lambda s, g: with_w(g, elsewhere(s)),
        ValueError,
        rf"{W}: an? \S+:\S+ array, expected an? \S+:\S+ array like its parameter",
    ),
}


class Unshared:
    """An array of a library whose memory NumPy cannot share."""

    shape, dtype, device = (3, 2), np.dtype("f8"), "far:1"

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return np


def elsewhere(space: Space) -> Any:
    """Zeros on a device that is not the space's own."""
    if space.name == "array_api_strict":
        return space.xp.zeros((3, 2), device=space.xp.Device("CPU_DEVICE"))
    if space.name == "cupy" and space.device.id > 0:
        with space.xp.cuda.Device(0):
            return space.xp.zeros((3, 2))
    pytest.skip("there is one device")


def with_w(g: Any, w: Any) -> Any:
    return {"dense": g | {"w": w}}


NUMPY_GRADIENTS: dict[str, tuple[Any, str]] = {
    "object": (np.ones((3, 2), object), rf"{W}: dtype object, expected a real one, best float32"),
    "strings": (np.full((3, 2), "1"), rf"{W}: dtype <U1, expected a real one"),
    "times": (np.zeros((3, 2), "m8[s]"), rf"{W}: dtype timedelta64\[s\], expected a real one"),
    "records": (np.zeros((3, 2), "f4,f4"), rf"{W}: dtype .*, expected a real one"),
    "masked": (np.ma.ones((3, 2), dtype="f4"), rf"{W}: a masked array, .*x\.filled\(0\)"),
}


@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients(case: str, space: Space) -> None:
    make, error, words = GRADIENTS[case]
    check_gradients(space, lambda: make(space, good(space)["dense"]), error, words)


@pytest.mark.parametrize("case", NUMPY_GRADIENTS)
@pytest.mark.parametrize("space", ["numpy"], indirect=True)
def test_numpy_gradients(case: str, space: Space) -> None:
    g, words = NUMPY_GRADIENTS[case]
    check_gradients(space, lambda: with_w(good(space)["dense"], g), TypeError, words)


@pytest.mark.parametrize("engine", ["array", "auto", "fused"])
@pytest.mark.parametrize("strided", [False, True])
def test_parameters_that_become_read_only(engine: Engine, strided: bool) -> None:
    if strided and engine == "fused":
        return
    b = np.ones(6, "f4")[::2] if strided else np.ones(3, "f4")
    params = {"a": np.ones(3, "f4"), "b": b}
    opt = gpuopt.Optimizer(params, gpuopt.SGD(lr=1.0), engine=engine)
    grads = {"a": np.ones(3, "f4"), "b": np.ones(3, "f4")}
    opt.step(grads)
    saved = {**opt.state_dict(), "params": {name: np.full(3, 5, "f4") for name in params}}
    frozen(b)
    for _ in range(2):
        for call, given in ((opt.step, grads), (opt.load_state_dict, saved)):
            with pytest.raises(ValueError, match=r"params\['b'\]: read-only by now"):
                call(given)
    assert (opt.steps, params["a"].tolist(), b.tolist()) == (1, [0] * 3, [0] * 3)
    b.flags.writeable = True
    opt.step(grads)
    assert (opt.steps, params["a"].tolist(), b.tolist()) == (2, [-1] * 3, [-1] * 3)


def check_gradients(space: Space, make: Callable[[], Any], error: type[Exception], words: str) -> None:
    rule = gpuopt.Adam(lr=0.1)
    for engine in engines(space):
        opt, control = (gpuopt.Optimizer(good(space), rule, engine=engine) for _ in range(2))
        for each in (opt, control):
            each.step(good(space, 3.0))
        for _ in range(2):  # a second time: nothing has been remembered
            with pytest.raises(error, match=words):
                opt.step(make())
        assert opt.steps == 1
        assert_same_bits(space.got(opt), space.got(control))
        for each in (opt, control):
            each.step(good(space, -2.0))
        assert_same_bits(space.got(opt), space.got(control))
    params, state = good(space), gpuopt.init(rule, good(space))
    with pytest.raises(error, match=words):
        gpuopt.update(rule, params, make(), state)
    assert np.array_equal(space.get(params["dense"]["w"]), space.get(good(space)["dense"]["w"]))


def test_a_state_with_a_mask() -> None:
    opt = gpuopt.Optimizer(np.ones(2), gpuopt.SGD(0.1, 0.9))
    state = opt.state_dict()
    state["state"][""]["v"] = np.ma.array(np.zeros(2), mask=True)
    with pytest.raises(ValueError, match="state//v: a masked array, whose mask would get lost, expected a plain one"):
        opt.load_state_dict(state)
