"""The engines to choose from, and whether the chosen one can update the parameters."""

from __future__ import annotations

import inspect
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from gpuopt.arrays import describe, is_numpy
from gpuopt.engines.cpu import machine
from gpuopt.engines.memory import is_without_gaps
from gpuopt.engines.place import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Engine: TypeAlias = Literal["auto", "array", "fused"]
ENGINES: tuple[Engine, ...] = ("auto", "array", "fused")


def check_engine(engine: Engine, arrays: Sequence[Any], name: Callable[[int], str]) -> None:
    """Check that an engine can update all parameters; say, once, where "auto" finds that no machine code can be had.

    Parameters
    ----------
    engine
        "auto", "array" or "fused".
    arrays
        The parameters.
    name
        What messages call a parameter, by its number.

    Raises
    ------
    ValueError, MachineCodeUnavailable
        With "fused", as `_check_fusable`.

    """
    if engine == "fused":
        for i, a in enumerate(arrays):
            _check_fusable(name(i), a)
    elif engine == "auto" and any(map(is_numpy, arrays)):
        _warn_without_machine_code()


def _check_fusable(name: str, a: Any) -> None:
    """Raise an error if no fused engine can update the parameter ``a``, which messages call ``name``.

    Raises
    ------
    ValueError
        If the array is of another library, or has gaps.
    MachineCodeUnavailable
        If no machine code can be made here.

    """
    if is_numpy(a) and (reason := machine.why_unavailable()):
        raise machine.MachineCodeUnavailable(
            f"engine='fused': no machine code can be made here ({reason}); engine='auto' runs the rules on the arrays"
        )
    if place_of(a) is None or not is_without_gaps(a):
        kind = describe(a)
        what = f"a {kind} of strides {a.strides}" if hasattr(a, "strides") else f"a {kind}"
        raise ValueError(f"{name}: {what}, expected a contiguous NumPy or CuPy array; engine='auto' updates others too")


def _levels_within_the_package() -> int:
    """Return the ``stacklevel`` of a warning that shows the line outside of this package from which its caller was called."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and (frame := frame.f_back) and frame.f_globals.get("__name__", "").startswith("gpuopt."):
        level += 1
    return level


@cache
def _warn_without_machine_code() -> None:
    """Say, once, that NumPy arrays are updated by the array engine although the fused one was wanted."""
    if reason := machine.why_unavailable():
        warnings.warn(
            f"no machine code can be made here ({reason}): NumPy arrays are updated by the array engine, which gives the "
            "same bits and takes longer; engine='array' says nothing",
            RuntimeWarning,
            stacklevel=_levels_within_the_package(),
        )
