"""Numbers of the CPU's kernels, as LLVM IR: what chunks found is added up, and float64 arithmetic goes on with the sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuopt.engines import cpu_walks, norms, table
from gpuopt.engines.cpu_elements import IDENTITY, LARGER
from gpuopt.engines.cpu_ir import OPERATIONS
from gpuopt.engines.dtypes import DTYPES
from gpuopt.engines.passes import passes
from gpuopt.engines.program import COMPARISONS, LOGIC, Node

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gpuopt.engines.passes import Pass
    from gpuopt.engines.program import Program
    from gpuopt.engines.table import Variant


class Numbers:
    """IR of arithmetic on numbers, in float64.

    Parameters
    ----------
    program
        Whose numbers they are.
    known
        Whether earlier numbers are kept in ``%own``, and what was reduced lies at ``%found`` and ``%totals``.

    """

    def __init__(self, program: Program, *, known: bool, columns: Mapping[int, tuple[str, int]] | None = None) -> None:
        self.program, self.known, self.columns = program, known, columns or {}

    def emit(self, wanted: Iterable[int]) -> tuple[dict[int, str], list[str]]:
        """Return a term for each of these numbers, and the lines that work it out."""
        program, lines = self.program, list[str]()
        values: dict[int, str] = {}
        for k in wanted:
            value = f"%m{k}"
            match program.numbers[k]:
                case Node("slot", (name,)):
                    column = table.SLOTS + len(program.slots) + program.number_slots.index(name)
                    lines += [
                        f"{value}.at = getelementptr i64, ptr %row, i64 {column}",
                        f"{value}.slot = load ptr, ptr {value}.at",
                        f"{value} = load double, ptr {value}.slot",
                    ]
                case Node("scalar", (index,)):
                    lines += [
                        f"{value}.at = getelementptr double, ptr %h, i64 {index}",
                        f"{value} = load double, ptr {value}.at",
                    ]
                case Node("literal", (number,)):
                    value = DTYPES["float64"].llvm_literal(number)
                case Node("reduce", (kind, *_)):
                    lines += self._reduced(value, kind, *self.columns[k])
                case Node(op, args):
                    terms = [self.term(a, values, lines) for a in args]
                    lines.append(f"{value} = " + OPERATIONS[op].format(*terms, T="double", S="f64"))
            values[k] = value
        return values, lines

    def keep(self, values: Mapping[int, str]) -> list[str]:
        """Lines that keep numbers in ``%own``."""
        lines = []
        for k, value in values.items():
            term = value
            if self.program.numbers[k].op in (*COMPARISONS, *LOGIC):
                lines.append(f"%k{k} = uitofp i1 {value} to double")
                term = f"%k{k}"
            lines += [f"%k{k}.at = getelementptr double, ptr %own, i64 {k}", f"store double {term}, ptr %k{k}.at"]
        return lines

    def term(self, k: int, values: dict[int, str], lines: list[str]) -> str:
        """Return the term of a number; of one of an earlier pass, add the lines that load it."""
        if k not in values:
            lines += [f"%m{k}.at = getelementptr double, ptr %own, i64 {k}", f"%m{k}.kept = load double, ptr %m{k}.at"]
            values[k] = f"%m{k}.kept"
            if self.program.numbers[k].op in (*COMPARISONS, *LOGIC):
                lines.append(f"%m{k} = fcmp une double %m{k}.kept, 0.0")
                values[k] = f"%m{k}"
        return values[k]

    def _reduced(self, value: str, kind: str, over: str, column: int) -> list[str]:
        parts = []
        for n in range(3 if kind == "norm" else 1):
            part = f"{value}.{n}" if kind == "norm" else value
            parts += [
                f"{part}.at = getelementptr double, ptr %{'found' if over == 'leaf' else 'totals'}, i64 {column + n}",
                f"{part} = load double, ptr {part}.at",
            ]
        return (
            [*parts, f"{value} = call double @root(double {value}.0, double {value}.1, double {value}.2)"]
            if kind == "norm"
            else parts
        )


_ROOT = """
define internal double @root(double %plain, double %large, double %small) alwaysinline {{
  %sqrt = call double @llvm.sqrt.f64(double %plain)
  %large.root = call double @llvm.sqrt.f64(double %large)
  %large.norm = fmul double %large.root, {LARGE}
  %small.root = call double @llvm.sqrt.f64(double %small)
  %small.norm = fmul double %small.root, {SMALL}
  %zero = fsub double %plain, %plain
  %finite = fcmp oeq double %zero, 0.0
  %norm = select i1 %finite, double %sqrt, double %large.norm
  %tiny = fcmp olt double %plain, {TINY}
  %root = select i1 %tiny, double %small.norm, double %norm
  ret double %root
}}
"""

# On one thread: what chunks found is added up for each leaf, then for each group, in order; then numbers are worked out.
_NUMBERS = """
define internal double @added{k}(i1 %is.max, double %before, double %new) alwaysinline {{
  %sum = fadd double %before, %new
  {larger}
  %both = select i1 %is.max, double %larger, double %sum
  ret double %both
}}

