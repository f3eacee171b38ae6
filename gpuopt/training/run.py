"""One call that trains: what the command line does, for Python."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt import backends, schedules
from gpuopt.arrays import describe
from gpuopt.errors import Interrupted, UsageError
from gpuopt.limits import available
from gpuopt.optimizer import Nonfinite, Optimizer
from gpuopt.rules import Rule
from gpuopt.rules.slots import is_number, starts
from gpuopt.runs.control.signals import stopping
from gpuopt.runs.record.folder import RunFolder
from gpuopt.runs.recording import begin, conclude
from gpuopt.runs.report.process import is_wanted, reported
from gpuopt.runs.saving.checkpoints import Checkpoints, saving
from gpuopt.runs.secondary import warn
from gpuopt.training.applied import write_model
from gpuopt.training.config import ARRAYS, Config, OnGPUError
from gpuopt.training.data import from_arrays, load, spiral
from gpuopt.training.loop import Training, device
from gpuopt.training.model import Perceptron, initial_params
from gpuopt.training.team import Team, Together

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gpuopt.backends import Backend
    from gpuopt.runs.loop import Callback
    from gpuopt.runs.saving.explosions import OnExplosion
    from gpuopt.training.data import Dataset

__all__ = ["GPUFailure", "Interrupted", "Result", "resume", "train"]

LENGTHS = ("steps",)
"""What a schedule's length is called."""
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
        With the final parameters, over the whole set; with ``--patience`` the best ones. The test set is what
        ``--validation`` set apart, if it did. None without a test set, and for the accuracy of a regression.
    train_rmse, train_r2, test_rmse, test_r2 : float or None
        Of a regression: root mean squared error in the target's own units, and coefficient of determination.
    seconds : float
        Time of the training, without its interruptions.
    stopped : str or None
        Why a callback ended it early.

    Examples
    --------
    >>> import tempfile
    >>> from gpuopt.training import Config, train
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = train(Config(epochs=2, device="cpu"), out=f"{folder}/run", report=False)
    >>> result.backend, result.epochs, result.stopped
    ('numpy', 2, None)
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
    train_rmse: float | None = None
    train_r2: float | None = None
    test_rmse: float | None = None
    test_r2: float | None = None

    def _repr_html_(self) -> str:
        """For notebooks: the summary, the optimizer, its leaves, and small curves of the metrics."""
        from gpuopt.training import notebook

        return notebook.to_html(self)


class GPUFailure(RuntimeError):  # noqa: N818  (it is the GPU's failure, like BackendUnavailable)
    """The GPU failed in the middle of a training; the message says how, where its checkpoint is and how to go on.

    Examples
    --------
    >>> import tempfile
    >>> from gpuopt.training import Config, GPUFailure, train
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     try:
    ...         done = train(Config(epochs=1), out=f"{folder}/run", report=False)
    ...     except GPUFailure as error:
    ...         print(error)
    >>> done.epochs
    1
    """


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
    training, content = _prepared(config, data, team)
    folder = RunFolder.create(out, training.data.name)
    with folder.locked(), reported(folder, wanted=is_wanted() if report is None else report, drawing=DRAWING) as own:
        return _run(
            training, content, _checkpoints(folder, training.config, training.batches), [*callbacks, *own], data, team
        )


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
        given = None if labels is None else str(labels)
        wanted = is_wanted() if report is None else report
        return _resumed(folder, changes, lr, callbacks, data, given, report=wanted, team=team)


