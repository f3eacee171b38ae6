"""Advice for what is not an array that can be updated: the array that it contains, or the one that can be made of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gpuopt.arrays import is_array, is_cupy, is_numpy


def hint_for_dtype(x: Any) -> str:
    """Return the end of a message: how to convert a NumPy or CuPy array to a dtype that can be updated."""
    if not (is_numpy(x) or is_cupy(x)):
        return ""
    if x.dtype.names:
        return f"; x[{x.dtype.names[0]!r}] is the array of one of its fields"
    if x.dtype.kind == "O":
        return "; of arrays, a list is a nesting; of numbers, x.astype(numpy.float64) is one"
    if not x.dtype.isnative:
        return "; x.astype(x.dtype.newbyteorder()) has the byte order of this machine"
    wanted = {"c": "complex128", "f": "float64", "i": "float64", "u": "float64", "b": "float64"}.get(x.dtype.kind)
    return f"; x.astype(numpy.{wanted}) is one" if wanted else ""


def hint_for(x: Any) -> str:
    """Return the end of a message: the array that an object contains."""
    library, kind = library_of(x), type(x).__name__
    if is_lazy(x):
        return (
            "; its blocks are computed when they are asked for, there is no memory to update: x.compute() is an array"
        )
    if callable(getattr(x, "parameters", None)):
        return "; x.parameters() are its tensors"
    if isinstance(x, str):
        return "; of pairs of names and arrays, dict(pairs) is a nesting"
    if kind == "PyCapsule":
        return "; a capsule can be taken once, the array that made it as often as one likes: give that"
    if (library, kind) == ("xarray", "Dataset"):
        return "; x[name].values is the array of one of its variables"
    values = {"xarray": "values", "pandas": "to_numpy()", "pint": "magnitude", "unyt": "value", "astropy": "value"}
    how = "toarray()" if callable(getattr(x, "toarray", None)) else values.get(library)
    return f"; x.{how} is its array" if how else ""


def hint_for_container(x: Any) -> str:
    """Return the end of a message: how an object with arrays in it, and no nesting, becomes one."""
    if isinstance(x, Mapping):
        how = "dict(x)"
    elif isinstance(x, Collection) and not isinstance(x, bytes | bytearray):
        how = "list(x)"
    else:
        how = "vars(x)" if any(map(is_array, getattr(x, "__dict__", {}).values())) else ""
    return f"; nestings are of dicts, lists and tuples, as {how} is" if how else ""


def is_lazy(x: Any) -> bool:
    """Return whether an array, or the one within another library's, is computed when it is asked for."""
    wrapped = {"xarray": "data", "pint": "magnitude"}.get(library_of(x))
    return "dask" in {library_of(x), library_of(getattr(x, wrapped, None)) if wrapped else ""}


def library_of(x: Any) -> str:
    """Return the top-level package that an object's class is from."""
    return type(x).__module__.partition(".")[0]
