"""Problems that every engine must solve to the same bits: any leaves, with gradients that come in any way."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from spaces import Host, Space, hard_values

import gpuopt

# Around multiples of the widest vector, and of a chunk; without axes; without elements; with axes of length 1.
SHAPES = [(), (0,), (1,), (3,), (4,), (5,), (17,), (3, 0), (2, 3), (1, 7, 1), (3, 2, 4), (4095,), (4097,), (3, 4096)]


def sized(exponent: int) -> Callable[[np.random.RandomState, tuple[int, ...], str], Host]:
    """Normal numbers of about one size."""

    def draw(random: np.random.RandomState, shape: tuple[int, ...], dtype: str) -> Host:
        with np.errstate(all="ignore"):
            x = random.standard_normal(shape) * 10.0**exponent
            return np.asarray(np.asarray(x).astype(dtype) if dtype.startswith("f") else np.sign(x).astype(dtype))

    return draw


# Where all is added up, one NaN hides everything else: so there are problems without.
VALUES = {"hard": hard_values, "plain": sized(0), "huge": sized(300), "tiny": sized(-300), "subnormal": sized(-42)}


@dataclass(frozen=True)
class Leaf:
    """A parameter and how its gradient comes: a layout of its own, None, or as the same array as before."""

    group: int
    dtype: str
    shape: tuple[int, ...]
    layout: str
    gradients: tuple[tuple[str, str] | None, ...]


@dataclass(frozen=True)
class Problem:
    """Leaves, their rules, the number of steps, the seed of all values, and of which kind they are."""

    rules: list[gpuopt.Rule]
    leaves: list[Leaf]
    steps: int
    seed: int
    values: str = "hard"

    def params(self) -> dict[str, Host]:
        """Values of the parameters."""
        random = np.random.RandomState(self.seed)
        return {f"{i}.g{a.group}": VALUES[self.values](random, a.shape, a.dtype) for i, a in enumerate(self.leaves)}

    def gradients(self, step: int) -> list[Host | None]:
        """Values of the gradients of a step."""
        random = np.random.RandomState(self.seed + step + 1)
        kinds = [a.gradients[step % len(a.gradients)] for a in self.leaves]
        drawn = [
            VALUES[self.values](random, a.shape, k[0] if k else "f4") for a, k in zip(self.leaves, kinds, strict=True)
        ]
        return [g if kind else None for g, kind in zip(drawn, kinds, strict=True)]

    def by_pattern(self) -> dict[str, gpuopt.Rule]:
        """The rules that have leaves."""
        return {f"*.g{group}": self.rules[group] for group in sorted({a.group for a in self.leaves})}

    def run_on_copies(self) -> dict[str, Host]:
        """What the pure functions make of it on NumPy arrays."""
        params: Any = self.params()
        state = gpuopt.init(self.by_pattern(), params)
        for step in range(self.steps):
            grads = dict(zip(params, self.gradients(step), strict=True))
            params, state = gpuopt.update(self.by_pattern(), params, grads, state)
        slots = {f"{p}/{slot}": x for slot, own in state.slots.items() for p, x in own.items() if x is not None}
        return {name: np.asarray(x) for name, x in (params | slots).items()}

    def run(self, space: Space, engine: Any) -> dict[str, Host]:
        """What an optimizer makes of it."""
        params = {
            path: space.put(p, leaf.layout) for (path, p), leaf in zip(self.params().items(), self.leaves, strict=True)
        }
        opt = gpuopt.Optimizer(params, self.by_pattern(), engine=engine)
        grads: list[Any] = [None] * len(self.leaves)
        for step in range(self.steps):
            for i, (g, leaf) in enumerate(zip(self.gradients(step), self.leaves, strict=True)):
                kind = leaf.gradients[step % len(leaf.gradients)]
                if g is None or kind is None:
                    grads[i] = None
                elif kind[1] == "reused" and grads[i] is not None and grads[i].dtype == g.dtype:
                    with space.use():
                        grads[i].reshape(-1)[...] = space.xp.asarray(g.reshape(-1))
                else:
                    grads[i] = space.put(g, "C" if kind[1] == "reused" else kind[1])
            opt.step(dict(zip(params, grads, strict=True)))
        return space.got(opt)
