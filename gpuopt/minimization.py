"""A function and its gradient, minimized in one call, by SciPy's conventions; and any rule as a method of SciPy's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from decimal import Decimal
from numbers import Number, Real
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gpuopt.arrays import current, describe, detached, is_array, is_cupy, is_numpy, namespace, to_numpy
from gpuopt.bounds import is_within, limits, with_projection
from gpuopt.engines.dtypes import DTYPES
from gpuopt.optimizer import Optimizer
from gpuopt.rules.base import Rule
from gpuopt.rules.hyper import as_float
from gpuopt.suggest import called_rightly
from gpuopt.transforms import TRANSFORMS
from gpuopt.trees import flatten, flattened

if TYPE_CHECKING:
    from gpuopt.groups import Rules
    from gpuopt.trees import Tree

Callback: TypeAlias = Callable[..., object]

MESSAGES = {
    0: "Optimization terminated successfully: the gradient is within tol.",
    1: "Maximum number of iterations has been exceeded.",
    2: "The function or its gradient is not finite.",
    99: "`callback` raised `StopIteration`.",
}
"""Messages by status; without a tolerance, status 1 is a success."""


class _Result(dict[str, Any]):
    """SciPy's OptimizeResult if SciPy is not installed: a dict whose keys are attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no attribute {name!r}, expected one of {', '.join(self)}") from None


