"""`gpuopt.minimize`, and rules as methods of SciPy's."""

import sys
from typing import Any

import numpy as np
import pytest
from spaces import Space

import gpuopt
from gpuopt.arrays import current

RULE = gpuopt.Adam(lr=0.1)


def bowl(x: Any, at: float = 3.0) -> tuple[Any, Any]:
    with current(x):
        return ((x - at) ** 2).sum(), 2 * (x - at)


def test_minimizes(fused_space: Space) -> None:
    x0 = fused_space.put(np.zeros((2, 3)))
    found = gpuopt.minimize(bowl, x0, RULE, steps=800, tol=1e-6)
    np.testing.assert_allclose(fused_space.get(found.x), 3.0, atol=1e-5)
    assert (found.success, found.status, found.nfev) == (True, 0, found.nit + 1)
    assert found.nit < 800
    assert not fused_space.get(x0).any()


def test_takes_nestings_functions_for_the_gradient_and_arguments() -> None:
    def value(x: Any, at: float) -> Any:
        return sum(((own - at) ** 2).sum() for own in x.values())

    def gradient(x: Any, at: float) -> Any:
        return {name: 2 * (own - at) for name, own in x.items()}

    x0 = {"a": np.zeros(2, np.float32), "b": np.array(5)}
    found = gpuopt.minimize(value, x0, RULE, jac=gradient, args=(2.0,), steps=500, tol=1e-3)
    np.testing.assert_allclose(found.x["a"], 2.0, atol=1e-3)
    assert [found.x[name].dtype for name in "ab"] == [np.dtype("f4"), np.dtype("f8")]
    assert x0["b"] == 5


def test_all_steps_are_success_without_tol_alone() -> None:
    found = gpuopt.minimize(bowl, np.zeros(2), RULE, steps=7)
    assert (found.success, found.status, found.nit) == (True, 0, 7)
    found = gpuopt.minimize(bowl, np.zeros(2), RULE, steps=7, tol=1e-9)
    assert (found.success, found.status, found.message) == (False, 1, "Maximum number of iterations has been exceeded.")


def test_ends_where_it_is_not_finite() -> None:
    found = gpuopt.minimize(lambda x: (np.inf, x), np.zeros(2), RULE)
    assert (found.success, found.status, found.nit) == (False, 2, 0)


@pytest.mark.parametrize("style", ["x", "intermediate_result"])
def test_callbacks_are_scipys(style: str) -> None:
    seen: list[Any] = []

    def by_x(xk: Any) -> None:
        seen.append(xk)
        if len(seen) == 3:
            raise StopIteration

    def by_result(intermediate_result: Any) -> None:
        by_x(intermediate_result.x)
        assert intermediate_result.fun == bowl(intermediate_result.x)[0]

    callback = by_x if style == "x" else by_result
    found = gpuopt.minimize(bowl, np.zeros(2), gpuopt.SGD(lr=0.25), callback=callback)
    assert [x.tolist() for x in seen] == [[1.5] * 2, [2.25] * 2, [2.625] * 2]
    assert (found.status, found.success, found.nit) == (99, False, 3)


def test_averages_are_what_is_returned() -> None:
    rule = gpuopt.chain(gpuopt.SGD(lr=0.5), gpuopt.EMA(0.5))
    found = gpuopt.minimize(bowl, np.zeros(1), rule, steps=3)
    assert found.fun == bowl(found.x)[0]
    assert found.nfev == 5


@pytest.mark.parametrize("kind", ["pairs", "Bounds"])
def test_bounds_are_kept(kind: str) -> None:
    bounds: Any = [(None, 2.0), (0.0, None), (4.0, 5.0)]
    if kind == "Bounds":
        bounds = type("Bounds", (), {"lb": [-np.inf, 0, 4], "ub": [2, np.inf, 5]})()

    def inside(x: Any) -> tuple[Any, Any]:
        assert np.all(x >= [-np.inf, 0, 4])
        assert np.all(x <= [2, np.inf, 5])
        return bowl(x)

    found = gpuopt.minimize(inside, np.zeros(3), RULE, bounds=bounds, steps=800, tol=1e-6)
    np.testing.assert_allclose(found.x, [2, 3, 4], atol=1e-5)
    assert found.success


AVERAGING = [
    gpuopt.chain(RULE, gpuopt.EMA(0.5)),
    gpuopt.chain(gpuopt.SGD(lr=0.3), gpuopt.Accelerate()),
    gpuopt.chain(RULE, gpuopt.Lookahead(), gpuopt.EMA(0.5)),
    gpuopt.ScheduleFreeSGD(lr=0.1),
    gpuopt.ASGD(lr=0.1),
]


@pytest.mark.parametrize("rule", AVERAGING, ids=lambda rule: rule.name)
def test_averages_are_within_the_bounds(rule: gpuopt.Rule) -> None:
    found = gpuopt.minimize(bowl, np.zeros(2), rule, bounds=[(0, 0.5), (-1, 0.25)], steps=50)
    np.testing.assert_allclose(found.x, [0.5, 0.25], atol=1e-6)
    assert found.fun == bowl(found.x)[0]


def test_functions_may_change_and_keep_what_they_are_given() -> None:
    """Many compare the point with the one that they were given last, and keep the value."""
    kept: list[Any] = []

    def hostile(x: Any) -> tuple[Any, Any]:
        assert not any(x is old or np.shares_memory(x, old) for old in kept)
        kept.append(x)
        found = bowl(x)
        x[:] = np.nan
        return found

    plain = gpuopt.minimize(bowl, np.zeros(2), RULE, steps=5)
    np.testing.assert_array_equal(gpuopt.minimize(hostile, np.zeros(2), RULE, steps=5).x, plain.x)
    found = gpuopt.minimize(lambda x: hostile(x)[0], np.zeros(2), RULE, jac=lambda x: hostile(x)[1].tolist(), steps=5)
    np.testing.assert_array_equal(found.x, plain.x)


