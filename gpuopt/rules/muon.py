"""Muon: the momentum of a matrix is made orthogonal."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded
from gpuopt.rules.hyper import Count


@dataclass(frozen=True)
class Muon(Rule):
    r"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), for matrices.

    ::

        m = momentum*m + (1-momentum)*g
        u = momentum*m + (1-momentum)*g                          with nesterov, else m
        p = (1 - lr*weight_decay)*p - lr * scale * orthogonal(u)

    ``orthogonal(u)`` has the singular vectors of ``u`` and singular values near 1. It starts from ``x = u / (norm(u) + eps)`` and
    repeats ``x = a*x + (b*A + c*A@A) @ x`` with ``A = x@x.T`` (Newton-Schulz iteration) ``iterations`` times. A leaf with more than
    two axes is a matrix with one row for each index of its first axis, as the authors do with convolution kernels.
    ``scale`` is ``sqrt(max(1, rows/columns))``.

    Parameters
    ----------
    lr
        Learning rate, at least 0.
    momentum
        Decay rate of the momentum, in [0, 1).
    weight_decay
        Decay rate, at least 0; decoupled.
    eps
        Added to ``norm(u)``, at least 0.
    nesterov
        Look ahead by one step of the momentum.
    bias_correction
        Correct the momentum for its start at zero, as Optax does.
    iterations
        Number of Newton-Schulz iterations, at least 1.
    a, b, c
        Coefficients of the iteration.
    floor
        Least value of the norm, at least 0; the ``eps`` of PyTorch.
    rms
        If not 0, ``scale`` is ``rms * sqrt(max(rows, columns))`` (Liu et al. 2025, arXiv:2502.16982), and elements move by about
        ``lr*rms``: with 0.2, the learning rates of `AdamW` fit.
    inputs_first
        Whether the first axis counts inputs, as in ``x @ w``; ``scale`` is then ``sqrt(max(1, columns/rows))``.
    bfloat16
        Iterate in bfloat16, if the library has it.

    Warnings
    --------
    Vectors and numbers, such as biases, need another rule: ``{"*.b": Adam(), "*": Muon()}``. The authors leave embeddings and the
    last layer to Adam, too.

    ``rows`` and ``columns`` in ``scale`` are those of the matrix that is made orthogonal. For a convolution kernel the authors'
    program (https://github.com/KellerJordan/Muon) takes the kernel's last two axes, which for shape ``(64, 3, 3, 3)`` makes moves
    ``sqrt(64/27)`` times smaller.

    Matrix products are those of the leaf's library: the bits are the same in every engine, but differ between libraries and
    devices.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> params = {"dense": {"w": np.zeros((2, 2)), "b": np.zeros(2)}}
    >>> opt = gpuopt.Optimizer(params, {"*.b": gpuopt.Adam(lr=0.01), "*": gpuopt.Muon(lr=0.1)})
    >>> opt.step({"dense": {"w": np.array([[3.0, 0.0], [0.0, 0.001]]), "b": np.ones(2)}})
    >>> params["dense"]["w"].round(2) + 0.0, params["dense"]["b"].round(4)
    (array([[-0.07,  0.  ],
           [ 0.  , -0.02]]), array([-0.01, -0.01]))

    """

    lr: Hyper = bounded(0.02, 0)
    momentum: Hyper = bounded(0.95, 0, 1)
    weight_decay: Hyper = bounded(0.0, 0)
    eps: Hyper = bounded(1e-7, 0)
    _: KW_ONLY
    nesterov: bool = True
    bias_correction: bool = False
    iterations: int = field(default=5, metadata={"kind": Count()})
    a: Hyper = bounded(3.4445)
    b: Hyper = bounded(-4.7750)
    c: Hyper = bounded(2.0315)
    floor: Hyper = bounded(0.0, 0)
    rms: Hyper = bounded(0.0, 0)
    inputs_first: bool = False
    bfloat16: bool = False

    slots = ("m",)
    real_only = "split them in real matrices, or take AdamW"

    def unfit(self, shape: tuple[int, ...]) -> str:
        """See :meth:`Rule.unfit`."""
        if len(shape) >= 2:
            return ""
        return f"{self.name} is for matrices; give others a rule by their path, such as {{'*.b': Adam(), '*': Muon()}}"

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        m = h.momentum * s.m + (1 - h.momentum) * g
        now, ahead = 1.0, 1.0
        if self.bias_correction:
            now, ahead = 1 / (1 - h.momentum**h.t), 1 / (1 - h.momentum ** (h.t + 1))
        u = h.momentum * ahead * m + (1 - h.momentum) * now * g if self.nesterov else now * m
        move = xp.whole(partial(self.move, h=h), u)
        return p * (1 - h.lr * h.weight_decay) - h.lr * move, {"m": m}

    def move(self, xp: Any, u: Array, h: Any) -> Array:
        """Return ``scale * orthogonal(u)`` for a whole leaf."""
        rows, columns = u.shape[0], math.prod(u.shape[1:])
        if not rows * columns:
            return u
        x = xp.reshape(u, (rows, columns))
        if self.bfloat16 and hasattr(xp, "bfloat16"):
            x = xp.astype(x, xp.bfloat16)
        x = self.orthogonal(xp, x.T, h).T if rows > columns else self.orthogonal(xp, x, h)
        tall = columns / rows if self.inputs_first else rows / columns
        scale = h.rms * max(rows, columns) ** 0.5 if self.rms else max(1.0, tall) ** 0.5
        return scale * xp.reshape(xp.astype(x, u.dtype), u.shape)

    def orthogonal(self, xp: Any, x: Array, h: Any) -> Array:
        """Return the matrix with all singular values near 1; it has no more rows than columns."""
        largest = xp.max(xp.abs(x))  # so that no square overflows or underflows
        x = x / xp.where(largest > 0, largest, xp.ones_like(largest))
        norm = xp.sqrt(xp.sum(x * x))
        if self.floor:
            norm = xp.maximum(norm, h.floor / largest)
        x = x / (norm + h.eps / largest)
        for _ in range(self.iterations):
            gram = x @ x.T
            # `gram` is symmetric. Written with its transpose, NumPy computes half of the product only (BLAS syrk).
            x = h.a * x + (h.b * gram + h.c * (gram @ gram.T)) @ x
        return x
