"""Adam: momentum, and a learning rate for each element; both averages are corrected for their start at zero."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded
from gpuopt.rules.slots import Filled, Real, Slot


@dataclass(frozen=True)
class Adam(Rule):
    r"""Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1).

    ::

        m = beta1*m + (1-beta1)*g            m_hat = m / (1 - beta1**t)
        v = beta2*v + (1-beta2)*|g|**2       v_hat = v / (1 - beta2**t)
        p -= lr * m_hat / (sqrt(v_hat) + eps)

    with ``t = 1`` at the first step of the optimizer.

    Parameters
    ----------
    lr
        Learning rate, at least 0.
    beta1, beta2
        Decay rates of the first and the second moment, in [0, 1).
    eps
        Added to the root, so that the division stays finite; at least 0. The paper and PyTorch use 1e-8.
    eps_root
        Added inside of the root: ``sqrt(v_hat + eps_root)``, as Optax can.
    eps_hat
        Added to the root of ``v`` before its correction, as in Keras and at the end of the paper's section 2:
        ``sqrt(v_hat) + eps_hat / sqrt(1 - beta2**t)``.
    amsgrad
        Divide by the largest ``v`` so far (Reddi, Kale & Kumar 2018, "On the convergence of Adam and beyond").
    largest_corrected
        With ``amsgrad``: the largest ``v_hat`` so far, as in Optax.
    nesterov
        ``m_hat = beta1*m / (1 - beta1**(t+1)) + (1-beta1)*g / (1 - beta1**t)``, as Optax's ``nadam``; see also `NAdam`.
    bias_correction
        If False, ``m_hat = m`` and ``v_hat = v``, as in MLX by default.
    components
        For complex leaves: if True, real and imaginary part are updated as two real numbers, as in PyTorch. If False, ``|g|`` is
        the modulus, as in Optax: the update does not depend on a common phase, and ``v`` takes half the memory.

    Warnings
    --------
    With small gradients the place of ``eps`` matters: with gradients of 1e-5 and the defaults of each, Keras and PyTorch end
    apart by 4 % of the distance moved. ``docs/conventions.md`` compares the libraries.

    ``t`` counts the steps of the optimizer, as in Optax and Keras, also for a leaf that had no gradient before: late in a
    training its first move is ``(1-beta1) / sqrt(1-beta2)`` learning rates long, 3.2 with the defaults. PyTorch counts the steps of
    each parameter; ``docs/own.md`` has a rule for that.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> opt = gpuopt.Optimizer(w, gpuopt.Adam(lr=0.1))
    >>> opt.step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.9, 2.1])

    """

    lr: Hyper = bounded(0.001, 0)
    beta1: Hyper = bounded(0.9, 0, 1)
    beta2: Hyper = bounded(0.999, 0, 1)
    eps: Hyper = bounded(1e-7, 0)
    _: KW_ONLY
    eps_root: Hyper = bounded(0.0, 0)
    eps_hat: Hyper = bounded(0.0, 0)
    amsgrad: bool = False
    largest_corrected: bool = False
    nesterov: bool = False
    bias_correction: bool = True
    components: bool = False

    @property
    def slots(self) -> dict[str, Slot]:
        """Moments ``m`` and ``v``; with ``amsgrad`` the largest second moment."""
        slots: dict[str, Slot] = {"m": Filled(), "v": Real()}
        return {**slots, "largest": Real()} if self.amsgrad else slots

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        m_hat, root, slots = self.moments(xp, g, s, h)
        return p - h.lr * m_hat / root, slots

    def moments(self, xp: Any, g: Array, s: Any, h: Any) -> tuple[Array, Array, dict[str, Array]]:
        """Return the corrected first moment, its divisor ``sqrt(v_hat) + eps``, and the new slots."""
        m = h.beta1 * s.m + (1 - h.beta1) * g
        v = self.second_moment(xp, g, m, s, h)
        slots = {"m": m, "v": v}
        m_hat, v_hat, eps = m, v, h.eps + h.eps_hat
        if self.amsgrad and not self.largest_corrected:
            v_hat = slots["largest"] = xp.maximum(s.largest, v)
        if self.bias_correction:
            m_hat = m * (1 / (1 - h.beta1**h.t))
            v_hat = v_hat * (1 / (1 - h.beta2**h.t))
            eps = h.eps + h.eps_hat / (1 - h.beta2**h.t) ** 0.5
        if self.nesterov:
            m_hat = h.beta1 / (1 - h.beta1 ** (h.t + 1)) * m + (1 - h.beta1) / (1 - h.beta1**h.t) * g
        if self.amsgrad and self.largest_corrected:
            v_hat = slots["largest"] = xp.maximum(s.largest, v_hat)
        if self.eps_root:
            v_hat = v_hat + h.eps_root
        return m_hat, xp.sqrt(v_hat) + eps, slots

    def second_moment(self, xp: Any, g: Array, m: Array, s: Any, h: Any) -> Array:  # noqa: ARG002
        """Return the new ``v``; derived rules override it."""
        return h.beta2 * s.v + (1 - h.beta2) * xp.abs2(g)
