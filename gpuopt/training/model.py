"""The network: a multilayer perceptron with its gradient, on array API operations only."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    Array: TypeAlias = Any
    Params: TypeAlias = dict[str, list[dict[str, Array]]]
    """``{"layers": [{"w": (n_in, n_out), "b": (n_out,)}, ...]}``; gradients have the same nesting."""

__all__ = ["Initial", "Perceptron", "initial_params"]

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
    """A multilayer perceptron: ``x @ w + b`` in each layer, ReLU in between, and a loss at the end.

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
    _ones: dict[int, Array] = field(default_factory=dict, repr=False, compare=False)

    def outputs(self, params: Params, x: Array) -> Array:
        """The last layer's outputs for samples `x`, of shape (samples, outputs)."""
        return self._forward(params, x)[0]

    def gradients(self, params: Params, x: Array, y: Array) -> tuple[Array, Params]:
        """The outputs for samples `x`, and the gradient of the mean loss against the targets `y`."""
        outputs, inputs, active = self._forward(params, x)
        dz = self._loss_gradient(outputs, y)
        grads = []
        for layer in reversed(params["layers"]):
            wide_dz = self._wide(dz)
            grads.append({"w": self._product(inputs.pop().T, wide_dz), "b": self._sums(dz, 0)})
            if active:  # nobody needs the gradient of the data
                dz = self._product(wide_dz, self._wide(layer["w"]).T)
                dz *= active.pop()
        return outputs, {"layers": grads[::-1]}

    def _forward(self, params: Params, x: Array) -> tuple[Array, list[Array], list[Array]]:
        """The outputs; and for the way back, the input of each layer and the mask of each hidden layer's active units."""
        *hidden, last = params["layers"]
        inputs, active = [self._wide(x)], []
        for layer in hidden:
            z = self._product(inputs[-1], self._wide(layer["w"]))
            z += layer["b"]
            active.append(self.xp.astype(z > 0, z.dtype))
            z *= active[-1]  # ReLU
            inputs.append(self._wide(z))
        # Transposed twice, for the memory's order: sums and maxima over a few classes run along memory.
        outputs = self._product(self._wide(last["w"]).T, inputs[-1].T).T
        outputs += last["b"]
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
        xp = self.xp
        if not self.classifies:
            return (outputs - y) * (2 / math.prod(outputs.shape))
        gradient = xp.exp(outputs - xp.max(outputs, axis=1, keepdims=True))
        gradient /= self._sums(gradient, 1)[:, None]  # the probabilities
        gradient = gradient - y
        gradient /= outputs.shape[0]
        return gradient

    def _sums(self, a: Array, axis: int) -> Array:
        # A product with ones is several times faster than a sum, but its bits depend on who multiplies. (A sum's bits depend
        # on the memory's order: `_loss_gradient` has that of the targets, so NumPy adds one row after the other.)
        if self.matmul is not None:
            return self.xp.sum(a, axis=axis)
        size = a.shape[axis]
        if size not in self._ones:
            self._ones[size] = self.xp.ones_like(a[:, 0] if axis == 0 else a[0, :])
        return self._ones[size] @ a if axis == 0 else a @ self._ones[size]

    def _wide(self, a: Array) -> Array:
        """A factor, in the dtype in which matrices are multiplied."""
        return a if self.matmul is None else self.xp.astype(a, self.matmul, copy=False)

    def _product(self, a: Array, b: Array) -> Array:
        """The product of two factors, as float32."""
        return a @ b if self.matmul is None else self.xp.astype(a @ b, self.xp.float32)
