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
        ({"bounds": [(0, 1)]}, ValueError, "bounds: 1 pairs, expected 2"),
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
