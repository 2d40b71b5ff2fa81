"""Samples as they go into a tar: the image upright, its masks and depth maps checked against it."""

import errno
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.command.progress import Progress, say
from unic_cache.ahead import ahead, thread_pool
from unic_cache.errors import ImageError
from unic_cache.views.decode import open_image, upright_file
from unic_cache.views.dense_labels import IGNORED, Size, decode_depth, decode_mask, palette_of
from unic_cache.views.dense_places import MASK
from unic_cache.views.left_out import shown
from unic_cache.views.listing import Sample

# errors of a single file; any other (too many open files, no memory) is not about the image
ITS_OWN = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR}
IMAGES_AHEAD = 64  # decoded before the tar asks for them
FARTHEST = 1000  # metres: the largest mean depth that is believed


@dataclass(frozen=True)
class Packed:
    """One sample, ready for a tar."""

    key: str
    extension: str
    image: bytes
    label: int | None
    dense: Mapping[str, bytes]  # masks and depth maps by kind
    pixels: "Pixels"


@dataclass
class Pixels:
    """What masks and depth maps hold: pixels per class, and depths."""

    classes: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    colours: dict[int, bytes] = field(default_factory=dict)  # of indices in palette masks, before the offset
    recoloured: set[int] = field(default_factory=set)  # indices whose colour is not the same in all masks
    known: int = 0  # pixels with a depth
    unknown: int = 0
    least: float = float("inf")  # metres
    most: float = 0.0
    metres: float = 0.0  # their sum

    def add(self, other: "Pixels") -> None:
        """Count the pixels of another sample."""
        self.classes = self.classes + other.classes
        for index, colour in other.colours.items():
            if self.colours.setdefault(index, colour) != colour:
                self.recoloured.add(index)
        self.known, self.unknown = self.known + other.known, self.unknown + other.unknown
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)
        self.metres += other.metres

    def remarks(self) -> list[str]:
        """What tells people a wrong offset or unit.

        ImageError if indices are no classes, masks show one class or none, or depths are millimetres.
        """
        lines = []
        if self.recoloured:
            raise ImageError(
                f"index {min(self.recoloured)} has one colour in some palette masks and another in others, so the "
                "indices are not class numbers; write the class of each pixel as 8-bit grey"
            )
        total, used = int(self.classes.sum()), np.flatnonzero(self.classes[:IGNORED])
        if total and len(used) < 2:
            only = f"only the class {used[0]}" if len(used) else "no class"
            raise ImageError(
                f"all masks together have {only} beside {IGNORED}, which is ignored; write classes as 0, 1, 2, ... "
                f"(a mask of 0 and {IGNORED} needs 1 instead of {IGNORED})"
            )
        if total:
            ignored = self.classes[IGNORED] / total
            lines.append(
                f"masks: {len(used)} classes, {used[0]} to {used[-1]}; {ignored:.1%} of the pixels are ignored"
            )
        if self.known + self.unknown:
            missing = self.unknown / (self.known + self.unknown)
            mean = self.metres / max(self.known, 1)
            if mean > FARTHEST:
                raise ImageError(
                    f"depths are {mean:,.0f} m on average: they look like millimetres; divide them by 1000"
                )
            depths = f"{self.least:.2f} to {self.most:.2f} m, {mean:.2f} m on average" if self.known else "none"
            lines.append(f"depths: {depths}; {missing:.1%} of the pixels are unknown")
        return lines


def good_samples(
    samples: Sequence[Sample], offset: int, strict: bool, bad: dict[str, str], progress: Progress
) -> Iterator[Packed]:
    """The good samples in order, decoded on all cores; the others go into `bad`, or raise ImageError if strict."""
    with thread_pool(0) as pool:
        results = ahead(samples, lambda sample: pool.submit(pack, sample, offset).result, IMAGES_AHEAD)
        for sample, result in zip(samples, results, strict=True):
            progress.advance(1)
            name = str(sample.path)
            if isinstance(result, Packed):
                yield result
            elif strict:
                raise ImageError(f"{shown(name)}: {result}; repair or remove the file, or leave --strict out")
            else:
                bad[name] = result
                say(f"skipped {shown(name)}: {result}")


def counted(samples: Iterator[Packed], pixels: Pixels) -> Iterator[Packed]:
    """The samples, their pixels added to `pixels`."""
    for one in samples:
        pixels.add(one.pixels)
        yield one


def pack(sample: Sample, offset: int) -> Packed | str:
    """The sample with its file's bytes, or a PNG if those are not upright 8-bit RGB; or why it cannot be packed.

    `offset` is added to the classes of its mask.
    """
    reading = sample.path
    try:
        extension, image = upright_file(sample.path.read_bytes())
        size, pixels, dense = open_image(image).size, Pixels(), {}
        for kind, reading in sample.dense.items():
            dense[kind] = _dense(reading.read_bytes(), kind, size, offset, pixels)
    except ImageError as error:
        return _of(reading, sample, str(error))
    except OSError as error:
        if error.errno not in ITS_OWN:
            raise
        return _of(reading, sample, error.strerror or str(error))
    return Packed(sample.key, extension, image, sample.label, dense, pixels)


def _of(reading: Path, sample: Sample, reason: str) -> str:
    return reason if reading is sample.path else f"{shown(str(reading))}: {reason}"


def _dense(data: bytes, kind: str, size: Size, offset: int, pixels: Pixels) -> bytes:
    """The label's bytes as stored: a mask as 8-bit grey, a depth map as it is. Counts its pixels."""
    if kind != MASK:
        depth_HW = decode_depth(data, kind, size)
        there = depth_HW[depth_HW > 0].astype(np.float64)
        least, most = (float(there.min()), float(there.max())) if there.size else (float("inf"), 0.0)
        unknown = depth_HW.size - there.size
        pixels.add(Pixels(known=there.size, unknown=unknown, least=least, most=most, metres=float(there.sum())))
        return data
    read_HW = decode_mask(data, size)
    palette = palette_of(data)
    used = np.unique(read_HW).tolist() if palette else []
    pixels.colours = {index: palette[3 * index : 3 * index + 3] for index in used if index != IGNORED}
    mask_HW = shifted(read_HW, offset)
    pixels.classes = np.bincount(mask_HW.ravel(), minlength=256)
    buffer = io.BytesIO()
    Image.fromarray(mask_HW).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def shifted(mask_HW: npt.NDArray[np.uint8], offset: int) -> npt.NDArray[np.uint8]:
    """The mask with `offset` added to its classes; those below 0 are ignored. ImageError for one above 254."""
    moved = mask_HW.astype(np.int16) + offset
    over = (moved >= IGNORED) & (mask_HW != IGNORED)
    if over.any():
        raise ImageError(f"the mask has the class {mask_HW[over].max()}, which --mask-offset {offset} moves above 254")
    return np.where((mask_HW == IGNORED) | (moved < 0), IGNORED, moved).astype(np.uint8)
