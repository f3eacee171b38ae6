"""Parameter groups: which leaf gets which rule, and what an optimizer tells and changes of them."""

import collections
import copy
import pickle
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spaces import Space, assert_same_bits

import gpuopt
from gpuopt import groups, schedules, trees

A, B, C = gpuopt.SGD(lr=0.1), gpuopt.SGD(lr=0.2, momentum=0.5), gpuopt.Adam(lr=0.3)
PARAMS: dict[str, Any] = {"enc": {"w": 0, "b": 1}, "dec": [{"w": 2}, {"w": 3}], "[x]": 4}
PATHS = ["[x]", "dec.0.w", "dec.1.w", "enc.b", "enc.w"]

# Rules, and the pattern of each of `PATHS`.
MATCHED: list[tuple[Any, list[str]]] = [
    (A, ["*"] * 5),
    ({"*": A}, ["*"] * 5),
    ({"*.w": A, "*": B}, ["*", "*.w", "*.w", "*", "*.w"]),
    ({"dec.?.w": A, "enc.[!w]": B, "*": C}, ["*", "dec.?.w", "dec.?.w", "enc.[!w]", "*"]),
    ({"[[]x]": A, "*c.*": B}, ["[[]x]", "*c.*", "*c.*", "*c.*", "*c.*"]),
    ({"enc.*": A, "*.w": B, "*": C}, ["*", "*.w", "*.w", "enc.*", "enc.*"]),  # the first one that matches
    (collections.OrderedDict([("*.b", A), ("*", A)]), ["*", "*", "*", "*.b", "*"]),  # one rule in two groups
]


@pytest.mark.parametrize(("rules", "expected"), MATCHED, ids=range(len(MATCHED)))
def test_match(rules: Any, expected: list[str]) -> None:
    tree, _ = trees.flatten(PARAMS)
    found = groups.match(rules, tree)
    assert list(tree.paths) == PATHS
    assert [found.patterns[group] for group in found.of_leaf] == expected
    assert dict(zip(found.patterns, found.rules, strict=True)) == (rules if rules is not A else {"*": A})


WORDS = st.text("ab.*?[]!-", max_size=6)


