"""The same network, from the same start, over the same batches, by several optimizers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpuopt import markup
from gpuopt.backends import BackendUnavailable
from gpuopt.errors import ExplodedError, UsageError
from gpuopt.rules import RULES
from gpuopt.runs.loop import Callback
from gpuopt.runs.record.events import describe
from gpuopt.runs.record.folder import RunFolder, write_json
from gpuopt.runs.record.history import History
from gpuopt.runs.secondary import warned
from gpuopt.training import report
from gpuopt.training.config import Config
from gpuopt.training.config_rule import known, settings
from gpuopt.training.preparing import dataset
from gpuopt.training.progress import is_terminal
from gpuopt.training.run import train
from gpuopt.transforms import TRANSFORMS, chain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from gpuopt.rules.base import Rule
    from gpuopt.runs.loop import Row
    from gpuopt.training.loop import Training
    from gpuopt.transforms import Transform

__all__ = ["COLUMNS", "Comparison", "Entry", "choice", "compare", "with_optimizer"]

SPIRAL: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.5, "momentum": 0.9},
    "AdaGrad": {"lr": 0.5},
    "RMSProp": {"lr": 0.02, "rho": 0.99},
    "Adam": {"lr": 0.05},
}
FILE: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.05, "momentum": 0.9},
    "AdaGrad": {"lr": 0.02},
    "RMSProp": {"lr": 0.001},
    "Adam": {"lr": 0.001},
}
"""Hyperparameters with which each optimizer does well on the built-in spiral, and on most data of a file."""
EPOCHS = 2000
"""On the spiral, unless told otherwise."""
FILE_EPOCHS = 10
"""On a file."""
COLUMNS = {
    "optimizer": "optimizer",
    "loss": "final loss",
    "accuracy": "accuracy",
    "steps_to_threshold": "steps to loss {threshold:.3g}",
    "seconds": "time (s)",
    "state_bytes": "state (bytes)",
    "outcome": "outcome",
}


@dataclass(frozen=True)
class Entry:
    """How one optimizer did.

    Attributes
    ----------
    optimizer : str
    rule : str
        With all its hyperparameters.
    loss, accuracy : float or None
        With the final parameters: over the test set if there is one, else over the training set.
    steps_to_threshold : int or None
        Steps until the first reported training loss at or below the threshold; None if there is none.
    seconds : float
        Of the training.
    state_bytes : int
        Of the optimizer's state: what it needs beside parameters and gradients.
    outcome : str
        "finished", or why it ended early.
    """

    optimizer: str
    rule: str
    loss: float | None
    accuracy: float | None
    steps_to_threshold: int | None
    seconds: float
    state_bytes: int
    outcome: str


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes
    ----------
    folder : Path
        With ``report.html``, ``comparison.png``, ``comparison.json`` and a run folder for each optimizer.
    threshold : float
    entries : list of Entry
        In the order in which they were given.
    """

    folder: Path
    threshold: float
    entries: list[Entry]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Head and rows; what there is not is a dash."""
        head = [name.format(threshold=self.threshold) for name in COLUMNS.values()]
        rows = [[getattr(entry, name) for name in COLUMNS] for entry in self.entries]
        return head, [["-" if value is None else value for value in row] for row in rows]


def choice(text: str) -> tuple[str, dict[str, float | str]]:
    """Name and hyperparameters of ``NAME[:ARG=VALUE,...]``.

    >>> choice("SGD:lr=0.1,nesterov=true")
    ('SGD', {'lr': 0.1, 'nesterov': True})
    """
    name, _, rest = text.partition(":")
    name = {known.lower(): known for known in RULES | TRANSFORMS}.get(name.strip().lower(), name.strip())
    expected = "NAME or NAME:ARG=VALUE,... as in SGD:lr=0.1,momentum=0.9"
    return name, settings(rest.split(",") if rest else (), expected=expected, whole=text)


def with_optimizer(
    config: Config, given: str | Rule, samples: Callable[[], int], defaults: Mapping[str, dict[str, Any]] | None = None
) -> Config:
    """The config with a rule, or with the optimizer of ``NAME[:ARG=VALUE,...]``; without arguments it gets those of the defaults.

    ``NAME+NAME``, each with its arguments, is a chain: one rule, and transforms before and after it.
    Schedules are checked over the steps that so many `samples` take; which is asked for only if there are any.

    >>> with_optimizer(Config(), "ClipValue:limit=1+SGD:lr=0.1+EMA:decay=0.9", lambda: 1).rule().members[0]
    ClipValue(limit=1.0)
    """
    try:
        optimizer, values = _parsed(given, defaults or {}) if isinstance(given, str) else (given, {})
        chosen = dataclasses.replace(config, optimizer=optimizer, lr=None, schedule=None, hyperparameters=values)
        if any(isinstance(value, str) for value in values.values()):
            chosen.resolved(samples())
    except UsageError as error:  # after the option of `gpuopt train` that it names
        raise UsageError(f"{given}: {str(error).partition(': ')[2]}") from None
    return chosen


def _parsed(text: str, defaults: Mapping[str, dict[str, Any]]) -> tuple[str | Rule, dict[str, float | str]]:
    """A rule's name, or a chain of transforms and a rule; and what is still to be chosen: the rule's hyperparameters, and schedules."""
    members = [choice(member) for member in re.split(r"\+(?=\s*[A-Za-z])", text)]  # but 1e+3 is a number
    if len(members) == 1:
        ((name, own),) = members
        return name, own or defaults.get(name, {})
    found: list[Rule | Transform] = []
    values: dict[str, float | str] = {}
    try:
        for name, own in members:
            if name in TRANSFORMS:
                numbers = {key: value for key, value in own.items() if not isinstance(value, str)}
                found.append(TRANSFORMS[name](**numbers))
                values |= {f"{name}.{key}": value for key, value in own.items() if key not in numbers}
            else:
                found.append(RULES[known(name, "--optimizer", more=TRANSFORMS)]())
                values |= own or defaults.get(name, {})
        return chain(*found), values
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, UsageError) else UsageError(f"--optimizer: {error}") from None


class Watcher(Callback):
    """Sees what the metrics do not say, and tells how far the training is."""

    def __init__(self, tell: Callable[[Row], None]) -> None:
        self.state_bytes, self.first = 0, 0.0
        self._tell = tell

    def start(self, training: Training) -> None:
        slots = training.optimizer.state_dict()["state"].values()
        self.state_bytes = sum(int(x.nbytes) for own in slots for x in own.values())
        self.first = training.probe()()

    def reported(self, training: Training, row: Row) -> None:  # noqa: ARG002
        with warned("not printed (%s)"):
            self._tell(row)


def compare(
    optimizers: Sequence[str | Rule] | Mapping[str, str | Rule] = (),
    config: Config | None = None,
    *,
    threshold: float | None = None,
    out: str | Path | None = None,
    quiet: bool = True,
) -> Comparison:
    """Train the same network with several optimizers, one after the other, so that their times can be compared.

    All start from the same parameters and see the same samples in the same order, for as many epochs.

    Parameters
    ----------
    optimizers : sequence of str or Rule, or mapping
        ``NAME``, ``NAME:ARG=VALUE,...`` or ``NAME+NAME``, a chain of transforms and a rule, each with its arguments; or any rule, chains
        and those of `gpuopt.like` among them. A mapping says what each is called. Default: those that most people know. Names
        without arguments get sensible ones.
    config : Config, optional
        Everything else; default: the built-in spiral for 2,000 epochs.
    threshold : float, optional
        The training loss to which steps are counted; default: half of that before the first step.
    out : path, optional
        The folder, which must not exist; default: ``runs/compare-<data>-<date>-<time>``.
    quiet : bool
        Whether no progress is shown.

    Raises
    ------
    UsageError, BackendUnavailable
        As `train` does. Nothing is written then. One that explodes is an entry of the table.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = compare(["SGD", "Adam:lr=0.02"], Config(epochs=20), out=f"{folder}/both")
    >>> [entry.optimizer for entry in found.entries]
    ['SGD', 'Adam:lr=0.02']
    >>> import gpuopt
    >>> rules = {"clipped": gpuopt.chain(gpuopt.ClipNorm(1.0), gpuopt.Adam(lr=0.02)), "torch's": gpuopt.like.torch.AdamW(lr=0.02)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = compare(rules, Config(epochs=20), out=f"{folder}/both")
    >>> [entry.optimizer for entry in found.entries]
    ['clipped', "torch's"]
    """
    config = config or Config(epochs=EPOCHS)
    given = optimizers if isinstance(optimizers, Mapping) else {str(own): own for own in optimizers}
    labels = list(map(str, optimizers)) or list(SPIRAL)
    if threshold is not None and not 0 < threshold < math.inf:
        raise UsageError(f"--threshold {threshold}: expected a positive number")
    chosen: Any = config.epochs
    if chosen is None:
        config = dataclasses.replace(config, epochs=FILE_EPOCHS)
    samples = functools.cache(lambda: len(dataset(config).train))
    defaults = SPIRAL if config.data is None else FILE
    configs = [with_optimizer(config, given.get(label, label), samples, defaults) for label in labels]
    if len(set(labels)) < len(labels):
        raise UsageError(f"{' '.join(labels)}: expected each one once")
    data = "spiral" if config.data is None else config.data.rpartition("/")[2].partition(".")[0]
    folder = RunFolder.create(out, f"compare-{data}").path
    runs: list[History] = []
    watchers: list[Watcher] = []
    outcomes: list[str] = []
    with _lines(labels, config.epochs, quiet=quiet) as tell:
        for number, (label, chosen) in enumerate(zip(labels, configs, strict=True)):
            watchers.append(Watcher(lambda training, number=number: tell(number, training)))  # type: ignore[misc]
            place = folder / "".join(c if c.isalnum() or c in "=.-+" else "_" for c in label)
            try:
                result = train(chosen, out=place, callbacks=watchers[-1:], report=False)
                outcomes.append(result.stopped or "finished")
            except ExplodedError as error:
                outcomes.append(str(error).partition(";")[0])
                with warned("not printed (%s)"):
                    tell(number, outcomes[-1])
            except (UsageError, BackendUnavailable):
                with contextlib.suppress(OSError):
                    folder.rmdir()
                raise
            runs.append(History.read(place).called(label))
    threshold = watchers[0].first / 2 if threshold is None else threshold
    entries = [_entry(*one, threshold) for one in zip(runs, watchers, outcomes, strict=True)]
    comparison = Comparison(folder, threshold, entries)
    _write(comparison, runs)
    return comparison


def _entry(run: History, watcher: Watcher, outcome: str, threshold: float) -> Entry:
    end = run.summary or {}
    tested = "test" if end.get("test_loss") is not None else "train"
    steps = next((step for step, loss in zip(*run.points("loss"), strict=True) if loss <= threshold), None)
    return Entry(
        optimizer=run.name,
        rule=str(Config.from_json(run.content["config"]).rule()),
        loss=end.get(f"{tested}_loss"),
        accuracy=end.get(f"{tested}_accuracy"),
        steps_to_threshold=int(steps) if steps is not None else None,
        seconds=end.get("seconds", 0.0),
        state_bytes=watcher.state_bytes,
        outcome=outcome,
    )


def _write(comparison: Comparison, runs: Sequence[History]) -> None:
    content = {"threshold": comparison.threshold, "entries": [dataclasses.asdict(e) for e in comparison.entries]}
    write_json(comparison.folder / "comparison.json", content)
    tested = "test set" if any(run.points("test_loss")[0] for run in runs) else "training set"
    about = (
        f"The same network from the same start over the same batches, for {runs[0].content['config']['epochs']:,} epochs; trained one "
        f"after the other. Final loss and accuracy: {tested}. Steps: to the first reported training loss that low."
    )
    rules = markup.table([], [(entry.optimizer, entry.rule) for entry in comparison.entries])
    parts = [f"<p>{about}</p>", markup.table(*comparison.table()), "<h2>The optimizers</h2>", rules]
    report.draw_over_each_other(runs, comparison.folder / "report.html", *parts, title="Optimizers compared")
    report.draw_over_each_other(runs, comparison.folder / "comparison.png")


@contextlib.contextmanager
def _lines(labels: Sequence[str], epochs: int, *, quiet: bool) -> Iterator[Callable[[int, Row | str], None]]:
    """A line for each optimizer: a live one in a terminal, a plain one at its end elsewhere.

    What is yielded takes the number of the optimizer, and the metrics of an epoch or why it ended early.
    """
    width = max(map(len, labels))
    if quiet:
        yield lambda *_: None
    elif is_terminal():
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[metrics]}"))
        with Progress(*columns, TimeElapsedColumn()) as bars:
            tasks = [bars.add_task(label, total=epochs, metrics="", start=False) for label in labels]

            def show(number: int, row: Row | str) -> None:
                if not bars.tasks[number].started:
                    bars.start_task(tasks[number])
                if isinstance(row, str):
                    bars.update(tasks[number], metrics=row.partition(":")[0])  # there is no room for more
                else:
                    bars.update(tasks[number], completed=row["epoch"], metrics=describe(row))
                if isinstance(row, str) or row["epoch"] == epochs:
                    bars.stop_task(tasks[number])

            yield show
    else:

        def tell(number: int, row: Row | str) -> None:
            if isinstance(row, str) or row["epoch"] == epochs:
                words = row if isinstance(row, str) else describe(row)
                print(f"{labels[number]:<{width}}  {words}", flush=True)  # noqa: T201

        yield tell
