"""Whether this machine computes the same bits everywhere, and how fast: what ``gpuopt check`` shows.

The reference is the array engine on NumPy, that is the formulas as they stand. Beside it run the fused engine of the CPU
and that of every CUDA device, with every rule of the package, both dtypes, several shapes and values that are hard.
"""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import to_numpy
from gpuopt.backends import backend, report
from gpuopt.engines.cpu.threads import get_num_threads
from gpuopt.engines.program.trace import traced
from gpuopt.gradients import clip_by_global_norm
from gpuopt.optimizer import Optimizer
from gpuopt.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray
    from rich.table import Table

    from gpuopt.backends import Backend
    from gpuopt.rules import Rule

STEPS = 3
LARGE, SMALLEST = 1 << 24, 1 << 16
"""Elements of the step whose bandwidth is measured; a fourth where that fails, as without memory, and so on."""
HURRY = 5.0
"""Seconds: with less time left, the step is a sixteenth."""

# Neither multiples of a vector register nor of a chunk; unaligned; axes in another order; no axes; no elements.
# All fill their memory: leaves with gaps are left to their library, and CuPy's own kernels flush subnormals of float32.
LAYOUTS: dict[str, Callable[[Any, str], Any]] = {
    "scalar": lambda xp, dtype: xp.empty((), dtype=dtype),
    "empty": lambda xp, dtype: xp.empty((0, 3), dtype=dtype),
    "small": lambda xp, dtype: xp.empty((3, 5), dtype=dtype),
    "unaligned": lambda xp, dtype: xp.empty(1031, dtype=dtype)[1:],
    "in F order": lambda xp, dtype: xp.empty((65, 33), dtype=dtype).T,
    "large": lambda xp, dtype: xp.empty(3 * 4096 + 5, dtype=dtype),
}
LEAVES = {f"{dtype} {layout}": (dtype, layout) for dtype in ("float32", "float64") for layout in LAYOUTS}
"""Dtype and layout of each leaf."""
GUARDS: dict[str, dict[str, Any]] = {
    "": {},
    "clipped by the global norm": {"clip": clip_by_global_norm(1.0)},
    "bad steps skipped": {"nonfinite": "skip"},
}


@dataclass(frozen=True)
class Difference:
    """Bits that differ from the reference.

    Attributes
    ----------
    rule, dtype, layout, guard
        Where: the rule with its hyperparameters, and the leaf.
    array
        "p", or the name of a slot.
    step
        The first step after which it differs, from 1 on.
    elements
        How many elements differ.
    smallest
        The first of them, alone: parameter, slots and gradient before the step, expected and found value, all as hexadecimal
        numbers.

    """

    rule: str
    dtype: str
    layout: str
    guard: str
    array: str
    step: int
    elements: int
    smallest: Mapping[str, str]

    def __str__(self) -> str:
        where = ", ".join(filter(None, [self.rule, self.dtype, self.guard, self.layout]))
        values = ", ".join(f"{name} {value}" for name, value in self.smallest.items())
        return f"{where}: {self.array} differs after step {self.step} in {self.elements} elements, as here: {values}"


