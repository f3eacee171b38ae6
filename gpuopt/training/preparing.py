"""From a config to what learns: the backend, the data, the network and the optimizer, for which there must be memory."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt import backends
from gpuopt.errors import GPUFailure, UsageError
from gpuopt.limits import available
from gpuopt.optimizer import Nonfinite, Optimizer
from gpuopt.rules.slots import is_number, starts
from gpuopt.training.data import from_arrays, load, spiral
from gpuopt.training.learner import Learner
from gpuopt.training.model import Perceptron, initial_params
from gpuopt.training.result import device
from gpuopt.training.team import Team, Together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gpuopt.backends import Backend
    from gpuopt.rules import Rule
    from gpuopt.runs.record.folder import RunFolder
    from gpuopt.training.config import Config
    from gpuopt.training.data import Dataset

__all__ = ["CURES", "dataset", "expect_saved", "on", "prepared"]

CURES = "To go on without the GPU"


def prepared(
    config: Config, arrays: Sequence[Any] | None = None, team: Team | None = None
) -> tuple[Learner, dict[str, Any]]:
    """Return what learns, and the content of its run's ``config.json``. Nothing has been written yet.

    Where the GPU fails already, it is on the CPU, if the config says so.
    """
    try:
        own = config.device if team is None else team.device(config.device)
        backend = backends.backend(own, matmul=True)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"--device {config.device}: {error}") from None
    try:
        return on(backend, config, arrays, team)
    except Exception as error:
        words = backends.gpu_failure(error)
        if words is None:
            raise
        failure = f"{device(backend)} failed before the first step ({words})"
        if config.on_gpu_error == "stop":
            raise GPUFailure(f"{failure}; nothing was written. {CURES}: gpuopt train --device cpu") from error
    return on(dataclasses.replace(backends.backend("cpu"), reason=failure), config, arrays, team)


def on(
    backend: Backend, config: Config, arrays: Sequence[Any] | None = None, team: Team | None = None
) -> tuple[Learner, dict[str, Any]]:
    """The same on a certain backend."""
    given = config, arrays
    random = np.random.RandomState(config.seed)
    config.expect_data()
    if config.data is not None and arrays is None:  # a run may be resumed from another folder
        labels = None if config.labels is None else str(Path(config.labels).absolute())
        config = dataclasses.replace(config, data=str(Path(config.data).absolute()), labels=labels)
    data = dataset(config, arrays, random)
    checksum = _checksum(config.data) if arrays is None else _digest(arrays)
    if config.patience is not None and data.test is None:
        cure = "--validation 0.2 sets one apart"
        raise UsageError(f"--patience {config.patience}: there is no test set to judge by; {cure}")
    if config.data is not None and config.task == "auto":  # what was decided stays
        config = dataclasses.replace(config, task="regression" if data.classes is None else "classification")
    config = config.resolved(len(data.train))
    widths = [data.features, *config.hidden, data.outputs]
    needed = _expect_room(widths, config, data)
    params = initial_params(random, widths, config.init)
    params = {"layers": [{name: backend.asarray(x) for name, x in layer.items()} for layer in params["layers"]]}
    xp = backends.namespace(params["layers"][0]["w"])
    matmul = xp.float64 if config.matmul == "float64" else None
    weights = None if config.class_weights is None else backend.asarray(_weights(data))
    network = Perceptron(xp, data.classes is not None, matmul, config.activation, config.dropout, weights)
    nonfinite: Nonfinite = "skip" if config.on_explosion == "skip" else "ignore"
    if config.parts is None and team is None:
        optimizer = Optimizer(params, config.rule(), clip=config.clip, nonfinite=nonfinite)
        learner = Learner(config, backend, data, network, optimizer, needed)
    else:
        optimizer = (team or Team(None)).optimizer(params, config, nonfinite, given, checksum)
        learner = Together(config, backend, data, network, optimizer, needed)
    about = {"data_sha256": checksum, "labels_sha256": _checksum(config.labels), "units": learner.units}
    return learner, about | {"config": config.to_json()}


def dataset(
    config: Config, arrays: Sequence[Any] | None = None, random: np.random.RandomState | None = None
) -> Dataset:
    """The data that a config is about; a spiral is drawn by `random`, by default from the seed on."""
    if arrays is not None:
        return from_arrays(arrays, **config.reading)
    if config.data is not None:
        return load(config.data, **config.reading)
    data = spiral(random or np.random.RandomState(config.seed))
    if config.validation is None:
        return data
    return from_arrays((data.train.x, np.asarray(data.classes)[data.train.y]), data.name, **config.reading)


def _weights(data: Dataset) -> NDArray[np.float32]:
    """What a sample of each class counts, so that all classes count alike and the mean over the samples is 1."""
    if data.classes is None:
        raise UsageError("--class-weights balanced: is for classes, the data have numbers to predict")
    counts = np.bincount(data.train.y, minlength=data.outputs)
    return (len(data.train) / (data.outputs * np.maximum(counts, 1))).astype(np.float32)


def _checksum(path: str | None) -> str | None:
    if path is None:
        return None
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(arrays: Sequence[Any]) -> str:
    """A checksum of what was given as arrays."""
    found = hashlib.sha256()
    for given in arrays:
        array = given.to_csv().encode() if hasattr(given, "to_csv") else np.ascontiguousarray(given)
        found.update(f"{getattr(array, 'dtype', '')}{getattr(array, 'shape', '')}".encode())
        found.update(array if isinstance(array, bytes) else array.tobytes())
    return found.hexdigest()


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


def expect_saved(config: Config, folder: RunFolder) -> None:
    """Refuse a network that is larger than the one in the checkpoint, before it is made."""
    from gpuopt import checkpoint, tensorfile

    try:
        saved, _ = tensorfile.outline(folder.checkpoint)
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


def _parameters(widths: Sequence[int]) -> int:
    return sum((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(widths))
