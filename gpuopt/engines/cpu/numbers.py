"""Numbers of the CPU's kernels, as LLVM IR: what chunks found is added up, and float64 arithmetic goes on with the sums."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from gpuopt.engines import norms, table
from gpuopt.engines.cpu import walks
from gpuopt.engines.cpu.ir import Function
from gpuopt.engines.program.passes import passes
from gpuopt.engines.program.program import Node

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gpuopt.engines.program.passes import Pass
    from gpuopt.engines.program.program import Program
    from gpuopt.engines.table import Variant


class Numbers:
    """Arithmetic on numbers, in float64, as it is written into a function.

    Parameters
    ----------
    f
        Whose arguments have the row of the leaf, its scalars ``h`` and, where earlier numbers are needed, where they are kept: ``own``.
    program
        Whose numbers they are.
    columns
        Of each number that was reduced, the argument in which it lies and its column there.

    """

    def __init__(self, f: Function, program: Program, columns: Mapping[int, tuple[str, int]] | None = None) -> None:
        self._f, self._program, self._columns = f, program, columns or {}
        self._values: dict[int, Any] = {}

    def write(self, wanted: Iterable[int]) -> None:
        """Write the arithmetic that gives these numbers."""
        f, program = self._f, self._program
        for k in wanted:
            match program.numbers[k]:
                case Node("slot", (name,)):
                    self._values[k] = self._slot(program.number_slots.index(name))[0]
                case Node("scalar", (index,)):
                    self._values[k] = f.given["h"][index]
                case Node("literal", (number,)):
                    self._values[k] = f.real(float.fromhex(number))
                case Node("reduce", (kind, *_)):
                    place, column = self._columns[k]
                    sums = [f.given[place][column + n] for n in range(3 if kind == "norm" else 1)]
                    self._values[k] = f.call("root", *sums, kind="double") if kind == "norm" else sums[0]
                case Node(op, args):
                    self._values[k] = f.operation(op, *map(self.value, args))

    def value(self, k: int) -> Any:
        """A number; one of an earlier pass is read where it is kept."""
        if k not in self._values:
            kept = self._f.given["own"][k]
            self._values[k] = kept != 0.0 if self._program.is_mask(k) else kept
        return self._values[k]

    def as_float(self, k: int) -> Any:
        """A number, or 1 or 0 for a truth value."""
        return self.value(k).cast("double") if self._program.is_mask(k) else self.value(k)

    def keep(self, numbers: Iterable[int]) -> None:
        """Write the stores of numbers that later passes read."""
        for k in numbers:
            self._f.given["own"][k] = self.as_float(k)

    def keep_slots(self) -> None:
        """Write the slots that are numbers; of a leaf without a gradient, those that all leaves share."""
        new = [self.value(output) for output in self._program.number_outputs]
        for n, name in enumerate(self._program.number_slots):
            slot = self._slot(n)
            is_shared = name in self._program.shared
            slot[0] = new[n] if is_shared else self._f.where(self._f.given["present"], new[n], slot[0])

    def _slot(self, n: int) -> Any:
        """The address of a slot that is a number."""
        return self._f.given["row"].bits("double**")[table.SLOTS + len(self._program.slots) + n]


def larger(f: Function, x: Any, y: Any) -> Any:
    """The larger one of two numbers; NaN if either is."""
    return f.where((x > y) | (x != x), x, y)  # noqa: PLR0124 - NaN


def functions() -> list[str]:
    """Return IR of the functions that passes and numbers call."""
    f = Function("larger", "double x, double y", "double", "alwaysinline", internal=True)
    found = [f.text(larger(f, *f.given.values()))]
    f = Function("root", "double plain, double large, double small", "double", "alwaysinline", internal=True)
    plain, large, small = (f.operation("sqrt", x) for x in f.given.values())
    squares = f.given["plain"]
    norm = f.where(squares - squares == 0.0, plain, large * norms.SCALES[2])
    return [*found, f.text(f.where(squares < norms.TINY, small * norms.SCALES[1], norm))]


def after(k: int, variants: tuple[Variant, ...], own: Mapping[int, Pass], sums: int, largest: int) -> str:
    """Return IR of the functions that work numbers out after a pass."""
    code = []
    arguments = "i64* row, double* found, double* totals, double* own, double* h, i1 present"
    for i, this in own.items():
        f, program = Function(f"numbers{k}.{i}", arguments, internal=True), variants[i].program
        numbers = Numbers(f, program, {r.number: (_PLACES[r.over], r.column_among(sums)) for r in this.results})
        numbers.write(this.numbers)
        numbers.keep(this.kept)
        if k == len(passes(program)) - 1:
            numbers.keep_slots()
        code.append(f.text())
        if this.given:
            f = Function(f"given{k}.{i}", arguments, internal=True)
            numbers = Numbers(f, program)
            numbers.write(this.before)
            for r in this.given:
                f.given["found"][r.column] = numbers.value(program.nodes[r.args[0]].args[0])
            code.append(f.text())
    return "\n".join([*code, _all(k, variants, own, sums, largest)])


_PLACES = {"leaf": "found", "group": "totals"}


def _all(k: int, variants: tuple[Variant, ...], own: Mapping[int, Pass], sums: int, largest: int) -> str:
    """On one thread: what chunks found is added up for each leaf, then for each group, in order; then numbers are worked out."""
    parts, width = sums + largest, sums + largest + 1
    f, context = walks.function(f"numbers{k}", walks.OF_STEP)
    all_rows, gradients = context["table"], context["gradients"]

    def together(column: Any, x: Any, y: Any) -> Any:
        return f.where(column >= sums, larger(f, x, y), x + y) if largest else x + y

    def first(column: Any) -> Any:
        return f.where((column >= sums) & (column < parts), -math.inf, 0.0) if largest else f.real(0.0)

    with f.loop(0, context["sizes"][1] * width) as n:
        context["totals"][n] = first(n % width)

    def leaf(s: Any) -> tuple[Any, ...]:
        row, found = all_rows.at(s * table.columns(variants)), context["found"].at(s * width)
        total = context["totals"].at(row[table.GROUP] * width)
        kept = context["numbers"].at(s * table.numbers(variants))
        return row, found, total, kept, context["values"].at(row[table.SCALARS]).bits("double*"), gradients[s] != None

    def for_each(name: str, which: Iterable[int], given: tuple[Any, ...]) -> None:
        f.choose(given[0][table.VARIANT], {i: partial(f.call, f"{name}{k}.{i}", *given) for i in which})

    with f.loop(0, context["sizes"][0]) as s:
        _, found, total, *_, present = given = leaf(s)
        with f.loop(0, parts) as column:
            found[column] = first(column)
        with f.loop(context["first"][s], context["first"][s + 1]) as chunk, f.loop(0, parts) as column:
            found[column] = together(column, found[column], context["partials"][chunk * parts + column])
        if known := [i for i, this in own.items() if this.given]:
            with f.when(present):
                for_each("given", known, given)
        with f.loop(0, parts) as column:
            total[column] = together(column, total[column], found[column])
        total[parts] = total[parts] + present.cast("double")
    with f.loop(0, context["sizes"][0]) as s:
        given = leaf(s)
        with f.when(given[2][parts] > 0.0):
            for_each("numbers", own, given)
    return f.text()