@dataclass(frozen=True)
class Finding:
    """What was found out about one engine on one device.

    Attributes
    ----------
    engine
        "numpy", or a device as in "cupy:0".
    device
        What it is.
    cases, left_out
        How many combinations of a rule and a guard were compared, and for how many there was no time: never for rules
        with their defaults and no guard.
    differences
        Empty if all bits agree.
    launches, other_operations
        Of ten steps, on the device; None where that cannot be counted. Other operations are copies and the like.
    host_seconds
        Time that the host takes for a step of a few small arrays, median.
    elements, bandwidth, copy_bandwidth
        Of a large step of Adam, how many elements it has and how many bytes a second it moves; and bytes a second of a
        copy of as many bytes.
    error
        What ended the check of this device early; else "".
    unknown
        What could not be found out, each with the reason.

    """

    engine: str
    device: str
    cases: int = 0
    left_out: int = 0
    differences: tuple[Difference, ...] = ()
    launches: int | None = None
    other_operations: int | None = None
    host_seconds: float = 0.0
    elements: int = 0
    bandwidth: float = 0.0
    copy_bandwidth: float = 0.0
    error: str = ""
    unknown: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether all bits agree, of everything that was compared."""
        return not (self.differences or self.error)

    def rows(self) -> list[list[str]]:
        """What was found, in words: name and value."""
        rows = [[self.engine, self.device]]
        if self.error:
            rows.append(["error", self.error])
        if self.cases:
            agreement = f"differ in {len(self.differences)} of" if self.differences else "agree in all of"
            rows.append(["bits", f"{agreement} {self.cases} cases"])
        if self.left_out:
            rows.append(["no time", f"for {self.left_out} more cases: give it more --seconds"])
        rows += [["differs", str(difference)] for difference in self.differences[:5]]
        if self.launches is not None:
            rows.append(
                ["ten steps", f"{self.launches} launches, {self.other_operations} copies and the like, no waiting"]
            )
        if self.host_seconds:
            rows.append(["small step", f"{1e6 * self.host_seconds:.1f} us on the host"])
        if self.bandwidth:
            beside = f"{self.bandwidth / self.copy_bandwidth:.2f} of a copy's {self.copy_bandwidth / 1e9:.1f}"
            rows.append(["large step", f"{self.elements:,} elements: {self.bandwidth / 1e9:.1f} GB/s, {beside} GB/s"])
        return rows + [["unknown", what] for what in self.unknown]

    def table(self) -> Table:
        """What was found, as a table for terminals."""
        from rich.table import Table

        (engine, device), *rows = self.rows()
        table = Table("found", "", title=f"{engine}: {device}", title_justify="left", show_header=False)
        for name, value in rows:
            table.add_row(name, value, style="bold red" if name in {"error", "differs"} else None)
        return table


def check(*, seconds: float = 30.0) -> Iterator[Finding]:
    """Compare the fused engines that can be had here with the formulas on NumPy arrays, to the bit.

    Parameters
    ----------
    seconds
        For all of it, about. Every rule is compared with its defaults, however long that takes. At the end of this time no
        further case is begun, and those that are left out are counted.

    Yields
    ------
    Finding
        Of the CPU, then of each CUDA device.

    Examples
    --------
    >>> from gpuopt.check import check
    >>> any(finding.differences for finding in check(seconds=1.0))
    False

    """
    end = time.monotonic() + seconds
    targets = {"numpy": platform.processor() or platform.machine()}
    targets |= {f"cupy:{device.index}": device.name for device in report().devices}
    for i, (name, device) in enumerate(targets.items()):
        share = (end - time.monotonic()) / (len(targets) - i)
        try:
            yield _check(backend(name), time.monotonic() + share)
        except Exception as error:  # noqa: BLE001 - a device may fail in any way: the others go on
            yield Finding(name, device, error=f"{type(error).__name__}: {error}")


def variants(*, flags: bool = True) -> Iterator[Rule]:
    """Every rule of the package whose every operation is ours; with ``flags`` also with what is off by default turned on, and all flags set."""
    for rule in RULES.values():
        plain = rule()
        if (program := traced(plain)) is None or program.extents:  # of whole arrays, by the operations of their library
            continue
        numbers = {
            name: 0.5
            for name in rule.hyperparameters()
            if getattr(plain, name) is not False and not getattr(plain, name)
        }
        on = {name: True for name in rule.hyperparameters() if getattr(plain, name) is False}
        for changed in ({}, numbers, numbers | on)[: 3 if flags else 1]:
            with contextlib.suppress(TypeError, ValueError):  # not every hyperparameter may be 0.5
                yield dataclasses.replace(plain, **changed)


def hard_values(random: np.random.Generator, shape: tuple[int, ...], dtype: str, *, finite: bool) -> NDArray[Any]:
    """Numbers of many sizes, zeros of both signs, subnormals and the largest; unless ``finite``, infinities and NaN too."""
    limits = np.finfo(dtype)
    special: list[Any] = [0.0, -0.0, limits.smallest_subnormal, -3 * limits.smallest_subnormal, limits.tiny]
    special += [] if finite else [limits.max, limits.min, np.inf, -np.inf, np.nan]
    with np.errstate(all="ignore"):
        x = random.standard_normal(shape) * 10.0 ** random.integers(-12, 6, shape)
        return np.where(random.random(shape) < 0.2, random.choice(special, shape), x).astype(dtype)


def _about(target: Backend) -> str:
    if target.device is not None:
        return target.reason
    threads = get_num_threads()
    return f"{platform.processor() or platform.machine()}, {threads} thread{'s' * (threads > 1)}"


def _check(target: Backend, end: float) -> Finding:
    defaults = list(variants(flags=False))
    differences = [found for rule in defaults for found in _compared(target, rule, "")]
    facts, unknown = _measured(target, end)
    cases = [("", rule) for rule in dict.fromkeys(variants()) if rule not in defaults]
    cases += [(guard, rule) for guard in GUARDS if guard for rule in defaults]
    done = 0
    for guard, rule in cases:
        if time.monotonic() > end:
            break
        done += 1
        differences += _compared(target, rule, guard)
    left_out, done = len(cases) - done, len(defaults) + done
    return Finding(str(target), _about(target), done, left_out, tuple(differences), unknown=unknown, **facts)


def _measured(target: Backend, end: float) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What steps cost, and what of it could not be found out: that is no error, for the bits do not depend on it."""
    facts: dict[str, Any] = {}
    unknown = []
    large = LARGE if time.monotonic() + HURRY < end else LARGE // 16
    measures: dict[str, Callable[[Backend], dict[str, Any]]]
    measures = {"ten steps": _counted, "small step": _host_seconds, "large step": partial(_bandwidths, size=large)}
    for what, measure in measures.items():
        try:
            facts |= measure(target)
        except Exception as error:  # noqa: BLE001 - a device may fail in any way
            unknown.append(f"{what}: {type(error).__name__}: {error}")
    return facts, tuple(unknown)


