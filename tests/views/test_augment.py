"""Views are pure functions: same pixels whatever the CPU, the threads or the order; and they do what UNIC says."""

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import golden_views
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from unic_cache.config import Views
from unic_cache.views import colour as pixels
from unic_cache.views.augment import Parameters, make_view, parameters, pixel_crc
from unic_cache.views.decode import decode, decoder_versions

GOLDEN: dict[str, str] = json.loads((Path(__file__).parent / "golden_views.json").read_text())
SIMD: list[str] = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
MANY = [parameters((500, 375), 0, 0xC0FFEE, number) for number in range(4000)]


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return decode(golden_views.png(200, 120, 0))


def test_views_have_the_golden_checksums() -> None:
    assert golden_views.checksums() == GOLDEN, f"other pixels with {decoder_versions()}"


@pytest.mark.parametrize("threads", [2, 7])
def test_views_have_the_golden_checksums_from_many_threads(threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        assert golden_views.checksums(pool.map) == GOLDEN


@pytest.mark.parametrize(
    "settings",
    [
        {"ATEN_CPU_CAPABILITY": "default"},
        {"ATEN_CPU_CAPABILITY": "avx2"},
        {"ONEDNN_MAX_CPU_ISA": "SSE41"},
        {"NPY_DISABLE_CPU_FEATURES": " ".join(SIMD)},
        {"JSIMD_FORCENONE": "1"},
    ],
    ids=lambda settings: next(iter(settings)) + "=" + next(iter(settings.values())),
)
def test_views_have_the_golden_checksums_on_lesser_cpus(settings: dict[str, str]) -> None:
    path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(path)}
    run = subprocess.run(
        [sys.executable, golden_views.__file__], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout) == GOLDEN


@pytest.mark.parametrize("recipe", ["unic", "light", "center"])
def test_a_view_is_contiguous_bytes_of_the_asked_size(image: Image.Image, recipe: str) -> None:
    view = make_view(image, Views(recipe, 48), 5, 0)
    assert view.shape == (48, 48, 3)
    assert view.dtype == np.uint8
    assert view.flags.c_contiguous
    assert view.flags.writeable


@pytest.mark.parametrize("recipe", ["unic", "light"])
def test_seed_key_and_number_each_make_another_view(image: Image.Image, recipe: str) -> None:
    def checksum(seed: int, key: int, number: int) -> int:
        return pixel_crc(make_view(image, Views(recipe, 48, seed), key, number))

    triples = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (2**63 - 1, 2**32 - 1, 9)]
    assert len({checksum(*triple) for triple in triples}) == len(triples)


def test_center_views_do_not_depend_on_seed_key_or_number(image: Image.Image) -> None:
    one, other = make_view(image, Views("center", 48, 0), 1, 0), make_view(image, Views("center", 48, 9), 2, 5)
    np.testing.assert_array_equal(one, other)


def test_light_views_are_the_crop_and_flip_of_unic_views(image: Image.Image) -> None:
    plain = next(n for n in range(999) if not any(_colours(parameters(image.size, 3, 8, n))))
    np.testing.assert_array_equal(
        make_view(image, Views("light", 48, 3), 8, plain), make_view(image, Views("unic", 48, 3), 8, plain)
    )


def _colours(drawn: Parameters) -> tuple[object, ...]:
    return drawn.jitter, drawn.grayscale, drawn.sigma, drawn.solarize


def test_a_unic_view_is_its_operations_in_the_papers_order(image: Image.Image) -> None:
    operations = (pixels.brightness, pixels.contrast, pixels.saturation, pixels.hue)
    number = next(n for n in range(9999) if all(_colours(parameters(image.size, 0, 1, n))))
    drawn = parameters(image.size, 0, 1, number)
    small = np.asarray(image.crop(drawn.crop).resize((48, 48), Image.Resampling.BICUBIC))
    planes = np.ascontiguousarray((small[:, ::-1] if drawn.flip else small).transpose(2, 0, 1))
    for which, factor in drawn.jitter:
        planes = operations[which](planes, factor)
    assert drawn.sigma is not None
    expected = pixels.solarize(pixels.blur(pixels.grayscale(planes), drawn.sigma)).transpose(1, 2, 0)
    np.testing.assert_array_equal(make_view(image, Views("unic", 48), 1, number), expected)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (sum(p.flip for p in MANY), 0.5),
        (sum(bool(p.jitter) for p in MANY), 0.8),
        (sum(p.grayscale for p in MANY), 0.2),
        (sum(p.sigma is not None for p in MANY), 0.2),
        (sum(p.solarize for p in MANY), 0.2),
    ],
    ids=["flip", "jitter", "grayscale", "blur", "solarize"],
)
def test_each_operation_comes_with_its_probability(share: int, expected: float) -> None:
    assert share / len(MANY) == pytest.approx(expected, abs=0.025)


