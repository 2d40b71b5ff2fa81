"""Features of every image, computed once per encoder and kept in files, from which each task starts.

    DIR/SET/pixels.npz                   checksums of the views, and why some are unusable
    DIR/SET/ENCODER/summary.npy          (N, D) float32
    DIR/SET/ENCODER/patches.npy          (N, T, D) float16

SET is a digest of the images' bytes and of how views are made from them; ENCODER ends in a digest of all that decides
its features. So a file never stands for other pictures or other weights: what differs has another name.

Letters: N images, B images of a batch, H and W pixels, T tokens, D channels.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipelines.command.progress import Progress
from pipelines.evaluating.encoders import Encoder, Features, summary_kind
from pipelines.evaluating.labelled import Usable, prints_of
from pipelines.evaluating.row_files import Array, RowFile, kept_rows
from unic_cache.ahead import ahead
from unic_cache.config import Views
from unic_cache.errors import CacheError, ConfigError
from unic_cache.files.local import LocalFolder
from unic_cache.inputs import RULE
from unic_cache.store.npz import load_npz, save_npz
from unic_cache.stream.address import Address
from unic_cache.stream.pixels import ShardPixels
from unic_cache.views.augment import AUGMENT_VERSION
from unic_cache.views.decode import decoder_versions, optional_decoders

DECODED_AHEAD = 3  # batches
ROWS_AT_ONCE = 64  # of a teacher's tokens in memory
PIXELS, SUMMARY, PATCHES = "pixels.npz", "summary.npy", "patches.npy"


@dataclass(frozen=True)
class KeptFeatures:
    """One encoder's features of all wanted images of a set, mapped from files; zeros where an image is unusable."""

    summary_ND: Array
    patches_NTD: Array | None


def features(
    usable: Usable,
    encoders: Sequence[Encoder],
    folder: Path,
    dense: bool,
    batch_size: int,
    device: torch.device,
) -> dict[str, KeptFeatures]:
    """Each encoder's features of a set, by name, from `folder` or computed into it; fills in `usable`.

    With `dense` also patch tokens, of encoders that have them. All networks that lack features share one decoding.
    """
    count = len(usable.images.wanted)
    files = {
        one.name: EncoderFiles(folder / file_name(one, usable), count, dense and one.grid is not None)
        for one in encoders
    }
    lacking = [one for one in once(encoders, files) if one.run is not None and not files[one.name].whole()]
    if lacking or not recall(usable, folder):
        run_networks(usable, [(one, files[one.name]) for one in lacking], batch_size, device)
        remember(usable, folder)
    usable.finish()
    for one in encoders:
        if one.cached is not None and not files[one.name].whole():
            read_cached(usable, one, files[one.name])
    return {name: own.mapped() for name, own in files.items()}


def once(encoders: Sequence[Encoder], files: Mapping[str, "EncoderFiles"]) -> list[Encoder]:
    """The first encoder of each folder, with patch tokens if one of them has them: equal weights share their files."""
    ranked = sorted(encoders, key=lambda one: not files[one.name].dense)
    first = {files[one.name].folder: one for one in reversed(ranked)}
    return [one for one in encoders if first[files[one.name].folder] is one]


class EncoderFiles:
    """The files of an encoder's features of `count` images; several runs may write them at once."""

    def __init__(self, folder: Path, count: int, dense: bool) -> None:
        self.folder, self.count, self.dense = folder, count, dense
        self._found: dict[str, Array] = {}  # each file is checked once

    def whole(self) -> bool:
        """Whether all that is needed is there."""
        return all(self._kept(name) is not None for name in ([SUMMARY, PATCHES] if self.dense else [SUMMARY]))

    def mapped(self) -> KeptFeatures:
        """The features, for reading."""
        summary_ND = self._kept(SUMMARY)
        assert summary_ND is not None, self.folder
        return KeptFeatures(summary_ND, self._kept(PATCHES) if self.dense else None)

    def _kept(self, name: str) -> Array | None:
        found = self._found.get(name)
        if found is None:
            found = kept_rows(self.folder / name, self.count)
        if found is not None:
            self._found[name] = found
        return found

    def writers(self) -> dict[str, RowFile]:
        """Files to fill, batch after batch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        names = {SUMMARY: np.float32, PATCHES: np.float16} if self.dense else {SUMMARY: np.float32}
        return {name: RowFile(self.folder / name, self.count, kind) for name, kind in names.items()}


def run_networks(
    usable: Usable, networks: Sequence[tuple[Encoder, EncoderFiles]], batch_size: int, device: torch.device
) -> None:
    """Decode every image once; run the networks on the good ones."""
    wanted, source = usable.images.wanted, usable.source
    batches = [wanted[start : start + batch_size] for start in range(0, len(wanted), batch_size)]
    writers = {one.name: files.writers() for one, files in networks}
    try:
        with Progress("evaluate", total=len(wanted), unit="images") as progress:
            made = ahead(batches, lambda group: source.start(group, len(group)), DECODED_AHEAD)
            for number, batch in enumerate(made):
                usable.add(number * batch_size, prints_of(batch), batch.bad)
                good_B = np.array([place not in batch.bad for place in range(len(batch.crcs))])
                views_BHWC = torch.from_numpy(batch.views_BHWC[good_B]).to(device)
                for one, _ in networks:
                    assert one.run is not None
                    found = one.run(views_BHWC) if len(views_BHWC) else None
                    append(one.name, writers[one.name], found, good_B)
                progress.advance(len(good_B))
        for own in writers.values():
            for file in own.values():
                file.finish()
    finally:
        for own in writers.values():
            for file in own.values():
                file.drop()


def append(name: str, writers: Mapping[str, RowFile], found: Features | None, good_B: npt.NDArray[np.bool_]) -> None:
    """Add a batch's rows: features of the good images, zeros of the others. ConfigError if float16 cannot hold them."""
    for file, rows in zip(writers.values(), found or (None, None), strict=False):
        if rows is None:
            file.append(None, good_B)
            continue
        values = rows.float().cpu().numpy()
        with np.errstate(over="ignore"):
            kept = values.astype(file.dtype)
        if np.isinf(kept).any() and np.isfinite(values).all():
            raise ConfigError(f"{name}: patch tokens reach {np.abs(values).max():.4g}, beyond float16; normalize them")
        file.append(kept, good_B)


