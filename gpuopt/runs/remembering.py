"""What a loop has of its own beside its optimizer, and wants saved: arrays, values, generators, batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import assign, describe, is_cupy, is_numpy
from gpuopt.errors import UsageError
from gpuopt.runs.processes import say
from gpuopt.suggest import listed, printable
from gpuopt.tensorfile import DTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from gpuopt.optimizer import Optimizer
    from gpuopt.runs.loop import Row

__all__ = ["EMPTY", "Remembering", "is_count"]

RANDOM = "run.random"
EMPTY: dict[str, Any] = {"drawn": [], "orders": [], "generators": {}, "values": {}}
"""The position where there is nothing of one's own."""


class Remembering:
    """What `gpuopt.Run` remembers."""

    def __init__(self, optimizer: Optimizer, seed: int) -> None:
        self.optimizer = optimizer
        self.folder: Path | None = None
        self._is_inside = False  # of a loop
        self._seed = seed
        self._values: dict[str, Any] = {}
        self._saved_kinds: dict[str, str] = {}  # what the checkpoint has
        self._unasked: dict[str, Any] = {}  # its arrays and states of generators that nobody has asked for yet
        self._random = np.random.default_rng(seed)
        self._generators: dict[str, Any] = {}  # that somebody has
        self._batches: list[Batches] = []
        self._saved_batches: list[tuple[int, list[int] | None]] = []
        self._at_last_step: Row | None = None  # what moves in the body of a step, before that body
        self._is_left = False

    @property
    def random(self) -> np.random.Generator:
        """A generator whose state is part of the checkpoint."""
        return self._generators.setdefault(RANDOM, self._random)  # type: ignore[no-any-return]

    def remember(self, name: str, value: Any) -> Any:
        """Let the checkpoint have a value of your own.

        Parameters
        ----------
        name : str
        value
            An array of NumPy or CuPy, which is saved as it is when it is saved, and written in place where the run goes back; a
            generator of `numpy.random`, likewise; or what JSON has: numbers, text, lists, dicts. A tuple becomes a list.

        Returns
        -------
        value
            Before the loop: as the last checkpoint has it, if there is one; an array and a generator are the ones given. In the
            loop a new value takes the place of the one before.

        Raises
        ------
        TypeError
            If it cannot be saved.
        UsageError
            If the checkpoint has another shape or type, or another array or generator has the name.

        Examples
        --------
        >>> import tempfile, gpuopt, numpy as np
        >>> run = gpuopt.Run(tempfile.mkdtemp(), gpuopt.Optimizer(np.zeros(1), gpuopt.SGD()))
        >>> run.remember("best", 1.5)
        1.5
        >>> run.close()
        """
        if not isinstance(name, str) or not name or name == RANDOM:  # type: ignore[redundant-expr]
            raise TypeError(f"run.remember: {name!r}: expected a name, a text that is not empty")
        _expect_savable(name, value)
        kind = _kind(value)
        if kind == "value" and _has_tuple(value):
            value = json.loads(json.dumps(value))  # with lists, as it comes back from a checkpoint
        if self._is_inside:
            if kind != "value" and self._values.get(name) is not value:
                raise UsageError(
                    f"run.remember: {name}: {describe(value)}, expected before run.steps, where it is restored"
                )
        elif self._saved_kinds.get(name, kind) != kind:
            raise UsageError(f"run.remember: {name}: {describe(value)}, expected the same kind as in the checkpoint")
        elif (
            name in self._values and self._values[name] is not value and {kind, _kind(self._values[name])} != {"value"}
        ):
            told = "another one has that name already, and one alone can be saved: expected another name, or the same"
            raise UsageError(f"run.remember: {name}: {describe(value)}: {told}")
        elif name in self._unasked:
            _restore(name, value, self._unasked[name])
            del self._unasked[name]
        elif kind == "value" and name in self._saved_kinds:
            value = self._values[name]
        self._values[name] = value
        if kind == "generator":
            self._generators[name] = value
        return value

    @property
    def remembered(self) -> Mapping[str, Any]:
        """Every value that `remember` got, by name, as it is now."""
        return self._values

    def batches(self, samples: int, size: int) -> Iterator[NDArray[np.intp]]:
        """Indices of batches without end: each epoch in an order of its own, the last batch of one perhaps smaller.

        A run that is resumed goes on in the middle of an epoch.

        Parameters
        ----------
        samples, size : int

        Returns
        -------
        iterator of arrays of integers

        Examples
        --------
        >>> import tempfile, gpuopt, numpy as np
        >>> run = gpuopt.Run(tempfile.mkdtemp(), gpuopt.Optimizer(np.zeros(1), gpuopt.SGD()))
        >>> batches = run.batches(5, 2)
        >>> [len(next(batches)) for _ in range(4)]
        [2, 2, 1, 2]
        >>> run.close()
        """
        for name, count in (("samples", samples), ("size", size)):
            if not is_count(count):
                raise UsageError(f"run.batches: {name}: {count!r}, expected a positive integer")
        number, order = len(self._batches), [self._seed, int(samples), int(size)]
        drawn, before = self._saved_batches[number] if number < len(self._saved_batches) else (0, None)
        if before is not None and order != before:
            given, saved = ("seed {}, {} samples, size {}".format(*one) for one in (order, before))
            raise UsageError(f"run.batches: {given}; the checkpoint has {saved}, whose order is gone on with")
        self._batches.append(Batches(number, order, drawn))
        return self._batches[-1]

    @property
    def arrays(self) -> dict[str, Any]:
        """Arrays of its own that are saved with the optimizer's, complex ones as pairs of real numbers."""
        return {name: _real(x) for name, x in self._values.items() if _kind(x) == "array"}

    def put_back(self, arrays: Mapping[str, Any]) -> None:
        """Write saved `arrays` into those of its own; ValueError, before anything is changed, if they do not fit.

        Those that nobody has given yet are written when they are given.
        """
        say(self.optimizer, "put_back", dict(arrays))
        known = {name: x for name, x in arrays.items() if name in self._values}
        for name, saved in known.items():
            _expect_fit(name, self._values[name], saved)
        for name, saved in known.items():
            _restore(name, self._values[name], saved)
        self._unasked |= {name: x for name, x in arrays.items() if name not in known}
        self._saved_kinds |= dict.fromkeys(self._unasked, "array")

    def _settle_own(self) -> None:
        """Note, where a step has ended, what moves while the body of the next one is executed."""
        if self._generators or self._batches:
            self._at_last_step = self._moving()

    def _moving(self) -> Row:
        states = {name: _state(generator) for name, generator in self._generators.items()}
        return {"drawn": [one.drawn for one in self._batches], "generators": states}

    def _place(self) -> Row:
        """Where it stands beside the optimizer and the arrays, in JSON's types."""
        moving = self._at_last_step if self._is_left and self._at_last_step is not None else self._moving()
        # A list or dict may have got in the loop what JSON has not.
        values = {name: json.loads(_json(name, x)) for name, x in self._values.items() if _kind(x) == "value"}
        states = json.dumps(moving["generators"], default=lambda x: x.tolist())  # NumPy's
        place = {"drawn": moving["drawn"], "orders": [one.order for one in self._batches]}
        return {**place, "generators": json.loads(states), "values": values}

    def _move(self, position: Row) -> None:
        """Go to a place; TypeError, ValueError or KeyError, before anything is changed, if it is none."""
        say(self.optimizer, "move", position)
        drawn, generators, values = position["drawn"], position["generators"], position["values"]
        if not all(type(count) is int and count >= 0 for count in drawn):
            raise ValueError(f"expected counts of batches, got {drawn!r:.40}")
        if not isinstance(generators, dict) or not isinstance(values, dict):
            raise TypeError("expected generators and values by name")
        orders = [[int(n) for n in order] for order in position.get("orders", [])]  # earlier versions noted none
        self._is_left, self._at_last_step = False, None
        self._saved_batches = [(n, orders[k] if k < len(orders) else None) for k, n in enumerate(drawn)]
        for one, count in zip(self._batches, drawn, strict=False):
            one.drawn = count
        for name, state in generators.items():
            if name == RANDOM or name in self._values:
                _restore(name, self.random if name == RANDOM else self._values[name], state)
            else:
                self._unasked[name], self._saved_kinds[name] = state, "generator"
        for name, value in values.items():
            self._values[name], self._saved_kinds[name] = _put_back(self._values.get(name), value), "value"
        self._settle_own()

    def _expect_remembered(self) -> None:
        if self._unasked:
            names = listed(self._unasked, shown=printable)
            raise UsageError(f"{self.folder}: remembers {names}, expected run.remember for each before run.steps")


