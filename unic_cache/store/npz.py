"""Arrays as .npz: equal arrays give equal bytes, and no byte can run code or fill the memory."""

import io
import zipfile
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from unic_cache.errors import CacheError


def save_npz(arrays: Mapping[str, npt.ArrayLike]) -> bytes:
    """An uncompressed .npz with fixed times, sorted by name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(arrays[name], order="C"), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), member.getvalue())
    return buffer.getvalue()


def load_npz(data: bytes, where: str, limit: int = 2**30) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays by name. CacheError naming `where` if the file is broken, compressed or over `limit` bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > limit:
                raise CacheError(f"{where}: unpacks to more than {limit} bytes; refused")
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise CacheError(f"{where}: holds compressed members; refused")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except CacheError:
        raise
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError, MemoryError) as error:
        raise CacheError(f"{where}: not a readable .npz ({error})") from error
