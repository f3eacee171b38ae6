"""What the tests of `gpuopt.distributed` run on every rank: ``mpiexec -n N python tests/ranks.py SCENARIO FOLDER``."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import re
import signal
import sys
import time
import tracemalloc
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import gpuopt
import gpuopt.distributed
import gpuopt.training
from gpuopt.distributed import RankError, cuts, nccl, sums
from gpuopt.engines import memory
from gpuopt.engines.program.trace import traced
from gpuopt.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PARTS = 8
STEPS = 3
SHAPES: dict[str, tuple[int, ...]] = {"a": (70, 70), "b": (5,), "c": (), "d": (0, 2), "e": (30_001,)}
DTYPES = {"a": "float32", "b": "float64", "c": "float32", "d": "float32", "e": "float32"}


def params(seed: int = 0) -> dict[str, Any]:
    """Leaves of both dtypes, one in Fortran's order, one without elements, one that is larger than a bucket."""
    rng = np.random.default_rng(seed)
    made = {name: np.asarray(rng.normal(size=shape), DTYPES[name]) for name, shape in SHAPES.items()}
    return made | {"a": np.asfortranarray(made["a"])}


def gradient(step: int, part: int) -> dict[str, Any]:
    """Of one part of the batch; leaf b has none."""
    rng = np.random.default_rng([step, part])
    return {
        name: None if name == "b" else np.asarray(rng.normal(size=shape) * 9, DTYPES[name])
        for name, shape in SHAPES.items()
    }


def mean(step: int) -> dict[str, Any]:
    """What one optimizer alone takes for the whole batch."""
    total = gpuopt.distributed.tree_sum([gradient(step, part) for part in range(PARTS)])
    return {name: None if g is None else g / np.asarray(PARTS, g.dtype) for name, g in total.items()}


def every_rule() -> dict[str, Any]:
    """Every rule of the library that looks at no whole leaves, by name."""
    made = {name: cls(lr=0.1, memory=2) if name == "LBFGS" else cls(lr=0.1) for name, cls in RULES.items()}
    return {name: rule for name, rule in made.items() if (program := traced(rule)) and not program.extents}


def options() -> dict[str, tuple[Any, dict[str, Any], dict[str, float]]]:
    """Rule, options and what is tuned on the way, by name."""
    adam = gpuopt.Adam(lr=0.1)
    falling = gpuopt.Adam(lr=gpuopt.schedules.inverse_time(0.1, decay=0.5))
    table: dict[str, tuple[Any, dict[str, Any], dict[str, float]]] = {
        name: (rule, {}, {}) for name, rule in every_rule().items()
    }
    for name, clip in {
        "value": gpuopt.clip_by_value(0.5),
        "norm": gpuopt.clip_by_norm(2.0),
        "global": gpuopt.clip_by_global_norm(gpuopt.schedules.inverse_time(5.0, decay=0.5)),
    }.items():
        for nonfinite in ("ignore", "skip", "raise"):
            table[f"clip {name} {nonfinite}"] = (adam, {"clip": clip, "nonfinite": nonfinite}, {})
    chained = gpuopt.chain(gpuopt.L2(1e-2), adam, gpuopt.Box(np.full(SHAPES["e"], -1.0), 1.0), gpuopt.EMA(0.9))
    return table | {
        "schedule": (falling, {}, {}),
        "tuned": (gpuopt.SGD(lr=0.1), {}, {"lr": 0.05, "momentum": 0.5}),
        "groups": ({"[ab]": gpuopt.Lion(lr=0.1), "*": falling}, {"clip": gpuopt.clip_by_global_norm(1.0)}, {}),
        "chain": ({"e": chained, "*": adam}, {}, {}),
        "chain of norms": (
            gpuopt.chain(gpuopt.ClipGlobalNorm(5.0), gpuopt.LAMB(lr=0.1), gpuopt.EMA(0.9)),
            {},
            {"lr": 0.05},
        ),
        "totals by group": ({"[ae]": gpuopt.Prodigy(), "*": gpuopt.Novograd(lr=0.1)}, {}, {}),
        "sums and a clip": (gpuopt.LARS(lr=0.1), {"clip": gpuopt.clip_by_norm(2.0), "nonfinite": "skip"}, {}),
    }


