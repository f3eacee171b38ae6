"""A loop over many processes: rank 0 has the run, and decides; the others follow.

Rank 0 alone has the folder, the page and whoever steers. Between two steps the others do with the optimizer what rank 0 does
with it, and hear what is theirs: the next step, values that were saved, the end. In the body of a step all are equals. A signal
that another process gets is a wish, which rank 0 learns with the next step.
"""

from __future__ import annotations

import contextlib
import functools
import signal
from typing import TYPE_CHECKING, Any

from gpuopt.optimizer import Optimizer
from gpuopt.runs.control.signals import first_signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from gpuopt.runs.loop import Loop

__all__ = ["begins", "heed", "is_shared", "leading", "say", "wishing"]


def is_shared(optimizer: Any) -> bool:
    """Whether it is an optimizer of several processes."""
    return isinstance(optimizer, Optimizer) and getattr(optimizer, "size", 1) > 1


def say(optimizer: Any, word: str, *args: Any) -> None:
    """Let those who follow hear a word; nothing where nobody follows."""
    if is_shared(optimizer) and optimizer.leads:
        optimizer.say(word, *args)


@contextlib.contextmanager
def begins(optimizer: Any) -> Iterator[None]:
    """Let those who follow hear how the making of a run inside ends."""
    with _told(optimizer):
        yield
    if is_shared(optimizer):
        optimizer.say("begun")


@contextlib.contextmanager
def leading(run: Loop) -> Iterator[Callable[[int], AbstractContextManager[None]] | None]:
    """Lead those who follow; for the body of each step there is what is to be around it, None if nobody follows."""
    optimizer: Any = run.optimizer
    if not is_shared(optimizer):
        yield None
        return
    optimizer.wish = optimizer.wished = 0

    @contextlib.contextmanager
    def body(step: int) -> Iterator[None]:
        optimizer.say("step", step)
        with optimizer.leading("equal"):
            yield

    with _told(optimizer):
        yield body
    if run.error is None:
        optimizer.say("end", getattr(run, "finished", False), run.stopped)


@contextlib.contextmanager
def _told(optimizer: Any) -> Iterator[None]:
    """Lead; let those who follow hear of an error. One that breaks off a body closes the loop: there all are equals."""
    if not is_shared(optimizer):
        yield
        return
    try:
        with optimizer.leading():
            yield
    except GeneratorExit:
        raise
    except BaseException as error:
        optimizer.say("broken", f"rank 0: {type(error).__name__}: {error}")
        raise


def heed(run: Loop) -> None:
    """Stop after this step if another process got a signal."""
    wished = getattr(run.optimizer, "wished", 0)
    if wished and run.stopped is None:
        run.stop_by(signal.Signals(wished))


def wishing(optimizer: Any) -> AbstractContextManager[None]:
    """On another process than rank 0: make of the first signal a wish."""
    return first_signal(functools.partial(setattr, optimizer, "wish"))
