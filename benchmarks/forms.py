"""The other forms of a step: leaves of 16 bits and complex ones, `gpuopt.update` on NumPy and under JAX's jit, and torch's tensors.

python -m benchmarks.forms [--repeat 30]
"""

from __future__ import annotations

import argparse
import importlib.util
from functools import partial
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
SIZE = 10_000_000
"""Elements of the large leaves."""


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


def torch_adam(array: Any, **options: Any) -> Step:
    """A step of torch's own Adam on a copy of an array, which is its gradient, too."""
    import torch

    p = torch.as_tensor(array).clone().requires_grad_()
    p.grad = p.detach().clone()
    step: Step = torch.optim.Adam([p], lr=LR, eps=EPS, **options).step
    return step


def narrow_forms(size: int, dtype: str, precision: Any) -> dict[str, Step]:
    """A step on leaves of 16 bits, beside float32."""
    import ml_dtypes
    import torch

    narrow = np.dtype(getattr(ml_dtypes, dtype, dtype))
    wide = np.full(size, 0.1, np.float32)
    ours, theirs = gpuopt.Optimizer(wide.astype(narrow), RULE, precision=precision), gpuopt.Optimizer(wide.copy(), RULE)
    g = wide.astype(narrow)
    return {
        "Optimizer.step": lambda: ours.step(g),
        "float32": lambda: theirs.step(wide),
        "torch fused": torch_adam(torch.tensor(wide).to(getattr(torch, dtype)), fused=True),
    }


def complex_forms(size: int) -> dict[str, Step]:
    """A step on complex numbers, beside as many bytes of real ones."""

    def ours(size: int, dtype: Any, rule: Any) -> Step:
        opt, g = gpuopt.Optimizer(np.ones(size, dtype), rule), np.full(size, 0.1, dtype)
        return lambda: opt.step(g)

    return {
        "Optimizer.step": ours(size, np.complex64, RULE),  # 48 bytes an element, and 28 one of float32
        "float32, as many bytes": ours(size * 48 // 28, np.float32, RULE),
        "components": ours(size, np.complex64, gpuopt.Adam(lr=LR, eps=EPS, components=True)),
        "torch foreach": torch_adam(np.full(size, 0.1, np.complex64), foreach=True),
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
    forms: dict[str, Callable[[], dict[str, Step]]] = {
        f"NumPy, {size:,} elements": partial(numpy_forms, size) for size in (10, 1_000_000)
    }
    if all(map(importlib.util.find_spec, ("jax", "optax"))):
        for donate in (False, True):
            for leaves, size in ((1, 1_000_000), (50, 4_096)):
                words = f"JAX, {leaves} x {size:,}{', donated' if donate else ''}"
                forms[words] = partial(jax_forms, leaves, size, donate=donate)
    if importlib.util.find_spec("torch"):
        if importlib.util.find_spec("ml_dtypes"):
            for dtype, precision in (("bfloat16", "state32"), ("bfloat16", "param"), ("float16", "state32")):
                forms[f"{SIZE:,} of {dtype}, {precision}"] = partial(narrow_forms, SIZE, dtype, precision)
        forms[f"{SIZE // 2:,} of complex64"] = partial(complex_forms, SIZE // 2)
        forms["torch, 25 linear layers of 64 x 64"] = torch_forms
    for words, make in forms.items():
        timings = in_turn(make(), repeat=repeat)
        first = next(iter(timings.values()))
        print(f"{words}: ours to the others")
        for name, timing in timings.items():
            print(f"  {name:24} {timing.median * 1e6:10.1f} us  {first.over(timing):6.2f}")


if __name__ == "__main__":
    main()
