"""LLVM IR of the helper threads; see `gpuopt.engines.cpu.threads`.

``state`` is one word: the number of the job, how many helpers are inside of it (from bit 1 on), and in bit 0 whether it is
open. A helper enters by raising the count while the job is open; after the job is closed nobody enters.

Who takes part in a job wakes two others, as in a binary heap whose root is the calling thread, so that the calling thread
begins to work after two wakings however many helpers there are. Helpers that came too late for several jobs of a size are
left asleep in the next ones of the size, then tried again: ``late`` counts by size.
"""

from __future__ import annotations

import platform

# Byte offsets in the block that all threads share; what several threads write to has a cache line of its own. `sleeping`
# is followed, for each helper and a cache line apart, by the lock that the helper sleeps on.
FIELDS = {
    "state": 0,
    "next": 64,
    "busy": 128,
    "stop": 192,
    "work": 256,
    "context": 264,
    "items": 272,
    "share": 280,
    "mode": 288,
    "processor": 296,
    "helpers": 304,
    "limit": 320,
    "spins": 328,
    "yield": 336,
    "acquire": 344,
    "release": 352,
    "getcpu": 360,
    "setaffinity": 368,
    "processors": 384,
    "late": 512,
    "sleeping": 1088,
    "size": 1088 + 64 * 64,
}

PROCESSORS = 1024
"""How many processors the set of ``processors`` has room for."""
SIZES = 64
"""The largest size of a job, in threads that are worth their waking."""

_JOB = 16
"""The number of a job begins at this bit of the state."""
_SHARES = 8
"""Shares of a job for each thread: small ones, so that a processor that is busy with other things holds nobody up."""
TRIES = 8
"""Jobs of a size whose helpers may come too late, one after the other, before they are left asleep."""
ASLEEP = 64
"""Jobs of the size that they are left asleep for."""

# How a processor waits within a loop, and its floating-point mode (rounding, subnormals), which every thread has for
# itself: name of the machine, intrinsic functions, pause, to read the mode into %mode, and to set it.
_X86 = (
    """
declare void @llvm.x86.sse2.pause()
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
""",
    "call void @llvm.x86.sse2.pause()",
    "call void @llvm.x86.sse.stmxcsr(ptr {0})",
    "call void @llvm.x86.sse.ldmxcsr(ptr {0})",
)
_ARM = (
    """
declare void @llvm.aarch64.hint(i32)
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
""",
    "call void @llvm.aarch64.hint(i32 1)",
    "%fpcr.now = call i64 @llvm.aarch64.get.fpcr()\n  store i64 %fpcr.now, ptr {0}",
    "%fpcr = load i64, ptr {0}\n  call void @llvm.aarch64.set.fpcr(i64 %fpcr)",
)
_OTHER = ("", "", "", "")
_MACHINES = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}