def kinds(comm: Any, folder: Path) -> None:
    """Complex leaves and those of 16 bits, with slots of several dtypes, saved and loaded."""
    shapes: dict[str, tuple[int, str]] = {
        "a": (9_000, "complex64"),
        "b": (700, "complex128"),
        "c": (9_001, "float16"),
        "d": (300_000, "complex64"),
        "e": (5, "float32"),
    }

    def made(*seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        return {
            name: np.asarray(rng.normal(size=n) + 1j * rng.normal(size=n), dtype)
            if dtype.startswith("complex")
            else np.asarray(rng.normal(size=n), dtype)
            for name, (n, dtype) in shapes.items()
        }

    rules = {"[ac]": gpuopt.Adam(lr=0.1), "b": gpuopt.Adam(lr=0.1, components=True), "*": gpuopt.LAMB(lr=0.1)}
    more: dict[str, Any] = {"clip": gpuopt.clip_by_global_norm(1.0), "nonfinite": "raise"}
    opt = gpuopt.distributed.Optimizer(made(comm.rank), rules, comm, parts=PARTS, **more)
    alone = gpuopt.Optimizer(made(0), rules, **more)
    for step in range(STEPS):
        for i in opt.mine:
            opt.add(made(step, i))
        opt.step()
        total = gpuopt.distributed.tree_sum([made(step, i) for i in range(PARTS)])
        alone.step({name: g / np.asarray(PARTS, g.dtype) for name, g in total.items()})
    assert digest(opt) == digest(alone)
    file = folder / "kinds.safetensors"
    gpuopt.save(file, opt)
    again = gpuopt.distributed.Optimizer(made(5), rules, comm, parts=PARTS, shard=False, **more)
    gpuopt.load(file, again)
    assert _state(again) == _state(opt)
    other = gpuopt.Optimizer(made(6), rules, **more)
    gpuopt.load(file, other)
    assert _state(other) == _state(opt)


def precisions(comm: Any, folder: Path) -> None:
    """Leaves of 16 bits, kept in every way and with every scale, saved and loaded; with ``comm`` None, in this process."""
    kept: dict[Any, list[str]] = {name: ["float16"] for name in ("state32", "param", gpuopt.Stochastic(5))}
    if importlib.util.find_spec("ml_dtypes"):
        importlib.import_module("ml_dtypes")  # NumPy knows the name then
        kept = {**{name: ["float16", "bfloat16"] for name in kept}, "split": ["bfloat16"]}
    scales = [None, 8.0, gpuopt.DynamicScale(64.0, every=2), None]
    for (precision, dtypes), scale in zip(kept.items(), scales, strict=False):
        sizes = {**dict.fromkeys(dtypes, 9_001), "float32": 5}

        def made(*seed: int, sizes: dict[str, int] = sizes) -> dict[str, Any]:
            rng = np.random.default_rng(seed)
            return {name: rng.normal(size=n).astype(np.dtype(name)) for name, n in sizes.items()}

        more: dict[str, Any] = {"precision": precision, "scale": scale, "clip": gpuopt.clip_by_global_norm(1.0)}
        rule = gpuopt.chain(gpuopt.NAdam(lr=0.01), gpuopt.EMA(0.9))
        opt = gpuopt.distributed.Optimizer(made(0), rule, comm, parts=PARTS, **more)
        alone = gpuopt.Optimizer(made(0), rule, **more)
        for step in range(STEPS):
            parts = [made(step, i) for i in range(PARTS)]
            if step == 1 and isinstance(scale, gpuopt.DynamicScale):
                parts = [{name: np.full_like(g, np.inf) for name, g in own.items()} for own in parts]
            for i in opt.mine:
                opt.add(parts[i])
            opt.step()
            total = gpuopt.distributed.tree_sum(parts)
            alone.step({name: g / np.asarray(PARTS, g.dtype) for name, g in total.items()})
        assert (opt.scale, float(opt.scale_array), opt.skipped) == (
            alone.scale,
            float(alone.scale_array),
            alone.skipped,
        )
        assert digest(opt) == digest(alone)
        file = folder / "precisions.safetensors"
        gpuopt.save(file, opt)
        own = {"precision": gpuopt.Stochastic(99)} if isinstance(precision, gpuopt.Stochastic) else {}
        again = gpuopt.distributed.Optimizer(made(5), rule, comm, parts=PARTS, shard=False, **{**more, **own})
        gpuopt.load(file, again)
        other = gpuopt.Optimizer(made(6), rule, **{**more, **own})
        gpuopt.load(file, other)
        assert again.scale == other.scale == opt.scale
        for one in (opt, again):
            for i in one.mine:
                one.add(made(9, i))
            one.step()
        total = gpuopt.distributed.tree_sum([made(9, i) for i in range(PARTS)])
        other.step({name: g / np.asarray(PARTS, g.dtype) for name, g in total.items()})
        assert _state(opt) == _state(again) == _state(other)


def digest(opt: gpuopt.Optimizer) -> str:
    """Of all bits of parameters, state and what is evaluated; collective."""
    state = opt.state_dict()
    found = hashlib.sha256()
    for path, p in state["params"].items():
        found.update(np.asarray(_host(p), order="C").tobytes())
        for name, x in sorted(state["state"][path].items()):
            found.update(f"{path} {name}".encode() + np.asarray(_host(x), order="C").tobytes())
    for x in opt.evaluation().values():
        found.update(np.asarray(_host(x), order="C").tobytes())
    return f"{state['steps']} {opt.gradient_norm!r} {found.hexdigest()}"


def _state(opt: gpuopt.Optimizer) -> tuple[str, str]:
    """Steps and bits, without the norm of the last gradients, which is that of a bad one, too."""
    steps, _, bits = digest(opt).split()
    return steps, bits


def _host(x: Any) -> Any:
    return x.get() if hasattr(x, "get") else x


def run(opt: Any, take: Callable[[int], None], tuned: dict[str, float]) -> str:
    """Take the steps, and look at the bits."""
    for step in range(STEPS):
        if tuned and step == 1:
            opt.tune(**tuned)
        take(step)
    return digest(opt)


def alone() -> dict[str, str]:
    """The reference: one `gpuopt.Optimizer`."""
    found = {}
    for name, (rule, more, tuned) in options().items():
        opt = gpuopt.Optimizer(params(), rule, **more)
        found[name] = run(opt, lambda step, opt=opt: opt.step(mean(step)), tuned)  # type: ignore[misc]
    return found


def together(comm: Any, space: Callable[[Any], Any] = lambda x: x, **more: Any) -> dict[str, str]:
    """The same on many processes."""
    found = {}

    def take(opt: Any, step: int) -> None:
        for i in opt.mine:
            opt.add({name: None if g is None else space(g) for name, g in gradient(step, i).items()})
        opt.step()

    chosen = more.pop("only", None)
    for k, (name, (rule, own, tuned)) in enumerate(options().items()):
        if chosen is not None and name not in chosen:
            continue
        mine = {leaf: space(p) for leaf, p in params(comm.rank if comm else 0).items()}  # those of rank 0 count
        opt = gpuopt.distributed.Optimizer(mine, rule, comm, parts=PARTS, shard=k % 3 != 0, **own, **more)
        found[name] = run(opt, lambda step, opt=opt: take(opt, step), tuned)  # type: ignore[misc]
    return found


def small_buckets() -> None:
    """Several buckets out of little data, some of them of a leaf that is large by now."""
    cuts.LARGE, cuts.LARGEST, cuts.MESSAGE = 8192, 12_288, 0


def bits(comm: Any, folder: Path) -> None:
    """Every row, on this many processes; files in both directions."""
    small_buckets()
    found = together(comm)
    assert comm.allgather(found) == [found] * comm.size
    opt = gpuopt.distributed.Optimizer(params(), gpuopt.Adam(lr=0.1), comm, clip=gpuopt.clip_by_global_norm(1.0))
    extra = gpuopt.load(folder / "alone.safetensors", opt)
    assert extra == {"epoch": 3}
    found["loaded"] = digest(opt)
    gpuopt.save(folder / f"{comm.size}.safetensors", opt, {"epoch": 4})
    if comm.rank == 0:
        (folder / f"{comm.size}.json").write_text(json.dumps(found))


def on_devices(comm: Any, folder: Path) -> None:
    """A few rows on CuPy, by both ways; what a step costs the device."""
    import cudasim
    import cupy

    small_buckets()
    only = {
        "Adam",
        "clip global raise",
        "clip norm skip",
        "chain",
        "groups",
        "LAMB",
        "chain of norms",
        "totals by group",
    }
    found = {way: together(comm, cupy.asarray, transport=way, timeout=60.0, only=only) for way in ("host", "nccl")}
    for way in ("host", "nccl"):
        opt = gpuopt.distributed.Optimizer(cupy.zeros(20_000, "f4"), gpuopt.Adam(), comm, transport=way, timeout=60.0)
        for _ in range(2):
            opt.step(cupy.ones(20_000, "f4"))
        g = cupy.ones(20_000, "f4")
        with cudasim.count() as counted:
            opt.step(g)
        found[f"{way} counts"] = dict(counted.summary)
    if comm.rank == 0:
        (folder / f"{comm.size}.json").write_text(json.dumps(found))


def shares(comm: Any, folder: Path) -> None:
    """State of each process: its share, and at most one bucket more; what a step needs beside it."""
    cuts.LARGE, cuts.LARGEST, cuts.MESSAGE = 1 << 16, 1 << 18, 0
    bucket = 4 * cuts.LARGEST
    sizes = [1_000_000, 60_000, 60_001, 60_002, 300_000, 5_000, 3]
    params = [np.zeros(n, "f4") for n in sizes]
    grads = [np.ones(n, "f4") for n in sizes]
    nbytes = 4 * sum(sizes)
    tracemalloc.start()
    opt = gpuopt.distributed.Optimizer(params, gpuopt.Adam(), comm)
    opt.step(grads)
    arrays = tracemalloc.DomainFilter(inclusive=True, domain=np.lib.tracemalloc_domain)
    held = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([arrays]).traces)
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    opt.step(grads)
    after, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    state = sum(x.nbytes for slots in opt._step.slots for x in slots.values())
    everyone = comm.allgather(state)
    assert sum(everyone) == 2 * nbytes
    assert max(everyone) <= 2 * (nbytes / comm.size) + bucket, everyone
    share = state // 2
    sums = cuts.traffic(opt._layout.buckets, comm.size).memory  # of one bucket, from all others
    packed = 4 * sum(n for n in sizes if n < cuts.LARGE)  # small leaves, side by side
    assert held - state <= share + sums + packed, (held, state, share, sums, packed)  # the mean gradient's share, too
    assert after - before < 10_000, (after, before)
    assert most - before <= bucket, (most, before)  # small leaves, side by side for the others, one bucket at a time


