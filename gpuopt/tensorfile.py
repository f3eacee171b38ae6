"""Arrays in a safetensors file: written whole or not at all, with checksums, and read without being believed.

The format is simple enough to be written and read here: eight bytes with the length of a header, the header in JSON, and the
arrays one after the other. Pieces of the library's own interface would cost a call, or a copy in memory, for each array.
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import os
import stat
import sys
import zlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gpuopt.arrays import dtype_of
from gpuopt.files import replacing

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

DTYPES = {
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    "bfloat16": "BF16",
    "bool": "BOOL",
}
"""The format's names of dtypes."""
_Entry: TypeAlias = tuple[int, int, str, np.dtype[Any], tuple[int, ...]]
"""Of an array that is to be read: where its bytes begin in the data and end; its name, dtype and shape."""
NAMES = {code: name for name, code in DTYPES.items()}
HEADER_LIMIT = 100_000_000  # bytes; what safetensors is ready to read


class CheckpointError(ValueError):
    """A file is no checkpoint, is damaged, has another version, or does not fit the optimizer; the message names it.

    Examples
    --------
    >>> import tempfile, numpy as np, gpuopt
    >>> opt = gpuopt.Optimizer(np.ones(2), gpuopt.SGD())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = os.path.join(folder, "damaged")
    ...     with open(file, "wb") as out:
    ...         _ = out.write(b"something else")
    ...     try:
    ...         gpuopt.load(file, opt)
    ...     except gpuopt.CheckpointError:
    ...         print("refused")
    refused
    """


