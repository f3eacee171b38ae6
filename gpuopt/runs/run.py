"""Anybody's loop around an optimizer, with all that a run has: metrics, checkpoints, commands, pictures, a page."""

from __future__ import annotations

import contextlib
import math
import shlex
import weakref
from typing import TYPE_CHECKING, Any, Self, get_args

import numpy as np

from gpuopt.arrays import describe, detached, dtype_of, fetch, is_cupy, is_numpy
from gpuopt.errors import UsageError
from gpuopt.optimizer import OWN, Optimizer
from gpuopt.runs.control.signals import stopping
from gpuopt.runs.loop import Callback, Loop, is_number
from gpuopt.runs.processes import as_leader, heed, is_shared, leading, say
from gpuopt.runs.record.folder import RunFolder
from gpuopt.runs.record.images import Images
from gpuopt.runs.recording import begin, conclude
from gpuopt.runs.report.process import is_wanted, reported
from gpuopt.runs.saving.checkpoints import Checkpoints, expect_interval, saving
from gpuopt.runs.saving.explosions import OnExplosion
from gpuopt.runs.saving.own import Own, is_count
from gpuopt.schedules import Schedule
from gpuopt.suggest import listed, printable, told_of_each

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    from gpuopt.runs.loop import Row

__all__ = ["Run"]

