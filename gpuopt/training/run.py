"""One call that trains, or goes on with a training that was interrupted or is to be longer: what the command line does, for Python."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuopt import backends, schedules
from gpuopt.arrays import describe
from gpuopt.errors import GPUFailure, UsageError
from gpuopt.rules import Rule
from gpuopt.runs.record.folder import RunFolder
from gpuopt.runs.secondary import warn
from gpuopt.training.config import ARRAYS, Config, OnGPUError
from gpuopt.training.loop import Training
from gpuopt.training.preparing import CURES, expect_saved, on, prepared

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpuopt.runs.loop import Callback
    from gpuopt.runs.saving.explosions import OnExplosion
    from gpuopt.training.result import Result
    from gpuopt.training.team import Team

__all__ = ["resume", "train"]


def train(
    config: Config | None = None,
    *,
    data: Sequence[Any] | None = None,
    out: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    report: bool | None = None,
    team: Team | None = None,
) -> Result:
    """Train a network and write a run folder.

    Parameters
    ----------
    config : Config, optional
        Default: the built-in spiral.
    data : sequence, optional
        ``(x, y)`` or ``(x, y, x_test, y_test)`` in place of a file: arrays or data frames. To resume, they are given again.
    out : path, optional
        The run folder, which must not exist; default: ``runs/<name>-<date>-<time>``.
    callbacks : sequence of Callback
        Called after each row of metrics is written and before a checkpoint is.
    report : bool, optional
        Whether ``report.html`` and its pictures are drawn at the end; default: yes, unless the environment variable
        ``GPUOPT_REPORT`` is 0. `gpuopt.training.report.draw` does it later.
    team : Team, optional
        The processes that compute the gradients: `train` is for rank 0, `Team.serve` for the others.

    Raises
    ------
    TypeError
        If the config is no `Config`.
    UsageError
        If the config, the data or the folder cannot be used. Nothing is written then.
    ExplodedError
        If parameters or loss exploded, and `Config.on_explosion` is not what helped; the last good state is saved.
    SavingError
        If a checkpoint or the metrics cannot be written, on a full disk for instance; the checkpoint before is whole.
    BackendUnavailable
        If the device cannot be had.
    GPUFailure
        If the GPU fails on the way, out of memory for instance, unless ``on_gpu_error="cpu"``: then the training goes
        on on the CPU from where it was; after an error that ends all use of the GPU, from its last checkpoint.
    Interrupted
        On Ctrl-C, SIGTERM or SIGHUP (the terminal was closed), which let the current step end and save.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = train(Config(epochs=20), out=f"{folder}/run")
    >>> result.epochs, result.train_accuracy > 0.3
    (20, True)
    """
    config = Config() if config is None else config
    if not isinstance(config, Config):
        raise TypeError(f"config: {describe(config)}, expected a gpuopt.training.Config")
    if data is not None:
        config = config.on_arrays()
    if team is not None and config.parts is None:
        config = dataclasses.replace(config, parts=team.size)
    learner, content = prepared(config, data, team)
    folder = RunFolder.create(out, learner.data.name)
    training = Training(folder.path, learner, content, callbacks=callbacks, report=report)
    return _finished(training, callbacks, report, data, team)


def resume(
    path: str | Path,
    *,
    data: Sequence[Any] | str | Path | None = None,
    labels: str | Path | None = None,
    epochs: int | None = None,
    device: str | None = None,
    on_gpu_error: OnGPUError | None = None,
    on_explosion: OnExplosion | None = None,
    lr: float | None = None,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    callbacks: Sequence[Callback] = (),
    report: bool | None = None,
    team: Team | None = None,
) -> Result:
    """Go on with a run that was interrupted, from its last checkpoint.

    Parameters and metrics become those of a run that was not interrupted, to the bit (on the same device, but for the
    metrics' ``seconds``).

    Parameters
    ----------
    path : str or Path
        The run folder.
    data : sequence or path, optional
        The arrays that it was started with; or the file, if that was moved: it is known by its checksum.
    labels : path, optional
        Likewise the file with the targets of an ``.npy`` file.
    epochs : int, optional
        How many it shall have in all; default: as before. A run that is finished can be extended; schedules that were made
        for its epochs are stretched over the new ones, which is said.
    device, on_gpu_error, on_explosion : str, optional
        Default: as before.
    lr, clip_norm, clip_value : float, optional
        From here on; default: as before. What saves a run that exploded.
    callbacks, report, team
        As for `train`. There may be other processes than before, as many as a batch has parts at most.

    Raises
    ------
    UsageError
        If the folder or the data cannot be used, or there is nothing left to do.
    ExplodedError, SavingError, BackendUnavailable, GPUFailure, Interrupted
        As for `train`.

    Examples
    --------
    >>> import tempfile
    >>> from gpuopt.training import Config, resume, train
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first = train(Config(epochs=2), out=f"{folder}/run", report=False)
    ...     result = resume(f"{folder}/run", epochs=5, report=False)
    >>> first.epochs, result.epochs
    (2, 5)
    """
    folder = RunFolder(path)
    folder.read_config()  # or there is nothing to lock
    folder = RunFolder(folder.path.absolute())  # whoever goes elsewhere finds it
    with folder.locked():  # or it is not begun to read data
        before = folder.read_config()
    try:
        config = Config.from_json(before.get("config"))
        expect_saved(config, folder)
    except UsageError as error:
        raise UsageError(f"{folder.config}: {error}") from None
    if clip_norm is not None or clip_value is not None:
        config = dataclasses.replace(config, clip_norm=None, clip_value=None)
    config = _moved(config, folder, data, None if labels is None else str(labels))
    changes: dict[str, Any] = {"epochs": epochs, "device": device, "clip_norm": clip_norm, "clip_value": clip_value}
    changes |= {"on_gpu_error": on_gpu_error, "on_explosion": on_explosion}
    changes = {name: value for name, value in changes.items() if value is not None}
    arrays = None if isinstance(data, str | Path) else data
    learner, content = prepared(dataclasses.replace(_extended(config, epochs), **changes), arrays, team)
    with contextlib.closing(Training(folder.path, learner, content, callbacks=callbacks, report=report)) as training:
        if folder.read_config() != before:
            raise UsageError(f"{folder.path}: another process went on with this run, expected to be the only one")
        if folder.summary.exists() and training.optimizer.steps >= training.total:
            done = f"is finished, {training.epoch} epochs of {training.config.epochs}"
            cure = "--epochs with a larger number extends it"
            raise UsageError(f"--resume {shlex.quote(str(folder.path))}: {done}; {cure}")
        if lr is not None:
            try:
                training.choose("lr", lr)
            except ValueError as error:
                raise UsageError(f"--lr {lr}: {error}") from None
        elif training.config.epochs != config.epochs:
            _stretch_what_was_tuned(training, training.config.epochs / config.epochs)
        return _finished(training, callbacks, report, arrays, team)


def _finished(
    training: Training,
    callbacks: Sequence[Callback],
    report: bool | None,
    arrays: Sequence[Any] | None,
    team: Team | None,
) -> Result:
    """Train to the end; if the GPU fails on the way, stop or go on on the CPU, from what was saved."""
    try:
        return training.train()
    except Exception as error:
        words = backends.gpu_failure(error)
        if words is None:
            raise
        steps, saved = training.optimizer.steps, training.saved_steps
        failure = f"{training.device} failed after {steps} steps ({words})"
        if training.config.on_gpu_error == "stop" or training.stopped is not None:
            last = "saved" if steps == saved > 0 else f"the last checkpoint is the one after {saved} steps"
            go_on = f"{CURES}: gpuopt train --resume {shlex.quote(str(training.folder))} --device cpu"
            raise GPUFailure(f"{failure}; {last}. {go_on}") from error
    backend = dataclasses.replace(backends.backend("cpu"), reason=failure)
    learner, content = on(backend, training.config, arrays, team)
    training = Training(str(training.folder), learner, content, callbacks=callbacks, report=report)
    return _finished(training, callbacks, report, arrays, team)


def _moved(config: Config, folder: RunFolder, data: Sequence[Any] | str | Path | None, labels: str | None) -> Config:
    """The same with its data where they are by now."""
    if data is not None and (config.data == ARRAYS) is isinstance(data, str | Path):
        expected = "the arrays that the run was started with" if config.data == ARRAYS else "the run's data file"
        raise UsageError(f"data: {type(data).__name__}, expected {expected}")
    if config.data == ARRAYS and data is None:
        cure = "resume(path, data=(x, y)) goes on from Python"
        raise UsageError(f"--resume {folder.path}: was trained on arrays; {cure}")
    if isinstance(data, str | Path):
        config = dataclasses.replace(config, data=str(data))
    if labels is not None:
        if config.labels is None:
            raise UsageError(f"--labels {labels}: the run {folder.path} was started without")
        config = dataclasses.replace(config, labels=labels)
    for option, file in (("--data", config.data), ("--labels", config.labels)):
        if file not in {None, ARRAYS} and not Path(file).exists():
            raise UsageError(f"{file}: No such file or directory; if it was moved, {option} FILE says where it is")
    return config


def _extended(config: Config, epochs: int | None) -> Config:
    """The same with schedules that were made for its epochs stretched to another number of them."""
    rule = config.optimizer
    if epochs is None or not isinstance(rule, Rule) or config.epochs in {None, epochs}:
        return config
    longer = _stretched(_values(rule), epochs / config.epochs)
    for name in longer:
        warn("%s: its schedule was made for %s epochs and is stretched to %s", name, config.epochs, epochs)
    return dataclasses.replace(config, optimizer=dataclasses.replace(rule, **longer))


def _stretch_what_was_tuned(training: Training, factor: float) -> None:
    """As a change by hand, stretch the schedules that were chosen by hand while it ran."""
    (rule,) = training.rules.values()
    chosen = {name: value for name, value in _values(rule).items() if value != getattr(training.config.optimizer, name)}
    chosen |= {row["name"]: schedules.from_dict(row["schedule"]) for row in training.chosen if "schedule" in row}
    for name, longer in _stretched(chosen, factor).items():
        training.choose(name, longer)
        warn("%s: the schedule that was chosen while it ran is stretched, %s times as long", name, f"{factor:.4g}")


def _values(rule: Any) -> dict[str, Any]:
    return {name: getattr(rule, name) for name in rule.hyperparameters()}


def _stretched(values: Mapping[str, Any], factor: float) -> dict[str, schedules.Schedule]:
    """Of hyperparameters, the schedules that have an end, with a later one."""

    def longer(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [longer(one) for one in value]
        if not isinstance(value, dict):
            return value
        found = {name: longer(one) for name, one in value.items()}
        return found | ({"steps": round(value["steps"] * factor)} if type(value.get("steps")) is int else {})

    found = {name: value for name, value in values.items() if isinstance(value, schedules.Schedule)}
    stretched = {name: schedules.from_dict(longer(value.to_dict())) for name, value in found.items()}
    return {name: value for name, value in stretched.items() if value != found[name]}
