"""The network: a multilayer perceptron with its gradient, on array API operations only."""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from gpuopt.training.activations import ACTIVATIONS, Activation, kept

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Array: TypeAlias = Any
    Params: TypeAlias = dict[str, list[dict[str, Array]]]
    """``{"layers": [{"w": (n_in, n_out), "b": (n_out,)}, ...]}``; gradients have the same nesting."""

__all__ = ["Activation", "Initial", "Perceptron", "initial_params"]

Initial: TypeAlias = Literal["he", "small"]


def initial_params(random: np.random.RandomState, widths: Sequence[int], init: Initial = "he") -> Params:
    """Draw the parameters that a training starts from: normal weights, biases 0, float32 on the host.

    Parameters
    ----------
    random : RandomState
        Drawn from layer by layer.
    widths : sequence of int
        Features, hidden units layer by layer, outputs.
    init : {"he", "small"}
        The weights' standard deviation: ``sqrt(2 / n_in)``, which keeps the size of what passes through (He et al.
        2015, arXiv:1502.01852), or 0.01.

    Examples
    --------
    >>> params = initial_params(np.random.RandomState(0), [2, 64, 3])
    >>> [layer["w"].shape for layer in params["layers"]]
    [(2, 64), (64, 3)]
    """
    layers = []
    for n_in, n_out in itertools.pairwise(widths):
        scale = np.float32(0.01 if init == "small" else (2 / n_in) ** 0.5)
        w = scale * random.randn(n_in, n_out).astype(np.float32)
        layers.append({"w": w, "b": np.zeros(n_out, np.float32)})
    return {"layers": layers}


@dataclass(frozen=True)
class Perceptron:
    """A multilayer perceptron: ``x @ w + b`` in each layer, an activation in between, and a loss at the end.

    Attributes
    ----------
    xp
        The array API namespace of its arrays.
    classifies : bool
        True: softmax cross-entropy; targets are one-hot, of shape (samples, classes). False: mean squared error;
        targets have shape (samples, outputs).
    matmul : dtype, optional
        Multiply matrices in this dtype and round the products back. In float64 the products of float32 matrices come
        out (all but) correctly rounded, so they do not depend on the library that multiplies, and neither does a run.
    activation : str
        One of `gpuopt.training.activations.ACTIVATIONS`.
    dropout : float
        The share of the hidden units that `gradients` leaves out.
    weights : array of shape (classes,), optional
        How much a sample of each class counts in the gradient.

    Examples
    --------
    >>> network = Perceptron(np)
    >>> params = initial_params(np.random.RandomState(0), [2, 8, 3])
    >>> x, y = np.ones((5, 2), np.float32), np.eye(5, 3, dtype=np.float32)
    >>> outputs, grads = network.gradients(params, x, y)
    >>> outputs.shape, grads["layers"][0]["w"].shape
    ((5, 3), (2, 8))
    """

    xp: Any
    classifies: bool = True
    matmul: Any = None
    activation: Activation = "relu"
    dropout: float = 0.0
    weights: Any = None
    _ones: dict[int, Array] = field(default_factory=dict, repr=False, compare=False)

    def outputs(self, params: Params, x: Array) -> Array:
        """The last layer's outputs for samples `x`, of shape (samples, outputs)."""
        return self._forward(params, x)[0].T

    def gradients(self, params: Params, x: Array, y: Array, key: int = 0) -> tuple[Array, Params]:
        """The outputs for samples `x`, and the gradient of the mean loss against the targets `y`.

        The key decides which units `dropout` leaves out.
        """
        product = self._product
        outputs, inputs, active = self._forward(params, x, self.dropout, key)
        dz = self._loss_gradient(outputs, y)
        grads = []
        for layer in reversed(params["layers"]):
            grads.append({"w": product(inputs.pop().T, dz), "b": self._sums(dz)})
            if active:  # nobody needs the gradient of the data
                dz = product(dz, layer["w"].T)
                dz *= active.pop()
        return outputs.T, {"layers": grads[::-1]}

    def _forward(
        self, params: Params, x: Array, dropout: float = 0.0, key: int = 0
    ) -> tuple[Array, list[Array], list[Array]]:
        """The outputs, a column a sample, so that what is done to a sample's few classes is done to long rows.

        And for the way back, the input of each layer and the slopes of each hidden layer's units.
        """
        product, activation = self._product, ACTIVATIONS[self.activation]
        *hidden, last = params["layers"]
        inputs, active = [x], []
        for number, layer in enumerate(hidden):
            z = product(inputs[-1], layer["w"])
            z += layer["b"]
            a, slope = activation(self.xp, z)
            if dropout:
                units = kept(self.xp, a, dropout, key + number)
                a, slope = a * units, slope * units
            active.append(slope)
            inputs.append(a)
        outputs = product(last["w"].T, inputs[-1].T)
        outputs += last["b"][:, None]
        return outputs, inputs, active

    def score(self, outputs: Array, y: Array) -> Array:
        """How good the outputs are: the sum of the samples' losses, and how many get the class of their target.

        Returns
        -------
        float64 array of shape (2,)
            On the device: sums over batches need no copy to the host. Nothing is counted for regression.
        """
        xp = self.xp
        if self.classifies:
            shifted = outputs - xp.max(outputs, axis=1, keepdims=True)
            losses = xp.log(xp.sum(xp.exp(shifted), axis=1)) - xp.sum(y * shifted, axis=1)
            correct = xp.argmax(outputs, axis=1) == xp.argmax(y, axis=1)
        else:
            losses = xp.mean((outputs - y) ** 2, axis=1)
            correct = xp.zeros_like(losses, dtype=xp.bool)
        return xp.stack([xp.sum(losses, dtype=xp.float64), xp.sum(xp.astype(correct, xp.float64))])

    def _loss_gradient(self, outputs: Array, y: Array) -> Array:
        """For outputs in columns, the gradient in rows, as the targets are."""
        if not self.classifies:
            return (outputs.T - y) * (2 / math.prod(y.shape))
        gradient = self.xp.exp(outputs - self.xp.max(outputs, axis=0))
        gradient /= self._sums(gradient)  # the probabilities
        gradient = gradient.T - y
        if self.weights is not None:
            gradient *= (y @ self.weights)[:, None]
        gradient /= y.shape[0]
        return gradient

    def _sums(self, a: Array) -> Array:
        """Sums over the first axis."""
        # A product with ones is several times faster than a sum, but its bits depend on who multiplies. (A sum's bits depend
        # on the memory's order: `_loss_gradient` has that of the targets, so NumPy adds one row after the other.)
        if self.matmul is not None:
            return self.xp.sum(a, axis=0)
        size = a.shape[0]
        if size not in self._ones:
            self._ones[size] = self.xp.ones_like(a[:, 0])
        return self._ones[size] @ a

    @cached_property
    def _product(self) -> Callable[[Array, Array], Array]:
        """Multiplies two matrices."""
        if self.matmul is None:
            return operator.matmul
        astype, wide = self.xp.astype, self.matmul
        return lambda a, b: astype(astype(a, wide, copy=False) @ astype(b, wide, copy=False), a.dtype)
