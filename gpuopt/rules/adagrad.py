"""AdaGrad: a learning rate for each element, divided by the root of all its squared gradients."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded
from gpuopt.rules.slots import like, real


@dataclass(frozen=True)
class AdaGrad(Rule):
    r"""AdaGrad (Duchi, Hazan & Singer 2011, JMLR 12:2121).

    ``cache += |g|**2;  p -= lr*g / (sqrt(cache + eps_root) + eps)``

    Parameters
    ----------
    lr
        Learning rate, at least 0.
    eps
        Keeps the division finite, at least 0; outside of the root, as in PyTorch.
    eps_root
        The same inside of the root, as in Keras and Optax.
    initial
        Start of the cache, at least 0. Keras and Optax use 0.1.
    components
        For complex leaves, see `Adam`.

    Warnings
    --------
    Keras and Optax start the cache at 0.1 and put ``eps`` inside of the root: with small gradients that is another algorithm.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0, 3.0])
    >>> gpuopt.Optimizer(w, gpuopt.AdaGrad(lr=0.1)).step(np.array([2, 4, 3]))
    >>> w.round(6)
    array([0.9, 1.9, 2.9])

    """

    lr: Hyper = bounded(0.01, 0)
    eps: Hyper = bounded(1e-7, 0)
    _: KW_ONLY
    eps_root: Hyper = bounded(0.0, 0)
    initial: Hyper = bounded(0.0, 0)
    components: bool = False

    slots = {"cache": real(like("initial"))}

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        cache = s.cache + xp.abs2(g)
        square = cache + h.eps_root if self.eps_root else cache
        return p - h.lr * g / (xp.sqrt(square) + h.eps), {"cache": cache}
