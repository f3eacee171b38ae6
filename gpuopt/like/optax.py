"""The algorithms of Optax (0.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpuopt.like._common import around, checked, pair, several
from gpuopt.rules.adabelief import AdaBelief
from gpuopt.rules.adadelta import AdaDelta
from gpuopt.rules.adafactor import Adafactor
from gpuopt.rules.adagrad import AdaGrad
from gpuopt.rules.adam import Adam
from gpuopt.rules.adamax import AdaMax
from gpuopt.rules.adamw import AdamW
from gpuopt.rules.adan import Adan
from gpuopt.rules.fromage import Fromage
from gpuopt.rules.lamb import LAMB
from gpuopt.rules.lars import LARS
from gpuopt.rules.lion import Lion
from gpuopt.rules.muon import Muon
from gpuopt.rules.novograd import Novograd
from gpuopt.rules.prodigy import Prodigy
from gpuopt.rules.radam import RAdam
from gpuopt.rules.rmsprop import RMSProp
from gpuopt.rules.rprop import Rprop
from gpuopt.rules.schedulefree import ScheduleFreeAdamW, ScheduleFreeSGD
from gpuopt.rules.sgd import SGD
from gpuopt.rules.yogi import Yogi
from gpuopt.suggest import absent
from gpuopt.transforms.decay import L2, WeightDecay

if TYPE_CHECKING:
    from gpuopt.rules.base import Hyper, Rule

__all__ = [
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "adan",
    "amsgrad",
    "fromage",
    "lamb",
    "lars",
    "lion",
    "muon",
    "nadam",
    "nadamw",
    "novograd",
    "prodigy",
    "radam",
    "rmsprop",
    "rprop",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "sgd",
    "yogi",
]


def __dir__() -> list[str]:
    return __all__


if not TYPE_CHECKING:  # with it, type checkers would accept every name
    __getattr__ = absent(__name__, __all__)


def sgd(learning_rate: Hyper, momentum: Hyper | None = None, nesterov: bool = False) -> Rule:
    """``optax.sgd``: the learning rate stays outside of the momentum.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.sgd(learning_rate=0.01) == gpuopt.SGD(lr_in_velocity=False)
    True

    """
    return SGD(learning_rate, 0 if momentum is None else momentum, nesterov, lr_in_velocity=False)


def adam(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    *,
    nesterov: bool = False,
) -> Rule:
    """``optax.adam``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.adam(learning_rate=0.01) == gpuopt.Adam(lr=0.01, eps=1e-08)
    True

    """
    return Adam(learning_rate, b1, b2, eps, eps_root=eps_root, nesterov=nesterov)


def adamw(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 1e-4,
    *,
    nesterov: bool = False,
) -> Rule:
    """``optax.adamw``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.adamw(learning_rate=0.01) == gpuopt.AdamW(lr=0.01, eps=1e-08, weight_decay=0.0001)
    True

    """
    return AdamW(learning_rate, b1, b2, eps, eps_root=eps_root, nesterov=nesterov, weight_decay=weight_decay)


def nadam(learning_rate: Hyper, b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-8, eps_root: Hyper = 0.0) -> Rule:
    """``optax.nadam``: the momentum does not grow, unlike that of `gpuopt.NAdam`.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.nadam(learning_rate=0.01) == gpuopt.Adam(lr=0.01, eps=1e-08, nesterov=True)
    True

    """
    return adam(learning_rate, b1, b2, eps, eps_root, nesterov=True)


def nadamw(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 1e-4,
) -> Rule:
    """``optax.nadamw``.

    Examples
    --------
    >>> import gpuopt
    >>> own = gpuopt.AdamW(lr=0.01, eps=1e-08, nesterov=True, weight_decay=0.0001)
    >>> gpuopt.like.optax.nadamw(learning_rate=0.01) == own
    True

    """
    return adamw(learning_rate, b1, b2, eps, eps_root, weight_decay, nesterov=True)


def amsgrad(learning_rate: Hyper, b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-8, eps_root: Hyper = 0.0) -> Rule:
    """``optax.amsgrad``: the largest of the corrected second moments.

    Examples
    --------
    >>> import gpuopt
    >>> own = gpuopt.Adam(lr=0.01, eps=1e-08, amsgrad=True, largest_corrected=True)
    >>> gpuopt.like.optax.amsgrad(learning_rate=0.01) == own
    True

    """
    return Adam(learning_rate, b1, b2, eps, eps_root=eps_root, amsgrad=True, largest_corrected=True)


def adamax(learning_rate: Hyper, b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-8) -> Rule:
    """``optax.adamax``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.adamax(learning_rate=0.01) == gpuopt.AdaMax(lr=0.01, eps=0, eps_inside=1e-08)
    True

    """
    return AdaMax(learning_rate, b1, b2, eps=0, eps_inside=eps)


def adamaxw(
    learning_rate: Hyper, b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-8, weight_decay: Hyper = 1e-4
) -> Rule:
    """``optax.adamaxw``.

    Examples
    --------
    >>> import gpuopt
    >>> own = gpuopt.chain(gpuopt.WeightDecay(rate=0.0001), gpuopt.AdaMax(lr=0.01, eps=0, eps_inside=1e-08))
    >>> gpuopt.like.optax.adamaxw(learning_rate=0.01) == own
    True

    """
    return around(adamax(learning_rate, b1, b2, eps), (WeightDecay, weight_decay))


def adadelta(learning_rate: Hyper = 1.0, rho: Hyper = 0.9, eps: Hyper = 1e-6, weight_decay: Hyper = 0.0) -> Rule:
    """``optax.adadelta``; its default without a learning rate is a step uphill, here 1.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.adadelta() == gpuopt.AdaDelta()
    True

    """
    return around(AdaDelta(learning_rate, rho, eps), (L2, weight_decay))


def adagrad(learning_rate: Hyper, initial_accumulator_value: float = 0.1, eps: Hyper = 1e-7) -> Rule:
    """``optax.adagrad``: ``eps`` is inside of the root.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.adagrad(learning_rate=0.01) == gpuopt.AdaGrad(eps=0, eps_root=1e-07, initial=0.1)
    True

    """
    return AdaGrad(learning_rate, eps=0, eps_root=eps, initial=initial_accumulator_value)


def rmsprop(
    learning_rate: Hyper,
    decay: Hyper = 0.9,
    eps: Hyper = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Hyper | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> Rule:
    """``optax.rmsprop``: the learning rate is inside of the momentum.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.rmsprop(learning_rate=0.01) == gpuopt.RMSProp(lr=0.01, eps=0, eps_root=1e-08)
    True

    """
    outside, inside = (0.0, eps) if eps_in_sqrt else (eps, 0.0)
    return RMSProp(
        *(learning_rate, decay, outside),
        eps_root=inside,
        momentum=0 if momentum is None else momentum,
        nesterov=nesterov,
        centered=centered,
        initial=initial_scale,
        bias_correction=bias_correction,
    )


def radam(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    threshold: Hyper = 5.0,
    *,
    nesterov: bool = False,
) -> Rule:
    """``optax.radam``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.radam(learning_rate=0.01) == gpuopt.RAdam(lr=0.01, eps=1e-08)
    True

    """
    return RAdam(learning_rate, b1, b2, eps, eps_root=eps_root, nesterov=nesterov, threshold=threshold)


def yogi(learning_rate: Hyper, b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-3) -> Rule:
    """``optax.yogi``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.yogi(learning_rate=0.01) == gpuopt.Yogi()
    True

    """
    return Yogi(learning_rate, b1, b2, eps)


def adabelief(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-16,
    eps_root: Hyper = 1e-16,
    *,
    nesterov: bool = False,
) -> Rule:
    """``optax.adabelief``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.adabelief(learning_rate=0.01) == gpuopt.AdaBelief(lr=0.01)
    True

    """
    return AdaBelief(learning_rate, b1, b2, eps, nesterov=nesterov, eps_belief=eps_root)


def adan(
    learning_rate: Hyper,
    b1: Hyper = 0.98,
    b2: Hyper = 0.92,
    b3: Hyper = 0.99,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
) -> Rule:
    """``optax.adan``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.adan(learning_rate=0.01) == gpuopt.Adan(lr=0.01)
    True

    """
    return around(Adan(learning_rate, b1, b2, b3, eps, eps_root), (WeightDecay, weight_decay))


def lion(learning_rate: Hyper, b1: Hyper = 0.9, b2: Hyper = 0.99, weight_decay: Hyper = 1e-3) -> Rule:
    """``optax.lion``.

    Examples
    --------
    >>> import gpuopt
    >>> own = gpuopt.chain(gpuopt.WeightDecay(rate=0.001), gpuopt.Lion(lr=0.01))
    >>> gpuopt.like.optax.lion(learning_rate=0.01) == own
    True

    """
    return around(Lion(learning_rate, b1, b2), (WeightDecay, weight_decay))


def rprop(
    learning_rate: Hyper,
    eta_minus: Hyper = 0.5,
    eta_plus: Hyper = 1.2,
    min_step_size: Hyper = 1e-6,
    max_step_size: Hyper = 50.0,
) -> Rule:
    """``optax.rprop``, which makes each move one step late.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.rprop(learning_rate=0.01) == gpuopt.Rprop(late=True)
    True

    """
    return Rprop(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size, late=True)


def lamb(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-6,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
) -> Rule:
    """``optax.lamb``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.lamb(learning_rate=0.01) == gpuopt.LAMB(lr=0.01)
    True

    """
    return LAMB(learning_rate, b1, b2, eps, eps_root=eps_root, weight_decay=weight_decay)


def lars(
    learning_rate: Hyper,
    weight_decay: Hyper = 0.0,
    trust_coefficient: Hyper = 0.001,
    eps: Hyper = 0.0,
    momentum: Hyper = 0.9,
    nesterov: bool = False,
) -> Rule:
    """``optax.lars``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.lars(learning_rate=0.01) == gpuopt.LARS(lr=0.01)
    True

    """
    return LARS(learning_rate, momentum, weight_decay, trust_coefficient, eps, nesterov)


def novograd(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.25,
    eps: Hyper = 1e-6,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
) -> Rule:
    """``optax.novograd``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.novograd(learning_rate=0.01) == gpuopt.Novograd(lr=0.01)
    True

    """
    return Novograd(learning_rate, b1, b2, eps, eps_root, weight_decay)


def fromage(learning_rate: Hyper, min_norm: Hyper = 1e-6) -> Rule:
    """``optax.fromage``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.fromage(learning_rate=0.01) == gpuopt.Fromage(smallest=1e-06)
    True

    """
    return Fromage(learning_rate, min_norm)


def prodigy(
    learning_rate: Hyper = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: Hyper = 1e-8,
    estim_lr0: float = 1e-6,
    estim_lr_coef: Hyper = 1.0,
    weight_decay: Hyper = 0.0,
    safeguard_warmup: bool = False,
) -> Rule:
    """``optax.contrib.prodigy``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.prodigy() == gpuopt.Prodigy()
    True

    """
    return Prodigy(
        learning_rate, *pair(betas), eps, weight_decay, estim_lr0, estim_lr_coef, safeguard_warmup=safeguard_warmup
    )


def schedule_free_sgd(
    learning_rate: Hyper = 1.0, b1: Hyper = 0.9, weight_decay: Hyper | None = None, weight_lr_power: Hyper = 2.0
) -> Rule:
    """``optax.contrib.schedule_free_sgd``, without its warm-up; a schedule weighs the average by its own step, there by the next one.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.schedule_free_sgd() == gpuopt.ScheduleFreeSGD()
    True

    """
    return around(ScheduleFreeSGD(learning_rate, b1, weight_lr_power), (L2, weight_decay))


def schedule_free_adamw(
    learning_rate: Hyper = 0.0025,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    weight_lr_power: Hyper = 2.0,
) -> Rule:
    """``optax.contrib.schedule_free_adamw``, without its warm-up; schedules as in `schedule_free_sgd`.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.optax.schedule_free_adamw() == gpuopt.ScheduleFreeAdamW()
    True

    """
    return ScheduleFreeAdamW(learning_rate, b1, weight_lr_power, b2, eps, weight_decay)


def adafactor(
    learning_rate: Hyper | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: Hyper = 0.8,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Hyper | None = 1.0,
    momentum: Hyper | None = None,
    weight_decay_rate: Hyper | None = None,
    eps: Hyper = 1e-30,
    factored: bool = True,
) -> Rule:
    """``optax.adafactor``, which computes its decay in float32; the weight decay leaves out the learning rate.

    Examples
    --------
    >>> import gpuopt
    >>> own = gpuopt.Adafactor(lr=0.01, relative_step=False, decay_alone=True, least=128, longest=True)
    >>> gpuopt.like.optax.adafactor(learning_rate=0.01) == own
    True

    """
    return Adafactor(
        *(1.0 if learning_rate is None else learning_rate, decay_rate, eps, 1e-3),
        *(
            0.0 if clipping_threshold is None else clipping_threshold,
            0.0 if weight_decay_rate is None else weight_decay_rate,
        ),
        momentum=0.0 if momentum is None else momentum,
        relative_step=False,
        relative_size=multiply_by_parameter_scale,
        decay_alone=True,
        least=min_dim_size_to_factor if factored else 2**53,
        longest=True,
    )


def muon(
    learning_rate: Hyper,
    ns_coeffs: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    ns_steps: int = 5,
    beta: Hyper = 0.95,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    *,
    nesterov: bool = True,
    consistent_rms: Hyper | None = None,
) -> Rule:
    """``optax.contrib.muon``, of matrices alone.

    Optax gives every leaf that has not two axes to its ``adamw``, with the same learning rate and ``nesterov``. Here a rule is for the
    leaves of a glob, so that is the second one, as below.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> own = gpuopt.Muon(lr=0.01, eps=1e-8, bias_correction=True, inputs_first=True)
    >>> gpuopt.like.optax.muon(learning_rate=0.01) == own
    True

    What ``optax.contrib.muon(0.01)`` does with matrices and with vectors:

    >>> params = {"kernel": np.ones((3, 2)), "bias": np.zeros(2)}
    >>> others = gpuopt.like.optax.adamw(0.01, weight_decay=0.0, nesterov=True)
    >>> opt = gpuopt.Optimizer(params, {"kernel": gpuopt.like.optax.muon(0.01), "*": others})

    """
    a, b, c = several("ns_coeffs", ns_coeffs, (3.4445, -4.775, 2.0315))
    iteration: dict[str, Any] = {"iterations": ns_steps, "a": a, "b": b, "c": c, "bias_correction": True}
    rms = 0.0 if consistent_rms is None else consistent_rms
    return Muon(learning_rate, beta, weight_decay, eps, nesterov=nesterov, rms=rms, inputs_first=True, **iteration)


if not TYPE_CHECKING:  # what they are called with is checked
    checked(globals(), __all__)
