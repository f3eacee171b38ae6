"""Properties that are worked out once."""

from __future__ import annotations

import functools
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

if sys.version_info >= (3, 12):
    cached_property = functools.cached_property
else:

    class cached_property(functools.cached_property[T]):  # noqa: N801 - as there
        """Python's own, without the lock that it has before 3.12.

        All objects of a class share that lock. A fork while another thread holds it leaves it locked in the child, for good. Without
        it two threads may work out the same thing, which does no harm.
        """

        def __init__(self, func: Callable[[Any], T]) -> None:
            super().__init__(func)
            self.lock = nullcontext()
