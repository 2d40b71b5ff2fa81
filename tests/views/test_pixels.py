"""Integer colour arithmetic against torchvision's floating point, and its exact parts against plain loops."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from unic_cache.views import colour as pixels

RNG = np.random.default_rng(20240805)


def photo_like() -> pixels.Planes:
    """Smooth colour fields with noise, 96 x 80, every kind of saturation."""
    y, x = np.mgrid[0:96, 0:80] / 20.0
    fields = np.stack([np.sin(x + y), np.cos(1.3 * x - 0.4 * y), np.sin(0.7 * y - x)])
    return np.clip(128 + 140 * fields + RNG.normal(0, 12, fields.shape), 0, 255).astype(np.uint8)


def all_colours() -> pixels.Planes:
    """A cube of 17 levels a channel, with the extremes, as an image of 17 x 289."""
    levels = np.linspace(0, 255, 17).round().astype(np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels, indexing="ij")).reshape(3, 17, 289)


IMAGES = {"photo": photo_like(), "colours": all_colours(), "noise": RNG.integers(0, 256, (3, 64, 64), dtype=np.uint8)}

OPERATIONS: list[
    tuple[str, Callable[[pixels.Planes, float], pixels.Planes], Callable[..., torch.Tensor], list[float]]
] = [
    ("brightness", pixels.brightness, functional.adjust_brightness, [0.6, 0.93, 1.0, 1.4]),
    ("contrast", pixels.contrast, functional.adjust_contrast, [0.6, 0.93, 1.0, 1.4]),
    ("saturation", pixels.saturation, functional.adjust_saturation, [0.8, 0.93, 1.0, 1.2]),
    ("hue", pixels.hue, functional.adjust_hue, [-0.1, -0.03, 0.0, 0.07, 0.1]),
]
CASES = [(name, ours, theirs, factor) for name, ours, theirs, factors in OPERATIONS for factor in factors]


def differences(ours: pixels.Planes, levels: torch.Tensor) -> np.ndarray:
    assert ours.dtype == np.uint8
    return np.abs(ours.astype(np.float64) - levels.double().numpy())


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize(("name", "ours", "theirs", "factor"), CASES, ids=[f"{case[0]} {case[3]}" for case in CASES])
def test_jitter_is_torchvisions_within_two_levels(
    image: str,
    name: str,
    ours: Callable[[pixels.Planes, float], pixels.Planes],
    theirs: Callable[..., torch.Tensor],
    factor: float,
) -> None:
    planes = IMAGES[image]
    changed = ours(planes, factor)
    exact = differences(changed, theirs(torch.from_numpy(planes).float() / 255, factor) * 255)
    assert exact.max() <= 1.0
    assert exact.mean() <= 0.35
    truncated = differences(changed, theirs(torch.from_numpy(planes), factor))
    assert truncated.max() <= 2.0
    assert truncated.mean() <= 1.0


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.0, 2.7, 5.0])
def test_blur_is_torchvisions_within_two_levels(image: str, sigma: float) -> None:
    planes = IMAGES[image]
    theirs = functional.gaussian_blur(torch.from_numpy(planes).float(), [9, 9], [sigma, sigma])
    difference = np.abs(pixels.blur(planes, sigma) - theirs.numpy())
    assert difference.max() <= 0.6
    assert difference.mean() <= 0.3


@pytest.mark.parametrize("image", IMAGES)
def test_grayscale_is_torchvisions_within_one_level(image: str) -> None:
    planes = IMAGES[image]
    theirs = functional.rgb_to_grayscale(torch.from_numpy(planes).float(), num_output_channels=3)
    assert np.abs(pixels.grayscale(planes) - theirs.numpy()).max() <= 1


@pytest.mark.parametrize("image", IMAGES)
def test_solarize_is_torchvisions_exactly(image: str) -> None:
    planes = IMAGES[image]
    np.testing.assert_array_equal(pixels.solarize(planes), functional.solarize(torch.from_numpy(planes), 128).numpy())


@pytest.mark.parametrize(("name", "ours", "theirs", "factor"), CASES, ids=[case[0] for case in CASES])
def test_operations_leave_their_input_alone(
    name: str, ours: Callable[..., pixels.Planes], theirs: object, factor: float
) -> None:
    planes = IMAGES["photo"].copy()
    ours(planes, factor)
    np.testing.assert_array_equal(planes, IMAGES["photo"])


@pytest.mark.parametrize("neutral", [pixels.brightness, pixels.contrast, pixels.saturation])
def test_factor_one_changes_nothing(neutral: Callable[[pixels.Planes, float], pixels.Planes]) -> None:
    np.testing.assert_array_equal(neutral(IMAGES["colours"], 1.0), IMAGES["colours"])


def test_no_turn_of_the_hue_changes_nothing() -> None:
    np.testing.assert_array_equal(pixels.hue(IMAGES["colours"], 0.0), IMAGES["colours"])


def test_hue_keeps_grey_and_the_extremes_of_each_pixel() -> None:
    planes = IMAGES["colours"]
    turned = pixels.hue(planes, 0.083)
    np.testing.assert_array_equal(turned.max(axis=0), planes.max(axis=0))
    np.testing.assert_array_equal(turned.min(axis=0), planes.min(axis=0))


def test_two_sixths_of_the_hue_circle_rotate_the_channels() -> None:
    planes = IMAGES["colours"]
    difference = pixels.hue(pixels.hue(planes, 1 / 6), 1 / 6).astype(int) - planes[[2, 0, 1]]
    assert np.abs(difference).max() <= 1


def test_blur_equals_a_plain_loop_over_taps() -> None:
    planes = RNG.integers(0, 256, (3, 12, 14), dtype=np.uint8)
    blurred = pixels.blur(planes, 1.7)
    weights = pixels.kernel(1.7)
    taps = [weights[abs(distance)] for distance in range(-4, 5)]

    def reflected(at: int, size: int) -> int:
        at = abs(at)
        return at if at < size else 2 * (size - 1) - at

    for channel, y, x in np.ndindex(3, 12, 14):
        total = 0
        for j, tap in enumerate(taps):
            column = reflected(x + j - 4, 14)
            row_sum = sum(taps[i] * int(planes[channel, reflected(y + i - 4, 12), column]) for i in range(9))
            total += tap * ((row_sum + 128) >> 8)
        assert blurred[channel, y, x] == (total + (1 << 21)) >> 22


@pytest.mark.parametrize("sigma", [0.1, 0.35, 1.0, 2.0, 5.0])
def test_kernel_is_the_gaussian_in_fifteen_bits(sigma: float) -> None:
    weights = pixels.kernel(sigma)
    raw = [math.exp(-distance * distance / (2 * sigma * sigma)) for distance in range(5)]
    total = raw[0] + 2 * sum(raw[1:])
    assert weights[0] + 2 * sum(weights[1:]) == 2**15
    assert np.allclose(np.array(weights) / 2**15, np.array(raw) / total, atol=5 / 2**15)


def test_exp_is_the_exponential() -> None:
    for x in np.linspace(-50, 2, 1041):
        assert pixels.exp(float(x)) == pytest.approx(math.exp(x), rel=1e-13)
