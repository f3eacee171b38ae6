"""The CUDA kernel of a step, put together: a chunk is updated as its variant says, and the numbers that were found are kept.

What comes before it: `gpuopt.engines.cuda.reductions` and `gpuopt.engines.cuda.verdict`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuopt.engines import norms, table
from gpuopt.engines.cuda import updates as cuda_updates
from gpuopt.engines.cuda.preamble import GLOBAL, SCALES, SKIP, conversions, values
from gpuopt.engines.dtypes import DTYPES

if TYPE_CHECKING:
    from gpuopt.engines.program.program import Program
    from gpuopt.engines.table import Variant

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
    const long long* row = table + segment * {columns};
    const double scale = verdict[{SCALES} + row[{OWNER}]];
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


def source(variants: tuple[Variant, ...]) -> str:
    """CUDA C++ of the kernel that updates, and knows these variants."""
    sizes = {
        "threads": norms.LANES,
        "columns": table.columns(variants),
        "numbers": table.numbers(variants),
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
        values()
        + GLOBAL
        + conversions(variants)
        + _STEP.format(
            **sizes,
            functions="".join(cuda_updates.loop(i, variant) for i, variant in enumerate(variants)),
            keep=keep if with_slots else "",
            LENGTH=table.LENGTH,
            CHUNK=table.CHUNK,
            KEY=table.KEY,
            SKIP=SKIP,
            SCALES=SCALES,
            OWNER=table.OWNER,
            COEFFICIENTS=table.COEFFICIENTS,
            cases="\n".join(
                f"    case {i}: update{i}(row, gradient, scale, key, start, n, (const {DTYPES[v.dtype].cuda}*)c, own); break;"
                for i, v in enumerate(variants)
            ),
        )
    )


def _slots(program: Program) -> str:
    """Statements that write the slots of a leaf that are numbers; without a gradient, those that all leaves share."""
    return " ".join(
        f"{'' if name in program.shared else 'if (present) '}"
        f"*(double*)of[{table.SLOTS + len(program.slots) + n}] = found[{output}];"
        for n, (name, output) in enumerate(zip(program.number_slots, program.number_outputs, strict=True))
    )