def _resumed(
    folder: RunFolder,
    changes: dict[str, Any],
    lr: float | None,
    callbacks: Sequence[Callback],
    data: Sequence[Any] | str | Path | None,
    labels: str | None,
    *,
    report: bool,
    team: Team | None,
) -> Result:
    before = folder.read_config()
    try:
        config = Config.from_json(before.get("config"))
        _expect_saved(config, folder)
    except UsageError as error:
        raise UsageError(f"{folder.config}: {error}") from None
    if changes.keys() & {"clip_norm", "clip_value"}:
        config = dataclasses.replace(config, clip_norm=None, clip_value=None)
    config = _moved(config, folder, data, labels)
    epochs = config.epochs
    config = dataclasses.replace(_extended(config, changes.get("epochs")), **changes)
    arrays = None if isinstance(data, str | Path) else data
    training, content = _prepared(config, arrays, team)
    known = {"labels_sha256": content["labels_sha256"], **before}  # older versions noted none
    for key, given in (("data_sha256", config.data), ("labels_sha256", config.labels)):
        if known.get(key) != content[key]:
            raise UsageError(f"{given}: is not the data that the run {folder.path} was started with")
    checkpoints = _checkpoints(folder, training.config, training.batches)
    checkpoints.restore(training)
    if folder.summary.exists() and training.epoch >= config.epochs:
        done = f"is finished, {training.epoch} epochs of {config.epochs}"
        raise UsageError(f"--resume {shlex.quote(str(folder.path))}: {done}; --epochs with a larger number extends it")
    if lr is not None:
        try:
            checkpoints.choose(training, "lr", lr)
        except ValueError as error:
            raise UsageError(f"--lr {lr}: {error}") from None
    elif config.epochs != epochs:
        _stretch_what_was_tuned(training, checkpoints, config.epochs / epochs)
    with reported(folder, wanted=report, drawing=DRAWING) as own:
        return _run(training, content, checkpoints, [*callbacks, *own], arrays, team)


def _moved(config: Config, folder: RunFolder, data: Sequence[Any] | str | Path | None, labels: str | None) -> Config:
    """The same with its data where they are by now."""
    if data is not None and (config.data == ARRAYS) is isinstance(data, str | Path):
        expected = "the arrays that the run was started with" if config.data == ARRAYS else "the run's data file"
        raise UsageError(f"data: {type(data).__name__}, expected {expected}")
    if config.data == ARRAYS and data is None:
        raise UsageError(
            f"--resume {folder.path}: was trained on arrays; resume(path, data=(x, y)) goes on from Python"
        )
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


def prepared(config: Config, arrays: Sequence[Any] | None, team: Team) -> Together:
    """Return a training on another process than rank 0."""
    training, _ = _prepared(config, arrays, team)
    assert isinstance(training, Together)
    return training


def _prepared(
    config: Config, arrays: Sequence[Any] | None = None, team: Team | None = None
) -> tuple[Training, dict[str, Any]]:
    """Return a training that is ready to run, and the contents of its ``config.json``. Nothing has been written yet."""
    try:
        own = config.device if team is None else team.device(config.device)
        backend = backends.backend(own, matmul=True)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"--device {config.device}: {error}") from None
    try:
        return _on(backend, config, arrays, team)
    except Exception as error:
        words = backends.gpu_failure(error)
        if words is None:
            raise
        failure = f"{device(backend)} failed before the first step ({words})"
        if config.on_gpu_error == "stop":
            raise GPUFailure(f"{failure}; nothing was written. {CURES}: gpuopt train --device cpu") from error
    return _on(dataclasses.replace(backends.backend("cpu"), reason=failure), config, arrays, team)


def _on(
    backend: Backend, config: Config, arrays: Sequence[Any] | None = None, team: Team | None = None
) -> tuple[Training, dict[str, Any]]:
    """The same on a certain backend."""
    given = config, arrays
    random = np.random.RandomState(config.seed)
    config.expect_data()
    how = dataclasses.asdict(config.reading)
    if config.data is None:
        data, checksum = spiral(random), None
        if config.validation is not None:
            y = np.asarray(data.classes)[data.train.y]
            data = from_arrays((data.train.x, y), data.name, **how)
    elif arrays is not None:
        data, checksum = from_arrays(arrays, **how), _digest(arrays)
    else:
        path = Path(config.data).absolute()  # a run may be resumed from another folder
        labels = None if config.labels is None else str(Path(config.labels).absolute())
        data = load(path, **{**how, "labels": labels})
        checksum = _checksum(path)
        config = dataclasses.replace(config, data=str(path), labels=labels)
    if config.patience is not None and data.test is None:
        raise UsageError(
            f"--patience {config.patience}: there is no test set to judge by; --validation 0.2 sets one apart"
        )
    if config.data is not None and config.task == "auto":  # what was decided stays
        config = dataclasses.replace(config, task="regression" if data.classes is None else "classification")
    config = config.resolved(len(data.train))
    needed = _expect_room([data.features, *config.hidden, data.outputs], config, data)
    params = initial_params(random, [data.features, *config.hidden, data.outputs], config.init)
    params = {"layers": [{name: backend.asarray(x) for name, x in layer.items()} for layer in params["layers"]]}
    xp = backends.namespace(params["layers"][0]["w"])
    matmul = xp.float64 if config.matmul == "float64" else None
    weights = None if config.class_weights is None else backend.asarray(_weights(data))
    network = Perceptron(xp, data.classes is not None, matmul, config.activation, config.dropout, weights)
    nonfinite: Nonfinite = "skip" if config.on_explosion == "skip" else "ignore"
    if config.parts is None and team is None:
        optimizer = Optimizer(params, config.rule(), clip=config.clip, nonfinite=nonfinite)
        training = Training(config, backend, data, network, optimizer, needed)
    else:
        optimizer = (team or Team(None)).optimizer(params, config, nonfinite, given, checksum)
        training = Together(config, backend, data, network, optimizer, needed)
    checksums = {
        "data_sha256": checksum,
        "labels_sha256": None if config.labels is None else _checksum(Path(config.labels)),
    }
    return training, {**checksums, "units": training.units, "config": config.to_json()}


