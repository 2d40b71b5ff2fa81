"""Masks and depth maps of a set under the center view, in files that dense tasks map.

Letters: N images, H and W pixels.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipelines.evaluating.labelled import Flags, Usable
from pipelines.evaluating.row_files import Array, RowFile, kept_rows
from unic_cache.ahead import ahead
from unic_cache.errors import ImageError, ShardError
from unic_cache.stream.address import Address
from unic_cache.stream.pixels import ShardPixels
from unic_cache.views.decode import upright_size
from unic_cache.views.dense_labels import depth_view, mask_view
from unic_cache.views.dense_places import DEPTH_KINDS, MASK

READ_AHEAD = 32  # images


def masks_of(usable: Usable, folder: Path, pool: ThreadPoolExecutor) -> Array:
    """(N, H, W) uint8 classes of all wanted images, 0 without a mask. ShardError for a mask that does not fit."""
    return _filled(usable, usable.images.masked_N, (MASK,), folder / "masks.npy", np.uint8, pool)


def depths_of(usable: Usable, folder: Path, pool: ThreadPoolExecutor) -> Array:
    """(N, H, W) float32 metres of all wanted images, 0 without one. ShardError for a depth map that does not fit."""
    return _filled(usable, usable.images.deep_N, DEPTH_KINDS, folder / "depths.npy", np.float32, pool)


def _filled(
    usable: Usable, has_N: Flags, kinds: tuple[str, ...], path: Path, dtype: type, pool: ThreadPoolExecutor
) -> Array:
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted, source = usable.images.wanted, usable.source
    file = RowFile(path, len(wanted), dtype)
    try:
        good_N = has_N & usable.good_N
        there = [item for item, good in zip(wanted, good_N, strict=True) if good]
        found = ahead(there, lambda item: pool.submit(_view, source, item, kinds).result, READ_AHEAD)
        for good in good_N:
            file.append(next(found)[None] if good else None, np.array([good]))
        file.finish()
    finally:
        file.drop()
    mapped = kept_rows(path, len(wanted))
    assert mapped is not None
    return mapped


def _view(source: ShardPixels, item: Address, kinds: tuple[str, ...]) -> Array:
    """The image's label of the first kind that it has, cropped as its view is."""
    kind, data = next((kind, data) for kind in kinds if (data := source.label(item, kind)) is not None)
    key = source.tars[item.segment, item.shard][1].keys[item.row]
    size = upright_size(source.data(item))
    try:
        if kind == MASK:
            return mask_view(data, size, source.views, key, item.number)
        return depth_view(data, kind, size, source.views, key, item.number)
    except ImageError as error:
        raise ShardError(f"{source.where(item)}: its {kind}: {error}") from error
