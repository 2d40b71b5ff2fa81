"""Bytes a token and fidelity of every codec, on real tokens of the demo's teachers: `python -m benchmarks.codecs`.

Calibrated on views of some images, measured on views of others. By default they are the demo's emoji, seen at the size
that the teachers were made for; `--train` and `--test` take folders of any other pictures. Fidelity is the mean cosine
to the exact tokens in the standardized space. One line of JSON a teacher and codec, `smaller` against float16:

| codec | |
|---|---|
| `klt`, for each `--quality` | as stored: chunks of 32 images, compressed; its step is the calibration's choice |
| its `entropy_bytes_per_token` | what an ideal coder of single codes would need |
| `int8`, `int4`, `f16` | no byte codec; int4 is the usual one of 4 bits and a scale a token, after a rotation |
| `klt_bitshuffle` | for comparison: principal axes of the channels alone, one byte a code, Blosc zstd with bitshuffle |

With `--tokens N`, the same of N tokens of each view: on a lattice of the grid, or at random positions (`--sampling`).
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from crc32c import crc32c
from numcodecs import Blosc, Zstd
from torch import Tensor

from unic_cache.config import RANDOM, SAMPLINGS, Views
from unic_cache.store.calibrate import Calibration, Calibrator
from unic_cache.store.codecs.codec import FeatureCodec, Features
from unic_cache.store.codecs.fit import BandMoments
from unic_cache.store.codecs.klt import DEAD_ZONE, TILE, Klt
from unic_cache.store.layout import CHUNK_ROWS, ZSTD_LEVEL
from unic_cache.store.sampling import at_positions
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.model import Teacher, load_teacher
from unic_cache.views.augment import make_view
from unic_cache.views.decode import decode
from unic_cache.views.shards import OpenShard, describe, expand

EMOJI = Path(__file__).parent.parent / "tests/data/noto-emoji"
PICTURES = {".jpg", ".jpeg", ".png", ".webp"}
BATCH = CHUNK_ROWS
SEED = 0


@dataclass(frozen=True)
class Shown:
    """All patch tokens of some views, as the teacher gives them, and the (key, view number) of each."""

    tokens_BTD: Tensor
    keys: list[tuple[int, int]]

    def kept(self, features: Features) -> Tensor | None:
        """(B, N) positions of the tokens that are stored; None for all."""
        kept_BN = features.positions(SEED, self.keys)
        return None if kept_BN is None else torch.from_numpy(kept_BN)

    def stored(self, features: Features) -> Tensor:
        """(B, N, D): those tokens."""
        return at_positions({"patch": self.tokens_BTD}, self.kept(features))["patch"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", nargs="+", default=["efficientnet-lite0", "vit-s-saliency"])
    parser.add_argument("--train", default=str(EMOJI / "train/*.tar"), help="tars, or a folder of pictures")
    parser.add_argument("--test", default=str(EMOJI / "test/*.tar"))
    parser.add_argument("--views", type=int, default=2, help="of each picture to calibrate on")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--quality", nargs="+", type=float, default=[0.99, 0.98, 0.96])
    parser.add_argument("--tokens", type=int, help="stored of each view; default: all")
    parser.add_argument("--sampling", choices=SAMPLINGS, default=SAMPLINGS[0], help="positions of --tokens")
    options = parser.parse_args()
    sampling = options.sampling if options.tokens else RANDOM
    for name in options.teacher:
        teacher = load_teacher(resolve(name))
        train = tokens(teacher, options.train, options.size, options.views)
        test = tokens(teacher, options.test, options.size, 1)
        patch = {"patch": teacher.spec.kinds["patch"]}
        for quality in options.quality:
            features = Features("klt", patch, options.tokens, quality, sampling)
            calibration, codec = calibrated(features, train)
            exact = calibration.standardize({"patch": test.stored(features)})["patch"]
            found = measured(codec, exact)
            bound = entropy(Klt.from_arrays(calibration.klt, features.stored_grid, features.tokens), exact)
            report(name, "klt", exact, quality=quality, **found, entropy_bytes_per_token=bound)
            report(
                name,
                "klt_bitshuffle",
                exact,
                quality=quality,
                **bitshuffled(calibration, train.stored(features), exact, found["cosine"]),
            )
        for codec_name in ("int8", "int4", "f16"):
            features = Features(codec_name, patch, options.tokens, sampling=sampling)
            calibration, codec = calibrated(features, train)
            exact = calibration.standardize({"patch": test.stored(features)})["patch"]
            report(name, codec_name, exact, **measured(codec, exact))


def report(teacher: str, codec: str, exact_BTD: Tensor, **found: Any) -> None:
    """One line."""
    found["smaller"] = round(2 * exact_BTD.shape[-1] / found["bytes_per_token"], 2)
    found["cosine"] = round(found["cosine"], 4)
    print(json.dumps({"teacher": teacher, "codec": codec, **found, "images": len(exact_BTD)}), flush=True)


def pictures(where: str) -> Iterator[tuple[bytes, int]]:
    """(bytes, key) of every picture in tars or below a folder."""
    if Path(where).is_dir():
        for path in sorted(Path(where).rglob("*")):
            if path.suffix.lower() in PICTURES:
                yield path.read_bytes(), crc32c(str(path.relative_to(where)).encode())
        return
    for path, entry in zip(expand(where), describe(expand(where)), strict=True):
        with OpenShard(path, entry) as tar:
            for row, key in enumerate(entry.keys):
                yield tar.read(row), key


def tokens(teacher: Teacher, where: str, size: int, views: int) -> Shown:
    """The patch tokens of every picture's views."""
    keys: list[tuple[int, int]] = []
    batch: list[np.ndarray[Any, Any]] = []
    found: list[Tensor] = []

    def flush() -> None:
        if batch:
            found.append(teacher(torch.from_numpy(np.stack(batch)))["patch"])
            batch.clear()

    for number in range(views):
        for data, key in pictures(where):
            keys.append((key, number))
            batch.append(make_view(decode(data), Views("unic", size, SEED), key, number))
            if len(batch) == BATCH:
                flush()
    flush()
    return Shown(torch.cat(found), keys)


