"""Numbers that a loop measures: of the host, or of a device that is not waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import describe, detached, fetch, is_cupy, is_numpy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["arriving", "scalar"]


def scalar(name: str, value: Any) -> Any:
    """A metric as a float, or as an array of one number that is on its way."""
    if isinstance(value, int | float | np.floating | np.integer | np.bool_):
        try:
            return float(value)
        except OverflowError:
            raise TypeError(f"run.step: {name}: an integer beyond float64, expected a smaller number") from None
    shape, kind = getattr(value, "shape", None), getattr(getattr(value, "dtype", None), "kind", "f")
    if shape == () and kind in "biuf" and (is_numpy(value) or is_cupy(value) or hasattr(value, "__dlpack__")):
        return detached(value)
    what = describe(value) if shape is None else f"an array of shape {tuple(shape)}"
    raise TypeError(f"run.step: {name}: {what}, expected a number or an array without axes, as its mean is")


def arriving(values: Mapping[str, Any]) -> Callable[[], dict[str, float]]:
    """Metrics as floats; those of a device begin to be copied now."""
    own = {name: value for name, value in values.items() if type(value) is not float}
    if not own:
        return lambda: dict(values)
    arrive = fetch(list(own.values()))
    return lambda: {**values, **{name: float(x) for name, x in zip(own, arrive(), strict=True)}}
