"""The competitors: each takes parameters and gradients, and gives a function that takes one step."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, make_dataclass
from itertools import count, cycle
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

import gpuopt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from benchmarks.timing import Step

    Arrays: TypeAlias = list[NDArray[np.float32]]

LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Case:
    """A rule, and its name and arguments elsewhere."""

    name: str
    rule: gpuopt.Rule
    torch: tuple[str, dict[str, Any]]
    optax: tuple[str, dict[str, Any]]
    by_hand: Callable[[Arrays, Arrays], Step]


def leaves(shape: tuple[int, int], seed: int) -> Arrays:
    """``shape[0]`` arrays of ``shape[1]`` elements."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape[1], np.float32) for _ in range(shape[0])]


# Ours


def ours(rule: gpuopt.Rule, shape: tuple[int, int], engine: Any, *, new_gradients: bool = False, xp: Any = np) -> Step:
    """One step; with ``new_gradients``, every step gets other arrays than the one before; ``xp``: NumPy or CuPy."""

    def arrays(seed: int) -> list[Any]:
        return [xp.asarray(a) for a in leaves(shape, seed)]

    optimizer = gpuopt.Optimizer(arrays(0), rule, engine=engine)
    in_turn = cycle([arrays(1), arrays(2)] if new_gradients else [arrays(1)])
    return lambda: optimizer.step(next(in_turn))


# The limit of memory


def traffic(slots: tuple[str, ...]) -> gpuopt.Rule:
    """A rule that reads and writes what a rule with these slots does, and computes next to nothing."""

    def update(self: Any, xp: Any, p: Any, g: Any, s: Any, h: Any) -> tuple[Any, dict[str, Any]]:  # noqa: ARG001
        return p + g, {slot: getattr(s, slot) + g for slot in slots}

    members = {"slots": slots, "update": update}
    name = f"Traffic{len(slots)}"
    fields = [("lr", gpuopt.Hyper, gpuopt.bounded(LR, 0))]
    return make_dataclass(name, fields, bases=(gpuopt.Rule,), namespace=members, frozen=True)()  # type: ignore[no-any-return]


def numpy_traffic(
    slots: int, shape: tuple[int, int], threads: int, block: int = 32_768, *, apart: bool = False
) -> Step:
    """The same reads and writes by NumPy alone: additions, in blocks that stay in the cache, in threads.

    They are in place or, ``apart``, from one set of arrays to another and back in the next step.
    """
    (g,), targets = (
        leaves((1, shape[0] * shape[1]), 1),
        [leaves((1, shape[0] * shape[1]), i)[0] for i in range(1 + slots)],
    )
    sources = [a.copy() for a in targets] if apart else targets
    pool = ThreadPoolExecutor(threads)

    def work(starts: count[int]) -> None:
        while (start := next(starts)) < g.size:
            part = slice(start, start + block)
            for a, b in zip(sources, targets, strict=True):
                np.add(a[part], g[part], out=b[part])

    def step() -> None:
        starts = count(0, block)
        for done in [pool.submit(work, starts) for _ in range(threads)]:
            done.result()
        sources[:], targets[:] = targets[:], sources[:]

    return step


# Others


def torch_step(case: Case, shape: tuple[int, int], device: str = "cpu", **how: bool) -> Step:
    """One step of torch's optimizer; ``how``: ``fused`` or ``foreach``."""
    import torch

    name, arguments = case.torch
    params = [torch.nn.Parameter(torch.tensor(a, device=device)) for a in leaves(shape, 0)]
    for p, g in zip(params, leaves(shape, 1), strict=True):
        p.grad = torch.tensor(g, device=device)
    return getattr(torch.optim, name)(params, **arguments, **how).step  # type: ignore[no-any-return]


