"""Anybody's loop around an optimizer, with all that a run has: metrics, checkpoints, commands, pictures, a page."""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np

from gpuopt.arrays import is_cupy
from gpuopt.errors import ExplodedError, UsageError
from gpuopt.optimizer import OWN, Optimizer
from gpuopt.runs import forks
from gpuopt.runs.control.signals import first_signal
from gpuopt.runs.control.steering import Steering
from gpuopt.runs.identity import described, expect_same
from gpuopt.runs.loop import Loop, expected_callbacks, is_number, warn_of_idle_steps
from gpuopt.runs.options import expect_options
from gpuopt.runs.processes import begins, heed, is_shared, leading
from gpuopt.runs.record.folder import RunFolder, write_json
from gpuopt.runs.record.metrics import arriving, scalar
from gpuopt.runs.remembering import is_count
from gpuopt.runs.report.process import DRAWING, is_wanted, reported
from gpuopt.runs.saving.checkpoints import Checkpoints, saving
from gpuopt.runs.secondary import warn

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Generator, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from gpuopt.runs.loop import Callback, Row
    from gpuopt.runs.saving.explosions import OnExplosion

__all__ = ["Run"]

TAKEN = frozenset({"", "event", "lr", "seconds", "step"})
ROWS, LOOKS = 1000, 100
"""Rows of metrics in a run, and how often is looked whether it goes well, at most and about."""


