"""Numbers of the CUDA kernels, as CUDA C++: float64 arithmetic of one thread a leaf, with what has been added up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuopt.engines import table
from gpuopt.engines.cuda.elements import OPERATIONS
from gpuopt.engines.cuda.preamble import FLOAT64
from gpuopt.engines.program.passes import operands
from gpuopt.engines.program.program import Node

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gpuopt.engines.program.passes import Pass
    from gpuopt.engines.program.program import Program

_PART = """
__device__ __noinline__ void numbers{i}_{part}({arguments})
{{
    {body}
}}
"""

_ALL = """
__device__ __forceinline__ void numbers{i}({arguments})
{{
    {calls}
}}
"""

_GIVEN = """
__device__ __noinline__ void given{i}({arguments})
{{
    {body}
}}
"""
_GIVEN_ARGUMENTS = "const long long* row, double* found, const double* h, const double* own"

_ARGUMENTS = "const long long* row, const double* found, const double* totals, const double* h, double* own"
NUMBERS_AT_ONCE = 32
"""In one function: of hundreds, the compiler would keep so many at once that all of the kernel had no registers."""


def after(i: int, program: Program, this: Pass, sums: int) -> str:
    """What is worked out for each leaf after a pass."""
    reduced = {}
    for r in this.results:
        source, column = ("found" if r.over == "leaf" else "totals"), r.column_among(sums)
        columns = [f"{source}[{column + n}]" for n in range(3 if r.kind == "norm" else 1)]
        reduced[r.number] = f"root({', '.join(columns)})" if r.kind == "norm" else columns[0]
    parts = [this.numbers[n : n + NUMBERS_AT_ONCE] for n in range(0, len(this.numbers), NUMBERS_AT_ONCE)]
    needed, functions = set(this.kept), list[str]()
    for part in range(len(parts) - 1, -1, -1):
        terms, lines = arithmetic(program, parts[part], reduced)
        lines += [f"own[{k}] = {terms[k]};" for k in parts[part] if k in needed]
        needed |= {a for k in parts[part] for a in operands(program, k)}
        functions.append(_PART.format(i=i, part=part, arguments=_ARGUMENTS, body="\n    ".join(lines)))
    calls = "\n    ".join(f"numbers{i}_{part}(row, found, totals, h, own);" for part in range(len(parts)))
    terms, lines = arithmetic(program, this.before if this.given else (), {})
    for r in this.given:
        number = program.nodes[r.args[0]].args[0]
        lines.append(f"found[{r.column}] = {terms.get(number, f'own[{number}]')};")
    given = _GIVEN.format(i=i, arguments=_GIVEN_ARGUMENTS, body="\n    ".join(lines)) if this.given else ""
    return "".join(functions) + _ALL.format(i=i, arguments=_ARGUMENTS, calls=calls) + given


def arithmetic(program: Program, wanted: Iterable[int], reduced: Mapping[int, str]) -> tuple[dict[int, str], list[str]]:
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
                formula = FLOAT64.cuda_literal(number)
            case Node("reduce", _):
                formula = reduced[k]
            case Node(op, args):
                found = [terms.get(a) or (f"(own[{a}] != 0)" if program.is_mask(a) else f"own[{a}]") for a in args]
                formula = OPERATIONS[op].format(*found, s="")
        lines.append(f"const {'bool' if program.is_mask(k) else 'double'} m{k} = {formula};")
        terms[k] = f"m{k}"
    return terms, lines
