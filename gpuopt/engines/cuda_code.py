"""Traced programs as CUDA C++: one kernel that updates, one that looks at the gradients before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpuopt.engines import norms, table
from gpuopt.engines.dtypes import DTYPES
from gpuopt.engines.trace import COMPARISONS, INEXACT, Node

if TYPE_CHECKING:
    from gpuopt.engines.table import Variant

SKIP, SKIPPED, NORM, SCALES = range(4)
"""Of the verdict, an array of float64 on the device: whether to leave the step out, how many were, the norm, the scales."""

CLIPS = (None, "norm", "global_norm")
STICKY = 2
"""To leave out every step after a bad one, too, until the host has seen it."""

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

_VALUES = """\
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 700
#define GRID_CONSTANT  // which older devices do not know: they make a copy of the parameter
#else
#define GRID_CONSTANT __grid_constant__
#endif
struct Values {{ alignas(8) unsigned char bytes[{bytes}]; }};

// Addresses of gradients come by value where they fit: a step with new gradients then copies nothing.
__device__ __forceinline__ long long address(const Values& values, int gradients_at, const long long* gradients, long long segment)
{{
    return gradients_at < 0 ? gradients[segment] : ((const long long*)(values.bytes + gradients_at))[segment];
}}
"""

_STEP = """\
#ifdef __CUDACC__
#define ASSUME_GLOBAL(pointer) __builtin_assume(__isGlobal(pointer))  // addresses come from memory: say what they are
#else
#define ASSUME_GLOBAL(pointer)
#endif
{updates}
extern "C" __global__ void __launch_bounds__({threads})
step(const long long* table, const long long* gradients, const long long* chunks, const double* verdict,
     int gradients_at, const GRID_CONSTANT Values values)
{{
    if (verdict[{SKIP}] != 0) return;
    const long long segment = chunks[2 * blockIdx.x];
    const long long gradient = address(values, gradients_at, gradients, segment);
    if (gradient == 0) return;  // left alone in this step
    const double scale = verdict[{SCALES} + segment];
    const long long* row = table + segment * {columns};
    const long long start = chunks[2 * blockIdx.x + 1];
    const long long rest = row[{LENGTH}] - start;
    const int n = rest < {CHUNK} ? (int)rest : {CHUNK};
    const unsigned char* c = values.bytes + row[{COEFFICIENTS}];
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

__device__ __forceinline__ void update{i}(const long long* row, long long gradient, double leaf_scale, long long start, int n, const {T}* c)
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
    return _VALUES.format(bytes=table.VALUE_BYTES) + _STEP.format(
        threads=norms.LANES,
        updates="".join(_update(i, variant) for i, variant in enumerate(variants)),
        columns=table.SLOTS + max(len(v.program.slots) for v in variants),
        LENGTH=table.LENGTH,
        CHUNK=table.CHUNK,
        SKIP=SKIP,
        SCALES=SCALES,
        COEFFICIENTS=table.COEFFICIENTS,
        VARIANT=table.VARIANT,
        cases="\n".join(
            f"    case {i}: update{i}(row, gradient, scale, start, n, (const {_ctype(v)}*)c); break;"
            for i, v in enumerate(variants)
        ),
    )


def _ctype(variant: Variant) -> str:
    return DTYPES[variant.dtype].cuda


def _update(i: int, variant: Variant) -> str:
    """The code of one variant: the element, and the loop over a chunk."""
    program, T = variant.program, _ctype(variant)  # noqa: N806 - a type
    dtype = DTYPES[variant.dtype]
    suffix, lanes = dtype.cuda_suffix, "xyzw"[: 16 * dtype.parts // dtype.itemsize]
    ids = {name: name.replace(".", "__") for name in ("p", "g", *program.slots)}
    addresses = {"p": f"row[{table.PARAMETER}]", "g": "gradient"}
    addresses |= {slot: f"row[{table.SLOTS + k}]" for k, slot in enumerate(program.slots)}
    written = ["p", *program.slots]
    parts = {name: 2 if name in program.pairs else 1 for name in ids}
    # As many elements at a time as fill 16 bytes of the smallest array.
    width = len(lanes) // min(parts.values())
    constants = {f"c{k}": f"c[{k}]" for k in range(len(program.coefficients))}
    if Node("scale", ()) in program.nodes:
        constants["scale"] = f"({T})leaf_scale"

    body, terms = [], []
    for k, node in enumerate(program.nodes):
        match node:
            case Node("load", (name, *part)):
                terms.append(_numbered("a", ids[name], *part))
            case Node("coefficient", (index,)):
                terms.append(f"c{index}")
            case Node("scale", ()):
                terms.append("scale")
            case Node("literal", (number,)):
                terms.append(_literal(number, dtype.arithmetic))
            case Node(op, args):
                kind = "bool" if op in (*COMPARISONS, "and", "or", "not") else T
                body.append(f"const {kind} v{k} = " + _OPERATIONS[op].format(*[terms[a] for a in args], s=suffix) + ";")
                terms.append(f"v{k}")
    # Through locals of their own: one output may be another one's input.
    body += [f"const {T} r{k} = {terms[output]};" for k, output in enumerate(program.outputs)]
    body += [f"{_numbered('a', ids[name], part)} = r{k};" for k, (name, part, _) in enumerate(program.stores)]

    every = [(name, part) for name in ids for part in range(parts[name])]
    vectors = [(name, k) for name in ids for k in range(parts[name] * width // len(lanes))]
    vector = f"{T}{len(lanes)}"

    def at(name: str, index: str) -> str:
        return f"at_{ids[name]} + {index if parts[name] == 1 else f'{parts[name]} * {index}'}"

    def lane(name: str, element: int, part: int) -> str:
        """Where a part of an element of the main loop is."""
        k, own = divmod(element * parts[name] + part, len(lanes))
        return f"{_numbered('v', ids[name], k)}.{lanes[own]}"

    def memory(name: str, k: int) -> str:
        """The vector ``k`` of those that the main loop moves of an array."""
        return f"*(({vector}*)({at(name, 'i')}){f' + {k}' if k else ''})"

    values = ", ".join(constants) or "0"
    newline = "\n    "
    return _UPDATE.format(
        i=i,
        T=T,
        width=width,
        threads=norms.LANES,
        arguments=", ".join(
            f"{T}{'&' if name in written else ''} {_numbered('a', ids[name], part)}" for name, part in every
        ),
        coefficients=", ".join(f"{T} {name}" for name in constants) or "int",
        body=newline.join(body),
        prologue=newline.join(
            [f"{T}* at_{ids[name]} = ({T}*){address};" for name, address in addresses.items()]
            + [f"at_{ids[name]} = {at(name, 'start')};" for name in ids]
            + [f"ASSUME_GLOBAL(at_{name});" for name in ids.values()]
            + [f"const {T} {name} = {value};" for name, value in constants.items()]
        ),
        alignment=" | ".join(f"(unsigned long long)at_{name}" for name in ids.values()),
        loads=(newline + "    ").join(
            f"{vector} {_numbered('v', ids[name], k)} = {memory(name, k)};" for name, k in vectors
        ),
        elements=(newline + "    ").join(
            f"element{i}({', '.join(lane(name, k, part) for name, part in every)}, {values});" for k in range(width)
        ),
        stores=(newline + "    ").join(
            f"{memory(name, k)} = {_numbered('v', ids[name], k)};" for name, k in vectors if name in written
        ),
        scalars=", ".join(
            f"{_numbered('s', ids[name], part)} = ({at(name, 'i')})[{part}]" for name, part in every
        ),
        names=", ".join(_numbered("s", ids[name], part) for name, part in every),
        values=values,
        writes=" ".join(
            f"({at(name, 'i')})[{part}] = {_numbered('s', ids[name], part)};" for name, part in every if name in written
        ),
    )


def _numbered(kind: str, name: str, number: int = 0) -> str:
    """A variable of an array; there may be several."""
    return f"{kind}{number or ''}_{name}"


def _literal(number: str, dtype: str) -> str:
    """A constant, rounded to its dtype: its bits."""
    value = DTYPES[dtype].rounded(number)
    if dtype == "float32":
        return f"__int_as_float(0x{value.view(np.uint32):08x})"
    return f"__longlong_as_double(0x{value.view(np.uint64):016x})"


# See gpuopt.engines.norms. The last block to end adds up what all have found, and decides.
_MEASURE = """\
template <typename T>
__device__ __forceinline__ double square(T g, double scale)
{
    const double x = (double)g * scale;
    return x * x;
}

template <>
__device__ __forceinline__ double square(float2 g, double scale)
{
    return square(g.x, scale) + square(g.y, scale);
}

template <>
__device__ __forceinline__ double square(double2 g, double scale)
{
    return square(g.x, scale) + square(g.y, scale);
}

template <typename T>
__device__ __forceinline__ void sum_of_squares(const T* g, int n, double scale, double* lanes, double* out)
{
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += LANES) {
        sum += square(g[i], scale);
    }
    lanes[threadIdx.x] = sum;
    __syncthreads();
    for (int half = LANES / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) lanes[threadIdx.x] += lanes[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) *out = lanes[0];
}

__device__ double root(const double* sums)
{
    if (sums[0] < TINY) return sqrt(sums[2]) * SMALL;
    return FINITE(sums[0]) ? sqrt(sums[0]) : sqrt(sums[1]) * LARGE;
}

extern "C" __global__ void __launch_bounds__(LANES)
measure(const long long* table, long long columns, long long segments, const long long* gradients,
        const long long* chunks, const long long* first_chunk, double* partials, double* sums, double* verdict, unsigned int* finished,
        int clip, double limit, int skip, int gradients_at, const GRID_CONSTANT Values values)
{
    __shared__ double lanes[LANES];
    __shared__ bool last;
    if (skip == STICKY && verdict[SKIP] != 0) {  // an error is on its way: all is left as it was when it happened
        if (blockIdx.x == 0 && threadIdx.x == 0) verdict[SKIPPED] += 1;
        return;
    }
    const long long segment = chunks[2 * blockIdx.x], start = chunks[2 * blockIdx.x + 1];
    const long long* row = table + segment * columns;
    const long long rest = row[LENGTH] - start;
    const long long gradient = address(values, gradients_at, gradients, segment);
    const int n = gradient == 0 ? 0 : rest < CHUNK ? (int)rest : CHUNK;
    double* out = partials + 3 * blockIdx.x;
    if (threadIdx.x == 0) out[1] = out[2] = 0;
    switch (row[DTYPE]) {
        SUMS
    }
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicAdd(finished, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    const volatile double* found = partials;
    for (long long s = threadIdx.x; s < segments; s += LANES) {
        double a = 0, b = 0, c = 0;
        for (long long k = first_chunk[s]; k < first_chunk[s + 1]; ++k) { a += found[3 * k]; b += found[3 * k + 1]; c += found[3 * k + 2]; }
        if (!FINITE(a) && b == 0) b = a;  // of float32, for which it is not taken
        sums[3 * s] = a; sums[3 * s + 1] = b; sums[3 * s + 2] = c;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double total[3] = {0, 0, 0};
        bool finite = true;
        for (long long s = 0; s < segments; ++s) {
            for (int k = 0; k < 3; ++k) total[k] += sums[3 * s + k];
            finite = finite && FINITE(sums[3 * s + 1]);
        }
        verdict[NORM] = root(total);
        verdict[SKIP] = skip && !finite;
        verdict[SKIPPED] += skip && !finite;
        *finished = 0;
    }
    __syncthreads();
    for (long long s = threadIdx.x; s < segments; s += LANES) {
        const double norm = clip == GLOBAL_NORM ? verdict[NORM] : root(sums + 3 * s);
        verdict[SCALES + s] = clip && norm > limit ? limit / norm : 1;
    }
}
"""


def _sums(name: str) -> str:
    """The case of a dtype: the sum of its squares, and scaled ones where squares may not fit."""
    dtype = DTYPES[name]
    scales = ["1.0"] if dtype.squares_fit else ["1.0", "SMALL", "LARGE"]
    calls = [
        f"sum_of_squares((const {dtype.cuda}{dtype.parts if dtype.parts > 1 else ''}*)gradient + start, n, {scale}, lanes, out + {k});"
        for k, scale in enumerate(scales)
    ]
    return f"case {dtype.number}: {' '.join(calls)} break;"


def measure() -> str:
    """CUDA C++ of the kernel that looks at the gradients."""
    constants = {
        "LANES": norms.LANES,
        "CHUNK": table.CHUNK,
        "LENGTH": table.LENGTH,
        "DTYPE": table.DTYPE,
        "SKIP": SKIP,
        "SKIPPED": SKIPPED,
        "NORM": NORM,
        "SCALES": SCALES,
        "GLOBAL_NORM": CLIPS.index("global_norm"),
        "STICKY": STICKY,
        "SMALL": _literal(norms.SCALES[1].hex(), "float64"),
        "LARGE": _literal(norms.SCALES[2].hex(), "float64"),
        "TINY": _literal(norms.TINY.hex(), "float64"),
        "FINITE(x)": "((x) - (x) == 0)",
        "SUMS": " ".join(map(_sums, DTYPES)),
    }
    defined = "".join(f"#define {name} {value}\n" for name, value in constants.items())
    return defined + _VALUES.format(bytes=table.VALUE_BYTES) + _MEASURE