def failing(comm: Any, folder: Path) -> Iterator[tuple[str, dict[str, Any], Callable[[Any], None], str]]:
    """Name, options, what rank 1 alone does before (or instead of) a step, and what all are told."""
    good = gradient(0, 0)

    def bad(**leaves: Any) -> Callable[[Any], None]:
        return lambda opt: opt.add(good | leaves)

    def out_of_memory(opt: Any) -> None:
        def fails(self: Any, sources: Any) -> None:
            sums.Into.__call__ = original  # type: ignore[method-assign]
            raise MemoryError("no room")

        opt.add(good)
        original = sums.Into.__call__
        sums.Into.__call__ = fails  # type: ignore[method-assign]

    def twice(opt: Any) -> None:
        opt.add(good)
        opt.add(good)

    def tunes(value: Any) -> Callable[[Any], None]:
        def tune(opt: Any) -> None:
            opt.tune(lr=value)
            opt.add(good)

        return tune

    nan = np.full(SHAPES["e"], np.nan, "float32")
    yield "a wrong shape", {}, bad(a=np.zeros(3)), r"rank 1: ValueError: grads['a']: shape (3,), expected (70, 70)"
    yield "a None", {}, bad(a=None), "rank 1: without gradient is"
    yield "no array", {}, bad(a="x"), "rank 1: TypeError: grads['a']"
    yield (
        "a NaN",
        {"nonfinite": "raise"},
        bad(e=nan),
        "rank 1: grads['e']: NaN or infinity at step 1; that step changed",
    )
    yield "another tune", {}, tunes(0.5), "rank 1: hyperparameters is"
    yield "another schedule", {}, tunes(gpuopt.schedules.inverse_time(0.1, decay=1.0)), "rank 1: hyperparameters is"
    yield "no memory in the exchange", {}, out_of_memory, "rank 1: MemoryError: no room"
    yield "added twice", {}, twice, "rank 1: ValueError: add: called more often than the 1 parts"
    yield "not added", {}, lambda opt: None, "rank 1: ValueError: step: 0 of this process's 1 parts were added"


