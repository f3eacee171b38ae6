"""What somebody may ask of a running training, and how it does that: between two steps, so that it holds at the next one.

A request is a dict of commands, all of which are done after the same step, in the order of the dict:

========================  ==========================================================================================
``tune: {name: value}``   change hyperparameters, to a number or a schedule's text
``rollback: to``          go back to a state: "last" (the last good one), "change" (before the last change by hand),
                          "best", or the steps of a checkpoint; hyperparameters become what they were
``save: null``            write a checkpoint now
``pause: null``           wait, until it is resumed
``resume: null``          go on
``step: null``            take one step, and wait
``stop: null``            end the training
========================  ==========================================================================================

The answer has the ``events`` that followed, as ``metrics.jsonl`` has them, ``now`` (see `Steering`), and ``refused``, a
message, if a command could not be done; those after it are not done then.
"""

from __future__ import annotations

import contextlib
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

from gpuopt import schedules
from gpuopt.errors import UsageError
from gpuopt.rules.hyper import Number
from gpuopt.runs.control.channel import Server
from gpuopt.runs.loop import Callback
from gpuopt.runs.record.metrics import finite
from gpuopt.runs.saving.checkpoints import HAND
from gpuopt.runs.saving.snapshots import Snapshot
from gpuopt.suggest import listed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gpuopt.runs.control.channel import Message
    from gpuopt.runs.loop import Loop, Row
    from gpuopt.runs.saving.checkpoints import Checkpoints

    Answers: TypeAlias = SimpleQueue[Message]

__all__ = ["Steering"]

GLANCE = 0.1
"""Seconds between two looks, while it waits, at whether the training is stopped by a signal."""


