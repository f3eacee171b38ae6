"""LLVM IR of the helper threads; see `gpuopt.engines.cpu.threads`.

``state`` is one word: the number of the job, how many helpers are inside of it (from bit 1 on), and in bit 0 whether it is
open. A helper enters by raising the count while the job is open; after the job is closed nobody enters.

Who takes part in a job wakes two others, as in a binary heap whose root is the calling thread, so that the calling thread
begins to work after two wakings however many helpers there are. Whether a short job is worth them, time tells: of each round
of runs the first ones are done with helpers, the next ones without, and the others as took less. Who gives the job keeps its
``times`` from run to run: how many there were, and the least nanoseconds of those without helpers and of those with them.

The items are cut into parts, one for each thread, and these into shares. ``taken`` counts for each part the shares that its own
thread took, from the beginning, and in the upper half of the word those that others took, from the end. So from job to job each
thread comes back to the same memory, in the order in which processors read ahead.
"""

from __future__ import annotations

import platform
import time
from typing import Any

from gpuopt.engines.cpu.concurrent import MACHINES, Concurrent, Machine

# Byte offsets in the block that all threads share; what several threads write to has a cache line of its own. `sleeping`
# is followed, for each helper and a cache line apart, by the lock that the helper sleeps on.
FIELDS = {
    "state": 0,
    "busy": 128,
    "stop": 192,
    "work": 256,
    "context": 264,
    "items": 272,
    "share": 280,
    "parts": 288,
    "processor": 296,
    "helpers": 304,
    "mode": 312,
    "limit": 320,
    "spins": 328,
    "yield": 336,
    "acquire": 344,
    "release": 352,
    "getcpu": 360,
    "setaffinity": 368,
    "clock": 376,
    "processors": 384,
    "roused": 512,
    "since": 576,
    "short": 584,
    "sleeping": 640,
    "taken": 640 + 64 * 64,
    "size": 640 + 2 * 64 * 64,
}

PROCESSORS = 1024
"""How many processors the set of ``processors`` has room for."""
TIMES = 3
"""Words of a job's ``times``."""

_JOB = 16
"""The number of a job begins at this bit of the state."""
_SHARES = 16
"""Shares of a job for each thread: small ones, so that a processor that is busy with other things holds nobody up."""
TRIES = 3
"""Runs of a short job with helpers, then without, by which it is decided how the next ones are done."""
ROUND, ALONE = 256, 64
"""Runs until it is decided anew, and where it was decided to do without helpers: for a noisy moment to have decided that costs more."""
WARM = 16
"""Runs with helpers before the first round, in which memory is touched for the first time and helpers are started."""
PATIENCE = 16
"""How many times as long a helper spins that has been roused, if no job comes."""

_NEVER = (1 << 63) - 1
"""Nanoseconds of a run that was none."""
_MONOTONIC = getattr(time, "CLOCK_MONOTONIC", 0)
"""The system's name for a clock that no one sets."""

_GIVEN = {"work": "i8*", "context": "i8*", "items": "i64", "share": "i64", "parts": "i64"}
"""Fields of a job, and their types: the function to call, its first argument, how many items there are, how many make a share, and how many
parts there are."""
WAITS = 4000
"""Pauses of a thread that waits for helpers, before it lets others have its processor."""


class _Function(Concurrent):
    """A function of the helpers or of a thread that has work for them; its first argument is the block that they share."""

    def field(self, name: str, kind: str = "i64") -> Any:
        """The address of a field of the block that all threads share."""
        return self.given["control"].at(FIELDS[name]).bits(f"{kind}*")


def _pauses(machine: Machine) -> str:
    """Wait for so many pauses."""
    f = _Function("pauses", "i64 n")
    with f.loop(0, f.given["n"]):
        f.lines += [machine.pause, "fence acquire"]
    return f.text()


def _shares() -> str:
    """Do shares of a job until none is left, those of the own part first."""
    f = _Function(
        "shares",
        "i8* control, i64 number, i8* work, i8* context, i64 items, i64 share, i64 parts",
        internal=True,
    )
    _, number, work, context, items, share, parts = f.given.values()
    with f.loop(0, parts) as k:
        part, is_own = (number + k) % parts, k == 0
        first, end = items * part // parts, items * (part + 1) // parts
        count, taken = (end - first + share - 1) // share, f.field("taken").at(part * 8)
        with f.repeat() as leave:
            before = f.change("add", taken, f.where(is_own, f.whole(1), 1 << 32), "monotonic")
            own, others = before & 0xFFFFFFFF, before >> 32
            leave(own + others >= count)
            begin = first + f.where(is_own, own, count - 1 - others) * share
            f.through(work, context, begin, f.smaller(begin + share, end))
    return f.text()


