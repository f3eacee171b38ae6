"""The optimizer of many processes: gradients come in parts, each process updates its share, all have the parameters."""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, TypeVar

import numpy as np

import gpuopt
from gpuopt import leaves, states, tuning
from gpuopt.arrays import current, dtype_of, is_cupy, is_numpy, place, to_numpy, zeros_like
from gpuopt.distributed.agreement import RankError, agree, listed
from gpuopt.distributed.cuts import Piece, buckets_of, order_of_chunks
from gpuopt.distributed.reduction import Reduction, Store, empty
from gpuopt.distributed.sums import whole_within
from gpuopt.distributed.transport import connect
from gpuopt.engines import array, memory
from gpuopt.engines.complexes import slot_dtype
from gpuopt.engines.interrupts import in_one_go
from gpuopt.engines.norms import judge
from gpuopt.engines.place import host
from gpuopt.engines.step import Step
from gpuopt.engines.table import CHUNK
from gpuopt.engines.trace import traced
from gpuopt.engines.whole import Parts
from gpuopt.gradients import Clip, clipped
from gpuopt.optimizer import OWN
from gpuopt.optimizer import Optimizer as Alone
from gpuopt.rules.slots import Given, is_number, starts
from gpuopt.trees import flatten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from gpuopt.distributed.sums import Node
    from gpuopt.distributed.transport import Way
    from gpuopt.groups import Rules
    from gpuopt.optimizer import Nonfinite
    from gpuopt.rules.base import Hyper, Rule

Role: TypeAlias = Literal["equal", "leader", "follower"]
LED = ("_load", "_retune", "_save", "evaluation", "state_dict")
"""What rank 0 does and the others follow in."""
NO_BUCKET = -1
"""Of a segment without elements."""
T = TypeVar("T")


