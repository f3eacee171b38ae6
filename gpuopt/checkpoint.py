"""Checkpoints: an optimizer's parameters and state in one safetensors file.

The arrays are called ``params/<path>`` and ``state/<path>/<slot>``; complex ones have a last axis for real and imaginary
part, since safetensors knows few complex dtypes, and are named in ``gpuopt``. The metadata hold two JSON texts: ``gpuopt`` with the
format's version, the steps, the rules and the caller's `extra`, and ``crc32`` with a checksum of it and of each array.
Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
import secrets
import stat
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import describe, dtype_of, to_numpy
from gpuopt.suggest import listed, printable

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from gpuopt.optimizer import Optimizer

__all__ = ["CheckpointError", "load", "save", "save_state"]

FORMAT = 1
NUMBERS = ("accumulated", "seed", "scale")
"""What some states have beside the steps."""
DTYPES = {
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    "bfloat16": "BF16",
    "bool": "BOOL",
}
ARRAYS = "arrays/"
"""Of somebody's own, beside parameters and state."""
NAMES = {code: name for name, code in DTYPES.items()}
LOG = logging.getLogger("gpuopt")
SMALL = ("float16", "bfloat16")  # whose slots may be float32, or their other bits
REAL = {"complex64": "float32", "complex128": "float64"}
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


def save(path: str | os.PathLike[str], opt: Optimizer, extra: Mapping[str, Any] | None = None) -> None:
    """Write the parameters and the state of an optimizer into a file, whole or not at all.

    Parameters
    ----------
    path
        File to write or replace. Until the new one is complete and on the disk, an old one stays as it is.
    opt
        On any backend, before or after any number of steps.
    extra
        Anything else to keep, in JSON's types (epoch, seed, ...).

    Raises
    ------
    TypeError
        If ``extra`` is no dict or not made of JSON's types.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import os, tempfile, numpy as np, gpuopt
    >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
    >>> opt = gpuopt.Optimizer({"w": np.ones(3)}, gpuopt.Adam())
    >>> opt.step({"w": np.ones(3)})
    >>> gpuopt.save(path, opt, {"epoch": 1})
    >>> other = gpuopt.Optimizer({"w": np.zeros(3)}, gpuopt.Adam())
    >>> gpuopt.load(path, other)
    {'epoch': 1}
    >>> other.steps, bool((other.params["w"] == opt.params["w"]).all())
    (1, True)
    """
    _expect_optimizer(opt)
    opt._save(functools.partial(save_state, path, extra=extra))


def save_state(
    path: str | os.PathLike[str], content: Mapping[str, Any], extra: Mapping[str, Any] | None = None
) -> None:
    """As :func:`save`, of what an optimizer's `state_dict` gave, and of more ``arrays`` by name."""
    if not isinstance(extra, dict | None):
        raise TypeError(f"extra: expected a dict of JSON's types, got {type(extra).__name__}")
    rules = _json(content["rules"], "hyperparameters changed by tune: expected numbers or gpuopt.schedules")
    more = _json(extra or {}, "extra: expected a dict of JSON's types")
    live = {f"params/{leaf}": x for leaf, x in content["params"].items()}
    live |= {f"state/{leaf}/{slot}": x for leaf, slots in content["state"].items() for slot, x in slots.items()}
    live |= {f"{ARRAYS}{name}": x for name, x in content.get("arrays", {}).items()}
    tensors = {name: to_numpy(x) for name, x in live.items()}
    pairs = [name for name, x in tensors.items() if x.dtype.kind == "c"]
    waiting = "".join(f'"{name}": {json.dumps(content[name])}, ' for name in NUMBERS if name in content)
    named = f', "complex": {json.dumps(pairs)}' if pairs else ""
    about = f'{{"format": {FORMAT}, "steps": {content["steps"]}, {waiting}"rules": {rules}, "extra": {more}{named}}}'
    write(path, tensors | {name: _as_pairs(tensors[name]) for name in pairs}, {"gpuopt": about})


def load(path: str | os.PathLike[str], opt: Optimizer) -> dict[str, Any]:
    """Read a file that :func:`save` wrote into an optimizer with the same leaves and rules.

    Parameters
    ----------
    path
        The file, saved on any backend.
    opt
        Its arrays are written in place, where they are; on an error it stays as it was.

    Returns
    -------
    dict
        What was given as ``extra``.

    Raises
    ------
    CheckpointError
        If the file is no checkpoint, damaged, or of another version; or if it does not fit: the message lists every leaf that is
        missing or too many or has another shape or dtype, and every other rule.
    OSError
        If the file cannot be read (FileNotFoundError: there is none).

    Examples
    --------
    >>> import os, tempfile, numpy as np, gpuopt
    >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
    >>> gpuopt.save(path, gpuopt.Optimizer(np.ones(3), gpuopt.SGD()), {"seed": 7})
    >>> w = np.zeros(3)
    >>> gpuopt.load(path, gpuopt.Optimizer(w, gpuopt.SGD())), w
    ({'seed': 7}, array([1., 1., 1.]))

    """
    return load_state(path, opt)[0]