def _wake() -> str:
    """Wake the helpers numbered 2 n and 2 n + 1, if they sleep and the job has a use for them."""
    f = _Function("wake", "i8* control, i64 n", internal=True)
    first = f.given["n"] * 2
    with f.loop(first, f.smaller(first + 2, f.field("helpers")[0])) as k:
        sleeping = f.field("sleeping").at(k * 8)
        with f.when(f.change("xchg", sleeping, 0, "seq_cst") != 0):
            f.through(f.field("release", "i8*")[0], sleeping.bits("i8**")[1])
    return f.text()


class _Times:
    """How long a job took with helpers and without, and whether it is worth waking them."""

    def __init__(self, f: _Function) -> None:
        self._f, self._own = f, f.given["times"]
        self._run = (self._own[0] + (ROUND - WARM)) % ROUND

    def is_worth_helpers(self) -> Any:
        """Whether the next run is done with helpers."""
        alone, helped = self._own[1], self._own[2]
        is_long, is_tried = helped > self._f.field("short")[0], self._run >= TRIES
        return (is_tried == 0) | is_long | ((self._run >= 2 * TRIES) & (helped <= alone))

    def took(self, nanoseconds: Any, with_helpers: Any) -> None:
        """Note how long a run took."""
        f, own = self._f, self._own
        for k, is_so in ((1, with_helpers == 0), (2, with_helpers != 0)):
            before = f.where(self._run == 0, f.whole(_NEVER), own[k])
            own[k] = f.where(is_so, f.smaller(before, nanoseconds), before)
        is_alone = (self._run == 2 * TRIES - 1) & (own[1] < own[2])
        own[0] = own[0] + f.where(is_alone, f.whole(1 + ROUND - ALONE), 1)


def _now() -> str:
    """Return the nanoseconds of the system's clock; 0 where it has none."""
    f = _Function("now", "i8* control", "i64", internal=True)
    clock, found = f.field("clock", "i8*")[0], f.room("i64", 2)
    found[0] = found[1] = f.whole(0)
    with f.when(clock != None):
        f.through(clock, _MONOTONIC, found, kind="i32")
    return f.text(found[0] * 1_000_000_000 + found[1])


def _rouse() -> str:
    """Wake the helpers for a job that is about to come, so that they wake up while the calling thread still prepares it.

    ``roused`` is 1 until the next job, which began at ``since``.
    """
    f = _Function("rouse", "i8* control, i64* times, i64 most")
    control, _, most = f.given.values()
    workers = f.smaller(most, f.field("limit")[0])
    with f.when(workers > 1):
        f.field("since")[0] = f.call("now", control, kind="i64")
        with f.when((f.seen(f.field("busy"), "monotonic") == 0) & _Times(f).is_worth_helpers()):
            f.field("helpers")[0] = workers - 1
            f.publish(1, f.field("roused"), "seq_cst")
            f.call("wake", control, f.whole(0))
    return f.text()


def _run(machine: Machine) -> str:
    """Do a job: share it out unless one thread is enough, or another job is."""
    f = _Function("run", "i8* control, i8* work, i8* context, i64 items, i64 most, i64* times")
    control, work, context, items, most, _ = f.given.values()
    is_shared, with_helpers, since, waits = (f.variable(0) for _ in range(4))
    workers, times = f.smaller(most, f.field("limit")[0]), _Times(f)
    f.publish(0, f.field("roused"), "monotonic")
    with f.when((workers > 1) & (items > 0)):
        since[0] = f.change("xchg", f.field("since"), 0, "monotonic")
        with f.when(since[0] == 0):
            since[0] = f.call("now", control, kind="i64")
        with_helpers[0] = times.is_worth_helpers().cast("i64")
        with f.when(with_helpers[0] != 0):
            is_shared[0] = f.replaced(f.field("busy"), 0, 1, "acquire").cast("i64")
    with f.when(is_shared[0] == 0):
        f.through(work, context, f.whole(0), items)
    with f.when(is_shared[0] != 0):
        shares = workers * _SHARES
        share = (items + shares - 1) // shares
        given = (work, context, items, share, workers)
        for (field, kind), value in zip(_GIVEN.items(), given, strict=True):
            f.field(field, kind)[0] = value
        f.field("helpers")[0] = workers - 1
        f.lines.append(machine.read_mode.format(f.field("mode").term))
        processor = f.field("getcpu", "i8*")[0]
        with f.when(processor != None):
            f.field("processor")[0] = f.through(processor, kind="i32").cast("i64")
        with f.loop(0, workers) as k:
            f.publish(0, f.field("taken").at(k * 8), "monotonic")
        state = f.field("state")
        closed = ((f.seen(state, "monotonic") >> _JOB) + 1) << _JOB
        f.publish(closed | 1, state, "seq_cst")
        f.call("wake", control, f.whole(0))
        f.call("shares", control, f.whole(0), *given)
        f.change("and", state, -2, "seq_cst")
        with f.repeat() as leave:
            leave(f.seen(state, "acquire") == closed)
            waits[0] = waits[0] + 1
            with f.when(waits[0] > WAITS):
                f.through(f.field("yield", "i8*")[0], kind="i32")
            f.lines.append(machine.pause)
        f.publish(0, f.field("busy"), "release")
    # Unless the helpers were another job's.
    with f.when((since[0] != 0) & (is_shared[0] == with_helpers[0])):
        times.took(f.call("now", control, kind="i64") - since[0], is_shared[0])
    return f.text()