_SOURCE = """
{declarations}
declare i64 @llvm.umin.i64(i64, i64)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define void @pauses(i64 %n) {{
entry:
  br label %again
again:
  %i = phi i64 [ 0, %entry ], [ %i.next, %again ]
  {pause}
  fence acquire
  %i.next = add i64 %i, 1
  %more = icmp slt i64 %i.next, %n
  br i1 %more, label %again, label %exit
exit:
  ret void
}}

; Give out shares to the calling thread until there are none, and return how many it got.
define internal i64 @shares(ptr %control, ptr %work, ptr %context, i64 %items, i64 %share) {{
entry:
  %next.at = getelementptr i8, ptr %control, i64 {next}
  br label %again
again:
  %done = phi i64 [ 0, %entry ], [ %done.next, %one ]
  %begin = atomicrmw add ptr %next.at, i64 %share monotonic
  %any = icmp slt i64 %begin, %items
  br i1 %any, label %one, label %exit
one:
  %rest = add i64 %begin, %share
  %end = call i64 @llvm.umin.i64(i64 %rest, i64 %items)
  call void %work(ptr %context, i64 %begin, i64 %end)
  %done.next = add i64 %done, 1
  br label %again
exit:
  ret i64 %done
}}

; Wake the helpers numbered 2 n and 2 n + 1, if they sleep and the job has a use for them, and return how many were woken.
define internal i64 @wake(ptr %control, i64 %n) {{
entry:
  %helpers.at = getelementptr i8, ptr %control, i64 {helpers}
  %helpers = load i64, ptr %helpers.at
  %first = shl i64 %n, 1
  %above = add i64 %first, 2
  %end = call i64 @llvm.umin.i64(i64 %above, i64 %helpers)
  br label %again
again:
  %k = phi i64 [ %first, %entry ], [ %k.next, %next ]
  %woken = phi i64 [ 0, %entry ], [ %woken.next, %next ]
  %more = icmp slt i64 %k, %end
  br i1 %more, label %look, label %exit
look:
  %sleeping.offset = mul i64 %k, 64
  %sleeping.first = getelementptr i8, ptr %control, i64 {sleeping}
  %sleeping.at = getelementptr i8, ptr %sleeping.first, i64 %sleeping.offset
  %slept = atomicrmw xchg ptr %sleeping.at, i64 0 seq_cst
  %sleeps = icmp ne i64 %slept, 0
  br i1 %sleeps, label %post, label %next
post:
  %lock.at = getelementptr i8, ptr %sleeping.at, i64 8
  %lock = load ptr, ptr %lock.at
  %release.at = getelementptr i8, ptr %control, i64 {release}
  %release = load ptr, ptr %release.at
  call void %release(ptr %lock)
  br label %next
next:
  %one = zext i1 %sleeps to i64
  %woken.next = add i64 %woken, %one
  %k.next = add i64 %k, 1
  br label %again
exit:
  ret i64 %woken
}}

define void @run(ptr %control, ptr %work, ptr %context, i64 %items, i64 %most) {{
entry:
  %limit.at = getelementptr i8, ptr %control, i64 {limit}
  %limit = load i64, ptr %limit.at
  %workers = call i64 @llvm.umin.i64(i64 %most, i64 %limit)
  %alone = icmp sle i64 %workers, 1
  br i1 %alone, label %do.all, label %own
own:
  %busy.at = getelementptr i8, ptr %control, i64 {busy}
  %owned = cmpxchg ptr %busy.at, i64 0, i64 1 acquire monotonic
  %is.mine = extractvalue {{ i64, i1 }} %owned, 1
  br i1 %is.mine, label %publish, label %do.all
do.all:
  call void %work(ptr %context, i64 0, i64 %items)
  ret void
publish:
  %work.at = getelementptr i8, ptr %control, i64 {work}
  %context.at = getelementptr i8, ptr %control, i64 {context}
  %items.at = getelementptr i8, ptr %control, i64 {items}
  %share.at = getelementptr i8, ptr %control, i64 {share}
  %mode.at = getelementptr i8, ptr %control, i64 {mode}
  %next.at = getelementptr i8, ptr %control, i64 {next}
  %state.at = getelementptr i8, ptr %control, i64 {state}
  %parts = mul i64 %workers, {SHARES}
  %above = add i64 %items, %parts
  %rounded = sub i64 %above, 1
  %share = sdiv i64 %rounded, %parts
  store ptr %work, ptr %work.at
  store ptr %context, ptr %context.at
  store i64 %items, ptr %items.at
  store i64 %share, ptr %share.at
  %helpers = sub i64 %workers, 1
  %helpers.at = getelementptr i8, ptr %control, i64 {helpers}
  store i64 %helpers, ptr %helpers.at
  {read_mode}
  %processor.at = getelementptr i8, ptr %control, i64 {processor}
  %getcpu.at = getelementptr i8, ptr %control, i64 {getcpu}
  %getcpu = load ptr, ptr %getcpu.at
  %no.getcpu = icmp eq ptr %getcpu, null
  br i1 %no.getcpu, label %open.job, label %tell.processor
tell.processor:
  %processor.now = call i32 %getcpu()
  %processor.wide = sext i32 %processor.now to i64
  store i64 %processor.wide, ptr %processor.at
  br label %open.job
open.job:
  store atomic i64 0, ptr %next.at monotonic, align 8
  %before = load atomic i64, ptr %state.at monotonic, align 8
  %job.before = lshr i64 %before, {JOB}
  %job = add i64 %job.before, 1
  %job.bits = shl i64 %job, {JOB}
  %open = or i64 %job.bits, 1
  store atomic i64 %open, ptr %state.at seq_cst, align 8
  %size = call i64 @llvm.umin.i64(i64 %most, i64 {SIZES})
  %late.offset = mul i64 %size, 8
  %late.first = getelementptr i8, ptr %control, i64 {late}
  %late.at = getelementptr i8, ptr %late.first, i64 %late.offset
  %late = load i64, ptr %late.at
  %late.next = add i64 %late, 1
  %hopeless = icmp sge i64 %late, {TRIES}
  br i1 %hopeless, label %let.sleep, label %wake.some
let.sleep:
  %try.again = icmp sge i64 %late.next, {WAKE_AGAIN}
  %late.asleep = select i1 %try.again, i64 {LAST_TRY}, i64 %late.next
  br label %work.too
wake.some:
  %woken.now = call i64 @wake(ptr %control, i64 0)
  br label %work.too
work.too:
  %woken = phi i64 [ 0, %let.sleep ], [ %woken.now, %wake.some ]
  %late.kept = phi i64 [ %late.asleep, %let.sleep ], [ %late, %wake.some ]
  %own.shares = call i64 @shares(ptr %control, ptr %work, ptr %context, i64 %items, i64 %share)
  %closed = atomicrmw and ptr %state.at, i64 -2 seq_cst
  br label %wait
wait:
  %waits = phi i64 [ 0, %work.too ], [ %waits.next, %pause ]
  %now = load atomic i64, ptr %state.at acquire, align 8
  %idle = icmp eq i64 %now, %job.bits
  br i1 %idle, label %end, label %wait.more
wait.more:
  %waits.next = add i64 %waits, 1
  %long = icmp sgt i64 %waits.next, 4000
  br i1 %long, label %yield, label %pause
yield:
  %yield.at = getelementptr i8, ptr %control, i64 {yield}
  %yield.now = load ptr, ptr %yield.at
  %ignored = call i32 %yield.now()
  br label %pause
pause:
  {pause}
  br label %wait
end:
  ; Worth the waking is an eighth of the work.
  %own.items = mul i64 %own.shares, %share
  %own.eightfold = mul i64 %own.items, 8
  %sevenfold = mul i64 %items, 7
  %in.time = icmp sle i64 %own.eightfold, %sevenfold
  %late.found = select i1 %in.time, i64 0, i64 %late.next
  %none.woken = icmp eq i64 %woken, 0
  %late.new = select i1 %none.woken, i64 %late.kept, i64 %late.found
  store i64 %late.new, ptr %late.at
  store atomic i64 0, ptr %busy.at release, align 8
  ret void
}}

; Keep the calling thread, a helper, away from the processor of a thread that gives it work: a virtual machine's idle processor
; does not always look idle to the system, which then wakes the helper where it has to wait until the work is done.
define internal void @avoid(ptr %control, i64 %processor) {{
entry:
  %set = alloca [{SET} x i8], align 8
  %function.at = getelementptr i8, ptr %control, i64 {setaffinity}
  %function = load ptr, ptr %function.at
  %none = icmp eq ptr %function, null
  %outside = icmp uge i64 %processor, {PROCESSORS}
  %nothing = or i1 %none, %outside
  br i1 %nothing, label %exit, label %clear
clear:
  %all = getelementptr i8, ptr %control, i64 {processors}
  call void @llvm.memcpy.p0.p0.i64(ptr %set, ptr %all, i64 {SET}, i1 false)
  %byte.index = lshr i64 %processor, 3
  %bit = and i64 %processor, 7
  %byte.at = getelementptr i8, ptr %set, i64 %byte.index
  %byte = load i8, ptr %byte.at
  %bit8 = trunc i64 %bit to i8
  %one = shl i8 1, %bit8
  %others = xor i8 %one, -1
  %cleared = and i8 %byte, %others
  store i8 %cleared, ptr %byte.at
  %ignored = call i32 %function(i32 0, i64 {SET}, ptr %set)
  br label %exit
exit:
  ret void
}}

define void @serve(ptr %control, i64 %k) {{
entry:
  %avoided.at = alloca i64
  store i64 -1, ptr %avoided.at
  %processor.at = getelementptr i8, ptr %control, i64 {processor}
  %state.at = getelementptr i8, ptr %control, i64 {state}
  %stop.at = getelementptr i8, ptr %control, i64 {stop}
  %mode.at = getelementptr i8, ptr %control, i64 {mode}
  %spins.at = getelementptr i8, ptr %control, i64 {spins}
  %spins = load i64, ptr %spins.at
  %sleeping.offset = mul i64 %k, 64
  %sleeping.first = getelementptr i8, ptr %control, i64 {sleeping}
  %sleeping.at = getelementptr i8, ptr %sleeping.first, i64 %sleeping.offset
  %lock.at = getelementptr i8, ptr %sleeping.at, i64 8
  %lock = load ptr, ptr %lock.at
  %acquire.at = getelementptr i8, ptr %control, i64 {acquire}
  %acquire = load ptr, ptr %acquire.at
  %held = call i32 %acquire(ptr %lock, i32 1)
  br label %look
look:
  %last = phi i64 [ 0, %entry ], [ %last, %again ], [ %last, %slept ], [ %job, %worked ]
  %n = phi i64 [ 0, %entry ], [ %n.next, %again ], [ 0, %slept ], [ 0, %worked ]
  %state = load atomic i64, ptr %state.at acquire, align 8
  %open.bit = and i64 %state, 1
  %is.open = icmp ne i64 %open.bit, 0
  %job = lshr i64 %state, {JOB}
  %is.new = icmp ne i64 %job, %last
  %wanted = and i1 %is.open, %is.new
  br i1 %wanted, label %enter, label %idle
enter:
  %inside = add i64 %state, 2
  %entered = cmpxchg ptr %state.at, i64 %state, i64 %inside acq_rel monotonic
  %is.inside = extractvalue {{ i64, i1 }} %entered, 1
  br i1 %is.inside, label %worked, label %idle
worked:
  %work.at = getelementptr i8, ptr %control, i64 {work}
  %context.at = getelementptr i8, ptr %control, i64 {context}
  %items.at = getelementptr i8, ptr %control, i64 {items}
  %share.at = getelementptr i8, ptr %control, i64 {share}
  %work = load ptr, ptr %work.at
  %context = load ptr, ptr %context.at
  %items = load i64, ptr %items.at
  %share = load i64, ptr %share.at
  {set_mode}
  %node = add i64 %k, 1
  %woken.too = call i64 @wake(ptr %control, i64 %node)
  %ignored = call i64 @shares(ptr %control, ptr %work, ptr %context, i64 %items, i64 %share)
  %left = atomicrmw sub ptr %state.at, i64 2 acq_rel
  br label %look
idle:
  %stop = load atomic i64, ptr %stop.at monotonic, align 8
  %stopped = icmp ne i64 %stop, 0
  br i1 %stopped, label %exit, label %count
count:
  %n.next = add i64 %n, 1
  %tired = icmp sgt i64 %n.next, %spins
  br i1 %tired, label %sleep, label %again
again:
  {pause}
  br label %look
sleep:
  %processor = load atomic i64, ptr %processor.at monotonic, align 8
  %avoided = load i64, ptr %avoided.at
  %is.other = icmp ne i64 %processor, %avoided
  br i1 %is.other, label %avoid.it, label %lie.down
avoid.it:
  call void @avoid(ptr %control, i64 %processor)
  store i64 %processor, ptr %avoided.at
  br label %lie.down
lie.down:
  store atomic i64 1, ptr %sleeping.at seq_cst, align 8
  fence seq_cst
  %state.now = load atomic i64, ptr %state.at seq_cst, align 8
  %open.now = and i64 %state.now, 1
  %job.now = lshr i64 %state.now, {JOB}
  %new.now = icmp ne i64 %job.now, %last
  %opened = icmp ne i64 %open.now, 0
  %stop.now = load atomic i64, ptr %stop.at seq_cst, align 8
  %stops = icmp ne i64 %stop.now, 0
  %come = and i1 %opened, %new.now
  %awake = or i1 %come, %stops
  br i1 %awake, label %stay, label %block
stay:
  %was = atomicrmw xchg ptr %sleeping.at, i64 0 seq_cst
  %nobody.woke = icmp ne i64 %was, 0
  br i1 %nobody.woke, label %slept, label %block
block:
  %woken = call i32 %acquire(ptr %lock, i32 1)
  br label %slept
slept:
  br label %look
exit:
  ret void
}}
"""


def source(name: str | None = None) -> str:
    """LLVM IR of ``run``, ``serve`` and ``pauses`` for a machine (as `platform.machine` calls it), by default this one."""
    declarations, pause, read_mode, set_mode = _MACHINES.get((name or platform.machine()).lower(), _OTHER)
    return _SOURCE.format(
        **FIELDS,
        declarations=declarations,
        pause=pause,
        read_mode=read_mode.format("%mode.at"),
        set_mode=set_mode.format("%mode.at"),
        JOB=_JOB,
        SET=PROCESSORS // 8,
        PROCESSORS=PROCESSORS,
        SHARES=_SHARES,
        SIZES=SIZES,
        TRIES=TRIES,
        LAST_TRY=TRIES - 1,
        WAKE_AGAIN=TRIES + ASLEEP,
    )
