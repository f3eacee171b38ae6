"""What a loop has of its own beside its optimizer, and wants saved: arrays, values, generators, batches."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import assign, describe, is_cupy, is_numpy
from gpuopt.errors import UsageError
from gpuopt.suggest import printable
from gpuopt.tensorfile import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

__all__ = ["EMPTY", "Own", "is_count"]

RANDOM = "run.random"
EMPTY: dict[str, Any] = {"drawn": [], "orders": [], "generators": {}, "values": {}}
"""The position where there is nothing of one's own."""


class Own:
    """Values by name, generators, and how far the batches are.

    Attributes
    ----------
    values : dict
        Of `remember`, by name, as they are now.
    """

    def __init__(self, seed: int) -> None:
        self.values: dict[str, Any] = {}
        self._random = np.random.default_rng(seed)
        self._moved_by: list[tuple[str, Any]] = []  # generators that somebody has, by name
        self._seed = seed
        self._drawn: list[int] = []  # batches, of each iterator
        self._found: set[str] = set()  # values of the checkpoint
        self._saved: dict[str, Any] = {}  # generators and arrays in it that nobody has given yet
        self._saved_arrays: dict[str, Any] = {}
        self._saved_drawn: list[int] = []
        self._orders: list[list[int]] = []  # seed, samples and size of each iterator
        self._saved_orders: list[list[int]] = []
        self._moving: dict[str, Any] | None = None  # as they were at the end of the last step
        self._is_left = False

    @property
    def random(self) -> np.random.Generator:
        """The generator that is everybody's."""
        if all(name != RANDOM for name, _ in self._moved_by):
            self._moved_by.append((RANDOM, self._random))
        return self._random

    @property
    def arrays(self) -> dict[str, Any]:
        """The arrays among the values, complex ones as pairs of real numbers."""
        return {name: _real(x) for name, x in self.values.items() if _is_array(x)}

    def remember(self, name: Any, value: Any, *, inside: bool) -> Any:
        """See `gpuopt.Run.remember`; `inside` of a loop nothing is restored."""
        if not isinstance(name, str) or not name or name == RANDOM:
            raise TypeError(f"run.remember: {name!r}: expected a name, a text that is not empty")
        _expect_savable(name, value)
        is_plain = not _is_array(value) and not _is_generator(value)
        if inside:
            if not is_plain and self.values.get(name) is not value:
                raise UsageError(
                    f"run.remember: {name}: {describe(value)}, expected before run.steps, where it is restored"
                )
        elif _is_array(value) and name in self._saved_arrays:
            self._fill(name, value, self._saved_arrays[name])
            del self._saved_arrays[name]
        elif _is_generator(value) and name in self._saved:
            _set_state(name, value, self._saved[name])
            del self._saved[name]
        elif is_plain and name in self._found:
            value = self.values[name]
        if not inside and name in {*self._saved, *self._saved_arrays, *({} if is_plain else self._found)}:
            raise UsageError(f"run.remember: {name}: {describe(value)}, expected the same kind as in the checkpoint")
        self.values[name] = value
        if _is_generator(value) and all(known is not value for _, known in self._moved_by):
            self._moved_by.append((name, value))
        return value

    def missing(self) -> list[str]:
        """Names that the checkpoint has and nobody asked for."""
        return [*self._saved, *self._saved_arrays]

    def batches(self, samples: Any, size: Any) -> Iterator[NDArray[np.intp]]:
        """See `gpuopt.Run.batches`."""
        for name, count in (("samples", samples), ("size", size)):
            if not is_count(count):
                raise UsageError(f"run.batches: {name}: {count!r}, expected a positive integer")
        number, order = len(self._drawn), [self._seed, int(samples), int(size)]
        if order != (before := [*self._saved_orders[number : number + 1], order][0]):
            given, saved = ("seed {}, {} samples, size {}".format(*one) for one in (order, before))
            raise UsageError(f"run.batches: {given}; the checkpoint has {saved}, whose order is gone on with")
        self._orders.append(order)
        self._drawn.append(self._saved_drawn[number] if number < len(self._saved_drawn) else 0)
        return self._indices(number, int(samples), int(size))

    def _indices(self, number: int, samples: int, size: int) -> Iterator[NDArray[np.intp]]:
        each = -(-samples // size)
        known, order = -1, np.arange(0)
        while True:
            epoch, batch = divmod(self._drawn[number], each)
            if epoch != known:
                known, order = epoch, np.random.default_rng([self._seed, number, epoch]).permutation(samples)
            self._drawn[number] += 1
            yield order[batch * size : (batch + 1) * size]

    def settle(self) -> None:
        """Note, where a step has ended, what moves while the body of the next one is executed."""
        if self._moved_by or self._drawn:
            self._moving = self._now()

    def leave(self, *, stepped: bool) -> None:
        """The loop is left in the middle of a body: what it drew without a step is drawn again."""
        self._is_left = not stepped

    def position(self) -> dict[str, Any]:
        """In JSON's types, all but the arrays."""
        moving = self._moving if self._is_left and self._moving is not None else self._now()
        values = {
            name: json.loads(json.dumps(value))
            for name, value in self.values.items()
            if not _is_array(value) and not _is_generator(value)
        }
        known = {"drawn": moving["drawn"], "orders": [*self._orders]}
        generators = json.loads(json.dumps(moving["generators"], default=lambda x: x.tolist()))  # NumPy's
        return {**known, "generators": generators, "values": values}

    def move(self, position: Mapping[str, Any]) -> None:
        """Go to a position: of the checkpoint, before anything was remembered, or of one step among others."""
        drawn, generators, values = position["drawn"], position["generators"], position["values"]
        if not all(type(count) is int and count >= 0 for count in drawn):
            raise ValueError(f"expected counts of batches, got {drawn!r:.40}")
        if not isinstance(generators, dict) or not isinstance(values, dict):
            raise TypeError("expected generators and values by name")
        self._is_left, self._moving = False, None
        self._saved_drawn = list(drawn)
        self._saved_orders = [
            [int(n) for n in order] for order in position.get("orders", [])
        ]  # earlier versions noted none
        self._drawn[:] = [*drawn, *self._drawn[len(drawn) :]][: len(self._drawn)]
        for name, state in generators.items():
            if name == RANDOM:
                _set_state(name, self.random, state)
            elif name in self.values:
                _set_state(name, self.values[name], state)
            else:
                self._saved[name] = state
        for name, value in values.items():
            self.values[name] = _put_back(self.values.get(name), value)
        self._found = set(values)
        self.settle()

    def put_back(self, arrays: Mapping[str, Any]) -> None:
        """Write saved arrays in place; those that nobody has given yet when they are given."""
        known = [name for name in arrays if name in self.values]
        for name in known:
            self._expect_fit(name, self.values[name], arrays[name])
        for name in known:
            self._fill(name, self.values[name], arrays[name])
        self._saved_arrays |= {name: x for name, x in arrays.items() if name not in self.values}

    def _fill(self, name: str, value: Any, saved: Any) -> None:
        self._expect_fit(name, value, saved)
        assign(value, saved.view(value.dtype).reshape(value.shape) if value.dtype.kind == "c" else saved)

    @staticmethod
    def _expect_fit(name: str, value: Any, saved: Any) -> None:
        expected = _real(value)
        if (tuple(saved.shape), str(saved.dtype)) != (tuple(expected.shape), str(expected.dtype)):
            found = f"{saved.dtype} of shape {tuple(saved.shape)}"
            raise UsageError(f"run.remember: {name}: {describe(value)}; the checkpoint has {found}")

    def _now(self) -> dict[str, Any]:
        return {"drawn": self._drawn[:], "generators": {name: _state(value) for name, value in self._moved_by}}


def is_count(n: object) -> bool:
    """Whether it is a positive integer, of Python or NumPy."""
    return isinstance(n, int | np.integer) and not isinstance(n, bool) and bool(n > 0)


def _is_array(x: object) -> bool:
    return is_numpy(x) or is_cupy(x)


def _is_generator(x: object) -> bool:
    return isinstance(x, np.random.Generator | np.random.RandomState)


def _expect_savable(name: str, value: Any) -> None:
    """TypeError for what no checkpoint can hold."""
    if _is_generator(value):
        return
    if _is_array(value):
        kind = _real_dtype(value.dtype)
        if kind.name not in DTYPES:
            raise TypeError(f"run.remember: {name}: {describe(value)}, expected numbers of at most 64 bits")
        if is_numpy(value) and not value.flags.writeable:
            raise TypeError(
                f"run.remember: {name}: {describe(value)} is read-only, expected one that can be written to"
            )
        return
    try:
        json.dumps(value)
        if any(not isinstance(key, str) for key in _keys(value)):
            raise TypeError("keys of a dict must be text: JSON has no others")  # noqa: TRY301
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"run.remember: {name}: {describe(value)}: expected an array, a generator of numpy.random, or numbers, text, "
            f"lists and dicts ({error})"
        ) from None


