"""The other forms of a step: `gpuopt.update` on NumPy and under JAX's jit, and an `Optimizer` of torch's tensors.

python -m benchmarks.forms [--repeat 30]
"""

from __future__ import annotations

import argparse
import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np

import gpuopt
from benchmarks.peers import numpy_traffic
from benchmarks.timing import in_turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.timing import Step

LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8
RULE = gpuopt.Adam(lr=LR, eps=EPS)


def repeated(function: Callable[..., tuple[Any, Any]], params: Any, grads: Any, state: Any) -> Step:
    """Return a step that goes on with what it returned last."""
    held = [params, state]

    def step() -> None:
        held[:] = function(held[0], grads, held[1])

    return step


def by_hand(p: Any, g: Any, state: Any) -> tuple[Any, Any]:
    """Adam as it is written down in NumPy."""
    m, v, t = state
    t += 1
    m = BETA1 * m + (1 - BETA1) * g
    v = BETA2 * v + (1 - BETA2) * g**2
    return p - LR * (m / (1 - BETA1**t)) / (np.sqrt(v / (1 - BETA2**t)) + EPS), (m, v, t)


def numpy_forms(size: int) -> dict[str, Step]:
    """A step on one NumPy array of float32."""
    p, g = np.ones(size, np.float32), np.full(size, 0.1, np.float32)
    opt = gpuopt.Optimizer(p.copy(), RULE)
    state = gpuopt.init(RULE, p)
    zeros = np.zeros_like(p)
    return {
        "gpuopt.update": repeated(lambda p, g, s: gpuopt.update(RULE, p, g, s), p, g, state),
        "gpuopt.update, donated": repeated(
            lambda p, g, s: gpuopt.update(RULE, p, g, s, donate=True), p.copy(), g, gpuopt.init(RULE, p)
        ),
        "Optimizer.step": lambda: opt.step(g),
        "NumPy by hand": repeated(by_hand, p, g, (zeros, zeros, 0)),
        "limit (NumPy)": numpy_traffic(2, (1, size), gpuopt.get_num_threads()),
        "limit, new arrays": numpy_traffic(2, (1, size), gpuopt.get_num_threads(), apart=True),
    }


def jax_forms(leaves: int, size: int, *, donate: bool) -> dict[str, Step]:
    """A step on JAX's arrays, compiled and waited for."""
    import jax
    import optax

    theirs = optax.adam(LR, eps=EPS)

    def update(p: Any, g: Any, s: Any) -> tuple[Any, Any]:
        moves, after = theirs.update(g, s, p)
        return optax.apply_updates(p, moves), after

    def compiled(function: Any, init: Any) -> Step:
        run = jax.jit(function, donate_argnums=(0, 2) if donate else ())
        params = [jax.numpy.ones(size) for _ in range(leaves)]
        grads = [jax.numpy.full(size, 0.1) for _ in range(leaves)]
        return repeated(lambda p, g, s: jax.block_until_ready(run(p, g, s)), params, grads, init(params))

    return {
        "gpuopt.update under jit": compiled(
            lambda p, g, s: gpuopt.update(RULE, p, g, s), lambda p: gpuopt.init(RULE, p)
        ),
        "optax.adam under jit": compiled(update, theirs.init),
    }


def torch_forms() -> dict[str, Step]:
    """A step over 25 linear layers, 50 tensors."""
    import torch

    def parameters() -> list[Any]:
        layers = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(25)))
        found = list(layers.parameters())
        for p in found:
            p.grad = torch.full_like(p, 0.1)
        return found

    ours = gpuopt.Optimizer(parameters(), gpuopt.like.torch.AdamW(lr=LR))
    return {"Optimizer.step()": ours.step, "torch fused": torch.optim.AdamW(parameters(), lr=LR, fused=True).step}


def main() -> None:
    """Print a table for each form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=30)
    repeat = parser.parse_args().repeat
    forms = {"NumPy, 10 elements": numpy_forms(10), "NumPy, 1,000,000 elements": numpy_forms(1_000_000)}
    if all(map(importlib.util.find_spec, ("jax", "optax"))):
        for donate in (False, True):
            for leaves, size in ((1, 1_000_000), (50, 4_096)):
                words = f"JAX, {leaves} x {size:,}{', donated' if donate else ''}"
                forms[words] = jax_forms(leaves, size, donate=donate)
    if importlib.util.find_spec("torch"):
        forms["torch, 25 linear layers of 64 x 64"] = torch_forms()
    for words, steps in forms.items():
        timings = in_turn(steps, repeat=repeat)
        first = next(iter(timings.values()))
        print(f"{words}: ours to the others")
        for name, timing in timings.items():
            print(f"  {name:24} {timing.median * 1e6:10.1f} us  {first.over(timing):6.2f}")


if __name__ == "__main__":
    main()
