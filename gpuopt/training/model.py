"""The network: a multilayer perceptron with its gradient, activations and dropout, on array API operations only."""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from gpuopt.cached import cached_property

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Array: TypeAlias = Any
    Params: TypeAlias = dict[str, list[dict[str, Array]]]
    """``{"layers": [{"w": (n_in, n_out), "b": (n_out,)}, ...]}``; gradients have the same nesting."""

__all__ = ["ACTIVATIONS", "LEAK", "Activation", "Initial", "Perceptron", "cross_entropy", "initial_params", "kept"]

Initial: TypeAlias = Literal["he", "small"]
Activation: TypeAlias = Literal["relu", "leaky_relu", "elu", "tanh", "sigmoid", "silu"]
LEAK = 0.01
"""The slope of `leaky_relu` below 0."""
MIXING = ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1))
"""Shifts and factors of MurmurHash3's finalizer (https://github.com/aappleby/smhasher), which scatters the bits of a number."""
GOLDEN = 0x9E3779B1


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


def _relu(xp: Any, z: Array) -> tuple[Array, Array]:
    slope = xp.astype(z > 0, z.dtype)
    z *= slope
    return z, slope


def _leaky_relu(xp: Any, z: Array) -> tuple[Array, Array]:
    slope = xp.astype(z > 0, z.dtype) * (1 - LEAK) + LEAK
    return z * slope, slope


def _elu(xp: Any, z: Array) -> tuple[Array, Array]:
    slope = xp.exp(xp.minimum(z, xp.zeros_like(z)))
    return xp.where(z > 0, z, slope - 1), slope


def _tanh(xp: Any, z: Array) -> tuple[Array, Array]:
    a = xp.tanh(z)
    return a, 1 - a * a


def _sigmoid(xp: Any, z: Array) -> tuple[Array, Array]:
    a = _logistic(xp, z)
    return a, a * (1 - a)


def _silu(xp: Any, z: Array) -> tuple[Array, Array]:
    a = _logistic(xp, z)
    return z * a, a * (1 + z * (1 - a))


def _logistic(xp: Any, z: Array) -> Array:
    return (1 + xp.tanh(z * 0.5)) * 0.5  # never overflows


ACTIVATIONS: dict[str, Callable[[Any, Array], tuple[Array, Array]]] = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "silu": _silu,
}
"""By name: a function of the inputs, which it may overwrite, that returns the outputs and the slopes."""


def cross_entropy(xp: Any, outputs: Array, y: Array) -> Array:
    """The loss of each sample, in nats, by the network's outputs and the class that it is of, one-hot.

    >>> cross_entropy(np, np.array([[0.0, 0.0], [0.0, 2000.0]]), np.array([[0, 1], [1, 0]])).round(3)
    array([6.93e-01, 2.00e+03])
    """
    shifted = outputs - xp.max(outputs, axis=1, keepdims=True)
    return xp.log(xp.sum(xp.exp(shifted), axis=1)) - xp.sum(y * shifted, axis=1)


def kept(xp: Any, like: Array, share: float, key: int) -> Array:
    """What units are multiplied by if a share of them is left out: 0, or ``1 / (1 - share)``.

    Which ones depends on the key alone, and is the same on every device.

    >>> import numpy as np
    >>> kept(np, np.ones(6, np.float32), 0.5, 3)
    array([2., 2., 0., 0., 2., 2.], dtype=float32)
    """
    numbers = xp.reshape(xp.arange(math.prod(like.shape), dtype=xp.uint32), like.shape)
    mixed = numbers * GOLDEN ^ (key & 0xFFFFFFFF)
    for shift, factor in MIXING:
        mixed = (mixed ^ mixed >> shift) * factor
    return xp.astype(mixed >= round(share * 2**32), like.dtype) * (1 / (1 - share))


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
        One of `ACTIVATIONS`.
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
            losses = cross_entropy(xp, outputs, y)
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
