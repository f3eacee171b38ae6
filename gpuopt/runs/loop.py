"""What a loop around an optimizer is to those that hang on it, and their protocol."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from gpuopt import schedules
from gpuopt.arrays import describe
from gpuopt.backends import gpu_failure
from gpuopt.runs.remembering import Remembering

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from gpuopt.optimizer import Optimizer
    from gpuopt.rules import Rule
    from gpuopt.rules.base import Hyper
    from gpuopt.runs.saving.checkpoints import Checkpoints
    from gpuopt.runs.saving.explosions import Sight

    Row: TypeAlias = dict[str, Any]

__all__ = ["Callback", "Loop", "expected_callbacks", "is_number", "spread", "tuned", "warn_of_idle_steps"]

LOOKED_AT = 1000
"""Steps, evenly spread, at which schedules are checked beforehand."""


class Callback:
    """What hangs on a loop: progress, metrics, checkpoints, and your own. Every method may be left out.

    Each one gets the loop, a `gpuopt.Run` or a `gpuopt.training.Training`: ``run.stop(reason)`` ends it after the current
    step, ``run.tune(lr=0.01)`` changes hyperparameters from the next one on.

    Examples
    --------
    >>> class Enough(Callback):
    ...     def reported(self, run, row):
    ...         if row["loss"] < 0.1:
    ...             run.stop("good enough")
    """

    def start(self, run: Any) -> None:
        """Before the first step, of a resumed run too."""

    def step(self, run: Any) -> None:
        """After each step."""

    def epoch(self, run: Any) -> None:
        """After each epoch of a `Training`; ``training.row`` has its metrics, or is None if it is not reported."""

    def reported(self, run: Any, row: Row) -> None:
        """When a row of metrics is there; on a GPU one step later, so that it has work meanwhile."""

    def event(self, run: Any, event: Mapping[str, Any]) -> None:
        """When something out of the ordinary happened; ``event["event"]`` says what."""

    def end(self, run: Any) -> None:
        """After the last step: finished, stopped, or broken off by ``run.error``.

        Who was started is ended, whatever happened, and the last one started first.
        """


@dataclass
class Pending:
    """A row that nobody has been told yet, and what is judged with it."""

    row: Callable[[], Row]
    judged: bool
    sight: Sight | None = None


class Loop(Remembering):
    """A loop around an optimizer. A subclass says what its loss is, and where it stands beside optimizer and what is remembered."""

    is_asynchronous = False
    """Whether what is computed arrives later: a row is then told one step later, so that the device has work meanwhile."""
    is_whole = False
    """Whether its state is a whole one where an error breaks off a step, so that it may be saved."""
    _checkpoints: Checkpoints
    worse: float
    jump: float
    """A loss has exploded if it is ``worse`` than the first one so many times, or ``jump`` times the last good one."""

    def __init__(self, optimizer: Optimizer, seed: int) -> None:
        super().__init__(optimizer, seed)
        self._n = 0
        self.stopped: str | None = None  # why it ends early
        self.signals: list[signal.Signals] = []  # that it is stopped by
        self.error: BaseException | None = None  # what broke it off
        self._callbacks: Sequence[Callback] = ()
        self._at_steps: Sequence[Callable[[Any], object]] = ()
        self._began = 0.0
        self._halted: float | None = 0.0  # the time, while it stands still
        self._untold: deque[Pending] = deque()
        self._is_fresh = False  # the last of them is of this step
        self._moved = False

    @property
    def total(self) -> int:
        """Steps in all."""
        return self._n

    @property
    def position(self) -> Row:
        """Where it stands beside the optimizer, in JSON's types, ``seconds`` among them; set it to go on from there."""
        return {"seconds": self.seconds, **self._place()}

    @position.setter
    def position(self, position: Row) -> None:
        seconds = position["seconds"]
        self._began, self._halted = time.perf_counter() - seconds, None if self._halted is None else seconds
        self._moved, self._is_fresh = True, False
        self._untold.clear()
        self._move(position)

    def probe(self) -> Callable[[], float]:
        """Measure the loss with the parameters as they are; what is returned waits for it."""
        raise NotImplementedError

    def now(self) -> Row:
        """Metrics of this moment, with ``step``, ``lr`` and ``seconds``."""
        raise NotImplementedError

    @property
    def seconds(self) -> float:
        """Time that it took, without its interruptions."""
        return time.perf_counter() - self._began if self._halted is None else self._halted

    def stop(self, reason: str) -> None:
        """End it after the current step."""
        given: object = reason
        if not (isinstance(given, str) and given):
            raise TypeError(f"run.stop({reason!r:.80}): expected the reason, a text")
        self.stopped = reason

    def stop_by(self, signum: signal.Signals) -> None:
        """End it after the current step, for a signal."""
        self.signals.append(signum)
        self.stop(self.signals[0].name)

    def impatience(self, lowest: float, since: int, step: int) -> str:
        """Why it ends at a step when its loss has not become lower than `lowest`, which it was after another step."""
        what = "lower loss" if lowest < math.inf else "loss, which patience looks at,"
        return f"no {what} in {step - since:,} steps"

    @property
    def rules(self) -> dict[str, Rule]:
        """The optimizer's rules by pattern, but for leaves that are left alone."""
        return {pattern: rule for pattern, rule in self.optimizer.rules.items() if rule is not None}

    def hyperparameters(self) -> dict[str, float]:
        """Numbers of the next step, arrays left out; where several rules have one, the first rule's."""
        step = self.optimizer.steps
        found: dict[str, float] = {}
        for rule in self.rules.values():
            at = rule.at(step)
            found = {name: at[name] for name in rule.hyperparameters() if name in at} | found
        return found

    def tell(self, event: Mapping[str, Any]) -> None:
        """Let all callbacks know of an event: a name, ``event["event"]``, ``step`` (default: now), anything in JSON's types."""
        event = {"event": event["event"], "step": self.optimizer.steps, **event}
        for callback in self._callbacks:
            callback.event(self, event)

    def tune(self, by: str = "callback", /, **hyperparameters: Hyper | str) -> None:
        """Change hyperparameters from the next step on, of every rule that has them, and tell it: an event for each.

        Parameters
        ----------
        by
            Who changes it.
        **hyperparameters
            Numbers, schedules, or the text of one as `gpuopt.schedules.parse` reads it.

        Raises
        ------
        TypeError, ValueError
            If there is no such hyperparameter, or its range is left. Nothing is changed then.

        Examples
        --------
        >>> class Drop(Callback):
        ...     def step(self, run):
        ...         if run.optimizer.steps == 100:
        ...             run.tune(lr=0.01)
        """
        step, before = self.optimizer.steps, self.hyperparameters()
        given: dict[str, Hyper] = {}
        for name, value in hyperparameters.items():
            if isinstance(value, str):
                try:
                    given[name] = schedules.parse(value, initial=before.get(name, 0.0), steps=self.total)
                except ValueError as error:
                    raise ValueError(f"{name}={value}: expected a number or a schedule: {error}") from None
            elif not callable(value) or isinstance(value, schedules.Schedule):
                given[name] = value
            else:
                raise TypeError(f"tune: {name}: {value!r}, expected a number or a schedule of gpuopt.schedules")
        for rule in self.rules.values():
            known = {name: value for name, value in given.items() if name in rule.hyperparameters()}
            changed: Rule = dataclasses.replace(rule, **known)
            numbers = changed.at(step)
            for name in known:
                if not (name in before and name in numbers):
                    raise TypeError(
                        f"tune: {name}: an array, which is not recorded; expected a number before and after"
                    )
            if any(callable(value) for value in known.values()):
                for later in spread(step, self.total, changed):  # what a schedule gives is in range, too
                    changed.at(later)
        self.optimizer.tune(**given)
        after = self.hyperparameters()
        for name, value in given.items():
            self.tell(tuned(step, name, before[name], after[name], value, by))

    @contextlib.contextmanager
    def _driven(self, callbacks: Sequence[Callback]) -> Iterator[Iterator[int]]:
        """Start and end what hangs on it; inside, its steps: those that are left, or until it is stopped."""
        self._callbacks = callbacks
        # Most have nothing to do after a step, and a call that does nothing takes time, too.
        steps = [callback.step for callback in callbacks]
        self._at_steps = [step for step in steps if getattr(step, "__func__", None) is not Callback.step]
        self._go()
        with contextlib.ExitStack() as ends:
            ends.callback(self._halt)
            try:
                for callback in callbacks:
                    callback.start(self)
                    ends.callback(callback.end, self)
                yield self._left()
            except BaseException as error:
                self.error = self.error or error
                if gpu_failure(self.error) is not None:
                    with contextlib.suppress(Exception):  # what was measured before may still come
                        self._announce(0)
                raise

    def _left(self) -> Iterator[int]:
        while True:
            if self.optimizer.steps < self.total and self.stopped is None:
                self._moved = False
                yield self.optimizer.steps
                self._settle()
            elif self._untold:
                self._announce(0)  # which may bring it back to an earlier step
            else:
                return

    def _record(self, row: Callable[[], Row], *, judged: bool = True) -> None:
        """Take a row, which is told when it is there, and whether it is a time to look if all goes well."""
        self._untold.append(Pending(row, judged))
        self._is_fresh = True

    def _settle(self) -> None:
        """After a step, and whatever belongs to it: tell what is due."""
        if self._is_fresh and self._untold[-1].judged:
            self._untold[-1].sight = self._checkpoints.explosions.look(self)
        later, self._is_fresh = self._is_fresh and self.is_asynchronous, False
        if self._untold:
            self._announce(int(later))
        if not self._moved:
            for step in self._at_steps:
                step(self)

    def _announce(self, but: int) -> None:
        """Tell the rows that nobody has been told yet, but the last ones; who is told may go back to an earlier step."""
        while len(self._untold) > but:
            pending = self._untold.popleft()
            row = pending.row()
            for callback in self._callbacks:
                callback.reported(self, row)
            if pending.sight is not None:
                self._checkpoints.judge(self, row, pending.sight)

    @contextlib.contextmanager
    def interruption(self) -> Iterator[None]:
        """What is done in it takes no time of its own."""
        self._halt()
        try:
            yield
        finally:
            self._go()

    def _halt(self) -> None:
        self._halted = self.seconds

    def _go(self) -> None:
        self._began, self._halted = time.perf_counter() - self.seconds, None