def write(path: str | os.PathLike[str], tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, atomically and durably, with checksums in its metadata.

    Array after array without a second copy in memory, errors as OSError, permissions as the user's umask has them, and one
    temporary file: none of it does the library's own writer offer.
    """
    arrays = {  # the largest items first: so each one is aligned
        name: x
        if x.dtype.isnative and x.flags.c_contiguous
        else np.asarray(x, dtype=x.dtype.newbyteorder("<"), order="C")
        for name, x in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    }
    about = {**metadata, "crc32": json.dumps(checksums(arrays, metadata))}
    parts = [f'"__metadata__": {json.dumps(about, ensure_ascii=False)}']
    quoted = json.JSONEncoder(ensure_ascii=False).encode
    kinds: dict[tuple[Any, ...], str] = {}  # of many arrays few are unlike the others
    end = 0
    for name, x in arrays.items():
        if (about_it := kinds.get(kind := (x.dtype, x.shape))) is None:
            if (dtype := dtype_of(x)) not in DTYPES:
                raise TypeError(f"{name}: dtype {x.dtype} cannot be saved; known: {', '.join(DTYPES)}")
            about_it = kinds[kind] = f'"dtype": "{DTYPES[dtype]}", "shape": {list(x.shape)}'
        begin, end = end, end + x.nbytes
        parts.append(f'{quoted(name)}: {{{about_it}, "data_offsets": [{begin}, {end}]}}')
    try:
        text = f"{{{', '.join(parts)}}}".encode()
    except UnicodeEncodeError as error:
        name = next((name for name in arrays if error.object[error.start] in name), "metadata")
        raise ValueError(
            f"{path}: {name!a:.200}: has {error.object[error.start]!a}, which is no character, expected a name that UTF-8 can "
            "write; rename the key"
        ) from None
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        raise ValueError(f"{path}: names and metadata take {len(text)} bytes, more than safetensors' {HEADER_LIMIT}")

    with replacing(os.path.expanduser(path), follow=True) as file:  # noqa: PTH111  (Path's own fails for unknown users)
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(map(_bytes, arrays.values()))


def read(
    path: str | os.PathLike[str], wanted: Callable[[str, tuple[int, ...], str], bool] = lambda *_: True
) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays and the metadata of any safetensors file. Checksums are left to `checksums`.

    An array for which ``wanted(name, shape, dtype)`` is false is not read (a file may say that it is larger than the
    memory), nor is one of a dtype unknown to us: in its place stands an object with nothing but its `shape` and `dtype`.
    """
    from safetensors import SafetensorError, safe_open

    path = os.path.expanduser(path)  # noqa: PTH111
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116  (a folder; a pipe would block)
        raise CheckpointError(f"{path}: not a file")
    with open(path, "rb") as file:  # noqa: PTH123  (Python's own errors)
        try:
            with safe_open(path, framework="numpy"):  # it checks the header; a call for each tensor would take too long
                pass
            text = file.read(int.from_bytes(file.read(8), "little"))
            header = json.loads(text)
            metadata = header.pop("__metadata__", None) or {}
            return _arrays(file, len(text) + 8, header, wanted), metadata
        except (
            SafetensorError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ) as error:  # the latter: of another file
            raise CheckpointError(f"{path}: not a safetensors file, or damaged: {error}") from None


def outline(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """As :func:`read`, with the shapes and dtypes of the arrays alone."""
    return read(path, lambda *_: False)


def _arrays(
    file: io.BufferedReader, begin: int, header: Mapping[str, Any], wanted: Callable[[str, tuple[int, ...], str], bool]
) -> dict[str, Any]:
    """The arrays of a file whose data begin there; see :func:`read`. Neighbours are views of one block of memory."""
    known = DTYPES.keys() if "ml_dtypes" in sys.modules else DTYPES.keys() - {"bfloat16"}
    native = sys.byteorder == "little"  # then the very dtypes that everybody has: `newbyteorder` makes others
    stored = {DTYPES[name]: dtype if native else dtype.newbyteorder() for name in known for dtype in [np.dtype(name)]}
    tensors: dict[str, Any] = dict.fromkeys(header)  # in the order of the header
    entries: list[_Entry] = []
    kinds: dict[tuple[str, tuple[int, ...]], tuple[str, np.dtype[Any] | None, int]] = {}
    for name, about in header.items():
        code, shape, (start, stop) = about["dtype"], tuple(about["shape"]), about["data_offsets"]
        if (code, shape) not in kinds:  # of many arrays few are unlike the others
            found = stored.get(code)
            kinds[code, shape] = NAMES.get(code, code), found, math.prod(shape) * found.itemsize if found else 0
        dtype, own, nbytes = kinds[code, shape]
        if own is None or not wanted(name, shape, dtype):
            tensors[name] = SimpleNamespace(shape=shape, dtype=dtype)
            continue
        if nbytes != stop - start:
            raise ValueError(f"{name!r} takes {nbytes} bytes, not {stop - start}")
        entries.append((start, stop, name, own, shape))
    for run in _runs(entries):
        first, _, name, *_ = run[0]
        block = np.empty(run[-1][1] - first, np.uint8)
        file.seek(begin + first)
        if file.readinto(block.data) != len(block):
            raise ValueError(f"{name!r} is cut off")
        for (own, shape), alike in itertools.groupby(run, operator.itemgetter(3, 4)):
            members = [*alike]
            # Of an array along its first axis: to make each of many small ones by itself takes several times as long.
            stack: NDArray[Any] = np.ndarray((len(members), *shape), own, block.data, members[0][0] - first)
            for (_, _, name, _, _), array in zip(members, stack if shape else stack.reshape(-1, 1), strict=True):
                x = array if shape else array.reshape(())
                tensors[name] = x if native else x.astype(own.newbyteorder())
    return tensors


def _runs(entries: Iterable[_Entry]) -> list[list[_Entry]]:
    """Entries side by side in the file, each of them aligned to the first one."""
    runs: list[list[_Entry]] = []
    run: list[_Entry] = []
    stop = first = -1
    for entry in sorted(entries):
        start, end, _, dtype, _ = entry
        if start != stop or (start - first) % dtype.itemsize:
            run, first = [], start
            runs.append(run)
        run.append(entry)
        stop = end
    return runs


def checksums(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> dict[str, int]:
    """The CRC-32 of each array's bytes and of each text, by name."""
    found = {key: zlib.crc32(text.encode()) for key, text in metadata.items()}
    return found | dict(zip(arrays, map(zlib.crc32, map(_bytes, arrays.values())), strict=True))


def _bytes(x: NDArray[Any]) -> Any:
    """The memory of an array without gaps, in C order: a buffer."""
    return x if x.dtype.isbuiltin == 1 else x.reshape(-1).view(np.uint8)
