"""Stores to read in benchmarks: invented features and crops, written by this project and in Theia's layout.

Four teachers of 196 tokens of width 384, features with a spectrum like a teacher's, and crops of 224 pixels from
synthetic photographs. The same 256 images fill a tar of 1,024 rows again and again.
"""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import webdataset

from benchmarks.images import photograph
from unic_cache.config import CODERS, EXACT, FITTED, Views
from unic_cache.files.local import LocalFolder
from unic_cache.files.open_file import OpenFile, Span
from unic_cache.store.calibrate import Calibrator
from unic_cache.store.codecs.pixel_codec import to_differences
from unic_cache.store.commit import Crcs, Unit
from unic_cache.store.layout import VIEWS_MEMBER, Extent, format_of
from unic_cache.store.member import Member
from unic_cache.store.writer import UnitWriter, row_crcs
from unic_cache.views.augment import make_view
from unic_cache.views.decode import decode
from unic_cache.views.index import ShardEntry
from unic_cache.views.segments import extend_index

TEACHERS, GRID, CHANNELS, ROWS = 4, 14, 384, 1024
DIFFERENT = ROWS // 4  # images
QUALITY = 0.99  # of klt, in docs/BENCHMARKS.md
VIEWS = Views("unic", 224, 0)


def write(
    location: LocalFolder,
    codec: str,
    shards: int,
    pixel_codec: str = "raw",
    coder: str = CODERS[0],
    quality: float = QUALITY,
    cls_quality: float = EXACT,
) -> None:
    """A whole cache: index, four teachers, kept pixels."""
    names = [f"tar{shard}" for shard in range(shards)]
    keys = tuple(range(ROWS))
    extend_index(location, [ShardEntry.of(name, ROWS, keys, keys, (1,) * ROWS, (None,) * ROWS) for name in names])
    units = [Unit(0, Extent(shards, ROWS), shard, name, ROWS, VIEWS, 0) for shard, name in enumerate(names)]
    seen = write_pixels(location, pixel_codec, units)
    for number in range(TEACHERS):
        write_teacher(
            location, f"teacher{number}", number, teacher_spec(codec, coder, quality, cls_quality), units, seen
        )


def write_pixels(location: LocalFolder, codec: str, units: Sequence[Unit]) -> Crcs:
    """The member `views`; each row's checksum."""
    crops = np.stack([make_view(decode(photograph(key, 500, 375)), VIEWS, key, 0) for key in range(DIFFERENT)])
    member = Member.ensure(location, VIEWS_MEMBER, {"format": 1, "size": VIEWS.size, "codec": codec})
    kept = crops if codec == "raw" else to_differences(torch.from_numpy(crops)).numpy()
    rows = np.tile(kept, (ROWS // DIFFERENT,) + (1,) * (kept.ndim - 1))
    seen = np.tile(row_crcs(crops), ROWS // DIFFERENT)
    for unit in units:
        UnitWriter(member, None).write(unit, {"rgb": rows}, seen, {})
    return seen


def teacher_spec(codec: str, coder: str, quality: float, cls_quality: float) -> dict[str, Any]:
    """How a teacher's features are kept."""
    fitted: dict[str, Any] = {"quality": quality} if codec == FITTED else {}
    if codec == FITTED and coder != CODERS[0]:
        fitted["coder"] = coder
    if codec == FITTED and cls_quality != EXACT:
        fitted["cls_quality"] = cls_quality
    dims = {"cls_dim": CHANNELS, "grid": [GRID, GRID], "patch_dim": CHANNELS}
    return {"format": format_of(fitted), "provenance": {}, "codec": codec, **fitted, "features": dims}


def write_teacher(
    location: LocalFolder, name: str, seed: int, spec: dict[str, Any], units: Sequence[Unit], seen: Crcs
) -> None:
    """A member and all its units, with the same images' features again and again."""
    spec = {**spec, "teacher": {"name": name}}
    member = Member.ensure(location, name, spec)
    tokens = features(seed)
    assert member.features is not None
    calibrator = Calibrator(member.features)
    calibrator.update(tokens)
    calibration = calibrator.calibration()
    location.create(member.calibration_name, calibration.to_bytes())
    kept = member.calibration()
    assert kept is not None
    assert member.codec is not None
    parts = member.codec.encode(calibration.standardize(tokens)).arrays
    times = ROWS // DIFFERENT
    rows = {array.name: np.tile(parts[array.name].numpy(), (times,) + (1,) * len(array.row)) for array in member.arrays}
    for unit in units:
        UnitWriter(member, kept[1]).write(unit, rows, seen, {})


def features(seed: int) -> dict[str, torch.Tensor]:
    """Tokens of some images: variances that fall as k**-1.3 along random axes, half of them common to neighbours."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    axes_DD = torch.linalg.qr(noise(CHANNELS, CHANNELS)).Q * torch.arange(1, CHANNELS + 1)[:, None] ** -0.65
    coarse = torch.nn.functional.interpolate(noise(DIFFERENT, CHANNELS, 5, 5), size=(GRID, GRID), mode="bilinear")
    patch = 0.8 * coarse.flatten(2).mT + 0.6 * noise(DIFFERENT, GRID * GRID, CHANNELS)
    return {"cls": noise(DIFFERENT, CHANNELS) @ axes_DD, "patch": patch @ axes_DD}


def write_theia(folder: Path) -> None:
    """1,024 samples in two tars: each teacher's float16 tokens as a safetensors file, and the crop."""
    tokens = {"embedding": torch.randn(GRID * GRID + 1, CHANNELS).half()}
    teachers = {f"t{number}.safetensors": safetensors.torch.save(tokens) for number in range(TEACHERS)}
    crop = np.random.default_rng(0).bytes(3 * VIEWS.size**2)
    for tar in range(2):
        with webdataset.TarWriter(str(folder / f"{tar}.tar")) as writer:
            for number in range(ROWS // 2):
                writer.write({"__key__": f"{tar}{number:04d}", "rgb": crop, **teachers})


class Throttled(LocalFolder):
    """A folder that gives at most `rate` bytes a second to all its readers together."""

    waits = True

    def __init__(self, path: Path, rate: float) -> None:
        super().__init__(path)
        self.rate = rate
        self._free_at = 0.0
        self._lock = threading.Lock()

    def open(self, name: str) -> OpenFile:
        return _ThrottledFile(super().open(name), self)

    def wait(self, size: int) -> None:
        with self._lock:
            self._free_at = max(self._free_at, time.perf_counter()) + size / self.rate
            until = self._free_at
        time.sleep(max(until - time.perf_counter(), 0))


class _ThrottledFile:
    def __init__(self, file: OpenFile, folder: Throttled) -> None:
        self.near, self.at_once, self.sector = file.near, file.at_once, file.sector
        self._file = file
        self._folder = folder

    def read(self, offset: int, size: int) -> memoryview:
        self._folder.wait(size)
        return self._file.read(offset, size)

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> int:
        self._folder.wait(sum(len(buffer) for buffer in buffers))
        return self._file.read_into(offset, buffers)

    def expecting(self, spans: Sequence[Span]) -> OpenFile:  # noqa: ARG002
        return self