def failures(comm: Any, folder: Path) -> None:
    """One process alone fails: the same error on all, and nothing has changed."""
    for name, more, spoil, message in failing(comm, folder):
        opt = gpuopt.distributed.Optimizer(params(), gpuopt.Adam(lr=0.1), comm, **more)
        opt.step(gradient(0, comm.rank))
        before = _state(opt)
        if comm.rank == 1:
            spoil(opt)
        else:
            opt.add(gradient(1, comm.rank))
        told = _told(opt.step)
        assert message in told[0], (name, told)
        assert comm.allgather(told) == [told] * comm.size, name
        assert told[1] == (1,), (name, told)
        opt.tune(lr=0.1)
        assert _state(opt) == before, name
        opt.step(gradient(2, comm.rank))  # all go on together
        assert len(set(comm.allgather(_state(opt)))) == 1, name

    opt = gpuopt.distributed.Optimizer(params(), gpuopt.Adam(), comm, nonfinite="skip")
    spoilt = gradient(0, comm.rank)
    if comm.rank == 1:
        spoilt["c"] = np.asarray(np.inf, "float32")
    before = _state(opt)
    opt.step(spoilt)
    assert (opt.steps, opt.skipped) == (1, 1)
    assert _state(opt)[1] == before[1]

    file = folder / "file.safetensors"
    gpuopt.save(file, opt)
    opt.step(gradient(1, comm.rank))
    before = _state(opt)
    (folder / "damaged.safetensors").write_bytes(b"x" * 100)

    def no_room(*_: Any) -> Any:
        raise MemoryError("no room")

    def loads() -> None:
        room = memory.in_memory_order
        if comm.rank == 1:
            memory.in_memory_order = no_room  # type: ignore[assignment]
        try:
            gpuopt.load(file, opt)
        finally:
            memory.in_memory_order = room

    for call, message in (
        (lambda: gpuopt.save(folder / "nowhere" / "x.safetensors", opt), "rank 0: FileNotFoundError"),
        (lambda: gpuopt.load(folder / "damaged.safetensors", opt), "rank 0: CheckpointError"),
        (loads, "rank 1: MemoryError: no room"),
    ):
        told = _told(call)
        assert message in told[0], told
        assert comm.allgather(told) == [told] * comm.size
        assert _state(opt) == before
    settings(comm)


