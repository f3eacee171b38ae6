"""Bounds of a minimization, as SciPy writes them: two arrays, and a rule whose steps end within them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import current, namespace
from gpuopt.transforms import Chain, Transform, chain

if TYPE_CHECKING:
    from gpuopt.rules.base import Rule


def limits(bounds: Any, x: Any) -> tuple[Any, Any]:
    """The bounds as two arrays like ``x``."""
    if isinstance(x, Mapping | list | tuple):
        raise TypeError("bounds: x0 is a nesting, expected one array; or a gpuopt.Box in the rule of each leaf")
    if x.dtype.kind == "c":
        raise TypeError("bounds: x0 is complex, expected real numbers; gpuopt.Magnitude in a chain bounds the modulus")
    xp = namespace(x)
    try:
        both = _both_limits(bounds, x)
        low, high = (np.broadcast_to(np.asarray(b, x.dtype), x.shape).copy() for b in both)
    except (TypeError, ValueError):
        raise ValueError(
            f"bounds: {bounds!r:.80}, expected {x.size} pairs (low, high) of real numbers, one for each element of x0, None for "
            f"no bound; or scipy.optimize.Bounds of shape {x.shape}"
        ) from None
    if not (low <= high).all():
        raise ValueError("bounds: a low one is above its high one, or NaN, expected low <= high")
    with current(x):
        return xp.asarray(low), xp.asarray(high)


def _both_limits(bounds: Any, x: Any) -> tuple[Any, Any]:
    """Return the bounds as two NumPy arrays; raise TypeError or ValueError if they do not fit ``x``."""
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        both = np.asarray(bounds.lb), np.asarray(bounds.ub)
    else:
        both = _both_of_pairs(bounds, x)
    if any(own.dtype.kind not in "fiub" for own in both):
        raise TypeError
    return both


def _both_of_pairs(bounds: Any, x: Any) -> tuple[Any, Any]:
    """Return lower and upper bounds from pairs, in the shape of ``x``; None is infinity."""
    pairs = [(-np.inf if low is None else low, np.inf if high is None else high) for low, high in bounds]
    if len(pairs) != x.size:
        raise ValueError
    low, high = zip(*pairs, strict=True) if pairs else ((), ())
    return np.reshape(low, x.shape), np.reshape(high, x.shape)


def with_projection(rule: Rule, box: Transform) -> Rule:
    """Return the rule with a projection after it; in a chain, before averages, which are to be of projected points."""
    members: tuple[Any, ...] = rule.members if isinstance(rule, Chain) else (rule,)
    i = next(
        (
            i
            for i, member in enumerate(members)
            if isinstance(member, Transform) and type(member).evaluation is not Transform.evaluation
        ),
        len(members),
    )
    return chain(*members[:i], box, *members[i:])


def is_within(x: Any, low: Any, high: Any) -> bool:
    """Whether all elements are within the bounds; False for NaN."""
    with current(x):
        return bool(((x >= low) & (x <= high)).all())
