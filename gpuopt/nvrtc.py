"""CUDA C++ at run time: compiled by NVRTC's public C interface, loaded by CuPy.

No kernel class of CuPy can compile our kernels: they all append ``-ftz=true`` to the options, which changes bits.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OPTIONS: Final = ("-fmad=false", "-ftz=false")
"""Options for the same bits as on the CPU: no contraction, and subnormals are kept."""


class CompilationError(RuntimeError):
    """NVRTC refused a program; the message is its log."""


def compiled(source: str) -> bytes:
    """Compile CUDA C++ for CuPy's current device, with `OPTIONS` and nothing else.

    Parameters
    ----------
    source
        The program; it can include no headers.

    Returns
    -------
    bytes
        Machine code (a cubin), or PTX for a device that is newer than NVRTC.

    Raises
    ------
    CompilationError
        If NVRTC refuses the program or the device.
    OSError
        If there is no NVRTC for the CUDA of CuPy, or CuPy is the one for AMD's GPUs.

    """
    return _compiled(_library(), source, architecture())


def architecture() -> str:
    """Return the architecture for CuPy's current device, such as ``"sm_90"``."""
    import cupy

    library = _library()
    count = ctypes.c_int()
    _check(library, library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    supported = (ctypes.c_int * count.value)()
    _check(library, library.nvrtcGetSupportedArchs(supported))
    return _architecture(int(cupy.cuda.Device().compute_capability), list(supported))


def version() -> tuple[int, int]:
    """Return the version of NVRTC."""
    library, major, minor = _library(), ctypes.c_int(), ctypes.c_int()
    _check(library, library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


def loaded(image: bytes, name: str) -> Any:
    """Load what `compiled` returned on CuPy's current device, and return its kernel ``name``: a `cupy.RawKernel`."""
    import cupy

    with _as_file(image) as path:
        kernel = cupy.RawModule(path=path).get_function(name)
        kernel.compile()  # which reads the file, now rather than at the first launch
    return kernel


@cache
def _library() -> ctypes.CDLL:
    """NVRTC, of the CUDA that CuPy was built for."""
    import cupy

    if cupy.cuda.runtime.is_hip:
        raise OSError("the installed CuPy is for AMD GPUs (ROCm), and code is compiled for NVIDIA GPUs alone")
    with contextlib.suppress(Exception):  # no such package, as before CuPy 14, or it finds nothing: the loader may
        from cuda import pathfinder

        pathfinder.load_nvidia_dynamic_lib("nvrtc")  # from then on it is found by its name
    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    return ctypes.CDLL(f"nvrtc64_{major}0_0.dll" if sys.platform == "win32" else f"libnvrtc.so.{major}")


def _architecture(capability: int, supported: Sequence[int]) -> str:
    """For which architecture to compile: machine code of one major version runs on all later minor ones, PTX on all."""
    known = max((a for a in supported if a <= capability), default=capability)
    return f"{'sm' if known // 10 == capability // 10 else 'compute'}_{known}"


def _compiled(library: ctypes.CDLL, source: str, architecture: str) -> bytes:
    program = ctypes.c_void_p()
    _check(library, library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"gpuopt.cu", 0, None, None))
    try:
        options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={architecture}")]
        result = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        _check(library, result, program)
        return _text(library, program, "CUBIN" if architecture.startswith("sm_") else "PTX")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _check(library: ctypes.CDLL, result: int, program: ctypes.c_void_p | None = None) -> None:
    if result:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        log = _text(library, program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip() if program else ""
        raise CompilationError(log or library.nvrtcGetErrorString(result).decode())


def _text(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    """Something of a program that has a size: ``"CUBIN"``, ``"PTX"`` or ``"ProgramLog"``."""
    size = ctypes.c_size_t()
    _check(library, library[f"nvrtcGet{what}Size"](program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(library, library[f"nvrtcGet{what}"](program, buffer))
    return buffer.raw


@contextlib.contextmanager
def _as_file(image: bytes) -> Iterator[str]:
    """A file of these contents, of a name that no other one has had: CuPy remembers modules by their paths."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gpuopt-", ignore_cleanup_errors=True))
            path = Path(folder, "kernel")
            path.write_bytes(image)
        except OSError:
            if not hasattr(os, "memfd_create"):
                raise
            # Nowhere to write: a file in memory, which stays open, so that no other one gets its name.
            memory = os.memfd_create("gpuopt")
            path = Path(f"/proc/self/fd/{memory}")
            path.write_bytes(image)
        yield str(path)
