"""The fused engine for CuPy: traced programs as one CUDA kernel, one launch a step.

The kernel is compiled by NVRTC with exactly ``-fmad=false -ftz=false``, which no kernel class of CuPy allows (they
append ``-ftz=true``), so that it computes as the CPU does, bit for bit.
"""

from __future__ import annotations

import os
import weakref
from functools import cache
from itertools import repeat
from operator import call, is_, is_not
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.backends import fetch
from gpuopt.engines import emit_cuda, segments
from gpuopt.engines.guard import LANES
from gpuopt.engines.memory import side_by_side

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gpuopt.engines.memory import Layout
    from gpuopt.engines.segments import Table

OPTIONS = ("-fmad=false", "-ftz=false")


@cache
def _function(text: str, name: str, device: int) -> Any:
    """A kernel, loaded on the current device, which is ``device``."""
    from cupy.cuda.function import Module

    module = Module()
    module.load(_compile(text, device))
    return module.get_function(name)


def _compile(text: str, device: int) -> bytes:
    """Compile a kernel, or find it in CuPy's folder of kernels. A folder that cannot be used only costs the compilation."""
    import hashlib
    import tempfile

    import cupy
    from cupy.cuda import compiler, nvrtc

    capability = cupy.cuda.Device(device).compute_capability
    key = repr((text, OPTIONS, capability, nvrtc.getVersion(), cupy.__version__))
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    path = folder / f"gpuopt_{hashlib.sha256(key.encode()).hexdigest()}.cubin"
    try:
        kept = path.read_bytes()
        if kept[:32] == hashlib.sha256(kept[32:]).digest():
            return kept[32:]
    except OSError:
        pass
    image: bytes = compiler.compile_using_nvrtc(text, OPTIONS)[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(hashlib.sha256(image).digest() + image)
        Path(file.name).replace(path)
    except OSError:
        pass
    return image


class CUDAKernel:
    """The step over a table of CuPy arrays of one device, on the current stream."""

    def __init__(self, table: Table, device: int) -> None:
        import cupy

        self._table = table
        self._device = cupy.cuda.Device(device)
        with self._device:
            self._step = _function(emit_cuda.source(table.variants), "step", device)
            self._rows, self._chunks = cupy.asarray(table.rows), cupy.asarray(table.chunks)
            self._gradients = cupy.asarray(table.gradients)
            self._verdict = cupy.zeros(emit_cuda.SCALES + len(table.rows))
            self._settle()
        self._report: tuple[Any, Any] | None = None
        self._measured: tuple[Any, ...] | None = None
        self._sent = table.gradients.copy()
        # Passed by value: CUDA takes its copy at the launch, so the host may write the next step's at once.
        self._values = (
            np.int32(table.gradients_at),
            table.values.view(np.dtype((np.void, segments.VALUE_BYTES))),
        )

    @staticmethod
    def _settle() -> None:
        """Wait, once, until what was made on this stream is there, the state too: a step may come on any other."""
        import cupy

        cupy.cuda.get_current_stream().synchronize()

    def __call__(self) -> None:
        """Update every segment that has a gradient, unless the verdict says not to."""
        self._launch(self._step, self._rows, self._gradients, self._chunks, self._verdict)

    def judge(self, clip: str | None, limit: float, skip: int) -> None:
        """Look at the gradients and decide on the device; the host is not told.

        Parameters
        ----------
        clip, limit
            How and to which norm gradients are scaled down.
        skip
            0: never leave out a step; 1: if a gradient is not finite; ``STICKY``: and all that follow, too.

        """
        import cupy

        if self._measured is None:
            with self._device:
                function = _function(emit_cuda.measure(), "measure", self._device.id)
                first_chunk = np.searchsorted(self._table.chunks[:, 0], np.arange(len(self._table.rows) + 1))
                partials = cupy.zeros((len(self._table.chunks), 3))
                finished = cupy.zeros(1, np.uint32)
                self._measured = (
                    function,
                    cupy.asarray(first_chunk),
                    partials,
                    cupy.zeros((len(first_chunk) - 1, 3)),
                    finished,
                )
                self._settle()
        function, first_chunk, partials, sums, finished = self._measured
        segments_, columns = (np.int64(n) for n in self._table.rows.shape)
        arrays = (self._gradients, self._chunks, first_chunk, partials, sums, self._verdict, finished)
        decision = (np.int32(emit_cuda.CLIPS.index(clip)), np.float64(limit), np.int32(skip))
        self._launch(function, self._rows, columns, segments_, *arrays, *decision)

    def sums(self) -> NDArray[np.float64]:
        """Return the sums of squares of every segment's gradient, of shape (segments, 3); waits for the device."""
        self.judge(None, 0.0, 0)
        return self.sums_found()

    def sums_found(self) -> NDArray[np.float64]:
        """Return the sums that the last verdict was based on; waits for the device."""
        return self._measured[3].get() if self._measured else np.zeros((len(self._table.rows), 3))

    def verdict(self) -> Callable[[], tuple[int, float]]:
        """Ask how many steps were left out, and for the norm of the last gradients; what is returned waits for the device."""
        with self._device:
            arrive = fetch([self._verdict[emit_cuda.SKIPPED : emit_cuda.SCALES]])

        def found() -> tuple[int, float]:
            skipped, norm = arrive()[0].tolist()
            return int(skipped), norm

        return found

    def report(self) -> bool:
        """Have the number of steps left out sent to the host without waiting, unless a report is still on its way.

        Returns
        -------
        bool
            Whether it was sent.

        """
        import cupy

        with self._device:
            if self._report is None:
                self._report = (cupy.cuda.alloc_pinned_memory(8), cupy.cuda.Event(disable_timing=True))
            elif not self._report[1].done:
                return False
            memory, event = self._report
            (self._verdict.data + 8 * emit_cuda.SKIPPED).copy_to_host_async(memory.ptr, 8)
            event.record()
        return True

    def reported(self) -> int | None:
        """How many steps were left out by the time of the report; None if there is none, or it is still on its way."""
        if self._report is None or not self._report[1].done:
            return None
        return int(np.frombuffer(self._report[0], np.float64, 1)[0])

    def pardon(self) -> None:
        """Forget that steps were left out."""
        with self._device:
            self._verdict[: emit_cuda.NORM] = 0
        self._report = None

    def impose(self, scales: NDArray[np.float64]) -> None:
        """Take factors for the gradients from the host."""
        with self._device:
            self._verdict[emit_cuda.SCALES :].set(scales)

    def _launch(self, function: Any, *arguments: Any) -> None:
        if not len(self._chunks):
            return  # of empty leaves there is nothing to update, and CuPy would launch one block all the same
        with self._device:
            if self._table.gradients_at < 0 and not np.array_equal(self._sent, self._table.gradients):
                # From pageable memory, which CUDA stages before it returns: the addresses may change again at once.
                np.copyto(self._sent, self._table.gradients)
                self._gradients.data.copy_from_host_async(self._sent.ctypes.data, self._sent.nbytes)
            function((len(self._chunks),), (LANES,), (*arguments, *self._values))


class Lookup:
    """Finds the addresses of a step's gradients, and looks only at arrays that are new: Python takes long over each.

    Parameters
    ----------
    parameters
        CuPy arrays of one device.
    addresses
        int64 of shape (parameters,), written to at each call.

    """

    def __init__(self, parameters: Sequence[Any], addresses: NDArray[np.int64]) -> None:
        self._addresses = addresses
        self._known: list[Callable[[], Any]] = [_nothing] * len(parameters)

    def __call__(self, gradients: list[Any]) -> list[int] | None:
        """Take 0 for None; return those that are other arrays than before; None if there are neither."""
        # Mostly there are none, which is found without a loop in Python. None is what a dead reference gives, too.
        if not any(map(is_not, gradients, map(call, self._known))) and not any(map(is_, gradients, repeat(None))):
            return None
        new = [
            row for row, (g, ref) in enumerate(zip(gradients, self._known, strict=True)) if g is None or ref() is not g
        ]
        for row in new:
            self._known[row], self._addresses[row] = _nothing, 0
        return [row for row in new if gradients[row] is not None]

    def take(self, row: int, gradient: Any, *, once: bool = False) -> None:
        """Take the address of one of those; it is known from now on as long as the array lives, or only this once."""
        self._known[row] = _nothing  # if Ctrl-C ends this, nothing half-done is believed
        self._addresses[row] = pointer(gradient)
        if not once:
            self._known[row] = weakref.ref(gradient)


def _nothing() -> None:
    """Stand in for the reference to a gradient that there has not been."""


def pointer(array: Any) -> int:
    """Address of the first element."""
    return array.data.ptr  # type: ignore[no-any-return]


def zeros(shapes: Sequence[Layout], device: int) -> list[Any]:
    """Return zeroed arrays on a device, side by side in one buffer."""
    import cupy

    offsets, nbytes = side_by_side(shapes)
    with cupy.cuda.Device(device):
        buffer = cupy.zeros(nbytes, np.uint8)
        return [
            cupy.ndarray(a.shape, a.dtype, buffer.data + offset, a.strides)
            for a, offset in zip(shapes, offsets, strict=True)
        ]
