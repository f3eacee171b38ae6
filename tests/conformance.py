"""The table of optimizers. Each row holds an independent recurrence, written down as in the papers; every test walks it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

import gpuopt

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    F8 = NDArray[np.float64]
    Recurrence = Callable[[F8, F8, dict[str, F8], dict[str, float], int], F8]


@dataclass(frozen=True)
class Row:
    """One formula.

    Attributes
    ----------
    rule, h
        The class, and hyperparameters under which this formula is the one that is computed.
    slots
        Names of the state arrays.
    recurrence
        From parameter, gradient, slots (which it updates), hyperparameters and step (the first is 1) in float64, the
        new parameter.
    torch
        From the module, its parameters and the hyperparameters, torch's optimizer where that is the same formula.
    defaults
        What the rule takes when nothing is said, as its documentation promises; in one row of each rule.
    learns
        Hyperparameters with which a small network learns to tell three clusters apart in thirty epochs.
    moves_at_rest
        Whether parameters or slots change where all gradients are zero from the start, as by a weight decay.
    ulps
        Deviation from the recurrence that a thousand steps may add up to, in units of the last bit; more than the usual
        where a step rounds the parameter more than once.

    """

    id: str
    rule: type[gpuopt.Rule]
    h: dict[str, Any]
    slots: tuple[str, ...]
    recurrence: Recurrence
    torch: Callable[[Any, Any, dict[str, Any]], Any] | None = None
    defaults: dict[str, Any] | None = None
    learns: dict[str, Any] = field(default_factory=lambda: {"lr": 0.05})
    moves_at_rest: bool = False
    ulps: int = 32

    def make(self, **changed: Any) -> gpuopt.Rule:
        """The rule, with some hyperparameters changed."""
        return self.rule(**{**self.h, **changed})

    def run(self, p: F8, gradients: list[F8], **changed: Any) -> tuple[F8, dict[str, F8], dict[str, F8]]:
        """Parameter and slots after a step for each gradient, in float64; and how large the slots were at most."""
        h = {**(self.defaults or {}), **self.h, **changed}
        s = {name: np.zeros_like(p) for name in self.slots}
        largest = dict(s)
        for i, g in enumerate(gradients):
            p = self.recurrence(p, g, s, {name: x(i) if callable(x) else x for name, x in h.items()}, i + 1)
            largest = {name: np.maximum(largest[name], np.abs(s[name])) for name in s}
        return p, s, largest


def sgd(p: F8, g: F8, s: dict[str, F8], h: dict[str, float], t: int) -> F8:
    """Robbins & Monro 1951."""
    return p - h["lr"] * g


def momentum(p: F8, g: F8, s: dict[str, F8], h: dict[str, float], t: int) -> F8:
    """Polyak 1964."""
    s["v"] = h["momentum"] * s["v"] - h["lr"] * g
    return p + s["v"]


def nesterov(p: F8, g: F8, s: dict[str, F8], h: dict[str, float], t: int) -> F8:
    """Sutskever et al. 2013, at the point that is looked ahead to."""
    before = s["v"]
    s["v"] = h["momentum"] * before - h["lr"] * g
    return p - h["momentum"] * before + (1 + h["momentum"]) * s["v"]


def adagrad(p: F8, g: F8, s: dict[str, F8], h: dict[str, float], t: int) -> F8:
    """Duchi, Hazan & Singer 2011."""
    s["cache"] = s["cache"] + g**2
    return p - h["lr"] / (s["cache"] ** 0.5 + h["eps"]) * g


def rmsprop(p: F8, g: F8, s: dict[str, F8], h: dict[str, float], t: int) -> F8:
    """Tieleman & Hinton 2012."""
    s["cache"] = s["cache"] + (1 - h["rho"]) * (g**2 - s["cache"])
    return p - h["lr"] / (s["cache"] ** 0.5 + h["eps"]) * g


def adam(p: F8, g: F8, s: dict[str, F8], h: dict[str, float], t: int) -> F8:
    """Kingma & Ba 2015, algorithm 1."""
    s["m"] = s["m"] + (1 - h["beta1"]) * (g - s["m"])
    s["v"] = s["v"] + (1 - h["beta2"]) * (g**2 - s["v"])
    m_hat, v_hat = s["m"] / (1 - h["beta1"] ** t), s["v"] / (1 - h["beta2"] ** t)
    return p - h["lr"] * m_hat / (v_hat**0.5 + h["eps"])


ROWS = [
    Row(
        "sgd",
        gpuopt.SGD,
        {"lr": 1e-3},
        (),
        sgd,
        lambda torch, p, h: torch.optim.SGD(p, h["lr"]),
        defaults={
            "lr": 0.01,
            "momentum": 0.0,
            "nesterov": False,
            "dampening": 0.0,
            "dampen_first": False,
            "lr_in_velocity": True,
        },
    ),
    Row(
        "momentum",
        gpuopt.SGD,
        {"lr": 1e-3, "momentum": 0.9},
        ("v",),
        momentum,
        lambda torch, p, h: torch.optim.SGD(p, h["lr"], h["momentum"]),
    ),
    Row(
        "nesterov",
        gpuopt.SGD,
        {"lr": 1e-3, "momentum": 0.9, "nesterov": True},
        ("v",),
        nesterov,
        lambda torch, p, h: torch.optim.SGD(p, h["lr"], h["momentum"], nesterov=True),
    ),
    Row(
        "adagrad",
        gpuopt.AdaGrad,
        {"lr": 1e-2, "eps": 1e-7},
        ("cache",),
        adagrad,
        lambda torch, p, h: torch.optim.Adagrad(p, h["lr"], eps=h["eps"]),
        defaults={"lr": 0.01, "eps": 1e-7, "eps_root": 0.0, "initial": 0.0, "components": False},
    ),
    Row(
        "rmsprop",
        gpuopt.RMSProp,
        {"lr": 1e-3, "rho": 0.9, "eps": 1e-7},
        ("cache",),
        rmsprop,
        lambda torch, p, h: torch.optim.RMSprop(p, h["lr"], alpha=h["rho"], eps=h["eps"]),
        defaults={
            "lr": 0.001,
            "rho": 0.9,
            "eps": 1e-7,
            "eps_root": 0.0,
            "momentum": 0.0,
            "nesterov": False,
            "lr_in_velocity": True,
            "centered": False,
            "initial": 0.0,
            "bias_correction": False,
            "components": False,
        },
    ),
    Row(
        "adam",
        gpuopt.Adam,
        {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-7},
        ("m", "v"),
        adam,
        lambda torch, p, h: torch.optim.Adam(p, h["lr"], (h["beta1"], h["beta2"]), h["eps"]),
        defaults={
            "lr": 0.001,
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-7,
            "eps_root": 0.0,
            "eps_hat": 0.0,
            "amsgrad": False,
            "largest_corrected": False,
            "nesterov": False,
            "bias_correction": True,
            "components": False,
        },
    ),
]

DEFAULTS: dict[str, dict[str, Any]] = {row.rule.__name__: row.defaults for row in ROWS if row.defaults is not None}
