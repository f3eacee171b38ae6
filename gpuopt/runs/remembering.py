"""Values, generators and batches of somebody's own in the checkpoints of a loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpuopt.errors import UsageError
from gpuopt.runs.processes import say
from gpuopt.runs.saving.own import Own
from gpuopt.suggest import listed, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from gpuopt.optimizer import Optimizer
    from gpuopt.runs.loop import Row

__all__ = ["Remembering"]


class Remembering:
    """What `gpuopt.Run` remembers."""

    def __init__(self, optimizer: Optimizer, seed: int) -> None:
        self.optimizer = optimizer
        self.folder: Path | None = None
        self._own = Own(seed)
        self._is_inside = False

    @property
    def random(self) -> np.random.Generator:
        """A generator whose state is part of the checkpoint."""
        return self._own.random

    def remember(self, name: str, value: Any) -> Any:
        """Let the checkpoint have a value of your own.

        Parameters
        ----------
        name : str
        value
            An array of NumPy or CuPy, which is saved as it is when it is saved, and written in place where the run goes back; a
            generator of `numpy.random`, likewise; or what JSON has: numbers, text, lists, dicts.

        Returns
        -------
        value
            Before the loop: as the last checkpoint has it, if there is one; an array and a generator are the ones given. In the
            loop a new value takes the place of the one before.

        Raises
        ------
        TypeError
            If it cannot be saved.
        UsageError
            If the checkpoint has another shape or type.

        Examples
        --------
        >>> import tempfile, gpuopt, numpy as np
        >>> run = gpuopt.Run(tempfile.mkdtemp(), gpuopt.Optimizer(np.zeros(1), gpuopt.SGD()))
        >>> run.remember("best", 1.5)
        1.5
        >>> run.close()
        """
        return self._own.remember(name, value, inside=self._is_inside)

    @property
    def remembered(self) -> Mapping[str, Any]:
        """Every value that `remember` got, by name, as it is now."""
        return self._own.values

    def batches(self, samples: int, size: int) -> Iterator[NDArray[np.intp]]:
        """Indices of batches without end: each epoch in an order of its own, the last batch of one perhaps smaller.

        A run that is resumed goes on in the middle of an epoch.

        Parameters
        ----------
        samples, size : int

        Returns
        -------
        iterator of arrays of integers

        Examples
        --------
        >>> import tempfile, gpuopt, numpy as np
        >>> run = gpuopt.Run(tempfile.mkdtemp(), gpuopt.Optimizer(np.zeros(1), gpuopt.SGD()))
        >>> batches = run.batches(5, 2)
        >>> [len(next(batches)) for _ in range(4)]
        [2, 2, 1, 2]
        >>> run.close()
        """
        return self._own.batches(samples, size)

    @property
    def arrays(self) -> dict[str, Any]:
        """Arrays of its own that are saved with the optimizer's."""
        return self._own.arrays

    def put_back(self, arrays: Mapping[str, Any]) -> None:
        """Write saved `arrays` into those of its own; ValueError, before anything is changed, if they do not fit."""
        say(self.optimizer, "put_back", dict(arrays))
        self._own.put_back(arrays)

    def _place(self) -> Row:
        """Where it stands beside the optimizer, in JSON's types."""
        return self._own.position()

    def _move(self, position: Row) -> None:
        """Go there; TypeError, ValueError or KeyError, before anything is changed, if it is no position."""
        say(self.optimizer, "move", position)
        self._own.move(position)

    def _expect_remembered(self) -> None:
        missing = self._own.missing()
        if missing:
            names = listed(missing, shown=printable)
            raise UsageError(f"{self.folder}: remembers {names}, expected run.remember for each before run.steps")
