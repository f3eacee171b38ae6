"""The algorithms of ``torch.optim`` (2.13), which updates both components of a complex number on their own.

Its state dicts, too: `load_state_dict` reads one, `state_dict` writes one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gpuopt as rules
from gpuopt.like import _exchange
from gpuopt.like._common import around, checked, decayed, flag, pair, several
from gpuopt.suggest import absent
from gpuopt.transforms.decay import L2, WeightDecay
from gpuopt.transforms.gradient import Maximize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpuopt.optimizer import Optimizer
    from gpuopt.rules.base import Hyper, Rule

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "load_state_dict",
    "state_dict",
]


def __dir__() -> list[str]:
    return __all__


if not TYPE_CHECKING:  # with it, type checkers would accept every name
    __getattr__ = absent(__name__, __all__)


Betas = tuple[float, float]


def _around(rule: Rule, weight_decay: Hyper, maximize: bool, *, decoupled: bool = False) -> Rule:
    return around(
        rule,
        (Maximize, flag("maximize", maximize)),
        (WeightDecay if flag("decoupled_weight_decay", decoupled) else L2, weight_decay),
    )


def SGD(
    lr: Hyper = 0.001,
    momentum: Hyper = 0,
    dampening: Hyper = 0,
    weight_decay: Hyper = 0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
) -> Rule:
    """``torch.optim.SGD``: the learning rate stays outside of the momentum.

    Raises
    ------
    ValueError
        If ``nesterov`` is True without momentum, or with dampening, as torch does.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.torch.SGD() == gpuopt.SGD(lr=0.001, lr_in_velocity=False)
    True

    """
    # A schedule is not checked; torch has none.
    if flag("nesterov", nesterov) and (momentum == 0 or not (callable(dampening) or dampening == 0)):
        given = f"momentum={momentum!r:.40}, dampening={dampening!r:.40}"
        raise ValueError(f"SGD: nesterov=True with {given}, expected a momentum above 0 and no dampening")
    rule = rules.SGD(lr, momentum, nesterov, dampening=dampening, lr_in_velocity=False)
    return _around(rule, weight_decay, maximize)


def Adam(
    lr: Hyper = 0.001,
    betas: Betas = (0.9, 0.999),
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
) -> Rule:
    """``torch.optim.Adam``: ``weight_decay`` is a part of the gradient, unless it is decoupled.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.torch.Adam() == gpuopt.Adam(eps=1e-08, components=True)
    True

    """
    return _around(
        rules.Adam(lr, *pair(betas), eps, amsgrad=amsgrad, components=True),
        weight_decay,
        maximize,
        decoupled=decoupled_weight_decay,
    )


def AdamW(
    lr: Hyper = 0.001,
    betas: Betas = (0.9, 0.999),
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.01,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
) -> Rule:
    """``torch.optim.AdamW``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.torch.AdamW() == gpuopt.AdamW(eps=1e-08, components=True)
    True

    """
    return _around(
        rules.AdamW(lr, *pair(betas), eps, amsgrad=amsgrad, components=True, weight_decay=weight_decay), 0, maximize
    )


def NAdam(
    lr: Hyper = 0.002,
    betas: Betas = (0.9, 0.999),
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0,
    momentum_decay: Hyper = 0.004,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
) -> Rule:
    """``torch.optim.NAdam``, which keeps the product of its momenta in float32.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.torch.NAdam() == gpuopt.NAdam(lr=0.002, eps=1e-08, components=True)
    True

    """
    rule = rules.NAdam(lr, *pair(betas), eps, components=True, momentum_decay=momentum_decay)
    return _around(rule, weight_decay, maximize, decoupled=decoupled_weight_decay)


def RAdam(
    lr: Hyper = 0.001,
    betas: Betas = (0.9, 0.999),
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
) -> Rule:
    """``torch.optim.RAdam``: ``eps`` is added before the second moment is corrected.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.torch.RAdam() == gpuopt.RAdam(eps=0, eps_hat=1e-08, components=True)
    True

    """
    rule = rules.RAdam(lr, *pair(betas), eps=0, eps_hat=eps, components=True)
    return _around(rule, weight_decay, maximize, decoupled=decoupled_weight_decay)


def Adamax(
    lr: Hyper = 0.002,
    betas: Betas = (0.9, 0.999),
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0,
    *,
    maximize: bool = False,
) -> Rule:
    """``torch.optim.Adamax``: ``eps`` is inside of the maximum.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.torch.Adamax() == gpuopt.AdaMax(eps=0, eps_inside=1e-08, components=True)
    True

    """
    return _around(rules.AdaMax(lr, *pair(betas), eps=0, eps_inside=eps, components=True), weight_decay, maximize)


def Adadelta(
    lr: Hyper = 1.0, rho: Hyper = 0.9, eps: Hyper = 1e-6, weight_decay: Hyper = 0, *, maximize: bool = False
) -> Rule:
    """``torch.optim.Adadelta``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.torch.Adadelta() == gpuopt.AdaDelta(components=True)
    True

    """
    return _around(rules.AdaDelta(lr, rho, eps, components=True), weight_decay, maximize)


def Adagrad(
    lr: Hyper = 0.01,
    lr_decay: float = 0,
    weight_decay: Hyper = 0,
    initial_accumulator_value: float = 0,
    eps: Hyper = 1e-10,
    *,
    maximize: bool = False,
) -> Rule:
    """``torch.optim.Adagrad``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.torch.Adagrad() == gpuopt.AdaGrad(eps=1e-10, components=True)
    True

    """
    rule = rules.AdaGrad(decayed(lr, lr_decay), eps, components=True, initial=initial_accumulator_value)
    return _around(rule, weight_decay, maximize)


def RMSprop(
    lr: Hyper = 0.01,
    alpha: Hyper = 0.99,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0,
    momentum: Hyper = 0,
    centered: bool = False,
    *,
    maximize: bool = False,
) -> Rule:
    """``torch.optim.RMSprop``: the learning rate stays outside of the momentum.

    Examples
    --------
    >>> import gpuopt
    >>> own = gpuopt.RMSProp(lr=0.01, rho=0.99, eps=1e-08, lr_in_velocity=False, components=True)
    >>> gpuopt.like.torch.RMSprop() == own
    True

    """
    rule = rules.RMSProp(lr, alpha, eps, components=True, momentum=momentum, centered=centered, lr_in_velocity=False)
    return _around(rule, weight_decay, maximize)


def Rprop(
    lr: Hyper = 0.01,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50),
    *,
    maximize: bool = False,
) -> Rule:
    """``torch.optim.Rprop``.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.torch.Rprop() == gpuopt.Rprop()
    True

    """
    return _around(
        rules.Rprop(lr, *several("etas", etas, (0.5, 1.2)), *several("step_sizes", step_sizes, (1e-6, 50))), 0, maximize
    )


def ASGD(
    lr: Hyper = 0.01,
    lambd: Hyper = 1e-4,
    alpha: Hyper = 0.75,
    t0: Hyper = 1e6,
    weight_decay: Hyper = 0,
    *,
    maximize: bool = False,
) -> Rule:
    """``torch.optim.ASGD``, which keeps its rate in float32; here a schedule counts at its own step, there one later.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.torch.ASGD() == gpuopt.ASGD()
    True

    """
    return _around(rules.ASGD(lr, lambd, alpha, t0), weight_decay, maximize)


def Adafactor(
    lr: Hyper = 0.01,
    beta2_decay: float = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3),
    d: Hyper = 1.0,
    weight_decay: Hyper = 0.0,
    *,
    maximize: bool = False,
) -> Rule:
    """``torch.optim.Adafactor``; the first ``eps`` is that of the dtype in which is computed, unless it is given.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.like.torch.Adafactor() == gpuopt.Adafactor(eps=0.0, machine_eps=True)
    True

    """
    first, smallest = several("eps", eps, (None, 1e-3))
    if not callable(d) and d < 1:
        raise ValueError(f"d: {d}, expected a number from 1 on, as in torch; gpuopt.Adafactor has `clip` for others")
    rule = rules.Adafactor(
        *(lr, -beta2_decay, 0.0, smallest, d, weight_decay), floor=first or 0.0, machine_eps=first is None
    )
    return _around(rule, 0, maximize)


def Muon(
    lr: Hyper = 0.001,
    weight_decay: Hyper = 0.1,
    momentum: Hyper = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    eps: Hyper = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
) -> Rule:
    """``torch.optim.Muon``, which iterates in bfloat16; here so where the leaf's library has it, as JAX.

    Raises
    ------
    ValueError
        If ``adjust_lr_fn`` is none of "original" and "match_rms_adamw".

    Examples
    --------
    >>> import gpuopt
    >>> own = gpuopt.Muon(lr=0.001, weight_decay=0.1, eps=0.0, floor=1e-7, bfloat16=True)
    >>> gpuopt.like.torch.Muon() == own
    True

    """
    if adjust_lr_fn not in (None, "original", "match_rms_adamw"):
        raise ValueError(f"adjust_lr_fn: {adjust_lr_fn!r}, expected 'original' or 'match_rms_adamw'")
    a, b, c = several("ns_coefficients", ns_coefficients, (3.4445, -4.775, 2.0315))
    rms = 0.2 if adjust_lr_fn == "match_rms_adamw" else 0.0
    iteration: dict[str, Any] = {"iterations": ns_steps, "a": a, "b": b, "c": c, "floor": eps, "bfloat16": True}
    return rules.Muon(lr, momentum, weight_decay, 0.0, nesterov=nesterov, rms=rms, **iteration)


def load_state_dict(
    opt: Optimizer, state: Mapping[str, Any], names: Sequence[str] | None = None, steps: int | None = None
) -> None:
    """Go on from where an optimizer of torch was; its parameters are to be brought over by other ways.

    Parameters
    ----------
    opt
        With rules of this module for the same algorithms. Hyperparameters stay as they are here.
    state
        What ``state_dict`` of torch's optimizer gave.
    names
        Paths of the leaves in the order in which torch's optimizer has the parameters, such as
        ``[name for name, _ in model.named_parameters()]``; not needed for one leaf, nor where torch's optimizer was given
        names.
    steps
        Steps taken so far. Without it what ``state`` says, which has to be the same for all leaves; plain SGD says nothing.

    Raises
    ------
    ValueError
        If something does not fit; nothing is changed.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> opt = gpuopt.Optimizer(np.ones(2), gpuopt.like.torch.SGD(lr=0.1, momentum=0.9))
    >>> state = {"state": {0: {"momentum_buffer": np.ones(2)}}, "param_groups": [{"params": [0]}]}
    >>> gpuopt.like.torch.load_state_dict(opt, state, steps=5)
    >>> opt.steps
    5
    """
    _exchange.read(opt, state, names, steps)


def state_dict(opt: Optimizer, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return a state for ``load_state_dict`` of torch's optimizer.

    Parameters
    ----------
    opt
        With rules of this module. In place of a schedule stands its number for the next step.
    names
        As for `load_state_dict`.

    Returns
    -------
    dict
        With tensors of the host's memory, and a group for each pattern.

    Raises
    ------
    ImportError
        If there is no torch.
    ValueError
        If torch has no such optimizer.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> opt = gpuopt.Optimizer(np.ones(2), gpuopt.like.torch.Adam(lr=0.1))
    >>> opt.step(np.ones(2))
    >>> try:
    ...     state = gpuopt.like.torch.state_dict(opt)["state"][0]
    ... except ImportError:  # it gives tensors
    ...     state = {"step": 1.0}
    >>> float(state["step"])
    1.0
    """
    makers = {name: globals()[name] for name in __all__ if name[0].isupper()}
    return _exchange.written(opt, names, makers)


if not TYPE_CHECKING:  # what they are called with is checked
    checked(globals(), __all__)