@contextlib.contextmanager
def scarce(k: int) -> Iterator[list[int]]:
    """Let gpuopt's k-th array have no room, but for the few bytes that processes tell each other; yields how many there were."""
    count = [0]

    def scarcely(allocate: Callable[..., Any]) -> Callable[..., Any]:
        def allocated(*args: Any, **kwargs: Any) -> Any:
            caller: Any = sys._getframe(1)
            while "array_api_compat" in caller.f_code.co_filename:
                caller = caller.f_back
            is_ours = Path(gpuopt.__file__).parent in Path(caller.f_code.co_filename).parents
            if is_ours and caller.f_code.co_name not in {"highest", "told"}:
                count[0] += 1
                if count[0] == k:
                    raise MemoryError("no room")
            return allocate(*args, **kwargs)

        return allocated

    names = ("concatenate", "empty", "empty_like", "zeros", "zeros_like")
    libraries = [sys.modules[name] for name in ("numpy", "cupy") if name in sys.modules]
    before = [{name: getattr(library, name) for name in names} for library in libraries]
    for library, own in zip(libraries, before, strict=True):
        vars(library).update({name: scarcely(allocate) for name, allocate in own.items()})
    try:
        yield count
    finally:
        for library, own in zip(libraries, before, strict=True):
            vars(library).update(own)


