"""Bytes a token and fidelity of every codec, on real tokens of the demo's teachers: `python -m benchmarks.codecs`.

The tokens are of the first views of 161 committed images; the statistics are of other views of them. Fidelity is the
mean cosine to the exact tokens in the standardized space. One line of JSON a (teacher, codec).
"""

import json
from pathlib import Path

import numpy as np
import torch

from unic_cache.config import CODECS, Views
from unic_cache.store.calibrate import Calibrator
from unic_cache.store.codec import FeatureCodec
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.model import load_teacher
from unic_cache.views.augment import make_view
from unic_cache.views.decode import decode
from unic_cache.views.shards import OpenShard, describe, expand

IMAGES = Path(__file__).parent.parent / "tests/data/noto-emoji/test/*.tar"
TEACHERS = ("efficientnet-lite0@128", "vit-s-saliency@112")
BATCH = 32


def views(number: int) -> torch.Tensor:
    """View `number` of every image, uint8 (N, 128, 128, 3)."""
    made = []
    for path, entry in zip(expand(str(IMAGES)), describe(expand(str(IMAGES))), strict=True):
        with OpenShard(path, entry) as tar:
            for row, key in enumerate(entry.keys):
                made.append(make_view(decode(tar.read(row)), Views("unic", 128, 0), key, number))
    return torch.from_numpy(np.stack(made))


def main() -> None:
    seen, others = views(0), views(1)
    for name in TEACHERS:
        teacher = load_teacher(resolve(name))
        calibrator = Calibrator()
        for start in range(0, len(others), BATCH):
            calibrator.update(teacher(others[start : start + BATCH]))
        answers = [teacher(seen[start : start + BATCH]) for start in range(0, len(seen), BATCH)]
        tokens = {kind: torch.cat([answer[kind] for answer in answers]) for kind in ("cls", "patch")}
        patch = tokens["patch"]
        for codec_name in CODECS:
            codec = FeatureCodec(codec_name, tokens["cls"].shape[1], patch.shape[1], patch.shape[2])
            exact = calibrator.calibration(codec).standardize(tokens)
            decoded = codec.decode(codec.encode(exact))
            size = sum(array.row_bytes for array in codec.arrays if array.name != "cls") / patch.shape[1]
            result = {
                "teacher": name,
                "codec": codec_name,
                "bytes_per_token": size,
                "smaller_than_f16": round(2 * patch.shape[2] / size, 2),
                "cosine": round(torch.cosine_similarity(decoded["patch"], exact["patch"], dim=-1).mean().item(), 5),
            }
            print(json.dumps(result))


if __name__ == "__main__":
    main()
