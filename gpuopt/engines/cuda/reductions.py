"""The CUDA kernel of a reduction pass: every block adds up its chunk, the last block adds up what the blocks found.

The order of a sum is that of `gpuopt.engines.norms`: lanes in order, then halves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuopt.engines import norms, table
from gpuopt.engines.cuda import numbers as cuda_numbers
from gpuopt.engines.cuda.elements import Elements, numbered
from gpuopt.engines.cuda.preamble import FLOAT64, GLOBAL, SCALES, SKIP, adding, conversions, defined, values
from gpuopt.engines.dtypes import DTYPES
from gpuopt.engines.program.passes import passes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuopt.engines.program.passes import Batch, Pass
    from gpuopt.engines.table import Variant

# The last block to end adds up what all have found, for each leaf and then for each group, in order; then it works out the
# numbers.
_PASS = """\
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
    const double scale = verdict[{SCALES} + row[{OWNER}]];
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
{given}
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

_GIVEN = """\
    for (long long s = threadIdx.x; s < segments; s += LANES) {{
        const long long* of = table + s * {columns};
        if (address(values, gradients_at, gradients, s) == 0) continue;
        switch (of[{VARIANT}]) {{
{cases}
        }}
    }}
    __syncthreads();
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


def source(k: int, variants: tuple[Variant, ...]) -> str:
    """CUDA C++ of the kernel of reduction pass ``k``."""
    sums, largest = table.widths(k, variants)
    own = {i: found[k] for i, v in enumerate(variants) if len(found := passes(v.program)) > k}
    reducing = [i for i, p in own.items() if p.reductions]
    constants = {
        "SUMS": sums,
        "WIDTH": sums + largest,
        "LEAST": FLOAT64.cuda_literal("-inf"),
    }
    functions = [reduce(i, variants[i], own[i], sums) for i in reducing]
    functions += [cuda_numbers.after(i, variants[i].program, this, sums) for i, this in own.items()]
    return (
        values()
        + GLOBAL
        + defined(constants)
        + adding()
        + conversions(variants)
        + _PASS.format(
            functions="".join(functions),
            columns=table.columns(variants),
            numbers=table.numbers(variants),
            LENGTH=table.LENGTH,
            CHUNK=table.CHUNK,
            SKIP=SKIP,
            SCALES=SCALES,
            OWNER=table.OWNER,
            COEFFICIENTS=table.COEFFICIENTS,
            SCALARS=table.SCALARS,
            GROUP=table.GROUP,
            VARIANT=table.VARIANT,
            given=_given(variants, own),
            reduce_cases="\n".join(
                f"            case {i}: reduce{i}(row, gradient, scale, start, n, (const {DTYPES[variants[i].dtype].cuda}*)c, h, own, lanes, out);"
                " break;"
                for i in reducing
            ),
            number_cases="\n".join(
                f"            case {i}: numbers{i}(of, found + s * WIDTH, totals + of[{table.GROUP}] * (WIDTH + 1),"
                f" (const double*)(values.bytes + of[{table.SCALARS}]), numbers + s * {table.numbers(variants)}); break;"
                for i in own
            ),
        )
    )


def _given(variants: tuple[Variant, ...], own: Mapping[int, Pass]) -> str:
    """What adds the numbers that leaves have before the pass to what was found of them."""
    cases = [
        f"            case {i}: given{i}(of, found + s * WIDTH, (const double*)(values.bytes + of[{table.SCALARS}]),"
        f" numbers + s * {table.numbers(variants)}); break;"
        for i, this in own.items()
        if this.given
    ]
    if not cases:
        return ""
    columns = table.columns(variants)
    return _GIVEN.format(columns=columns, VARIANT=table.VARIANT, cases="\n".join(cases))


def reduce(i: int, variant: Variant, own: Pass, sums: int) -> str:
    """What one variant adds up of a chunk: a function for each loop, since the compiler would keep what several need."""
    arguments = ", ".join(
        f"{kind.format(T=DTYPES[variant.dtype].cuda)} {name}" for name, kind in _REDUCE_ARGUMENTS.items()
    )
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
    numbers, lines = cuda_numbers.arithmetic(variant.program, own.before, {})
    code = Elements(variant, batch.elements, numbers, index="i")
    body = [
        f"const {code.T} {numbered('a', name, part)} = {code.read(name, code.at(name, 'i', part))};"
        for name, part in code.each(code.arrays)
    ] + code.body
    start, add = [], []
    for r in batch.reductions:
        x = [f"(double){code.terms[a]}" for a in r.args]
        count = len(x) // 2 if r.kind == "dot" else len(x)  # parts of a number
        name, at = f"r{r.number}", r.column_among(sums)
        match r.kind:
            case "max":
                start.append(f"double {name} = LEAST;")
                body.append(f"{name} = larger({name}, {x[0]} + 0.0);")
                add.append(f"largest_lane({name}, lanes, out + {at});")
            case "norm":
                for n, scale in enumerate(norms.SCALES[:1] if dtype.squares_fit else norms.SCALES):
                    start.append(f"double {name}_{n} = 0;")
                    factor = FLOAT64.cuda_literal(scale.hex())
                    scaled = "".join(f"const double x{k} = {part} * {factor}; " for k, part in enumerate(x))
                    squares = " + ".join(f"x{k} * x{k}" for k in range(count))
                    body.append(f"{{ {scaled}{name}_{n} += {squares}; }}")
                    add.append(f"add_lanes({name}_{n}, lanes, out + {at + n});")
                if dtype.squares_fit:  # the sum of scaled squares is not computed; it has infinities and NaN, too
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
