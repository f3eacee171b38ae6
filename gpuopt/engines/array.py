"""The reference engine: a rule's ``update``, called with the arrays themselves, of whatever namespace they are.

It computes new arrays; nothing is written before all of them are there.
"""

from __future__ import annotations

import operator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.backends import is_cupy, is_numpy, namespace, place, to_numpy
from gpuopt.engines.norms import SCALES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gpuopt.rules.base import Rule

BLOCK = 8192
"""Elements of a NumPy array that are updated at a time: few enough for the temporaries to stay in the cache."""


def current(x: Any) -> AbstractContextManager[object]:
    """Return a context in which the device of ``x`` is the current one, for the library that has such a thing."""
    return x.device if is_cupy(x) else nullcontext()


def zeros_like(x: Any) -> Any:
    """Return a new array of zeros like ``x``, on its device."""
    with current(x):
        return namespace(x).zeros_like(x)


def assign(target: Any, source: Any) -> None:
    """Write the values of an array of any library and device into ``target``, cast to its dtype."""
    if is_numpy(target):
        with np.errstate(all="ignore"):
            np.copyto(target, to_numpy(source), casting="unsafe")
        return
    import array_api_compat

    xp = namespace(target)
    with current(target):
        if place(source) != place(target):
            # Through the host, also from GPU to GPU: there CuPy does not wait for what is still being computed.
            source = xp.asarray(to_numpy(source), device=array_api_compat.device(target))
        target[...] = xp.astype(source, target.dtype, copy=False)


def assigning(target: Any, source: Any) -> Callable[[], object]:
    """Return a call, in C where the library is, that writes an array of the same library, device and dtype into ``target``."""
    return partial(operator.setitem, target, ..., source)  # numpy.copyto asks a function in Python for its dispatch


def update(
    rule: Rule, p: Any, g: Any, slots: Mapping[str, Any], h: Mapping[str, float], *, elementwise: bool = False
) -> tuple[Any, dict[str, Any]]:
    """Return the new parameter and slots, all of them new arrays. The gradient is cast to the parameter's dtype.

    The rule is run on whole arrays; NumPy arrays are cut into blocks if the rule is known to be elementwise.

    Raises
    ------
    TypeError
        If the rule does not return its slots, or changes a dtype.
    ValueError
        If the rule changes a shape.

    """
    if elementwise and is_numpy(p) and p.size > BLOCK:
        return _update_blocks(rule, p, g, slots, h)
    return _update_whole(rule, p, g, slots, h)


def _update_whole(
    rule: Rule, p: Any, g: Any, slots: Mapping[str, Any], h: Mapping[str, float]
) -> tuple[Any, dict[str, Any]]:
    xp = namespace(p)
    with np.errstate(all="ignore"), current(p):
        if g.dtype != p.dtype:
            g = xp.astype(g, p.dtype)
        new_p, new_slots = rule.update(xp, p, g, SimpleNamespace(**slots), SimpleNamespace(**h))
    name = rule.name
    if set(new_slots) != set(slots):
        raise TypeError(f"{name}.update returned the slots {sorted(new_slots)}, expected {sorted(slots)}")
    for what, new in {"p": new_p, **new_slots}.items():
        if new.dtype != p.dtype:
            raise TypeError(f"{name}.update returned {what} with dtype {new.dtype}, expected {p.dtype}")
        if new.shape != p.shape:
            raise ValueError(f"{name}.update returned {what} with shape {new.shape}, expected {p.shape}")

    def own(new: Any) -> Any:
        """An array (NumPy makes scalars of those without axes), a copy if it is what came in, soon to be written over."""
        return xp.asarray(new, copy=True if any(new is old for old in (p, g, *slots.values())) else None)

    with current(p):
        return own(new_p), {slot: own(new_slots[slot]) for slot in slots}


@np.errstate(all="ignore")  # for the casts that nditer makes: as in the fused engines, infinities and NaN pass silently
def _update_blocks(
    rule: Rule, p: Any, g: Any, slots: Mapping[str, Any], h: Mapping[str, float]
) -> tuple[Any, dict[str, Any]]:
    before = [p, *slots.values(), g]
    after = [None] * (1 + len(slots))
    access = [["readonly"]] * len(before) + [["writeonly", "allocate"]] * len(after)
    flags = ["external_loop", "buffered", "zerosize_ok"]
    dtypes = [p.dtype] * len(access)
    with np.nditer([*before, *after], flags, access, dtypes, casting="same_kind", buffersize=BLOCK) as blocks:  # type: ignore[call-overload]
        for block in blocks:
            (block_p, *block_slots, block_g), (new_p, *new_slots) = block[: len(before)], block[len(before) :]
            named = dict(zip(slots, block_slots, strict=True))
            new_p[...], computed = _update_whole(rule, block_p, block_g, named, h)
            for slot, new in zip(slots, new_slots, strict=True):
                new[...] = computed[slot]
        made = blocks.operands[len(before) :]
    return made[0], dict(zip(slots, made[1:], strict=True))


def sums_of_squares(g: Any, p: Any) -> list[float]:
    """Return the three sums of `gpuopt.engines.norms` of the gradient of ``p``, in the order in which the namespace adds."""
    xp = namespace(g)
    with current(g), np.errstate(all="ignore"):
        exact = xp.astype(xp.astype(g, p.dtype), xp.float64)
        return [float(xp.sum(exact * scale * (exact * scale))) for scale in SCALES]


def try_out(rule: Rule, like: Any, h: Mapping[str, float], *, elementwise: bool) -> None:
    """Run the rule once on zeros, for its errors: on one element if the rule is elementwise, else on a whole leaf.

    Raises
    ------
    TypeError, ValueError
        As `update`.

    """
    sample = like[..., : min(1, like.shape[-1])] if elementwise and like.ndim else like
    p, g, *slots = (zeros_like(sample) for _ in range(2 + len(rule.slots)))
    update(rule, p, g, dict(zip(rule.slots, slots, strict=True)), h)
