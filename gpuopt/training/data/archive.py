"""Arrays in an ``.npz`` file that nobody vouches for: nothing is believed before it was compared with the file."""

from __future__ import annotations

import math
import os
import zipfile
from typing import IO, TYPE_CHECKING, Any

from numpy.lib import format as npy

from gpuopt.errors import UsageError
from gpuopt.limits import expect_room

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Archive"]

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
METHODS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1040}
"""What `numpy.savez` and `savez_compressed` use, and how many bytes can come out of one."""
ENCRYPTED = 1


class Archive:
    """The arrays of an open ``.npz`` file, by name; UsageError where a header does not fit what there is."""

    def __init__(self, file: IO[bytes]) -> None:
        if not zipfile.is_zipfile(file):
            raise UsageError("not an .npz file: it is not a zip archive; numpy.savez writes one")
        self._size = os.fstat(file.fileno()).st_size
        self._zip = zipfile.ZipFile(file)
        self.names = [name.removesuffix(".npy") for name in self._zip.namelist()]

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read an array, after its header was found to tell the truth."""
        names = self._zip.namelist()
        info = self._zip.getinfo(name if name in names else f"{name}.npy")
        most = METHODS.get(info.compress_type)
        if most is None or info.flag_bits & ENCRYPTED:
            raise UsageError(f"{name}: is packed in a way that numpy.savez does not")
        if info.compress_size > self._size or info.file_size > most * info.compress_size + most:
            raise UsageError(f"{name}: damaged: {info.file_size:,} bytes cannot come out of the file")
        with self._zip.open(info) as member:
            shape, dtype = self._header(name, member)
            expected, found = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
        if expected != found:
            raise UsageError(f"{name}: damaged: shape {shape} of {dtype} takes {expected:,} bytes, it has {found:,}")
        expect_room(name, expected, info.compress_size)
        with self._zip.open(info) as member:
            array: NDArray[Any] = npy.read_array(member, allow_pickle=False)
            member.read()  # to the end, where its checksum is compared
        return array

    @staticmethod
    def _header(name: str, member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
        try:
            version = npy.read_magic(member)
        except ValueError:
            raise UsageError(f"{name}: is no array") from None
        if version not in HEADERS:
            raise UsageError(f"{name}: is of version {version[0]}.{version[1]}, expected 1.0 or 2.0 with plain numbers")
        shape, _, dtype = HEADERS[version](member)
        if dtype.hasobject:
            raise UsageError(f"{name}: holds Python objects, expected numbers or text")
        return shape, dtype