def _avoid() -> str:
    """Keep the calling thread, a helper, away from the processor of a thread that gives it work.

    A virtual machine's idle processor does not always look idle to the system, which then wakes the helper where it has to wait until
    the work is done.
    """
    f = _Function("avoid", "i8* control, i64 processor", internal=True)
    function, processor = f.field("setaffinity", "i8*")[0], f.given["processor"]
    usable = f.room("i64", PROCESSORS // 64)
    # No processor is known as a number beyond all.
    with f.when((function != None) & (processor >= 0) & (processor < PROCESSORS)):
        f.copy(usable, f.field("processors"), PROCESSORS // 8)
        word = processor >> 6
        usable[word] = usable[word] & ((f.whole(1) << (processor & 63)) ^ -1)
        f.through(function, 0, f.whole(PROCESSORS // 8), usable, kind="i32")
    return f.text()


def _serve(machine: Machine) -> str:
    """Be a helper, until the interpreter ends."""
    f = _Function("serve", "i8* control, i64 k")
    control, k = f.given.values()
    last, idle, is_inside, must_wait = (f.variable(0) for _ in range(4))
    avoided = f.variable(-1)
    state, sleeping = f.field("state"), f.field("sleeping").at(k * 8)
    lock, acquire = sleeping.bits("i8**")[1], f.field("acquire", "i8*")[0]
    spins = f.field("spins")[0]

    def is_wanted(now: Any) -> Any:
        return ((now & 1) != 0) & ((now >> _JOB) != last[0])

    f.through(acquire, lock, 1, kind="i32")
    with f.repeat() as leave:
        now = f.seen(state, "acquire")
        is_inside[0] = 0
        with f.when(is_wanted(now)):
            is_inside[0] = f.replaced(state, now, now + 2, "acq_rel").cast("i64")
        with f.when(is_inside[0] != 0):
            last[0], idle[0] = now >> _JOB, 0
            f.lines.append(machine.set_mode.format(f.field("mode").term))
            f.call("wake", control, k + 1)
            f.call(
                "shares",
                control,
                k + 1,
                *(f.field(name, kind)[0] for name, kind in _GIVEN.items()),
            )
            f.change("sub", state, 2, "acq_rel")
        with f.when(is_inside[0] == 0):
            leave(f.seen(f.field("stop"), "monotonic") != 0)
            idle[0] = idle[0] + 1
            is_roused = f.seen(f.field("roused"), "monotonic") != 0
            is_tired = idle[0] > f.where(is_roused, spins * PATIENCE, spins)
            with f.when(is_tired == 0):
                f.lines.append(machine.pause)
            with f.when(is_tired):
                processor = f.seen(f.field("processor"), "monotonic")
                with f.when(processor != avoided[0]):
                    f.call("avoid", control, processor)
                    avoided[0] = processor
                f.publish(1, sleeping, "seq_cst")
                f.lines.append("fence seq_cst")
                is_needed = is_wanted(f.seen(state, "seq_cst")) | (f.seen(f.field("stop"), "seq_cst") != 0)
                must_wait[0] = 1
                # Who has been woken already has to take the lock all the same.
                with f.when(is_needed):
                    must_wait[0] = (f.change("xchg", sleeping, 0, "seq_cst") == 0).cast("i64")
                with f.when(must_wait[0] != 0):
                    f.through(acquire, lock, 1, kind="i32")
                with f.when(f.seen(f.field("roused"), "seq_cst") != 0):
                    f.call("wake", control, k + 1)
                idle[0] = 0
    return f.text()


def source(name: str | None = None) -> str:
    """LLVM IR of ``run``, ``rouse``, ``serve`` and ``pauses`` for a machine (as `platform.machine` calls it), by default this one."""
    machine = MACHINES.get((name or platform.machine()).lower(), Machine())
    declarations = [
        machine.declarations,
        "declare i64 @llvm.smin.i64(i64, i64)",
        "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)",
    ]
    functions = [_pauses(machine), _now(), _shares(), _wake(), _rouse(), _run(machine), _avoid(), _serve(machine)]
    return "\n".join([*declarations, *functions])