def _checkpoints(folder: RunFolder, config: Config, batches: int = 1) -> Checkpoints:
    """What saves a run with so many batches in an epoch."""
    patience = None if config.patience is None else config.patience * batches
    return Checkpoints(folder, config.checkpoint_every, config.keep, config.on_explosion, patience)


def _parameters(widths: Sequence[int]) -> int:
    return sum((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(widths))


def _expect_saved(config: Config, folder: RunFolder) -> None:
    """Refuse a network that is larger than the one in the checkpoint, before it is made."""
    from gpuopt import checkpoint, tensorfile

    try:
        saved, _ = tensorfile.read(folder.checkpoint, lambda *_: False)
    except (checkpoint.CheckpointError, OSError):
        return  # what is wrong with it is said when it is loaded
    count = sum(math.prod(x.shape) for name, x in saved.items() if name.startswith("params/"))
    if _parameters([1, *config.hidden, 1]) > count:
        hidden = ",".join(map(str, config.hidden))
        raise UsageError(f"--hidden {hidden:.60}: more parameters than the {count:,} in {folder.checkpoint.name}")


def _bytes_a_parameter(rule: Rule) -> int:
    """In float32: parameter and state, a copy of them to be saved, gradients of two steps, what was before, how far it moved."""
    state = sum(not is_number(start) for start in starts(rule.slots).values())
    return 4 * (2 * (1 + state) + 4)


def _expect_room(widths: Sequence[int], config: Config, data: Dataset) -> int:
    """Refuse a network and batches for which there is no memory, before all of it is taken; bytes that both take."""
    count = _parameters(widths)
    need, room = _bytes_a_parameter(config.rule()) * count, available()
    if need > room:
        gib = f"about {need / 2**30:,.1f} GiB to train, and {room / 2**30:,.1f} GiB are free"
        raise UsageError(f"--hidden {','.join(map(str, config.hidden))}: {count:,} parameters take {gib}")
    samples = len(data.train) + (0 if data.test is None else len(data.test))
    targets = 4 * samples * data.outputs if data.classes is not None else 0
    batch = len(data.train) if config.batch_size == "full" else min(config.batch_size, len(data.train))
    # Inputs of each layer, slopes and gradients, and the order of the samples.
    units = 4 * batch * (2 * widths[0] + 3 * sum(widths[1:-1]) + 5 * widths[-1]) + 8 * len(data.train)
    if need + targets + units > room:
        parts = f"targets of {data.outputs:,} classes {targets / 2**30:,.1f} GiB, " if targets else ""
        parts += f"a batch of {batch:,} samples {units / 2**30:,.1f} GiB"
        raise UsageError(f"--batch-size {config.batch_size}: {parts}, and {room / 2**30:,.1f} GiB are free")
    return need + units


def _weights(data: Dataset) -> NDArray[np.float32]:
    """What a sample of each class counts, so that all classes count alike and the mean over the samples is 1."""
    if data.classes is None:
        raise UsageError("--class-weights balanced: is for classes, the data have numbers to predict")
    counts = np.bincount(data.train.y, minlength=data.outputs)
    return (len(data.train) / (data.outputs * np.maximum(counts, 1))).astype(np.float32)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(arrays: Sequence[Any]) -> str:
    """A checksum of what was given as arrays."""
    found = hashlib.sha256()
    for given in arrays:
        array = given.to_csv().encode() if hasattr(given, "to_csv") else np.ascontiguousarray(given)
        found.update(f"{getattr(array, 'dtype', '')}{getattr(array, 'shape', '')}".encode())
        found.update(array if isinstance(array, bytes) else array.tobytes())
    return found.hexdigest()


def _extended(config: Config, epochs: int | None) -> Config:
    """The same with schedules that were made for its epochs stretched to another number of them."""
    if epochs is None or not isinstance(config.optimizer, Rule) or config.epochs in {None, epochs}:
        return config
    changed = {}
    for name in config.optimizer.hyperparameters():
        value = getattr(config.optimizer, name)
        if isinstance(value, schedules.Schedule) and (longer := _stretched(value, epochs / config.epochs)) != value:
            changed[name] = longer
            warn("%s: its schedule was made for %s epochs and is stretched to %s", name, config.epochs, epochs)
    return (
        dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **changed)) if changed else config
    )


