"""A function and its gradient, minimized in one call, by SciPy's conventions; and any rule as a method of SciPy's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gpuopt.arrays import current, describe, is_cupy, is_numpy, namespace, to_numpy
from gpuopt.optimizer import Optimizer
from gpuopt.rules.base import Rule
from gpuopt.transforms import TRANSFORMS, chain
from gpuopt.trees import flatten

if TYPE_CHECKING:
    from gpuopt.groups import Rules

Callback: TypeAlias = Callable[..., object]

MESSAGES = {
    0: "Optimization terminated successfully: the gradient is within tol.",
    1: "Maximum number of iterations has been exceeded.",
    2: "The function or its gradient is not finite.",
    99: "`callback` raised `StopIteration`.",
}
"""By status; 1 without a tolerance is what was asked for."""


class _Result(dict[str, Any]):
    """Stands in for SciPy's OptimizeResult where SciPy is not installed: a dict whose keys are attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no attribute {name!r}, expected one of {', '.join(self)}") from None


def minimize(
    fun: Callable[..., Any],
    x0: Any,
    rule: Rules,
    *,
    args: tuple[Any, ...] = (),
    jac: bool | Callable[..., Any] = True,
    steps: int = 1000,
    tol: float | None = None,
    bounds: Any = None,
    callback: Callback | None = None,
) -> Any:
    """Minimize a function whose gradient is known.

    Parameters
    ----------
    fun
        ``fun(x, *args)`` returns the value and the gradient, or with a function for ``jac`` the value alone.
    x0
        Where to start: an array of NumPy or CuPy, or a nesting of such; integers become float64. It is not changed.
    rule
        As for `Optimizer`.
    args
        More arguments of ``fun`` and ``jac``.
    jac
        True, or ``jac(x, *args)`` that returns the gradient.
    steps
        How many steps are taken at most.
    tol
        End where no element of the gradient is larger in size; at a bound, what points out of it does not count.
    bounds
        Of a single array: pairs ``(low, high)``, one for each element, None for no bound; or what has ``lb`` and ``ub``, as
        ``scipy.optimize.Bounds``. Each step ends with the projection.
    callback
        Called after each step, as ``callback(intermediate_result=result)`` if that is the name of its argument, with ``x`` and
        ``fun``; otherwise as ``callback(x)``. StopIteration ends the minimization.

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``x``, ``fun``, ``jac``, ``nit``, ``nfev``, ``njev``, ``status``, ``success`` and ``message``; a dict with the same
        attributes where SciPy is not installed. ``x`` is what the rule says to evaluate with. Without ``tol``, to take all steps
        is success.

    Raises
    ------
    TypeError, ValueError
        If there is no gradient, bounds do not fit, or as `Optimizer`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> def bowl(x):
    ...     return np.sum((x - 3) ** 2), 2 * (x - 3)
    >>> found = gpuopt.minimize(bowl, np.zeros(2), gpuopt.Adam(lr=0.1), steps=500, tol=1e-6, bounds=[(None, 2), (0, None)])
    >>> found.x.round(4), found.success
    (array([2., 3.]), True)

    """
    evaluate = _evaluation(fun, jac, args)
    given: Any = steps
    if isinstance(given, bool) or not isinstance(given, int | np.integer) or given < 0:
        raise ValueError(f"steps: {steps!r:.80}, expected a whole number from 0 on")
    tree, found = flatten(x0, "x0")
    x = tree.build([_start(value, tree.name(i, "x0")) for i, value in enumerate(found)])
    low, high = (None, None) if bounds is None else _limits(bounds, x)
    if low is not None:
        if not isinstance(rule, Rule):
            raise TypeError("bounds: several rules, expected one; or a gpuopt.Box in the rule of each leaf")
        with current(x):
            x[...] = namespace(x).clip(x, low, high)
        rule = chain(rule, TRANSFORMS["Box"](low, high))
    optimizer = Optimizer(x, rule)
    tell = _telling(callback)

    def is_small(gradient: Any) -> bool:
        if tol is None:
            return False
        if low is not None:
            with current(x):
                gradient = x - namespace(x).clip(x - gradient, low, high)
        return all(_largest(g) <= tol for g in tree.leaves_of(gradient, "gradient"))

    value, gradient = evaluate(x)
    calls, status = 1, 1
    while True:
        if not (np.isfinite(value) and all(map(_is_finite, tree.leaves_of(gradient, "gradient")))):
            status = 2
        elif is_small(gradient):
            status = 0
        if status != 1 or optimizer.steps == steps:
            break
        optimizer.step(gradient)
        value, gradient = evaluate(x)
        calls += 1
        if tell is not None:
            try:
                tell(_result(x=_copied(tree, x), fun=value))
            except StopIteration:
                status = 99
                break
    best = optimizer.evaluation()
    if any(a is not b for a, b in zip(tree.leaves_of(best, "x"), tree.leaves_of(x, "x"), strict=True)):
        value, gradient = evaluate(best)
        calls += 1
    done = status == 0 or (status == 1 and tol is None)
    message = "All steps were taken." if done and status else MESSAGES[status]
    return _result(
        x=best,
        fun=value,
        jac=gradient,
        nit=optimizer.steps,
        nfev=calls,
        njev=calls,
        status=0 if done else status,
        success=done,
        message=message,
    )


