"""How leaves of 16 bits are loaded and stored, as LLVM IR; see `gpuopt.engines.storage`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from gpuopt.engines import rounding
from gpuopt.engines.cpu.ir import Function

if TYPE_CHECKING:
    from collections.abc import Callable

_FORMULAS: dict[str, tuple[Callable[..., Any], str, str]] = {
    "wide.bfloat16": (rounding.wide_bfloat16, "i16 half", "float"),
    "narrow.bfloat16": (rounding.narrow_bfloat16, "float x", "i16"),
    "random.bfloat16": (rounding.random_bfloat16, "float x, i32 random", "i16"),
    "wide.float16": (lambda _, half: half.cast("i16").bits("half").cast("float"), "i16 half", "float"),
    "narrow.float16": (lambda _, x: x.cast("half").bits("i16"), "float x", "i16"),
    "random.float16": (rounding.random_float16, "float x, i32 random", "i16"),
    "joined": (rounding.joined, "i16 high, i16 low", "float"),
    "high": (rounding.high, "float x", "i16"),
    "low": (rounding.low, "float x", "i16"),
    "leaf.key": (rounding.leaf_key, "i64 key, i64 leaf", "i64"),
    "random": (rounding.random_bits, "i64 key, i32 element", "i32"),
}
"""For each function by name: its formula, its arguments and its result."""


@cache
def functions() -> str:
    """Return IR of the functions that convert from and to 16 bits."""
    return "\n".join(_function(name, *how) for name, how in _FORMULAS.items())


def _function(name: str, formula: Callable[..., Any], arguments: str, result: str) -> str:
    f = Function(name, arguments, result, "alwaysinline", internal=True)
    found = formula(f, *(x.cast("i32") if x.kind == "i16" else x for x in f.given.values()))
    return f.text(found if found.kind == result else found.cast(result))
