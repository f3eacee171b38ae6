"""One call that trains: what the command line does, for Python."""

from __future__ import annotations

import dataclasses
import shlex
from typing import TYPE_CHECKING, Any

from gpuopt import backends
from gpuopt.arrays import describe
from gpuopt.runs.record.folder import RunFolder
from gpuopt.training.config import Config
from gpuopt.training.loop import Training
from gpuopt.training.preparing import CURES, on, prepared
from gpuopt.training.result import GPUFailure, Result

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gpuopt.runs.loop import Callback
    from gpuopt.training.team import Team

__all__ = ["finished", "train"]


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
    if team is not None:
        config = dataclasses.replace(config, parts=team.parts(config))
    learner, content = prepared(config, data, team)
    folder = RunFolder.create(out, learner.data.name)
    training = Training(folder.path, learner, content, callbacks=callbacks, report=report)
    return finished(training, callbacks, report, data, team)


def finished(
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
    return finished(training, callbacks, report, arrays, team)
