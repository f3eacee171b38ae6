"""The leaves as the user holds them: each is to stay the array that it was when an optimizer was made."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import numpy as np

from gpuopt.arrays import describe, hindrance_of
from gpuopt.engines.memory import geometries
from gpuopt.leaves import gradient, parameters, with_article
from gpuopt.lending import Lenders
from gpuopt.suggest import listed


class Held:
    """The parameters as the user holds them, each to be the array that it was when it was first looked at.

    Attributes
    ----------
    tree
        Their nesting.
    arrays
        The leaves, ready to be updated: of a subclass of `numpy.ndarray`, the plain array.
    originals
        The leaves themselves; of one that lends its memory, the array over it.
    lenders
        Those that do.

    """

    def __init__(self, params: Any) -> None:
        """Find and check them; see `parameters`."""
        self._params = params
        self.tree, self.arrays = parameters(params, in_place=True)
        given = self.tree.leaves_of(params, "params")
        self.lenders = Lenders(given, self.arrays)
        self.originals = self.lenders.arrays_of(given) if self.lenders.tensors else given
        self._known = geometries(self.originals)
        self._leaves_now = partial(self.tree.spec.flatten_up_to, params)

    def now(self) -> list[Any]:
        """Return the leaves that the user holds now; of one that lends its memory, the array over it."""
        try:
            found = self._leaves_now()
        except (RecursionError, TypeError, ValueError):
            found = self.tree.leaves_of(self._params, "params")
        return self.lenders.arrays_of(found) if self.lenders.tensors else found

    def gradients(self) -> list[Any]:
        """Return the gradients that the leaves have themselves.

        Raises
        ------
        TypeError
            If one is not of a kind that has.

        """
        if len(self.lenders.tensors) < len(self.arrays):
            i, p = next((i, p) for i, p in enumerate(self.originals) if not self.lenders.lends(i))
            raise TypeError(
                f"step: no gradients given, and {self.tree.name(i, 'params')}, {with_article(describe(p))}, has none of its own; "
                "expected opt.step(grads)"
            )
        return self.lenders.gradients()

    def check(self, i: int, p: Any) -> None:
        """Raise ValueError unless ``p``, which the user now holds as leaf ``i``, is the array that it was."""
        if p is self.originals[i]:
            change = _change_of(p, self._known[i])
        else:
            change = (
                "another array than the one that this optimizer updates; write into that one, as "
                "np.maximum(w, 0, out=w) does, or make a new optimizer"
            )
        if change:
            raise ValueError(f"{self.tree.name(i, 'params')}: {change}")

    def check_all(self, *, where: bool = True) -> None:
        """Raise ValueError unless the user still holds the arrays that they were, and, if asked for, where they were."""
        now = self.now()
        if all(map(operator.is_, now, self.originals)) and (not where or self._are_where_they_were(now)):
            return
        for i, p in enumerate(now):
            self.check(i, p)

    def _are_where_they_were(self, arrays: list[Any]) -> bool:
        return geometries(arrays) == self._known and all(
            x.flags.writeable if type(x) is np.ndarray else not hindrance_of(x) for x in arrays
        )

    def not_finite(self, bad: list[int], step: int) -> FloatingPointError:
        """Return the error that names the leaves whose gradients were not finite at a step."""
        names = listed([self.tree.name(i, "grads") for i in bad])
        return FloatingPointError(f"{names}: NaN or infinity at step {step}; that step changed nothing")

    def checked(self, i: int, g: Any, p: Any) -> Any:
        """Check a parameter and its gradient, and return the gradient as an array that fits; see `Step.bind`."""
        self.check(i, p)
        return self.fitting(i, g)

    def fitting(self, i: int, g: Any) -> Any:
        """Check a gradient, and return it as an array that fits, or None; see `gradient`."""
        return None if g is None else gradient(g, self.arrays[i], self.tree, i)


def _change_of(x: Any, known: tuple[Any, ...]) -> str | None:
    """Return what has changed about a parameter since it had this geometry, and what to do; None if nothing has."""
    (now,) = geometries([x])
    if now != known:
        names = ("memory", "shape", "strides", "dtype")
        changed = {name: (new, old) for name, new, old in zip(names, now, known, strict=True) if new != old}
        shown = {name: changed[name] for name in ("shape", "dtype", "strides") if name in changed}
        what = ", ".join(f"{name} {new}, expected {old}" for name, (new, old) in shown.items())
        return f"{what or 'its memory is at another address'} as when this optimizer was made; make a new optimizer"
    if hindrance := hindrance_of(x):
        return f"{hindrance} by now, expected an array to update in place"
    return None