def calibrated(features: Features, train: Shown) -> tuple[Calibration, FeatureCodec]:
    """What `extract` would make of these tokens."""
    calibrator, kept_BN = Calibrator(features), train.kept(features)
    for start in range(0, len(train.keys), BATCH):
        part = slice(start, start + BATCH)
        calibrator.update({"patch": train.tokens_BTD[part]}, None if kept_BN is None else kept_BN[part])
    calibration = calibrator.calibration()
    return calibration, calibration.codec(features)


def measured(codec: FeatureCodec, exact_BTD: Tensor) -> dict[str, Any]:
    """Bytes as the store keeps them, and what comes back."""
    size, cosines, clipped = 0, [], 0
    for part in torch.split(exact_BTD, CHUNK_ROWS):
        encoded = codec.encode({"patch": part})
        parts = encoded.arrays
        clipped += 0 if encoded.clipped_B is None else int(encoded.clipped_B.sum())
        cosines.append(torch.cosine_similarity(codec.decode(parts)["patch"], part, dim=-1).flatten())
        for array in codec.arrays:
            kept = array.to_disk(parts[array.name].numpy())
            whole = len(part) * array.row_bytes
            size += len(Zstd(level=ZSTD_LEVEL).encode(np.ascontiguousarray(kept))) if array.tile else whole
    found = {"cosine": torch.cat(cosines).mean().item(), "bytes_per_token": size / exact_BTD.shape[:2].numel()}
    return {**found, "clipped": clipped / exact_BTD.numel()} if codec.features.codec == "klt" else found


def entropy(klt: Klt, exact_BTD: Tensor) -> float:
    """Bytes a token by the zero-order entropy of the codes: each 256 that calibration found alike have a free table."""
    steps = klt.coefficients(exact_BTD).flatten(1)[:, torch.from_numpy(klt.order).long()] / klt.step
    codes = (steps + (1 - DEAD_ZONE) * steps.sign()).trunc()
    bits = 0.0
    for group in torch.split(codes, TILE, dim=1):
        counts = group.unique(return_counts=True)[1]
        bits -= float((counts * (counts / counts.sum()).log2()).sum())
    return bits / 8 / exact_BTD.shape[:2].numel()


def bitshuffled(calibration: Calibration, train_BTD: Tensor, exact_BTD: Tensor, cosine: float) -> dict[str, Any]:
    """The plain transform coder at the same cosine: axes of the channels, one step, a byte a code, high bytes apart."""
    moments = BandMoments(None, train_BTD.shape[1])
    for part in torch.split(train_BTD, BATCH):
        moments.update(part)
    axes = torch.from_numpy(moments.axes(calibration.mean["patch"], calibration.std["patch"])[0])
    rotated = exact_BTD @ axes
    low, high = np.log(1e-3), np.log(1e2)
    for _ in range(18):
        step = float(np.exp((low + high) / 2))
        found = torch.cosine_similarity((rotated / step).round() * step, rotated, dim=-1).mean().item()
        low, high = (np.log(step), high) if found >= cosine else (low, np.log(step))
    codes = (rotated / step).round().short().numpy()
    wide = int((np.abs(codes).max(axis=(0, 1)) > 127).sum())
    size = 0
    for chunk in np.split(codes, range(CHUNK_ROWS, len(codes), CHUNK_ROWS)):
        by_channel = np.moveaxis(chunk, -1, 0)
        data = np.concatenate([(by_channel & 255).astype(np.uint8), (by_channel[:wide] >> 8).astype(np.uint8)])
        size += len(Blosc("zstd", 5, Blosc.BITSHUFFLE).encode(np.ascontiguousarray(data)))
    return {"cosine": found, "bytes_per_token": size / exact_BTD.shape[:2].numel()}


if __name__ == "__main__":
    main()
