"""Schedules: hyperparameters as pure functions of the step.

``inverse_time(1.0, decay=0.1)`` is a :class:`Schedule`: an immutable value that is called with a step. Any hyperparameter of
any rule may be one. Steps count from 0: the first update uses ``schedule(0)``. After its last step a schedule keeps its last
value.

A new schedule is a function of ``step`` and its arguments, under a decorator that checks and stores the arguments:

>>> @schedule
... def square_root(step: int, initial: float, steps: Count) -> float:
...     return initial / (1 + step / steps) ** 0.5
>>> square_root(1.0, steps=10)(30)
0.5
"""

from typing import TYPE_CHECKING

from gpuopt.schedules.base import SCHEDULES, Schedule, schedule
from gpuopt.schedules.composition import join, linear_warmup, scaled
from gpuopt.schedules.domains import Count as Count
from gpuopt.schedules.domains import Domain as Domain
from gpuopt.schedules.domains import Flag as Flag
from gpuopt.schedules.domains import Fraction as Fraction
from gpuopt.schedules.domains import Natural as Natural
from gpuopt.schedules.domains import NonNegative as NonNegative
from gpuopt.schedules.domains import Positive as Positive
from gpuopt.schedules.listening import plateau
from gpuopt.schedules.parsing import from_dict, parse
from gpuopt.schedules.shapes import constant, cosine, exponential, inverse_time, one_cycle, piecewise, polynomial, step
from gpuopt.suggest import absent

__all__ = [
    "SCHEDULES",
    "Schedule",
    "constant",
    "cosine",
    "exponential",
    "from_dict",
    "inverse_time",
    "join",
    "linear_warmup",
    "one_cycle",
    "parse",
    "piecewise",
    "plateau",
    "polynomial",
    "scaled",
    "schedule",
    "step",
]

if not TYPE_CHECKING:  # with it, type checkers would accept every name
    __getattr__ = absent(__name__, [*SCHEDULES])

# Pickles and documents name the package and not its files, so that names can move between these.
for _public in (Schedule, schedule, from_dict, parse, *SCHEDULES.values()):
    _public.__module__ = __name__
