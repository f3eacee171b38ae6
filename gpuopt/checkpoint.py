"""Checkpoints: an optimizer's parameters and state in one safetensors file.

The arrays are called ``params/<path>`` and ``state/<path>/<slot>``; complex ones have a last axis for real and imaginary
part, since safetensors knows few complex dtypes, and are named in ``gpuopt``. The metadata hold two JSON texts: ``gpuopt`` with the
format's version, the steps, the rules and the caller's `extra`, and ``crc32`` with a checksum of it and of each array.
Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import functools
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import describe, dtype_of, to_numpy
from gpuopt.suggest import listed, printable
from gpuopt.tensorfile import CheckpointError, Kind, Wanted, checksums, read, write

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gpuopt.optimizer import Optimizer

__all__ = ["CheckpointError", "load", "save", "save_state"]

FORMAT = 1
NUMBERS = ("skipped", "accumulated", "seed", "scale")
"""Entries that only some states have."""
ARRAYS = "arrays/"
"""Prefix of further arrays, which are neither parameters nor state."""
SMALL = ("float16", "bfloat16")  # their slots may be float32, or their lower 16 bits
REAL = {"complex64": "float32", "complex128": "float64"}


def save(path: str | os.PathLike[str], opt: Optimizer, extra: Mapping[str, Any] | None = None) -> None:
    """Write the parameters and the state of an optimizer into a file, whole or not at all.

    Parameters
    ----------
    path
        File to write or replace. Until the new one is complete and on the disk, an old one stays as it is.
    opt
        On any backend, before or after any number of steps.
    extra
        Anything else to keep, in JSON's types (epoch, seed, ...). A tuple comes back as a list.

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
    for pattern, rule in content["rules"].items():
        for name, value in rule["tuned"].items():
            if callable(value):
                raise TypeError(
                    f"{rule['name']} of {pattern!r}: {name}: {value!r:.80}, which was set by tune and no file can hold; expected a "
                    "number or one of gpuopt.schedules, or the function given when the optimizer is made"
                )
    rules = _json(content["rules"], "hyperparameters changed by tune")
    more = _json(extra or {}, "extra")
    live = {f"params/{leaf}": x for leaf, x in content["params"].items()}
    live |= {f"state/{leaf}/{slot}": x for leaf, slots in content["state"].items() for slot, x in slots.items()}
    live |= {f"{ARRAYS}{name}": x for name, x in content.get("arrays", {}).items()}
    tensors = {name: x if type(x) is np.ndarray else to_numpy(x) for name, x in live.items()}
    pairs = [name for name, x in tensors.items() if x.dtype.kind == "c"]
    waiting = "".join(f'"{name}": {json.dumps(content[name])}, ' for name in NUMBERS if name in content)
    named = f', "complex": {json.dumps(pairs)}' if pairs else ""
    about = f'{{"format": {FORMAT}, "steps": {content["steps"]}, {waiting}"rules": {rules}, "extra": {more}{named}}}'
    write(path, tensors | {name: _as_pairs(name, tensors[name]) for name in pairs}, {"gpuopt": about})


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
    own = {path: (dtype_of(x), tuple(x.shape)) for path, x in zip(opt._tree.paths, opt._arrays, strict=True)}
    places: dict[str, tuple[str, str] | None] = {}

    def fitting(names: list[str], kinds: list[Kind]) -> list[bool]:
        places.update(zip(names, map(_place, names), strict=True))
        return [
            own.get(place[0]) == kind
            or _fits(own.get(place[0]), bool(place[1]), kind)  # nearly all are like their leaf
            if place
            else name.startswith(ARRAYS)
            for (name, place), kind in zip(places.items(), kinds, strict=True)
        ]

    def read() -> tuple[dict[str, Any], tuple[dict[str, Any], dict[str, NDArray[Any]]]]:
        tensors, about = verified(path, fitting)
        for name in about.get("complex", ()):
            tensors[name] = _as_complex(path, name, tensors.get(name))
        params: dict[str, Any] = {}
        state: dict[str, dict[str, Any]] = {}
        found = [name for name in tensors if name.startswith(ARRAYS)]
        # Copies: the others' memory would stay with them. What was not read stays as it is.
        own_arrays = {name.removeprefix(ARRAYS): tensors.pop(name) for name in found}
        arrays = {name: x.copy() if isinstance(x, np.ndarray) else x for name, x in own_arrays.items()}
        for name, x in tensors.items():
            if (place := places.get(name)) is None:
                raise CheckpointError(f"{path}: unexpected array {_named(name)}")
            leaf, slot = place
            if slot:
                state.setdefault(leaf, {})[slot] = x
            else:
                params[leaf] = x
        numbers = {name: about[name] for name in ("steps", "rules", *NUMBERS) if name in about}
        return numbers | {"params": params, "state": state}, (about["extra"], arrays)

    try:
        return opt._load(read)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