def minimizer(rule: Rule, *, steps: int = 1000) -> Callable[..., Any]:
    """Return a rule as a method for ``scipy.optimize.minimize``.

    Parameters
    ----------
    rule
        For the one array that SciPy minimizes over.
    steps
        How many steps are taken at most; ``options={"maxiter": N}`` says otherwise.

    Returns
    -------
    callable
        For ``scipy.optimize.minimize(fun, x0, jac=..., method=...)``; its ``tol``, ``bounds`` and ``callback`` are those of
        `gpuopt.minimize`.

    Raises
    ------
    TypeError
        When it is called: without a gradient, with constraints other than bounds, or with an option that it does not have.

    Examples
    --------
    >>> import gpuopt
    >>> method = gpuopt.minimizer(gpuopt.Adam(lr=0.1), steps=500)
    >>> from scipy.optimize import minimize, rosen, rosen_der  # doctest: +SKIP
    >>> minimize(rosen, [1.3, 0.7], jac=rosen_der, method=method).success  # doctest: +SKIP
    True

    """

    def method(
        fun: Callable[..., Any],
        x0: Any,
        args: tuple[Any, ...] = (),
        *,
        jac: Any = None,
        bounds: Any = None,
        callback: Callback | None = None,
        constraints: Any = (),
        tol: float | None = None,
        maxiter: int | None = None,
        hess: Any = None,  # noqa: ARG001 - SciPy gives it to every method
        hessp: Any = None,  # noqa: ARG001
        disp: bool = False,
        **options: Any,
    ) -> Any:
        if options:
            raise TypeError(
                f"options: {', '.join(options)}, expected maxiter, tol and disp alone; the rule has the others"
            )
        if constraints is not None and np.size(constraints):
            raise TypeError("constraints: a rule knows bounds alone; expected none, or a transform in gpuopt.chain")
        if jac is None:
            raise TypeError(
                "jac: no gradient, expected jac=True or a function; gpuopt takes gradients, it computes none"
            )
        found = minimize(
            fun,
            np.array(x0, np.float64),
            rule,
            args=tuple(args),
            jac=jac,
            steps=steps if maxiter is None else maxiter,
            tol=tol,
            bounds=bounds,
            callback=callback,
        )
        if disp:
            print(f"{found.message}\n  fun: {found.fun}\n  nit: {found.nit}\n  nfev: {found.nfev}")  # noqa: T201
        return found

    return method


def _evaluation(fun: Any, jac: Any, args: tuple[Any, ...]) -> Callable[[Any], tuple[float, Any]]:
    """A function that returns value and gradient."""
    if not callable(fun):
        raise TypeError(f"fun: {fun!r:.80}, expected a function")
    if callable(jac):
        return lambda x: (_number(fun(x, *args)), jac(x, *args))
    if jac is not True:
        raise TypeError(f"jac: {jac!r:.80}, expected True or a function; gpuopt takes gradients, it computes none")

    def both(x: Any) -> tuple[float, Any]:
        found = fun(x, *args)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise TypeError(f"fun: returned {describe(found)}, expected the value and the gradient, as jac=True says")
        return _number(found[0]), found[1]

    return both


def _number(value: Any) -> float:
    if isinstance(value, float | int):
        return float(value)
    array = to_numpy(value)
    if array.size != 1:
        raise TypeError(f"fun: returned a value of shape {array.shape}, expected a number")
    return float(array.reshape(()))


def _start(x: Any, name: str) -> Any:
    """A copy to begin with."""
    x = np.asarray(x) if isinstance(x, int | float | list | tuple | np.generic) else x
    if not (is_numpy(x) or is_cupy(x)):
        raise TypeError(f"{name}: {describe(x)}, expected an array of NumPy or CuPy; gpuopt.update takes others")
    with current(x):
        return x.astype(np.float64 if x.dtype.kind in "iub" else x.dtype)


def _limits(bounds: Any, x: Any) -> tuple[Any, Any]:
    """The bounds as two arrays like ``x``."""
    if isinstance(x, Mapping | list | tuple):
        raise TypeError("bounds: x0 is a nesting, expected one array; or a gpuopt.Box in the rule of each leaf")
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        both: tuple[Any, ...] = (bounds.lb, bounds.ub)
    else:
        pairs = [(-np.inf if low is None else low, np.inf if high is None else high) for low, high in bounds]
        if len(pairs) != x.size:
            raise ValueError(f"bounds: {len(pairs)} pairs, expected {x.size}, one for each element of x0")
        both = tuple(np.reshape(own, x.shape) for own in zip(*pairs, strict=True)) if pairs else (x, x)
    xp = namespace(x)
    with current(x):
        low, high = (xp.asarray(np.broadcast_to(np.asarray(b, x.dtype), x.shape).copy()) for b in both)
        fits = bool((low <= high).all())
    if not fits:
        raise ValueError("bounds: a low one is above its high one, expected low <= high")
    return low, high


def _telling(callback: Any) -> Callable[[Any], object] | None:
    """A callback, called as SciPy would."""
    if callback is None:
        return None
    if not callable(callback):
        raise TypeError(f"callback: {callback!r:.80}, expected a function")
    try:
        names = set(inspect.signature(callback).parameters)
    except (TypeError, ValueError):
        names = set()
    if names == {"intermediate_result"}:
        return lambda result: callback(intermediate_result=result)
    return lambda result: callback(result.x)


def _largest(g: Any) -> float:
    with current(g):
        return float(abs(g).max()) if g.size else 0.0


def _is_finite(g: Any) -> bool:
    with current(g):
        return bool(namespace(g).isfinite(g).all())


def _copied(tree: Any, x: Any) -> Any:
    return tree.build([_start(own, "x") for own in tree.leaves_of(x, "x")])


def _result(**found: Any) -> Any:
    try:
        from scipy.optimize import OptimizeResult
    except ImportError:
        return _Result(found)
    return OptimizeResult(found)