@given(st.lists(WORDS, min_size=1, max_size=4, unique=True), st.lists(WORDS, min_size=1, max_size=6, unique=True))
def test_match_is_fnmatch(patterns: list[str], keys: list[str]) -> None:
    tree, _ = trees.flatten(dict.fromkeys(keys, 0))
    rules = {pattern: gpuopt.SGD(lr=i) for i, pattern in enumerate(patterns)}
    first = [next((i for i, p in enumerate(patterns) if fnmatchcase(path, p)), None) for path in tree.paths]
    if {*first} != {*range(len(patterns))}:
        with pytest.raises(ValueError, match="rule: "):
            groups.match(rules, tree)
    else:
        assert groups.match(rules, tree).of_leaf == first


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"*": A, "*.w": B}, r"^rule: the pattern '\*\.w' gets no leaf, .* have the rule of '\*'; put it before$"),
        (
            {"*.0.w": A, "*": B, "dec.*": C},
            r"^rule: the pattern 'dec\.\*' gets no leaf, .* of '\*\.0\.w', '\*'; put it",
        ),
    ],
    ids=["after all", "after two"],
)
def test_a_pattern_whose_leaves_have_a_rule_already(rules: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        groups.match(rules, trees.flatten(PARAMS)[0])


def test_a_path_with_brackets_is_no_glob_of_itself() -> None:
    """The message had it that there is no 'w[0]', and asked whether 'w[0]' was meant."""
    params = {"w[0]": np.zeros(1), "w0": np.zeros(1)}
    tree, _ = trees.flatten(params)
    assert groups.match({"w[0]": A, "*": B}, tree).of_leaf == [0, 1]  # in the order of the paths
    assert groups.match({"w[[]0]": A, "*": B}, tree).of_leaf == [1, 0]
    with pytest.raises(
        ValueError, match=r"^rule: the pattern 'w\[0\]' matches no leaf, for .*; 'w\[\[\]0\]' matches the leaf"
    ):
        groups.match({"w[0]": A}, trees.flatten({"w[0]": np.zeros(1)})[0])


def test_a_long_list_of_leaves_is_cut_in_messages() -> None:
    params = [np.zeros(1) for _ in range(1000)]
    with pytest.raises(ValueError, match=r"matches no leaf.*; there are '0', '1', .*'19' and 980 more$"):
        gpuopt.Optimizer(params, {"*.w": A, "*": B})


# What an optimizer tells


@pytest.mark.parametrize("rules", [A, {"*": A}, {"a": A, "*": C}], ids=["one", "one by pattern", "two"])
def test_rules_are_a_dict_by_pattern(rules: Any) -> None:
    opt = gpuopt.Optimizer({"a": np.ones(1), "b": np.ones(1)}, rules)
    expected = {"*": A} if rules is A else rules
    assert opt.rules == expected
    assert opt.rule == rules
    assert opt.lr == (0.1 if rules is A else {"*": 0.1} if len(rules) == 1 else {"a": 0.1, "*": 0.3})
    opt.tune(lr=0.5)
    assert {pattern: rule.at(0)["lr"] for pattern, rule in opt.rules.items() if rule} == dict.fromkeys(expected, 0.5)
    with pytest.raises(TypeError, match="a dict that is to be read alone"):
        opt.rules.clear()
    assert opt.rules.keys() == expected.keys()


ONE: dict[str, Any] = {"w": np.ones((3, 2)), "b": np.ones(2, np.float32)}
SHOWN: list[tuple[Any, Any, str]] = [
    (
        np.ones(()),
        gpuopt.SGD(),
        "Optimizer(SGD(lr=0.01, momentum=0.0, nesterov=False), 1 leaf, 1 parameter of float64 on numpy, 0 steps)",
    ),
    (
        ONE,
        {"b": A, "*": C},
        f"Optimizer({{'b': {A}, '*': {C}}}, 2 leaves, 8 parameters of float32 and float64 on numpy, 0 steps)",
    ),
    (
        np.ones(12_345),
        gpuopt.SGD(),
        "Optimizer(SGD(lr=0.01, momentum=0.0, nesterov=False), 1 leaf, 12,345 parameters of float64 on numpy, 0 steps)",
    ),
]


@pytest.mark.parametrize(("params", "rule", "shown"), SHOWN, ids=["one", "two groups", "many"])
def test_repr(params: Any, rule: Any, shown: str) -> None:
    opt = gpuopt.Optimizer(params, rule)
    assert repr(opt) == shown
    if isinstance(params, np.ndarray):
        opt.step(np.ones_like(params))
        assert repr(opt) == shown.replace("0 steps", "1 step")


# What may be assigned to the learning rate


def two() -> gpuopt.Optimizer:
    return gpuopt.Optimizer({"a": np.ones(1), "b": np.ones(1)}, {"a": A, "b": C})


def test_lr_is_assigned_to_all_groups() -> None:
    opt = two()
    opt.lr = 1
    assert opt.lr == {"a": 1.0, "b": 1.0}
    opt.lr = schedules.inverse_time(1.0, decay=1.0)
    opt.step({"a": np.zeros(1), "b": np.zeros(1)})
    assert opt.lr == {"a": 0.5, "b": 0.5}
    assert opt.state_dict()["rules"]["a"]["tuned"].keys() == {"lr"}


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (-1.0, ValueError, r"SGD: lr: got -1\.0, expected a number in \[0, inf\)"),
        (float("nan"), ValueError, "SGD: lr: got nan"),
        ("cosine", TypeError, r"SGD: lr: got 'cosine' \(str\), expected a number or a schedule$"),
        (
            np.array(0.1),
            TypeError,
            r"lr: got array\(0\.1\) \(ndarray\), expected a number or a schedule; float\(x\) is one$",
        ),
        ([0.1, 0.2], TypeError, r"\(list\), .* schedule; for one value a step, values\.__getitem__ .*Scale\(rates\)"),
        (None, TypeError, "SGD: lr: got None"),
        ({"a": 0.1}, TypeError, "lr: a dict, expected a number"),
    ],
    ids=str,
)
def test_what_cannot_be_a_learning_rate_changes_nothing(value: Any, error: type[Exception], words: str) -> None:
    opt = two()
    with pytest.raises(error, match=words):
        opt.lr = value
    assert opt.lr == {"a": 0.1, "b": 0.3}


