"""The loop of the CUDA kernel that updates a chunk of one variant: 16 bytes of each array at a time."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from gpuopt.engines import norms, table
from gpuopt.engines.cuda import extents
from gpuopt.engines.cuda.elements import Elements, numbered
from gpuopt.engines.cuda.invariants import Invariants
from gpuopt.engines.dtypes import DTYPES
from gpuopt.engines.program.passes import update

if TYPE_CHECKING:
    from gpuopt.engines.table import Variant

WORDS = 96
"""Words of 32 bits that the main loop may read at a time; a thread has 255 registers."""

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


def loop(i: int, variant: Variant) -> str:
    """The code of one variant: the element, and the loop over a chunk."""
    if variant.program.folds:
        return extents.fold(i, variant)
    last = update(variant.program)
    code = Elements(variant, last.elements, {})
    T = code.T  # noqa: N806 - a type
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
        *(f"const {T} {numbered('r', *at)} = {code.terms[store.value]};" for at, store in written.items()),
        *(f"{numbered('a', *at)} = {numbered('r', *at)};" for at in written),
    ]
    names = list(code.arrays)
    every = code.each(names)
    # As many elements at a time as fill 16 bytes of the smallest array; fewer of so many that registers could not hold them.
    wide = [name for name in names if name not in code.spread]
    size = ctypes.sizeof(DTYPES[variant.dtype].ctype)
    width = max(16 // (2 if name in code.small else size) // code.parts[name] for name in wide)
    while width > 1 + bool(code.small) and width * sum(code.parts[name] for name in wide) * size > WORDS * 4:
        width //= 2
    stored = {code.terms[k] for store in last.stores for k in (store.value, store.when) if k is not None}
    same = Invariants(code, code.used | stored, width * sum(code.parts[name] for name in wide) * size // 4)
    # Of complex numbers both parts are written, or none.
    conditions = {at[0]: store.when for at, store in written.items()}
    whens = {name: "" if when is None else f"if ({same.test(code.terms[when])}) " for name, when in conditions.items()}
    # Of an array's vector the numbers, and the words that it consists of: two numbers of 16 bits are a word.
    count = {name: min(8 if name in code.small else 16 // size, code.parts[name] * width) for name in wide}
    words = {name: count[name] // 2 if name in code.small else count[name] for name in wide}
    vector = {name: _vector("uint" if name in code.small else T, words[name]) for name in wide}
    newline = "\n    "
    deeper = newline + "    "

    def word(name: str, vector: int, k: int) -> str:
        """A word of a vector of the main loop."""
        return numbered("v", name, vector) + (f".{'xyzw'[k]}" if words[name] > 1 else "")

    def half(name: str, element: int) -> str:
        """The 16 bits of an element of the main loop."""
        own = word(name, 0, element // 2)
        return f"{own} >> 16" if element % 2 else f"{own} & 0xffffu"

    def lane(name: str, part: int, element: int) -> str:
        """Where a part of an element of the main loop is."""
        if name in code.small or name in code.spread:
            return numbered("e", name, element)
        return word(name, *divmod(element * code.parts[name] + part, count[name]))

    vectors = [(name, k) for name in wide for k in range(code.parts[name] * width // count[name])]
    memory = {(name, k): f"(({vector[name]}*)&{code.at(name, 'i')})[{k}]" for name, k in vectors}
    unpacked = [
        f"{T} {numbered('e', name, k)}{' = ' + code.read(name, half(name, k)) if name in read else ''};"
        for name in code.small
        for k in range(width)
    ] + [
        f"const {T} {numbered('e', name, k)} = {code.at(name, f'i + {k}')};"
        for name in code.spread
        for k in range(width)
    ]
    packed = [
        f"{word(name, 0, k)} = {code.written(name, numbered('e', name, 2 * k), f'i + {2 * k}')} "
        f"| {code.written(name, numbered('e', name, 2 * k + 1), f'i + {2 * k + 1}')} << 16;"
        for name in code.small
        if name in whens
        for k in range(words[name])
    ]
    return _UPDATE.format(
        i=i,
        T=T,
        width=width,
        threads=norms.LANES,
        arguments=", ".join(
            [f"{T}{'&' if at in written else ''} {numbered('a', *at)}" for at in every] + same.parameters
        ),
        body=newline.join(same.body + body),
        prologue=newline.join(
            [
                *code.prologue,
                *same.prologue,
                *(
                    [
                        f"const unsigned long long own_key = leaf_key(key, row[{table.REST}]);",
                        f"const unsigned int first = (unsigned long long)row[{table.REST}] >> 32;",
                    ]
                    * code.is_random
                ),
            ]
        ),
        alignment=" | ".join(f"(unsigned long long)at_{name}" for name in wide),
        loads=deeper.join(
            same.addresses(names)
            + [f"{vector[at[0]]} {numbered('v', *at)}{f' = {memory[at]}' if at[0] in read else ''};" for at in vectors]
            + unpacked
        ),
        elements=deeper.join(
            f"element{i}({', '.join([lane(*at, element) for at in every] + same.arguments)});"
            for element in range(width)
        ),
        stores=deeper.join(
            packed
            + same.addresses(whens, again=True)
            + [f"{whens[at[0]]}{memory[at]} = {numbered('v', *at)};" for at in vectors if at[0] in whens]
        ),
        reads=" ".join(
            same.addresses(names)
            + [
                f"{T} {numbered('s', name, part)}{' = ' + code.read(name, code.at(name, 'i', part)) if name in read else ''};"
                for name, part in every
            ]
        ),
        names=", ".join([numbered("s", *at) for at in every] + same.arguments),
        writes=" ".join(
            same.addresses(whens, again=True)
            + [
                f"{whens[name]}{code.at(name, 'i', part)} = {code.written(name, numbered('s', name, part), 'i')};"
                for name, part in every
                if name in whens
            ]
        ),
    )


def _vector(kind: str, count: int) -> str:
    """CUDA's type of so many words."""
    return f"{kind}{count}" if count > 1 else {"uint": "unsigned int"}.get(kind, kind)
