"""From a config to what learns: the backend, the data, the network and the optimizer."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt import backends
from gpuopt.errors import UsageError
from gpuopt.optimizer import Nonfinite, Optimizer
from gpuopt.training.data import from_arrays, load, spiral
from gpuopt.training.learner import Learner
from gpuopt.training.model import Perceptron, initial_params
from gpuopt.training.result import GPUFailure, device
from gpuopt.training.room import expect_room
from gpuopt.training.team import Team, Together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gpuopt.backends import Backend
    from gpuopt.training.config import Config
    from gpuopt.training.data import Dataset

__all__ = ["CURES", "dataset", "on", "prepared"]

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
        raise UsageError(
            f"--patience {config.patience}: there is no test set to judge by; --validation 0.2 sets one apart"
        )
    if config.data is not None and config.task == "auto":  # what was decided stays
        config = dataclasses.replace(config, task="regression" if data.classes is None else "classification")
    config = config.resolved(len(data.train))
    widths = [data.features, *config.hidden, data.outputs]
    needed = expect_room(widths, config, data)
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