def optax_step(case: Case, shape: tuple[int, int], *, donate: bool) -> Step:
    """One step under jit; ``donate``: parameters and state, so that they can be updated in place."""
    import jax
    import optax

    name, arguments = case.optax
    rule = getattr(optax, name)(**arguments)
    params = [jax.numpy.array(a) for a in leaves(shape, 0)]
    grads = [jax.numpy.array(a) for a in leaves(shape, 1)]

    @functools.partial(jax.jit, donate_argnums=(0, 1) if donate else ())
    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    now = params, rule.init(params)

    def step() -> None:
        nonlocal now
        now = jax.block_until_ready(update(*now, grads))

    return step


# NumPy, as people write it


def sgd_by_hand(params: Arrays, grads: Arrays) -> Step:
    """Stochastic gradient descent."""

    def step() -> None:
        for p, g in zip(params, grads, strict=True):
            p -= LR * g  # noqa: PLW2901 - in place

    return step


def momentum_by_hand(params: Arrays, grads: Arrays) -> Step:
    """SGD with momentum."""
    velocity = [np.zeros_like(p) for p in params]

    def step() -> None:
        for i, g in enumerate(grads):
            velocity[i] = BETA1 * velocity[i] - LR * g
            params[i] += velocity[i]

    return step


def adagrad_by_hand(params: Arrays, grads: Arrays) -> Step:
    """AdaGrad."""
    cache = [np.zeros_like(p) for p in params]

    def step() -> None:
        for i, g in enumerate(grads):
            cache[i] += g**2
            params[i] -= LR * g / (np.sqrt(cache[i]) + EPS)

    return step


def rmsprop_by_hand(params: Arrays, grads: Arrays) -> Step:
    """RMSProp."""
    cache = [np.zeros_like(p) for p in params]

    def step() -> None:
        for i, g in enumerate(grads):
            cache[i] = BETA1 * cache[i] + (1 - BETA1) * g**2
            params[i] -= LR * g / (np.sqrt(cache[i]) + EPS)

    return step


def adam_by_hand(params: Arrays, grads: Arrays) -> Step:
    """Adam."""
    m, v, t = [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params], 0

    def step() -> None:
        nonlocal t
        t += 1
        for i, g in enumerate(grads):
            m[i] = BETA1 * m[i] + (1 - BETA1) * g
            v[i] = BETA2 * v[i] + (1 - BETA2) * g**2
            m_hat = m[i] / (1 - BETA1**t)
            v_hat = v[i] / (1 - BETA2**t)
            params[i] -= LR * m_hat / (np.sqrt(v_hat) + EPS)

    return step


CASES: Sequence[Case] = (
    Case("SGD", gpuopt.SGD(LR), ("SGD", {"lr": LR}), ("sgd", {"learning_rate": LR}), sgd_by_hand),
    Case(
        "SGD momentum",
        gpuopt.SGD(LR, momentum=BETA1),
        ("SGD", {"lr": LR, "momentum": BETA1}),
        ("sgd", {"learning_rate": LR, "momentum": BETA1}),
        momentum_by_hand,
    ),
    Case(
        "AdaGrad",
        gpuopt.AdaGrad(LR, eps=EPS),
        ("Adagrad", {"lr": LR, "eps": EPS}),
        ("adagrad", {"learning_rate": LR, "initial_accumulator_value": 0.0, "eps": EPS}),
        adagrad_by_hand,
    ),
    Case(
        "RMSProp",
        gpuopt.RMSProp(LR, rho=BETA1, eps=EPS),
        ("RMSprop", {"lr": LR, "alpha": BETA1, "eps": EPS}),
        ("rmsprop", {"learning_rate": LR, "decay": BETA1, "eps": EPS}),
        rmsprop_by_hand,
    ),
    Case(
        "Adam",
        gpuopt.Adam(LR, BETA1, BETA2, EPS),
        ("Adam", {"lr": LR, "betas": (BETA1, BETA2), "eps": EPS}),
        ("adam", {"learning_rate": LR, "b1": BETA1, "b2": BETA2, "eps": EPS}),
        adam_by_hand,
    ),
)
