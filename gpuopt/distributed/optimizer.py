"""The optimizer of many processes: each adds gradients of its parts, updates its share, and has all parameters."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from gpuopt import leaves
from gpuopt.arrays import to_numpy
from gpuopt.distributed.agreement import Failure, RankError, agreed, listed
from gpuopt.distributed.connecting import connect
from gpuopt.distributed.layout import NO_BUCKET, flat_like
from gpuopt.distributed.setup import SetUp, copied
from gpuopt.engines import storage
from gpuopt.engines.interrupts import in_one_go
from gpuopt.engines.norms import DynamicScale, judge
from gpuopt.optimizer import OWN
from gpuopt.rules.hyper import as_index
from gpuopt.suggest import called_rightly
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
    """An optimizer whose work and state are shared by many processes.

    The batch is divided into parts. Each process adds the gradients of its own parts, `mine`; a step adds the gradients of
    all processes in one fixed binary tree, and every process gets the new parameters. So the bits are those of one
    `gpuopt.Optimizer` on the `tree_sum` of the parts, for any number of processes, and a saved file can be loaded with
    any other number.

    All methods but `add` and `tune` are collective: all processes call them in the same order. The processes agree before
    anything is changed, so an error of one is the same `RankError` on all.

    Parameters
    ----------
    params
        Arrays of NumPy, or of CuPy on one device, that fill their memory without gaps, in any nesting; of the same shapes
        and dtypes on each process. They get the values of rank 0.
    rule
        As for `gpuopt.Optimizer`, without rules that need whole leaves for more than sums and maxima (Muon, Adafactor).
    comm
        A communicator of mpi4py, such as ``MPI.COMM_WORLD``. None: this process alone, without MPI.
    shard
        Whether each process keeps the state of its own share only. If not, each keeps all of it, and updates all.
    parts
        Number of parts of the batch, at least one for each process. None: one for each, and `step` takes the gradients.
    average
        Whether the sum of the gradients is divided by ``parts``.
    clip, nonfinite, precision, scale
        As for `gpuopt.Optimizer`, applied to the gradients of the whole batch, which are added in the dtype of their leaf.
    timeout
        Seconds to wait for another process before this one raises; None: for ever.
    transport
        How CuPy's arrays are sent: "nccl"; "mpi", if the MPI library reads a GPU's memory; "host", through the host's
        memory; "auto": NCCL if it is installed and each process has its own GPU, else "host".

    Attributes
    ----------
    mine : range
        The parts of this process.
    rank, size : int
        Index of this process, and number of processes.
    measures : bool
        Whether to compute `gradient_norm` also without clipping; the same on all processes.
    wish : int
        A number, such as that of a signal, that this process sends to all others with the next step.
    wished : int
        The largest `wish` of all processes so far.

    Raises
    ------
    TypeError, ValueError, ImportError
        If there is no MPI, or the transport is not available; on one process, the errors of `gpuopt.Optimizer`.
    RankError
        On all processes, if one has an error, or if leaves, rules or options differ.

    Examples
    --------
    On one process; with ``MPI.COMM_WORLD`` in place of None the same lines run on many:

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

    @called_rightly("Optimizer", "; hyperparameters go to the rule, as in gpuopt.Adam(lr=0.1)")
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
        count = size if parts is None else as_index(parts)
        self._parts = 0 if count is None else count
        self._one_part_each = parts is None
        self._lock = threading.RLock()
        self._kept: Exception | None = None
        self._loss = (scale.initial if isinstance(scale, DynamicScale) else 1.0, 0.0)
        self.measures = False
        failure = Failure()
        with failure:
            if self._parts < size:
                raise ValueError(
                    f"parts: {parts!r:.80}, expected a whole number of at least {size}, one for each process"
                )
            self.mine = range(self._parts * rank // size, self._parts * (rank + 1) // size)
            super().__init__(params, rule, clip=clip, nonfinite=nonfinite, precision=precision, scale=scale)
        if failure.error is not None and not self._met:
            self._agree(failure.error, {})  # the others are at the agreement on leaves, rules and options
        self._agree(failure.error, {})

    def add(self, grads: Any) -> None:
        """Add the gradients of this process's next part; they are copied.

        Parameters
        ----------
        grads
            As for `step` of `gpuopt.Optimizer`. A leaf that is None must be None in all parts.

        Notes
        -----
        An error is kept and raised by `step`, on all processes, so that none waits for this one.

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
        """Update the parameters on all processes with the gradients that were added.

        Parameters
        ----------
        grads
            With one part for each process (``parts=None``): its gradients, in place of `add`.

        Raises
        ------
        RankError
            On all processes, if one has an error, if hyperparameters, steps or leaves without gradient differ, or with
            ``nonfinite="raise"`` if a gradient has a NaN or an infinity. Nothing is changed then, and the added gradients
            are dropped. After a time-out the process that caused it is unknown.

        """
        with self._lock:
            failure = Failure()
            view: dict[str, Any] = {}
            nodes: list[tuple[Node, list[Any]]] = []
            room: dict[Any, Any] = {}
            with failure:
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
            present = self._added.present or [False] * len(self._arrays)
            self._forget()
            self._agree(failure.error, view, self.wish)
            self._step_together(nodes, present, scalars, limit, room)

    def _present(self, present: Sequence[bool]) -> dict[int, Any]:
        """Leaves with a gradient, as flat arrays by index."""
        return {i: flat for i, (flat, there) in enumerate(zip(self._layout.flat, present, strict=True)) if there}

    def _step_together(
        self,
        nodes: list[tuple[Node, list[Any]]],
        present: Sequence[bool],
        scalars: list[dict[str, float]],
        limit: float,
        room: Mapping[Any, Any],
    ) -> None:
        """Add the gradients of all, clip, prepare the update, agree, write it, and exchange the parameters."""
        buckets = [k for k, b in enumerate(self._layout.buckets) if any(present[piece.leaf] for piece in b.pieces)]
        failure = Failure()
        gradients = self._reduction(nodes, buckets, failure)
        ready = [
            self._gradient(gradients, k, piece) if present[piece.leaf] else None for k, piece in self._layout.segments
        ]
        with failure:
            self._step.bind(ready, self._layout.own, lambda _i, g, _p: g)
        loss = self._loss
        carried = [{name: h[name] for name in own} for own, h in zip(self._carried, scalars, strict=True)]
        if self._looks:
            verdict = self._judged(ready, limit, failure)
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
            self._reduced(scalars, present, failure)
        calls: list[Callable[[], object]] = []
        with failure:
            calls = self._step.prepare(ready, scalars, storage.key_of(self._precision, self._steps))
        self._agree(failure.error, {})
        count_up = partial(vars(self).update, _steps=self._steps + 1, _carried=carried, _loss=loss)
        in_one_go((*calls, count_up), self._step.restoring())
        if self._shard:
            self._layout.spread(self._present(present), room)

    def _judged(self, ready: list[Any], limit: float, failure: Failure) -> Verdict:
        """Return the norms of the gradients and whether they are finite, once all processes agree."""
        verdict: Verdict | None = None
        chunks = self._layout.of_chunks(3, partial(self._step.chunk_sums, ready), failure)
        with failure:
            verdict = judge(self._layout.by_leaf(chunks), self._clip_by, limit, self._loss[0])
        self._agree(failure.error, {"norm": verdict and verdict.norm})
        assert verdict is not None
        return verdict

    @property
    def scale(self) -> float:
        """As `gpuopt.Optimizer.scale`, the same on all processes; it does not wait for a GPU."""
        return self._loss[0] if isinstance(self._scale, DynamicScale) else super().scale

    @property
    def scale_array(self) -> Any:
        """`scale` as a 0-dimensional NumPy array."""
        return np.array(self.scale)

    def rows_of(self, own: NDArray[np.float64]) -> NDArray[np.float64]:
        """Gather rows of numbers, one row for each part, from all processes; collective.

        Parameters
        ----------
        own
            The rows of this process's parts, of shape (parts of this process, columns).

        Returns
        -------
        numpy.ndarray
            The rows of all parts, of shape (parts, columns).

        """
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
        """The evaluation array of each segment, and for each leaf whether it differs from the parameter."""
        last = [rule.at(max(self._steps - 1, 0)) | own for rule, own in zip(self._rules, self._carried, strict=True)]
        found = self._step.evaluation(last)
        differ = np.zeros(len(self._arrays), np.int64)
        for (_, piece), new, p in zip(self._layout.segments, found, self._layout.own, strict=True):
            differ[piece.leaf] |= new is not p
        return found, differ

    def with_params(self, params: Any) -> NoReturn:  # noqa: ARG002
        """Not supported on several processes: save, make another optimizer, load."""
        raise TypeError("an optimizer of several processes keeps its leaves; gpuopt.save and another optimizer go on")

    def __getstate__(self) -> NoReturn:
        """Neither pickled nor copied: the optimizers of the other processes would not be."""
        raise TypeError("an optimizer of several processes cannot be pickled or copied; gpuopt.save writes a file")

    def __repr__(self) -> str:
        """As `gpuopt.Optimizer`, with the rank."""
        return f"{super().__repr__()[:-1]}, rank {self._transport.rank} of {self._transport.size})"

    # ---- gradients

    def _forget(self) -> None:
        """Drop the added gradients."""
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

    def _reduced(self, scalars: Sequence[Mapping[str, float]], present: Sequence[bool], failure: Failure) -> None:
        """Compute, pass by pass, the sums over whole leaves that the rules need."""
        with failure:
            self._step.begin(scalars, present)
        for k, width in enumerate(self._step.widths):
            chunks = self._layout.of_chunks(width, partial(self._step.reduce, k), failure)
            with failure:
                self._step.know(k, chunks)

    def _gradient(self, gradients: Sequence[Any], k: int, piece: Piece) -> Any:
        """The gradient of a segment; of an empty segment an empty array."""
        if k == NO_BUCKET:
            return self._layout.flat[piece.leaf][:0]
        return None if gradients[k] is None else gradients[k][piece.place]

    def _blame(self, nodes: list[tuple[Node, list[Any]]], bad: list[int]) -> NoReturn:
        """Raise the same error on all processes, which names the ranks with gradients that are not finite."""

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
