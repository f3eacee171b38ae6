"""The programs of an optimizer's leaves: traced once for each rule, or for each kind of leaf where a rule looks at that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpuopt.arrays import dtype_of
from gpuopt.engines.dtypes import DTYPES
from gpuopt.engines.program.cutting import depth_of_totals, stages
from gpuopt.engines.program.symbols import Kind, ShapeNeededError, TraceError
from gpuopt.engines.program.trace import trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuopt.engines.program.program import Program
    from gpuopt.rules.base import Rule

MOST = 16
"""Largest number of different programs of a rule: each of them is compiled."""


class Programs:
    """The programs of some rules.

    Parameters
    ----------
    rules
        One for each group.

    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._found: dict[tuple[int, bool, Kind | None], Program | Exception] = {}
        self._sees: dict[tuple[int, bool], bool] = {}
        self._compiled: list[set[Any]] = [set() for _ in rules]

    def of(self, group: int, p: Any) -> Program:
        """Return the program of a leaf; the same object for leaves that have the same one.

        Raises
        ------
        Exception
            Whatever a user's code raises when it is run on symbols.

        """
        own = DTYPES[dtype_of(p)]
        lane = group, own.parts == 2
        kind = kind_of(p) if self._sees.get(lane) else None
        if (*lane, kind) not in self._found:
            try:
                self._found[*lane, kind] = self._traced(*lane, kind)
            except ShapeNeededError:
                self._sees[lane] = True
                return self.of(group, p)
            except Exception as error:  # noqa: BLE001 - raised each time
                self._found[*lane, kind] = error
        found = self._found[*lane, kind]
        if isinstance(found, Exception):
            raise found
        return found

    def get(self, group: int, p: Any) -> Program | None:
        """Return the program of a leaf, or None if there is none."""
        try:
            return self.of(group, p)
        except Exception:  # noqa: BLE001 - see `of`
            return None

    def sees(self, group: int, p: Any) -> bool:
        """Whether the program of a leaf was made by looking at the shape or dtype of the leaf."""
        return self._sees.get((group, DTYPES[dtype_of(p)].parts == 2), False)

    def _traced(self, group: int, is_complex: bool, kind: Kind | None) -> Program:
        rule = self._rules[group]
        program = trace(rule, is_complex=is_complex, kind=kind, twice=True)
        known = self._compiled[group]
        # Loops over a small leaf or a large one are the same, only not as many.
        known.add(frozenset(stages(program, kind.shape, tuple(range(len(kind.shape)))).programs) if kind else program)
        if len(known) > MOST:
            raise TraceError(
                f"{rule.name}.update is another formula for each of {len(known)} kinds of leaves, expected at most {MOST}: each "
                "would be compiled; engine='array' runs it as it is"
            )
        if depth_of_totals(program):
            raise TraceError(
                f"{rule.name}.update makes totals over all leaves of sums along axes or of xp.whole; to be fused it needs "
                "totals of the gradient, the parameter and slots; engine='array' runs it as it is"
            )
        return program


def kind_of(p: Any) -> Kind:
    """Return the shape and the dtype of a leaf, as an update may see them."""
    return Kind(tuple(p.shape) or (1,), DTYPES[dtype_of(p)].arithmetic)
