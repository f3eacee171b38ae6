"""When a training is saved, what is kept, and how it is found again."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import re
from concurrent.futures import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuopt.backends import gpu_failure
from gpuopt.errors import SavingError, UsageError
from gpuopt.runs.loop import Callback, is_number, tuned
from gpuopt.runs.record.images import Images
from gpuopt.runs.record.metrics import Metrics
from gpuopt.runs.saving.explosions import Explosions, Progress
from gpuopt.runs.saving.snapshots import Snapshot
from gpuopt.runs.secondary import background, warn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from gpuopt.runs.loop import Loop, Row
    from gpuopt.runs.record.folder import RunFolder
    from gpuopt.runs.saving.explosions import OnExplosion, Sight

__all__ = ["HAND", "Checkpoints", "expect_interval", "saving"]

HAND = "hand"
"""Who changes something, in the events of `gpuopt.runs.control.steering`."""
INTERVAL = re.compile(r"[1-9]\d{0,14}|\d{1,15}(\.\d*)?s")
HURRY = 1.0
"""Seconds that somebody waits at most who wants to leave at once."""


class Checkpoints(Callback):
    """Saves every so many steps or seconds, and when the training ends; only what is sound.

    A copy is taken in memory and written beside the training. The best state is copied when its metrics are reported,
    and written with the next checkpoint: a run that is killed before finds it again when it repeats these steps.
    """

    def __init__(
        self, folder: RunFolder, every: int | str, keep: int, on_explosion: OnExplosion, patience: int | None = None
    ) -> None:
        self.folder = folder
        self.metrics = Metrics(folder.metrics)
        self.images = Images(folder.path)
        self.explosions = Explosions(on_explosion)
        self.pending: list[Row] = []  # changes by hand that are younger than the last checkpoint and to be made again
        self.steps = 0  # of the last checkpoint that is on the disk as a whole
        in_seconds = str(every).endswith("s")
        self._every_steps = None if in_seconds else int(every)
        self._every_seconds = float(str(every).removesuffix("s")) if in_seconds else math.inf
        self._keep = keep
        self._writing: Future[None] | None = None
        self._patience = patience  # steps without a lower loss
        self.lowest: float | None = None  # loss that a row told
        self.lowest_at = 0  # step
        self._best: Snapshot | None = None  # if it is not written yet

    def restore(self, run: Loop) -> None:
        """Put a training and its metrics back to the last checkpoint, to the beginning if there is none; UsageError if damaged."""
        loaded = self.folder.load(run.optimizer)
        if loaded is None:
            self._restore_metrics([0, 0], [])
            return
        extra, arrays = loaded
        try:
            run.put_back(arrays)
            position = extra["position"]
            explosions = Progress(**extra["explosions"])
            lowest, lowest_at = extra["lowest"], extra.get("lowest_at", run.optimizer.steps)
            vouched, pending = list(extra["metrics"]), list(extra["pending"])
            counts = (explosions.rollbacks, explosions.skipped, lowest_at, *vouched)
            if len(vouched) != 2 or not all(type(n) is int and 0 <= n < 2**63 for n in counts):
                raise ValueError(f"expected whole numbers, got {counts}")  # noqa: TRY301
            finite = (position["seconds"], *([] if lowest is None else [lowest]))
            numbers = (explosions.first, explosions.last, *finite)
            if not all(map(is_number, numbers)) or not all(map(math.isfinite, finite)):
                raise ValueError(f"expected numbers, got {numbers}")  # noqa: TRY301
            if explosions.jumped_at is not None and type(explosions.jumped_at) is not int:
                raise ValueError(f"expected a step, got {explosions.jumped_at!r}")  # noqa: TRY301
            run.position = position
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{self.folder.checkpoint}: is no checkpoint of a run: {error!r}") from None
        self._restore_metrics(vouched, pending)
        self.explosions.progress, self.lowest, self.lowest_at = explosions, lowest, lowest_at
        self.steps = run.optimizer.steps

    def choose(self, run: Loop, name: str, value: Any) -> None:
        """Let a hyperparameter be another one from here on: as a change by hand, instead of those that are pending."""
        rule: Any = run.optimizer.rule
        step = run.optimizer.steps
        changed = dataclasses.replace(rule, **{name: value})
        row = tuned(step, name, rule.at(step)[name], changed.at(step)[name], value, HAND)
        self.pending = [row, *(row for row in self.pending if row.get("name") != name)]

    def noted(self) -> dict[str, Any]:
        """What `restore` needs, besides the last checkpoint, once the rows that are lost are cut off."""
        return {**self._vouched(), "lost": self.metrics.lost_checksum}

    def start(self, run: Loop) -> None:
        self.explosions.start(run)
        self._next = run.seconds + self._every_seconds

    def step(self, run: Loop) -> None:
        if self._writing is not None:
            self.settle(wait=False)
        steps = run.optimizer.steps
        due = run.seconds >= self._next if self._every_steps is None else steps % self._every_steps == 0
        if due:
            self._next = run.seconds + self._every_seconds
            if self.explosions.accept(run):
                self.settle(wait=False)
                self.save()

    def judge(self, run: Loop, row: Row, sight: Sight) -> None:
        """After a row was told, do what its sight, taken when it was measured, asks for: note a new best, roll back, or stop."""
        if run.error is None and self.explosions.judge(run, sight):
            loss: float | None = row.get("test_loss", row.get("loss"))
            lowest = math.inf if self.lowest is None else self.lowest
            if loss is not None and loss < lowest:
                self.lowest, self.lowest_at, self._best = loss, row["step"], self.explosions.good
            elif self._patience is not None and row["step"] - self.lowest_at >= self._patience:
                run.stop(run.impatience(lowest, self.lowest_at, row["step"]))

    def end(self, run: Loop) -> None:
        if run.error is None:  # a step may have been broken off in its middle
            self.explosions.conclude(run)
            self.save(at_once=True)
            return
        with contextlib.suppress(OSError):
            self._wait(None if isinstance(run.error, Exception) else HURRY)
        if run.is_whole and gpu_failure(run.error) is not None:
            self._rescue(run)

    def _rescue(self, run: Loop) -> None:
        """Save what a GPU that fails still gives: after some errors it does, after others nothing works.

        An error of a kernel that ran is always of the latter kind. So what can be read is whole.
        """
        try:
            now = Snapshot.of(run)
            if now.is_finite:
                self.explosions.good = now
            self.save(at_once=True)
        except Exception as error:
            if gpu_failure(error) is None:
                raise

    def settle(self, *, wait: bool = True) -> None:
        """Wait for what is being written: then the folder has what `steps` says. Too many open files are only a warning."""
        try:
            if wait or (self._writing is not None and self._writing.done()):
                self._wait()
        except OSError as error:
            if error.errno not in {errno.EMFILE, errno.ENFILE}:
                raise
            warn("a checkpoint is not written (%s); the next one may be", error)

    def _wait(self, seconds: float | None = None) -> None:
        """Wait until no checkpoint is being written, so long at most; raise once what went wrong."""
        if self._writing is not None:
            wait([self._writing], seconds)
            if self._writing.done():
                written, self._writing = self._writing, None
                written.result()

    def save(self, *, at_once: bool = False) -> None:
        """Write the last good state, and what else the folder is to have then; `at_once`: not beside the training."""
        from gpuopt.checkpoint import save_state

        self._wait()
        drawing = self.images.draw()
        now, best = self.explosions.good, self._best
        state, best_state = now.state, best.state if best is not None else None  # a GPU may fail while they are written
        extra = {
            "position": now.position,
            **self._vouched(),
            "explosions": dataclasses.asdict(self.explosions.progress),
            "lowest": self.lowest,
            "lowest_at": self.lowest_at,
        }
        best_extra = extra | ({} if best is None else {"position": best.position})
        self._best = None

        def write() -> None:
            wait([drawing])
            self.metrics.sync()
            if best_state is not None:
                save_state(self.folder.best, best_state, best_extra)
            if self._keep > 1 and self.steps not in (0, now.steps):
                self.folder.keep(self.steps)
            save_state(self.folder.checkpoint, state, extra)
            self.steps = now.steps
            self.folder.forget_all_but(self._keep - 1, now.steps)

        self._writing = background(write, "gpuopt checkpoint")
        if at_once:
            self._wait()

    def _vouched(self) -> dict[str, Any]:
        return {"metrics": [self.metrics.written, self.metrics.checksum], "pending": list(self.pending)}

    def _restore_metrics(self, vouched: list[int], pending: list[Any]) -> None:
        """Find the changes that are to be made again: those in the rows that are lost, and of the pending ones the others."""
        self.metrics.restore(*vouched)
        lost = list(self.metrics.lost)
        match self.folder.read_config():
            case {"resumed": {"metrics": since, "pending": list(noted), "lost": known}} if since == vouched:
                pending = noted
                if known == self.metrics.lost_checksum:  # killed before they were cut off
                    lost = []
        # What followed a step back that was not saved belongs to a course that is lost.
        back = (k for k, row in enumerate(lost) if (row.get("event"), row.get("by")) == ("rollback", HAND))
        lost = lost[: next(back, len(lost))]
        self.pending = [row for row in lost if _is_by_hand(row)] + [
            row for row in pending if _is_by_hand(row) and row not in lost
        ]


def expect_interval(every: object, option: str) -> None:
    """Refuse what is neither steps nor seconds."""
    if not (type(every) is int or isinstance(every, str)) or not INTERVAL.fullmatch(str(every)):
        raise UsageError(f"{option}{every}: expected steps or seconds, as in 500 or 30s")


@contextlib.contextmanager
def saving(checkpoints: Checkpoints, go_on: str) -> Iterator[None]:
    """Say what is whole, and how to go on, if a file of the run cannot be written."""
    folder = checkpoints.folder
    try:
        yield
    except (BrokenPipeError, SavingError):
        raise  # nobody reads what is printed
    except OSError as error:
        if error.filename is not None and Path(str(error.filename)).absolute().parent != folder.path.absolute():
            raise  # somebody else's
        whole = f"the last checkpoint is the one after {checkpoints.steps} steps. {go_on}"
        gone = "nothing was begun" if folder.path.exists() else "the folder was removed or moved"
        left = whole if folder.config.exists() else gone
        raise SavingError(f"{error.filename or folder.path}: {error.strerror or error}; {left}") from error


def _is_by_hand(row: Any) -> bool:
    """Whether it tells a change of a hyperparameter by hand."""
    return (
        isinstance(row, dict) and (row.get("event"), row.get("by")) == ("tune", HAND) and type(row.get("step")) is int
    )
