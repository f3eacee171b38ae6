"""State of which each process has its share: put together for a file or a dict, and shared out again."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gpuopt import states, tuning
from gpuopt.arrays import dtype_of, is_numpy, to_numpy, zeros_like
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
    """Base class of an optimizer of many processes: how it is saved and goes on. Rank 0 reads and writes."""

    _layout: Layout
    _loss: tuple[float, float]
    _shard: bool

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

    def _retune(self, tuned: list[dict[str, Hyper]]) -> None:
        with self._led("_retune", tuned):
            super()._retune(tuned)

    def _save(self, write: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        with self._led("_save"):
            self._agree(None, {"steps": self._steps})
            error: Exception | None = None
            content = self._content(self._whole_at_first)
            if self.rank == 0:
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
        if self.rank == 0:
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

    def _fitting(self, state: Mapping[str, Any]) -> tuple[Any, list[Rule], dict[tuple[str, ...], Any], dict[str, Any]]:
        """What was tuned, the rules with it, the arrays by key, and the numbers of a state; or raise ValueError."""
        states.check_nesting(state)
        problems: list[str] = []
        tuned = states.tuned_of(state, self._patterns, self._original, problems)
        rules = self._rules if problems else tuning.rules_with(tuned, self._original)
        states.accumulated_of(state, 1, problems)
        dtypes = partial(slot_dtype, precision=storage.name_of(self._precision))
        expected = states.expected_arrays(self._tree.paths, self._arrays, self._groups, rules, dtypes)
        split = {self._tree.paths[i]: self._arrays[i] for i in self._split}
        expected |= {("state", path, LOW): zeros_like(a, np.uint16) for path, a in split.items()}
        given = states.arrays_of(state, expected, lambda x, _: x, problems)
        carried = states.carried_of(state, self._by_pattern, problems)
        numbers: dict[str, Any] = {
            "_carried": carried,
            "_precision": states.precision_of(state, self._precision, problems),
        }
        is_dynamic = isinstance(self._scale, DynamicScale)
        if loss := states.scale_of(state, is_dynamic=is_dynamic, problems=problems):
            numbers["_loss"] = loss
        if problems:
            raise states.misfit(problems)
        return tuned, rules, given, numbers

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
        tuned, rules, given, numbers = fitting
        news: list[tuple[Any, Any]] = []
        with self._lock:
            step, changes = self._with_rules(rules, tuned)
            for key in sorted(given):
                i = self._tree.paths.index(key[1])
                source = given[key] if content is None else _at(content, key)
                try:
                    host_array = to_numpy(arrived(source))
                    if key[0] == "state" and is_number(starts(rules[self._groups[i]].slots).get(key[2])):
                        news.append((step.slots[self._layout.first_segment(i)][key[2]], host_array.reshape(())))
                        continue
                    flat = memory.in_memory_order(host_array, self._arrays[i])
                    if key[0] == "params":
                        news.append((self._layout.flat[i], flat))
                    else:
                        news += [
                            (step.slots[s][key[2]], flat[piece.start : piece.stop].copy())
                            for s, (_, piece) in enumerate(self._layout.segments)
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
            changes.append(partial(vars(self).update, numbers, _steps=int(state["steps"])))
            in_one_go(changes, step.restoring())

    def _whole(self, name: str, members: list[int]) -> dict[int, Any]:
        """A slot of these leaves, put together on every process."""
        found = {i: zeros_like(self._arrays[i], self._slot_dtype(name, i)) for i in members}
        self._layout.fill(found, [slots.get(name) for slots in self._step.slots])
        return found

    def _whole_at_first(self, name: str, members: list[int]) -> dict[int, Any]:
        """The same in the memory of the host, on rank 0 alone."""
        if not self._shard or self.size == 1:
            return self._whole(name, members) if self.rank == 0 else {}
        found: dict[int, Any] = {}
        dtypes = {i: self._slot_dtype(name, i) for i in members}
        for dtype in dict.fromkeys(dtypes.values()):
            own = [i for i in members if dtypes[i] == dtype]
            first = self.rank == 0
            whole = {i: np.zeros_like(to_numpy(self._arrays[i]), dtype) for i in own} if first else {}
            self._layout.fill_at_first(whole, [slots.get(name) for slots in self._step.slots], own, dtype)
            found |= whole
        return found

    def _slot_dtype(self, name: str, i: int) -> Any:
        """The dtype of a slot of a leaf."""
        way = storage.name_of(self._precision)
        return np.uint16 if name == LOW else slot_dtype(self._rules[self._groups[i]], name, self._arrays[i], way)

    @property
    def _split(self) -> list[int]:
        """Leaves whose lower bits are beside them."""
        way = storage.name_of(self._precision)
        return [i for i in sorted(self._rows) if storage.way_of(dtype_of(self._arrays[i]), way) == "split"]

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