@pytest.mark.parametrize(
    "x0", [[0, 0.5], (0.0, 0.5), [np.float32(0), 0.5], np.array([[0.0, 0.5]]), np.array([0, 0.5], ">f4")]
)
def test_lists_of_numbers_are_arrays(x0: Any) -> None:
    found = gpuopt.minimize(bowl, x0, RULE, args=(), steps=2.0)  # type: ignore[arg-type]
    want = gpuopt.minimize(bowl, np.array([0.0, 0.5]), RULE, steps=2)
    np.testing.assert_allclose(np.ravel(found.x), want.x, rtol=1e-6)


def test_scipy_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    found = gpuopt.minimize(bowl, np.zeros(2), RULE, steps=1)
    assert type(found).__module__ == "gpuopt.minimization"
    assert found["nit"] == found.nit == 1
    with pytest.raises(AttributeError, match="'hess', expected one of x, fun"):
        found.hess  # noqa: B018


def test_rules_are_methods_of_scipys() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    seen: list[Any] = []
    method = gpuopt.minimizer(RULE, steps=2000)
    found = optimize.minimize(
        bowl, [0.0, 1.0], args=(1.5,), jac=True, method=method, tol=1e-6, bounds=[(0, 1), (0, 9)], callback=seen.append
    )
    np.testing.assert_allclose(found.x, [1, 1.5], atol=1e-5)
    assert isinstance(found, optimize.OptimizeResult)
    assert len(seen) == found.nit
    found = optimize.minimize(optimize.rosen, [1.3, 0.7], jac=optimize.rosen_der, method=method, options={"maxiter": 5})
    assert found.nit == 5
    for wrong, words in (
        ({"jac": None}, "jac: no gradient"),
        ({"options": {"gtol": 1}}, "options: gtol, expected maxiter"),
        ({"constraints": [{"type": "eq", "fun": sum}]}, "constraints: a rule knows bounds alone"),
    ):
        with pytest.raises(TypeError, match=words):
            optimize.minimize(**{"fun": bowl, "x0": [0.0], "jac": True, "method": method} | wrong)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"fun": 3}, TypeError, "fun: 3, expected a function"),
        ({"fun": lambda x: x}, TypeError, "fun: returned numpy array, expected the value and the gradient"),
        ({"fun": lambda x: (x, x)}, TypeError, r"fun: returned a value of shape \(2,\), expected a number"),
        ({"jac": None}, TypeError, "jac: None, expected True or a function; gpuopt takes gradients"),
        ({"steps": 1.5}, ValueError, "steps: 1.5, expected a whole number"),
        ({"x0": "a"}, TypeError, "x0: str, expected an array of NumPy or CuPy"),
        ({"bounds": [(0, 1)]}, ValueError, r"bounds: \[\(0, 1\)\], expected 2 pairs \(low, high\)"),
        ({"bounds": [(0, 1, 2)] * 2}, ValueError, "bounds: .*, expected 2 pairs"),
        ({"bounds": 3}, ValueError, "bounds: 3, expected 2 pairs"),
        ({"bounds": [None, None]}, ValueError, r"bounds: \[None, None\], expected 2 pairs"),
        ({"bounds": [(0, 1j), (0, 1)]}, ValueError, "bounds: .*, expected 2 pairs .* of real numbers"),
        ({"bounds": [(np.nan, 1), (0, 1)]}, ValueError, "bounds: a low one is above its high one, or NaN"),
        ({"bounds": [(0, 1)] * 2, "x0": np.zeros(2, complex)}, TypeError, "bounds: x0 is complex, expected real"),
        ({"x0": np.ma.zeros(2)}, TypeError, "x0: a masked array"),
        ({"x0": np.zeros(2, "g")}, TypeError, "x0: dtype .*, expected float32"),
        ({"x0": [[1.0], [2.0, 3.0]]}, ValueError, "x0: lists of numbers of several lengths"),
        (
            {"fun": lambda x: (1j, x)},
            TypeError,
            "fun: returned 1j as the value, expected a real",
        ),
        ({"fun": lambda x: (None, x)}, TypeError, "fun: returned None as the value, expected a real number"),
        ({"fun": lambda x: (0.0, None)}, TypeError, "fun: returned None as gradient, expected an array like x0"),
        ({"fun": lambda x: (0.0, [1.0])}, ValueError, r"grads: shape \(1,\), expected \(2,\)"),
        ({"tol": "a"}, TypeError, "tol: 'a', expected a number from 0 on"),
        ({"tol": float("nan")}, ValueError, "tol: nan, expected a number from 0 on"),
        ({"tol": -1}, ValueError, "tol: -1, expected a number from 0 on"),
        ({"bounds": [(1, 0), (0, 1)]}, ValueError, "bounds: a low one is above"),
        ({"bounds": [(1, 0)], "x0": [np.zeros(1)]}, TypeError, "bounds: x0 is a nesting"),
        ({"callback": 3}, TypeError, "callback: 3, expected a function"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,
)
def test_refuses(options: dict[str, Any], error: type[Exception], words: str) -> None:
    minimize: Any = gpuopt.minimize
    with pytest.raises(error, match=words):
        minimize(**{"fun": bowl, "x0": np.zeros(2), "rule": RULE} | options)


def test_methods_are_checked_when_they_are_made() -> None:
    with pytest.raises(TypeError, match=r"minimizer: rule: <class .*Adam'>, expected a rule"):
        gpuopt.minimizer(gpuopt.Adam)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps: -1, expected a whole number"):
        gpuopt.minimizer(RULE, steps=-1)