class Batches(Iterator["NDArray[np.intp]"]):
    """See `Remembering.batches`; `order` is seed, samples and size, `drawn` how many batches have been."""

    def __init__(self, number: int, order: list[int], drawn: int) -> None:
        self.number, self.order, self.drawn = number, order, drawn
        self._epoch, self._permuted = -1, np.arange(0)

    def __next__(self) -> NDArray[np.intp]:
        seed, samples, size = self.order
        epoch, batch = divmod(self.drawn, -(-samples // size))
        if epoch != self._epoch:
            permuted = np.random.default_rng([seed, self.number, epoch]).permutation(samples)
            self._epoch, self._permuted = epoch, permuted
        self.drawn += 1
        return self._permuted[batch * size : (batch + 1) * size]


def is_count(n: object) -> bool:
    """Whether it is a positive integer, of Python or NumPy."""
    return isinstance(n, int | np.integer) and not isinstance(n, bool) and bool(n > 0)


def _kind(x: object) -> str:
    """What it is to a checkpoint: an array, a generator, or a value of JSON."""
    if isinstance(x, np.random.Generator | np.random.RandomState):
        return "generator"
    return "array" if is_numpy(x) or is_cupy(x) else "value"


def _expect_savable(name: str, value: Any) -> None:
    """TypeError for what no checkpoint can hold."""
    kind = _kind(value)
    if kind == "array":
        real = np.dtype(f"f{value.dtype.itemsize // 2}") if value.dtype.kind == "c" else value.dtype
        if real.name not in DTYPES:
            raise TypeError(f"run.remember: {name}: {describe(value)}, expected numbers of at most 64 bits")
        if type(value) is not np.ndarray and isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"run.remember: {name}: a masked array, whose mask would get lost, expected a plain one")
        if is_numpy(value) and not value.flags.writeable:
            raise TypeError(
                f"run.remember: {name}: {describe(value)} is read-only, expected one that can be written to"
            )
    elif kind == "value":
        _json(name, value)


def _json(name: str, value: Any) -> str:
    """A value as JSON; TypeError for what that has not."""
    try:
        text = json.dumps(value)
        if any(not isinstance(key, str) for key in _keys(value)):
            raise TypeError("keys of a dict must be text: JSON has no others")  # noqa: TRY301
    except (TypeError, ValueError, RecursionError) as error:
        cure = "; float(...) or int(...) makes a number of it" if isinstance(value, np.generic) else ""
        raise TypeError(
            f"run.remember: {name}: {describe(value)}: expected an array, a generator of numpy.random, or numbers, "
            f"text, lists and dicts ({error}){cure}"
        ) from None
    return text


def _keys(value: Any) -> Iterator[Any]:
    """The keys of every dict within a value."""
    if isinstance(value, dict):
        yield from value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _keys(one)


def _has_tuple(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, tuple) or any(map(_has_tuple, inner))


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


def _restore(name: str, value: Any, saved: Any) -> None:
    """Write a saved array, or a saved state of a generator, into one."""
    if _kind(value) == "array":
        _expect_fit(name, value, saved)
        assign(
            value, saved.view(value.dtype.newbyteorder("=")).reshape(value.shape) if value.dtype.kind == "c" else saved
        )
        return
    try:
        if isinstance(value, np.random.RandomState):
            key = np.array(saved["state"]["key"], np.uint32)
            value.set_state({**saved, "state": {**saved["state"], "key": key}})
        else:
            value.bit_generator.state = saved
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{describe(value)}; the checkpoint has no state of one: {printable(error)}"
        raise UsageError(f"run.remember: {name}: {what}") from None


def _expect_fit(name: str, value: Any, saved: Any) -> None:
    expected = _real(value)
    dtype = expected.dtype.newbyteorder("=")  # of either order of its bytes
    if (tuple(saved.shape), str(saved.dtype)) != (tuple(expected.shape), str(dtype)):
        found = f"{saved.dtype} of shape {tuple(saved.shape)}"
        raise UsageError(f"run.remember: {name}: {describe(value)}; the checkpoint has {found}")


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
