"""Traced programs as CUDA C++: a kernel that updates, one for each reduction pass before, one that looks at the gradients."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np

from gpuopt.engines import norms, storage, table
from gpuopt.engines.dtypes import DTYPES
from gpuopt.engines.passes import operands, passes, uniform, update
from gpuopt.engines.program import COMPARISONS, INEXACT, LOGIC, Node

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gpuopt.engines.passes import Batch, Pass
    from gpuopt.engines.program import Program
    from gpuopt.engines.table import Variant

SKIP, SKIPPED, NORM, LOSS_SCALE, GOOD, SCALES = range(6)
"""Of the verdict, an array of float64 on the device: whether to leave the step out, how many were, the norm, what the
gradients are divided by, for how many good steps that is so, the scales."""

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

_GLOBAL = """\
#ifdef __CUDACC__
#define ASSUME_GLOBAL(pointer) __builtin_assume(__isGlobal(pointer))  // addresses come from memory: say what they are
#else
#define ASSUME_GLOBAL(pointer)
#endif
"""

_STEP = """\
{functions}
extern "C" __global__ void __launch_bounds__({threads}, 1)  // rather fewer blocks at once than spilled registers
step(const long long* table, const long long* gradients, const long long* chunks, const double* verdict,
     long long segments, const double* numbers, const double* totals, int gradients_at, const GRID_CONSTANT Values values)
{{
    if (verdict[{SKIP}] != 0) return;
    {keep}
    const long long segment = chunks[2 * blockIdx.x];
    const long long gradient = address(values, gradients_at, gradients, segment);
    if (gradient == 0) return;  // left alone in this step
    const double scale = verdict[{SCALES} + segment];
    const long long* row = table + segment * {columns};
    const long long start = chunks[2 * blockIdx.x + 1];
    const long long rest = row[{LENGTH}] - start;
    const int n = rest < {CHUNK} ? (int)rest : {CHUNK};
    const unsigned char* c = values.bytes + row[{COEFFICIENTS}];
    const unsigned long long key = *(const unsigned long long*)(values.bytes + {KEY});
    const double* own = numbers + segment * {numbers};
    switch (row[{VARIANT}]) {{
{cases}
    }}
}}
"""

# The first block writes the slots that are numbers: nothing reads them in this pass.
_KEEP = """\
if (blockIdx.x == 0) {{
        for (long long s = threadIdx.x; s < segments; s += {threads}) {{
            const long long* of = table + s * {columns};
            const double* found = numbers + s * {numbers};
            const bool present = address(values, gradients_at, gradients, s) != 0;
            if (totals[(of[{GROUP}] + 1) * {width} - 1] == 0) continue;  // no leaf of the group has a gradient
            switch (of[{VARIANT}]) {{
{cases}
            }}
        }}
    }}"""

# The main loop moves 16 bytes of each array at a time; the rest of a chunk, or all of it where an array does not start
# at a multiple of 16 bytes, goes element by element.
_UPDATE = """
__device__ __forceinline__ void element{i}({arguments})
{{
    {body}
}}

