"""One call that trains: what the command line does, for Python."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt import backends
from gpuopt.errors import ExplodedError, Interrupted, UsageError
from gpuopt.limits import available
from gpuopt.optimizer import Nonfinite, Optimizer
from gpuopt.runs.control.signals import stopping
from gpuopt.runs.control.steering import Steering
from gpuopt.runs.record.folder import RunFolder, write_json
from gpuopt.runs.report.process import is_wanted, reported
from gpuopt.runs.saving.checkpoints import Checkpoints, saving
from gpuopt.training.config import Config, OnGPUError
from gpuopt.training.data import load, spiral
from gpuopt.training.loop import Training, device
from gpuopt.training.model import Perceptron, initial_params

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpuopt.backends import Backend
    from gpuopt.runs.loop import Callback
    from gpuopt.runs.saving.explosions import OnExplosion

__all__ = ["GPUFailure", "Interrupted", "Result", "resume", "train"]

BYTES_A_PARAMETER = 24
"""Parameter, gradient and state, and a copy to be saved."""
CURES = "To go on without the GPU"
DRAWING = "gpuopt.training.report"


@dataclass(frozen=True)
class Result:
    """How a run ended, as ``summary.json`` has it.

    Attributes
    ----------
    folder : str
    backend, device, reason : str
        The library it ran on, "numpy" or "cupy"; "cpu" or "cuda:N"; and why.
    epochs, steps : int
        Done in all.
    train_loss, train_accuracy, test_loss, test_accuracy : float or None
        With the final parameters, over the whole set. None without a test set, and for the accuracy of a regression.
    seconds : float
        Time of the training, without its interruptions.
    stopped : str or None
        Why a callback ended it early.
    """

    folder: str
    backend: str
    device: str
    reason: str
    epochs: int
    steps: int
    train_loss: float
    train_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    seconds: float
    stopped: str | None

    def _repr_html_(self) -> str:
        """For notebooks: the summary, the optimizer, its leaves, and small curves of the metrics."""
        from gpuopt.training import notebook

        return notebook.to_html(self)


class GPUFailure(RuntimeError):  # noqa: N818  (it is the GPU's failure, like BackendUnavailable)
    """The GPU failed in the middle of a training; the message says how, where its checkpoint is and how to go on."""


def train(
    config: Config | None = None,
    *,
    out: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    report: bool | None = None,
) -> Result:
    """Train a network and write a run folder.

    Parameters
    ----------
    config : Config, optional
        Default: the built-in spiral.
    out : path, optional
        The run folder, which must not exist; default: ``runs/<name>-<date>-<time>``.
    callbacks : sequence of Callback
        Called after each row of metrics is written and before a checkpoint is.
    report : bool, optional
        Whether ``report.html`` and its pictures are drawn at the end; default: yes, unless the environment variable
        ``GPUOPT_REPORT`` is 0. `gpuopt.training.report.draw` does it later.

    Raises
    ------
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
    config = config or Config()
    training, content = _prepared(config)
    folder = RunFolder.create(out, training.data.name)
    with folder.locked(), reported(folder, wanted=is_wanted() if report is None else report, drawing=DRAWING) as own:
        return _run(training, content, _checkpoints(folder, training.config), [*callbacks, *own])


