"""Array libraries as the tests use them, memory layouts, and what it means to be equal to the bit."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import array_api_strict
import numpy as np
import pytest
from numpy.typing import NDArray

import gpuopt
from gpuopt.engines.choice import Engine

Host: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Space:
    """An array library and one of its devices."""

    name: str
    xp: Any
    device: Any
    use: Callable[[], AbstractContextManager[object]]
    engines: tuple[Engine, ...] = ("array",)

    def put(self, x: Any, layout: str = "C") -> Any:
        """A new array of this space with the values of ``x``, laid out in memory as `LAYOUTS` says."""
        x = np.asarray(x)
        if self.name == "array_api_strict":
            return self.xp.asarray(x.copy(), device=self.device)
        values = np.atleast_1d(x)  # of an array without axes CuPy drops the sign of a zero
        with self.use():
            view = LAYOUTS[layout](self.xp, values.shape, x.dtype)
            view[...] = self.xp.asarray(values)
        return view if x.shape else view.reshape(())

    def get(self, x: Any) -> Host:
        """A copy of an array on the host."""
        if self.name == "array_api_strict" and not isinstance(x, np.ndarray):  # a number of the state is NumPy's
            return np.array(x.to_device(array_api_strict.Device("CPU_DEVICE")))
        return gpuopt.backends.to_numpy(x).copy()

    def got(self, opt: gpuopt.Optimizer) -> dict[str, Host]:
        """All parameters and slots of an optimizer, on the host."""
        held = opt.state_dict()
        return {path: self.get(p) for path, p in held["params"].items()} | {
            f"{path}/{slot}": self.get(s) for path, own in held["state"].items() for slot, s in own.items()
        }


def opened(name: str) -> Iterator[Space]:
    """Make a space ready; skip the test where it cannot be had."""
    if name == "numpy":
        yield Space("numpy", np, None, nullcontext, ("array", "fused"))
    elif name == "array_api_strict":
        strict = {"boolean_indexing": False, "data_dependent_shapes": False, "enabled_extensions": ()}
        with array_api_strict.ArrayAPIStrictFlags(**strict):
            yield Space("array_api_strict", array_api_strict, array_api_strict.Device("device1"), nullcontext)
    else:
        try:
            gpuopt.backend("cupy")
        except gpuopt.BackendUnavailable as error:
            pytest.skip(str(error))
        import cupy

        device = cupy.cuda.Device(cupy.cuda.runtime.getDeviceCount() - 1)
        yield Space("cupy", cupy, device, lambda: device, ("array", "fused"))


def _permuted(xp: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """With its axes rotated: neither C nor Fortran order from three dimensions on."""
    return xp.empty((*shape[1:], *shape[:1]), dtype).transpose(len(shape) - 1, *range(len(shape) - 1))


def _shifted(xp: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Inside of a larger buffer, at an address that is a multiple of the element's size and no more."""
    size = int(np.prod(shape, dtype=int))
    return xp.empty(size + 1, dtype)[1:].reshape(shape)


# Name: a new, uninitialized array of that shape and dtype. All but the last two fill their memory without gaps.
LAYOUTS: dict[str, Callable[[Any, tuple[int, ...], Any], Any]] = {
    "C": lambda xp, shape, dtype: xp.empty(shape, dtype),
    "F": lambda xp, shape, dtype: xp.empty(shape, dtype, order="F"),
    "permuted": lambda xp, shape, dtype: _permuted(xp, shape, dtype) if shape else xp.empty(shape, dtype),
    "shifted": _shifted,
    "strided": lambda xp, shape, dtype: xp.empty((*shape, 3), dtype)[..., 1],
    "reversed": lambda xp, shape, dtype: xp.empty(shape, dtype)[..., *(slice(None, None, -1) for _ in shape)],
}
DENSE = [name for name in LAYOUTS if name not in {"strided", "reversed"}]


def same_bits(a: Host, b: Host) -> bool:
    """Whether all elements have the same bits, where any NaN is as good as another."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind == "c":
        return same_bits(a.real.copy(), b.real.copy()) and same_bits(a.imag.copy(), b.imag.copy())
    as_integers = f"u{a.dtype.itemsize}"
    equal = np.ascontiguousarray(a).view(as_integers) == np.ascontiguousarray(b).view(as_integers)
    return bool(np.all(equal | (np.isnan(a) & np.isnan(b)))) if a.dtype.kind == "f" else bool(np.all(equal))


def assert_same_bits(a: dict[str, Host], b: dict[str, Host]) -> None:
    """Compare two collections of arrays; the message shows the first elements that differ."""
    assert a.keys() == b.keys()
    for name, x in a.items():
        y = b[name]
        if not same_bits(x, y):
            wrong = x != y if x.shape == y.shape else ...
            pytest.fail(f"{name} ({x.dtype}{x.shape}): {x[wrong][:5]} is not {y[wrong][:5]}")


def hard_values(random: np.random.RandomState, shape: tuple[int, ...], dtype: str) -> Host:
    """Normal numbers of many sizes, and among them zeros, subnormals, huge numbers, infinities and NaN."""
    x = random.standard_normal(shape) * 10.0 ** random.randint(-12, 12, shape)
    limits = np.finfo(dtype if dtype.startswith("f") else "f8")
    special: list[Any] = [0.0, -0.0, limits.smallest_subnormal, -3 * limits.smallest_subnormal, limits.tiny]
    special += [limits.max, limits.min, np.inf, -np.inf, np.nan]
    with np.errstate(all="ignore"):
        x = np.where(random.random_sample(shape) < 0.2, random.choice(special, shape), x).astype("f8")
        return np.asarray(x.astype(dtype) if dtype.startswith("f") else np.nan_to_num(x).clip(-100, 100).astype(dtype))