def _stretch_what_was_tuned(training: Training, checkpoints: Checkpoints, factor: float) -> None:
    """As a change by hand, stretch the schedules that were chosen by hand while it ran."""
    given: Any = training.config.optimizer
    (rule,) = training.rules.values()
    values = {name: getattr(rule, name) for name in rule.hyperparameters()}
    chosen = {name: value for name, value in values.items() if value != getattr(given, name)}
    chosen |= {row["name"]: schedules.from_dict(row["schedule"]) for row in checkpoints.pending if "schedule" in row}
    for name, value in chosen.items():
        if isinstance(value, schedules.Schedule) and (longer := _stretched(value, factor)) != value:
            checkpoints.choose(training, name, longer)
            warn("%s: the schedule that was chosen while it ran is stretched, %s times as long", name, f"{factor:.4g}")


def _stretched(schedule: Any, factor: float) -> Any:
    """A schedule that ends, ending later."""
    plain = schedule.to_dict()

    def longer(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [longer(one) for one in value]
        if not isinstance(value, dict):
            return value
        found = {name: longer(one) for name, one in value.items()}
        return found | {name: round(value[name] * factor) for name in LENGTHS if type(value.get(name)) is int}

    return schedules.from_dict(longer(plain))


def _run(
    training: Training,
    content: Mapping[str, Any],
    checkpoints: Checkpoints,
    callbacks: Sequence[Callback],
    arrays: Sequence[Any] | None,
    team: Team | None,
) -> Result:
    """Train to the end; if the GPU fails on the way, save what there is, and stop or go on on the CPU."""
    folder = checkpoints.folder
    with saving(checkpoints, _to_go_on(folder)):
        hanging = begin(training, checkpoints, content, callbacks)
        write_model(folder, training.data, training.config)
        try:
            return _finished(training, checkpoints, hanging)
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
    training, content = _on(backend, training.config, arrays, team)
    checkpoints = _checkpoints(folder, training.config, training.batches)
    checkpoints.restore(training)
    return _run(training, content, checkpoints, callbacks, arrays, team)


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


def _finished(training: Training, checkpoints: Checkpoints, hanging: Sequence[Callback]) -> Result:
    config, go_on = training.config, _to_go_on(checkpoints.folder)
    with stopping(training) as signals:
        training.run(hanging)
    if signals and training.epoch < config.epochs:
        where = f"{signals[0].name} after {training.optimizer.steps} steps, in epoch {training.epoch + 1} of {config.epochs}"
        raise Interrupted(f"stopped by {where}; saved. {go_on}", signals[0])
    if config.patience is not None and checkpoints.folder.best.exists():
        training.become(checkpoints.folder.best)
    final = training.evaluate()
    result = Result(
        folder=str(checkpoints.folder.path),
        backend=training.backend.name,
        device=training.device,
        reason=training.backend.reason,
        epochs=training.epoch,
        steps=training.optimizer.steps,
        train_loss=final["loss"],
        train_accuracy=final["accuracy"],
        test_loss=final.get("test_loss"),
        test_accuracy=final.get("test_accuracy"),
        seconds=round(training.seconds, 3),
        stopped=training.stopped,
        train_rmse=final.get("rmse"),
        train_r2=final.get("r2"),
        test_rmse=final.get("test_rmse"),
        test_r2=final.get("test_r2"),
    )
    cure = "with --lr and a lower rate, --clip-norm 1 or --on-explosion rollback"
    conclude(training, checkpoints, dataclasses.asdict(result), f"{go_on} {cure}")
    return result