class Optimizer(Alone):
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
    clip, nonfinite
        As for `gpuopt.Optimizer`; of the gradients of the whole batch.
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
        timeout: float | None = None,
        transport: Way = "auto",
    ) -> None:
        _, found = flatten(params)
        self._transport = connect(comm, next(iter(found), None), transport, timeout)
        rank, size = self._transport.rank, self._transport.size
        self._shard, self._average = bool(shard), bool(average)
        self._parts = size if parts is None else parts
        self._takes_gradients = parts is None
        self._met = False
        self._lock = threading.RLock()
        self._kept: Exception | None = None
        self._nodes: list[tuple[Node, Store]] = []
        self._count = 0
        self._role: Role = "equal"
        self._announced = 0
        self.wish = self.wished = 0
        self.measures = False
        self._present: list[bool] | None = None
        self._stores: list[Store] = []
        error: Exception | None = None
        try:
            if not type(self._parts) is int or self._parts < size:
                raise ValueError(  # noqa: TRY301 - all processes are told
                    f"parts: {parts!r}, expected a whole number of at least {size}, one for each process"
                )
            self.mine = range(self._parts * rank // size, self._parts * (rank + 1) // size)
            super().__init__(params, rule, clip=clip, nonfinite=nonfinite)
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
                self._add(self._checked_gradients(grads))
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
            try:
                nodes = self._given(grads)
                scalars = self._step.scalars(self._steps, self._carried)
                limit = self._clip.limit.at(self._steps) if self._clip else 0.0
                self._held.check_all()
                self._reduction.reserve()
                missing = [self._tree.name(i, "grads") for i, there in enumerate(self._present or ()) if not there]
                view = {
                    "steps": self._steps,
                    "hyperparameters": dict(zip(self._patterns, scalars, strict=True)),
                    "clip": limit,
                    "without gradient": missing,
                }
            except Exception as caught:  # noqa: BLE001 - all processes are told
                error = caught
            present = self._present or [False] * len(self._arrays)
            self._forget()
            self._agree(error, view, self.wish)
            self._take(nodes, present, scalars, limit)

    def _take(
        self,
        nodes: list[tuple[Node, list[Any]]],
        present: Sequence[bool],
        scalars: list[dict[str, float]],
        limit: float,
    ) -> None:
        """Exchange and add up, look at the sums, agree once more, update, and exchange the parameters."""
        buckets = [k for k, b in enumerate(self._buckets) if any(present[piece.leaf] for piece in b.pieces)]
        gradients, error = self._reduction(nodes, buckets)
        ready = [self._gradient(gradients, k, piece) if present[piece.leaf] else None for k, piece in self._segments]
        verdict = None
        try:
            self._step.bind(ready, self._own, lambda _i, g, _p: g)
        except Exception as caught:  # noqa: BLE001 - all processes are told
            error = error or caught
        if self._looks:
            sums, error = self._measured(ready, error)
            verdict = judge(sums, self._clip_by, limit)
        self._agree(error, {"norm": verdict and verdict.norm})
        if verdict is not None:
            self._step.decided(verdict.norm, verdict.scales[[piece.leaf for _, piece in self._segments]])
            bad = np.flatnonzero(~verdict.finite).tolist() if self._nonfinite != "ignore" else []
            if bad and self._nonfinite == "raise":
                self._blame(nodes, bad)
            if bad:
                vars(self).update(_skipped=self._skipped + 1, _steps=self._steps + 1)
                return
        if self._step.widths:
            self._agree(self._reduced(scalars, present), {})
        carried = [{name: h[name] for name in own} for own, h in zip(self._carried, scalars, strict=True)]
        self._step(ready, scalars, partial(vars(self).update, _steps=self._steps + 1, _carried=carried))
        if self._shard:
            self._spread({i: flat for i, flat in enumerate(self._flat) if present[i]})

    # ---- one process leads, the others follow

    @property
    def rank(self) -> int:
        """See the class."""
        return self._transport.rank

    @property
    def size(self) -> int:
        """See the class."""
        return self._transport.size

    @property
    def leads(self) -> bool:
        """Whether others follow what is done here."""
        return self._role == "leader"

    @contextlib.contextmanager
    def leading(self, role: Role = "leader") -> Iterator[None]:
        """On rank 0: what is called in here, others that `follow` do, too; or again nobody, as an "equal"."""
        before, self._role = self._role, role
        try:
            yield
        finally:
            self._role = before

    def say(self, word: str, *args: Any) -> None:
        """On rank 0: let the others, which `follow`, hear a word of the caller's."""
        self._transport.say((word, args))

    def follow(self) -> tuple[str, tuple[Any, ...]]:
        """On all but rank 0: do as rank 0 does, until it says a word of its own, which is returned with what belongs to it.

        Raises
        ------
        RankError
            If the word is "broken": with what belongs to it as the message.

        """
        before, self._role = self._role, "follower"
        try:
            while True:
                word, args = self._transport.hear()
                if word == "broken":
                    raise RankError(args[0], (0,))
                if word not in LED:
                    return word, args
                with contextlib.suppress(RankError):  # which rank 0 has as well, and says what follows
                    getattr(self, word)(*args)
        finally:
            self._role = before

    @contextlib.contextmanager
    def _led(self, word: str, *args: Any) -> Iterator[None]:
        """Let those who follow do the same, unless this is part of what they do already."""
        with self._lock:
            if self._role == "leader" and not self._announced:
                self.say(word, *args)
            self._announced += 1
            try:
                yield
            finally:
                self._announced -= 1

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
            last = [
                rule.at(max(self._steps - 1, 0)) | own for rule, own in zip(self._rules, self._carried, strict=True)
            ]
            found = self._step.evaluation(last)
            differ = np.zeros(len(self._arrays), np.int64)
            for (_, piece), new, p in zip(self._segments, found, self._own, strict=True):
                differ[piece.leaf] |= new is not p
            differ = self._transport.highest(differ)
            if not differ.any():
                return self._params
            whole = {i: _copy(p) if differ[i] else p for i, p in enumerate(self._arrays)}
            self._fill({i: whole[i] for i in np.flatnonzero(differ).tolist()}, found)
            return self._tree.build(list(whole.values()))

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a run needs to go on, as `gpuopt.Optimizer.state_dict`; collective.

        The state is put together on every process: `gpuopt.save` needs the memory for it on rank 0 only.
        """
        with self._led("state_dict"):
            self._held.check_all()
            return self._content(self._whole if self._role == "equal" else self._whole_at_first)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, the same on every process; see `gpuopt.Optimizer.load_state_dict`; collective."""
        if self._role == "leader":
            self._load(lambda: (state, None))
        else:
            self._restore(state, None, lambda x: x)

    def with_params(self, params: Any) -> NoReturn:  # noqa: ARG002
        """Not for several processes: save, make another one, load."""
        raise TypeError("an optimizer of several processes keeps its leaves; gpuopt.save and another optimizer go on")

    def __getstate__(self) -> NoReturn:
        """Neither pickled nor copied: the others would not know."""
        raise TypeError("an optimizer of several processes cannot be pickled or copied; gpuopt.save writes a file")

    def __repr__(self) -> str:
        """As alone, and which process this is."""
        return f"{super().__repr__()[:-1]}, rank {self._transport.rank} of {self._transport.size})"

    # ---- what is made once

    def _setting(self, rules: list[Rule]) -> dict[str, Any]:
        """What must be the same on all processes."""
        by_pattern = dict(zip(self._patterns, rules, strict=True))
        return {
            "gpuopt": gpuopt.__version__,
            "leaves": {
                path: (a.shape, str(a.dtype), _axes(a)) for path, a in zip(self._tree.paths, self._arrays, strict=True)
            },
            "rules": {pattern: rule.name for pattern, rule in by_pattern.items()},
            "hyperparameters": {pattern: rule.at(0) for pattern, rule in by_pattern.items()},
            "clip": self._clip_by if self._clip is None else (self._clip.by, self._clip.limit.at(0)),
            "nonfinite": self._nonfinite,
            "shard": self._shard,
            "parts": self._parts,
            "average": self._average,
            "transport": self._transport.way,
        }

    def _read_leaves(self) -> None:
        super()._read_leaves()
        places = sorted({place(a) for a in self._arrays})
        if len(places) > 1 or not (is_numpy(self._arrays[0]) or is_cupy(self._arrays[0])):
            raise TypeError(f"params: arrays of {' and '.join(places)}, expected NumPy's, or CuPy's on one device")
        for i, a in enumerate(self._arrays):
            name = self._tree.name(i, "params")
            if not memory.is_without_gaps(a):
                raise ValueError(f"{name}: strides {a.strides}, expected an array without gaps; copy it")
        rank, size = self._transport.rank, self._transport.size
        self._flat = [_flat(a, a) for a in self._arrays]
        self._buckets = buckets_of([a.size for a in self._arrays], [str(a.dtype) for a in self._arrays], size)
        self._shares: list[list[tuple[int, Piece]]] = [
            [(k, piece) for k, bucket in enumerate(self._buckets) for piece in bucket.pieces_of(r)] for r in range(size)
        ]
        self._segments = list(self._shares[rank]) if self._shard else [one for own in self._shares for one in own]
        # Of each leaf a segment at least: so all processes compile the same, and know the numbers of all leaves.
        there = {piece.leaf for _, piece in self._segments}
        self._segments += [(NO_BUCKET, Piece(i, 0, 0, 0)) for i in range(len(self._arrays)) if i not in there]
        self._first_segment = {piece.leaf: s for s, (_, piece) in reversed(list(enumerate(self._segments)))}
        self._own = [self._flat[piece.leaf][piece.start : piece.stop] for _, piece in self._segments]
        self._chunk_order, self._chunk_counts = order_of_chunks(self._buckets, size, len(self._arrays))
        self._chunk_cuts = np.cumsum(
            [0, *(sum(-(-piece.size // CHUNK) for _, piece in own) for own in self._shares)]
        ).tolist()
        self._reduction = Reduction(
            self._transport,
            self._buckets,
            self._parts,
            self._arrays[0],
            average=self._average,
            everywhere=not self._shard,
        )

    def _prepared(self, rules: list[Rule], before: Step | None = None) -> Step:
        for pattern, rule in zip(self._patterns, rules, strict=True):
            program = traced(rule)
            if program is None:
                raise TypeError(
                    f"rule {pattern!r}: {rule.name} looks at whole leaves, of which a process has only parts; expected a "
                    "rule whose update can be traced: elementwise operations, sums, norms and totals"
                )
            if not program.is_elementwise or any(map(is_number, starts(rule.slots).values())):
                host()  # who works numbers out
        if not self._met:
            self._agree(None, self._setting(rules))
            self._met = True
            self._spread(dict(enumerate(self._flat)), from_first=True)  # before slots are made that begin as copies
        groups = [self._groups[piece.leaf] for _, piece in self._segments]
        slots = self._with_numbers(rules, before.slots if before else self._given_slots(rules))
        idle = [s for s, (_, piece) in enumerate(self._segments) if piece.leaf not in self._rows]
        seen = clipped(rules, self._clip)
        parts = Parts([piece.leaf for _, piece in self._segments], [a.size for a in self._arrays])
        return Step(self._own, self._own, groups, seen, slots, self._engine, None, before, idle, parts=parts)

    def _with_numbers(self, rules: list[Rule], slots: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Slots of segments, with those that are numbers of their leaf: one for all segments of a leaf."""
        found = [dict(own) for own in slots]
        for i, a in enumerate(self._arrays):
            of_leaf = [s for s, (_, piece) in enumerate(self._segments) if piece.leaf == i]
            for name, slot in starts(rules[self._groups[i]].slots).items():
                if is_number(slot) and name not in found[of_leaf[0]]:
                    number = empty(a, 1, "float64").reshape(())
                    number[...] = slot.start
                    for s in of_leaf:
                        found[s][name] = number
        return found

    def _given_slots(self, rules: list[Rule]) -> list[dict[str, Any]]:
        """Slots that start as the caller's arrays: those are like a leaf, not like a segment of one."""
        whole = {
            (i, name): _flat(array.started(name, a, i, rules[self._groups[i]]), a)
            for i, a in enumerate(self._arrays)
            for name, slot in starts(rules[self._groups[i]].slots).items()
            if isinstance(slot, Given)
        }
        return [
            {name: _copy(x[piece.start : piece.stop]) for (i, name), x in whole.items() if i == piece.leaf}
            for _, piece in self._segments
        ]

    @property
    def _clip_by(self) -> str | None:
        return None if self._clip is None or self._clip.by == "value" else self._clip.by

    @property
    def _looks(self) -> bool:
        return self.measures or self._clip_by is not None or self._nonfinite != "ignore"

    # ---- gradients

    def _forget(self) -> None:
        """Drop what was added."""
        self._kept, self._nodes, self._count, self._present = None, [], 0, None

    def _checked_gradients(self, grads: Any) -> list[Any]:
        """Of each leaf the gradient as a flat array in the order of the parameter's memory, or None."""
        found = []
        for i, (g, p) in enumerate(zip(self._tree.leaves_of(grads, "grads"), self._arrays, strict=True)):
            checked = None if g is None or i not in self._rows else leaves.gradient(g, p, self._tree, i)
            found.append(None if checked is None else _flat(checked, p))
        present = [g is not None for g in found]
        for i, (now, before) in enumerate(zip(present, self._present or present, strict=True)):
            if now != before:
                name = self._tree.name(i, "grads")
                was, has = ("None", "an array") if now else ("an array", "None")
                raise ValueError(
                    f"{name}: {has} in part {self.mine[self._count]}, expected {was} as in the part before"
                )
        self._present = present
        return found

    def _add(self, flat: list[Any]) -> None:
        if self._count == len(self.mine):
            raise ValueError(
                f"add: called more often than the {len(self.mine)} parts of this process, expected once for each i of mine"
            )
        part, root = self.mine[self._count], (0, self._parts)
        self._count += 1
        node = (part, part + 1)
        if self._nodes and _is_whole(whole := (self._nodes[-1][0][0], part + 1), root):
            self._nodes[-1][1].add(flat)  # no need for memory of its own
            self._nodes[-1] = (whole, self._nodes[-1][1])
        else:
            depth = len(self._nodes)
            if depth == len(self._stores):
                self._stores.append(Store(self._buckets, self._arrays[0]))
            self._stores[depth].copy(flat)
            self._nodes.append((node, self._stores[depth]))
        while len(self._nodes) > 1 and _is_whole(whole := (self._nodes[-2][0][0], part + 1), root):
            store = self._nodes[-2][1]
            store.merge(self._nodes[-1][1], self._present or [])
            self._nodes[-2:] = [(whole, store)]

    def _given(self, grads: Any) -> list[tuple[Node, list[Any]]]:
        """The sums of this process's parts, each a flat array for each bucket."""
        if self._kept is not None:
            raise self._kept
        if grads is OWN:
            if self._count != len(self.mine):
                raise ValueError(
                    f"step: {self._count} of this process's {len(self.mine)} parts were added, expected one `add` for each "
                    "i of mine"
                )
            return [(node, store.buckets) for node, store in self._nodes]
        if not self._takes_gradients:
            raise ValueError("step: gradients, but parts was given: expected `add` for each i of mine, then step()")
        if self._count:
            raise ValueError("step: gradients, but others were added; expected one or the other")
        flat = self._checked_gradients(grads)
        if not self._stores:
            self._stores.append(Store(self._buckets, self._arrays[0]))
        return [((self.mine[0], self.mine[0] + 1), self._stores[0].borrowed(flat))]

    def _measured(self, ready: list[Any], error: Exception | None) -> tuple[NDArray[np.float64], Exception | None]:
        """The sums of squares of each leaf, from those of the chunks of all processes, in order."""
        rank = self._transport.rank
        chunks = np.zeros((self._chunk_cuts[-1], 3))
        own = chunks[slice(*self._chunk_cuts[rank : rank + 2])] if self._shard else chunks
        try:
            found = self._step.chunk_sums(ready)
            if found:
                own[:] = np.concatenate(found)
        except Exception as caught:  # noqa: BLE001 - all processes are told
            error = error or caught
        if self._shard:
            self._transport.gather(chunks.reshape(-1), [3 * cut for cut in self._chunk_cuts])
        sums = np.zeros((len(self._arrays), 3))
        with np.errstate(all="ignore"):
            np.add.at(sums, np.repeat(np.arange(len(sums)), self._chunk_counts), chunks[self._chunk_order])
        return sums, error

    def _reduced(self, scalars: Sequence[Mapping[str, float]], present: Sequence[bool]) -> Exception | None:
        """Add up, pass by pass, what the rules need of whole leaves; return what went wrong in this process."""
        rank = self._transport.rank
        error: Exception | None = None
        try:
            self._step.begin(scalars, present)
        except Exception as caught:  # noqa: BLE001 - all processes are told
            error = caught
        for k, width in enumerate(self._step.widths):
            chunks = np.zeros((self._chunk_cuts[-1], width))
            own = chunks[slice(*self._chunk_cuts[rank : rank + 2])] if self._shard else chunks
            try:
                own[:] = np.concatenate(self._step.reduce(k))
            except Exception as caught:  # noqa: BLE001 - all processes are told
                error = error or caught
            if self._shard:
                self._transport.gather(chunks.reshape(-1), [width * cut for cut in self._chunk_cuts])
            try:
                self._step.know(k, chunks[self._chunk_order])
            except Exception as caught:  # noqa: BLE001 - all processes are told
                error = error or caught
        return error

    def _gradient(self, gradients: Sequence[Any], k: int, piece: Piece) -> Any:
        """The gradient of a segment, which may have no elements."""
        if k == NO_BUCKET:
            return self._flat[piece.leaf][:0]
        return None if gradients[k] is None else gradients[k][piece.place]

    def _blame(self, nodes: list[tuple[Node, list[Any]]], bad: list[int]) -> NoReturn:
        """Raise the error of gradients that are not finite: on all processes the same."""
        own = []
        for i in bad:
            places = [(k, piece) for k, b in enumerate(self._buckets) for piece in b.pieces if piece.leaf == i]
            if not all(np.isfinite(to_numpy(found[k][piece.place])).all() for _, found in nodes for k, piece in places):
                own.append(self._tree.name(i, "grads"))
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

    def _agree(self, error: Exception | None, view: Mapping[str, Any], wish: int = 0) -> None:
        if self._transport.size == 1 and error is not None:
            raise error
        self.wished = max(self.wished, agree(self._transport, error, view, wish))

    # ---- whole arrays

    def _spread(self, flat: Mapping[int, Any], *, from_first: bool = False) -> None:
        """Have all processes know all of these leaves, of which each has its share (or rank 0 everything)."""
        if self._transport.size == 1:
            return
        move = self._transport.broadcast if from_first else self._transport.gather
        for bucket in self._buckets:
            pieces = [piece for piece in bucket.pieces if piece.leaf in flat]
            if not pieces:
                continue
            cuts = () if from_first else (bucket.cuts,)
            if len(bucket.pieces) == 1:
                move(flat[pieces[0].leaf][pieces[0].start : pieces[0].stop], *cuts)
                continue
            for dtype in dict.fromkeys(flat[piece.leaf].dtype for piece in pieces):  # of slots there may be several
                own = [piece for piece in pieces if flat[piece.leaf].dtype == dtype]
                packed = empty(self._arrays[0], bucket.size, dtype)
                for piece in own:
                    packed[piece.place] = flat[piece.leaf][piece.start : piece.stop]
                move(packed, *cuts)
                for piece in own:
                    flat[piece.leaf][piece.start : piece.stop] = packed[piece.place]

    def _fill(self, whole: Mapping[int, Any], segments: Sequence[Any]) -> None:
        """Fill arrays, by leaf, from what each process has of its segments."""
        flat = {i: _flat(x, x) for i, x in whole.items()}
        for (_, piece), x in zip(self._segments, segments, strict=True):
            if piece.leaf in flat:
                flat[piece.leaf][piece.start : piece.stop] = x
        if self._shard:
            self._spread(flat)

    def _whole(self, name: str, members: list[int]) -> dict[int, Any]:
        """A slot of these leaves, put together on every process."""
        found = {i: zeros_like(self._arrays[i], self._slot_dtype(name, i)) for i in members}
        self._fill(found, [slots.get(name) for slots in self._step.slots])
        return found

    def _whole_at_first(self, name: str, members: list[int]) -> dict[int, Any]:
        """The same in the memory of the host, on rank 0 alone."""
        if not self._shard or self._transport.size == 1:
            return self._whole(name, members) if self._transport.rank == 0 else {}
        found: dict[int, Any] = {}
        dtypes = {i: self._slot_dtype(name, i) for i in members}
        for dtype in dict.fromkeys(dtypes.values()):
            found |= self._gathered(name, [i for i in members if dtypes[i] == dtype], dtype)
        return found

    def _slot_dtype(self, name: str, i: int) -> Any:
        """The dtype of a slot of a leaf."""
        return slot_dtype(self._rules[self._groups[i]], name, self._arrays[i])

    def _gathered(self, name: str, members: list[int], dtype: Any) -> dict[int, Any]:
        """The same, of leaves whose slots have this dtype."""
        first = self._transport.rank == 0
        found = {i: np.zeros_like(to_numpy(self._arrays[i]), dtype) for i in members} if first else {}
        flat = {i: _flat(x, x) for i, x in found.items()}
        for k, bucket in enumerate(self._buckets):
            if not any(piece.leaf in members for piece in bucket.pieces):
                continue
            share = bucket.share(self._transport.rank)
            base = 0 if first else share.start
            packed = np.zeros(bucket.size if first else share.stop - share.start, dtype)
            for (own, piece), slots in zip(self._segments, self._step.slots, strict=True):
                if own == k and piece.leaf in members:
                    packed[piece.offset - base :][: piece.size] = to_numpy(slots[name])
            self._transport.gather_at_first(packed, bucket.cuts)
            if first:
                for piece in bucket.pieces:
                    if piece.leaf in flat:
                        flat[piece.leaf][piece.start : piece.stop] = packed[piece.place]
        return found

    def _content(self, whole: Callable[[str, list[int]], dict[int, Any]]) -> dict[str, Any]:
        declared = [tuple(starts(self._rules[group].slots)) for group in self._groups]
        state: dict[str, dict[str, Any]] = {path: {} for path in self._tree.paths}
        for name in dict.fromkeys(name for names in declared for name in names):
            members = [i for i, names in enumerate(declared) if name in names]
            numbers = [i for i in members if is_number(starts(self._rules[self._groups[i]].slots)[name])]
            found = whole(name, [i for i in members if i not in numbers])
            found |= {i: self._step.slots[self._first_segment[i]][name] for i in numbers}
            for i, x in found.items():
                state[self._tree.paths[i]][name] = x
        return {
            "steps": self._steps,
            "rules": states.rules_to_plain(self._patterns, self._rules, self._tuned, self._carried),
            "params": dict(zip(self._tree.paths, self._arrays, strict=True)),
            "state": {
                path: {name: state[path][name] for name in names if name in state[path]}
                for path, names in zip(self._tree.paths, declared, strict=True)
            },
        }

    # ---- files: rank 0 reads and writes

    def _retune(self, tuned: list[dict[str, Hyper]]) -> None:
        with self._led("_retune", tuned):
            super()._retune(tuned)

    def _save(self, write: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        with self._led("_save"):
            self._agree(None, {"steps": self._steps})
            error: Exception | None = None
            content = self._content(self._whole_at_first)
            if self._transport.rank == 0:
                assert write is not None
                try:
                    write(content)
                except Exception as caught:  # noqa: BLE001 - all processes are told
                    error = caught
            self._agree(error, {})

    def _load(self, read: Callable[[], tuple[Mapping[str, Any], T]] | None = None) -> T:
        with self._led("_load"):
            return self._loaded(read)

    def _loaded(self, read: Callable[[], tuple[Mapping[str, Any], T]] | None) -> T:
        content: Any = None
        more: Any = None
        error: Exception | None = None
        if self._transport.rank == 0:
            assert read is not None
            try:
                content, more = read()
            except Exception as caught:  # noqa: BLE001 - all processes are told
                error = caught
        self._agree(error, {})
        skeleton = content and {
            **content,
            "params": {path: _outline(x) for path, x in content["params"].items()},
            "state": {path: {name: _outline(x) for name, x in own.items()} for path, own in content["state"].items()},
        }
        skeleton, told = self._transport.told((skeleton, more))[0]

        def arrived(x: Any) -> Any:
            """What rank 0 has read."""
            host = np.ascontiguousarray(to_numpy(x)) if isinstance(x, np.ndarray) else np.empty(x.shape, x.dtype)
            if host.size:
                self._transport.broadcast(host.reshape(-1))
            return host

        self._restore(skeleton, content, arrived)
        return told  # type: ignore[no-any-return]

    def _fitting(self, state: Mapping[str, Any]) -> tuple[Any, list[Rule], dict[tuple[str, ...], Any], Any]:
        """What was tuned, the rules with it, the arrays by key, and the carried numbers of a state; or raise ValueError."""
        states.check_nesting(state)
        problems: list[str] = []
        tuned = states.tuned_of(state, self._patterns, self._original, problems)
        rules = self._rules if problems else tuning.rules_with(tuned, self._original)
        states.accumulated_of(state, 1, problems)
        expected = states.expected_arrays(self._tree.paths, self._arrays, self._groups, rules, slot_dtype)
        given = states.arrays_of(state, expected, lambda x, _: x, problems)
        carried = states.carried_of(state, self._by_pattern, problems)
        if problems:
            raise states.misfit(problems)
        return tuned, rules, given, carried

    def _restore(self, state: Mapping[str, Any], content: Any, arrived: Callable[[Any], Any]) -> None:
        """Go on from a state; ``arrived`` makes whole arrays of those in ``content``, or else in ``state``, one at a time."""
        error: Exception | None = None
        fitting: Any = None
        try:
            with self._lock:
                self._held.check_all()
            fitting = self._fitting(state)
        except Exception as caught:  # noqa: BLE001 - all processes are told
            error = caught
        self._agree(error, {"steps": state.get("steps") if isinstance(state, dict) else None})
        tuned, rules, given, carried = fitting
        news: list[tuple[Any, Any]] = []
        with self._lock:
            step, changes = self._with_rules(rules, tuned)
            for key in sorted(given):
                i = self._tree.paths.index(key[1])
                source = given[key] if content is None else _at(content, key)
                try:
                    host_array = to_numpy(arrived(source))
                    if key[0] == "state" and is_number(starts(rules[self._groups[i]].slots)[key[2]]):
                        news.append((step.slots[self._first_segment[i]][key[2]], host_array.reshape(())))
                        continue
                    flat = memory.in_memory_order(host_array, self._arrays[i])
                    if key[0] == "params":
                        news.append((self._flat[i], flat))
                    else:
                        news += [
                            (step.slots[s][key[2]], flat[piece.start : piece.stop].copy())
                            for s, (_, piece) in enumerate(self._segments)
                            if piece.leaf == i
                        ]
                except MemoryError as caught:
                    error = error or caught
            try:
                for target, x in news:
                    changes += step.copying(target, _like(target, x))
            except Exception as caught:  # noqa: BLE001 - all processes are told
                error = error or caught
            self._agree(error, {})
            changes.append(partial(vars(self).update, _steps=int(state["steps"]), _carried=carried))
            in_one_go(changes, step.restoring())


def _is_whole(node: Node, root: Node) -> bool:
    """Whether this is a sum of the tree."""
    return whole_within(root, *node) == [node]


def _axes(a: Any) -> tuple[int, ...]:
    """Axes from the outermost to the innermost in memory."""
    return tuple(sorted(range(a.ndim), key=lambda axis: -a.strides[axis]))


def _flat(a: Any, like: Any) -> Any:
    """Elements of an array, in the dtype and in the order of memory of another one: a view, where it is laid out so."""
    with np.errstate(all="ignore"), current(like):
        if a.dtype != like.dtype:
            a = a.astype(like.dtype)
        return a.transpose(_axes(like)).reshape(-1)


def _copy(a: Any) -> Any:
    with current(a):
        return a.copy(order="K")


def _like(target: Any, x: NDArray[Any]) -> Any:
    """A NumPy array as one of the library and device of another."""
    if is_numpy(target):
        return x
    new = empty(target, x.size, str(x.dtype)).reshape(target.shape)
    new.set(x.reshape(target.shape))
    return new


def _outline(x: Any) -> Any:
    """Shape and dtype of an array."""
    return SimpleNamespace(shape=tuple(x.shape), dtype=dtype_of(x))


def _at(content: Mapping[str, Any], key: tuple[str, ...]) -> Any:
    """An array of a state dict."""
    return content["params"][key[1]] if key[0] == "params" else content["state"][key[1]][key[2]]
