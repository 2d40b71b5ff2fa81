"""Colours of patch tokens against plain linear algebra, and the estimated errors against real ones."""

import numpy as np
import pytest
import torch

from pipelines.reporting.codec_losses import frequency_bits, token_errors
from unic_cache.cache import open_cache
from unic_cache.evaluate.token_pictures import Tokens, component_maps, norm_maps
from unic_cache.store.codecs.codec import FeatureCodec, Features
from unic_cache.store.codecs.klt import band_tokens
from unic_cache.token_kinds import TokenKind

GRID = (6, 6)


def a_blob(images: int = 3, channels: int = 12, seed: int = 0) -> tuple[Tokens, np.ndarray]:
    """Tokens of a bright square in the middle, and where it is: (h, w)."""
    random = np.random.default_rng(seed)
    inside = np.zeros(GRID, bool)
    inside[1:5, 1:5] = True
    values = random.normal(0, 0.5, (images, *GRID, channels))
    values[:, inside] += 20 * random.normal(size=channels)
    return Tokens("x", GRID, values.reshape(images, -1, channels)), inside


@pytest.mark.parametrize("sign", [1, -1])
def test_the_middle_is_the_foreground_whichever_way_the_axis_points(sign):
    tokens, inside = a_blob()
    found = component_maps(Tokens("x", GRID, sign * tokens.values_NTD))
    assert found.shape == (3, *GRID, 4)
    assert all((image[..., 3] > 0).tolist() == inside.tolist() for image in found)


def test_colours_are_the_foregrounds_first_three_components():
    tokens, inside = a_blob()
    front = tokens.values_NTD.reshape(3, *GRID, -1)[:, inside].reshape(-1, 12)
    axes = np.linalg.svd(front - front.mean(axis=0), full_matrices=False)[2][:3]
    axes *= np.sign(axes[np.arange(3), np.abs(axes).argmax(axis=1)])[:, None]
    scores = (front - front.mean(axis=0)) @ axes.T
    low, high = np.percentile(scores, [2, 98], axis=0)
    expected = (255 * ((scores - low) / (high - low)).clip(0, 1)).round()
    found = component_maps(tokens)[:, inside][..., :3].reshape(-1, 3)
    assert np.abs(found - expected).max() <= 1


def test_sampled_tokens_lie_at_their_places_and_the_rest_is_clear():
    tokens, _ = a_blob()
    kept = np.sort(np.random.default_rng(1).permuted(np.tile(np.arange(36), (3, 1)), axis=1)[:, :20], axis=1)
    some = Tokens("x", GRID, np.take_along_axis(tokens.values_NTD, kept[..., None], axis=1), kept)
    shades, low, high = norm_maps(some)
    norms = np.linalg.norm(some.values_NTD, axis=-1)
    assert (low, high) == pytest.approx((norms.min(), norms.max()))
    for image, places in zip(shades.reshape(3, 36, 4), kept, strict=True):
        assert np.flatnonzero(image[:, 3]).tolist() == places.tolist()


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_equal_tokens_give_a_map_and_no_warning(constant):
    tokens = Tokens("x", (2, 2), np.full((1, 4, 2), constant))
    assert component_maps(tokens).shape == (1, 2, 2, 4)
    assert norm_maps(tokens)[0].shape == (1, 2, 2, 4)


class Teacher:
    """What `token_errors` asks of a teacher."""

    def __init__(self, codec: str) -> None:
        self.kinds = {"patch": TokenKind(64, (8, 8))}
        self.codec = FeatureCodec(Features(codec, self.kinds))


@pytest.mark.parametrize(("codec", "within"), [("f16", 0.02), ("int8", 0.02), ("int4", 0.2)])
def test_estimated_errors_are_those_of_encoding(codec, within):
    teacher = Teacher(codec)
    scale = torch.linspace(0.2, 5, 64)[None, :, None]
    tokens = torch.randn(16, 64, 64, generator=torch.Generator().manual_seed(0)) * scale
    arrays = teacher.codec.encode({"patch": tokens}).arrays
    decoded = teacher.codec.decode(arrays)["patch"]
    real = (decoded - tokens).double().square().mean(-1).sqrt() / tokens.double().square().mean(-1).sqrt()
    found = token_errors(teacher, arrays)
    assert found.shape == (16, 64)
    assert found.mean() == pytest.approx(real.mean().item(), rel=within)


def test_klt_tells_no_token_error_but_its_bits(tmp_path, settings):
    from pipelines import extract

    extract.run(settings(tmp_path / "cache", codec="klt", views=1))
    for teacher in open_cache(tmp_path / "cache").teachers.values():
        assert token_errors(teacher, {}) is None
        bits = frequency_bits(teacher)
        height, width = teacher.codec.features.grid
        klt = teacher.codec._codecs["patch"]
        expected = np.zeros((height, width))
        tokens = np.concatenate(band_tokens((height, width), klt.tokens))
        largest = [most for count, most in zip(klt.counts, (32767, 127, 7, 2, 1), strict=True) for _ in range(count)]
        for coefficient, most in zip(klt.order.tolist(), largest, strict=True):
            row, column = divmod(int(tokens[coefficient // klt.channels]), width)
            expected[row, column] += np.log2(2 * most + 1) / klt.channels
        assert bits == pytest.approx(expected)


def test_f16_has_no_bits_by_frequency():
    assert frequency_bits(Teacher("f16")) is None
