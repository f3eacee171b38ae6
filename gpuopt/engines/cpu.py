"""The fused engine for NumPy: traced programs as LLVM IR, compiled in memory, one call a step.

LLVM is used directly, through llvmlite: a kernel takes some hundredths of a second to compile, so nothing is cached on
disk. No operation carries a fast-math flag, so none is contracted or reordered: the bits are NumPy's.
"""

from __future__ import annotations

import ctypes
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.engines import segments
from gpuopt.engines.memory import side_by_side
from gpuopt.engines.trace import COMPARISONS, INEXACT, Node

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gpuopt.engines.memory import Layout
    from gpuopt.engines.segments import Table, Variant

_TYPES = {"float32": ("float", "f32"), "float64": ("double", "f64")}

_OPERATIONS = {
    "add": "fadd {T} {0}, {1}",
    "sub": "fsub {T} {0}, {1}",
    "mul": "fmul {T} {0}, {1}",
    "truediv": "fdiv {T} {0}, {1}",
    "neg": "fneg {T} {0}",
    "abs": "call {T} @llvm.fabs.{S}({T} {0})",
    **{name: f"call {{T}} @llvm.{name}.{{S}}({{T}} {{0}})" for name in ("sqrt", *INEXACT)},
    # Comparisons with NaN are false ("o" for ordered), but for "not equal".
    **{op: f"fcmp {'une' if op == 'ne' else 'o' + op} {{T}} {{0}}, {{1}}" for op in COMPARISONS},
    "and": "and i1 {0}, {1}",
    "or": "or i1 {0}, {1}",
    "not": "xor i1 {0}, true",
    "where": "select i1 {0}, {T} {1}, {T} {2}",
}

_STEP = """
declare i64 @llvm.smin.i64(i64, i64)

define void @step(ptr %table, ptr %gradients, ptr %chunks, ptr %coefficients, i64 %begin, i64 %end) {{
entry:
  %any = icmp slt i64 %begin, %end
  br i1 %any, label %chunk, label %exit
chunk:
  %k = phi i64 [ %begin, %entry ], [ %k.next, %next ]
  %segment.at = getelementptr [2 x i64], ptr %chunks, i64 %k
  %segment = load i64, ptr %segment.at
  %start.at = getelementptr i64, ptr %segment.at, i64 1
  %start = load i64, ptr %start.at
  %row = getelementptr [{columns} x i64], ptr %table, i64 %segment
  %gradient.at = getelementptr ptr, ptr %gradients, i64 %segment
  %gradient = load ptr, ptr %gradient.at
  %left.alone = icmp eq ptr %gradient, null
  br i1 %left.alone, label %next, label %update
update:
  %length = load i64, ptr %row
  %rest = sub i64 %length, %start
  %n = call i64 @llvm.smin.i64(i64 %rest, i64 {CHUNK})
  %offset.at = getelementptr i64, ptr %row, i64 {COEFFICIENTS}
  %offset = load i64, ptr %offset.at
  %c = getelementptr i8, ptr %coefficients, i64 %offset
  %variant.at = getelementptr i64, ptr %row, i64 {VARIANT}
  %variant = load i64, ptr %variant.at
  switch i64 %variant, label %next [ {cases} ]
{calls}
next:
  %k.next = add nsw i64 %k, 1
  %more = icmp slt i64 %k.next, %end
  br i1 %more, label %chunk, label %exit
exit:
  ret void
}}
"""

_CALL = """variant{i}:
  call void @update{i}(ptr %row, ptr %gradient, i64 %start, ptr %c, i64 %n)
  br label %next"""

# The elements are independent of each other, and LLVM is told so: a gradient may well be its own parameter.
_UPDATE = """
define internal void @update{i}(ptr %row, ptr %g.leaf, i64 %start, ptr %c, i64 %n) {{
  {prologue}
  br label %loop
loop:
  %i = phi i64 [ 0, %0 ], [ %i.next, %loop ]
  {body}
  %i.next = add nuw nsw i64 %i, 1
  %more = icmp slt i64 %i.next, %n
  br i1 %more, label %loop, label %exit, !llvm.loop !{loop}
exit:
  ret void
}}
!{access} = distinct !{{}}
!{loop} = distinct !{{!{loop}, !{{!"llvm.loop.parallel_accesses", !{access}}}}}
"""


def source(variants: tuple[Variant, ...]) -> str:
    """LLVM IR of the kernel that knows these variants."""
    step = _STEP.format(
        columns=segments.SLOTS + max(len(v.program.slots) for v in variants),
        COEFFICIENTS=segments.COEFFICIENTS,
        VARIANT=segments.VARIANT,
        CHUNK=segments.CHUNK,
        cases=" ".join(f"i64 {i}, label %variant{i}" for i in range(len(variants))),
        calls="\n".join(_CALL.format(i=i) for i in range(len(variants))),
    )
    functions = ("fabs", "sqrt", *INEXACT)
    declarations = [f"declare {T} @llvm.{name}.{S}({T})" for name in functions for T, S in _TYPES.values()]
    return "\n".join([*declarations, step, *(_update(i, variant) for i, variant in enumerate(variants))])