def _keys(value: Any) -> Iterator[Any]:
    """The keys of every dict within a value."""
    if isinstance(value, dict):
        yield from value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _keys(one)


def _real_dtype(dtype: Any) -> Any:
    return np.dtype(f"f{dtype.itemsize // 2}") if dtype.kind == "c" else dtype


def _real(x: Any) -> Any:
    """A complex array as one of twice as many real numbers, with one more axis."""
    if x.dtype.kind != "c":
        return x
    import array_api_compat

    xp = array_api_compat.array_namespace(x)
    return xp.stack([x.real, x.imag], axis=-1)


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return generator.bit_generator.state


def _set_state(name: str, generator: Any, state: Any) -> None:
    try:
        if isinstance(generator, np.random.RandomState):
            key = np.array(state["state"]["key"], np.uint32)
            generator.set_state({**state, "state": {**state["state"], "key": key}})
        else:
            generator.bit_generator.state = state
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        what = describe(generator)
        raise UsageError(
            f"run.remember: {name}: {what}; the checkpoint has no state of one: {printable(error)}"
        ) from None


def _put_back(value: Any, saved: Any) -> Any:
    """Return the saved value; a list or dict is filled in place, so that whoever holds it sees the saved content."""
    if isinstance(value, list) and isinstance(saved, list):
        value[:] = saved
        return value
    if isinstance(value, dict) and isinstance(saved, dict):
        value.clear()
        value.update(saved)
        return value
    return saved
