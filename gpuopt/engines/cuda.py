"""The fused engine for CuPy: traced programs as one CUDA kernel, one launch a step.

The kernel is compiled by NVRTC with exactly ``-fmad=false -ftz=false``, which no kernel class of CuPy allows (they
append ``-ftz=true``), so that it computes as the CPU does, bit for bit.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.engines import segments
from gpuopt.engines.memory import side_by_side
from gpuopt.engines.trace import COMPARISONS, INEXACT, Node

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuopt.engines.memory import Layout
    from gpuopt.engines.segments import Table, Variant

OPTIONS = ("-fmad=false", "-ftz=false")
THREADS = 256

_OPERATIONS = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "truediv": "{0} / {1}",
    "neg": "-{0}",
    "sqrt": "sqrt{s}({0})",
    "abs": "fabs{s}({0})",
    **{name: name + "{s}({0})" for name in INEXACT},
    **dict(
        zip(
            COMPARISONS, ("{0} < {1}", "{0} <= {1}", "{0} > {1}", "{0} >= {1}", "{0} == {1}", "{0} != {1}"), strict=True
        )
    ),
    "and": "{0} && {1}",
    "or": "{0} || {1}",
    "not": "!{0}",
    "where": "{0} ? {1} : {2}",
}

_STEP = """\
#ifdef __CUDACC__
#define ASSUME_GLOBAL(pointer) __builtin_assume(__isGlobal(pointer))  // addresses come from memory: say what they are
#else
#define ASSUME_GLOBAL(pointer)
#endif
struct Coefficients {{ alignas(8) unsigned char bytes[{bytes}]; }};
{updates}
extern "C" __global__ void __launch_bounds__({threads})
step(const long long* table, const long long* gradients, const long long* chunks,
     const __grid_constant__ Coefficients coefficients)
{{
    const long long segment = chunks[2 * blockIdx.x];
    const long long gradient = gradients[segment];
    if (gradient == 0) return;  // left alone in this step
    const long long* row = table + segment * {columns};
    const long long start = chunks[2 * blockIdx.x + 1];
    const long long rest = row[{LENGTH}] - start;
    const int n = rest < {CHUNK} ? (int)rest : {CHUNK};
    const unsigned char* c = coefficients.bytes + row[{COEFFICIENTS}];
    switch (row[{VARIANT}]) {{
{cases}
    }}
}}
"""

# The main loop moves 16 bytes of each array at a time; the rest of a chunk, or all of it where an array does not start
# at a multiple of 16 bytes, goes element by element.
_UPDATE = """
__device__ __forceinline__ void element{i}({arguments}, {coefficients})
{{
    {body}
}}