def test_the_error_of_a_schedule_names_it_where_the_learning_rate_is_read() -> None:
    opt = gpuopt.Optimizer(np.ones(1), gpuopt.SGD(lr=lambda step: 1 / (1 - step)))
    opt.step(np.ones(1))
    with pytest.raises(ValueError, match=r"SGD: lr at step 1, by its schedule: ZeroDivisionError"):
        _ = opt.lr


# Metrics


def test_metrics_are_told_to_all_groups_and_are_a_part_of_the_state(tmp_path: Any) -> None:
    plateau = schedules.plateau(1.0, factor=0.5, patience=1)
    params = {"a": np.ones(1), "b": np.ones(1), "c": np.ones(1)}
    rules = {
        "a": gpuopt.chain(gpuopt.SGD(plateau), gpuopt.SoftThreshold(schedules.scaled(plateau, 4.0))),
        "b": gpuopt.SGD(schedules.constant(2.0), momentum=lambda _: 0.5),
        "c": None,
    }
    opt, again = gpuopt.Optimizer(params, rules), gpuopt.Optimizer(params, rules)
    for loss in (np.float32(1), 1, np.array(1.0)):
        opt.tell(loss)
    assert opt.lr == {"a": 0.5, "b": 2.0}
    assert opt.rules["a"].at(0)["SoftThreshold.strength"] == 2.0  # type: ignore[union-attr]
    gpuopt.save(tmp_path / "x.safetensors", opt)
    gpuopt.load(tmp_path / "x.safetensors", again)
    for each in (opt, again):
        each.tell(2)
        each.tell(2)
        assert each.lr == {"a": 0.25, "b": 2.0}
    for bad in ("low", None, [1, 2]):
        with pytest.raises(TypeError, match=r"^tell: .*, expected a number$"):
            opt.tell(bad)  # type: ignore[arg-type]


# Frozen leaves

FROZEN: dict[str, Any] = {"enc.*": None, "*": gpuopt.Adam(lr=0.1)}


def frozen_and_not(space: Space) -> dict[str, Any]:
    return {"enc": {"w": space.put(np.ones((2, 3))), "b": space.put(np.ones(()))}, "dec": space.put(np.ones(5))}


@pytest.mark.parametrize("nonfinite", ["ignore", "skip"])
@pytest.mark.parametrize("clip", [None, gpuopt.clip_by_global_norm(0.5)], ids=["", "clipped"])
@pytest.mark.parametrize("engine", ["auto", "array", "fused"])
def test_frozen_leaves_stay_and_the_others_move_as_if_alone(
    engine: Any, clip: Any, nonfinite: Any, space: Space
) -> None:
    if engine == "fused" and engine not in space.engines:
        pytest.skip(f"the fused engine is not for {space.name}")
    options: dict[str, Any] = {"engine": engine, "clip": clip, "nonfinite": nonfinite}
    for enc in ({"w": None, "b": None}, {"w": space.put(np.full((2, 3), np.nan)), "b": "whatever"}):
        params, alone = frozen_and_not(space), {"dec": space.put(np.ones(5))}
        opt, other = gpuopt.Optimizer(params, FROZEN, **options), gpuopt.Optimizer(alone, FROZEN["*"], **options)
        for _ in range(3):
            opt.step({"enc": enc, "dec": space.put(np.arange(5.0))})
            other.step({"dec": space.put(np.arange(5.0))})
        held = space.got(opt)
        assert (held.pop("enc.w") == 1).all()
        assert held.pop("enc.b") == 1
        assert_same_bits(held, space.got(other))
        assert opt.skipped == 0
        assert clip is None or opt.gradient_norm == pytest.approx(30**0.5)