def resume(
    path: str | Path,
    *,
    epochs: int | None = None,
    device: str | None = None,
    on_gpu_error: OnGPUError | None = None,
    on_explosion: OnExplosion | None = None,
    lr: float | None = None,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    callbacks: Sequence[Callback] = (),
    report: bool | None = None,
) -> Result:
    """Go on with a run that was interrupted, from its last checkpoint.

    Parameters and metrics become those of a run that was not interrupted, to the bit (on the same device, but for the
    metrics' ``seconds``).

    Parameters
    ----------
    path : str or Path
        The run folder.
    epochs : int, optional
        How many it shall have in all; default: as before. A run that is finished can be extended.
    device, on_gpu_error, on_explosion : str, optional
        Default: as before.
    lr, clip_norm, clip_value : float, optional
        From here on; default: as before. What saves a run that exploded.
    callbacks, report
        As for `train`.

    Raises
    ------
    UsageError
        If the folder or the data cannot be used, or there is nothing left to do.
    ExplodedError, SavingError, BackendUnavailable, GPUFailure, Interrupted
        As for `train`.
    """
    folder = RunFolder(path)
    folder.read_config()  # or there is nothing to lock
    folder = RunFolder(folder.path.absolute())  # whoever goes elsewhere finds it
    changes = {
        "epochs": epochs,
        "device": device,
        "on_gpu_error": on_gpu_error,
        "on_explosion": on_explosion,
        "clip_norm": clip_norm,
        "clip_value": clip_value,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    with folder.locked():
        return _resumed(folder, changes, lr, callbacks, report=is_wanted() if report is None else report)


def _resumed(
    folder: RunFolder, changes: dict[str, Any], lr: float | None, callbacks: Sequence[Callback], *, report: bool
) -> Result:
    before = folder.read_config()
    try:
        config = Config.from_json(before.get("config"))
        _expect_saved(config, folder)
    except UsageError as error:
        raise UsageError(f"{folder.config}: {error}") from None
    if changes.keys() & {"clip_norm", "clip_value"}:
        config = dataclasses.replace(config, clip_norm=None, clip_value=None)
    config = dataclasses.replace(config, **changes)
    training, content = _prepared(config)
    if before.get("data_sha256") != content["data_sha256"]:
        raise UsageError(f"{config.data}: is not the data that the run {folder.path} was started with")
    checkpoints = _checkpoints(folder, training.config)
    checkpoints.restore(training)
    if folder.summary.exists() and training.epoch >= config.epochs:
        done = f"is finished, {training.epoch} epochs of {config.epochs}"
        raise UsageError(f"--resume {shlex.quote(str(folder.path))}: {done}; --epochs with a larger number extends it")
    if lr is not None:
        try:
            checkpoints.choose(training, lr)
        except ValueError as error:
            raise UsageError(f"--lr {lr}: {error}") from None
    with reported(folder, wanted=report, drawing=DRAWING) as own:
        return _run(training, content, checkpoints, [*callbacks, *own])


def _prepared(config: Config) -> tuple[Training, dict[str, Any]]:
    """A training that is ready to run, and what ``config.json`` says of it: all that may fail before writing."""
    try:
        backend = backends.backend(config.device, matmul=True)
    except ValueError as error:
        raise UsageError(f"--device {config.device}: {error}") from None
    try:
        return _on(backend, config)
    except Exception as error:
        words = backends.gpu_failure(error)
        if words is None:
            raise
        failure = f"{device(backend)} failed before the first step ({words})"
        if config.on_gpu_error == "stop":
            raise GPUFailure(f"{failure}; nothing was written. {CURES}: gpuopt train --device cpu") from error
    return _on(dataclasses.replace(backends.backend("cpu"), reason=failure), config)


def _on(backend: Backend, config: Config) -> tuple[Training, dict[str, Any]]:
    """The same on a certain backend."""
    random = np.random.RandomState(config.seed)
    if config.data is None:
        data, checksum = spiral(random), None
    else:
        path = Path(config.data).absolute()  # a run may be resumed from another folder
        data = load(path, config.target, config.task, standardize=config.standardize)
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        config = dataclasses.replace(config, data=str(path))
    config = config.resolved(len(data.train))
    _expect_room([data.features, *config.hidden, data.outputs], config)
    params = initial_params(random, [data.features, *config.hidden, data.outputs], config.init)
    params = {"layers": [{name: backend.asarray(x) for name, x in layer.items()} for layer in params["layers"]]}
    xp = backends.namespace(params["layers"][0]["w"])
    matmul = xp.float64 if config.matmul == "float64" else None
    network = Perceptron(xp, data.classes is not None, matmul)
    nonfinite: Nonfinite = "skip" if config.on_explosion == "skip" else "ignore"
    optimizer = Optimizer(params, config.rule(), clip=config.clip, nonfinite=nonfinite)
    training = Training(config, backend, data, network, optimizer)
    versions = {"gpuopt": sys.modules["gpuopt"].__version__, "numpy": np.__version__}
    about = {"data_sha256": checksum, "steps": training.total, "units": training.units}
    return training, {**versions, **about, "config": config.to_json()}


def _checkpoints(folder: RunFolder, config: Config) -> Checkpoints:
    return Checkpoints(folder, config.checkpoint_every, config.keep, config.on_explosion)


def _parameters(widths: Sequence[int]) -> int:
    return sum((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(widths))


def _expect_saved(config: Config, folder: RunFolder) -> None:
    """Refuse a network that is larger than the one in the checkpoint, before it is made."""
    from gpuopt import checkpoint

    try:
        saved, _ = checkpoint.read(folder.checkpoint, lambda *_: False)
    except (checkpoint.CheckpointError, OSError):
        return  # what is wrong with it is said when it is loaded
    count = sum(math.prod(x.shape) for name, x in saved.items() if name.startswith("params/"))
    if _parameters([1, *config.hidden, 1]) > count:
        hidden = ",".join(map(str, config.hidden))
        raise UsageError(f"--hidden {hidden:.60}: more parameters than the {count:,} in {folder.checkpoint.name}")


def _expect_room(widths: Sequence[int], config: Config) -> None:
    """Refuse a network for which there is no memory, before all of it is taken."""
    count = _parameters(widths)
    need, room = BYTES_A_PARAMETER * count, available()
    if need > room:
        gib = f"about {need >> 30:,} GiB to train, and {room / 2**30:,.1f} GiB are free"
        raise UsageError(f"--hidden {','.join(map(str, config.hidden))}: {count:,} parameters take {gib}")


def _run(
    training: Training, content: Mapping[str, Any], checkpoints: Checkpoints, callbacks: Sequence[Callback]
) -> Result:
    """Train to the end; if the GPU fails on the way, save what there is, and stop or go on on the CPU."""
    folder = checkpoints.folder
    with saving(checkpoints, _to_go_on(folder)):
        folder.write_config({**content, "resumed": checkpoints.noted()})
        folder.summary.unlink(missing_ok=True)
        try:
            return _finished(training, checkpoints, callbacks)
        except Exception as error:
            words = backends.gpu_failure(error)
            if words is None:
                raise
            failure = f"{training.device} failed after {training.optimizer.steps} steps ({words})"
            saved = _rescued(training, checkpoints)
            if training.config.on_gpu_error == "stop" or training.stopped is not None:
                last = "saved" if saved else f"the last checkpoint is the one after {checkpoints.steps} steps"
                go_on = f"{CURES}: gpuopt train --resume {shlex.quote(str(folder.path))} --device cpu"
                raise GPUFailure(f"{failure}; {last}. {go_on}") from error
    backend = dataclasses.replace(backends.backend("cpu"), reason=failure)
    training, content = _on(backend, training.config)
    checkpoints = _checkpoints(folder, training.config)
    checkpoints.restore(training)
    return _run(training, content, checkpoints, callbacks)


def _to_go_on(folder: RunFolder) -> str:
    return f"To go on: gpuopt train --resume {shlex.quote(str(folder.path))}"


def _rescued(training: Training, checkpoints: Checkpoints) -> bool:
    """Whether a GPU that failed still gives what is on it: after some errors it does, after others nothing works.

    An error of a kernel that ran is always of the latter kind. So what can be read is whole.
    """
    try:
        checkpoints.rescue(training)
    except Exception as error:
        if backends.gpu_failure(error) is None:
            raise
        return False
    return True


def _finished(training: Training, checkpoints: Checkpoints, callbacks: Sequence[Callback]) -> Result:
    config, path = training.config, checkpoints.folder.path
    training.folder = path
    go_on = _to_go_on(checkpoints.folder)
    with stopping(training) as signals:
        training.run([checkpoints.metrics, *callbacks, checkpoints, Steering(checkpoints)])
    if signals and training.epoch < config.epochs:
        where = f"{signals[0].name} after {training.optimizer.steps} steps, in epoch {training.epoch + 1} of {config.epochs}"
        raise Interrupted(f"stopped by {where}; saved. {go_on}", signals[0])
    seconds = training.seconds
    final = training.evaluate()
    result = Result(
        folder=str(path),
        backend=training.backend.name,
        device=training.device,
        reason=training.backend.reason,
        epochs=training.epoch,
        steps=training.optimizer.steps,
        train_loss=final["loss"],
        train_accuracy=final["accuracy"],
        test_loss=final.get("test_loss"),
        test_accuracy=final.get("test_accuracy"),
        seconds=round(seconds, 3),
        stopped=training.stopped,
    )
    write_json(checkpoints.folder.summary, dataclasses.asdict(result))
    if checkpoints.explosions.message is not None:
        saved = f"the state after step {result.steps} is saved"
        cure = "with --lr and a lower rate, --clip-norm 1 or --on-explosion rollback"
        raise ExplodedError(f"{checkpoints.explosions.message}; {saved}. {go_on} {cure}")
    return result
