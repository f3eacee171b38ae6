"""One step of the rules that are more than one pass, or other libraries' best: chains, norms, curvature.

python -m benchmarks.rules [--only LAMB L-BFGS] [--repeat 9]

Each row is one rule beside what it is measured by: our own Adam, torch's versions, Optax under jit. L-BFGS takes its steps on a
quadratic, whose gradient everybody computes as a part of the step.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import gpuopt
from benchmarks import peers
from benchmarks.optimizers import Goal, shown
from benchmarks.timing import duration, in_turn, machine, table, versions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.timing import Step

    Shape = tuple[int, int]

LR, MEMORY = 1e-3, 5
LIMIT = "limit: our Adam"
"""Shown beside the others, and not one of them: what memory alone takes for the same seven arrays."""


def ours(rule: gpuopt.Rule, shape: Shape) -> Step:
    """One step of our fused engine."""
    return peers.ours(rule, shape, "fused")


def adam(shape: Shape) -> dict[str, Step]:
    """Our own Adam, which reads and writes seven arrays."""
    return {"Adam": ours(gpuopt.Adam(LR), shape)}


def torch(name: str, *versions_: str, **arguments: Any) -> Callable[[Shape], dict[str, Step]]:
    """The versions of an optimizer of torch."""
    case = peers.Case(name, gpuopt.SGD(), (name, {"lr": LR, **arguments}), ("", {}), peers.sgd_by_hand)
    kinds: dict[str, Any] = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}
    return lambda shape: {
        **{f"torch {kind}": peers.torch_step(case, shape, **kinds[kind]) for kind in versions_},
        LIMIT: ours(gpuopt.Adam(LR), shape),
    }


# L-BFGS, on a quadratic of the curvatures from 0.5 to 2


def curvatures(size: int) -> Any:
    return np.linspace(0.5, 2, size, dtype=np.float32)


def our_lbfgs(shape: Shape) -> Step:
    """Ours."""
    (p,), c = peers.leaves(shape, 0), curvatures(shape[1])
    optimizer, g = gpuopt.Optimizer(p, gpuopt.LBFGS(LR, memory=MEMORY), engine="fused"), np.empty_like(p)

    def step() -> None:
        np.multiply(c, p, out=g)
        optimizer.step(g)

    return step


def other_lbfgs(shape: Shape) -> dict[str, Step]:
    """Torch's without a line search, and Optax's."""
    installed, steps = versions("torch", "optax"), dict[str, Any]()
    if installed["torch"]:
        import torch

        p = torch.nn.Parameter(torch.tensor(peers.leaves(shape, 0)[0]))
        p.grad, c = torch.empty_like(p), torch.tensor(curvatures(shape[1]))
        # One move a call, whatever the tolerances say.
        optimizer = torch.optim.LBFGS(
            [p], LR, max_iter=1, max_eval=1, tolerance_grad=0, tolerance_change=0, history_size=MEMORY
        )

        def closure() -> float:
            torch.mul(c, p.detach(), out=p.grad)
            return 0.0

        steps["torch"] = lambda: optimizer.step(closure)
    if installed["optax"]:
        import jax
        import optax

        rule = optax.chain(optax.scale_by_lbfgs(MEMORY), optax.scale(-LR))
        q, k = jax.numpy.array(peers.leaves(shape, 0)[0]), jax.numpy.array(curvatures(shape[1]))

        def update(x: Any, state: Any) -> Any:
            moves, state = rule.update(k * x, state, x)
            return x + moves, state

        now, compiled = (q, rule.init(q)), jax.jit(update)

        def jitted() -> None:
            nonlocal now
            now = jax.block_until_ready(compiled(*now))

        steps["Optax jit"] = jitted
    return steps


# Rules of whole matrices


def matrix(shape: Shape, seed: int) -> Any:
    return peers.leaves((1, shape[0] * shape[1]), seed)[0].reshape(shape)


def our_matrix(rule: gpuopt.Rule, shape: Shape) -> Step:
    """Ours."""
    optimizer, g = gpuopt.Optimizer(matrix(shape, 0), rule, engine="fused"), matrix(shape, 1)
    return lambda: optimizer.step(g)


def other_matrix(name: str, of_optax: Callable[[Any], Any], rule: gpuopt.Rule, shape: Shape) -> dict[str, Step]:
    """Ours on arrays, torch's, and Optax's."""
    array, g = gpuopt.Optimizer(matrix(shape, 0), rule, engine="array"), matrix(shape, 1)
    installed = versions("torch", "optax")
    steps: dict[str, Step] = {"array engine": lambda: array.step(g)}
    if installed["torch"]:
        import torch

        p = torch.nn.Parameter(torch.tensor(matrix(shape, 0)))
        p.grad = torch.tensor(g)
        steps["torch"] = getattr(torch.optim, name)([p], LR).step
    if installed["optax"]:
        import jax
        import optax

        theirs = of_optax(optax)
        q, k = jax.numpy.array(matrix(shape, 0)), jax.numpy.array(g)

        def update(x: Any, state: Any) -> Any:
            moves, state = theirs.update(k, state, x)
            return x + moves, state

        now, compiled = (q, theirs.init(q)), jax.jit(update, donate_argnums=(0, 1))

        def jitted() -> None:
            nonlocal now
            now = jax.block_until_ready(compiled(*now))

        steps["Optax jit"] = jitted
    return steps


CHAIN = gpuopt.chain(gpuopt.ClipValue(1.0), gpuopt.L2(1e-4), gpuopt.Adam(LR), gpuopt.NonNegative())

ROWS: Mapping[str, tuple[Shape, Callable[[Shape], Step], Callable[[Shape], dict[str, Step]], float]] = {
    "LAMB": ((1, 100), lambda shape: ours(gpuopt.LAMB(LR), shape), adam, 3.0),
    "LAMB, large": ((1, 10_000_000), lambda shape: ours(gpuopt.LAMB(LR), shape), adam, 2.5),
    "ClipValue + L2 + Adam + NonNegative": ((1, 5_000_000), lambda shape: ours(CHAIN, shape), adam, 1.2),
    "L-BFGS": ((1, 2_000_000), our_lbfgs, other_lbfgs, 0.5),
    "AdamW": (
        (1, 10_000_000),
        lambda shape: ours(gpuopt.AdamW(LR, weight_decay=0.01), shape),
        torch("AdamW", "fused", weight_decay=0.01),
        1.05,
    ),
    "Adafactor": (
        (2048, 1024),
        partial(our_matrix, gpuopt.Adafactor(LR)),
        partial(other_matrix, "Adafactor", lambda optax: optax.adafactor(LR), gpuopt.Adafactor(LR)),
        1.0,
    ),
    "Muon": (
        (2048, 1024),
        partial(our_matrix, gpuopt.Muon(LR)),
        partial(other_matrix, "Muon", lambda optax: optax.contrib.muon(LR), gpuopt.Muon(LR)),
        1.0,
    ),
    **{
        name: (
            (1, 5_000_000),
            partial(ours, getattr(gpuopt, name)(LR)),
            torch(other, "foreach", "loop"),
            0.3,
        )
        for name, other in {"RAdam": "RAdam", "NAdam": "NAdam", "AdaMax": "Adamax", "AdaDelta": "Adadelta"}.items()
    },
}
"""By name: a shape, our step, the others', and what ours may take of the fastest one's time."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--repeat", type=int, default=9, help="samples of each competitor (default: %(default)s)")
    options = parser.parse_args()
    about, installed = machine(), versions("numpy", "torch", "jax", "optax")
    print(f"{about['processor']}, {len(os.sched_getaffinity(0))} threads, load {about['load']}, float32, {installed}")
    rows, goals = list[tuple[str, ...]](), []
    for name in options.only:
        shape, own, others, at_most = ROWS[name]
        timings = in_turn({"ours": own(shape), **others(shape)}, repeat=options.repeat, warmups=12)
        ratio = timings["ours"].median / min(t.median for who, t in timings.items() if who not in ("ours", LIMIT))
        goals.append(Goal(f"{name}, {shown(shape)}", at_most, ratio))
        rows += [
            (f"{name}, {shown(shape)}", who, duration(t.median), duration(t.minimum)) for who, t in timings.items()
        ]
    print(f"\n{table(('', 'who', 'median', 'minimum'), rows)}")
    met = [(g.what, f"{g.measured:.3f}", f"{g.at_most}", "yes" if g.met else "NO") for g in goals]
    print(f"\n{table(('goals', 'measured', 'at most', 'met'), met)}")


if __name__ == "__main__":
    main()
