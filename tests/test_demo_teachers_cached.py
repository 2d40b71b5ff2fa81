"""The demo's real teachers, from real images through the cache, against timm run directly on the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import extract
from unic_cache.cache import open_cache
from unic_cache.config import ExtractConfig, Views
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.model import load_teacher
from unic_cache.views.augment import make_view
from unic_cache.views.decode import decode
from unic_cache.views.shards import OpenShard, describe

EMOJI = Path(__file__).parent / "data/noto-emoji/test/test-000001.tar"
TEACHERS = ("efficientnet-lite0@128", "vit-s-saliency@112")
ROWS = 16


@pytest.fixture(scope="module")
def views_BHWC() -> torch.Tensor:
    """The first views of a committed tar, made one after the other."""
    (entry,) = describe([str(EMOJI)])
    views = Views("unic", 128, 0)
    with OpenShard(str(EMOJI), entry) as tar:
        return torch.from_numpy(
            np.stack([make_view(decode(tar.read(row)), views, entry.keys[row], 0) for row in range(ROWS)])
        )


@pytest.fixture(scope="module")
def exact(views_BHWC) -> dict[str, dict[str, torch.Tensor]]:
    """Straight through timm's model: resized, normalised, and the block or map that the spec names."""
    effnet = load_teacher(resolve(TEACHERS[0])).model
    vit = load_teacher(resolve(TEACHERS[1])).model
    images = views_BHWC.permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    small = torch.nn.functional.interpolate(images, (112, 112), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.inference_mode():
        normed = (images - 0.5) / 0.5
        ends = effnet.forward_intermediates(normed, intermediates_only=True)
        pooled = effnet.forward_head(effnet.forward_features(normed), pre_logits=True)
        tokens = vit.patch_embed((small - mean) / std)
        tokens = vit._pos_embed(tokens)
        for block in vit.blocks[:9]:
            tokens = block(tokens)
        tokens = vit.norm(tokens)
    grid = next(end for end in reversed(ends) if end.shape[-1] == 8)
    return {
        TEACHERS[0]: {"cls": pooled, "patch": grid.flatten(2).transpose(1, 2)},
        TEACHERS[1]: {"cls": tokens[:, 0], "patch": tokens[:, 1:]},
    }


@pytest.mark.parametrize(("codec", "cosine"), [("f16", 0.9999), ("int8", 0.9995), ("int4", 0.993)])
def test_cached_features_are_timms(tmp_path, exact, codec, cosine):
    config = ExtractConfig(
        TEACHERS, shards=str(EMOJI), cache=str(tmp_path / "cache"), views=1, size=128, codec=codec, batch_size=31,
        calibration_images=31, device="cpu",
    )  # fmt: skip
    extract.run(config)
    cache = open_cache(tmp_path / "cache")
    for name, features in exact.items():
        teacher = cache.teachers[name]
        kept = teacher.features(teacher.record(cache.unit(0, 0, "unic-128-0-000")), range(ROWS))
        for kind, expected in teacher.calibration.standardize(features).items():
            if codec == "f16" or kind == "cls":
                assert ((kept[kind] - expected).abs() <= 2e-3 * expected.abs().clamp(min=1)).all(), (name, kind)
            assert torch.cosine_similarity(kept[kind], expected, dim=-1).mean() >= cosine, (name, kind)
