"""Machine code for this processor: LLVM IR, compiled in memory through llvmlite.

A kernel takes some hundredths of a second to compile, so nothing is cached on disk. Machine code is never unloaded: a
thread may still be inside of it when the interpreter ends.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any

from gpuopt.engines.interrupts import forks, shielded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class MachineCodeUnavailable(RuntimeError):  # noqa: N818 - as `gpuopt.BackendUnavailable`
    """No machine code can be made in this process; the message says why."""


class _Compiler:
    """LLVM's just-in-time compiler and a description of this processor."""

    def __init__(self) -> None:
        import llvmlite.binding as llvm

        _check_executable_memory()
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._llvm = llvm
        self._machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
        )
        self._jit = llvm.create_lljit_compiler(self._machine)
        immortal(self._jit)
        self._names = (f"gpuopt{number}" for number in count())

    def image(self, text: str, *, optimize: bool) -> bytes:
        """Compile a module: the same text gives the same object file on the same processor."""
        llvm = self._llvm
        module = llvm.parse_assembly(text)
        if optimize:
            tuning = llvm.create_pipeline_tuning_options(speed_level=3)
            tuning.loop_vectorization = True
            builder = llvm.create_pass_builder(self._machine, tuning)
            builder.getModulePassManager().run(module, builder)
        image: bytes = self._machine.emit_object(module)
        return image

    def addresses(self, text: str, names: Sequence[str], *, optimize: bool) -> list[int]:
        """Compile a module and return the addresses of its functions."""
        library = self._llvm.JITLibraryBuilder().add_object_img(self.image(text, optimize=optimize))
        for name in names:
            library.export_symbol(name)
        tracker = library.add_current_process().link(self._jit, next(self._names))
        immortal(tracker)
        return [tracker[name] for name in names]


def immortal(thing: object) -> None:
    """Keep an object for the life of the process, even when the interpreter ends and drops all references."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


class _Lock:
    """Held while LLVM works, so that no fork copies its locks half-way."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        forks.register(self)


_compiling = _Lock()


def compiled(text: str, *, optimize: bool = True, **signatures: Any) -> tuple[Callable[..., Any], ...]:
    """Compile LLVM IR and return some of its functions.

    Parameters
    ----------
    text
        A module.
    optimize
        Whether to run LLVM's optimizer, which takes half of the time: for loops that become vectors.
    **signatures
        By the name of a function, its ctypes prototype.

    Raises
    ------
    MachineCodeUnavailable
        If no machine code can be made here.

    """

    def addresses() -> list[int]:
        with _compiling._lock:
            return _compiler().addresses(text, list(signatures), optimize=optimize)

    found = shielded(addresses)
    return tuple(signature(address) for signature, address in zip(signatures.values(), found, strict=True))


def why_unavailable() -> str:
    """Return why no machine code can be made in this process, in a few words; "" if it can."""
    try:
        _checked()
    except MachineCodeUnavailable as error:
        return str(error)
    return ""


@cache
def _compiler() -> _Compiler:
    try:
        return _Compiler()
    except Exception as error:  # llvmlite raises what LLVM says in exceptions of several types
        raise MachineCodeUnavailable(f"{type(error).__name__}: {error}") from error


@cache
def _checked() -> None:
    """Compile a function and call it, once."""
    text = "define i64 @answer(i64 %x) {\n  %y = add i64 %x, 1\n  ret i64 %y\n}\n"
    try:
        (answer,) = compiled(text, answer=ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64))
    except MachineCodeUnavailable:
        raise
    except Exception as error:  # as in `_compiler`
        raise MachineCodeUnavailable(f"{type(error).__name__}: {error}") from error
    if answer(41) != 42:
        raise MachineCodeUnavailable("compiled code computes nonsense")


def _check_executable_memory() -> None:
    """Raise OSError where memory that was written to may not be executed: LLVM would end the process."""
    import mmap

    if not hasattr(mmap, "PROT_EXEC"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        page[:1] = b"\0"
        view = ctypes.c_char.from_buffer(page)
        address = ctypes.c_void_p(ctypes.addressof(view))
        status = libc.mprotect(address, ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_EXEC)
        code = ctypes.get_errno()
        libc.mprotect(address, ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE)
        del view
    if status:
        raise OSError(code, "the system lets no process execute memory that it has written to")
