"""A run on another process than rank 0, which has the folder."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuopt.optimizer import OWN
from gpuopt.runs.loop import Loop
from gpuopt.runs.processes import wishing
from gpuopt.runs.run import Run

if TYPE_CHECKING:
    from collections.abc import Generator


class Follower(Run):
    """The same loop without a folder: what rank 0 decides between two steps holds here, too."""

    def __init__(self, folder: Any, optimizer: Any, *, seed: int = 0, **_: Any) -> None:
        Loop.__init__(self, optimizer, seed)
        self.finished = False
        self.folder = Path(folder)
        self._lock = contextlib.ExitStack()
        self._follow()

    def _follow(self) -> tuple[str, tuple[Any, ...]]:
        """Do as rank 0 does up to the next step, or to the end."""
        optimizer: Any = self.optimizer
        while True:
            word, args = optimizer.follow()
            if word in {"begun", "step", "end"}:
                return word, args
            {"put_back": self.put_back, "move": self._move}[word](*args)

    def _steps(self, n: int) -> Generator[int]:
        self._expect_remembered()
        optimizer: Any = self.optimizer
        optimizer.wish = optimizer.wished = 0
        self._reset(n)
        try:
            with wishing(optimizer):
                while (heard := self._follow())[0] == "step":
                    self._is_stepped, self._taken_before = False, self.optimizer.steps
                    yield heard[1][0]
                    self._expect_stepped(heard[1][0])
                    self._settle_own()
        except GeneratorExit:
            if self.error is not None:  # what broke off the body
                raise
            heard = self._follow()
        finally:
            self._is_inside = False
        self.finished, self.stopped = heard[1]

    def step(self, grads: Any = OWN, *, loss: Any = None, **metrics: Any) -> None:  # noqa: ARG002
        """See `Run.step`; rank 0 takes the metrics."""
        self._expect_inside()
        self.optimizer.step(grads)
        self._stepped()

    def image(self, name: str, array: Any) -> None:
        """See `Run.image`; rank 0 shows it."""
