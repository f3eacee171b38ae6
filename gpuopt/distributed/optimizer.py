"""The optimizer of many processes: gradients come in parts, each process updates its share, all have the parameters."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from gpuopt import leaves
from gpuopt.arrays import to_numpy
from gpuopt.distributed.agreement import RankError, agreed, listed
from gpuopt.distributed.connecting import connect
from gpuopt.distributed.layout import NO_BUCKET, flat_like
from gpuopt.distributed.setup import SetUp, copied
from gpuopt.engines import storage
from gpuopt.engines.interrupts import in_one_go
from gpuopt.engines.norms import DynamicScale, judge
from gpuopt.optimizer import OWN
from gpuopt.trees import flatten

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from gpuopt.distributed.connecting import Way
    from gpuopt.distributed.cuts import Piece
    from gpuopt.distributed.sums import Node
    from gpuopt.engines.norms import Verdict
    from gpuopt.engines.storage import Precision, Stochastic
    from gpuopt.gradients import Clip
    from gpuopt.groups import Rules
    from gpuopt.optimizer import Nonfinite


class Optimizer(SetUp):
    """An optimizer whose work and state many processes share.

    The batch is a number of parts. Each process adds the gradients of its own parts, `mine`; a step adds those of all, in
    one fixed binary tree, and every process has the new parameters. So the bits are those of one `gpuopt.Optimizer` on
    `tree_sum` of the parts, whatever the number of processes, and a file that one of them saved goes on with any other.

    Everything but `add`, `tune` and looking is collective: all processes call it in the same order. Before anything is
    changed they agree, so an error of one is the same `RankError` on all.

    Parameters
    ----------
    params
        Arrays of NumPy, or of CuPy on one device, that fill their memory without gaps, in any nesting; of the same shapes
        and dtypes on each process. They get the values of rank 0.
    rule
        As for `gpuopt.Optimizer`, but for rules that look at whole leaves otherwise than by sums and largest elements.
    comm
        A communicator of mpi4py, such as ``MPI.COMM_WORLD``. None: this process alone, without MPI.
    shard
        Whether each process keeps the state of its own share only. If not, each keeps all of it, and updates all.
    parts
        How many parts the batch has, at least one a process. None: one a process, and `step` takes the gradients.
    average
        Whether the sum of the gradients is divided by ``parts``.
    clip, nonfinite, precision, scale
        As for `gpuopt.Optimizer`; of the gradients of the whole batch, which are added up in the dtype of their leaf.
    timeout
        Seconds to wait for another process before this one raises; None: for ever.
    transport
        How CuPy's arrays travel: "nccl"; "mpi", where the MPI library reads a GPU's memory; "host", by way of the host's
        memory; "auto": NCCL where it is there and each process has a GPU of its own, else by way of the host.

    Attributes
    ----------
    mine : range
        The parts of this process.
    rank, size : int
        Which process this is, and how many there are.
    measures : bool
        Whether to measure `gradient_norm` in any case; the same on all processes.
    wish : int
        A number, such as that of a signal, that this process wishes all others to know with the next step.
    wished : int
        The highest number that a process has wished.

    Raises
    ------
    TypeError, ValueError, ImportError
        If there is no MPI, or the way cannot be had; alone, what `gpuopt.Optimizer` raises.
    RankError
        On all processes, if one has an error, or other leaves, rules or options than the others.

    Examples
    --------
    One process; with ``MPI.COMM_WORLD`` instead of None the same lines are those of many:

    >>> import numpy as np
    >>> import gpuopt
    >>> import gpuopt.distributed
    >>> w = np.zeros(2)
    >>> opt = gpuopt.distributed.Optimizer(w, gpuopt.SGD(lr=1.0), None, parts=4)
    >>> for i in opt.mine:
    ...     opt.add(np.array([i, 1.0]))
    >>> opt.step()
    >>> w
    array([-1.5, -1. ])

    """

    def __init__(
        self,
        params: Any,
        rule: Rules,
        comm: Any,
        *,
        shard: bool = True,
        parts: int | None = None,
        average: bool = True,
        clip: Clip | None = None,
        nonfinite: Nonfinite = "ignore",
        precision: Precision | Stochastic = "state32",
        scale: float | DynamicScale | None = None,
        timeout: float | None = None,
        transport: Way = "auto",
    ) -> None:
        _, found = flatten(params)
        self._transport = connect(comm, next(iter(found), None), transport, timeout)
        rank, size = self._transport.rank, self._transport.size
        self._shard, self._average = bool(shard), bool(average)
        self._parts = size if parts is None else parts
        self._one_part_each = parts is None
        self._lock = threading.RLock()
        self._kept: Exception | None = None
        self._loss = (scale.initial if isinstance(scale, DynamicScale) else 1.0, 0.0)
        self.measures = False
        error: Exception | None = None
        try:
            if not type(self._parts) is int or self._parts < size:
                raise ValueError(  # noqa: TRY301 - all processes are told
                    f"parts: {parts!r}, expected a whole number of at least {size}, one for each process"
                )
            self.mine = range(self._parts * rank // size, self._parts * (rank + 1) // size)
            super().__init__(params, rule, clip=clip, nonfinite=nonfinite, precision=precision, scale=scale)
        except RankError:
            raise
        except Exception as caught:  # noqa: BLE001 - all processes are told
            error = caught
            if not self._met:
                self._agree(error, {})  # the others are about to see that they want the same
        self._agree(error, {})

    def add(self, grads: Any) -> None:
        """Add the gradients of the next one of this process's parts, which are copied.

        Parameters
        ----------
        grads
            As for `step` of `gpuopt.Optimizer`. A leaf that is None must be None in all parts.

        Notes
        -----
        An error is kept for `step`, which raises it on all processes, so that none waits for one that is gone.

        """
        with self._lock:
            if self._kept is not None:
                return
            try:
                self._added.add(self._checked_gradients(grads))
            except Exception as error:  # noqa: BLE001 - all processes are told
                self._forget()
                self._kept = error

    def step(self, grads: Any = OWN) -> None:
        """Update the parameters on all processes, by the gradients that were added.

        Parameters
        ----------
        grads
            Where there is one part a process, its gradients, instead of `add`.

        Raises
        ------
        RankError
            On all processes, if one of them has an error, hyperparameters, steps or leaves without gradient that the others
            have not, or with ``nonfinite="raise"`` if a gradient has a NaN or an infinity. Nothing is changed then, and
            what was added is dropped. After a time-out it is not known who is to blame.

        """
        with self._lock:
            error: Exception | None = None
            view: dict[str, Any] = {}
            nodes: list[tuple[Node, list[Any]]] = []
            room: dict[Any, Any] = {}
            try:
                nodes = self._given(grads)
                scalars = self._step.scalars(self._steps, self._carried)
                limit = self._limit
                self._held.check_all()
                self._reduction.reserve()
                self._layout.reserve(max(self._step.widths + [3] * self._looks, default=0))
                room = self._layout.room(self._present(self._added.present)) if self._shard else {}
                missing = [self._tree.name(i, "grads") for i, there in enumerate(self._added.present) if not there]
                view = {
                    "steps": self._steps,
                    "hyperparameters": dict(zip(self._patterns, scalars, strict=True)),
                    "clip": limit,
                    "without gradient": missing,
                }
            except Exception as caught:  # noqa: BLE001 - all processes are told
                error = caught
            present = self._added.present or [False] * len(self._arrays)
            self._forget()
            self._agree(error, view, self.wish)
            self._step_together(nodes, present, scalars, limit, room)

    def _present(self, present: Sequence[bool]) -> dict[int, Any]:
        """Leaves that have a gradient, as flat arrays."""
        return {i: flat for i, (flat, there) in enumerate(zip(self._layout.flat, present, strict=True)) if there}

    def _step_together(
        self,
        nodes: list[tuple[Node, list[Any]]],
        present: Sequence[bool],
        scalars: list[dict[str, float]],
        limit: float,
        room: Mapping[Any, Any],
    ) -> None:
        """Exchange and add up, look at the sums, prepare the update, agree once more, write, and exchange the parameters."""
        buckets = [k for k, b in enumerate(self._layout.buckets) if any(present[piece.leaf] for piece in b.pieces)]
        gradients, error = self._reduction(nodes, buckets)
        ready = [
            self._gradient(gradients, k, piece) if present[piece.leaf] else None for k, piece in self._layout.segments
        ]
        try:
            self._step.bind(ready, self._layout.own, lambda _i, g, _p: g)
        except Exception as caught:  # noqa: BLE001 - all processes are told
            error = error or caught
        loss = self._loss
        carried = [{name: h[name] for name in own} for own, h in zip(self._carried, scalars, strict=True)]
        if self._looks:
            verdict = self._judged(ready, limit, error)
            self._step.decided(verdict.norm, verdict.scales[self._layout.leaf_of])
            is_dynamic = isinstance(self._scale, DynamicScale)
            bad = np.flatnonzero(~verdict.finite).tolist() if is_dynamic or self._nonfinite != "ignore" else []
            if isinstance(self._scale, DynamicScale):
                loss = self._scale.next(*loss, is_finite=not bad)
            if bad and self._nonfinite == "raise":
                self._blame(nodes, bad)
            if bad:
                count = {"_skipped": self._skipped + 1, "_steps": self._steps + 1}
                vars(self).update(count, _carried=carried, _loss=loss)
                return
        if self._step.widths:
            error = self._reduced(scalars, present) or error
        calls: list[Callable[[], object]] = []
        try:
            calls = self._step.prepare(ready, scalars, storage.key_of(self._precision, self._steps))
        except Exception as caught:  # noqa: BLE001 - all processes are told
            error = error or caught
        self._agree(error, {})
        count_up = partial(vars(self).update, _steps=self._steps + 1, _carried=carried, _loss=loss)
        in_one_go((*calls, count_up), self._step.restoring())
        if self._shard:
            self._layout.spread(self._present(present), room)

    def _judged(self, ready: list[Any], limit: float, error: Exception | None) -> Verdict:
        """Look at the gradients, and agree on what was seen."""
        verdict = None
        chunks, failed = self._layout.of_chunks(3, partial(self._step.chunk_sums, ready))
        error = error or failed
        try:
            verdict = judge(self._layout.by_leaf(chunks), self._clip_by, limit, self._loss[0])
        except Exception as caught:  # noqa: BLE001 - all processes are told
            error = error or caught
        self._agree(error, {"norm": verdict and verdict.norm})
        assert verdict is not None
        return verdict

    @property
    def scale(self) -> float:
        """As alone; the same on all processes, and known on the host."""
        return self._loss[0] if isinstance(self._scale, DynamicScale) else super().scale

    @property
    def scale_array(self) -> Any:
        """As `scale`, as an array of NumPy without axes."""
        return np.array(self.scale)

    def rows_of(self, own: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return numbers of all parts, of shape (parts, columns), from those of this process's; collective."""
        rows = np.zeros((self._parts, own.shape[1]))
        rows[self.mine.start : self.mine.stop] = own
        cuts = [own.shape[1] * (self._parts * rank // self.size) for rank in range(self.size + 1)]
        self._transport.gather(rows.reshape(-1), cuts)
        return rows

    def evaluation(self) -> Any:
        """Return the tree to evaluate with, as `gpuopt.Optimizer.evaluation`; collective."""
        with self._led("evaluation"):
            found, differ = agreed(self._transport, self._evaluated)
            differ = self._transport.highest(differ)
            if not differ.any():
                return self._params
            members = np.flatnonzero(differ).tolist()
            whole = self._layout.whole(lambda: {i: copied(self._arrays[i]) for i in members}, found)
            return self._tree.build([whole.get(i, p) for i, p in enumerate(self._arrays)])

    def _evaluated(self) -> tuple[list[Any], NDArray[np.int64]]:
        """What each segment is evaluated with, and of which leaves that is not the parameter itself."""
        last = [rule.at(max(self._steps - 1, 0)) | own for rule, own in zip(self._rules, self._carried, strict=True)]
        found = self._step.evaluation(last)
        differ = np.zeros(len(self._arrays), np.int64)
        for (_, piece), new, p in zip(self._layout.segments, found, self._layout.own, strict=True):
            differ[piece.leaf] |= new is not p
        return found, differ

    def with_params(self, params: Any) -> NoReturn:  # noqa: ARG002
        """Not for several processes: save, make another one, load."""
        raise TypeError("an optimizer of several processes keeps its leaves; gpuopt.save and another optimizer go on")

    def __getstate__(self) -> NoReturn:
        """Neither pickled nor copied: the others would not know."""
        raise TypeError("an optimizer of several processes cannot be pickled or copied; gpuopt.save writes a file")

    def __repr__(self) -> str:
        """As alone, and which process this is."""
        return f"{super().__repr__()[:-1]}, rank {self._transport.rank} of {self._transport.size})"

    # ---- gradients

    def _forget(self) -> None:
        """Drop what was added."""
        self._kept = None
        self._added.forget()

    def _checked_gradients(self, grads: Any) -> list[Any]:
        """Return the gradient of each leaf as a flat array in the order of its parameter's memory, or None."""
        found = []
        for i, (g, p) in enumerate(zip(self._tree.leaves_of(grads, "grads"), self._arrays, strict=True)):
            checked = None if g is None or i not in self._rows else leaves.gradient(g, p, self._tree, i)
            found.append(None if checked is None else flat_like(checked, p))
        return found

    def _given(self, grads: Any) -> list[tuple[Node, list[Any]]]:
        """The sums of this process's parts, each a flat array for each bucket."""
        if self._kept is not None:
            raise self._kept
        if grads is OWN:
            return self._added.added()
        if not self._one_part_each:
            raise ValueError("step: gradients, but parts was given: expected `add` for each i of mine, then step()")
        return self._added.only(self._checked_gradients(grads))

    def _reduced(self, scalars: Sequence[Mapping[str, float]], present: Sequence[bool]) -> Exception | None:
        """Add up, pass by pass, what the rules need of whole leaves; return what went wrong in this process."""
        error: Exception | None = None
        try:
            self._step.begin(scalars, present)
        except Exception as caught:  # noqa: BLE001 - all processes are told
            error = caught
        for k, width in enumerate(self._step.widths):
            chunks, failed = self._layout.of_chunks(width, partial(self._step.reduce, k))
            error = error or failed
            try:
                self._step.know(k, chunks)
            except Exception as caught:  # noqa: BLE001 - all processes are told
                error = error or caught
        return error

    def _gradient(self, gradients: Sequence[Any], k: int, piece: Piece) -> Any:
        """The gradient of a segment, which may have no elements."""
        if k == NO_BUCKET:
            return self._layout.flat[piece.leaf][:0]
        return None if gradients[k] is None else gradients[k][piece.place]

    def _blame(self, nodes: list[tuple[Node, list[Any]]], bad: list[int]) -> NoReturn:
        """Raise the error of gradients that are not finite: on all processes the same."""

        def is_finite(i: int) -> bool:
            places = [(k, piece) for k, b in enumerate(self._layout.buckets) for piece in b.pieces if piece.leaf == i]
            return all(np.isfinite(to_numpy(found[k][piece.place])).all() for _, found in nodes for k, piece in places)

        own = agreed(self._transport, lambda: [self._tree.name(i, "grads") for i in bad if not is_finite(i)])
        what = f"NaN or infinity at step {self._steps}; that step changed nothing"
        failed = {rank: f"{', '.join(names)}: {what}" for rank, names in enumerate(self._transport.told(own)) if names}
        if not failed:
            names = ", ".join(self._tree.name(i, "grads") for i in bad)
            raise RankError(
                f"{names}: the sum of all parts has a NaN or an infinity; step {self._steps} changed nothing"
            )
        if self._transport.size == 1:
            raise FloatingPointError(failed[0])
        raise RankError(listed(failed, self._transport.size), tuple(failed))