def _update(i: int, variant: Variant) -> str:
    """The loop of one variant over ``n`` elements from ``start``."""
    program, (T, S) = variant.program, _TYPES[variant.dtype]  # noqa: N806 - types, as IR spells them
    prologue: list[str] = []
    body: list[str] = []
    values: list[str] = []
    access, loop = 2 * i, 2 * i + 1
    columns = {"p": segments.PARAMETER} | {slot: segments.SLOTS + k for k, slot in enumerate(program.slots)}
    for name, column in columns.items():
        prologue += [
            f"%{name}.at = getelementptr i64, ptr %row, i64 {column}",
            f"%{name}.leaf = load ptr, ptr %{name}.at",
        ]
    for name in ("g", *columns):
        prologue.append(f"%{name}.chunk = getelementptr {T}, ptr %{name}.leaf, i64 %start")
        body.append(f"%{name}.element = getelementptr inbounds {T}, ptr %{name}.chunk, i64 %i")
    for k, node in enumerate(program.nodes):
        value = f"%v{k}"
        match node:
            case Node("load", (name,)):
                body.append(f"{value} = load {T}, ptr %{name}.element, !llvm.access.group !{access}")
            case Node("coefficient", (index,)):
                prologue += [f"%c{k} = getelementptr {T}, ptr %c, i64 {index}", f"{value} = load {T}, ptr %c{k}"]
            case Node("literal", (number,)):
                value = _literal(number, variant.dtype)
            case Node(op, args):
                body.append(f"{value} = " + _OPERATIONS[op].format(*[values[a] for a in args], T=T, S=S))
        values.append(value)
    for name, output in zip(("p", *program.slots), program.outputs, strict=True):
        body.append(f"store {T} {values[output]}, ptr %{name}.element, !llvm.access.group !{access}")
    return _UPDATE.format(i=i, access=access, loop=loop, prologue="\n  ".join(prologue), body="\n  ".join(body))


def _literal(number: str, dtype: str) -> str:
    """A constant, rounded to its dtype; IR spells both dtypes as the bits of a double."""
    with np.errstate(all="ignore"):
        return "0x" + struct.pack(">d", np.dtype(dtype).type(float.fromhex(number))).hex()


@cache
def _compile(variants: tuple[Variant, ...]) -> Callable[..., None]:
    """Machine code for this processor; kept, with what owns it, for the life of the process."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    module = llvm.parse_assembly(source(variants))
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_vectorization = True
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    code = llvm.create_mcjit_compiler(module, machine)
    code.finalize_object()
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 2)(code.get_function_address("step"))
    function.code = code  # type: ignore[attr-defined]
    return function


_WORTH_A_THREAD = 4 << 20
"""Bytes of memory traffic: to wake a thread takes as long as to move about so many."""

_pool: ThreadPoolExecutor | None = None


def _threads() -> ThreadPoolExecutor:
    """Return the helpers of the calling thread, one for each further processor that this process may use."""
    global _pool  # noqa: PLW0603
    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, _processors() - 1), thread_name_prefix="gpuopt")
    return _pool


def _forget_threads() -> None:
    global _pool  # noqa: PLW0603
    _pool = None


@cache
def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)  # threads do not survive a fork; their pool must not either


class CPUKernel:
    """The step over a table of NumPy arrays."""

    def __init__(self, table: Table) -> None:
        self._function = _compile(table.variants)
        self._addresses = [a.ctypes.data for a in (table.rows, table.gradients, table.chunks, table.coefficients)]
        self._table = table  # owns what the addresses point to
        self._workers = min(_processors(), table.traffic // _WORTH_A_THREAD)

    def __call__(self) -> None:
        """Update every segment that has a gradient."""
        chunks = len(self._table.chunks)
        if self._workers <= 1:
            self._function(*self._addresses, 0, chunks)
            return
        # Small shares taken in turn, so that a processor that is busy with other things holds nobody up.
        share = -(-chunks // (8 * self._workers))
        starts = count(0, share)

        def work() -> None:
            while (begin := next(starts)) < chunks:
                self._function(*self._addresses, begin, min(begin + share, chunks))

        helpers = [_threads().submit(work) for _ in range(self._workers - 1)]
        work()
        for helper in helpers:
            helper.result()


def pointer(array: Any) -> int:
    """Address of the first element."""
    return _DATA.from_address(id(array) + _HEADER).value


# The address is the first field of a NumPy array's C structure, after the header of every Python object. To read it
# there takes a fifth of the time that __array_interface__ takes, which counts with a thousand new gradients a step.
_DATA, _HEADER = ctypes.c_size_t, object.__basicsize__
_probe = np.zeros(3)
if pointer(_probe[1:]) != _probe[1:].__array_interface__["data"][0]:  # pragma: no cover - no such interpreter is known

    def pointer(array: Any) -> int:
        """Address of the first element."""
        return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def zeros(layouts: Sequence[Layout]) -> list[NDArray[Any]]:
    """Return zeroed arrays, side by side in one buffer."""
    offsets, nbytes = side_by_side(layouts)
    buffer = np.zeros(nbytes, np.uint8)
    return [np.ndarray(a.shape, a.dtype, buffer, offset, a.strides) for a, offset in zip(layouts, offsets, strict=True)]
