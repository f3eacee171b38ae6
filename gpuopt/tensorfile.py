"""Arrays in a safetensors file: written whole or not at all, with checksums, and read without being believed.

The format is simple enough to be written and read here: eight bytes with the length of a header, the header in JSON, and the
arrays one after the other. Pieces of the library's own interface would cost a call, or a copy in memory, for each array.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
import sys
import zlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

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
NAMES = {code: name for name, code in DTYPES.items()}
Kind: TypeAlias = tuple[str, tuple[int, ...]]
"""Dtype and shape of an array in a file."""
Wanted: TypeAlias = "Callable[[list[str], list[Kind]], Iterable[bool]]"
"""Called with the names and kinds of all arrays of a file; returns which of them to read."""
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
        if x.flags.c_contiguous and x.dtype.isnative
        else np.asarray(x, dtype=x.dtype.newbyteorder("<"), order="C")
        for _, name, x in sorted((-x.dtype.itemsize, name, x) for name, x in tensors.items())  # no two names are equal
    }
    about = {**metadata, "crc32": json.dumps(checksums(arrays, metadata))}
    parts = [f'"__metadata__": {json.dumps(about, ensure_ascii=False)}']
    kinds: dict[tuple[Any, ...], str] = {}  # of many arrays few are unlike the others
    end = 0
    for (name, x), quoted in zip(arrays.items(), map(json.encoder.encode_basestring, arrays), strict=True):
        if (about_it := kinds.get(kind := (x.dtype, x.shape))) is None:
            if (dtype := dtype_of(x)) not in DTYPES:
                raise TypeError(f"{name}: dtype {x.dtype} cannot be saved; known: {', '.join(DTYPES)}")
            about_it = kinds[kind] = f'"dtype": "{DTYPES[dtype]}", "shape": {list(x.shape)}'
        begin, end = end, end + x.nbytes
        parts.append(f'{quoted}: {{{about_it}, "data_offsets": [{begin}, {end}]}}')
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


def read(path: str | os.PathLike[str], wanted: Wanted | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays and the metadata of any safetensors file. Checksums are left to `checksums`.

    Which arrays to read, ``wanted(names, kinds)`` tells, where a kind is a dtype and a shape: all of them without it. The others are not
    read (a file may say that it is larger than the memory), nor are those of a dtype unknown to us: in their place stands an
    object with nothing but its `shape` and `dtype`.
    """
    from safetensors import SafetensorError, safe_open

    path = os.path.expanduser(path)  # noqa: PTH111
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116  (a folder; a pipe would block)
        raise CheckpointError(f"{path}: not a file")
    with open(path, "rb") as file:  # noqa: PTH123  (Python's own errors)
        try:
            with safe_open(path, framework="numpy"):  # it checks the header; a call for each tensor would take too long
                pass
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            metadata = header.pop("__metadata__", None) or {}
            return _arrays(file, header, wanted), metadata
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
    return read(path, lambda names, _: [False] * len(names))


def _arrays(file: io.BufferedReader, header: Mapping[str, Any], wanted: Wanted | None) -> dict[str, Any]:
    """The arrays of a file whose data come next; see :func:`read`. Neighbours that are alike are views of one."""
    begin, names = file.tell(), [*header]
    kinds: dict[tuple[str, tuple[int, ...]], _Known] = {}  # of many arrays few are unlike the others
    own = [
        kinds.get(key := (about["dtype"], tuple(about["shape"]))) or kinds.setdefault(key, _Known.of(*key))
        for about in header.values()
    ]
    spans = [about["data_offsets"] for about in header.values()]
    chosen = [*wanted(names, [known.kind for known in own])] if wanted else [True] * len(own)
    found: list[Any] = [
        known if is_chosen and known.dtype is not None else SimpleNamespace(shape=known.kind[1], dtype=known.kind[0])
        for known, is_chosen in zip(own, chosen, strict=True)
    ]
    # To make each of many small arrays by itself takes several times as long.
    for known, alike in itertools.groupby(sorted(range(len(spans)), key=spans.__getitem__), found.__getitem__):
        if not isinstance(known, _Known):
            continue
        members, (_, shape) = [*alike], known.kind
        stack: NDArray[Any] = np.empty((len(members), *shape), known.dtype)
        file.seek(begin + spans[members[0]][0])
        if file.readinto(_bytes(stack)) != stack.nbytes:
            raise ValueError(f"{names[members[-1]]!r} is cut off")
        if sys.byteorder != "little":
            stack.byteswap(inplace=True)
        views = stack if shape else (x.reshape(()) for x in stack.reshape(-1, 1))
        for i, x in zip(members, views, strict=True):
            found[i] = x
    return dict(zip(names, found, strict=True))


class _Known(NamedTuple):
    """What is known of arrays of a kind: NumPy's dtype, None where it is unknown."""

    kind: Kind
    dtype: np.dtype[Any] | None

    @classmethod
    def of(cls, code: str, shape: tuple[int, ...]) -> _Known:
        """Return the kind of an array that a header describes so."""
        name = NAMES.get(code, code)
        is_known = code in NAMES and (name != "bfloat16" or "ml_dtypes" in sys.modules)
        return cls((name, shape), np.dtype(name) if is_known else None)


def checksums(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> dict[str, int]:
    """The CRC-32 of each array's bytes and of each text, by name."""
    found = {key: zlib.crc32(text.encode()) for key, text in metadata.items()}
    return found | dict(zip(arrays, map(zlib.crc32, map(_bytes, arrays.values())), strict=True))


def _bytes(x: NDArray[Any]) -> Any:
    """The memory of an array without gaps, in C order: a buffer."""
    return x if x.dtype.isbuiltin == 1 else x.reshape(-1).view(np.uint8)