def no_memory_on_devices(comm: Any, folder: Path) -> None:
    """The same of CuPy's arrays, by both ways."""
    import cupy

    for way in ("host", "nccl"):
        no_memory(comm, folder, cupy.asarray, transport=way)


def no_memory(comm: Any, folder: Path, space: Callable[[Any], Any] = lambda x: x, **more: Any) -> None:
    """One process has no room, for one array after the other of each call: the same error on all, and nothing has changed."""
    small_buckets()
    file = folder / "file.safetensors"
    rule = gpuopt.chain(gpuopt.LAMB(lr=0.1), gpuopt.EMA(0.9))
    clip = gpuopt.clip_by_global_norm(1.0)

    def two(leaves: dict[str, Any]) -> dict[str, Any]:
        return {name: space(leaves[name]) for name in "ae"}

    def made(steps: int) -> Any:
        opt = gpuopt.distributed.Optimizer(two(params()), rule, comm, clip=clip, timeout=20.0, **more)
        for step in range(steps):
            opt.step(two(gradient(step, comm.rank)))
        return opt

    gpuopt.save(file, made(1))
    calls: dict[str, Callable[[Any], object]] = {
        "another": lambda opt: made(0),
        "save": lambda opt: gpuopt.save(folder / "other.safetensors", opt),
        "load": lambda opt: gpuopt.load(file, opt),
        "state_dict": lambda opt: opt.state_dict(),
        "evaluation": lambda opt: opt.evaluation(),
        "step": lambda opt: opt.step(two(gradient(0, comm.rank))),
    }
    for name, call in calls.items():
        steps = 0 if name == "step" else 2
        before = _state(made(steps))
        for rank in (0, 1) if name in {"save", "load"} else (1,):  # in all else both are alike
            for k in range(1, 1000):
                opt = made(steps)
                told = None
                with scarce(k if comm.rank == rank else 0) as count:
                    try:
                        call(opt)
                    except RankError as error:
                        told = str(error)
                was_scarce = comm.bcast(count[0] >= k, rank)
                assert told == (f"rank {rank}: MemoryError: no room" if was_scarce else None), (name, rank, k, told)
                if not was_scarce:
                    break
                assert _state(opt) == before, (name, rank, k)
                call(opt)
            assert k > 1, (name, rank)


def settings(comm: Any) -> None:
    """Processes that were started otherwise."""
    one = comm.rank == 1
    w = np.zeros(3)
    names: Any = "Adam" if one else gpuopt.Adam()
    makes: dict[str, Callable[[], Any]] = {
        "rank 1: leaves is": lambda: gpuopt.distributed.Optimizer(np.zeros(3 + one), gpuopt.Adam(), comm),
        "rank 1: rules is": lambda: gpuopt.distributed.Optimizer(w, gpuopt.SGD() if one else gpuopt.Adam(), comm),
        "rank 1: parts is": lambda: gpuopt.distributed.Optimizer(w, gpuopt.SGD(), comm, parts=6 + one),
        "rank 1: TypeError: rule: 'Adam'": lambda: gpuopt.distributed.Optimizer(w, names, comm),
        "every rank: ValueError: parts: 1, expected a whole number of at least 3": lambda: gpuopt.distributed.Optimizer(
            w, gpuopt.SGD(), comm, parts=1
        ),
    }
    for message, make in makes.items():
        told = _told(make)
        assert message in told[0], told
        assert comm.allgather(told) == [told] * comm.size
    version, gpuopt.__version__ = gpuopt.__version__, "0.0" if one else gpuopt.__version__
    assert "rank 1: gpuopt is '0.0'" in _told(lambda: gpuopt.distributed.Optimizer(w, gpuopt.SGD(), comm))[0]
    gpuopt.__version__ = version


