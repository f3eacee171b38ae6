"""What is decided about the gradients before a step: whether they are finite, and by how much they are scaled."""

from __future__ import annotations

import operator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt import arrays as libraries
from gpuopt.engines import array, memory
from gpuopt.engines.complexes import arithmetic_dtype
from gpuopt.engines.norms import chunk_sums_of_squares, is_finite, judge, sums_of_squares

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gpuopt.engines.fused import FusedStep
    from gpuopt.engines.norms import Guard


class Judging:
    """Base class of a step that judges its gradients. The host decides, or a GPU by itself if it holds all leaves."""

    _guard: Guard | None
    _arrays: Sequence[Any]
    _alone: list[int]
    _fused: list[FusedStep]
    _decides: bool
    _scales: NDArray[np.float64]
    _loss: NDArray[np.float64]
    _next_loss: NDArray[np.float64]
    _norm: float

    @property
    def _judge(self) -> Any:
        """The kernel of a GPU that decides by itself."""
        kernel = self._fused[0].kernel if self._decides else None
        return kernel if hasattr(kernel, "judge") else None

    def look(self, gradients: Sequence[Any], limit: float, *, wait_for_host: bool) -> list[int]:
        """Measure the gradients (of `bind`) and decide by how much they are scaled, and whether the step is left out.

        Parameters
        ----------
        limit
            The norm to clip to.
        wait_for_host
            Where a GPU decides by itself: after a step with a bad gradient, to leave out all others, too.

        Returns
        -------
        list of int
            Leaves whose gradient is not finite, for which the caller is not to go on; not known, and empty, where a GPU
            decides by itself.

        """
        if self._guard is None:
            return []
        clip, skip, scale = self._guard.clip, self._guard.skip, self._guard.scale
        if self._judge is not None:
            self._judge.judge(clip, limit, sticky=wait_for_host, skip=skip, scale=scale)
            return []
        sums = np.zeros((len(self._arrays), 3))
        for step in self._fused:
            step.measure(sums)
        for i in self._alone:
            g, p = gradients[i], self._arrays[i]
            if g is not None and (libraries.is_numpy(p) or libraries.is_cupy(p)):
                flat = memory.in_memory_order(libraries.to_numpy(g), p)
                with np.errstate(all="ignore"):
                    sums[i] = sums_of_squares(flat.astype(arithmetic_dtype(p), copy=False))
            elif g is not None:
                sums[i] = array.sums_of_squares(g, p)
        verdict = judge(sums, clip, limit, float(self._loss[0]))
        self.decided(verdict.norm, verdict.scales)
        if scale:
            self._next_loss = np.array(scale.next(*self._loss.tolist(), is_finite=bool(verdict.finite.all())))
        return np.flatnonzero(~verdict.finite).tolist() if skip else []

    @property
    def loss_scale(self) -> tuple[float, float]:
        """What gradients are divided by, and how many good steps there were since it changed. A GPU is waited for."""
        scale, good = self._loss.tolist() if self._judge is None else self._judge.loss_scale().get().tolist()
        return scale, good

    @property
    def scale_array(self) -> Any:
        """What gradients are divided by, as an array without axes where that is known."""
        return (self._loss if self._judge is None else self._judge.loss_scale())[0]

    def setting_scale(self, scale: float, good: float) -> list[Callable[[], object]]:
        """Return what sets `loss_scale`: functions written in C, with `restoring` after them."""
        own = np.array([scale, good])
        judge = [] if self._judge is None else self._judge.setting_scale(own)
        return [partial(operator.setitem, self._loss, ..., own), *judge]

    def settling(self) -> list[Callable[[], object]]:
        """Return functions written in C that make the scale found by the last `look` the current one."""
        return (
            [partial(operator.setitem, self._loss, ..., self._next_loss)] if self._guard and self._guard.scale else []
        )

    def chunk_sums(self, gradients: Sequence[Any]) -> list[NDArray[np.float64]]:
        """Return the sums of squares of each chunk of each gradient (of `bind`), of shape (chunks, 3); 0 for None.

        For a caller that decides by itself, as `gpuopt.engines.norms.judge` does, and tells `decided`. NumPy and CuPy only.
        """
        found = {i: sums for step in self._fused for i, sums in step.chunk_sums().items()}
        for i in set(range(len(self._arrays))) - found.keys():
            g, p = gradients[i], self._arrays[i]
            flat = np.zeros(p.size, p.dtype) if g is None else memory.in_memory_order(libraries.to_numpy(g), p)
            with np.errstate(all="ignore"):
                found[i] = chunk_sums_of_squares(flat.astype(arithmetic_dtype(p), copy=False))
        return [found[i] for i in range(len(self._arrays))]

    def decided(self, norm: float, scales: NDArray[np.float64]) -> None:
        """Record the norm of all gradients, and what each gradient is multiplied by."""
        self._norm, self._scales = norm, scales
        for step in self._fused:
            step.scale(scales)

    def report(self) -> None:
        """Ask a GPU that decides by itself to report how many steps it left out."""
        if self._judge is not None:
            self._judge.report()

    def overdue(self, *, wait: bool) -> tuple[int, list[int]] | None:
        """If a GPU left steps out (as far as it has reported or, with ``wait``, by now): how many, and for which leaves."""
        if self._judge is None or not (wait or self._judge.reported()):
            return None
        skipped = self.count_skipped()()
        if not skipped:
            return None
        finite = is_finite(self._judge.sums_found())
        return skipped, [i for i, is_good in zip(self._fused[0].members, finite, strict=True) if not is_good]

    def pardoning(self) -> Sequence[Callable[[], object]]:
        """Return functions written in C that reset a GPU's count of skipped steps; `restoring` belongs after them."""
        return () if self._judge is None else self._judge.pardoning()

    def count_skipped(self) -> Callable[[], int]:
        """Ask a GPU how many steps it left out. The returned function waits for the GPU and gives the count."""
        if self._judge is None:
            return int
        verdict = self._judge.verdict()
        return lambda: verdict()[0]

    @property
    def norm(self) -> float:
        """The norm of all gradients of the last step that was looked at; NaN if none was."""
        return self._norm if self._guard is None or self._judge is None else self._judge.verdict()()[1]
