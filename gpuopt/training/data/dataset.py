"""What a network is trained on: features and targets of samples, and the built-in spiral."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from gpuopt.training.data.preparation import Features
from gpuopt.training.data.targets import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Dataset", "Samples", "Task", "spiral"]

Task: TypeAlias = Literal["auto", "classification", "regression"]


@dataclass(frozen=True)
class Samples:
    """Features and targets of the same samples.

    Attributes
    ----------
    x : float32 array of shape (samples, features), or `Rows`, which makes such arrays of a file that stays on the disk
    y : int64 array of shape (samples,), indices of classes; or float32 array of shape (samples, outputs)

    Examples
    --------
    >>> samples = Samples(np.zeros((3, 2), np.float32), np.array([0, 1, 1]))
    >>> len(samples)
    3
    """

    x: Any
    y: NDArray[Any]

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Dataset:
    """What a network is trained on, and tested with.

    Attributes
    ----------
    name : str
    train : Samples
    test : Samples or None
        What the training does not see: the test set of the data, or what ``--validation`` set apart.
    prepared : Features or None
        How features become the network's inputs; None for the spiral, whose features are.
    target : Target or None
        How its outputs become predictions, likewise.
    notes : tuple of str
        What was taken for what, and the option that says otherwise.

    Examples
    --------
    >>> data = spiral(np.random.RandomState(0), samples=10, classes=2)
    >>> data.name, data.features, data.outputs, data.classes, data.test
    ('spiral', 2, 2, (0, 1), None)
    """

    name: str
    train: Samples
    test: Samples | None
    prepared: Features
    target: Target
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[Any, ...] | None:
        """The labels as they stand in the data, by class index; None for regression."""
        return self.target.classes

    @property
    def features(self) -> int:
        """Numbers that a sample has, the width of the network's input."""
        return int(self.train.x.shape[1])

    @property
    def outputs(self) -> int:
        """Classes, or numbers to predict: the width of the network's output."""
        return self.target.outputs


def spiral(random: np.random.RandomState, samples: int = 100, classes: int = 3) -> Dataset:
    """Points on spiral arms, one arm a class: easy to draw, and no line separates them.

    The same points, for the same generator, as `spiral.create_data` of the package `nnfs` (Kinsley & Kukieła, "Neural
    Networks from Scratch in Python", 2020), rounding included: that book's figures can be compared.

    Parameters
    ----------
    random : RandomState
        `samples` normal numbers are drawn for each class.
    samples : int
        Points on an arm.
    classes : int
        Arms.

    Examples
    --------
    >>> data = spiral(np.random.RandomState(0))
    >>> data.train.x.shape, data.outputs
    ((300, 2), 3)
    """
    radius = np.linspace(0, 1, samples)
    arms = []
    for arm in range(classes):
        noise = random.randn(samples).astype(np.float32) * np.float32(0.2)
        angle = 2.5 * (np.linspace(4 * arm, 4 * (arm + 1), samples) + noise)
        arms.append(np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1))
    x = np.concatenate(arms).astype(np.float32)
    train = Samples(x, np.repeat(np.arange(classes), samples))
    return Dataset("spiral", train, None, Features(width=2), Target(("arm",), tuple(range(classes))))
