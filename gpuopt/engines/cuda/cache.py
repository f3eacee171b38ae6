"""CUDA kernels, compiled and loaded once: in a process, and on a machine, where CuPy keeps its own compiled kernels."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from gpuopt import nvrtc
from gpuopt.engines.interrupts import shielded

DIGEST = hashlib.sha256().digest_size


@cache
def function(text: str, name: str, device: int) -> Any:
    """Compile and load the kernel ``name`` of a program on a device; the same arguments give the same kernel."""

    def load() -> Any:
        import cupy

        with cupy.cuda.Device(device):  # of this thread, which `shielded` may have made
            return nvrtc.loaded(compiled(text), name)

    return shielded(load)


def compiled(text: str) -> bytes:
    """Compile a kernel for the current device, or find it in CuPy's folder of kernels.

    A folder that cannot be used costs the compilation only. A file begins with the digest of what follows: one that was
    damaged is compiled and written again.
    """
    key = repr((text, nvrtc.OPTIONS, nvrtc.architecture(), nvrtc.version()))
    try:
        folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    except RuntimeError:  # nobody knows a home folder
        return nvrtc.compiled(text)
    path = folder / f"gpuopt_{hashlib.sha256(key.encode()).hexdigest()}.kernel"
    with suppress(OSError):
        kept = path.read_bytes()
        if kept[:DIGEST] == hashlib.sha256(kept[DIGEST:]).digest():
            return kept[DIGEST:]
    image = nvrtc.compiled(text)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, hashlib.sha256(image).digest() + image)
    return image


def _write(path: Path, content: bytes) -> None:
    """Write a file: all of it or, with an OSError, nothing. Other processes see the former file or the new one."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, delete=False) as file:
        new = Path(file.name)
        try:
            file.write(content)
            file.close()
            new.replace(path)
        except BaseException:
            with suppress(OSError):
                file.close()
            with suppress(OSError):
                new.unlink()
            raise