define void @numbers{k}(ptr %context, i64 %begin, i64 %end) {{
entry:
{context}
  %segments = load i64, ptr %sizes
  %groups.at = getelementptr i64, ptr %sizes, i64 1
  %groups = load i64, ptr %groups.at
  br label %group
group:
  %group.k = phi i64 [ 0, %entry ], [ %group.next, %group.end ]
  %total = getelementptr [{width} x double], ptr %totals, i64 %group.k
  br label %group.column
group.column:
  %gc = phi i64 [ 0, %group ], [ %gc.next, %group.column ]
  %gc.late = icmp sge i64 %gc, {sums}
  %gc.early = icmp slt i64 %gc, {parts}
  %gc.max = and i1 %gc.late, %gc.early
  %gc.start = select i1 %gc.max, double {least}, double 0.0
  %gc.at = getelementptr double, ptr %total, i64 %gc
  store double %gc.start, ptr %gc.at
  %gc.next = add nuw nsw i64 %gc, 1
  %gc.more = icmp slt i64 %gc.next, {width}
  br i1 %gc.more, label %group.column, label %group.end
group.end:
  %group.next = add nuw nsw i64 %group.k, 1
  %group.more = icmp slt i64 %group.next, %groups
  br i1 %group.more, label %group, label %segment
segment:
  %s = phi i64 [ 0, %group.end ], [ %s.next, %segment.end ]
  %row = getelementptr [{columns} x i64], ptr %table, i64 %s
  %group.at = getelementptr i64, ptr %row, i64 {GROUP}
  %g = load i64, ptr %group.at
  %total.s = getelementptr [{width} x double], ptr %totals, i64 %g
  %found.s = getelementptr [{width} x double], ptr %found, i64 %s
  %from.at = getelementptr i64, ptr %first, i64 %s
  %from = load i64, ptr %from.at
  %to.at = getelementptr i64, ptr %from.at, i64 1
  %to = load i64, ptr %to.at
  %gradient.at = getelementptr ptr, ptr %gradients, i64 %s
  %gradient = load ptr, ptr %gradient.at
  %is.present = icmp ne ptr %gradient, null
  %present.one = uitofp i1 %is.present to double
  br label %column
column:
  %c = phi i64 [ 0, %segment ], [ %c.next, %column.end ]
  %c.max = icmp sge i64 %c, {sums}
  %c.start = select i1 %c.max, double {least}, double 0.0
  %any.chunks = icmp slt i64 %from, %to
  br i1 %any.chunks, label %part, label %column.end
part:
  %p = phi i64 [ %from, %column ], [ %p.next, %part ]
  %sum = phi double [ %c.start, %column ], [ %sum.next, %part ]
  %part.row = getelementptr [{parts} x double], ptr %partials, i64 %p
  %part.at = getelementptr double, ptr %part.row, i64 %c
  %new = load double, ptr %part.at
  %sum.next = call double @added{k}(i1 %c.max, double %sum, double %new)
  %p.next = add nuw nsw i64 %p, 1
  %p.more = icmp slt i64 %p.next, %to
  br i1 %p.more, label %part, label %column.end
column.end:
  %leaf.sum = phi double [ %c.start, %column ], [ %sum.next, %part ]
  %found.at = getelementptr double, ptr %found.s, i64 %c
  store double %leaf.sum, ptr %found.at
  %total.at = getelementptr double, ptr %total.s, i64 %c
  %total.before = load double, ptr %total.at
  %total.new = call double @added{k}(i1 %c.max, double %total.before, double %leaf.sum)
  store double %total.new, ptr %total.at
  %c.next = add nuw nsw i64 %c, 1
  %c.more = icmp slt i64 %c.next, {parts}
  br i1 %c.more, label %column, label %segment.end
segment.end:
  %count.at = getelementptr double, ptr %total.s, i64 {parts}
  %count.before = load double, ptr %count.at
  %count.new = fadd double %count.before, %present.one
  store double %count.new, ptr %count.at
  %s.next = add nuw nsw i64 %s, 1
  %s.more = icmp slt i64 %s.next, %segments
  br i1 %s.more, label %segment, label %leaf
leaf:
  %l = phi i64 [ 0, %segment.end ], [ %l.next, %next ]
  %l.row = getelementptr [{columns} x i64], ptr %table, i64 %l
  %l.group.at = getelementptr i64, ptr %l.row, i64 {GROUP}
  %l.group = load i64, ptr %l.group.at
  %l.totals = getelementptr [{width} x double], ptr %totals, i64 %l.group
  %l.found = getelementptr [{width} x double], ptr %found, i64 %l
  %l.own = getelementptr [{numbers} x double], ptr %numbers, i64 %l
  %l.gradient.at = getelementptr ptr, ptr %gradients, i64 %l
  %l.gradient = load ptr, ptr %l.gradient.at
  %l.present = icmp ne ptr %l.gradient, null
  %l.count.at = getelementptr double, ptr %l.totals, i64 {parts}
  %l.count = load double, ptr %l.count.at
  %l.any = fcmp ogt double %l.count, 0.0
  %h.offset.at = getelementptr i64, ptr %l.row, i64 {SCALARS}
  %h.offset = load i64, ptr %h.offset.at
  %h = getelementptr i8, ptr %values, i64 %h.offset
  %variant.at = getelementptr i64, ptr %l.row, i64 {VARIANT}
  %variant = load i64, ptr %variant.at
  br i1 %l.any, label %worked, label %next
worked:
  switch i64 %variant, label %next [ {cases} ]
{calls}
next:
  %l.next = add nuw nsw i64 %l, 1
  %l.more = icmp slt i64 %l.next, %segments
  br i1 %l.more, label %leaf, label %exit
exit:
  ret void
}}
"""

_NUMBERS_CALL = """variant{i}:
  call void @numbers{k}.{i}(ptr %l.row, ptr %l.found, ptr %l.totals, ptr %l.own, ptr %h, i1 %l.present)
  br label %next"""

_NUMBERS_OF = """
define internal void @numbers{k}.{i}(ptr %row, ptr %found, ptr %totals, ptr %own, ptr %h, i1 %present) {{
  {lines}
  ret void
}}
"""


def after(k: int, variants: tuple[Variant, ...], own: Mapping[int, Pass], sums: int, largest: int) -> str:
    """The function that is called after a pass."""
    parts = sums + largest
    code = [
        _NUMBERS.format(
            k=k,
            context=cpu_walks.loaded(cpu_walks.CONTEXT),
            larger=LARGER.format("larger", "before", "new"),
            columns=table.columns(variants),
            numbers=table.numbers(variants),
            sums=sums,
            parts=parts,
            width=parts + 1,
            least=IDENTITY["max"],
            GROUP=table.GROUP,
            SCALARS=table.SCALARS,
            VARIANT=table.VARIANT,
            cases=" ".join(f"i64 {i}, label %variant{i}" for i in own),
            calls="\n".join(_NUMBERS_CALL.format(i=i, k=k) for i in own),
        )
    ]
    if k == 0:
        constants = {"SMALL": norms.SCALES[1], "LARGE": norms.SCALES[2], "TINY": norms.TINY}
        literal = DTYPES["float64"].llvm_literal
        code.append(_ROOT.format(**{name: literal(x.hex()) for name, x in constants.items()}))
    for i, this in own.items():
        program = variants[i].program
        columns = {r.number: (r.over, r.column + (sums if r.kind == "max" else 0)) for r in this.reductions}
        numbers = Numbers(program, known=True, columns=columns)
        values, lines = numbers.emit(this.numbers)
        lines += numbers.keep({n: values[n] for n in this.kept})
        if k == len(passes(program)) - 1:
            lines += _slots(program, numbers, values)
        code.append(_NUMBERS_OF.format(k=k, i=i, lines="\n  ".join(lines)))
    return "\n".join(code)


def _slots(program: Program, numbers: Numbers, values: dict[int, str]) -> list[str]:
    """Write the slots that are numbers; of a leaf without a gradient, those that all leaves share."""
    lines: list[str] = []
    terms = [numbers.term(output, values, lines) for output in program.number_outputs]
    for n, (name, term) in enumerate(zip(program.number_slots, terms, strict=True)):
        lines += [
            f"%slot{n}.column = getelementptr i64, ptr %row, i64 {table.SLOTS + len(program.slots) + n}",
            f"%slot{n}.at = load ptr, ptr %slot{n}.column",
        ]
        if name not in program.shared:
            lines += [
                f"%slot{n}.old = load double, ptr %slot{n}.at",
                f"%slot{n}.new = select i1 %present, double {term}, double %slot{n}.old",
            ]
        new = term if name in program.shared else f"%slot{n}.new"
        lines.append(f"store double {new}, ptr %slot{n}.at")
    return lines