def read_cached(usable: Usable, encoder: Encoder, files: EncoderFiles) -> None:
    """A teacher's de-standardized features from the cache: its summary, or the mean of its grid tokens, and patches."""
    teacher = encoder.cached
    assert teacher is not None
    summary = summary_kind(teacher.kinds)
    grid = next((kind for kind, one in teacher.kinds.items() if one.grid), None)
    kinds = [summary, *([grid] if files.dense and grid and grid != summary else [])]
    writers = files.writers()
    try:
        for place, items in groupby(usable.images.wanted, lambda item: item[:2]):
            record = next(one for one in usable.records[place] if one.name.startswith(f"{teacher.member.folder}/"))
            group = list(items)
            for start in range(0, len(group), ROWS_AT_ONCE):
                rows = [item.row for item in group[start : start + ROWS_AT_ONCE]]
                stored = teacher.features(record, rows, kinds)
                own = teacher.calibration.destandardize(stored)
                first = own[summary]
                found = (first if first.ndim == 2 else first.mean(dim=1)), own.get(grid or "")
                append(encoder.name, writers, found, np.ones(len(rows), np.bool_))
        for file in writers.values():
            file.finish()
    finally:
        for file in writers.values():
            file.drop()


def recall(usable: Usable, folder: Path) -> bool:
    """Fill in `usable` from an earlier run, if one has seen these images and its file is whole."""
    data = LocalFolder(folder).read(PIXELS)
    if data is None:
        return False
    try:
        found = load_npz(data, f"{folder}/{PIXELS}")
        prints_N = np.asarray(found["prints"], np.uint64)
        bad = {int(place): why for place, why in json.loads(np.asarray(found["bad"], np.uint8).tobytes()).items()}
    except (CacheError, KeyError, ValueError, AttributeError):
        return False
    if len(prints_N) != len(usable.images.wanted):
        return False
    usable.add(0, prints_N, bad)
    return True


def remember(usable: Usable, folder: Path) -> None:
    """Keep what `recall` reads: of the images alone, whatever a cache says of them."""
    bad = json.dumps({str(place): why for place, why in usable.undecodable.items()})
    data = save_npz({"prints": usable.prints_N, "bad": np.frombuffer(bad.encode(), np.uint8)})
    folder.mkdir(parents=True, exist_ok=True)
    LocalFolder(folder).replace(PIXELS, data)


def set_name(source: ShardPixels, wanted: Sequence[Address], pool: ThreadPoolExecutor) -> str:
    """The folder of a set: a digest of its images' bytes and of the rules that make views from them."""
    views: Views = source.views  # center views: they have no crop scale
    seen = {"recipe": views.recipe, "size": views.size, "seed": views.seed}
    decoders = {**decoder_versions(), **optional_decoders()}  # an image may become readable
    rules = {"views": seen, "augment": AUGMENT_VERSION, "decoders": decoders, "input": RULE}
    digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode())
    for one in pool.map(lambda item: hashlib.sha256(source.data(item)).digest(), wanted):
        digest.update(one)
    return digest.hexdigest()[:24]


def file_name(encoder: Encoder, usable: Usable) -> str:
    """The encoder's folder in a set's: its kind and a digest of what decides its features, whatever it is called."""
    identity: dict[str, Any] = dict(encoder.identity)
    if encoder.cached is not None:
        prefix = f"{encoder.cached.member.folder}/"
        records = [one for own in usable.records.values() for one in own if one.name.startswith(prefix)]
        identity["records"] = {record.name: record.checksum for record in records}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return f"{encoder.kind.replace(' ', '-')}-{digest}"
