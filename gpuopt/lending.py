"""Tensors that lend their memory: what is updated is a view of theirs, and they are told.

Of torch, the tensors of a CPU lend it to NumPy, so that they are fused; those of other devices to a detached tensor. Nothing is
copied. The gradients may be tensors, and stand in their ``.grad``.
"""

from __future__ import annotations

import sys
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import dtype_of, is_tensor, to_numpy

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray


def view_of(x: Any) -> Any:
    """Return an array over the memory of a tensor; anything else, and what cannot be lent, is returned as it is."""
    if not is_tensor(x):
        return x
    x = x.detach() if x.requires_grad else x
    if x.device.type != "cpu":
        return x
    try:
        return x if _is_freed(x) else to_numpy(x)
    except (
        ImportError,
        RuntimeError,
        TypeError,
        ValueError,
    ):  # sparse, conjugated, or of a dtype or axes that NumPy has not
        return x


def _is_freed(x: Any) -> bool:
    """Whether the storage of a tensor was freed: NumPy would put memory of any content in its place."""
    return bool(not x.data_ptr() and x.numel() and not x._is_zerotensor())


def _tensor_over(a: NDArray[Any]) -> Any:
    """A tensor over the memory of an array."""
    torch = sys.modules["torch"]
    return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16) if dtype_of(a) == "bfloat16" else torch.from_numpy(a)


def readable(x: Any, like: Any) -> Any:
    """Return a tensor as the library of another array reads it; anything else is returned as it is.

    What DLPack would pass on without a mark that it bears (conjugate, negative, all zeros) is copied.
    """
    if not is_tensor(x) or is_tensor(like) or str(x.layout) != "torch.strided":
        return x
    x = x.detach()
    if not isinstance(like, np.ndarray) or x.device.type != "cpu":
        return x.resolve_conj().resolve_neg()
    if not is_tensor(view := view_of(x)):
        return view
    try:
        return x if _is_freed(x) else x.numpy(force=True)
    except (RuntimeError, TypeError):  # of a subclass, or of a dtype that NumPy has not
        return x


def why_without_memory(x: Any) -> str | None:
    """Return what keeps a tensor from having memory that can be lent, or None."""
    try:
        if x.device.type == "meta":
            return "on the meta device, which has no values"
        if str(x.layout) != "torch.strided":
            return f"of layout {x.layout}, expected a dense one; x.to_dense() is one"
        missing = x.device.type in {"cpu", "cuda"} and tuple(x.shape) and x.numel() and not x.detach().data_ptr()
        said = "its storage was freed, or it wraps others"
    except (RuntimeError, TypeError, ValueError) as error:
        missing, said = True, str(error).partition(".")[0]
    return f"without memory of its own ({said}), expected a plain one" if missing else None


def views_of(xs: Sequence[Any]) -> list[Any]:
    """Return `view_of` each, faster for many."""
    tensor = sys.modules["torch"].Tensor if "torch" in sys.modules else ()
    try:
        return [(x.numpy() if x.data_ptr() else view_of(x)) if isinstance(x, tensor) else x for x in xs]
    except (RuntimeError, TypeError, ValueError):  # one that does not lend its memory to NumPy, or requires a gradient
        return list(map(view_of, xs))


class Lenders:
    """The leaves that lend their memory.

    Parameters
    ----------
    given
        All leaves, as the user holds them.
    arrays
        Of each leaf, the array that is updated.

    Attributes
    ----------
    tensors
        Those that lend; empty if none does, which is looked up in every step.

    """

    def __init__(self, given: Sequence[Any], arrays: Sequence[Any]) -> None:
        self._given, self._arrays = list(given), list(arrays)
        lends = [type(x) is not np.ndarray and is_tensor(x) for x in given]
        self.tensors = [*compress(given, lends)]
        self._kept = [i for i, a in enumerate(arrays) if type(a) is not np.ndarray and is_tensor(a)]
        self._pointers = [x.data_ptr() if is_lending else None for x, is_lending in zip(given, lends, strict=True)]

    def lends(self, i: int) -> bool:
        """Whether leaf ``i`` lends its memory."""
        return self._pointers[i] is not None

    def arrays_of(self, leaves: Iterable[Any]) -> list[Any]:
        """Return the array of each leaf that is the tensor that it was; others are returned as they are."""
        return [
            array if pointer is not None and x is own and x.data_ptr() == pointer and x.shape == array.shape else x
            for x, own, array, pointer in zip(leaves, self._given, self._arrays, self._pointers, strict=True)
        ]

    def views_of(self, gradients: Sequence[Any]) -> list[Any]:
        """Return the gradients as what is updated is: of a leaf that stays a tensor the tensor, of others a view."""
        found = views_of(gradients)
        for i in self._kept:
            found[i] = gradients[i]
        return found

    def gradients(self) -> list[Any]:
        """Return the ``.grad`` of each leaf."""
        return [x.grad for x in self._given]

    def tell(self) -> None:
        """Tell autograd that the tensors have changed, so that backward passes through old values are refused."""
        sys.modules["torch"].autograd.graph.increment_version(self.tensors)

    def like(self, arrays: Sequence[Any]) -> list[Any]:
        """Return new arrays as tensors, where the leaves are tensors."""
        return [
            _tensor_over(a) if is_tensor(x) and isinstance(a, np.ndarray) else a
            for a, x in zip(arrays, self._given, strict=True)
        ]