def _told(call: Callable[[], object]) -> tuple[str, tuple[int, ...]]:
    try:
        call()
    except RankError as error:
        return str(error), error.ranks
    raise AssertionError("no error")


def uncaught(comm: Any, folder: Path) -> None:
    """An exception on one process."""
    opt = gpuopt.distributed.Optimizer(np.zeros(3), gpuopt.SGD(), comm)
    opt.step(np.ones(3))
    if comm.rank == 1:
        raise ArithmeticError("this rank has had enough")
    opt.step(np.ones(3))


def everywhere(comm: Any, folder: Path) -> None:
    """The same exception on all: said once."""
    opt = gpuopt.distributed.Optimizer(np.zeros(3), gpuopt.SGD(), comm)
    opt.step(np.ones(4 if comm.rank == 1 else 3))


def killed(comm: Any, folder: Path) -> None:
    """A process that is gone from one moment to the next."""
    opt = gpuopt.distributed.Optimizer(np.zeros(3), gpuopt.SGD(), comm, timeout=10.0)
    for step in range(1000):
        if comm.rank == 1 and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        opt.step(np.ones(3))


def never(comm: Any, folder: Path) -> None:
    """A process that does something else."""
    opt = gpuopt.distributed.Optimizer(np.zeros(3), gpuopt.SGD(), comm, timeout=3.0)
    if comm.rank == 1:
        time.sleep(600)
    opt.step(np.ones(3))


def training(comm: Any, folder: Path) -> None:
    """Twelve steps that are saved one by one, and gone on with; on three processes one of them is killed on the way."""
    opt = gpuopt.distributed.Optimizer(params(), gpuopt.Adam(lr=0.1), comm, parts=PARTS, timeout=20.0)
    file = folder / "training.safetensors"
    if comm.bcast(file.exists()):
        gpuopt.load(file, opt)
    for step in range(opt.steps, 12):
        if comm.size == 3 and comm.rank == 2 and step == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        for i in opt.mine:
            opt.add(gradient(step, i))
        opt.step()
        gpuopt.save(file, opt)
    found = digest(opt)
    if comm.rank == 0:
        (folder / "training.json").write_text(json.dumps(found))


class Falling(gpuopt.training.Callback):
    """Lowers the learning rate on the way: on rank 0 alone, where callbacks are."""

    def step(self, run: Any) -> None:
        if run.optimizer.steps == 4:
            run.tune(lr=0.05)


def own_loop(comm: Any, folder: Path) -> None:
    """A loop of one's own, which on three processes is stopped by a signal that one of them gets."""
    rule = gpuopt.chain(gpuopt.LAMB(lr=0.1), gpuopt.EMA(0.9))
    opt = gpuopt.distributed.Optimizer(params(comm.rank if comm else 0), rule, comm, parts=PARTS)
    made = np.zeros(3)
    with gpuopt.Run(folder / "run", opt, checkpoint_every=3, callbacks=[Falling()], report=False) as run:
        drawn, count = run.remember("made", made), run.remember("count", [0])
        for step in run.steps(12):
            noise = run.random.normal(size=SHAPES["e"]).astype("f4")
            for i in opt.mine:
                opt.add(gradient(step, i) | {"e": noise})
            if comm and (comm.size, comm.rank, step) == (3, 1, 6):
                os.kill(os.getpid(), signal.SIGTERM)
            drawn += 1
            count[0] += 1
            run.step(loss=1.0 / (step + 1))
    assert (drawn == opt.steps).all()
    assert count == [opt.steps]
    assert run.finished is (not comm or comm.size != 3)
    assert run.stopped == (None if run.finished else "SIGTERM")
    assert opt.steps == (12 if run.finished else 7)
    found = digest(opt)
    if not comm or comm.rank == 0:
        (folder / "run.json").write_text(json.dumps(found))


