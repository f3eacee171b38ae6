"""Checks of parameters and gradients; each error names the leaf, what was given and what was expected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.advice import hint_for, hint_for_container, hint_for_dtype, is_lazy, library_of
from gpuopt.arrays import (
    are_together,
    describe,
    detached,
    dtype_of,
    hindrance_of,
    is_array,
    is_cupy,
    is_deleted,
    is_numpy,
    is_real,
    is_tensor,
    name_of,
    place,
    shared,
)
from gpuopt.engines import storage
from gpuopt.engines.complexes import is_complex
from gpuopt.engines.dtypes import DTYPES
from gpuopt.engines.memory import first_overlap
from gpuopt.engines.program.trace import refusal_of_complex
from gpuopt.lending import readable, view_of, why_without_memory
from gpuopt.rules.formula import Formula
from gpuopt.rules.slots import Given, starts
from gpuopt.trees import flatten, flattened

if TYPE_CHECKING:
    from collections.abc import Collection

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
    dtypes = {leaf.dtype for leaf in leaves if type(leaf) is np.ndarray}
    known = {dtype for dtype in dtypes if name_of(dtype) in DTYPES}
    arrays = [
        leaf  # nearly all need no further check: names and words are slow
        if type(leaf) is np.ndarray and leaf.flags.writeable and leaf.dtype in known
        else _parameter(leaf, tree.name(i, "params"), in_place=in_place)
        for i, leaf in enumerate(leaves)
    ]
    if in_place:
        _check_distinct(tree, arrays)
    return tree, arrays


def _parameter(leaf: Any, name: str, *, in_place: bool) -> Any:
    leaf = _lent(leaf, name) if in_place else leaf
    if not is_array(leaf) or is_lazy(leaf) or (isinstance(leaf, np.ndarray) and hint_for(leaf)):
        hint = (
            "; numpy.array(x) makes one"
            if isinstance(leaf, float | int | np.generic)
            else _hint_for_rule(leaf, in_place=in_place) or hint_for(leaf) or hint_for_container(leaf)
        )
        kind = type(leaf).__name__ if isinstance(leaf, np.ndarray) and hint else describe(leaf)
        raise TypeError(f"{name}: {kind}, expected an array of {EXPECTED}{hint}")
    check_alive(leaf, name)
    if dtype_of(leaf) not in DTYPES:
        raise TypeError(f"{name}: dtype {leaf.dtype}, expected {EXPECTED}{hint_for_dtype(leaf)}")
    if is_cupy(leaf) and dtype_of(leaf) == "bfloat16":
        raise TypeError(
            f"{name}: dtype bfloat16 of CuPy, expected float16 or wider there; NumPy's arrays may be of bfloat16"
        )
    check_unmasked(leaf, name)
    hindrance = hindrance_of(leaf) if in_place else None
    if hindrance == "requires grad":
        raise ValueError(
            f"{name}: {with_article(describe(leaf))} that requires grad, expected one without; x.detach() is one"
        )
    if hindrance:
        cure = "copy it" if is_numpy(leaf) else "use gpuopt.init and gpuopt.update, which return new arrays"
        raise ValueError(f"{name}: a read-only {describe(leaf)}, expected one that can be updated in place; {cure}")
    return np.asarray(leaf) if is_numpy(leaf) else leaf  # of a subclass of numpy.ndarray, the plain array


def _hint_for_rule(x: Any, *, in_place: bool) -> str:
    """Return the end of a message: the order of the arguments, where a rule was given for the parameters."""
    if not isinstance(x, Formula):
        return ""
    return "; the parameters come first, then the rule" if in_place else "; the rule comes first, then the parameters"


def _lent(x: Any, name: str) -> Any:
    """The array over a tensor's memory."""
    if not is_tensor(x):
        return x
    if why := why_without_memory(x):
        cure = "; x.to_empty(device=...) gives it memory" if "meta device" in why else ""
        raise ValueError(f"{name}: a tensor {why}{cure}")
    if x.requires_grad and not x.is_leaf:
        raise ValueError(f"{name}: a tensor that was computed from others, expected a leaf; x.detach() is one")
    return view_of(x)


def check_rules(tree: Tree, arrays: list[Any], rules: list[Rule], groups: list[int]) -> None:
    """Check that each leaf can have its rule.

    Raises
    ------
    TypeError
        If a complex leaf has a rule that does what is refused; if what a rule has of the caller's is no array of real numbers.
    ValueError
        If the rule is not for leaves of that shape; if the caller's arrays are not like the leaves.

    """
    # Of many leaves few are unlike the others. The type comes first: dtypes of two libraries are not to be compared.
    kinds: dict[tuple[int, type, tuple[int, ...], Any], int] = {}
    for i, (a, group) in enumerate(zip(arrays, groups, strict=True)):
        kinds.setdefault((group, type(a), a.shape, a.dtype), i)
    for (group, _, shape, _), i in kinds.items():
        if why := rules[group].unfit(tuple(shape)):
            raise ValueError(f"{tree.name(i, 'params')}: shape {tuple(shape)}: {why}")
    for group, rule in enumerate(rules):
        for name, start in starts(rule.slots).items():
            if isinstance(start, Given):
                members = [i for i, own in enumerate(groups) if own == group]
                _check_given(start.value, name, tree, arrays, members)
    first: dict[int, int] = {}
    for (group, *_), i in kinds.items():
        if is_complex(arrays[i]):
            first.setdefault(group, i)
    for group, i in first.items():
        if why := refusal_of_complex(rules[group]):
            raise TypeError(f"{tree.name(i, 'params')}: dtype {arrays[i].dtype}: {why}")