__device__ __forceinline__ void update{i}(const long long* row, long long gradient, long long start, int n, const {T}* c)
{{
    {prologue}
    const bool aligned = (({alignment}) & 15) == 0;
    const int whole = aligned ? n / {width} * {width} : 0;
    for (int i = threadIdx.x * {width}; i < whole; i += {threads} * {width}) {{
        {loads}
        {elements}
        {stores}
    }}
    for (int i = whole + threadIdx.x; i < n; i += {threads}) {{
        {T} {scalars};
        element{i}({names}, {values});
        {writes}
    }}
}}
"""


def source(variants: tuple[Variant, ...]) -> str:
    """CUDA C++ of the kernel that knows these variants."""
    return _STEP.format(
        bytes=segments.COEFFICIENT_BYTES,
        threads=THREADS,
        updates="".join(_update(i, variant) for i, variant in enumerate(variants)),
        columns=segments.SLOTS + max(len(v.program.slots) for v in variants),
        LENGTH=segments.LENGTH,
        CHUNK=segments.CHUNK,
        COEFFICIENTS=segments.COEFFICIENTS,
        VARIANT=segments.VARIANT,
        cases="\n".join(
            f"    case {i}: update{i}(row, gradient, start, n, (const {_ctype(v)}*)c); break;"
            for i, v in enumerate(variants)
        ),
    )


def _ctype(variant: Variant) -> str:
    return {"float32": "float", "float64": "double"}[variant.dtype]


def _update(i: int, variant: Variant) -> str:
    """The code of one variant: the element, and the loop over a chunk."""
    program, T = variant.program, _ctype(variant)  # noqa: N806 - a type
    suffix, width = ("f", 4) if T == "float" else ("", 2)
    arrays = {"p": f"row[{segments.PARAMETER}]", "g": "gradient"}
    arrays |= {slot: f"row[{segments.SLOTS + k}]" for k, slot in enumerate(program.slots)}
    written = ["p", *program.slots]
    lanes = "xyzw"[:width]
    count = len(program.coefficients)

    body, terms = [], []
    for k, node in enumerate(program.nodes):
        match node:
            case Node("load", (name,)):
                terms.append(f"a_{name}")
            case Node("coefficient", (index,)):
                terms.append(f"c{index}")
            case Node("literal", (number,)):
                terms.append(_literal(number, variant.dtype))
            case Node(op, args):
                kind = "bool" if op in (*COMPARISONS, "and", "or", "not") else T
                body.append(f"const {kind} v{k} = " + _OPERATIONS[op].format(*[terms[a] for a in args], s=suffix) + ";")
                terms.append(f"v{k}")
    results = [terms[output] for output in program.outputs]
    # Through locals of their own: one output may be another one's input.
    body += [f"const {T} r{k} = {result};" for k, result in enumerate(results)]
    body += [f"a_{name} = r{k};" for k, name in enumerate(written)]

    values = ", ".join(f"c{k}" for k in range(count)) or "0"
    vector = f"{T}{width}"
    newline = "\n    "
    return _UPDATE.format(
        i=i,
        T=T,
        width=width,
        threads=THREADS,
        arguments=", ".join(f"{T}{'&' if name in written else ''} a_{name}" for name in arrays),
        coefficients=", ".join(f"{T} c{k}" for k in range(count)) or "int",
        body=newline.join(body),
        prologue=newline.join(
            [f"{T}* at_{name} = ({T}*){address} + start;" for name, address in arrays.items()]
            + [f"ASSUME_GLOBAL(at_{name});" for name in arrays]
            + [f"const {T} c{k} = c[{k}];" for k in range(count)]
        ),
        alignment=" | ".join(f"(unsigned long long)at_{name}" for name in arrays),
        loads=(newline + "    ").join(f"{vector} v_{name} = *({vector}*)(at_{name} + i);" for name in arrays),
        elements=(newline + "    ").join(
            f"element{i}({', '.join(f'v_{name}.{lane}' for name in arrays)}, {values});" for lane in lanes
        ),
        stores=(newline + "    ").join(f"*({vector}*)(at_{name} + i) = v_{name};" for name in written),
        scalars=", ".join(f"s_{name} = at_{name}[i]" for name in arrays),
        names=", ".join(f"s_{name}" for name in arrays),
        values=values,
        writes=" ".join(f"at_{name}[i] = s_{name};" for name in written),
    )


def _literal(number: str, dtype: str) -> str:
    """A constant, rounded to its dtype: its bits."""
    with np.errstate(all="ignore"):
        value = np.dtype(dtype).type(float.fromhex(number))
    if dtype == "float32":
        return f"__int_as_float(0x{value.view(np.uint32):08x})"
    return f"__longlong_as_double(0x{value.view(np.uint64):016x})"


@cache
def _function(variants: tuple[Variant, ...], device: int) -> Any:
    """The kernel, loaded on the current device, which is ``device``."""
    from cupy.cuda.function import Module

    module = Module()
    module.load(_compile(source(variants), device))
    return module.get_function("step")


def _compile(text: str, device: int) -> bytes:
    """Compile a kernel, or find it in CuPy's folder of kernels. A folder that cannot be used only costs the compilation."""
    import cupy
    from cupy.cuda import compiler, nvrtc

    capability = cupy.cuda.Device(device).compute_capability
    key = repr((text, OPTIONS, capability, nvrtc.getVersion(), cupy.__version__))
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    path = folder / f"gpuopt_{hashlib.sha256(key.encode()).hexdigest()}.cubin"
    try:
        kept = path.read_bytes()
        if kept[:32] == hashlib.sha256(kept[32:]).digest():
            return kept[32:]
    except OSError:
        pass
    image: bytes = compiler.compile_using_nvrtc(text, OPTIONS)[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(hashlib.sha256(image).digest() + image)
        Path(file.name).replace(path)
    except OSError:
        pass
    return image


class CUDAKernel:
    """The step over a table of CuPy arrays of one device."""

    def __init__(self, table: Table, device: int) -> None:
        import cupy

        self._table = table
        self._device = cupy.cuda.Device(device)
        with self._device:
            self._function = _function(table.variants, device)
            self._rows, self._chunks = cupy.asarray(table.rows), cupy.asarray(table.chunks)
            self._gradients = cupy.asarray(table.gradients)
        self._sent = table.gradients.copy()
        # Passed by value: CUDA takes its copy at the launch, so the host may write the next step's at once.
        self._coefficients = table.coefficients.view(np.dtype((np.void, segments.COEFFICIENT_BYTES)))

    def __call__(self) -> None:
        """Update every segment that has a gradient, on the current stream."""
        if not len(self._chunks):
            return  # of empty leaves there is nothing to update, and CuPy would launch one block all the same
        with self._device:
            if not np.array_equal(self._sent, self._table.gradients):
                # From pageable memory, which CUDA stages before it returns: the addresses may change again at once.
                np.copyto(self._sent, self._table.gradients)
                self._gradients.data.copy_from_host_async(self._sent.ctypes.data, self._sent.nbytes)
            arguments = (self._rows, self._gradients, self._chunks, self._coefficients)
            self._function((len(self._chunks),), (THREADS,), arguments)


def pointer(array: Any) -> int:
    """Address of the first element."""
    return array.data.ptr  # type: ignore[no-any-return]


def zeros(shapes: Sequence[Layout], device: int) -> list[Any]:
    """Return zeroed arrays on a device, side by side in one buffer."""
    import cupy

    offsets, nbytes = side_by_side(shapes)
    with cupy.cuda.Device(device):
        buffer = cupy.zeros(nbytes, np.uint8)
        return [
            cupy.ndarray(a.shape, a.dtype, buffer.data + offset, a.strides)
            for a, offset in zip(shapes, offsets, strict=True)
        ]
