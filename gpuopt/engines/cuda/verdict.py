"""The CUDA kernel that looks at the gradients before a step, and its verdict: whether the step is left out, how gradients are scaled.

The sums are those of `gpuopt.engines.norms`, in the same order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuopt.engines import norms, table
from gpuopt.engines.cuda import reductions, storage
from gpuopt.engines.cuda.preamble import (
    BEFORE,
    FLOAT64,
    GLOBAL,
    GOOD,
    LOSS_SCALE,
    NORM,
    SCALES,
    SKIP,
    SKIPPED,
    adding,
    defined,
    values,
)
from gpuopt.engines.dtypes import DTYPES
from gpuopt.engines.program.passes import Pass

if TYPE_CHECKING:
    from gpuopt.engines.dtypes import DType

CLIPS = (None, "norm", "global_norm")
STICKY = 2
"""To leave out every step after a bad one, too, until the host has seen it."""

# See gpuopt.engines.norms. The last block to end adds up what all have found, and decides.
_MEASURE = """\
extern "C" __global__ void __launch_bounds__(LANES)
measure(const long long* table, long long columns, long long segments, const long long* gradients,
        const long long* chunks, const long long* first_chunk, double* partials, double* sums, double* verdict, unsigned int* finished,
        int clip, double limit, int skip, double factor, double every, int gradients_at, const GRID_CONSTANT Values values)
{
    __shared__ double lanes[LANES];
    __shared__ bool last;
    if (skip == STICKY && verdict[SKIP] != 0) {  // an error is on its way: all is left as it was when it happened
        if (blockIdx.x == 0 && threadIdx.x == 0) {
            for (int k = 0; k < BEFORE; ++k) verdict[BEFORE + k] = verdict[k];
            verdict[SKIPPED] += 1;
        }
        return;
    }
    const long long segment = chunks[2 * blockIdx.x], start = chunks[2 * blockIdx.x + 1];
    const long long* row = table + segment * columns;
    const long long rest = row[LENGTH] - start;
    const long long gradient = address(values, gradients_at, gradients, segment);
    const int n = rest < CHUNK ? (int)rest : CHUNK;
    double* out = partials + 3 * blockIdx.x;
    if (threadIdx.x < 3) out[threadIdx.x] = 0;
    __syncthreads();
    if (gradient != 0) {
        switch (row[DTYPE]) {
            SUMS
        }
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
        for (int k = 0; k < BEFORE; ++k) verdict[BEFORE + k] = verdict[k];
        double total[3] = {0, 0, 0};
        bool finite = true;
        for (long long s = 0; s < segments; ++s) {
            for (int k = 0; k < 3; ++k) total[k] += sums[3 * s + k];
            finite = finite && FINITE(sums[3 * s + 1]);
        }
        verdict[NORM] = root(total[0], total[1], total[2]) / loss_scale;
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
        const double norm = clip == GLOBAL_NORM ? verdict[NORM] : root(sums[3 * s], sums[3 * s + 1], sums[3 * s + 2]) / loss_scale;
        verdict[SCALES + s] = (clip && norm > limit ? limit / norm : 1) / loss_scale;
    }
}
"""


def source() -> str:
    """CUDA C++ of the kernel that looks at the gradients."""
    constants = {
        "CHUNK": table.CHUNK,
        "LENGTH": table.LENGTH,
        "DTYPE": table.DTYPE,
        "SKIP": SKIP,
        "SKIPPED": SKIPPED,
        "NORM": NORM,
        "LOSS_SCALE": LOSS_SCALE,
        "GOOD": GOOD,
        "BEFORE": BEFORE,
        "SCALES": SCALES,
        "SMALLEST": FLOAT64.cuda_literal(norms.SMALLEST.hex()),
        "LARGEST": FLOAT64.cuda_literal(norms.LARGEST.hex()),
        "GLOBAL_NORM": CLIPS.index("global_norm"),
        "STICKY": STICKY,
        "SUMS": " ".join(map(_case, DTYPES.values())),
    }
    functions = []
    for dtype in DTYPES.values():
        variant, batch = table.squares(dtype)
        functions.append(reductions.reduce(dtype.number, variant, Pass((), (batch,), (), ()), 3))
    return "".join([values(), GLOBAL, defined(constants), adding(), storage.functions(), *functions, _MEASURE])


def _case(dtype: DType) -> str:
    """The ``case`` for gradients of a dtype."""
    given = f"row, gradient, 1, start, n, (const {dtype.cuda}*)0, (const double*)0, (const double*)0, lanes, out"
    return f"case {dtype.number}: reduce{dtype.number}({given}); break;"