def _compared(target: Backend, rule: Rule, guard: str) -> list[Difference]:
    """Compare some steps of leaves of both dtypes; only the first leaf and array that differ are told."""
    random = np.random.default_rng(0)
    shapes = {key: LAYOUTS[layout](np, dtype).shape for key, (dtype, layout) in LEAVES.items()}

    def drawn() -> dict[str, NDArray[Any]]:
        finite = guard != ""
        return {key: hard_values(random, shapes[key], dtype, finite=finite) for key, (dtype, _) in LEAVES.items()}

    values = drawn()
    one = Optimizer(_laid_out(backend("numpy"), values), rule, engine="array", **GUARDS[guard])
    other = Optimizer(_laid_out(target, values), rule, engine="fused", **GUARDS[guard])
    for step in range(1, STEPS + 1):
        grads = drawn()
        if guard == "bad steps skipped" and step == 2:
            grads["float32 small"][0, 0] = np.nan
        before = {key: x.copy() for key, x in _arrays(one).items()}
        one.step(grads)
        with target.use():
            other.step({name: target.asarray(g) for name, g in grads.items()})
        found = _arrays(other)
        for (leaf, array), expected in _arrays(one).items():
            wrong = _differing(expected, found[leaf, array])
            if wrong.any():
                at = tuple(int(k) for k in np.argwhere(wrong)[0])
                own = {name: x for (path, name), x in before.items() if path == leaf} | {"g": grads[leaf]}
                own |= {"expected": expected, "found": found[leaf, array]}
                # With an element, the numbers of its leaf; a number of the leaf has no element.
                shown = {name: x[at if x.shape else ()] for name, x in own.items() if x.shape in {expected.shape, ()}}
                smallest = {name: _hex(x) for name, x in shown.items()}
                return [Difference(repr(rule), *LEAVES[leaf], guard, array, step, int(wrong.sum()), smallest)]
    return []