def _check_given(value: Any, name: str, tree: Tree, arrays: list[Any], members: list[int]) -> None:
    """Check that the caller's arrays are like the leaves of a rule, by their names."""
    found = [value] * len(arrays) if hasattr(value, "shape") else tree.leaves_of(value, name)
    for i in members:
        own, leaf = found[i], tree.name(i, "params")
        if not is_array(own):
            raise TypeError(f"{name}: {describe(own)} for {leaf}, expected an array like the leaf")
        if tuple(own.shape) != tuple(arrays[i].shape):
            raise ValueError(
                f"{name}: an array of shape {tuple(own.shape)} for {leaf}, expected {tuple(arrays[i].shape)} like the leaf"
            )
        if not is_real(own):
            raise TypeError(f"{name}: an array of {own.dtype} for {leaf}, expected one of real numbers")
    if found[0] is not value and list(map(id, found)) != list(map(id, flattened(value)[0])):
        raise ValueError(f"{name}: leaves in another order than those of params, expected the same containers")


def check_precision(tree: Tree, arrays: list[Any], updated: Collection[int], precision: str) -> None:
    """Raise TypeError, which names the leaf, where a precision is not for it, or for none of them.

    ``updated`` are the leaves that are not frozen. Leaves of more than 16 bits are kept as they are beside those that a precision is for.
    """
    fitting = storage.FITTING.get(precision, ())
    own = {i: dtype_of(arrays[i]) for i in updated} if fitting else {}
    small = {i for i, dtype in own.items() if DTYPES[dtype].stored}
    wrong = sorted(i for i in small or own if own[i] not in fitting)
    for i in wrong:
        other = "; precision='stochastic' is for it, too" if own[i] in storage.FITTING["stochastic"] else ""
        raise TypeError(
            f"{tree.name(i, 'params')}: dtype {own[i]}, expected {' or '.join(fitting)} for precision={precision!r}{other}"
        )
    for i in (i for i in small if not storage.can_keep(arrays[i], precision)):
        hint = "; with the package ml_dtypes, NumPy can have its memory" if place(arrays[i]) == "torch:cpu" else ""
        raise TypeError(
            f"{tree.name(i, 'params')}: {with_article(describe(arrays[i]))}, expected one of NumPy or CuPy for precision={precision!r}{hint}"
        )


def gradient(g: Any, p: Any, tree: Tree, i: int, *, attached: bool = False) -> Any:
    """Check the gradient of the parameter ``p``, leaf ``i`` of ``tree``; a NumPy scalar becomes an array.

    It is detached from what it was computed from, unless ``attached``.

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
    g = readable(g, p)
    if is_tensor(g) and not (attached and is_tensor(p)) and (why := why_without_memory(g)):
        raise ValueError(f"{name}: a tensor {why}")
    check_alive(g, name)
    hint = hint_for(g)
    if is_numpy(p) and isinstance(g, float | int | list | tuple):
        hint = "; numpy.asarray(x) is one"
    g = g if hint else shared(g, p)
    if hint or not is_array(g):
        kind = type(g).__name__ if isinstance(g, np.ndarray) and hint else describe(g)
        raise TypeError(f"{name}: {kind}, expected {with_article(describe(p))} like its parameter{hint}")
    if is_tensor(g) and is_numpy(p) and g.device.type == "cpu":  # one that NumPy cannot read
        raise TypeError(f"{name}: dtype {g.dtype}, expected a real one, best {p.dtype} like its parameter")
    if not are_together(g, p):
        given, expected = place(g), place(p)
        error = ValueError if given.partition(":")[0] == expected.partition(":")[0] else TypeError
        raise error(f"{name}: {with_article(describe(g))}, expected {with_article(describe(p))} like its parameter")
    if g.shape != p.shape:
        raise ValueError(f"{name}: shape {tuple(g.shape)}, expected {tuple(p.shape)}")
    if is_complex(p) and not is_complex(g):
        raise TypeError(
            f"{name}: dtype {g.dtype}, expected a complex one, best {p.dtype} like its parameter; the gradient of a real "
            "loss by the conjugate, as torch returns it (of JAX's gradient take the conjugate)"
        )
    if not is_complex(p) and not is_real(g):
        raise TypeError(f"{name}: dtype {g.dtype}, expected a real one, best {p.dtype} like its parameter")
    check_unmasked(g, name)
    if is_numpy(g):
        return np.asarray(g)
    return g if attached else detached(g)


def check_alive(x: Any, name: str) -> None:
    """Raise ValueError, which names the leaf, if an array's memory was given to somebody else."""
    if is_deleted(x):
        raise ValueError(
            f"{name}: an array of {library_of(x)} that was deleted, as those are that are donated to compiled code; expected "
            "one of the last call"
        )


def check_unmasked(x: Any, name: str) -> None:
    """Raise TypeError if an array is masked."""
    if type(x) is not np.ndarray and isinstance(x, np.ma.MaskedArray):  # numpy.ma is slow to be imported
        raise TypeError(f"{name}: a masked array, whose mask would get lost, expected a plain one, as x.filled(0) is")


def _check_distinct(tree: Tree, arrays: list[Any]) -> None:
    first: dict[int, int] = {}
    for i, a in enumerate(arrays):
        if (j := first.setdefault(id(a), i)) != i:
            raise ValueError(f"{tree.name(j, 'params')} and {tree.name(i, 'params')} are the same array; give it once")
    by_place: dict[str, list[int]] = {}
    for i, a in enumerate(arrays):
        by_place.setdefault("numpy" if type(a) is np.ndarray else place(a), []).append(i)
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


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
