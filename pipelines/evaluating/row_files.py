"""A .npy file that is filled batch after batch under a temporary name, and mapped once it is whole.

Four bytes follow the array, which NumPy ignores: the crc32c of all before them, so that no damaged number is used.
"""

import io
import math
import os
import secrets
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from unic_cache.files.durable import naming

Array: TypeAlias = npt.NDArray[Any]
CRC_BYTES = 4
READ_AT_ONCE = 2**24  # bytes


class RowFile:
    """Rows of one shape, (count, ...), written in order: a full disk is an error here; writing to a map would crash."""

    def __init__(self, path: Path, count: int, dtype: npt.DTypeLike) -> None:
        self.path, self.count, self.dtype = path, count, np.dtype(dtype)
        self._temporary = path.with_name(f".tmp-{secrets.token_hex(8)}-{path.name}")
        self._file: BinaryIO | None = None
        self._shape: tuple[int, ...] = ()
        self._waiting = 0  # rows of zeros before the shape is known
        self._crc = 0

    def append(self, rows: Array | None, good_B: npt.NDArray[np.bool_]) -> None:
        """Add len(good_B) rows: `rows` where good, zeros elsewhere."""
        if rows is None or len(rows) == 0:
            self._zeros(len(good_B))
            return
        with naming(self._temporary):
            if self._file is None:
                self._begin(rows.shape[1:])
            block = rows.astype(self.dtype, copy=False)
            if not good_B.all():
                block = np.zeros((len(good_B), *self._shape), self.dtype)
                block[good_B] = rows
            self._write(np.ascontiguousarray(block).tobytes())

    def finish(self) -> None:
        """Give the file its name. A set without any good image gives rows without channels."""
        with naming(self._temporary):
            if self._file is None:
                self._begin((0,))
            assert self._file is not None
            self._file.write(self._crc.to_bytes(CRC_BYTES, "little"))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(self.path)

    def drop(self) -> None:
        """Remove an unfinished file."""
        if self._file is not None:
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _begin(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._file = open(self._temporary, "wb")  # noqa: SIM115 (closed by `finish` or `drop`)
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.count, *shape),
        }
        text = io.BytesIO()
        np.lib.format.write_array_header_2_0(text, header)
        self._write(text.getvalue())
        self._zeros(self._waiting)

    def _zeros(self, rows: int) -> None:
        if self._file is None:
            self._waiting += rows
        else:
            self._write(bytes(rows * math.prod(self._shape) * self.dtype.itemsize))

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._crc = crc32c(data, self._crc)


class PickedRows:
    """Some rows of an array, read when asked for: `PickedRows(array, rows)[place]` is `array[rows[place]]`."""

    def __init__(self, array: Array, rows: npt.NDArray[np.int64]) -> None:
        self._array, self._rows = array, rows
        self.dtype, self.shape, self.ndim = array.dtype, (len(rows), *array.shape[1:]), array.ndim

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Array:
        first, *rest = place if isinstance(place, tuple) else (place,)
        found: Array = self._array[self._rows[first]]
        return found[(slice(None), *rest)] if rest else found

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        del copy
        return np.asarray(self._array[self._rows], dtype)


def kept_rows(path: Path, count: int) -> Array | None:
    """The file's rows, mapped for reading; None if there is no whole and intact file of `count` rows."""
    try:
        found: Array = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        return None
    except (OSError, MemoryError):
        raise
    except Exception:  # the header is a Python literal: damaged, it makes NumPy raise anything
        return None
    return found if found.ndim > 1 and len(found) == count and _is_intact(path) else None


def _is_intact(path: Path) -> bool:
    """Whether the bytes are those that were written."""
    crc, left = 0, path.stat().st_size - CRC_BYTES
    with naming(path), open(path, "rb") as file:
        while left > 0:
            data = file.read(min(left, READ_AT_ONCE))
            if not data:
                return False
            crc, left = crc32c(data, crc), left - len(data)
        return file.read() == crc.to_bytes(CRC_BYTES, "little")
