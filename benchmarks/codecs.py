"""Bytes a token and fidelity of every codec, on real tokens of the demo's teachers: `python -m benchmarks.codecs`.

Calibrated on views of some images, measured on views of others. By default they are the demo's emoji, seen at the size
that the teachers were made for; `--train` and `--test` take folders of any other pictures. Fidelity is the mean cosine
to the exact tokens in the standardized space. One line of JSON a teacher and codec, `smaller` against float16:

| codec | |
|---|---|
| `klt`, `klt pcodec`, for each `--quality` | as stored: chunks of 32 images, by either coder |
| its `entropy_bytes_per_token` | what an ideal coder of single codes would need |
| `int8`, `int4`, `f16` | no byte codec; int4 is the usual one of 4 bits and a scale a token, after a rotation |
| `klt_bitshuffle` | for comparison: principal axes of the channels alone, one byte a code, Blosc zstd with bitshuffle |

With `--tokens N`, the same of N tokens of each view: on a lattice of the grid, or at random positions (`--sampling`).
With `--cls`, of CLS tokens: `klt` under both coders, and `f16`.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from crc32c import crc32c
from numcodecs import Blosc, Zstd
from numcodecs.pcodec import PCodec
from torch import Tensor

from unic_cache.config import RANDOM, SAMPLINGS, Views
from unic_cache.store.calibrate import Calibration, Calibrator
from unic_cache.store.codecs.codec import FeatureCodec, Features
from unic_cache.store.codecs.fit import BandMoments
from unic_cache.store.codecs.klt import DEAD_ZONE, Klt, unprefixed
from unic_cache.store.codecs.packing import TILE
from unic_cache.store.coders import PCODEC, ZSTD_LEVEL
from unic_cache.store.layout import CHUNK_ROWS
from unic_cache.store.sampling import at_positions
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.model import Teacher, load_teacher
from unic_cache.views.augment import make_view
from unic_cache.views.decode import decode
from unic_cache.views.shards import OpenShard, describe, expand

EMOJI = Path(__file__).parent.parent / "tests/data/noto-emoji"
ENCODERS = {"zstd": Zstd(level=ZSTD_LEVEL), "pcodec": PCodec(**PCODEC)}
PICTURES = {".jpg", ".jpeg", ".png", ".webp"}
BATCH = CHUNK_ROWS
SEED = 0


@dataclass(frozen=True)
class Shown:
    """All tokens of a kind of some views, as the teacher gives them, and the (key, view number) of each."""

    tokens: Tensor  # (B, T, D), or (B, D) of CLS
    keys: list[tuple[int, int]]

    def kept(self, features: Features) -> Tensor | None:
        """(B, N) positions of the tokens that are stored; None for all."""
        kept_BN = features.positions(SEED, self.keys)
        return None if kept_BN is None else torch.from_numpy(kept_BN)

    def stored(self, features: Features) -> Tensor:
        """(B, N, D): those tokens; (B, D) of CLS."""
        return at_positions({"patch": self.tokens}, self.kept(features))["patch"]


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
    parser.add_argument("--cls", action="store_true", help="of CLS tokens instead of patch tokens")
    options = parser.parse_args()
    if options.cls and options.tokens:
        parser.error("--cls measures one token of each view; leave --tokens out")
    sampling = options.sampling if options.tokens else RANDOM
    kind = "cls" if options.cls else "patch"
    for name in options.teacher:
        teacher = load_teacher(resolve(name))
        train = tokens(teacher, kind, options.train, options.size, options.views)
        test = tokens(teacher, kind, options.test, options.size, 1)
        kinds = {kind: teacher.spec.kinds[kind]}
        for quality in options.quality:
            features = Features("klt", kinds, options.tokens, quality, sampling, cls_quality=quality)
            calibration, codec = calibrated(features, train)
            exact = calibration.standardize({kind: test.stored(features)})[kind]
            found = measured(codec, exact)
            tans = measured(calibration.codec(dataclasses.replace(codec.features, coder="pcodec")), exact)
            klt = Klt.from_arrays(unprefixed(kind, calibration.klt), features.stored_grid, features.tokens)
            bound = entropy(klt, exact)
            report(name, "klt", exact, quality=quality, **found, entropy_bytes_per_token=bound)
            report(name, "klt pcodec", exact, quality=quality, **tans, entropy_bytes_per_token=bound)
            if options.cls:
                continue
            report(
                name,
                "klt_bitshuffle",
                exact,
                quality=quality,
                **bitshuffled(calibration, train.stored(features), exact, found["cosine"]),
            )
        for codec_name in ("f16",) if options.cls else ("int8", "int4", "f16"):
            features = Features(codec_name, kinds, options.tokens, sampling=sampling)
            calibration, codec = calibrated(features, train)
            exact = calibration.standardize({kind: test.stored(features)})[kind]
            report(name, codec_name, exact, **measured(codec, exact))


def report(teacher: str, codec: str, exact: Tensor, **found: Any) -> None:
    """One line."""
    found["smaller"] = round(2 * exact.shape[-1] / found["bytes_per_token"], 2)
    found["cosine"] = round(found["cosine"], 4)
    print(json.dumps({"teacher": teacher, "codec": codec, **found, "images": len(exact)}), flush=True)


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


def tokens(teacher: Teacher, kind: str, where: str, size: int, views: int) -> Shown:
    """The tokens of a kind of every picture's views."""
    keys: list[tuple[int, int]] = []
    batch: list[np.ndarray[Any, Any]] = []
    found: list[Tensor] = []

    def flush() -> None:
        if batch:
            found.append(teacher(torch.from_numpy(np.stack(batch)))[kind])
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
    calibrator, kept_BN, (kind,) = Calibrator(features), train.kept(features), features.kinds
    for start in range(0, len(train.keys), BATCH):
        part = slice(start, start + BATCH)
        calibrator.update({kind: train.tokens[part]}, None if kept_BN is None else kept_BN[part])
    calibration = calibrator.calibration()
    return calibration, calibration.codec(features)