@called_rightly("minimize")
def minimize(
    fun: Callable[..., Any],
    x0: Any,
    rule: Rules,
    *,
    args: Any = (),
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
        ``fun(x, *args)`` returns the value and the gradient, or with a function for ``jac`` the value alone. ``x`` is a copy.
    x0
        Where to start: an array of NumPy or CuPy, or a nesting of such; a list of numbers is an array; integers become
        float64. It is not changed.
    rule
        As for `Optimizer`.
    args
        More arguments of ``fun`` and ``jac``; what is no tuple is the only one.
    jac
        True, or ``jac(x, *args)`` that returns the gradient.
    steps
        How many steps are taken at most.
    tol
        End where no element of the gradient is larger in size; at a bound, what points out of it does not count.
    bounds
        Of a single array: pairs ``(low, high)``, one for each element, None for no bound; or what has ``lb`` and ``ub``, as
        ``scipy.optimize.Bounds``. Each step ends with the projection, before averages are taken.
    callback
        Called after each step, as ``callback(intermediate_result=result)`` if that is the name of its argument, with ``x`` and
        ``fun``; otherwise as ``callback(x)``. StopIteration ends the minimization.

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``x``, ``fun``, ``jac``, ``nit``, ``nfev``, ``njev``, ``status``, ``success`` and ``message``; a dict with the same
        attributes where SciPy is not installed. ``x`` is what the rule says to evaluate with, where that is within the bounds.
        Without ``tol``, to take all steps is success.

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
    steps, tol = _checked_steps(steps, "steps"), _checked_tol(tol)
    tree, found = flatten(_vector(x0), "x0")
    evaluate = _evaluation(fun, jac, args if isinstance(args, tuple) else (args,), tree)
    x = tree.build([_start(value, tree.name(i, "x0")) for i, value in enumerate(found)])
    low, high = (None, None) if bounds is None else limits(bounds, x)
    if low is not None:
        if not isinstance(rule, Rule):
            raise TypeError("bounds: several rules, expected one; or a gpuopt.Box in the rule of each leaf")
        with current(x):
            x[...] = namespace(x).clip(x, low, high)
        rule = with_projection(rule, TRANSFORMS["Box"](low, high))
    optimizer = Optimizer(x, rule)
    tell = _telling(callback)

    def is_small(gradient: Any) -> bool:
        if tol is None:
            return False
        if low is not None:
            with current(x):
                gradient = x - namespace(x).clip(x - gradient, low, high)
        return all(_largest(g) <= tol for g in tree.leaves_of(gradient, "gradient") if g is not None)

    value, gradient = evaluate(x)
    calls, status = 1, 1
    while True:
        if not (
            np.isfinite(value) and all(_is_finite(g) for g in tree.leaves_of(gradient, "gradient") if g is not None)
        ):
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
        value_there, gradient_there = evaluate(best)
        calls += 1
        # An average whose points were not all within the bounds may be projected to anywhere on them.
        if low is not None and not value_there <= value and is_within(x, low, high):
            best = x
        else:
            value, gradient = value_there, gradient_there
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


@called_rightly("minimizer")
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
        If the rule is none. When it is called: without a gradient, with constraints other than bounds, or with an option that it does not have.

    Examples
    --------
    >>> import gpuopt
    >>> method = gpuopt.minimizer(gpuopt.Adam(lr=0.1), steps=500)
    >>> from scipy.optimize import minimize, rosen, rosen_der  # doctest: +SKIP
    >>> minimize(rosen, [1.3, 0.7], jac=rosen_der, method=method).success  # doctest: +SKIP
    True

    """

    if not isinstance(rule, Rule | Mapping):
        raise TypeError(f"minimizer: rule: {rule!r:.80}, expected a rule such as Adam()")
    most = _checked_steps(steps, "steps")

    def method(
        fun: Callable[..., Any],
        x0: Any,
        args: Any = (),
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
            np.array(x0, np.complex128 if np.iscomplexobj(x0) else np.float64),
            rule,
            args=args,
            jac=jac,
            steps=most if maxiter is None else _checked_steps(maxiter, "maxiter"),
            tol=tol,
            bounds=bounds,
            callback=callback,
        )
        if disp:
            print(f"{found.message}\n  fun: {found.fun}\n  nit: {found.nit}\n  nfev: {found.nfev}")  # noqa: T201
        return found

    return method


def _checked_steps(steps: Any, name: str) -> int:
    if isinstance(steps, float | np.floating) and float(steps).is_integer():
        steps = int(steps)
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 0:
        raise ValueError(f"{name}: {steps!r:.80}, expected a whole number from 0 on")
    return int(steps)


def _checked_tol(tol: Any) -> float | None:
    if tol is None:
        return None
    if isinstance(tol, bool) or not isinstance(tol, Real):
        raise TypeError(f"tol: {tol!r:.80}, expected a number from 0 on, or None")
    number = as_float(tol)
    if not number >= 0:
        raise ValueError(f"tol: {tol!r:.80}, expected a number from 0 on, or None")
    return number


def _vector(x0: Any) -> Any:
    """A list of numbers, or of lists of such, as an array; anything else as it is."""
    if not isinstance(x0, list | tuple) or not x0:
        return x0
    numbers, _ = flattened(x0)
    if not all(isinstance(value, Number | np.generic) for value in numbers):
        return x0
    try:
        return np.asarray(x0)
    except ValueError:
        raise ValueError("x0: lists of numbers of several lengths, expected arrays in them, or one array") from None


def _evaluation(fun: Any, jac: Any, args: tuple[Any, ...], tree: Tree) -> Callable[[Any], tuple[float, Any]]:
    """A function that returns value and gradient.

    The user's functions get copies: some change what they are given, and many keep it, to compare it with the next one.
    """
    if not callable(fun):
        raise TypeError(f"fun: {fun!r:.80}, expected a function")
    if callable(jac):
        return lambda x: (
            _number(fun(_copied(tree, x), *args)),
            _gradient(jac(_copied(tree, x), *args), tree, "jac"),
        )
    if jac is not True:
        raise TypeError(f"jac: {jac!r:.80}, expected True or a function; gpuopt takes gradients, it computes none")

    def both(x: Any) -> tuple[float, Any]:
        found = fun(_copied(tree, x), *args)
        if not (isinstance(found, tuple | list) and len(found) == 2):
            raise TypeError(
                f"fun: returned {describe(found)}, expected the value and the gradient, as jac=True says; or jac=FUNCTION"
            )
        return _number(found[0]), _gradient(found[1], tree, "fun")

    return both


def _number(value: Any) -> float:
    if isinstance(value, Real | Decimal):
        return as_float(value)
    try:
        array = to_numpy(detached(value))
        number = float(array.reshape(()).astype(np.float64, casting="same_kind")) if array.size == 1 else None
    except (TypeError, ValueError):
        raise TypeError(f"fun: returned {value!r:.80} as the value, expected a real number") from None
    if number is None:
        raise TypeError(f"fun: returned a value of shape {array.shape}, expected a number")
    return number


def _gradient(gradient: Any, tree: Tree, name: str) -> Any:
    """What a function returned as the gradient, with arrays for lists of numbers; None in a nesting leaves a leaf alone."""
    leaves = tree.leaves_of(gradient, "gradient")
    for i, g in enumerate(leaves):
        if isinstance(g, list | tuple | Number):
            leaves[i] = np.asarray(g)
        elif not (is_array(g) or (g is None and len(leaves) > 1)):
            raise TypeError(f"{name}: returned {describe(g)} as {tree.name(i, 'gradient')}, expected an array like x0")
    return tree.build(leaves)


def _start(x: Any, name: str) -> Any:
    """Return a copy of the starting point."""
    x = np.asarray(x) if isinstance(x, Number | np.generic) else x
    if not (is_numpy(x) or is_cupy(x)):
        raise TypeError(f"{name}: {describe(x)}, expected an array of NumPy or CuPy; gpuopt.update takes others")
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: a masked array, whose mask would get lost, expected a plain one, as x.filled(0) is")
    if is_numpy(x):
        x = np.asarray(x)  # a matrix has other operators
    dtype = np.dtype(np.float64) if x.dtype.kind in "iub" else x.dtype.newbyteorder("=")
    if str(dtype) not in DTYPES:
        raise TypeError(f"{name}: dtype {dtype}, expected {', '.join(DTYPES)}, or integers")
    with current(x):
        return x.astype(dtype)


def _telling(callback: Any) -> Callable[[Any], object] | None:
    """Wrap a callback: it is given the result so far, or the point, by the name of its argument, as SciPy decides. None stays None."""
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