def broken_loop(comm: Any, folder: Path) -> None:
    """What rank 0 cannot do is the error of all: a folder of another optimizer, a checkpoint that cannot be written."""
    opt = gpuopt.distributed.Optimizer(np.zeros(3), gpuopt.SGD(), comm)
    with gpuopt.Run(folder / "run", opt, checkpoint_every=1, report=False) as run:
        for _ in run.steps(2):
            run.step(np.ones(3))
    assert run.finished
    other = gpuopt.distributed.Optimizer(np.zeros(4), gpuopt.SGD(), comm)
    told = _broken(lambda: gpuopt.Run(folder / "run", other))
    assert "holds a run of another optimizer" in told, told

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    def writes_no_more() -> None:
        again = gpuopt.distributed.Optimizer(np.zeros(3), gpuopt.SGD(), comm)
        with gpuopt.Run(folder / "other", again, checkpoint_every=1, report=False) as run:
            for step in run.steps(50):
                if comm.rank == 0 and step == 3:
                    run._files.keep = full  # type: ignore[assignment, method-assign]
                run.step(np.ones(3))

    assert "Error" in _broken(writes_no_more)


def _broken(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - whichever it is
        return f"{type(error).__name__}: {error}"
    raise AssertionError("no error")


def devices(comm: Any, folder: Path) -> None:
    """Which GPU each process takes, of the two of this machine, and what they are told where these are too few."""
    import cupy

    team = gpuopt.training.Team(comm)
    assert team.device("cuda:1") == "cuda:1"
    assert team.device("cpu") == "cpu"
    if comm.size > 2:
        told = _broken(lambda: team.device("auto"))
        assert told == (
            "UsageError: --device auto: 3 processes on a machine with 2 GPUs; expected a GPU for each, or --device cpu"
        )
        return
    assert team.device("auto") == team.device("cuda") == f"cuda:{comm.rank}"
    with cupy.cuda.Device(0):
        told = _broken(
            lambda: gpuopt.distributed.Optimizer(cupy.zeros(3), gpuopt.SGD(), comm, transport="nccl", timeout=60.0)
        )
        assert "transport: 'nccl', but NCCL refuses" in told, told
        assert "ranks 0 and 1 use the same GPU" in told, told
        opt = gpuopt.distributed.Optimizer(cupy.zeros(3), gpuopt.SGD(), comm, timeout=60.0)
        assert opt._transport.way == "host"
    with cupy.cuda.Device(comm.rank):
        opt = gpuopt.distributed.Optimizer(cupy.zeros(3), gpuopt.SGD(lr=1.0), comm, timeout=60.0)
        assert opt._transport.way == "nccl"
        opt.step(cupy.ones(3))
        assert (opt.params == -1).all()


def killed_on_devices(comm: Any, folder: Path) -> None:
    """A process that is killed in the middle of an exchange of devices."""
    import cupy

    opt = gpuopt.distributed.Optimizer(cupy.zeros(9), gpuopt.SGD(), comm, transport="nccl", timeout=10.0)
    opt.step(cupy.ones(9))
    if comm.rank == 1:
        nccl.NCCL.exchange = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    opt.step(cupy.ones(9))


def page(_: Any, folder: Path, fence: str = "python") -> None:
    """The code of docs/processes.md, as it stands there."""
    text = Path(__file__).parent.parent.joinpath("docs", "processes.md").read_text()
    os.chdir(folder)
    exec("".join(re.findall(rf"^```{fence}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)), {"__name__": "page"})  # noqa: S102


def page_with_cupy(_: Any, folder: Path) -> None:
    """The code of docs/processes.md that needs GPUs."""
    page(_, folder, "py")


if __name__ == "__main__":
    from mpi4py import MPI

    warnings.simplefilter("error")
    globals()[sys.argv[1]](MPI.COMM_WORLD, Path(sys.argv[2]))
