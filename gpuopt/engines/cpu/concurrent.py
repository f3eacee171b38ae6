"""Writing functions of several threads as LLVM IR, and what each kind of processor has of its own for them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from gpuopt.engines.cpu.ir import Function, spelled
from gpuopt.engines.values import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Machine(NamedTuple):
    """How a processor waits within a loop, and its floating-point mode (rounding, subnormals), which every thread has for itself."""

    declarations: str = ""
    pause: str = ""
    read_mode: str = ""
    set_mode: str = ""


_X86 = Machine(
    """
declare void @llvm.x86.sse2.pause()
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
""",
    "call void @llvm.x86.sse2.pause()",
    "call void @llvm.x86.sse.stmxcsr(ptr {0})",
    "call void @llvm.x86.sse.ldmxcsr(ptr {0})",
)
_ARM = Machine(
    """
declare void @llvm.aarch64.hint(i32)
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
""",
    "call void @llvm.aarch64.hint(i32 1)",
    "%fpcr.now = call i64 @llvm.aarch64.get.fpcr()\n  store i64 %fpcr.now, ptr {0}",
    "%fpcr = load i64, ptr {0}\n  call void @llvm.aarch64.set.fpcr(i64 %fpcr)",
)
MACHINES = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}
"""By the name that `platform.machine` has for it."""


class Concurrent(Function):
    """A function of several threads: words of 64 bits that all of them see, and loops that end at a condition."""

    def seen(self, word: Any, order: str) -> Any:
        """Read a word."""
        return self._value("i64", f"load atomic i64, ptr {word.term} {order}, align 8")

    def publish(self, value: Any, word: Any, order: str) -> None:
        """Write a word."""
        self.lines.append(f"store atomic i64 {self._term(value, 'i64')}, ptr {word.term} {order}, align 8")

    def change(self, op: str, word: Any, value: Any, order: str) -> Any:
        """Change a word by an atomic operation; return the word from before."""
        return self._value("i64", f"atomicrmw {op} ptr {word.term}, i64 {self._term(value, 'i64')} {order}")

    def replaced(self, word: Any, before: Any, after: Any, order: str) -> Any:
        """Replace a word atomically if it has the expected value; return whether it was replaced."""
        values = f"i64 {self._term(before, 'i64')}, i64 {self._term(after, 'i64')}"
        pair = self._value("{ i64, i1 }", f"cmpxchg ptr {word.term}, {values} {order} monotonic")
        return self._value("i1", f"extractvalue {{ i64, i1 }} {pair.term}, 1")

    @contextmanager
    def repeat(self) -> Iterator[Callable[[Any], None]]:
        """Write a block that is done again and again; what is yielded leaves it if a condition holds."""
        n = self._new()
        self.lines.append(f"br label %head{n}")
        self._begin(f"head{n}")

        def leave(condition: Any) -> None:
            going_on = f"on{self._new()}"
            self._branch(condition, f"end{n}", going_on)
            self._begin(going_on)

        yield leave
        self.lines.append(f"br label %head{n}")
        self._begin(f"end{n}")

    def variable(self, value: int) -> Any:
        """A number that changes, by its address."""
        place = self.room("i64", 1)
        place[0] = value
        return place

    def number(self, address: Any) -> Any:
        """An address as a number."""
        return self._value("i64", f"ptrtoint ptr {address.term} to i64")

    def through(self, function: Any, *args: Any, kind: str = "void") -> Any:
        """Call a function at an address; Python's numbers are given as 32 bits."""
        given = ", ".join(f"{spelled(arg.kind)} {arg.term}" if isinstance(arg, Value) else f"i32 {arg}" for arg in args)
        call = f"call {spelled(kind)} {function.term}({given})"
        return self.lines.append(call) if kind == "void" else self._value(kind, call)