def test_jitter_comes_in_every_order_with_factors_over_their_whole_range() -> None:
    orders = Counter(tuple(which for which, _ in p.jitter) for p in MANY if p.jitter)
    assert len(orders) == 24
    assert min(orders.values()) > 0.6 * sum(orders.values()) / 24
    for which, (low, high) in enumerate([(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)]):
        factors = [dict(p.jitter)[which] for p in MANY if p.jitter]
        assert low <= min(factors) < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < max(factors) < high


def test_blur_sigma_covers_its_range() -> None:
    sigmas = [p.sigma for p in MANY if p.sigma is not None]
    assert 0.1 <= min(sigmas) < 0.15
    assert 4.95 < max(sigmas) < 5.0


def test_crops_lie_in_the_image_and_within_area_and_aspect() -> None:
    boxes = np.array([p.crop for p in MANY])
    left, top, right, bottom = boxes.T
    assert left.min() == 0
    assert top.min() == 0
    assert right.max() == 500
    assert bottom.max() == 375
    area = (right - left) * (bottom - top) / (500 * 375)
    ratio = (right - left) / (bottom - top)
    assert 0.079 < area.min() < 0.09
    assert 0.95 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.35
    assert 1 < np.median(ratio) < 1.1  # tall crops fit a wide image less often


@pytest.mark.parametrize(
    ("size", "crop"),
    [
        ((1000, 10), (493, 0, 506, 10)),
        ((10, 1000), (0, 493, 10, 506)),
        ((1, 1), (0, 0, 1, 1)),
        ((1, 500), (0, 249, 1, 250)),
    ],
)
def test_where_no_random_crop_fits_the_central_one_is_taken(size: tuple[int, int], crop: tuple[int, ...]) -> None:
    crops = Counter(parameters(size, 0, 1, number).crop for number in range(50))
    assert crops.most_common(1)[0][0] == crop


def test_one_pixel_makes_a_view_of_its_colour() -> None:
    view = make_view(Image.new("RGB", (1, 1), (9, 99, 199)), Views("light", 32), 0, 0)
    assert (view == (9, 99, 199)).all()


@pytest.mark.parametrize("size", [(200, 120), (120, 200), (96, 96), (40, 30)])
def test_center_is_torchvisions_resize_and_crop_within_two_levels(size: tuple[int, int]) -> None:
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    waves = np.stack([np.sin(x / 9 + y / 7), np.cos(x / 8), np.sin(y / 11 - x / 30)], axis=-1)
    source = (127 + 120 * waves).astype(np.uint8)
    ours = make_view(Image.fromarray(source), Views("center", 60), 0, 0)
    resized = functional.resize(
        torch.from_numpy(source).permute(2, 0, 1), [60], functional.InterpolationMode.BICUBIC, antialias=True
    )
    theirs = functional.center_crop(resized, [60, 60]).permute(1, 2, 0).numpy()
    assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_center_of_a_long_strip_is_made_without_resizing_the_strip() -> None:
    strip = Image.new("RGB", (300_000, 2), (1, 2, 3))
    assert (make_view(strip, Views("center", 224), 0, 0) == (1, 2, 3)).all()


def test_pixel_crc_is_crc32c() -> None:
    assert pixel_crc(np.frombuffer(b"123456789", dtype=np.uint8)) == 0xE3069283


def test_versions_name_all_that_pixels_depend_on() -> None:
    assert set(decoder_versions()) == {"pillow", "libjpeg-turbo", "zlib", "webp", "numpy"}
    assert decoder_versions()["numpy"] == np.__version__