def expected_callbacks(given: object) -> list[Any]:
    """Callbacks as a list; TypeError for what is none, a class for instance."""
    if not isinstance(given, Iterable):
        raise TypeError(f"callbacks: {describe(given)}, expected a list of callbacks")
    callbacks = list(given)
    for one in callbacks:
        if isinstance(one, type) or not all(
            hasattr(one, name) for name in ("start", "step", "reported", "event", "end")
        ):
            what = f"the class {one.__name__}" if isinstance(one, type) else describe(one)
            raise TypeError(f"callbacks: {what}, expected an instance of gpuopt.training.Callback")
    return callbacks


def spread(first: int, end: int, rule: Rule) -> list[int]:
    """Steps from the first to the one before the end at which the schedules of a rule are checked.

    They are evenly spread, both ends among them, and where a schedule turns.
    """
    values = [getattr(rule, name) for name in rule.hyperparameters()]
    turns = [turn for value in values if isinstance(value, schedules.Schedule) for turn in value.turns]
    even = range(first, end, math.ceil(max(end - first, 1) / LOOKED_AT))
    near = (turn + offset for turn in turns for offset in (-1, 0, 1))
    return sorted({*even, max(first, end - 1), *(step for step in near if first <= step < end)})


def warn_of_idle_steps(run: Loop) -> None:
    """Tell steps at the end that change nothing, since a schedule was made for fewer: of a run that is longer now, say."""
    from gpuopt.runs.secondary import warn

    first, total = run.optimizer.steps, run.total
    for name, rule in run.rules.items():
        if total - first > 1 and rule.at(total - 1).get("lr") == 0 and callable(getattr(rule, "lr", None)):
            moving = [step for step in spread(first, total, rule) if rule.at(step)["lr"] != 0]
            since = moving[-1] + 1 if moving else first
            if since < total - 1:
                what = "" if name == "*" else f" of {name}"
                told = "the learning rate%s is 0 from about step %s to the end, step %s, by its schedule"
                warn(told, what, since, total)


def tuned(step: int, name: str, old: float, new: float, value: Hyper, by: str) -> Row:
    """The event of a hyperparameter that became a value after a step."""
    event = {"event": "tune", "step": step, "name": name, "old": old, "new": new, "by": by}
    return event | ({"schedule": value.to_dict()} if isinstance(value, schedules.Schedule) else {})


def is_number(x: object) -> bool:
    """Whether it is a number that a float can hold."""
    return type(x) is float or (type(x) is int and abs(x) < 2**63)
