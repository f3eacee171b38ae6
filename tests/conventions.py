"""How PyTorch, Optax, Keras and MLX differ, and by how much: the table in docs/conventions.md, which `derived.py` writes.

That the rules of `gpuopt.like` are these libraries' is what test_like.py shows; so the figures need none of the libraries.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

import gpuopt
from gpuopt import like, schedules

LIBRARIES = ("torch", "optax", "keras", "mlx")
STEPS, SIZE, SCALE = 200, 64, 1e-3
FALLING = schedules.step(0.1, factor=0.1, every=100)


@dataclass(frozen=True)
class Case:
    """One algorithm.

    Attributes
    ----------
    words
        What each library does; those that do the same share their words.
    same
        A rule of each library, with the same numbers.
    own
        The same with the defaults of each library, but for the learning rate; None where they are the same.

    """

    name: str
    words: dict[str, str]
    same: dict[str, gpuopt.Rule]
    own: dict[str, gpuopt.Rule] | None = None


def case(name: str, words: dict[str, str], same: dict[str, Any], own: dict[str, Any] | None = None) -> Case:
    """A case, from calls as text would have them: ``{"torch": ("Adam", {...})}``."""

    def made(calls: dict[str, Any]) -> dict[str, gpuopt.Rule]:
        return {lib: getattr(getattr(like, lib), called)(**h) for lib, (called, h) in calls.items()}

    return Case(name, words, made(same), made(own) if own else None)


LR = {"learning_rate": 1e-3}
CASES = [
    case(
        "SGD, momentum 0.9, the learning rate falls to a tenth",
        {
            "torch": "learning rate outside of the velocity: `v = mu*v + g; p -= lr*v`",
            "optax": "outside",
            "keras": "inside: `v = mu*v - lr*g; p += v`",
            "mlx": "outside",
        },
        {
            "torch": ("SGD", {"lr": FALLING, "momentum": 0.9}),
            "optax": ("sgd", {"learning_rate": FALLING, "momentum": 0.9}),
            "keras": ("SGD", {"learning_rate": FALLING, "momentum": 0.9}),
            "mlx": ("SGD", {"learning_rate": FALLING, "momentum": 0.9}),
        },
    ),
    case(
        "SGD, momentum 0.9, dampening 0.5",
        {"torch": "the first gradient is taken whole", "mlx": "the first one is dampened, too"},
        {
            "torch": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
            "mlx": ("SGD", {"learning_rate": 0.1, "momentum": 0.9, "dampening": 0.5}),
        },
    ),
    case(
        "Adam",
        {
            "torch": "`eps` 1e-8 beside the root of the corrected `v`",
            "optax": "the same; `eps_root` inside of the root is 0",
            "keras": "`eps` 1e-7 beside the root of `v`, before it is corrected",
            "mlx": "moments are not corrected unless told so",
        },
        {
            "torch": ("Adam", {"lr": 1e-3}),
            "optax": ("adam", LR),
            "keras": ("Adam", {**LR, "epsilon": 1e-8}),
            "mlx": ("Adam", LR),
        },
        {"torch": ("Adam", {"lr": 1e-3}), "keras": ("Adam", LR)},
    ),
    case(
        "Adam with `weight_decay` 0.1",
        {"torch": "a part of the gradient (L2)", "keras": "decoupled, as in AdamW"},
        {
            "torch": ("Adam", {"lr": 1e-3, "weight_decay": 0.1}),
            "keras": ("Adam", {**LR, "epsilon": 1e-8, "weight_decay": 0.1}),
        },
    ),
    case(
        "AdamW",
        {"torch": "decay 0.01", "optax": "1e-4", "keras": "0.004", "mlx": "0.01; no correction"},
        {
            "torch": ("AdamW", {"lr": 1e-3}),
            "optax": ("adamw", {**LR, "weight_decay": 0.01}),
            "keras": ("AdamW", {**LR, "weight_decay": 0.01, "epsilon": 1e-8}),
            "mlx": ("AdamW", LR),
        },
        {"torch": ("AdamW", {"lr": 1e-3}), "optax": ("adamw", LR), "keras": ("AdamW", LR), "mlx": ("AdamW", LR)},
    ),
    case(
        "AMSGrad",
        {
            "torch": "the largest `v`, then corrected",
            "optax": "the largest corrected `v`",
            "keras": "the largest `v`; `eps` as in its Adam",
        },
        {
            "torch": ("Adam", {"lr": 1e-3, "amsgrad": True}),
            "optax": ("amsgrad", LR),
            "keras": ("Adam", {**LR, "amsgrad": True, "epsilon": 1e-8}),
        },
        {
            "torch": ("Adam", {"lr": 1e-3, "amsgrad": True}),
            "optax": ("amsgrad", LR),
            "keras": ("Adam", {**LR, "amsgrad": True}),
        },
    ),
    case(
        "NAdam",
        {
            "torch": "the momentum grows from 0.45 to 0.9 in some 20,000 steps",
            "optax": "the momentum is 0.9 all along",
            "keras": "it grows in some 80 steps",
        },
        {"torch": ("NAdam", {"lr": 1e-3}), "optax": ("nadam", LR), "keras": ("Nadam", {**LR, "epsilon": 1e-8})},
        {"torch": ("NAdam", {"lr": 1e-3}), "optax": ("nadam", LR), "keras": ("Nadam", LR)},
    ),
    case(
        "RAdam",
        {"torch": "`eps` beside the root of `v`, before it is corrected", "optax": "after"},
        {"torch": ("RAdam", {"lr": 1e-3}), "optax": ("radam", LR)},
    ),
    case(
        "AdaMax",
        {
            "torch": "`eps` 1e-8 inside of the maximum",
            "optax": "the same",
            "keras": "`eps` 1e-7 outside",
            "mlx": "`eps` outside; no correction",
        },
        {
            "torch": ("Adamax", {"lr": 1e-3}),
            "optax": ("adamax", LR),
            "keras": ("Adamax", {**LR, "epsilon": 1e-8}),
            "mlx": ("Adamax", LR),
        },
        {"torch": ("Adamax", {"lr": 1e-3}), "keras": ("Adamax", LR)},
    ),
    case(
        "AdaDelta",
        {
            "torch": "`lr` 1, `rho` 0.9, `eps` 1e-6",
            "optax": "the same, but uphill unless `learning_rate` is given",
            "keras": "`rho` 0.95, `eps` 1e-7",
            "mlx": "as PyTorch",
        },
        {
            "torch": ("Adadelta", {}),
            "optax": ("adadelta", {}),
            "keras": ("Adadelta", {"learning_rate": 1.0, "rho": 0.9, "epsilon": 1e-6}),
            "mlx": ("AdaDelta", {"learning_rate": 1.0}),
        },
        {"torch": ("Adadelta", {}), "keras": ("Adadelta", {"learning_rate": 1.0})},
    ),
    case(
        "AdaGrad",
        {
            "torch": "starts at 0, `eps` 1e-10 outside of the root",
            "optax": "starts at 0.1, `eps` 1e-7 inside of the root",
            "keras": "starts at 0.1, `eps` 1e-7 inside",
            "mlx": "starts at 0, `eps` 1e-8 outside",
        },
        {
            "torch": ("Adagrad", {"eps": 1e-8}),
            "optax": ("adagrad", {"learning_rate": 0.01, "eps": 1e-8, "initial_accumulator_value": 0.0}),
            "keras": ("Adagrad", {"learning_rate": 0.01, "epsilon": 1e-8, "initial_accumulator_value": 0.0}),
            "mlx": ("Adagrad", {"learning_rate": 0.01}),
        },
        {
            "torch": ("Adagrad", {}),
            "optax": ("adagrad", {"learning_rate": 0.01}),
            "keras": ("Adagrad", {"learning_rate": 0.01}),
            "mlx": ("Adagrad", {"learning_rate": 0.01}),
        },
    ),
    case(
        "RMSProp",
        {
            "torch": "`alpha` 0.99, `eps` 1e-8 outside of the root",
            "optax": "`decay` 0.9, `eps` 1e-8 inside of the root",
            "keras": "`rho` 0.9, `eps` 1e-7 inside",
            "mlx": "`alpha` 0.99, `eps` 1e-8 outside",
        },
        {
            "torch": ("RMSprop", {"lr": 1e-3}),
            "optax": ("rmsprop", {**LR, "decay": 0.99}),
            "keras": ("RMSprop", {**LR, "rho": 0.99, "epsilon": 1e-8}),
            "mlx": ("RMSprop", LR),
        },
        {
            "torch": ("RMSprop", {"lr": 1e-3}),
            "optax": ("rmsprop", LR),
            "keras": ("RMSprop", LR),
            "mlx": ("RMSprop", LR),
        },
    ),
    case(
        "RMSProp, momentum 0.9, the learning rate falls to a tenth",
        {
            "torch": "learning rate outside of the velocity",
            "optax": "inside",
            "keras": "inside; `eps` inside of the root",
        },
        {
            "torch": ("RMSprop", {"lr": FALLING, "momentum": 0.9}),
            "optax": ("rmsprop", {"learning_rate": FALLING, "decay": 0.99, "momentum": 0.9, "eps_in_sqrt": False}),
            "keras": ("RMSprop", {"learning_rate": FALLING, "rho": 0.99, "momentum": 0.9, "epsilon": 1e-8}),
        },
    ),
    case(
        "Rprop",
        {"torch": "moves at once", "optax": "makes each move one step late"},
        {"torch": ("Rprop", {"lr": 1e-3}), "optax": ("rprop", LR)},
    ),
    case(
        "Lion",
        {"optax": "decay 1e-3", "keras": "no decay", "mlx": "no decay"},
        {"optax": ("lion", {**LR, "weight_decay": 0.0}), "keras": ("Lion", LR), "mlx": ("Lion", LR)},
        {"optax": ("lion", LR), "keras": ("Lion", LR), "mlx": ("Lion", LR)},
    ),
    case(
        "LAMB",
        {"optax": "`eps` 1e-6 beside the root of the corrected `v`", "keras": "`eps` 1e-7"},
        {"optax": ("lamb", LR), "keras": ("Lamb", {**LR, "epsilon": 1e-6})},
        {"optax": ("lamb", LR), "keras": ("Lamb", LR)},
    ),
]


def ended(rule: gpuopt.Rule) -> Any:
    """Where the example ends: gradients around 1e-3, with noise as large, from parameters between 1 and 2."""
    random = np.random.RandomState(0)
    p = 1 + random.random_sample(SIZE)
    start, state = p, gpuopt.init(rule, p)
    for _ in range(STEPS):
        p, state = gpuopt.update(rule, p, SCALE * (1 + random.standard_normal(SIZE)), state)
    return p - start


def difference(rule: gpuopt.Rule, reference: gpuopt.Rule) -> float:
    """The largest difference of an element, in units of the furthest that one has moved."""
    moved = ended(reference)
    return float(np.max(np.abs(ended(rule) - moved)) / np.max(np.abs(moved)))


def _shown(share: float) -> str:
    digits = 1 if share < 0.1 else 2
    return "0" if share < 1e-11 else f"{float(f'{100 * share:.{digits}g}'):.9f}".rstrip("0").rstrip(".") + " %"


def table() -> str:
    """The table in docs/conventions.md."""
    lines = ["| algorithm | PyTorch | Optax | Keras | MLX |", "| --- | --- | --- | --- | --- |"]
    for row in CASES:
        first = next(iter(row.words))
        cells = []
        for library in LIBRARIES:
            words = row.words.get(library, "")
            if library in row.same and library != first:
                words += f": **{(same := _shown(difference(row.same[library], row.same[first])))}**"
                if row.own and library in row.own:
                    own = _shown(difference(row.own[library], row.own[first]))
                    words += f", by default {own}" if own != same else ""
            cells.append(words)
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])