TAKEN = frozenset({"event", "lr", "seconds", "step"})
ROWS, LOOKS = 1000, 100
"""Rows of metrics in a run, and how often is looked whether it goes well, at most and about."""
GO_ON = "To go on, run the same program again"
CURE = "a lower learning rate, clipping, or on_explosion='rollback'"


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

    def __new__(cls, folder: Any, optimizer: Any, *args: Any, **options: Any) -> Self:  # noqa: ARG004
        """Of several processes, rank 0 has the run, and the others follow."""
        if is_shared(optimizer) and optimizer.rank:
            from gpuopt.runs.follower import Follower

            return super().__new__(Follower)  # type: ignore[return-value]
        return super().__new__(cls)

    @as_leader
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
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: {describe(optimizer)}, expected a gpuopt.Optimizer")
        expect_interval(checkpoint_every, "checkpoint_every: ")
        for name, count in (("keep", keep), ("patience", patience)):
            if not is_count(count) and not (name == "patience" and count is None):
                raise UsageError(f"{name}: {count!r}, expected a positive integer")
        if on_explosion not in get_args(OnExplosion):
            raise UsageError(f"on_explosion: {on_explosion!r}, expected {', '.join(get_args(OnExplosion))}")
        if on_explosion == "skip" and optimizer._nonfinite != "skip":
            raise UsageError(
                "on_explosion: 'skip', expected an Optimizer with nonfinite='skip', which leaves steps out"
            )
        super().__init__(optimizer)
        self.is_asynchronous = any(map(is_cupy, optimizer.state_dict()["params"].values()))
        self.finished = False
        self._own = Own(seed)
        self._about = _described(optimizer)
        self._files = RunFolder.opened(folder)
        self.folder = self._files.path
        self._given = list(callbacks)
        if live:
            from gpuopt.runs.control.live import Page

            self._given.append(Page(None if live is True else live))
        self._wanted = is_wanted() if report is None else report
        self._n = 0
        self._is_inside = self._is_stepped = self._is_over = False
        self._metrics: Row = {}
        self._every = self._look_every = 1
        self._images = Images(self.folder)
        self._checkpoints = Checkpoints(self._files, checkpoint_every, keep, on_explosion, patience)
        self._last_mark: object = None  # the mark of the last checkpoint, once a loop has ended
        self._entered = False
        self._held: Generator[int] | None = None
        self._loop: Callable[[], Generator[int] | None] = lambda: None
        self._lock = contextlib.ExitStack()
        self._begin()

    def _begin(self) -> None:
        """Lock the folder, and put everything back to its last checkpoint."""
        with contextlib.ExitStack() as lock:
            lock.enter_context(self._files.locked())
            if self._files.config.exists():
                self._expect_the_same(self._files.read_config())
                self._checkpoints.restore(self)
                last = self._checkpoints.metrics.last
                if (
                    last.get("step") == self.optimizer.steps
                ):  # killed between its last step and its summary, for instance
                    known = {name: math.nan if x is None else x for name, x in last.items() if name not in TAKEN}
                    self._metrics = {name: float(x) for name, x in known.items() if is_number(x)}
            self._lock = lock.pop_all()

    def _begin_again(self) -> None:
        """For a loop after another one, lock the folder, where nobody else has gone on in between."""
        with contextlib.ExitStack() as lock:
            lock.enter_context(self._files.locked())
            if self._last_mark != self._mark():
                raise UsageError(
                    f"{self.folder}: another process went on with this run, expected a new Run to go on with it"
                )
            self._lock = lock.pop_all()

    def _mark(self) -> object:
        """What the last checkpoint is told by from another one."""
        with contextlib.suppress(FileNotFoundError):
            found = self._files.checkpoint.stat()
            return found.st_ino, found.st_size, found.st_mtime_ns
        return None

    def _expect_the_same(self, content: Mapping[str, Any]) -> None:
        there, here = content.get("optimizer"), self._about
        if not isinstance(there, dict):
            raise UsageError(
                f"{self.folder}: a run of gpuopt train; to go on: gpuopt train --resume {shlex.quote(str(self.folder))}"
            )
        if there != here:
            both = [key for key in here if key in there and there[key] != here[key]]
            shown = [f"{key}: there {printable(there[key], 300)}, here {here[key]}" for key in both[:20]]
            more = [f"and {len(both) - 20:,} more"] if len(both) > 20 else []
            only = [
                *told_of_each([key for key in there if key not in here], "only there"),
                *told_of_each([key for key in here if key not in there], "only here"),
            ]
            cure = "choose another folder, or change it there while it runs, by gpuopt tune or run.tune"
            lines = "\n  ".join([*shown, *more, *only])
            raise UsageError(f"{self.folder}: holds a run of another optimizer; {cure}:\n  {lines}")

    @property
    def total(self) -> int:
        return self._n

    @property
    def random(self) -> np.random.Generator:
        """A generator whose state is part of the checkpoint."""
        return self._own.random

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
        self._loop = weakref.ref(loop)
        if self._entered:
            self._held = loop
        return loop

    def _steps(self, n: int) -> Generator[int]:
        if self._is_over:
            self._begin_again()
        self._expect_remembered()
        self._reset(n)
        checkpoints = self._checkpoints
        try:
            with (
                self._lock,
                saving(checkpoints, f"{GO_ON} ({self.folder})"),
                reported(self._files, wanted=self._wanted) as drawing,
                stopping(self) as signals,
                leading(self) as in_body,
            ):
                own = [*self._given, *drawing, self._images]
                with self._driven(begin(self, checkpoints, {"optimizer": self._about}, own)) as left:
                    try:
                        for step in left:
                            self._is_stepped = False
                            with in_body(step):
                                yield step
                            self._expect_stepped(step)
                            self._own.settle()
                    except GeneratorExit:
                        if self.error is not None:  # what broke off the body
                            raise
                        self.stopped = self.stopped or "left by the loop"
                        self._own.leave(stepped=self._is_stepped)
                self.finished = self.optimizer.steps >= n and self.stopped is None
                if self.finished or not signals:
                    conclude(self, checkpoints, self._summary(), f"{GO_ON} with {CURE}")
        finally:
            self._is_inside = False
            self._is_over, self._last_mark = True, self._mark()

    def _reset(self, n: int) -> None:
        self._n, self.error, self.stopped, self.finished = n, None, None, False
        self._every, self._look_every = -(-n // ROWS), -(-n // LOOKS)
        self._is_inside = True
        self._own.settle()

    def _summary(self) -> Row:
        measured = {**_arriving(self._metrics)(), "lowest_loss": self._checkpoints.lowest}
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
            If a metric is no number, or has a name that rows have: event, lr, seconds, step.
        """
        self._expect_inside()
        if not TAKEN.isdisjoint(metrics):
            names = ", ".join(sorted(TAKEN.intersection(metrics)))
            raise TypeError(f"run.step: {names}: rows of metrics have it already, expected another name")
        if loss is not None:
            metrics = {"loss": loss, **metrics}
        for name, value in metrics.items():
            if type(value) is not float:
                metrics[name] = _scalar(name, value)
        optimizer = self.optimizer
        step = optimizer.steps + 1
        due = step % self._every == 0 or step in (1, self._n)
        if due:
            lr = self.hyperparameters().get("lr")
        self._step(grads)
        self._metrics = metrics
        if due and optimizer.steps == step:  # no gradient that only waits for others
            self._record(self._row(step, metrics, lr), judged=step % self._look_every == 0 or step in (1, self._n))

    def _step(self, grads: Any) -> None:
        self.optimizer.step(grads)
        self._is_stepped = True
        heed(self)

    def _expect_remembered(self) -> None:
        missing = self._own.missing()
        if missing:
            self._lock.close()
            raise UsageError(
                f"{self.folder}: remembers {listed(missing, shown=printable)}, expected run.remember for each before run.steps"
            )

    def _expect_inside(self) -> None:
        if not self._is_inside or self._is_stepped:
            where = "a second time in one step" if self._is_inside else "outside of a loop"
            raise RuntimeError(f"run.step: called {where}, expected once in each step of `for step in run.steps(n):`")

    def _expect_stepped(self, step: int) -> None:
        if not self._is_stepped:
            raise RuntimeError(f"run.steps: step {step} ended without run.step(...), expected one")

    def _row(self, step: int, values: Row, lr: float | None) -> Callable[[], Row]:
        """What it measured, and where it was; what is returned waits for it."""
        known = {"seconds": round(self.seconds, 3)} if lr is None else {"lr": lr, "seconds": round(self.seconds, 3)}
        arrive = _arriving(values)
        return lambda: {"step": step, **arrive(), **known}

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

    def image(self, name: str, array: Any) -> None:
        """Show a picture of what is being made: in the report, and on the page.

        Parameters
        ----------
        name : str
            Letters, digits and ``_ - .``; a new picture takes the place of the one before.
        array
            Of one or two axes, real or complex (then amplitude and phase are shown), of any library. It is copied, at most twice a
            second, and drawn beside the loop; the last one always.

        Raises
        ------
        TypeError, ValueError
            If it cannot be drawn.
        """
        self._images.show(name, array)

    @property
    def arrays(self) -> dict[str, Any]:
        return self._own.arrays

    def put_back(self, arrays: Mapping[str, Any]) -> None:
        say(self.optimizer, "put_back", dict(arrays))
        self._own.put_back(arrays)

    def _place(self) -> Row:
        return self._own.position()

    def _move(self, position: Row) -> None:
        say(self.optimizer, "move", position)
        self._own.move(position)

    def probe(self) -> Callable[[], float]:
        if "loss" not in self._metrics:
            return lambda: math.nan if not self.optimizer.steps else 0.0
        arrive = _arriving({"loss": self._metrics["loss"]})
        return lambda: float(arrive()["loss"])

    def now(self) -> Row:
        lr = self.hyperparameters().get("lr")
        return {**self._row(self.optimizer.steps, self._metrics, lr)(), "images": self._images.shown()}

    def close(self) -> None:
        """End the loop, and let others have the folder. The end of a ``with`` does it."""
        loop = self._loop()
        if loop is not None:
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

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.optimizer!r})"


def _described(optimizer: Optimizer) -> dict[str, str]:
    """What must be the same when a run is gone on with: rules with their hyperparameters, and leaves."""
    state = optimizer.state_dict()
    rules = {
        f"rule {pattern}"
        if pattern != "*"
        else "rule": f"{rule.name}({', '.join(_hyper(rule, n) for n in rule.hyperparameters())})"
        for pattern, rule in optimizer.rules.items()
        if rule is not None
    }
    leaves = {
        f"leaf {path or '(the parameters)'}": f"{dtype_of(x)} {tuple(x.shape)}" for path, x in state["params"].items()
    }
    return {**rules, **leaves}


def _hyper(rule: Any, name: str) -> str:
    value = getattr(rule, name)
    shown = (
        getattr(value, "__qualname__", type(value).__name__)
        if callable(value) and not isinstance(value, Schedule)
        else repr(value)
    )
    return f"{name}={shown}"


def _scalar(name: str, value: Any) -> Any:
    """A metric as a float, or as an array of one number that is on its way."""
    if isinstance(value, int | float | np.floating | np.integer | np.bool_):
        return float(value)
    shape, kind = getattr(value, "shape", None), getattr(getattr(value, "dtype", None), "kind", "f")
    if shape == () and kind in "biuf" and (is_numpy(value) or is_cupy(value) or hasattr(value, "__dlpack__")):
        return detached(value)
    what = describe(value) if shape is None else f"an array of shape {tuple(shape)}"
    raise TypeError(f"run.step: {name}: {what}, expected a number or an array without axes, as its mean is")


def _arriving(values: Mapping[str, Any]) -> Callable[[], dict[str, float]]:
    """Metrics as floats; those of a device begin to be copied now."""
    own = {name: value for name, value in values.items() if type(value) is not float}
    if not own:
        return lambda: dict(values)
    arrive = fetch(list(own.values()))
    return lambda: {**values, **{name: float(x) for name, x in zip(own, arrive(), strict=True)}}