def _laid_out(target: Backend, values: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Arrays of a device with these values, laid out in memory as `LAYOUTS` says."""
    params = {}
    with target.use():
        for key, (dtype, layout) in LEAVES.items():
            params[key] = LAYOUTS[layout](target.xp, getattr(target.xp, dtype))
            params[key][...] = target.asarray(values[key])
    return params


def _arrays(opt: Optimizer) -> dict[tuple[str, str], NDArray[Any]]:
    held = opt.state_dict()
    arrays = {(path, "p"): to_numpy(p) for path, p in held["params"].items()}
    return arrays | {(path, slot): to_numpy(x) for path, own in held["state"].items() for slot, x in own.items()}


def _differing(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """Where two arrays have other bits; any NaN is as good as another."""
    bits = f"u{a.dtype.itemsize}"
    same = np.ascontiguousarray(a).view(bits) == np.ascontiguousarray(b).view(bits)
    return np.asarray(~(same.reshape(a.shape) | (np.isnan(a) & np.isnan(b))))


def _hex(x: Any) -> str:
    return float(x).hex()


def _counted(target: Backend) -> dict[str, Any]:
    """Count what the device is given to do in ten steps."""
    if target.device is None:
        return {}
    with target.use():
        params = {"w": target.asarray(np.ones((64, 64), "f4")), "b": target.asarray(np.ones(64))}
        grads = {name: target.asarray(np.ones(p.shape, "f8" if name == "b" else "f4")) for name, p in params.items()}
        opt = Optimizer(params, RULES["Adam"]())
        opt.step(grads)
        opt.step(grads)

        def ten_steps() -> None:
            for _ in range(10):
                opt.step(grads)

        found = target.operations(ten_steps)
    launches = sum("step" in name for name in found)
    return {"launches": launches, "other_operations": len(found) - launches}


def _host_seconds(target: Backend) -> dict[str, float]:
    """Seconds that the host takes for a step of a few small arrays."""
    with target.use():
        params = {f"w{i}": target.asarray(np.ones(8)) for i in range(4)}
        grads = {name: target.asarray(np.ones(8)) for name in params}
        opt = Optimizer(params, RULES["Adam"]())
        return {"host_seconds": _median(lambda: opt.step(grads), target, 50)}


def _bandwidths(target: Backend, size: int = LARGE) -> dict[str, float]:
    """Bytes a second of a large step, and of a copy of as many bytes: of the largest one for which there is memory."""
    while True:
        try:
            return {"elements": size, **_bandwidths_of(target, size)}
        except Exception:
            size //= 4
            if size < SMALLEST:
                raise


def _bandwidths_of(target: Backend, size: int) -> dict[str, float]:
    with target.use():
        w, g = (target.asarray(np.full(size, 1e-3, "f4")) for _ in range(2))
        opt = Optimizer(w, RULES["Adam"]())
        opt.step(g)
        nbytes = 7 * 4 * size  # parameter and two slots are read and written, the gradient is read
        source, copy = (target.xp.ones(nbytes // 8, dtype=target.xp.float32) for _ in range(2))
        step = _median(partial(opt.step, g), target, 7)
        return {
            "bandwidth": nbytes / step,
            "copy_bandwidth": nbytes / _median(partial(copy.__setitem__, ..., source), target, 7),
        }


def _median(call: Callable[[], object], target: Backend, count: int) -> float:
    times = []
    for _ in range(count):
        target.synchronize()
        start = time.perf_counter()
        call()
        if count < 50:
            target.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times))