class Steering(Callback):
    """Answers requests. A training that nobody steers pays for one look at an empty queue a step.

    Changes that are younger than the checkpoint that a run is resumed from are made again, each one after the same step.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._requests: SimpleQueue[tuple[Message, Answers]] = SimpleQueue()
        self._server: Server | None = None
        self._paused = self._single = self._ended = False
        self._waiting: Answers | None = None  # for the single step that is taken
        self._told: list[Mapping[str, Any]] = []
        self._before: Snapshot | None = None  # the last change by hand

    def start(self, run: Loop) -> None:
        if self._checkpoints.pending:
            self._repeat(run)
            self._checkpoints.explosions.good = Snapshot.of(run)
        with contextlib.suppress(OSError):  # it trains as well where nobody can reach it
            self._server = Server(self._checkpoints.folder.control, self._ask)

    def step(self, run: Loop) -> None:
        if self._checkpoints.pending:
            self._repeat(run)
        if self._paused or not self._requests.empty():
            self._attend(run)

    def event(self, run: Loop, event: Mapping[str, Any]) -> None:  # noqa: ARG002
        self._told.append(event)

    def end(self, run: Loop) -> None:  # noqa: ARG002
        if self._server is not None:
            self._server.close()  # first, so that who is hung up on finds no file
        self._ended = True

    def _ask(self, request: Any) -> Message:
        """In a thread of the server: let the training answer; ConnectionError if it ends before."""
        if not isinstance(request, dict):
            return {"events": [], "now": {}, "refused": f"{request!r:.40}: expected an object of commands"}
        answers: Answers = SimpleQueue()
        self._requests.put((request, answers))
        while True:
            try:
                return answers.get(timeout=GLANCE)
            except Empty:
                if self._ended:
                    raise ConnectionError from None

    def _attend(self, run: Loop) -> None:
        """Do what is asked for; while it is paused, wait for more."""
        if self._waiting is not None:
            self._tell(run, "step", loss=run.probe()())
            self._waiting.put(self._answer(run))
            self._waiting = None
        self._single = False
        with run.interruption():
            while run.stopped is None and not self._single and (self._paused or not self._requests.empty()):
                try:
                    request, answers = self._requests.get(timeout=GLANCE)
                except Empty:
                    continue
                with self._checkpoints.metrics.together():
                    refused = self._do(run, request)
                if self._told:  # before it is answered: it shall last
                    self._checkpoints.metrics.sync()
                if any(event["event"] == "rollback" for event in self._told):
                    self._checkpoints.save()  # a run that is killed from now on goes on from there
                if "step" in request and refused is None:
                    self._waiting = answers
                else:
                    answers.put(self._answer(run, refused))

    def _do(self, run: Loop, request: Message) -> str | None:
        """Carry out the commands of a request. Return the reason if one is refused, else None."""
        self._told = []
        try:
            for command, argument in request.items():
                match command:
                    case "tune":
                        self._tune(run, argument)
                    case "rollback":
                        self._roll_back(run, str(argument))
                    case "save":
                        self._save(run)
                    case "pause" | "resume":
                        self._paused = command == "pause"
                        self._tell(run, command)
                    case "step":
                        self._paused = self._single = True
                    case "stop":
                        self._tell(run, command)
                        run.stop("stopped by hand")
                    case _:
                        return f"{command}: unknown, expected tune, rollback, save, pause, resume, step or stop"
        except UsageError as error:
            return str(error)
        return None

    def _answer(self, run: Loop, refused: str | None = None) -> Message:
        told = [finite(event) for event in self._told]
        return {"events": told, "now": self._now(run)} | ({"refused": refused} if refused else {})

    def _now(self, run: Loop) -> Row:
        """Metrics of this moment, hyperparameters of the next step, schedules among them, and where one may go back to."""
        rules = list(run.rules.values())
        first = {name: rule for rule in reversed(rules) for name in reversed(rule.hyperparameters())}
        hyperparameters = run.hyperparameters()
        given = {name: getattr(first[name], name) for name in hyperparameters}
        kinds = {name: first[name].hyperparameter(name).kind for name in hyperparameters}
        return finite(run.now()) | {
            "steps": run.total,
            "paused": self._paused,
            "rule": " and ".join(dict.fromkeys(rule.name for rule in rules)),
            "hyperparameters": hyperparameters,
            # Least value and excluded greatest value; None of a flag.
            "ranges": {name: [of.low, of.high] if isinstance(of, Number) else None for name, of in kinds.items()},
            "schedules": {name: repr(value) for name, value in given.items() if callable(value)},
            "back": {name: steps for name, (steps, _) in self._states().items()},
        }

    def _tell(self, run: Loop, event: str, **about: Any) -> None:
        run.tell({"event": event, "step": run.optimizer.steps, **about, "by": HAND})

    def _tune(self, run: Loop, values: Any) -> None:
        if not isinstance(values, dict):
            raise UsageError(f"tune: {values!r}, expected values by name")
        before = Snapshot.of(run)
        try:
            run.tune(HAND, **values)
        except (TypeError, ValueError) as error:
            raise UsageError(str(error)) from None
        self._before = before
        self._checkpoints.explosions.accept(run)

    def _repeat(self, run: Loop) -> None:
        """Make changes again that the last checkpoint did not have yet."""
        pending = self._checkpoints.pending
        while pending and run.optimizer.steps >= (step := pending[0]["step"]):
            values: dict[str, Any] = {}
            while pending and pending[0]["step"] == step and pending[0].get("name") not in values:
                row = pending.pop(0)  # those of one request together
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    values[row["name"]] = schedules.from_dict(row["schedule"]) if "schedule" in row else row["new"]
            with contextlib.suppress(KeyError, TypeError, ValueError), self._checkpoints.metrics.together():
                run.tune(HAND, **values)
                self._checkpoints.explosions.accept(run)

    def _save(self, run: Loop) -> None:
        explosions = self._checkpoints.explosions
        if not explosions.accept(run):
            kept = f"the last good one, after step {explosions.good.steps}, is what is saved"
            raise UsageError(f"save: the state is not sound: its loss has exploded; {kept}")
        self._tell(run, "save")
        self._checkpoints.metrics.flush()
        try:
            self._checkpoints.save(at_once=True)
        except OSError as error:
            raise UsageError(f"save: {error.filename or self._checkpoints.folder.path}: {error.strerror}") from None

    def _roll_back(self, run: Loop, to: str) -> None:
        from gpuopt import checkpoint

        self._checkpoints.settle()  # or the file of the last checkpoint becomes that of another one in a moment
        states, step = self._states(), run.optimizer.steps
        if to not in states:
            raise UsageError(f"rollback {to}: no such state, expected one of {listed(states)}")
        _, state = states[to]
        if isinstance(state, Snapshot):
            state.restore(run)
        else:
            seconds = run.seconds
            try:
                extra, arrays = checkpoint.load_state(state, run.optimizer)
                run.put_back(arrays)
            except (checkpoint.CheckpointError, OSError) as error:
                raise UsageError(f"rollback {to}: {error}") from None
            run.position = extra["position"] | {"seconds": seconds}
        if not self._checkpoints.explosions.accept(run):
            self._checkpoints.explosions.good = Snapshot.of(run)
        about = {"to": to, "back_to_step": run.optimizer.steps, "lr": run.hyperparameters().get("lr")}
        self._tell(run, "rollback", step=step, **about)

    def _states(self) -> dict[str, tuple[int | None, Snapshot | Path]]:
        """Every state that one may go back to, by name, and its steps; None if they are not known."""
        folder, steps, good = self._checkpoints.folder, self._checkpoints.steps, self._checkpoints.explosions.good
        states: dict[str, tuple[int | None, Snapshot | Path]] = {"last": (good.steps, good)}
        if self._before is not None:
            states["change"] = self._before.steps, self._before
        if folder.best.exists():
            states["best"] = None, folder.best
        saved = {steps: folder.checkpoint} | {n: file for n, file in reversed(folder.kept().items()) if n != steps}
        return states | {str(n): (n, file) for n, file in saved.items() if n}