__device__ __forceinline__ void update{i}(const long long* row, long long gradient, double leaf_scale, unsigned long long key, long long start, int n, const {T}* c, const double* own)
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
        {reads}
        element{i}({names});
        {writes}
    }}
}}
"""


def source(variants: tuple[Variant, ...]) -> str:
    """CUDA C++ of the kernel that updates, and knows these variants."""
    sizes = {
        "threads": norms.LANES,
        "columns": table.columns(variants),
        "numbers": _numbers_of(variants),
        "VARIANT": table.VARIANT,
    }
    with_slots = [i for i, v in enumerate(variants) if v.program.number_slots]
    keep = _KEEP.format(
        **sizes,
        GROUP=table.GROUP,
        width=1 + sum(table.widths(table.reduction_passes(variants) - 1, variants)) if with_slots else 0,
        cases="\n".join(f"            case {i}: {_slots(variants[i].program)} break;" for i in with_slots),
    )
    return (
        _VALUES.format(bytes=table.VALUE_BYTES)
        + _GLOBAL
        + _small(variants)
        + _STEP.format(
            **sizes,
            functions="".join(_update(i, variant) for i, variant in enumerate(variants)),
            keep=keep if with_slots else "",
            LENGTH=table.LENGTH,
            CHUNK=table.CHUNK,
            KEY=table.KEY,
            SKIP=SKIP,
            SCALES=SCALES,
            COEFFICIENTS=table.COEFFICIENTS,
            cases="\n".join(
                f"    case {i}: update{i}(row, gradient, scale, key, start, n, (const {_ctype(v)}*)c, own); break;"
                for i, v in enumerate(variants)
            ),
        )
    )


def _small(variants: Iterable[Variant]) -> str:
    """Conversions, where there is anything of 16 bits."""
    return storage.CUDA if any(v.precision for v in variants) else ""


def _numbers_of(variants: Iterable[Variant]) -> int:
    return max(len(v.program.numbers) for v in variants)


def _ctype(variant: Variant) -> str:
    return DTYPES[variant.dtype].cuda


def _slots(program: Program) -> str:
    """Statements that write the slots of a leaf that are numbers; without a gradient, those that all leaves share."""
    return " ".join(
        f"{'' if name in program.shared else 'if (present) '}"
        f"*(double*)of[{table.SLOTS + len(program.slots) + n}] = found[{output}];"
        for n, (name, output) in enumerate(zip(program.number_slots, program.number_outputs, strict=True))
    )


class _Loop:
    """C++ of some elements of a variant: what is worked out before a loop, and in it.

    Parameters
    ----------
    variant
        A program at a dtype.
    elements
        Nodes, in order.
    numbers
        Terms of the numbers that are known; others are read where they are kept.

    """

    def __init__(self, variant: Variant, elements: Iterable[int], numbers: Mapping[int, str]) -> None:
        self.variant, self.T = variant, _ctype(variant)
        self.is_random = variant.precision == "stochastic"
        program, suffix = variant.program, DTYPES[variant.dtype].cuda_suffix
        self.arrays: dict[str, str] = {}
        self.parts: dict[str, int] = {}
        self.small: dict[str, str] = {}
        self.constants: dict[str, str] = {}
        self.body: list[str] = []
        self.terms: dict[int, str] = {}
        self._prologue: list[str] = []
        same = uniform(program)
        for k in elements:
            term = f"v{k}"
            match program.nodes[k]:
                case Node("load", (name, *part)):
                    term = _numbered("a", self.array(name), *part)
                case Node("coefficient", (index,)):
                    self._constant(term, self.T, f"c[{index}]")
                case Node("scale", ()):
                    self._constant(term, self.T, f"({self.T})leaf_scale")
                case Node("number", (index,)):
                    self._constant(term, self.T, f"({self.T}){numbers.get(index, f'own[{index}]')}")
                case Node("literal", (number,)):
                    term = _literal(number, DTYPES[variant.dtype].arithmetic)
                case Node(op, args):
                    kind = "bool" if op in (*COMPARISONS, *LOGIC) else self.T
                    formula = _OPERATIONS[op].format(*[self.terms[a] for a in args], s=suffix)
                    if k in same:
                        self._constant(term, kind, formula)
                    else:
                        self.body.append(f"const {kind} {term} = {formula};")
            self.terms[k] = term

    def array(self, name: str) -> str:
        """What an array is called: names of their own, for those of a chain have dots."""
        slots = self.variant.program.slots
        if name == "g":
            label, address = "g", "gradient"
        else:
            column = table.PARAMETER if name == "p" else table.SLOTS + slots.index(name)
            label, address = name if name == "p" else f"slot{slots.index(name)}", f"row[{column}]"
        self.arrays[label] = address
        self.parts[label] = 2 if name in self.variant.program.pairs else 1
        stored = self.variant.stored(name)
        if stored.stored:
            self.small[label] = stored.name
        return label

    def kept(self, label: str) -> str:
        """The type of an array's numbers in memory."""
        return "unsigned short" if label in self.small else self.T

    def read(self, label: str, term: str) -> str:
        """A number of an array, from what is in memory."""
        return f"wide_{self.small[label]}({term})" if label in self.small else term

    def written(self, label: str, term: str, index: str) -> str:
        """What is in memory of a number of an array."""
        if label == "p" and self.is_random:
            return f"random_{self.small[label]}({term}, random_bits(own_key, first + (unsigned int)start + {index}))"
        return f"narrow_{self.small[label]}({term})" if label in self.small else term

    def at(self, label: str, index: str, part: int = 0) -> str:
        """An element of an array, or one of its parts."""
        parts = self.parts[label]
        return f"at_{label}[{index}]" if parts == 1 else f"at_{label}[{parts} * {index} + {part}]"

    def each(self, labels: Iterable[str]) -> list[tuple[str, int]]:
        """Every part of these arrays."""
        return [(label, part) for label in labels for part in range(self.parts[label])]

    @property
    def prologue(self) -> list[str]:
        """Statements before the loop."""
        addresses = [
            f"{self.kept(name)}* at_{name} = ({self.kept(name)}*){address} + "
            f"{'start' if self.parts[name] == 1 else '2 * start'};"
            for name, address in self.arrays.items()
        ]
        return [*addresses, *(f"ASSUME_GLOBAL(at_{name});" for name in self.arrays), *self._prologue]

    def _constant(self, name: str, kind: str, formula: str) -> None:
        self.constants[name] = kind
        self._prologue.append(f"const {kind} {name} = {formula};")