@functools.lru_cache(1024)  # of many leaves few are unlike the others
def _fits(own: Kind | None, is_slot: bool, kind: Kind) -> bool:
    """Whether an array in a file may be a parameter, or one of its slots, as far as dtype and shape tell."""
    if is_slot and kind == ("float64", ()):
        return True  # a number of a leaf or of a group
    if own is None:
        return False
    (own_dtype, own_shape), (dtype, shape) = own, kind
    is_halved = own_dtype in SMALL and is_slot
    dtypes = {own_dtype, "float32", "uint16"} if is_halved else {REAL.get(own_dtype, own_dtype)}
    shapes = [(*own_shape, 2), own_shape] if own_dtype in REAL else [own_shape]
    return dtype in dtypes and any(shape == one or (is_slot and _is_extent(shape, one)) for one in shapes)


def _is_extent(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether a shape is another one but for axes of length 1."""
    return len(shape) == len(whole) and all(n in (1, m) for n, m in zip(shape, whole, strict=True))


def _expect_optimizer(opt: Any) -> None:
    if not hasattr(opt, "load_state_dict"):
        raise TypeError(f"opt: {describe(opt)}, expected a gpuopt.Optimizer")


def _place(name: str) -> tuple[str, str] | None:
    """Leaf and slot of an array in a file; the parameter itself has the slot ""; None for what is neither."""
    kind, _, rest = name.partition("/")
    if kind == "state":
        leaf, slash, slot = rest.rpartition("/")
        return (leaf, slot) if slash and slot else None
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


def verified(path: str | os.PathLike[str], wanted: Wanted | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
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
    found = checksums(arrays, {key: text for key, text in metadata.items() if key != "crc32"})
    if not found.items() <= recorded.items():
        damaged = [name for name, checksum in found.items() if recorded.get(name) != checksum]
        raise CheckpointError(f"{path}: damaged: wrong checksum of {listed(damaged, shown=_named)}")
    return tensors, about


def _json(value: Any, where: str) -> str:
    try:
        _expect_json(value, where)
        return json.dumps(value)
    except (ValueError, RecursionError) as error:
        raise TypeError(f"{where}: expected JSON's types: {error}") from None


def _expect_json(value: Any, where: str) -> None:
    """Raise TypeError if this is not made of JSON's types, or would come back with other keys."""
    match value:
        case dict():
            for key, own in value.items():
                if not isinstance(key, str):
                    raise TypeError(f"{where}: the key {key!r} would come back as a text, expected texts as keys")
                _expect_json(own, f"{where}[{key!r}]")
        case list() | tuple():
            for k, own in enumerate(value):
                _expect_json(own, f"{where}[{k}]")
        case None | bool() | int() | float() | str():
            pass
        case _:
            cure = "; x.tolist() is made of them" if hasattr(value, "tolist") else ""
            raise TypeError(f"{where}: {value!r:.80} ({type(value).__name__}), expected JSON's types{cure}")


def _named(name: str) -> str:
    return printable(repr(name), 300)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _as_pairs(name: str, x: NDArray[Any]) -> NDArray[Any]:
    """A complex array with an axis for real and imaginary part."""
    try:
        return np.stack([x.real, x.imag], axis=-1)
    except (IndexError, ValueError):  # by the version of NumPy
        raise TypeError(
            f"{name}: {x.ndim} axes of complex numbers, which a file has one more of; NumPy has no more, expected fewer"
        ) from None


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
