"""The loop of the CUDA kernel that adds up along an axis; see `gpuopt.engines.program.folds`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuopt.engines import norms, table
from gpuopt.engines.cuda.elements import Elements, numbered
from gpuopt.engines.program.folds import PARTS, Fold
from gpuopt.engines.program.passes import update

if TYPE_CHECKING:
    from gpuopt.engines.table import Variant

# A thread for each sum: neighbours read neighbours. Halves are added without a loop: of one within another, compilers keep the sums in
# memory for most devices.
_FOLD = """
__device__ __forceinline__ {T} value{i}(const long long* row, long long gradient, double leaf_scale, long long start, const {T}* c, const double* own)
{{
    {prologue}
    {body}
    return {value};
}}

__device__ __forceinline__ void update{i}(const long long* row, long long gradient, double leaf_scale, unsigned long long, long long start, int n, const {T}* c, const double* own)
{{
    {numbers}
    for (int i = threadIdx.x; i < n / {PARTS}; i += {threads}) {{
        long long position;
        const long long base = quotient(start / {PARTS} + i, lanes, position) * every;
        {T} sums[{PARTS}];
        #pragma unroll
        for (int j = 0; j < {PARTS}; ++j) {{
            sums[j] = 0;
            if (j < parts) {{
                const long long at = position + j * lanes;
                sums[j] = value{i}(row, gradient, leaf_scale, base + at, c, own);
                if (at + whole < every) sums[j] += value{i}(row, gradient, leaf_scale, base + at + whole, c, own);
            }}
        }}
        {halves}
        target[start / {PARTS} + i] = sums[0];
    }}
}}
"""


HALVES = [
    f"if ({half} < parts) {{ {' '.join(f'sums[{j}] += sums[{j + half}];' for j in range(half))} }}"
    for half in (PARTS >> k for k in range(1, PARTS.bit_length()))
]


def fold(i: int, variant: Variant) -> str:
    """The code of one variant that adds up along an axis."""
    last = update(variant.program)
    code = Elements(variant, last.elements, {})
    (store,) = last.stores
    column = table.fold_at(variant.program)
    reads = [
        f"const {code.T} {numbered('a', name, part)} = {code.read(name, code.at(name, '0', part))};"
        for name, part in code.each(code.arrays)
    ]
    target = table.SLOTS + variant.program.slots.index(store.name)
    numbers = [f"{code.T}* target = ({code.T}*)row[{target}];", "ASSUME_GLOBAL(target);"]
    numbers += [f"const long long {name} = row[{column + k}];" for k, name in enumerate(Fold._fields)]
    return _FOLD.format(
        i=i,
        T=code.T,
        prologue="\n    ".join(code.prologue),
        body="\n    ".join([*reads, *code.body]),
        value=code.terms[store.value],
        numbers="\n    ".join(numbers),
        PARTS=PARTS,
        halves="\n        ".join(HALVES),
        threads=norms.LANES,
    )
