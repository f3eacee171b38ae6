"""Saving and loading: the shares of the state are put together for a file or a dict, and divided again."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gpuopt import states, tuning
from gpuopt.arrays import dtype_of, is_numpy, to_numpy, zeros_like
from gpuopt.distributed.agreement import Failure, agreed
from gpuopt.distributed.leading import Led
from gpuopt.distributed.reduction import empty
from gpuopt.engines import memory, storage
from gpuopt.engines.complexes import slot_dtype
from gpuopt.engines.interrupts import in_one_go
from gpuopt.engines.norms import DynamicScale
from gpuopt.engines.storage import LOW, Stochastic
from gpuopt.optimizer import Optimizer as Alone
from gpuopt.rules.slots import is_number, starts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from gpuopt.distributed.layout import Layout
    from gpuopt.rules.base import Hyper, Rule

T = TypeVar("T")


class Saved(Led, Alone):
    """Base class of an optimizer of many processes: saving and loading. Rank 0 reads and writes files."""

    _layout: Layout
    _loss: tuple[float, float]
    _shard: bool

    def state_dict(self) -> dict[str, Any]:
        """Return parameters, state and hyperparameters, as `gpuopt.Optimizer.state_dict`; collective.

        Every process gets the whole state; `gpuopt.save` needs memory for it on rank 0 only.
        """
        with self._led("state_dict"):
            agreed(self._transport, self._held.check_all)
            return self._content(self._whole if self._role == "equal" else self._whole_at_first)

    def _state_of_now(self) -> tuple[dict[str, Any], Callable[[], dict[str, int]]]:
        """See `Stateful._state_of_now`; the count is the host's, and part of the state already."""
        return self.state_dict(), dict

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state dict, the same on every process; see `gpuopt.Optimizer.load_state_dict`; collective."""
        if self._role == "leader":
            self._load(lambda: (state, None))
        else:
            self._restore(state)

    def _retune(self, tuned: list[dict[str, Hyper]]) -> None:
        with self._led("_retune", tuned):
            super()._retune(tuned)

    def _save(self, write: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        with self._led("_save"):
            self._agree(None, {"steps": self._steps})
            failure = Failure()
            content = self._content(self._whole_at_first)
            if self.rank == 0:
                assert write is not None
                with failure:
                    write(content)
            self._agree(failure.error, {})

    def _load(self, read: Callable[[], tuple[Mapping[str, Any], T]] | None = None) -> T:
        with self._led("_load"):
            return self._loaded(read)

    def _loaded(self, read: Callable[[], tuple[Mapping[str, Any], T]] | None) -> T:
        def found() -> tuple[Any, Any, Any]:
            if self.rank:
                return None, None, None
            assert read is not None
            state, more = read()
            content = _each(state, lambda x: np.asarray(to_numpy(x), order="C"))
            return content, _each(content, _outline), more

        content, *known = agreed(self._transport, found)
        skeleton, told = self._transport.told(known)[0]
        self._restore(skeleton, content, is_told=True)
        return told  # type: ignore[no-any-return]

    def _fitting(self, state: Mapping[str, Any]) -> tuple[Any, list[Rule], dict[tuple[str, ...], Any], dict[str, Any]]:
        """Return tuned hyperparameters, rules, arrays and numbers of a state; raise ValueError if it does not fit."""
        states.check_nesting(state)
        problems: list[str] = []
        tuned = states.tuned_of(state, self._patterns, self._original, problems)
        rules = self._rules if problems else tuning.rules_with(tuned, self._original)
        states.accumulated_of(state, 1, problems)
        dtypes = partial(slot_dtype, precision=storage.name_of(self._precision))
        expected = states.expected_arrays(self._tree.paths, self._arrays, self._groups, rules, dtypes)
        split = {self._tree.paths[i]: self._arrays[i] for i in self._split}
        expected |= {("state", path, LOW): zeros_like(a, np.uint16) for path, a in split.items()}
        given = states.arrays_of(state, expected, lambda *_: [], problems)
        carried = states.carried_of(state, self._by_pattern, problems)
        numbers: dict[str, Any] = {
            "_carried": carried,
            "_skipped": states.skipped_of(state, problems),
            "_precision": states.precision_of(state, self._precision, problems),
        }
        is_dynamic = isinstance(self._scale, DynamicScale)
        if loss := states.scale_of(state, is_dynamic=is_dynamic, problems=problems):
            numbers["_loss"] = loss
        if problems:
            raise states.misfit(problems)
        return tuned, rules, given, numbers

    def _restore(self, state: Mapping[str, Any], content: Any = None, *, is_told: bool = False) -> None:
        """Restore a state. If ``is_told``, rank 0 sends the arrays of ``content``, and ``state`` has their outlines."""
        with self._lock:
            failure = Failure()
            fitting: Any = None
            with failure:
                self._held.check_all()
                fitting = self._fitting(state)
                step, changes = self._with_rules(fitting[1], fitting[0])
                receives = is_told and content is None
                room = np.empty(max(map(_nbytes, fitting[2].values()), default=0) if receives else 0, np.uint8)
            self._agree(failure.error, {"steps": state.get("steps") if isinstance(state, dict) else None})
            _, rules, given, numbers = fitting
            news: list[tuple[Any, Any]] = []
            for key in sorted(given):
                i = self._tree.paths.index(key[1])
                source = given[key] if content is None else _at(content, key)
                if receives:
                    source = room[: _nbytes(source)].view(source.dtype).reshape(source.shape)
                if is_told and source.size:
                    self._transport.broadcast(source.reshape(-1))
                with failure:
                    host_array = to_numpy(source)
                    if key[0] == "state" and is_number(starts(rules[self._groups[i]].slots).get(key[2])):
                        number = host_array.reshape(()).copy()
                        news.append((step.slots[self._layout.first_segment(i)][key[2]], number))
                        continue
                    flat = memory.in_memory_order(host_array, self._arrays[i])
                    if key[0] == "params":
                        news.append((self._layout.flat[i], flat.copy() if np.may_share_memory(flat, room) else flat))
                    else:
                        news += [
                            (step.slots[s][key[2]], flat[piece.start : piece.stop].copy())
                            for s, (_, piece) in enumerate(self._layout.segments)
                            if piece.leaf == i
                        ]
            with failure:
                changes += step.copying([(target, _like(target, x)) for target, x in news])
            self._agree(failure.error, {})
            changes.append(partial(vars(self).update, numbers, _steps=int(state["steps"])))
            in_one_go(changes, step.restoring())

    def _whole(self, name: str, members: list[int]) -> dict[int, Any]:
        """Return a slot of these leaves, whole on every process."""

        def make() -> dict[int, Any]:
            return {i: zeros_like(self._arrays[i], self._slot_dtype(name, i)) for i in members}

        return self._layout.whole(make, [slots.get(name) for slots in self._step.slots])

    def _whole_at_first(self, name: str, members: list[int]) -> dict[int, Any]:
        """As `_whole`, on rank 0 alone and in the host's memory; empty on the others."""
        if not self._shard or self.size == 1:
            return self._whole(name, [] if self.rank else members)
        found: dict[int, Any] = {}
        dtypes = {i: self._slot_dtype(name, i) for i in members}
        for dtype in dict.fromkeys(dtypes.values()):
            own = [i for i in members if dtypes[i] == dtype]

            def make(own: list[int] = own, dtype: Any = dtype) -> dict[int, Any]:
                return {i: np.zeros_like(to_numpy(self._arrays[i]), dtype) for i in own}

            segments = [slots.get(name) for slots in self._step.slots]
            found |= self._layout.whole_at_first(make, segments, own, dtype)
        return found

    def _slot_dtype(self, name: str, i: int) -> Any:
        """The dtype of a slot of a leaf."""
        way = storage.name_of(self._precision)
        return np.uint16 if name == LOW else slot_dtype(self._rules[self._groups[i]], name, self._arrays[i], way)

    @property
    def _split(self) -> list[int]:
        """Leaves with ``precision="split"``, whose lower 16 bits are a hidden slot."""
        way = storage.name_of(self._precision)
        return [i for i in sorted(self._rows) if storage.precision_of(dtype_of(self._arrays[i]), way) == "split"]

    def _content(self, whole: Callable[[str, list[int]], dict[int, Any]]) -> dict[str, Any]:
        split = self._split
        declared = [
            (*starts(self._rules[group].slots), *([LOW] if i in split else [])) for i, group in enumerate(self._groups)
        ]
        state: dict[str, dict[str, Any]] = {path: {} for path in self._tree.paths}
        for name in dict.fromkeys(name for names in declared for name in names):
            members = [i for i, names in enumerate(declared) if name in names]
            numbers = [i for i in members if is_number(starts(self._rules[self._groups[i]].slots).get(name))]
            found = whole(name, [i for i in members if i not in numbers])
            found |= {i: self._step.slots[self._layout.first_segment(i)][name] for i in numbers}
            for i, x in found.items():
                state[self._tree.paths[i]][name] = x
        return {
            "steps": self._steps,
            **({"skipped": self._skipped} if self._skipped else {}),
            **({"seed": self._precision.seed} if isinstance(self._precision, Stochastic) else {}),
            **({"scale": self._loss} if isinstance(self._scale, DynamicScale) else {}),
            "rules": states.rules_to_plain(self._patterns, self._rules, self._tuned, self._carried),
            "params": dict(zip(self._tree.paths, self._arrays, strict=True)),
            "state": {
                path: {name: state[path][name] for name in names if name in state[path]}
                for path, names in zip(self._tree.paths, declared, strict=True)
            },
        }


def _like(target: Any, x: NDArray[Any]) -> Any:
    """Return a NumPy array as an array of the library and device of ``target``."""
    if is_numpy(target):
        return x
    new = empty(target, x.size, str(x.dtype)).reshape(target.shape)
    new.set(x.reshape(target.shape))
    return new


def _each(state: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """Return a state dict with ``change`` applied to each array."""
    return {
        **state,
        "params": {path: change(x) for path, x in state["params"].items()},
        "state": {path: {name: change(x) for name, x in own.items()} for path, own in state["state"].items()},
    }


def _nbytes(x: Any) -> int:
    """Return the bytes of an array, or of its outline."""
    return int(math.prod(x.shape) * np.dtype(x.dtype).itemsize)


def _outline(x: Any) -> Any:
    """Return shape and dtype of an array, without its data."""
    return SimpleNamespace(shape=tuple(x.shape), dtype=dtype_of(x))


def _at(content: Mapping[str, Any], key: tuple[str, ...]) -> Any:
    """Return an array of a state dict by its key."""
    return content["params"][key[1]] if key[0] == "params" else content["state"][key[1]][key[2]]