class Run(Loop):
    """A loop that can be stopped, steered, killed and resumed to the bit.

    Parameters
    ----------
    folder : path
        The run folder. A new one is made; the run in one that exists is gone on with. While the run goes on, no other process
        can have it.
    optimizer : Optimizer
        Its parameters and state become those of the last checkpoint, if there is one.
    checkpoint_every : int or str
        Steps from one checkpoint to the next; or seconds, as in "30s".
    keep : int
        How many of the last checkpoints stay. The best one, of the lowest loss, stays in any case.
    on_explosion : {"stop", "skip", "rollback"}
        What to do when parameters, state or loss are not finite any more, or the loss is many times what it was: go back to
        the last good state and stop, or go on from there with half the learning rate. "skip" is for an optimizer with
        ``nonfinite="skip"``, which leaves out such steps: it only tells them.
    patience : int, optional
        Stop after so many steps without a lower loss.
    callbacks : sequence of Callback
        Called at each step's end.
    report : bool, optional
        Whether ``report.html`` and its pictures are drawn at the end; default: yes, unless the environment variable
        ``GPUOPT_REPORT`` is 0. ``gpuopt plot`` does it later.
    live : bool or str
        Serve a page with curves, pictures and controls, and print its address; a text: on this HOST or HOST:PORT.
    seed : int
        Of `random` and `batches`.

    Attributes
    ----------
    finished : bool
        Whether all steps were taken: False after a stop, a signal or a ``break``.
    stopped : str or None
        Why it ended early.

    Raises
    ------
    UsageError
        If the folder is another process's, of another optimizer (the message lists what differs), or damaged.

    Notes
    -----
    A step ends where the loop's body ends. Only there anything is saved, changed or gone back to. Use it as a context manager: an
    exception in the body then leaves the last checkpoint as it is. Without, the loop cannot tell it from a ``break``, after
    which it saves.

    Examples
    --------
    >>> import tempfile, numpy as np, gpuopt
    >>> w = np.zeros(3)
    >>> opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=0.1))
    >>> with gpuopt.Run(tempfile.mkdtemp(), opt, report=False) as run:
    ...     for step in run.steps(100):
    ...         run.step(2 * (w - 1), loss=((w - 1) ** 2).sum())
    >>> run.finished, w.round(6)
    (True, array([1., 1., 1.]))
    """

    worse, jump = 1000.0, 1000.0  # nothing is known of its loss
    _cure = "a lower learning rate, clipping, or on_explosion='rollback'"
    _drawing = DRAWING
    _is_stepped = _entered = False
    _forks_before = 0
    _taken_before = 0  # steps, where a body begins
    _held: Generator[int] | None = None
    _loop: weakref.ref[Generator[int]] | None = None

    def __new__(cls, folder: Any, optimizer: Any, *args: Any, **options: Any) -> Self:  # noqa: ARG004
        kind: type[Any] = cls
        if is_shared(optimizer) and optimizer.rank:
            from gpuopt.runs.follower import Follower  # rank 0 has the run, and the others follow

            kind = Follower
        new: Self = super().__new__(kind)
        new._forks_before = forks.count
        return new

    def __init__(
        self,
        folder: str | Path,
        optimizer: Optimizer,
        *,
        checkpoint_every: int | str = "30s",
        keep: int = 2,
        on_explosion: OnExplosion = "stop",
        patience: int | None = None,
        callbacks: Sequence[Callback] = (),
        report: bool | None = None,
        live: bool | str = False,
        seed: int = 0,
    ) -> None:
        with begins(optimizer):
            expect_options(optimizer, checkpoint_every, keep, on_explosion, patience, live, seed)
            super().__init__(optimizer, seed)
            self.is_asynchronous = any(map(is_cupy, optimizer.state_dict()["params"].values()))
            self.finished = False
            self._files = RunFolder.opened(folder)
            self.folder = self._files.path
            self._content = self._identity()
            self._go_on = f"To go on, run the same program again ({self.folder})"
            self._given = expected_callbacks(callbacks)
            if live:
                from gpuopt.runs.control.live import Page

                self._given.append(Page(None if live is True else live))
            self._wanted = is_wanted() if report is None else report
            self._is_over = False
            self._metrics: Row = {}
            self._every = self._look_every = 1
            self._checkpoints = Checkpoints(self._files, checkpoint_every, keep, on_explosion, patience)
            self._last_mark: object = None  # the mark of the last checkpoint, once a loop has ended
            self._lock = contextlib.ExitStack()
            with self._locking():
                if self._files.config.exists():
                    self._expect_same(self._files.read_config())
                    self._restore()

    def _restore(self) -> None:
        """Put everything back to the last checkpoint."""
        self._checkpoints.restore(self)
        last = self._checkpoints.metrics.last
        if last.get("step") == self.optimizer.steps:  # killed between its last step and its summary, say
            known = {name: math.nan if x is None else x for name, x in last.items() if name not in TAKEN}
            self._metrics = {name: float(x) for name, x in known.items() if is_number(x)}

    @contextlib.contextmanager
    def _locking(self) -> Iterator[None]:
        """Take the lock of the folder, and keep it unless an error follows."""
        with contextlib.ExitStack() as lock:
            lock.enter_context(self._files.locked())
            yield
            self._lock = lock.pop_all()

    def _identity(self) -> Row:
        """What ``config.json`` says of it, whatever happens on the way."""
        return {"optimizer": described(self.optimizer)}

    def _expect_same(self, there: Row) -> None:
        """UsageError if the content of ``config.json`` is not that of this run."""
        if not isinstance(there.get("optimizer"), dict):
            go_on = f"gpuopt train --resume {shlex.quote(str(self.folder))}"
            raise UsageError(f"{self.folder}: a run of gpuopt train; to go on: {go_on}")
        expect_same(self._files.path, there["optimizer"], self._content["optimizer"])

    def steps(self, n: int) -> Generator[int]:
        """Yield the steps that are left of `n` in all, counted from 0; all is saved when they end.

        After a stop, Ctrl-C, SIGTERM or SIGHUP they end early, after the step that is being taken.

        Raises
        ------
        ExplodedError
            At the end, if it exploded and `on_explosion` did not help; the last good state is there and saved.
        SavingError
            If a checkpoint or the metrics cannot be written, on a full disk for instance; the checkpoint before is whole.
        """
        if not is_count(n):
            raise UsageError(f"run.steps({n!r}): expected how many steps in all, a positive integer")
        if self._is_inside:
            raise RuntimeError("run.steps: the loop before still goes on, expected it to have ended")
        loop = self._steps(int(n))
        self._loop = forks.left_to_parent(loop)
        if self._entered:
            self._held = loop
        return loop

    def _steps(self, n: int) -> Generator[int]:
        if self._is_over:
            with self._locking():
                if self._last_mark != self._files.mark():
                    told = "another process went on with this run, expected a new Run to go on with it"
                    raise UsageError(f"{self.folder}: {told}")
        try:
            with self._lock:
                self._expect_remembered()
                self._reset(n)
                if self.optimizer.steps >= n:
                    told = "%s: all of the %d steps are taken already; more steps go on, another folder begins anew"
                    warn(told, self.folder, n)
                yield from self._recorded()
        finally:
            self._is_inside = False
            self._is_over, self._last_mark = True, self._files.mark()

    def _recorded(self) -> Generator[int]:
        """Its steps, and whatever belongs to the folder around them."""
        checkpoints = self._checkpoints
        with (
            saving(checkpoints, self._go_on),
            reported(self, self._files, wanted=self._wanted, drawing=self._drawing) as drawing,
            leading(self) as in_body,
        ):
            versions = {"gpuopt": sys.modules["gpuopt"].__version__, "numpy": np.__version__}
            warn_of_idle_steps(self)
            about = {**versions, "steps": self.total, **self._content, "resumed": checkpoints.noted()}
            self._files.write_config(about)
            self._files.summary.unlink(missing_ok=True)
            callbacks = [*self._given, *drawing, checkpoints.images, checkpoints, Steering(checkpoints)]
            with (
                first_signal(self.stop_by, hangup=True),
                self._driven([checkpoints.metrics, *callbacks]) as left,
            ):
                try:
                    for step in left:
                        self._is_stepped, self._taken_before = False, self.optimizer.steps
                        if in_body is None:
                            yield step
                        else:
                            with in_body(step):
                                yield step
                        self._expect_stepped(step)
                        self._settle_own()
                except GeneratorExit:
                    if self.error is not None:  # what broke off the body
                        raise
                    self.stopped = self.stopped or "left by the loop"
                    self._is_left = not self._is_stepped
            is_over = self.optimizer.steps >= self.total
            self.finished = is_over and self.stopped is None
            if is_over or not self.signals:
                write_json(self._files.summary, self._summary())
                if (exploded := checkpoints.explosions.message) is not None:
                    saved = f"the state after step {self.optimizer.steps} is saved"
                    raise ExplodedError(f"{exploded}; {saved}. {self._go_on} with {self._cure}")

    def _reset(self, n: int) -> None:
        self._n, self.error, self.stopped, self.signals, self.finished = n, None, None, [], False
        self._every, self._look_every = -(-n // ROWS), -(-n // LOOKS)
        self._is_inside = True
        self._settle_own()

    def _summary(self) -> Row:
        measured = {**arriving(self._metrics)(), "lowest_loss": self._checkpoints.lowest}
        ended = {"seconds": round(self.seconds, 3), "stopped": self.stopped}
        return {"folder": str(self.folder), "steps": self.optimizer.steps, **measured, **ended}

    def step(self, grads: Any = OWN, *, loss: Any = None, **metrics: Any) -> None:
        """Step the optimizer, and take metrics of this step.

        Parameters
        ----------
        grads
            See `Optimizer.step`; without them tensors' own are taken, or those that an optimizer of several processes got by `add`.
        loss, **metrics
            Numbers, or arrays of one number, on a device, too, which is not waited for. The loss is what tells whether the run goes
            well. About a thousand rows of a run are written.

        Raises
        ------
        RuntimeError
            Outside of a loop over `steps`, or twice in one of its steps.
        TypeError
            If a metric is no number, or has no name, or one that rows have: event, lr, seconds, step.
        """
        self._expect_inside()
        if not TAKEN.isdisjoint(metrics):
            names = ", ".join(sorted(TAKEN.intersection(metrics)))
            why = "rows of metrics have it already, expected another name" if names else "expected a name"
            raise TypeError(f"run.step: {names or repr(names)}: {why}")
        if loss is not None:
            metrics = {"loss": loss, **metrics}
        for name, value in metrics.items():
            if type(value) is not float:
                metrics[name] = scalar(name, value)
        optimizer = self.optimizer
        step = optimizer.steps + 1
        due = step % self._every == 0 or step in (1, self._n)
        if due:
            lr = self.hyperparameters().get("lr")
        optimizer.step(grads)
        self._stepped()
        self._metrics = metrics
        if due and optimizer.steps == step:  # no gradient that only waits for others
            self._record(self._row(step, metrics, lr), judged=step % self._look_every == 0 or step in (1, self._n))

    def _stepped(self) -> None:
        """The optimizer took the step of this body."""
        self._is_stepped = True
        heed(self)

    def _expect_inside(self) -> None:
        if self._forks_before != forks.count:
            raise RuntimeError("run.step: called in a process that was forked, expected in the one that made the run")
        if not self._is_inside or self._is_stepped:
            where = "a second time in one step" if self._is_inside else "outside of a loop"
            raise RuntimeError(f"run.step: called {where}, expected once in each step of `for step in run.steps(n):`")
        if (taken := self.optimizer.steps - self._taken_before) > 0:
            raise RuntimeError(
                f"run.step: the optimizer took {taken} in this step already, as by opt.step(...), expected run.step alone"
            )

    def _expect_stepped(self, step: int) -> None:
        if not self._is_stepped:
            raise RuntimeError(f"run.steps: step {step} ended without run.step(...), expected one")

    def _row(self, step: int, values: Row, lr: float | None) -> Callable[[], Row]:
        """What it measured, and where it was; what is returned waits for it."""
        known = {"seconds": round(self.seconds, 3)} if lr is None else {"lr": lr, "seconds": round(self.seconds, 3)}
        arrive = arriving(values)
        return lambda: {"step": step, **arrive(), **known}

    def image(self, name: str, array: Any) -> None:
        """Show a picture of what is being made: in the report, and on the page.

        Parameters
        ----------
        name : str
            Letters, digits and ``_ - .``; a new picture takes the place of the one before.
        array
            Of one or two axes, real or complex (then amplitude and phase are shown), of any library; or colours, of shape
            (height, width, 3 or 4), integers to 255 or floats to 1. It is copied, at most twice a second, and drawn beside the
            loop; the last one always, before a checkpoint, too.

        Raises
        ------
        TypeError, ValueError
            If it cannot be drawn.
        """
        self._checkpoints.images.show(name, array)

    def probe(self) -> Callable[[], float]:
        if "loss" not in self._metrics or not self.optimizer.steps:  # the first loss is that of the first step
            return lambda: 0.0
        arrive = arriving({"loss": self._metrics["loss"]})
        return lambda: float(arrive()["loss"])

    def now(self) -> Row:
        lr = self.hyperparameters().get("lr")
        return self._row(self.optimizer.steps, self._metrics, lr)()

    def close(self) -> None:
        """End the loop, and let others have the folder. The end of a ``with`` does it."""
        if self._forks_before != forks.count:
            return
        if self._loop is not None and (loop := self._loop()) is not None:
            loop.close()
        self._held = None
        self._lock.close()

    def __enter__(self) -> Self:
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._is_inside:
            self.error = error
        self._entered = False
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"{self!r}: a run has its folder alone and cannot be copied or pickled; copy.deepcopy(run.optimizer) copies the "
            "optimizer, gpuopt.Run with another folder begins another run"
        )

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.optimizer!r})"