def test_frozen_leaves_are_shown_and_saved(tmp_path: Any) -> None:
    params = {"enc": {"w": np.full(2, 7.0)}, "dec": np.ones(5)}
    opt = gpuopt.Optimizer(params, FROZEN)
    assert (opt.rule, opt.rules, opt.lr) == (FROZEN, FROZEN, {"*": 0.1})
    assert repr(opt).startswith("Optimizer({'enc.*': None, '*': Adam(")
    assert "<td>enc.*</td><td>frozen</td>" in opt._repr_html_()
    opt.step({"enc": {"w": None}, "dec": np.ones(5)})
    opt.lr = 0.5
    gpuopt.save(tmp_path / "x.safetensors", opt)
    for again in (
        pickle.loads(pickle.dumps(opt)),
        gpuopt.Optimizer({"enc": {"w": np.ones(2)}, "dec": np.ones(5)}, FROZEN),
    ):
        gpuopt.load(tmp_path / "x.safetensors", again)
        assert (again.steps, again.lr, list(again.params["enc"]["w"])) == (1, {"*": 0.5}, [7.0, 7.0])
        assert {path: list(own) for path, own in again.state_dict()["state"].items()} == {
            "enc.w": [],
            "dec": ["m", "v"],
        }
    melted = gpuopt.Optimizer({"enc": {"w": np.ones(2)}, "dec": np.ones(5)}, {"enc.*": A, "*": C})
    with pytest.raises(
        gpuopt.CheckpointError, match=r"rules: {'enc\.\*': 'Frozen', '\*': 'Adam'}, expected {'enc\.\*': 'SGD"
    ):
        gpuopt.load(tmp_path / "x.safetensors", melted)


def test_frozen_leaves_in_pure_functions() -> None:
    params: dict[str, Any] = {"enc": {"w": np.ones(2)}, "dec": np.ones(2)}
    state = gpuopt.init(FROZEN, params)
    assert state.slots["m"]["enc"]["w"] is None
    new, state = gpuopt.update(FROZEN, params, {"enc": {"w": np.full(2, np.nan)}, "dec": np.ones(2)}, state)
    assert new["enc"]["w"] is params["enc"]["w"]
    np.testing.assert_allclose(new["dec"], 0.9)
    assert gpuopt.evaluation(FROZEN, new, state)["enc"]["w"] is params["enc"]["w"]


def test_all_leaves_may_be_frozen() -> None:
    w = np.ones(2)
    opt = gpuopt.Optimizer(w, {"*": None}, nonfinite="raise", clip=gpuopt.clip_by_norm(1.0))
    opt.step(np.ones(2))
    assert (opt.steps, list(w)) == (1, [1.0, 1.0])
    with pytest.raises(TypeError, match=r"^rule: \{'\*': 3\}, expected a rule .*, or None to leave leaves"):
        gpuopt.Optimizer(w, {"*": 3})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "options", [{}, {"clip": gpuopt.clip_by_global_norm(1.0)}, {"nonfinite": "raise"}, {"every": 2}], ids=str
)
def test_more_rules_than_one_call_has_room_for(options: dict[str, Any], fused_space: Space) -> None:
    with fused_space.use():
        rules: dict[str, gpuopt.Rule | None] = {f"{k}": gpuopt.Adam(lr=0.01 * (1 + k)) for k in range(150)}
        grads = [fused_space.put(np.full(3, 1.0 + k)) for k in range(150)]
        found = []
        for engine in ("fused", "array"):
            w = [fused_space.put(np.zeros(3)) for _ in grads]
            opt = gpuopt.Optimizer(w, rules, engine=engine, **options)
            for _ in range(4):
                opt.step(grads)
            opt.tune(beta1=0.5)
            opt = copy.deepcopy(opt)
            opt.step(grads)
            opt.step(grads)
            found.append(fused_space.got(opt))
            with pytest.raises(ValueError, match=r"grads\[149\]: shape"):
                opt.step([*grads[:149], fused_space.put(np.ones(2))])
        assert_same_bits(*found)
