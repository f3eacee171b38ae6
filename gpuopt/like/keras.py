"""The optimizers of Keras (3), with its weight decay, clipping and moving average.

Arguments that every one of them has: ``weight_decay`` (decoupled), ``clipnorm`` (of each leaf), ``clipvalue``,
``global_clipnorm``, of which one may be given, and ``use_ema`` with ``ema_momentum``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import gpuopt as rules
from gpuopt.like._common import checked, flag, is_wanted
from gpuopt.suggest import absent
from gpuopt.transforms import chain
from gpuopt.transforms.averages import EMA
from gpuopt.transforms.decay import WeightDecay
from gpuopt.transforms.gradient import ClipValue
from gpuopt.transforms.norms import ClipGlobalNorm, ClipNorm

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuopt.rules.base import Hyper, Rule
    from gpuopt.transforms import Transform

__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Lamb", "Lion", "Nadam", "RMSprop"]


def __dir__() -> list[str]:
    return __all__


if not TYPE_CHECKING:  # with it, type checkers would accept every name
    __getattr__ = absent(__name__, __all__)


class Common(TypedDict, total=False):
    """What every optimizer of Keras has."""

    weight_decay: Hyper | None
    clipnorm: Hyper | None
    clipvalue: Hyper | None
    global_clipnorm: Hyper | None
    use_ema: bool
    ema_momentum: Hyper


KINDS: dict[str, Callable[[Any], Transform]] = {
    "clipnorm": ClipNorm,
    "clipvalue": ClipValue,
    "global_clipnorm": ClipGlobalNorm,
    "weight_decay": WeightDecay,
}
"""In the order in which Keras applies them."""


def _around(rule: Rule, common: Common) -> Rule:
    arguments: dict[str, Any] = dict(common)
    given = {name: arguments[name] for name in KINDS if is_wanted(arguments.get(name))}
    clips = sorted(given.keys() & {"clipnorm", "clipvalue", "global_clipnorm"})
    if len(clips) > 1:
        raise ValueError(f"{' and '.join(clips)}: expected one of them")
    before = [KINDS[name](value) for name, value in given.items() if name in KINDS]
    after = [EMA(common.get("ema_momentum", 0.99))] if flag("use_ema", common.get("use_ema", False)) else []
    return chain(*before, rule, *after) if before or after else rule


def SGD(learning_rate: Hyper = 0.01, momentum: Hyper = 0.0, nesterov: bool = False, **common: Unpack[Common]) -> Rule:
    """``keras.optimizers.SGD``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.keras.SGD() == gpuopt.SGD()
    True

    """
    return _around(rules.SGD(learning_rate, momentum, nesterov), common)


def Adam(
    learning_rate: Hyper = 0.001,
    beta_1: Hyper = 0.9,
    beta_2: Hyper = 0.999,
    epsilon: Hyper = 1e-7,
    amsgrad: bool = False,
    **common: Unpack[Common],
) -> Rule:
    """``keras.optimizers.Adam``: ``epsilon`` is added before the second moment is corrected.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.keras.Adam() == gpuopt.Adam(eps=0, eps_hat=1e-07)
    True

    """
    return _around(rules.Adam(learning_rate, beta_1, beta_2, eps=0, eps_hat=epsilon, amsgrad=amsgrad), common)


def AdamW(
    learning_rate: Hyper = 0.001,
    weight_decay: Hyper = 0.004,
    beta_1: Hyper = 0.9,
    beta_2: Hyper = 0.999,
    epsilon: Hyper = 1e-7,
    amsgrad: bool = False,
    **common: Any,
) -> Rule:
    """``keras.optimizers.AdamW``; further arguments as for the others.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.keras.AdamW() == gpuopt.chain(gpuopt.WeightDecay(rate=0.004), gpuopt.Adam(eps=0, eps_hat=1e-07))
    True

    """
    return Adam(learning_rate, beta_1, beta_2, epsilon, amsgrad, weight_decay=weight_decay, **common)


def Nadam(
    learning_rate: Hyper = 0.001,
    beta_1: Hyper = 0.9,
    beta_2: Hyper = 0.999,
    epsilon: Hyper = 1e-7,
    **common: Unpack[Common],
) -> Rule:
    """``keras.optimizers.Nadam``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.keras.Nadam() == gpuopt.NAdam(momentum_decay=1.0)
    True

    """
    return _around(rules.NAdam(learning_rate, beta_1, beta_2, epsilon, momentum_decay=1.0), common)


def Adamax(
    learning_rate: Hyper = 0.001,
    beta_1: Hyper = 0.9,
    beta_2: Hyper = 0.999,
    epsilon: Hyper = 1e-7,
    **common: Unpack[Common],
) -> Rule:
    """``keras.optimizers.Adamax``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.keras.Adamax() == gpuopt.AdaMax(lr=0.001)
    True

    """
    return _around(rules.AdaMax(learning_rate, beta_1, beta_2, epsilon), common)


def Adadelta(learning_rate: Hyper = 0.001, rho: Hyper = 0.95, epsilon: Hyper = 1e-7, **common: Unpack[Common]) -> Rule:
    """``keras.optimizers.Adadelta``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.keras.Adadelta() == gpuopt.AdaDelta(lr=0.001, rho=0.95, eps=1e-07)
    True

    """
    return _around(rules.AdaDelta(learning_rate, rho, epsilon), common)


def Adagrad(
    learning_rate: Hyper = 0.001,
    initial_accumulator_value: float = 0.1,
    epsilon: Hyper = 1e-7,
    **common: Unpack[Common],
) -> Rule:
    """``keras.optimizers.Adagrad``: ``epsilon`` is inside of the root.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.keras.Adagrad() == gpuopt.AdaGrad(lr=0.001, eps=0, eps_root=1e-07, initial=0.1)
    True

    """
    return _around(rules.AdaGrad(learning_rate, 0, eps_root=epsilon, initial=initial_accumulator_value), common)


def RMSprop(
    learning_rate: Hyper = 0.001,
    rho: Hyper = 0.9,
    momentum: Hyper = 0.0,
    epsilon: Hyper = 1e-7,
    centered: bool = False,
    **common: Unpack[Common],
) -> Rule:
    """``keras.optimizers.RMSprop``: ``epsilon`` is inside of the root.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.keras.RMSprop() == gpuopt.RMSProp(eps=0, eps_root=1e-07)
    True

    """
    return _around(rules.RMSProp(learning_rate, rho, 0, eps_root=epsilon, momentum=momentum, centered=centered), common)


def Lion(learning_rate: Hyper = 0.001, beta_1: Hyper = 0.9, beta_2: Hyper = 0.99, **common: Unpack[Common]) -> Rule:
    """``keras.optimizers.Lion``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.keras.Lion() == gpuopt.Lion(lr=0.001)
    True

    """
    return _around(rules.Lion(learning_rate, beta_1, beta_2), common)


def Lamb(
    learning_rate: Hyper = 0.001,
    beta_1: Hyper = 0.9,
    beta_2: Hyper = 0.999,
    epsilon: Hyper = 1e-7,
    **common: Unpack[Common],
) -> Rule:
    """``keras.optimizers.Lamb``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.keras.Lamb() == gpuopt.LAMB(eps=1e-07)
    True

    """
    return _around(rules.LAMB(learning_rate, beta_1, beta_2, epsilon), common)


if not TYPE_CHECKING:  # what they are called with is checked
    checked(globals(), __all__, [*Common.__annotations__])
