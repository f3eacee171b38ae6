"""Pictures of what a loop makes: ``image-NAME.png``, the last one of each name."""

from __future__ import annotations

import contextlib
import re
import struct
import time
import zlib
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import describe, detached, fetch
from gpuopt.files import write
from gpuopt.runs.loop import Callback
from gpuopt.runs.secondary import background, warned

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from numpy.typing import NDArray

    from gpuopt.runs.loop import Loop

__all__ = ["Images", "png"]

NAME = re.compile(r"[\w-][\w.-]{0,99}")
INTERVAL = 0.5
"""Seconds from one picture of a name to the next."""
SMALL, LARGE = 256, 1024
"""Pixels: what is smaller is enlarged, what is larger is thinned out."""
MOST = 32
"""Pictures of different names."""


class Images(Callback):
    """Draws what it is shown, in a thread beside the loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._due: dict[str, float] = {}  # when the next picture of a name may be drawn
        self._undrawn: dict[str, Any] = {}  # shown, but not drawn yet
        self._drawing = background(lambda: None, "")

    def show(self, name: Any, array: Any) -> None:
        """See `gpuopt.Run.image`."""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"run.image: {name!r}: expected a name of letters, digits and _ - .")
        if name not in self._due and len(self._due) >= MOST:
            raise ValueError(f"run.image: {name}: expected at most {MOST} different names")
        shape, kind = getattr(array, "shape", None), getattr(getattr(array, "dtype", None), "kind", "f")
        is_coloured = shape is not None and len(shape) == 3 and shape[2] in {3, 4} and kind != "c"
        if shape is None or not (len(shape) in {1, 2} or is_coloured) or 0 in shape or kind not in "biufc":
            of = "" if shape is None else f" of shape {tuple(shape)}"
            wanted = "numbers along one or two axes, or real ones of shape (height, width, 3 or 4), colours"
            raise TypeError(f"run.image: {name}: {describe(array)}{of}, expected {wanted}")
        if type(array) is not np.ndarray and isinstance(array, np.ma.MaskedArray):
            array = np.ma.filled(array * 1.0, np.nan)
        self._undrawn[name] = detached(array)
        now = time.perf_counter()
        if now >= self._due.setdefault(name, 0.0) and self._drawing.done():
            self._due[name] = now + INTERVAL
            self._begin(name)

    def draw(self) -> Future[None]:
        """Begin to draw all that is not drawn yet."""
        if self._undrawn:
            wait([self._drawing])
            with contextlib.suppress(Exception):  # who saves shall save: a GPU that fails is told by others
                self._begin(*self._undrawn)
        return self._drawing

    def end(self, run: Loop) -> None:  # noqa: ARG002
        wait([self.draw()])

    def _begin(self, *names: str) -> None:
        """Begin to copy arrays, and have a thread draw them when they have come."""
        arriving = {name: fetch([self._undrawn.pop(name)]) for name in names}

        def draw() -> None:
            for name, arrive in arriving.items():
                with warned(f"no picture of {name} (%s)"):
                    for part, content in _parts(*arrive()):
                        write(self._folder / f"image-{name}{part}.png", content)

        self._drawing = background(draw, "gpuopt images")


def _parts(array: NDArray[Any]) -> list[tuple[str, bytes]]:
    """The files of a picture, by what is added to its name."""
    if array.dtype.kind != "c":
        return [("", png(_grey(array) if array.ndim < 3 else _coloured(array)))]
    return [("-amplitude", png(_grey(np.abs(array)))), ("-phase", png(_hue(np.angle(array))))]


def _sized(array: NDArray[Any]) -> NDArray[Any]:
    """Two axes, and colours where it has them, of a size that one can see."""
    x = array[np.newaxis] if array.ndim == 1 else array
    x = x[:: -(-x.shape[0] // LARGE), :: -(-x.shape[1] // LARGE)]
    times = max(1, SMALL // max(x.shape[:2]))
    tall = times if array.ndim > 1 else max(times, SMALL // 8)
    return np.repeat(np.repeat(x, tall, axis=0), times, axis=1)


def _grey(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Black is the least value, white the greatest; what is not finite is black."""
    x = _sized(array).astype(np.float64)
    known = x[np.isfinite(x)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    with np.errstate(all="ignore"):
        level = (x / 2 - low / 2) / (high / 2 - low / 2) if high > low else np.full_like(x, 0.5)
    return np.asarray(255 * np.clip(np.nan_to_num(level, nan=0.0), 0, 1)).astype(np.uint8)


def _coloured(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Colours as they are: integers from 0 to 255, other numbers from 0 to 1; what is not finite is black."""
    x = _sized(array)
    with np.errstate(all="ignore"):
        level = x if x.dtype.kind in "iu" else 255 * np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=0.0)
    return np.clip(level, 0, 255).astype(np.uint8)


def _hue(angle: NDArray[Any]) -> NDArray[np.uint8]:
    """A colour for each angle, around the circle: three waves, a third of it apart."""
    x = _sized(angle).astype(np.float64)[..., np.newaxis]
    with np.errstate(all="ignore"):
        waves = 127.5 * (1 + np.cos(x - 2 * np.pi / 3 * np.arange(3)))
    return np.nan_to_num(waves, nan=0.0).astype(np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of grey levels, or of red, green, blue and perhaps opacity along a third axis."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    lines = np.pad(rows, ((0, 0), (1, 0))).tobytes()  # each one begins with its filter, none
    about = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}.get(rows.shape[1] // width, 0), 0, 0, 0)
    parts = [chunk(b"IHDR", about), chunk(b"IDAT", zlib.compress(lines, 6)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
