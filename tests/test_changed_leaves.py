"""A parameter that is replaced, resized, reshaped, retyped or made read-only after the optimizer was made: an error, and
nothing is written."""

import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpuopt


def as_view(a: Any) -> Any:
    return a.view(type("Own", (np.ndarray,), {}))


def set_attribute(name: str, value: Any) -> Callable[[Any], None]:
    def change(p: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy plans to take these away
            setattr(p["w"], name, value)

    return change


def replaced(value: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def change(p: dict[str, Any]) -> None:
        p["w"] = value(p["w"])

    return change


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "replaced by a projection": (replaced(lambda w: np.maximum(w, 0)), r"another array than the one"),
    "replaced by a copy": (replaced(lambda w: w.copy()), r"another array than the one"),
    "replaced by a view of itself": (replaced(lambda w: w[:]), r"another array than the one"),
    "replaced by a number": (replaced(lambda w: 1.0), r"another array than the one"),
    "replaced by None": (replaced(lambda w: None), r"another array than the one"),
    "grown": (lambda p: p["w"].resize(4000, refcheck=False), r"shape \(4000,\), expected \(4, 6\)"),
    "shrunk": (lambda p: p["w"].resize(2, refcheck=False), r"shape \(2,\), expected \(4, 6\)"),
    "reshaped": (set_attribute("shape", (24,)), r"shape \(24,\), expected \(4, 6\)"),
    "reshaped, alike": (set_attribute("shape", (6, 4)), r"shape \(6, 4\), expected \(4, 6\)"),
    "retyped": (set_attribute("dtype", np.dtype("i8")), r"dtype int64, expected float64"),
    "halved": (set_attribute("dtype", np.dtype("f4")), r"shape \(4, 12\), expected \(4, 6\), dtype float32"),
    "restrided": (set_attribute("strides", (0, 8)), r"strides \(0, 8\), expected \(48, 8\)"),
    "read-only": (lambda p: p["w"].setflags(write=False), r"read-only by now, expected an array to update in place"),
}


@pytest.mark.parametrize("engine", ["auto", "array"])
@pytest.mark.parametrize("gradient", [True, False], ids=["gradient", "None"])
@pytest.mark.parametrize(
    ("change", "said", "own_class"),
    [
        pytest.param(change, said, own_class, id=f"{name}-{'subclass' if own_class else 'array'}")
        for name, (change, said) in CHANGES.items()
        for own_class in (False, True)
        # A view does not own its memory, and cannot be resized.
        if not (own_class and said.startswith((r"shape \(4000", r"shape \(2,")))
    ],
)
def test_a_changed_leaf(
    change: Callable[[dict[str, Any]], object], said: str, gradient: bool, engine: Any, own_class: bool
) -> None:
    held = np.arange(24.0).reshape(4, 6).copy()
    params = {"v": np.ones(3), "w": as_view(held) if own_class else held, "x": np.ones(3)}
    opt = gpuopt.Optimizer(params, gpuopt.Adam(lr=0.1), engine=engine)
    grads: dict[str, Any] = {"v": np.ones(3), "w": np.ones((4, 6)), "x": np.ones(3)}
    opt.step(grads)
    change(params)
    before = [params["v"].copy(), params["x"].copy()]
    grads["w"] = (
        (np.ones_like(params["w"]) if isinstance(params["w"], np.ndarray) else np.ones(1)) if gradient else None
    )
    for use in (
        lambda: opt.step(grads),
        opt.state_dict,
        opt.evaluation,
        lambda: pickle.dumps(opt),
        lambda: opt.load_state_dict(opt.state_dict()),
    ):
        with pytest.raises(ValueError, match=rf"^params\['w'\]: .*{said}"):
            use()
    assert opt.steps == 1
    np.testing.assert_array_equal(params["v"], before[0])
    np.testing.assert_array_equal(params["x"], before[1])


@pytest.mark.parametrize(
    "change", [lambda p: p.update(new=np.ones(2)), lambda p: p.pop("w")], ids=["a new key", "a key less"]
)
def test_another_structure(change: Callable[[dict[str, Any]], object]) -> None:
    params = {"v": np.ones(2), "w": np.ones(2)}
    opt = gpuopt.Optimizer(params, gpuopt.SGD(lr=1.0))
    change(params)
    with pytest.raises(ValueError, match="params"):
        opt.step({"v": np.ones(2), "w": np.ones(2)})
    assert opt.steps == 0
    np.testing.assert_array_equal(params["v"], np.ones(2))


@pytest.mark.parametrize("engine", ["auto", "array"])
@pytest.mark.parametrize("name", ["v", "every.sum"])
def test_what_a_state_dict_gives_out_is_not_what_the_step_writes_to(name: str, engine: Any) -> None:
    """Its arrays show the state's memory, but another shape, dtype or flag of one of them is not the state's."""
    params = {"w": np.zeros(3)}
    opt = gpuopt.Optimizer(params, gpuopt.SGD(lr=1.0, momentum=0.5), every=2, engine=engine)
    opt.step({"w": np.ones(3)})
    given = opt.state_dict()["state"]["w"][name]
    given.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy plans to take it away
        given.dtype = np.dtype("i8")
    with pytest.raises(ValueError, match="does not own its data"):
        given.resize(100_000, refcheck=False)
    opt.step({"w": np.ones(3)})
    np.testing.assert_array_equal(params["w"], [-1.0, -1.0, -1.0])
    np.testing.assert_array_equal(given.view("f8"), np.full(3, -1.0 if name == "v" else 1.0))


def test_a_projection_in_place_is_fine() -> None:
    params = {"w": np.ones(2)}
    opt = gpuopt.Optimizer(params, gpuopt.SGD(lr=1.0))
    opt.step({"w": np.array([3.0, -1.0])})
    np.maximum(params["w"], 0, out=params["w"])
    opt.step({"w": np.array([0.0, 1.0])})
    assert params["w"].tolist() == [0.0, 1.0]