def _numbered(kind: str, label: str, number: int = 0) -> str:
    """A variable of an array; there may be several."""
    return f"{kind}{number or ''}_{label}"


def _half(name: str, element: int) -> str:
    """The 16 bits of an element of the main loop."""
    word = f"v_{name}.{'xyzw'[element // 2]}"
    return f"{word} >> 16" if element % 2 else f"{word} & 0xffffu"


def _update(i: int, variant: Variant) -> str:
    """The code of one variant: the element, and the loop over a chunk."""
    last = update(variant.program)
    code = _Loop(variant, last.elements, {})
    T, lanes = code.T, "xyzw"[: 16 // ctypes.sizeof(DTYPES[variant.dtype].ctype)]  # noqa: N806 - a type
    read = list(code.arrays)
    written = {(code.array(store.name), store.part[0] if store.part else 0): store for store in last.stores}
    if not written:
        arguments = (
            "const long long*, long long, double, unsigned long long, long long, int, const void*, const double*"
        )
        return f"__device__ __forceinline__ void update{i}({arguments}) {{}}\n"
    # Through locals of their own: one output may be another one's input.
    body = [
        *code.body,
        *(f"const {T} {_numbered('r', *at)} = {code.terms[store.value]};" for at, store in written.items()),
        *(f"{_numbered('a', *at)} = {_numbered('r', *at)};" for at in written),
    ]
    # Of complex numbers both parts are written, or none.
    whens = {at[0]: "" if store.when is None else f"if ({code.terms[store.when]}) " for at, store in written.items()}
    names = list(code.arrays)
    every = code.each(names)
    constants = list(code.constants)
    # As many elements at a time as fill 16 bytes of the smallest array.
    numbers = {name: 8 if name in code.small else len(lanes) for name in names}  # in 16 bytes
    width = max(numbers[name] // code.parts[name] for name in names)
    vector = {name: "uint4" if name in code.small else f"{T}{len(lanes)}" for name in names}
    newline = "\n    "
    deeper = newline + "    "

    def lane(name: str, part: int, element: int) -> str:
        """Where a part of an element of the main loop is."""
        if name in code.small:
            return _numbered("e", name, element)
        k, own = divmod(element * code.parts[name] + part, len(lanes))
        return f"{_numbered('v', name, k)}.{lanes[own]}"

    vectors = [(name, k) for name in names for k in range(code.parts[name] * width // numbers[name])]
    memory = {(name, k): f"(({vector[name]}*)&{code.at(name, 'i')})[{k}]" for name, k in vectors}
    unpacked = [
        f"{T} {_numbered('e', name, k)}{' = ' + code.read(name, _half(name, k)) if name in read else ''};"
        for name in code.small
        for k in range(width)
    ]
    packed = [
        f"v_{name}.{word} = {code.written(name, _numbered('e', name, 2 * k), f'i + {2 * k}')} "
        f"| {code.written(name, _numbered('e', name, 2 * k + 1), f'i + {2 * k + 1}')} << 16;"
        for name in code.small
        if name in whens
        for k, word in enumerate("xyzw")
    ]
    return _UPDATE.format(
        i=i,
        T=T,
        width=width,
        threads=norms.LANES,
        arguments=", ".join(
            [f"{T}{'&' if at in written else ''} {_numbered('a', *at)}" for at in every]
            + [f"{kind} {name}" for name, kind in code.constants.items()]
        ),
        body=newline.join(body),
        prologue=newline.join(
            [
                *code.prologue,
                *(
                    [
                        f"const unsigned long long own_key = leaf_key(key, row[{table.REST}]);",
                        f"const unsigned int first = (unsigned long long)row[{table.REST}] >> 32;",
                    ]
                    * code.is_random
                ),
            ]
        ),
        alignment=" | ".join(f"(unsigned long long)at_{name}" for name in names),
        loads=deeper.join(
            [f"{vector[at[0]]} {_numbered('v', *at)}{f' = {memory[at]}' if at[0] in read else ''};" for at in vectors]
            + unpacked
        ),
        elements=deeper.join(
            f"element{i}({', '.join([lane(*at, element) for at in every] + constants)});" for element in range(width)
        ),
        stores=deeper.join(
            packed + [f"{whens[at[0]]}{memory[at]} = {_numbered('v', *at)};" for at in vectors if at[0] in whens]
        ),
        reads=" ".join(
            f"{T} {_numbered('s', name, part)}{' = ' + code.read(name, code.at(name, 'i', part)) if name in read else ''};"
            for name, part in every
        ),
        names=", ".join([_numbered("s", *at) for at in every] + constants),
        writes=" ".join(
            f"{whens[name]}{code.at(name, 'i', part)} = {code.written(name, _numbered('s', name, part), 'i')};"
            for name, part in every
            if name in whens
        ),
    )


# The last block to end adds up what all have found, for each leaf and then for each group, in order; then it works out the
# numbers.
_PASS = """\
__device__ __forceinline__ double larger(double a, double b)
{{
    return a > b || a != a ? a : b;
}}

__device__ __forceinline__ double root(double plain, double large, double small)
{{
    if (plain < {TINY}) return sqrt(small) * {SMALL};
    return FINITE(plain) ? sqrt(plain) : sqrt(large) * {LARGE};
}}

__device__ __forceinline__ void add_lanes(double value, double* lanes, double* out)
{{
    lanes[threadIdx.x] = value;
    __syncthreads();
    for (int half = LANES / 2; half > 0; half /= 2) {{
        if (threadIdx.x < half) lanes[threadIdx.x] += lanes[threadIdx.x + half];
        __syncthreads();
    }}
    if (threadIdx.x == 0) *out = lanes[0];
    __syncthreads();
}}

__device__ __forceinline__ void largest_lane(double value, double* lanes, double* out)
{{
    lanes[threadIdx.x] = value;
    __syncthreads();
    for (int half = LANES / 2; half > 0; half /= 2) {{
        if (threadIdx.x < half) lanes[threadIdx.x] = larger(lanes[threadIdx.x], lanes[threadIdx.x + half]);
        __syncthreads();
    }}
    if (threadIdx.x == 0) *out = lanes[0];
    __syncthreads();
}}
{functions}
extern "C" __global__ void __launch_bounds__(LANES, 1)  // rather fewer blocks at once than spilled registers
reduce(const long long* table, const long long* gradients, const long long* chunks, const double* verdict,
       long long segments, double* numbers, double* totals, long long groups, const long long* first_chunk, double* partials,
       double* found, unsigned int* finished, int gradients_at, const GRID_CONSTANT Values values)
{{
    __shared__ double lanes[LANES];
    __shared__ bool last;
    if (verdict[{SKIP}] != 0) return;
    const long long segment = chunks[2 * blockIdx.x], start = chunks[2 * blockIdx.x + 1];
    const long long* row = table + segment * {columns};
    const long long rest = row[{LENGTH}] - start;
    const long long gradient = address(values, gradients_at, gradients, segment);
    const int n = rest < {CHUNK} ? (int)rest : {CHUNK};
    const double scale = verdict[{SCALES} + segment];
    const double* own = numbers + segment * {numbers};
    const unsigned char* c = values.bytes + row[{COEFFICIENTS}];
    const double* h = (const double*)(values.bytes + row[{SCALARS}]);
    double* out = partials + WIDTH * blockIdx.x;
    for (int w = threadIdx.x; w < WIDTH; w += LANES) out[w] = w < SUMS ? 0 : LEAST;
    __syncthreads();
    if (gradient != 0) {{
        switch (row[{VARIANT}]) {{
{reduce_cases}
        }}
    }}
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(finished, 1u) == gridDim.x - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    const volatile double* parts = partials;
    for (long long k = threadIdx.x; k < segments * WIDTH; k += LANES) {{
        const long long s = k / WIDTH, w = k % WIDTH;
        double all = w < SUMS ? 0 : LEAST;
        for (long long j = first_chunk[s]; j < first_chunk[s + 1]; ++j) {{
            const double part = parts[j * WIDTH + w];
            all = w < SUMS ? all + part : larger(all, part);
        }}
        found[k] = all;
    }}
    __syncthreads();
    for (long long k = threadIdx.x; k < groups * (WIDTH + 1); k += LANES) {{
        const long long group = k / (WIDTH + 1), w = k % (WIDTH + 1);
        double all = w < SUMS || w == WIDTH ? 0 : LEAST;
        for (long long s = 0; s < segments; ++s) {{
            if (table[s * {columns} + {GROUP}] != group) continue;
            if (w == WIDTH) all += address(values, gradients_at, gradients, s) != 0;
            else all = w < SUMS ? all + found[s * WIDTH + w] : larger(all, found[s * WIDTH + w]);
        }}
        totals[k] = all;
    }}
    __syncthreads();
    for (long long s = threadIdx.x; s < segments; s += LANES) {{
        const long long* of = table + s * {columns};
        switch (of[{VARIANT}]) {{
{number_cases}
        }}
    }}
    if (threadIdx.x == 0) *finished = 0;
}}
"""

_REDUCE = """
__device__ {inlined} void reduce{i}_{part}({arguments})
{{
    {prologue}
    for (int i = threadIdx.x; i < n; i += LANES) {{
        {body}
    }}
    {add}
}}
"""

_REDUCE_ALL = """
__device__ __forceinline__ void reduce{i}({arguments})
{{
    {calls}
}}
"""

_REDUCE_ARGUMENTS = {
    "row": "const long long*",
    "gradient": "long long",
    "leaf_scale": "double",
    "start": "long long",
    "n": "int",
    "c": "const {T}*",
    "h": "const double*",
    "own": "const double*",
    "lanes": "double*",
    "out": "double*",
}

_NUMBERS = """
__device__ __noinline__ void numbers{i}_{part}({arguments})
{{
    {body}
}}
"""

_NUMBERS_ALL = """
__device__ __forceinline__ void numbers{i}({arguments})
{{
    {calls}
}}
"""

_NUMBERS_ARGUMENTS = "const long long* row, const double* found, const double* totals, const double* h, double* own"
NUMBERS_AT_ONCE = 32
"""In one function: of hundreds, the compiler would keep so many at once that all of the kernel had no registers."""


def reduction(k: int, variants: tuple[Variant, ...]) -> str:
    """CUDA C++ of the kernel of reduction pass ``k``."""
    sums, largest = table.widths(k, variants)
    own = {i: found[k] for i, v in enumerate(variants) if len(found := passes(v.program)) > k}
    reducing = [i for i, p in own.items() if p.reductions]
    constants = {
        "LANES": norms.LANES,
        "SUMS": sums,
        "WIDTH": sums + largest,
        "LEAST": _literal("-inf", "float64"),
        "FINITE(x)": "((x) - (x) == 0)",
    }
    defined = "".join(f"#define {name} {value}\n" for name, value in constants.items())
    functions = [_reduce(i, variants[i], own[i], sums) for i in reducing]
    functions += [_numbers(i, variants[i].program, this, sums) for i, this in own.items()]
    return (
        _VALUES.format(bytes=table.VALUE_BYTES)
        + _GLOBAL
        + defined
        + _small(variants)
        + _PASS.format(
            functions="".join(functions),
            columns=table.columns(variants),
            numbers=_numbers_of(variants),
            LENGTH=table.LENGTH,
            CHUNK=table.CHUNK,
            SKIP=SKIP,
            SCALES=SCALES,
            COEFFICIENTS=table.COEFFICIENTS,
            SCALARS=table.SCALARS,
            GROUP=table.GROUP,
            VARIANT=table.VARIANT,
            SMALL=_literal(norms.SCALES[1].hex(), "float64"),
            LARGE=_literal(norms.SCALES[2].hex(), "float64"),
            TINY=_literal(norms.TINY.hex(), "float64"),
            reduce_cases="\n".join(
                f"            case {i}: reduce{i}(row, gradient, scale, start, n, (const {_ctype(variants[i])}*)c, h, own, lanes, out);"
                " break;"
                for i in reducing
            ),
            number_cases="\n".join(
                f"            case {i}: numbers{i}(of, found + s * WIDTH, totals + of[{table.GROUP}] * (WIDTH + 1),"
                f" (const double*)(values.bytes + of[{table.SCALARS}]), numbers + s * {_numbers_of(variants)}); break;"
                for i in own
            ),
        )
    )


def _reduce(i: int, variant: Variant, own: Pass, sums: int) -> str:
    """What one variant adds up of a chunk: a function for each loop, since the compiler would keep what several need."""
    arguments = ", ".join(f"{kind.format(T=_ctype(variant))} {name}" for name, kind in _REDUCE_ARGUMENTS.items())
    inlined = "__forceinline__" if len(own.batches) == 1 else "__noinline__"
    loops = [
        _REDUCE.format(
            i=i, part=part, arguments=arguments, inlined=inlined, **_reducing_loop(variant, own, batch, sums)
        )
        for part, batch in enumerate(own.batches)
    ]
    calls = [f"reduce{i}_{part}({', '.join(_REDUCE_ARGUMENTS)});" for part in range(len(own.batches))]
    return "".join(loops) + _REDUCE_ALL.format(i=i, arguments=arguments, calls="\n    ".join(calls))


def _reducing_loop(variant: Variant, own: Pass, batch: Batch, sums: int) -> dict[str, str]:
    """Statements of a loop: before, in it, and after."""
    dtype = DTYPES[variant.dtype]
    numbers, lines = _arithmetic(variant.program, own.before, {})
    code = _Loop(variant, batch.elements, numbers)
    body = [
        f"const {code.T} {_numbered('a', name, part)} = {code.read(name, code.at(name, 'i', part))};"
        for name, part in code.each(code.arrays)
    ] + code.body
    start, add = [], []
    for r in batch.reductions:
        x = [f"(double){code.terms[a]}" for a in r.args]
        count = len(x) // 2 if r.kind == "dot" else len(x)  # parts of a number
        name, at = f"r{r.number}", r.column + (sums if r.kind == "max" else 0)
        match r.kind:
            case "max":
                start.append(f"double {name} = LEAST;")
                body.append(f"{name} = larger({name}, {x[0]} + 0.0);")
                add.append(f"largest_lane({name}, lanes, out + {at});")
            case "norm":
                for n, scale in enumerate(norms.SCALES[:1] if dtype.squares_fit else norms.SCALES):
                    start.append(f"double {name}_{n} = 0;")
                    factor = _literal(scale.hex(), "float64")
                    scaled = "".join(f"const double x{k} = {part} * {factor}; " for k, part in enumerate(x))
                    squares = " + ".join(f"x{k} * x{k}" for k in range(count))
                    body.append(f"{{ {scaled}{name}_{n} += {squares}; }}")
                    add.append(f"add_lanes({name}_{n}, lanes, out + {at + n});")
                if dtype.squares_fit:  # the sum of scaled squares is not taken; it has infinities and NaN, too
                    add.append(f"if (threadIdx.x == 0) out[{at + 1}] = FINITE(out[{at}]) ? 0 : out[{at}];")
            case _:
                terms = [" * ".join(x[k::count]) for k in range(count)]
                start.append(f"double {name} = 0;")
                body.append(f"{name} += {' + '.join(terms)};")
                add.append(f"add_lanes({name}, lanes, out + {at});")
    return {
        "prologue": "\n    ".join([*lines, *code.prologue, *start]),
        "body": "\n        ".join(body),
        "add": "\n    ".join(add),
    }


def _numbers(i: int, program: Program, this: Pass, sums: int) -> str:
    """What is worked out for each leaf after a pass."""
    reduced = {}
    for r in this.reductions:
        source, column = ("found" if r.over == "leaf" else "totals"), r.column + (sums if r.kind == "max" else 0)
        columns = [f"{source}[{column + n}]" for n in range(3 if r.kind == "norm" else 1)]
        reduced[r.number] = f"root({', '.join(columns)})" if r.kind == "norm" else columns[0]
    parts = [this.numbers[n : n + NUMBERS_AT_ONCE] for n in range(0, len(this.numbers), NUMBERS_AT_ONCE)]
    needed, functions = set(this.kept), list[str]()
    for part in range(len(parts) - 1, -1, -1):
        terms, lines = _arithmetic(program, parts[part], reduced)
        lines += [f"own[{k}] = {terms[k]};" for k in parts[part] if k in needed]
        needed |= {a for k in parts[part] for a in operands(program, k)}
        functions.append(_NUMBERS.format(i=i, part=part, arguments=_NUMBERS_ARGUMENTS, body="\n    ".join(lines)))
    calls = "\n    ".join(f"numbers{i}_{part}(row, found, totals, h, own);" for part in range(len(parts)))
    return "".join(functions) + _NUMBERS_ALL.format(i=i, arguments=_NUMBERS_ARGUMENTS, calls=calls)


def _arithmetic(
    program: Program, wanted: Iterable[int], reduced: Mapping[int, str]
) -> tuple[dict[int, str], list[str]]:
    """A term for each of these numbers, and the statements that work it out; earlier ones are read where they are kept."""
    terms: dict[int, str] = {}
    lines: list[str] = []
    for k in wanted:
        match program.numbers[k]:
            case Node("slot", (name,)):
                column = table.SLOTS + len(program.slots) + program.number_slots.index(name)
                formula = f"*(const double*)row[{column}]"
            case Node("scalar", (index,)):
                formula = f"h[{index}]"
            case Node("literal", (number,)):
                formula = _literal(number, "float64")
            case Node("reduce", _):
                formula = reduced[k]
            case Node(op, args):
                found = [terms.get(a) or (f"(own[{a}] != 0)" if _is_mask(program, a) else f"own[{a}]") for a in args]
                formula = _OPERATIONS[op].format(*found, s="")
        lines.append(f"const {'bool' if _is_mask(program, k) else 'double'} m{k} = {formula};")
        terms[k] = f"m{k}"
    return terms, lines


def _is_mask(program: Program, number: int) -> bool:
    return program.numbers[number].op in (*COMPARISONS, *LOGIC)


def _literal(number: str, dtype: str) -> str:
    """Spell a constant, rounded to a dtype, as a CUDA expression made of its bits."""
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

struct Half { unsigned short bits; };
struct BFloat { unsigned short bits; };

template <>
__device__ __forceinline__ double square(Half g, double scale)
{
    return square(wide_float16(g.bits), scale);
}

template <>
__device__ __forceinline__ double square(BFloat g, double scale)
{
    return square(wide_bfloat16(g.bits), scale);
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
        int clip, double limit, int skip, double factor, double every, int gradients_at, const GRID_CONSTANT Values values)
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
        if (!FINITE(a) && b == 0) b = a;  // of float32, for which the scaled sum is not computed
        sums[3 * s] = a; sums[3 * s + 1] = b; sums[3 * s + 2] = c;
    }
    const double loss_scale = factor != 0 ? verdict[LOSS_SCALE] : 1;  // as it was before this step
    __syncthreads();
    if (threadIdx.x == 0) {
        double total[3] = {0, 0, 0};
        bool finite = true;
        for (long long s = 0; s < segments; ++s) {
            for (int k = 0; k < 3; ++k) total[k] += sums[3 * s + k];
            finite = finite && FINITE(sums[3 * s + 1]);
        }
        verdict[NORM] = root(total) / loss_scale;
        verdict[SKIP] = skip && !finite;
        verdict[SKIPPED] += skip && !finite;
        if (factor != 0) {
            const bool stays = finite && verdict[GOOD] + 1 < every;
            const double next = stays ? loss_scale : finite ? loss_scale * factor : loss_scale / factor;
            verdict[GOOD] = stays ? verdict[GOOD] + 1 : 0;
            verdict[LOSS_SCALE] = next >= SMALLEST && next <= LARGEST ? next : loss_scale;
        }
        *finished = 0;
    }
    __syncthreads();
    for (long long s = threadIdx.x; s < segments; s += LANES) {
        const double norm = clip == GLOBAL_NORM ? verdict[NORM] : root(sums + 3 * s) / loss_scale;
        verdict[SCALES + s] = (clip && norm > limit ? limit / norm : 1) / loss_scale;
    }
}
"""


def _sums(name: str) -> str:
    """Return the ``case`` for gradients of a dtype: it adds up squares, and scaled squares where plain ones may not fit."""
    dtype = DTYPES[name]
    scales = ["1.0"] if dtype.squares_fit else ["1.0", "SMALL", "LARGE"]
    kind = {"float16": "Half", "bfloat16": "BFloat"}.get(name, f"{dtype.cuda}{dtype.parts if dtype.parts > 1 else ''}")
    calls = [
        f"sum_of_squares((const {kind}*)gradient + start, n, {scale}, lanes, out + {k});"
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
        "LOSS_SCALE": LOSS_SCALE,
        "GOOD": GOOD,
        "SCALES": SCALES,
        "SMALLEST": _literal(norms.SMALLEST.hex(), "float64"),
        "LARGEST": _literal(norms.LARGEST.hex(), "float64"),
        "GLOBAL_NORM": CLIPS.index("global_norm"),
        "STICKY": STICKY,
        "SMALL": _literal(norms.SCALES[1].hex(), "float64"),
        "LARGE": _literal(norms.SCALES[2].hex(), "float64"),
        "TINY": _literal(norms.TINY.hex(), "float64"),
        "FINITE(x)": "((x) - (x) == 0)",
        "SUMS": " ".join(map(_sums, DTYPES)),
    }
    defined = "".join(f"#define {name} {value}\n" for name, value in constants.items())
    return defined + _VALUES.format(bytes=table.VALUE_BYTES) + storage.CUDA + _MEASURE