def measured(codec: FeatureCodec, exact: Tensor) -> dict[str, Any]:
    """Bytes as the store keeps them, and what comes back."""
    size, cosines, clipped, (kind,) = 0, [], 0, codec.features.kinds
    for part in torch.split(exact, CHUNK_ROWS):
        encoded = codec.encode({kind: part})
        parts = encoded.arrays
        clipped += 0 if encoded.clipped_B is None else int(encoded.clipped_B.sum())
        cosines.append(torch.cosine_similarity(codec.decode(parts)[kind], part, dim=-1).flatten())
        for array in codec.arrays:
            kept = array.to_disk(parts[array.name].numpy())
            whole = len(part) * array.row_bytes
            size += len(ENCODERS[array.coder].encode(np.ascontiguousarray(kept))) if array.tile else whole
    found = {"cosine": torch.cat(cosines).mean().item(), "bytes_per_token": size / exact.shape[:-1].numel()}
    return {**found, "clipped": clipped / exact.numel()} if codec.features.codec == "klt" else found


def entropy(klt: Klt, exact: Tensor) -> float:
    """Bytes a token by the zero-order entropy of the codes: each 256 that calibration found alike have a free table."""
    steps = (
        klt.coefficients(exact.reshape(-1, klt.tokens, klt.channels)).flatten(1)[:, torch.from_numpy(klt.order).long()]
        / klt.step
    )
    codes = (steps + (1 - DEAD_ZONE) * steps.sign()).trunc()
    bits = 0.0
    for group in torch.split(codes, TILE, dim=1):
        counts = group.unique(return_counts=True)[1]
        bits -= float((counts * (counts / counts.sum()).log2()).sum())
    return bits / 8 / exact.shape[:-1].numel()


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
