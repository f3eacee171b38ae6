"""What a parameter and its gradient must be; every refusal names the leaf, what was given and what was expected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import (
    describe,
    detached,
    dtype_of,
    geometry,
    hindrance_of,
    is_array,
    is_cupy,
    is_numpy,
    is_real,
    place,
)
from gpuopt.engines.complexes import is_complex
from gpuopt.engines.dtypes import DTYPES
from gpuopt.engines.memory import first_overlap
from gpuopt.engines.trace import refusal_of_complex
from gpuopt.suggest import listed
from gpuopt.trees import flatten

if TYPE_CHECKING:
    from gpuopt.rules.base import Rule
    from gpuopt.trees import Tree


EXPECTED = " or ".join(", ".join(DTYPES).rsplit(", ", 1))
"""Dtypes of parameters, for messages."""


def parameters(params: Any, *, in_place: bool) -> tuple[Tree, list[Any]]:
    """Find the leaves of a nesting of parameters and check each of them.

    Parameters
    ----------
    params
        Arrays of float32, float64, complex64 or complex128, in any nesting.
    in_place
        Whether they are going to be updated in place, and so must be writable and must not share memory.

    Raises
    ------
    TypeError
        If a leaf is no array, or of another dtype.
    ValueError
        If there is no leaf, or ``in_place`` and a leaf is read-only or shares memory with another one.

    """
    tree, leaves = flatten(params)
    if not leaves:
        raise ValueError(f"params: {params!r} has no leaf, expected at least one array")
    arrays = [_parameter(leaf, tree.name(i, "params"), in_place=in_place) for i, leaf in enumerate(leaves)]
    if in_place:
        _check_distinct(tree, arrays)
    return tree, arrays


def _parameter(leaf: Any, name: str, *, in_place: bool) -> Any:
    if not is_array(leaf):
        hint = "; numpy.array(x) makes one" if isinstance(leaf, float | int | list | tuple | np.generic) else ""
        raise TypeError(f"{name}: {describe(leaf)}, expected an array of {EXPECTED}{hint}")
    if dtype_of(leaf) not in DTYPES:
        raise TypeError(f"{name}: dtype {leaf.dtype}, expected {EXPECTED}")
    _check_unmasked(leaf, name)
    hindrance = hindrance_of(leaf) if in_place else None
    if hindrance == "requires grad":
        raise ValueError(f"{name}: {_a(describe(leaf))} that requires grad, expected one without; x.detach() is one")
    if hindrance:
        cure = "copy it" if is_numpy(leaf) else "use gpuopt.init and gpuopt.update, which return new arrays"
        raise ValueError(f"{name}: a read-only {describe(leaf)}, expected one that can be updated in place; {cure}")
    return np.asarray(leaf) if is_numpy(leaf) else leaf  # of a subclass of numpy.ndarray, the plain array


def check_complex(tree: Tree, arrays: list[Any], rules: list[Rule], groups: list[int]) -> None:
    """Raise TypeError, which names the leaf, if a complex leaf has a rule that does what is refused."""
    first: dict[int, int] = {}
    for i, (a, group) in enumerate(zip(arrays, groups, strict=True)):
        if is_complex(a):
            first.setdefault(group, i)
    for group, i in first.items():
        if why := refusal_of_complex(rules[group]):
            raise TypeError(f"{tree.name(i, 'params')}: dtype {arrays[i].dtype}: {why}")


def gradient(g: Any, p: Any, tree: Tree, i: int) -> Any:
    """Check the gradient of the parameter ``p``, leaf ``i`` of ``tree``; a NumPy scalar becomes an array.

    Raises
    ------
    TypeError
        If it is no array, not of the parameter's library, or not of a real dtype.
    ValueError
        If it has another shape or lives on another device.

    """
    if type(g) is type(p) is np.ndarray and g.dtype == p.dtype and g.shape == p.shape:
        return g  # nearly all gradients: the full check is ten times as slow
    name = tree.name(i, "grads")
    if isinstance(g, np.generic) and is_numpy(p):
        g = np.asarray(g)
    if not is_array(g):
        raise TypeError(f"{name}: {describe(g)}, expected {_a(describe(p))} like its parameter")
    if (given := place(g)) != (expected := place(p)):
        error = ValueError if given.partition(":")[0] == expected.partition(":")[0] else TypeError
        raise error(f"{name}: {_a(describe(g))}, expected {_a(describe(p))} like its parameter")
    if g.shape != p.shape:
        raise ValueError(f"{name}: shape {tuple(g.shape)}, expected {tuple(p.shape)}")
    if is_complex(p) and not is_complex(g):
        raise TypeError(
            f"{name}: dtype {g.dtype}, expected a complex one, best {p.dtype} like its parameter; the gradient of a real "
            "loss by the conjugate, as torch returns it (of JAX's gradient take the conjugate)"
        )
    if not is_complex(p) and not is_real(g):
        raise TypeError(f"{name}: dtype {g.dtype}, expected a real one, best {p.dtype} like its parameter")
    _check_unmasked(g, name)
    return np.asarray(g) if is_numpy(g) else detached(g)


class Held:
    """The parameters as the user holds them, each to be the array that it was when it was first looked at.

    Attributes
    ----------
    tree
        Their nesting.
    arrays
        The leaves, ready to be updated: of a subclass of `numpy.ndarray`, the plain array.
    originals
        The leaves themselves.

    """

    def __init__(self, params: Any) -> None:
        """Find and check them; see `parameters`."""
        self._params = params
        self.tree, self.arrays = parameters(params, in_place=True)
        self.originals = self.now()
        self._known = list(map(geometry, self.originals))

    def now(self) -> list[Any]:
        """Return the leaves that the user holds now."""
        return self.tree.leaves_of(self._params, "params")

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

    def check_all(self) -> None:
        """Raise ValueError unless the user still holds the arrays that they were."""
        for i, p in enumerate(self.now()):
            self.check(i, p)

    def not_finite(self, bad: list[int], step: int) -> FloatingPointError:
        """Return the error that names the leaves whose gradients were not finite at a step."""
        names = listed([self.tree.name(i, "grads") for i in bad])
        return FloatingPointError(f"{names}: NaN or infinity at step {step}; that step changed nothing")

    def checked(self, i: int, g: Any, p: Any) -> Any:
        """Check a parameter and its gradient, and return the gradient as an array that fits; see `Step.bind`."""
        self.check(i, p)
        return None if g is None else gradient(g, self.arrays[i], self.tree, i)


def _change_of(x: Any, known: tuple[Any, ...]) -> str | None:
    """Return what has changed about a parameter since it had this `geometry`, and what to do; None if nothing has."""
    if (now := geometry(x)) != known:
        names = ("memory", "shape", "strides", "dtype")
        changed = {name: (new, old) for name, new, old in zip(names, now, known, strict=True) if new != old}
        shown = {name: changed[name] for name in ("shape", "dtype", "strides") if name in changed}
        what = ", ".join(f"{name} {new}, expected {old}" for name, (new, old) in shown.items())
        return f"{what or 'its memory is at another address'} as when this optimizer was made; make a new optimizer"
    if hindrance := hindrance_of(x):
        return f"{hindrance} by now, expected an array to update in place"
    return None


def _check_unmasked(x: Any, name: str) -> None:
    if type(x) is not np.ndarray and isinstance(x, np.ma.MaskedArray):  # numpy.ma is slow to be imported
        raise TypeError(f"{name}: a masked array, whose mask would get lost, expected a plain one, as x.filled(0) is")


def _check_distinct(tree: Tree, arrays: list[Any]) -> None:
    first: dict[int, int] = {}
    by_place: dict[str, list[int]] = {}
    for i, a in enumerate(arrays):
        by_place.setdefault(place(a), []).append(i)
        if (j := first.setdefault(id(a), i)) != i:
            raise ValueError(f"{tree.name(j, 'params')} and {tree.name(i, 'params')} are the same array; give it once")
    for indices in by_place.values():
        if not (is_numpy(a := arrays[indices[0]]) or is_cupy(a)):
            continue
        if (pair := first_overlap([arrays[i] for i in indices])) is not None:
            a, b = (tree.name(indices[k], "params") for k in pair)
            if a == b:
                raise ValueError(
                    f"{a}: its elements share memory (a broadcast array?), expected distinct ones; copy it"
                )
            raise ValueError(f"{a} and {b} share memory, expected distinct arrays; copy one of them")


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
