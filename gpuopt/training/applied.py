"""A trained network as a thing one can use: ``model.json``, what it takes to apply the parameters of a run."""

from __future__ import annotations

import itertools
import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import numpy as np

from gpuopt.errors import UsageError
from gpuopt.runs.record.folder import RunFolder, read_json, write_signed
from gpuopt.training.config import OF_A_LOOP, Config
from gpuopt.training.data.preparation import Features
from gpuopt.training.data.sources import as_part
from gpuopt.training.data.targets import Target, class_indices, numbers, values, whole
from gpuopt.training.model import Activation, Perceptron, cross_entropy, initial_params

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from gpuopt.training.data import Dataset
    from gpuopt.training.model import Params

    Raw: TypeAlias = Any

__all__ = ["Model", "load_model", "losses", "scores", "write_model"]

LARGEST = 64 << 20
"""Bytes of a ``model.json``: thirty thousand columns with long names take a few."""
BLOCK = 8192
"""Samples that are predicted at once."""


@dataclass(frozen=True)
class Model:
    """A trained network with all that leads from raw features to predictions. `load_model` makes it.

    Attributes
    ----------
    params : dict
        ``{"layers": [{"w": (n_in, n_out), "b": (n_out,)}, ...]}``, float32: the average where the optimizer keeps one.
    prepared : Features
    target : Target
    activation : str
    matmul : {"float32", "float64"}
    state : str
        The file of the run folder that the parameters are from.
    sources : tuple of str
        The files that it was trained on.

    Examples
    --------
    >>> import tempfile
    >>> from gpuopt.training import Config, load_model, train
    >>> x = np.array([[1.0], [2.0], [3.0], [4.0]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = train(Config(epochs=2), data=(x, ["low", "low", "high", "high"]), out=f"{folder}/run", report=False)
    ...     model = load_model(f"{folder}/run")
    >>> model.features, model.classes, model.layers[0], model.layers[-1]
    (('x0',), array(['high', 'low'], dtype='<U4'), 1, 2)
    """

    params: Params
    prepared: Features
    target: Target
    activation: Activation = "relu"
    matmul: str = "float32"
    state: str = ""
    sources: tuple[str, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features: the columns that are needed, or x0, x1 and so on for arrays."""
        return self.prepared.names

    @property
    def classes(self) -> NDArray[Any] | None:
        """The labels that may be predicted, of their own type (bool, int64 or str); None for regression."""
        return None if self.target.classes is None else self.target.labels

    @property
    def layers(self) -> tuple[int, ...]:
        """Inputs, hidden units layer by layer, outputs."""
        return (self.prepared.width, *(len(layer["b"]) for layer in self.params["layers"]))

    def predict(self, x: Raw) -> NDArray[Any]:
        """Predict for raw features.

        Parameters
        ----------
        x : array of shape (samples, ...) or DataFrame
            As it was trained on; of a data frame the columns are found by name, others are left alone.

        Returns
        -------
        array of shape (samples,), or (samples, outputs) where several numbers are predicted
            Class labels of the type that they had, or float64 numbers in the target's own units.

        Raises
        ------
        UsageError
            If columns are missing, a category was not there in the training, there is another number of features, or
            something is not finite; columns and rows are named.

        Examples
        --------
        >>> import tempfile
        >>> from gpuopt.training import Config, load_model, train
        >>> x = np.array([[1.0], [2.0], [3.0], [4.0]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = train(Config(epochs=300, lr=0.01), data=(x, ["low", "low", "high", "high"]), out=f"{folder}/run")
        ...     model = load_model(f"{folder}/run")
        >>> model.predict([[0.5], [5.0]])
        array(['low', 'high'], dtype='<U4')
        """
        outputs = self.outputs(x)
        if self.target.classes is not None:
            return self.target.labels[outputs.argmax(axis=1)]  # type: ignore[no-any-return]
        numbers = self.target.numbers(outputs)
        return numbers[:, 0] if self.target.outputs == 1 else numbers

    def predict_proba(self, x: Raw) -> NDArray[np.float64]:
        """The probability of each class, float64 of shape (samples, classes), in the order of `classes`.

        Raises
        ------
        UsageError
            As `predict`, and if numbers are predicted.
        """
        if self.target.classes is None:
            reason = "the model predicts numbers, which have no probabilities"
            raise UsageError(f"--proba: {reason}; expected one of classes")
        outputs = self.outputs(x).astype(np.float64)
        with np.errstate(all="ignore"):
            likely = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            return likely / likely.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]

    def evaluate(self, x: Raw, y: Any) -> dict[str, float]:
        """How good the predictions are: ``loss`` and ``accuracy`` of classes; ``rmse``, ``mae`` and ``r2`` of numbers.

        Parameters
        ----------
        x : as for `predict`
        y : array or column of what is to be predicted, in its own units

        Raises
        ------
        UsageError
            As `predict`, and if targets do not fit: another number of them, a label that was not there.
        """
        part = as_part(x, y)  # of what was read, with its targets
        found, name = values(part), part.y_name
        if found.ndim < 1 or len(found) != len(part.x):
            rows = len(np.atleast_1d(found))
            raise UsageError(f"{part.x_name} has {len(part.x)} rows and {name} {rows}: expected as many")
        if not len(found):
            raise UsageError(f"{part.x_name}: has no rows, expected at least one to compare with")
        if self.target.classes is None:
            return scores(numbers(name, found), self.predict(part))
        found = found.reshape(-1)
        if found.dtype.kind == "f" and self.target.labels.dtype.kind in "iu" and (found == np.trunc(found)).all():
            found = whole(name, found)
        index = class_indices(name, found, self.target.labels, "the training set")
        outputs = self.outputs(part)
        right = outputs.argmax(axis=1) == index
        return {"loss": float(losses(outputs, index).mean()), "accuracy": float(right.mean())}

    def outputs(self, x: Raw) -> NDArray[np.float32]:
        """What the network itself gives, float32 of shape (samples, outputs)."""
        part = as_part(x, np.zeros(0))
        raw, name = part.x, part.x_name
        if raw.ndim < 2:
            raise UsageError(f"{name}: shape {raw.shape}, expected (samples, features)")
        out = np.empty((len(raw), self.target.outputs), np.float32)
        for first in range(0, len(raw), BLOCK):
            chosen = slice(first, first + BLOCK)
            with np.errstate(all="ignore"):
                matrix = self.prepared.matrix(raw[chosen], name)
            out[chosen] = self.outputs_of(self.prepared(matrix, name, first))
        return out

    def outputs_of(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the network gives for its inputs, which `prepared` makes of raw features."""
        wide = np.float64 if self.matmul == "float64" else None
        network = Perceptron(np, self.target.classes is not None, wide, self.activation)
        with np.errstate(all="ignore"):
            return np.asarray(network.outputs(self.params, inputs))


def scores(y: NDArray[Any], predicted: NDArray[np.float64]) -> dict[str, float]:
    """Root mean squared error, mean absolute error and coefficient of determination, the last a mean over the outputs.

    >>> scores(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0]))["r2"]
    0.5
    """
    true, guessed = (a.reshape(len(a), -1).astype(np.float64) for a in (y, predicted))
    if true.shape != guessed.shape:
        raise UsageError(f"targets of shape {y.shape}, expected {predicted.shape} as they are predicted")
    with np.errstate(all="ignore"):
        errors = guessed - true
        total = ((true - true.mean(axis=0)) ** 2).sum(axis=0)
        r2 = 1 - (errors**2).sum(axis=0) / total  # NaN or -inf where all targets are the same
        found = {"rmse": np.sqrt((errors**2).mean()), "mae": np.abs(errors).mean(), "r2": r2.mean()}
    return {name: float(value) for name, value in found.items()}


def losses(outputs: NDArray[Any], index: NDArray[np.int64]) -> NDArray[np.float64]:
    """The loss of each sample, by the network's outputs and the index of the class that it is of."""
    with np.errstate(all="ignore"):
        return cross_entropy(np, outputs.astype(np.float64), np.eye(outputs.shape[1])[index])  # type: ignore[no-any-return]


def write_model(folder: RunFolder, data: Dataset, config: Config) -> None:
    """Write ``model.json``."""
    content = {
        "gpuopt": sys.modules["gpuopt"].__version__,
        "layers": [data.features, *config.hidden, data.outputs],
        "activation": config.activation,
        "matmul": config.matmul,
        "state": (folder.checkpoint if config.patience is None else folder.best).name,
        "features": data.prepared.to_json(),
        "target": data.target.to_json(),
    }
    write_signed(folder.path / "model.json", content)


def load_model(path: str | Path) -> Model:
    """Read the model of a run folder, of a run that still goes on or was stopped, too.

    Parameters
    ----------
    path : str or Path
        The run folder.

    Returns
    -------
    Model
        With the parameters of the last checkpoint, or of the best one where the run had ``--patience``; the average where
        the optimizer keeps one.

    Raises
    ------
    UsageError
        If it is no run folder, damaged, of a newer version, or has no checkpoint yet.

    Examples
    --------
    >>> import tempfile
    >>> from gpuopt.training import Config, load_model, train
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = train(Config(epochs=2), out=f"{folder}/run", report=False)
    ...     model = load_model(f"{folder}/run")
    >>> model.predict([[0.5, 0.5]]).shape
    (1,)
    """
    from gpuopt import checkpoint, tensorfile
    from gpuopt.optimizer import Optimizer

    folder = RunFolder(path)
    file = folder.path / "model.json"
    content = _content(folder, file)
    try:
        prepared, target = Features.from_json(content["features"]), Target.from_json(content["target"])
        layers = [int(width) for width in content["layers"]]
        activation, matmul, state = (str(content[name]) for name in ("activation", "matmul", "state"))
        if layers[0] != prepared.width or layers[-1] != target.outputs or min(layers) < 1:
            raise ValueError("layers that do not fit features and target")  # noqa: TRY301
        if activation not in get_args(Activation) or state not in {folder.checkpoint.name, folder.best.name}:
            raise ValueError(f"unknown: {activation}, {state}")  # noqa: TRY301
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{file}: damaged: {error!r:.120}") from None
    config = _config(folder)
    saved = folder.path / state
    if not saved.exists():
        saved = folder.checkpoint  # of a run that was killed before its first best one
    try:
        found = {name: tuple(x.shape) for name, x in tensorfile.outline(saved)[0].items()}
        wanted: dict[str, tuple[int, ...]] = {}
        for i, (n_in, n_out) in enumerate(itertools.pairwise(layers)):
            wanted |= {f"params/layers.{i}.w": (n_in, n_out), f"params/layers.{i}.b": (n_out,)}
        if {name: shape for name, shape in found.items() if name.startswith("params/")} != wanted:
            raise UsageError(f"{saved}: layers of other shapes than {file.name} says, {layers}")
        optimizer = Optimizer(initial_params(np.random.RandomState(0), layers), config.rule())
        checkpoint.load(saved, optimizer)
    except FileNotFoundError:
        raise UsageError(f"{folder.path}: has no checkpoint yet, expected a run that has saved something") from None
    except checkpoint.CheckpointError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"{saved}: {error.strerror}") from None
    made: Any = activation
    sources = tuple(file for file in (config.data, config.labels) if file is not None)
    return Model(optimizer.evaluation(), prepared, target, made, matmul, saved.name, sources)


def _content(folder: RunFolder, file: Path) -> dict[str, Any]:
    try:
        return read_json(file, LARGEST, "the description of a model")
    except FileNotFoundError:
        if not folder.config.exists():
            raise UsageError(f"{folder.path}: is no run folder: it has no {folder.config.name}") from None
        if "config" not in folder.read_config():
            raise UsageError(f"{folder.path}: {OF_A_LOOP}") from None
        cure = f"gpuopt train --resume {shlex.quote(str(folder.path))} --epochs N, with one epoch more, writes it"
        raise UsageError(f"{folder.path}: has no {file.name}: the run is of version 0.1.0; {cure}") from None
    except NotADirectoryError:
        raise UsageError(f"{folder.path}: is a file, expected a run folder") from None
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None


def _config(folder: RunFolder) -> Config:
    try:
        return Config.from_json(folder.read_config().get("config"))
    except UsageError as error:
        message = str(error).removeprefix("--resume ")
        raise UsageError(message if str(folder.path) in message else f"{folder.config}: {message}") from None
