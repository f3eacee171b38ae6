"""The CUDA kernel that looks at the gradients before a step, and its verdict: whether the step is left out, how gradients are scaled.

The sums are those of `gpuopt.engines.norms`, in the same order.
"""

from __future__ import annotations

from gpuopt.engines import cuda_storage, norms, table
from gpuopt.engines.cuda_preamble import FINITE, FLOAT64, OF_NORMS, defined, values
from gpuopt.engines.dtypes import DTYPES

SKIP, SKIPPED, NORM, LOSS_SCALE, GOOD, SCALES = range(6)
"""Of the verdict, an array of float64 on the device: whether to leave the step out, how many were, the norm, what the
gradients are divided by, for how many good steps that is so, the scales."""

CLIPS = (None, "norm", "global_norm")
STICKY = 2
"""To leave out every step after a bad one, too, until the host has seen it."""

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


def source() -> str:
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
        "SMALLEST": FLOAT64.cuda_literal(norms.SMALLEST.hex()),
        "LARGEST": FLOAT64.cuda_literal(norms.LARGEST.hex()),
        "GLOBAL_NORM": CLIPS.index("global_norm"),
        "STICKY": STICKY,
        **OF_NORMS,
        **FINITE,
        "SUMS": " ".join(map(_sums, DTYPES)),
    }
    return defined(constants) + values() + cuda_storage.functions() + _MEASURE


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
