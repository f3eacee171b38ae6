"""The optimizers of MLX (0.32). Unless told otherwise, its Adam corrects no moments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gpuopt as rules
from gpuopt.like._common import around, checked, pair
from gpuopt.suggest import absent
from gpuopt.transforms.decay import L2, WeightDecay

if TYPE_CHECKING:
    from gpuopt.rules.base import Hyper, Rule

__all__ = ["SGD", "AdaDelta", "Adagrad", "Adam", "AdamW", "Adamax", "Lion", "RMSprop"]


def __dir__() -> list[str]:
    return __all__


if not TYPE_CHECKING:  # with it, type checkers would accept every name
    __getattr__ = absent(__name__, __all__)


Betas = tuple[float, float]


def SGD(
    learning_rate: Hyper,
    momentum: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    dampening: Hyper = 0.0,
    nesterov: bool = False,
) -> Rule:
    """``mlx.optimizers.SGD``: the first step is dampened, too.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.mlx.SGD(learning_rate=0.01) == gpuopt.SGD(dampen_first=True, lr_in_velocity=False)
    True

    """
    rule = rules.SGD(learning_rate, momentum, nesterov, dampening=dampening, dampen_first=True, lr_in_velocity=False)
    return around(rule, (L2, weight_decay))


def RMSprop(learning_rate: Hyper, alpha: Hyper = 0.99, eps: Hyper = 1e-8) -> Rule:
    """``mlx.optimizers.RMSprop``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.mlx.RMSprop(learning_rate=0.01) == gpuopt.RMSProp(lr=0.01, rho=0.99, eps=1e-08)
    True

    """
    return rules.RMSProp(learning_rate, alpha, eps)


def Adagrad(learning_rate: Hyper, eps: Hyper = 1e-8) -> Rule:
    """``mlx.optimizers.Adagrad``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.mlx.Adagrad(learning_rate=0.01) == gpuopt.AdaGrad(eps=1e-08)
    True

    """
    return rules.AdaGrad(learning_rate, eps)


def AdaDelta(learning_rate: Hyper, rho: Hyper = 0.9, eps: Hyper = 1e-6) -> Rule:
    """``mlx.optimizers.AdaDelta``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.mlx.AdaDelta(learning_rate=0.01) == gpuopt.AdaDelta(lr=0.01)
    True

    """
    return rules.AdaDelta(learning_rate, rho, eps)


def Adam(learning_rate: Hyper, betas: Betas = (0.9, 0.999), eps: Hyper = 1e-8, bias_correction: bool = False) -> Rule:
    """``mlx.optimizers.Adam``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.mlx.Adam(learning_rate=0.01) == gpuopt.Adam(lr=0.01, eps=1e-08, bias_correction=False)
    True

    """
    return rules.Adam(learning_rate, *pair(betas), eps, bias_correction=bias_correction)


def AdamW(
    learning_rate: Hyper,
    betas: Betas = (0.9, 0.999),
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.01,
    bias_correction: bool = False,
) -> Rule:
    """``mlx.optimizers.AdamW``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.mlx.AdamW(learning_rate=0.01) == gpuopt.AdamW(lr=0.01, eps=1e-08, bias_correction=False)
    True

    """
    return rules.AdamW(learning_rate, *pair(betas), eps, bias_correction=bias_correction, weight_decay=weight_decay)


def Adamax(learning_rate: Hyper, betas: Betas = (0.9, 0.999), eps: Hyper = 1e-8) -> Rule:
    """``mlx.optimizers.Adamax``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.mlx.Adamax(learning_rate=0.01) == gpuopt.AdaMax(lr=0.01, eps=1e-08, bias_correction=False)
    True

    """
    return rules.AdaMax(learning_rate, *pair(betas), eps, bias_correction=False)


def Lion(learning_rate: Hyper, betas: Betas = (0.9, 0.99), weight_decay: Hyper = 0.0) -> Rule:
    """``mlx.optimizers.Lion``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.mlx.Lion(learning_rate=0.01) == gpuopt.Lion(lr=0.01)
    True

    """
    return around(rules.Lion(learning_rate, *pair(betas)), (WeightDecay, weight_decay))


if not TYPE_CHECKING:  # what they are called with is checked
    checked(globals(), __all__)
