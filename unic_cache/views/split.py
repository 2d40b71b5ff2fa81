"""Choose the images to hold out: a seeded share of each class; equal files stay on the same side."""

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from unic_cache.draws import Purpose, permutation, words
from unic_cache.views.listing import Sample

_SPLIT = 1  # the order of the tars is 0


def held_out(
    samples: Sequence[Sample], fraction: float, seed: int, good: Callable[[Sequence[int]], Iterable[bool]]
) -> frozenset[int]:
    """Positions of the samples to hold out: `fraction` of every class of two or more images, rounded.

    Each such class keeps at least one image on both sides. Files with equal bytes count as one image. `good` tells
    which positions can be decoded; others are not held out, since they would leave their class short.
    """
    order = permutation(words(Purpose.SHARD, seed, _SPLIT, 0, len(samples)))
    first = _first_twins(samples)
    waiting: dict[int | None, list[int]] = defaultdict(list)
    for at in order.tolist():
        if first[at] == at:
            waiting[samples[at].label].append(at)
    lacking = {label: _share(fraction, len(places)) for label, places in waiting.items()}
    held: set[int] = set()
    while tried := [at for label, count in lacking.items() for at in waiting[label][:count]]:
        for label, count in lacking.items():
            del waiting[label][:count]
        found = [at for at, fine in zip(tried, good(tried), strict=True) if fine]
        for at in found:
            lacking[samples[at].label] -= 1
        held.update(found)
    return frozenset(at for at in range(len(samples)) if first[at] in held)


def _share(fraction: float, count: int) -> int:
    """How many of `count` images to hold out: at least one, and not all."""
    return min(max(math.floor(fraction * count + 0.5), 1), count - 1)


def _first_twins(samples: Sequence[Sample]) -> list[int]:
    """For each sample, the position of the first one with equal bytes. Reads only files of equal size."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for at, sample in enumerate(samples):
        by_size[_size(sample.path)].append(at)
    first = list(range(len(samples)))
    for size, places in by_size.items():
        seen: dict[bytes, int] = {}
        for at in places if size >= 0 and len(places) > 1 else ():
            first[at] = seen.setdefault(_digest(samples[at].path), at)
    return first


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # packing reports it
        return -1


def _digest(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return os.fsencode(path)