def load_state(path: str | os.PathLike[str], opt: Optimizer) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """As :func:`load`; return the further arrays in the file, too."""
    _expect_optimizer(opt)
    # Not of `state_dict`, which raises the error of a step that was left out.
    own = dict(zip(opt._tree.paths, opt._arrays, strict=True))
    places: dict[str, tuple[str, str] | None] = {}

    def fits(name: str, shape: tuple[int, ...], dtype: str) -> bool:
        place = places[name] = _place(name)
        x = own.get(place[0]) if place else None
        if name.startswith(ARRAYS):
            return True
        if place and place[1] and (shape, dtype) == ((), "float64"):
            return True  # a number of a leaf or of a group
        if x is None:
            return False
        own_dtype, is_slot = dtype_of(x), bool(place and place[1])
        dtypes = (
            {own_dtype, "float32", "uint16"} if own_dtype in SMALL and is_slot else {REAL.get(own_dtype, own_dtype)}
        )
        shapes = [(*x.shape, 2), tuple(x.shape)] if own_dtype in REAL else [tuple(x.shape)]
        return dtype in dtypes and any(shape == one or (is_slot and _is_extent(shape, one)) for one in shapes)

    def read() -> tuple[dict[str, Any], tuple[dict[str, Any], dict[str, NDArray[Any]]]]:
        tensors, about = verified(path, fits)
        for name in about.get("complex", ()):
            tensors[name] = _as_complex(path, name, tensors.get(name))
        params: dict[str, Any] = {}
        state: dict[str, dict[str, Any]] = {}
        arrays = {name.removeprefix(ARRAYS): tensors.pop(name) for name in list(tensors) if name.startswith(ARRAYS)}
        for name, x in tensors.items():
            match places.get(name):
                case leaf, "":
                    params[leaf] = x
                case leaf, slot:
                    state.setdefault(leaf, {})[slot] = x
                case None:
                    raise CheckpointError(f"{path}: unexpected array {_named(name)}")
        numbers = {name: about[name] for name in ("steps", "rules", *NUMBERS) if name in about}
        return numbers | {"params": params, "state": state}, (about["extra"], arrays)

    try:
        return opt._load(read)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def write(path: str | os.PathLike[str], tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, atomically and durably, with checksums in its metadata.

    The format is simple enough to be written here: array after array without a second copy in memory, errors as OSError,
    permissions as the user's umask has them, and one temporary file, none of which the library's own writer offers.
    """
    target = Path(os.path.realpath(path))  # a link is followed, not replaced
    arrays = {  # the largest items first: so each one is aligned
        name: x
        if x.dtype.isnative and x.flags.c_contiguous
        else np.asarray(x, dtype=x.dtype.newbyteorder("<"), order="C")
        for name, x in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    }
    about = {**metadata, "crc32": json.dumps(_checksums(arrays, metadata))}
    parts = [f'"__metadata__": {json.dumps(about, ensure_ascii=False)}']
    quoted = json.JSONEncoder(ensure_ascii=False).encode
    end = 0
    for name, x in arrays.items():
        if (dtype := dtype_of(x)) not in DTYPES:
            raise TypeError(f"{name}: dtype {x.dtype} cannot be saved; known: {', '.join(DTYPES)}")
        begin, end = end, end + x.nbytes
        parts.append(
            f'{quoted(name)}: {{"dtype": "{DTYPES[dtype]}", "shape": {list(x.shape)}, "data_offsets": [{begin}, {end}]}}'
        )
    text = f"{{{', '.join(parts)}}}".encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        raise ValueError(f"{path}: names and metadata take {len(text)} bytes, more than safetensors' {HEADER_LIMIT}")

    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.tmp")
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "not a regular file, expected one to replace", str(path))  # not /dev/null, say
    try:
        with temporary.open("xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for x in arrays.values():
                file.write(_bytes(x))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        error.filename = str(
            path
        )  # a full disk is told without a name, a folder that is missing with the temporary one
        raise
    finally:
        temporary.unlink(missing_ok=True)


def read(
    path: str | os.PathLike[str], wanted: Callable[[str, tuple[int, ...], str], bool] = lambda *_: True
) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays and the metadata of any safetensors file. Checksums are left to :func:`load`.

    An array for which ``wanted(name, shape, dtype)`` is false is not read (a file may say that it is larger than the
    memory), nor is one of a dtype unknown to us: in its place stands an object with nothing but its `shape` and `dtype`.
    """
    from safetensors import SafetensorError, safe_open

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


def _arrays(
    file: io.BufferedReader, begin: int, header: Mapping[str, Any], wanted: Callable[[str, tuple[int, ...], str], bool]
) -> dict[str, Any]:
    """The arrays of a file whose data begin there; see :func:`read`."""
    known = DTYPES.keys() if "ml_dtypes" in sys.modules else DTYPES.keys() - {"bfloat16"}
    stored = {name: np.dtype(name).newbyteorder("<") for name in known}
    tensors: dict[str, Any] = {}
    for name, about in header.items():
        shape, code, (start, stop) = tuple(about["shape"]), about["dtype"], about["data_offsets"]
        dtype = NAMES.get(code, code)
        if dtype not in known or not wanted(name, shape, dtype):
            tensors[name] = SimpleNamespace(shape=shape, dtype=dtype)
            continue
        array = np.empty(shape, stored[dtype])
        if array.nbytes != stop - start:
            raise ValueError(f"{name!r} takes {array.nbytes} bytes, not {stop - start}")
        if begin + start != file.tell():
            file.seek(begin + start)
        if file.readinto(_bytes(array)) != stop - start:
            raise ValueError(f"{name!r} is cut off")
        tensors[name] = array if array.dtype.isnative else array.astype(dtype)
    return tensors


def _is_extent(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether a shape is another one but for axes of length 1."""
    return len(shape) == len(whole) and all(n in (1, m) for n, m in zip(shape, whole, strict=True))


def _expect_optimizer(opt: Any) -> None:
    if not hasattr(opt, "load_state_dict"):
        raise TypeError(f"opt: {describe(opt)}, expected a gpuopt.Optimizer")


def _place(name: str) -> tuple[str, str] | None:
    """Leaf and slot of an array in a file; the parameter itself has the slot ""; None for what is neither."""
    kind, _, rest = name.partition("/")
    leaf, slash, slot = rest.rpartition("/")
    if kind == "state" and slash and slot:
        return leaf, slot
    return (rest, "") if name.startswith("params/") else None


def _about(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the key ``gpuopt`` of the metadata says."""
    if "gpuopt" not in metadata:
        raise CheckpointError(f"{path}: a safetensors file, but not one of gpuopt's checkpoints")
    match _parsed(metadata["gpuopt"]):
        case {"format": int(version)} if version != FORMAT:
            raise CheckpointError(
                f"{path}: checkpoint of format {version}; this version of gpuopt knows format {FORMAT}"
            )
        case {"format": int(), "steps": int(steps), "rules": dict(), "extra": dict()} as about if (
            steps >= 0 and _is_names(about.get("complex", []))
        ):
            return dict(about)
    raise CheckpointError(f"{path}: damaged: the metadata 'gpuopt' cannot be read")


def verified(
    path: str | os.PathLike[str], wanted: Callable[[str, tuple[int, ...], str], bool] = lambda *_: True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """As :func:`read`, of one of our checkpoints whose checksums are right; and what its metadata say.

    Raises
    ------
    CheckpointError : as :func:`load`.
    """
    tensors, metadata = read(path, wanted)
    about = _about(path, metadata)
    recorded = _parsed(metadata.get("crc32", ""))
    if not isinstance(recorded, dict):
        raise CheckpointError(f"{path}: damaged: its checksums cannot be read")
    arrays = {name: x for name, x in tensors.items() if isinstance(x, np.ndarray)}
    found = _checksums(arrays, {key: text for key, text in metadata.items() if key != "crc32"})
    damaged = [name for name, checksum in found.items() if recorded.get(name) != checksum]
    if damaged:
        raise CheckpointError(f"{path}: damaged: wrong checksum of {listed(damaged, shown=_named)}")
    return tensors, about


def _json(value: Any, expected: str) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{expected}: {error}") from None


def _named(name: str) -> str:
    return printable(repr(name), 300)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _as_pairs(x: NDArray[Any]) -> NDArray[Any]:
    """A complex array with an axis for real and imaginary part."""
    return np.stack([x.real, x.imag], axis=-1)


def _as_complex(path: str | os.PathLike[str], name: str, x: Any) -> Any:
    """Undo `_as_pairs`; what was not read stays as it is."""
    if isinstance(x, SimpleNamespace) and tuple(x.shape[-1:]) == (2,):
        return SimpleNamespace(
            shape=x.shape[:-1], dtype=np.result_type(np.complex64, x.dtype) if x.dtype in REAL.values() else x.dtype
        )
    if not isinstance(x, np.ndarray) or x.dtype.name not in REAL.values() or x.shape[-1:] != (2,):
        raise CheckpointError(f"{path}: damaged: {name!r} is no array of complex numbers")
    return x.view(np.result_type(np.complex64, x.dtype))[..., 0]


def _parsed(text: str) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    return None


def _checksums(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> dict[str, int]:
    checksums = {key: zlib.crc32(text.encode()) for key, text in metadata.items()}
    return checksums | {name: zlib.crc32(_bytes(x)) for name, x in arrays.items()}


def _bytes(x: NDArray[Any]) -> memoryview:
    """The memory of an array without gaps, in C order."""
    return x.data if x.dtype.isbuiltin == 1 else memoryview(x.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # a buffer


def sync_folder(folder: Path) -> None:
    """Make a rename last. Windows cannot, and does not need to; where a file system cannot, the file is there all the same."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        _warn_of_folder(str(folder), error.strerror)


@functools.cache
def _warn_of_folder(folder: str, why: str | None) -> None:
    LOG.warning(
        "%s: the folder cannot be synchronized (%s): a new file may be gone if the power fails soon after", folder, why
    )
