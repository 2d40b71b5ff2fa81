"""Colour and blur in integer arithmetic: equal to the bit on every machine.

Floating-point kernels round differently between instruction sets; int32 arithmetic does not. Each function follows
torchvision's definition to within two levels of 255 (tested) and rounds to nearest.

`planes` is (3, H, W) uint8: red, green, blue. Each function returns a new array of the same shape and type.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Planes: TypeAlias = npt.NDArray[np.uint8]
Fixed: TypeAlias = npt.NDArray[np.int32]
Signed: TypeAlias = npt.NDArray[np.int16]

BLUR_RADIUS = 4  # a kernel of 9 taps

_ONE = 1 << 16  # 1.0 of a blend's factor
_SEXTANT = 1 << 20  # a sixth of the hue circle; times 255 it fits int32
_RECIPROCAL = np.array([0, *(round(_SEXTANT / chroma) for chroma in range(1, 256))], dtype=np.int32)
_HUE_CENTRE = np.array([0, 2, 4], dtype=np.int32)[:, None, None] * np.int32(_SEXTANT)  # of red, green, blue
_KERNEL_ONE = 1 << 15  # the blur weights' sum


def luma(planes: Planes) -> Fixed:
    """ITU-R 601 grey, (H, W): (0.299 R + 0.587 G + 0.114 B), rounded."""
    grey: Fixed = np.multiply(planes[0], np.int32(19595), dtype=np.int32)
    grey += np.multiply(planes[1], np.int32(38470), dtype=np.int32)
    grey += np.multiply(planes[2], np.int32(7471), dtype=np.int32)
    grey += _ONE // 2
    grey >>= 16
    return grey


def brightness(planes: Planes, factor: float) -> Planes:
    """Multiply each level by `factor`."""
    return _blend(planes, 0, factor)


def contrast(planes: Planes, factor: float) -> Planes:
    """Blend with the image's mean grey."""
    grey = luma(planes)
    return _blend(planes, (2 * int(grey.sum(dtype=np.int64)) + grey.size) // (2 * grey.size), factor)


def saturation(planes: Planes, factor: float) -> Planes:
    """Blend each pixel with its own grey."""
    return _blend(planes, luma(planes), factor)


def hue(planes: Planes, turn: float) -> Planes:
    """Turn each pixel's hue by `turn` of the circle, |turn| <= 1/6, keeping its largest and smallest level.

    With value V, chroma C and hue h in sixths of the circle, the hexagon form of HSV to RGB is
    V - C * clamp(2 - d, 0, 1), where d is the distance on the circle from h to the channel's complement (3, 5, 1 for
    R, G, B). For -2 <= h <= 6, which covers h in [-1, 5] turned by a sixth, d = | |h - 0, 2, 4| - 3 |.
    """
    value = planes.max(axis=0)
    chroma = value - planes.min(axis=0)
    red, green, blue = planes.astype(np.int16)
    other_than_red, other_than_green = value != planes[0], value != planes[1]
    numerator = _select(other_than_green, red - green, blue - red)
    numerator = _select(other_than_red, numerator, green - blue)
    sector = other_than_red.astype(np.int32) + (other_than_red & other_than_green)
    position = numerator * _RECIPROCAL.take(chroma) + sector * np.int32(2 * _SEXTANT)
    position += np.int32(_rounded(turn * 6 * _SEXTANT))
    share = position - _HUE_CENTRE
    np.abs(share, out=share)
    share -= 3 * _SEXTANT
    np.abs(share, out=share)
    np.subtract(2 * _SEXTANT, share, out=share)
    np.clip(share, 0, _SEXTANT, out=share)
    share *= chroma
    share += _SEXTANT // 2
    share >>= 20
    return np.asarray(value - share, dtype=np.uint8)


def grayscale(planes: Planes) -> Planes:
    """Set all three channels to their grey."""
    return np.broadcast_to(luma(planes).astype(np.uint8), planes.shape).copy()


def solarize(planes: Planes) -> Planes:
    """Invert levels from 128 up."""
    return np.asarray(planes ^ ((planes >> 7) * np.uint8(255)), dtype=np.uint8)


def blur(planes: Planes, sigma: float) -> Planes:
    """Gaussian blur with 9 x 9 taps; `sigma` in pixels. Borders are reflected without repeating the edge.

    Separable, with 7 fractional bits between the two passes; both fit int32: 2**15 * 255 * 2**7 < 2**31.
    """
    weights = kernel(sigma)
    padded = np.pad(planes, ((0, 0), (BLUR_RADIUS, BLUR_RADIUS), (BLUR_RADIUS, BLUR_RADIUS)), mode="reflect")
    blurred = np.empty_like(planes)
    for plane, result in zip(padded, blurred, strict=True):
        rows = _filter(plane.astype(np.int32), weights)
        rows += 1 << 7
        rows >>= 8
        both = _filter(np.ascontiguousarray(rows.T), weights)
        both += 1 << 21
        both >>= 22
        result[...] = both.T
    return blurred


def kernel(sigma: float) -> tuple[int, ...]:
    """The Gaussian's weights at distances 0 to 4, as integers whose sum over all nine taps is 2**15."""
    base = exp(-1.0 / (2.0 * sigma * sigma))
    raw = [1.0]
    for distance in range(1, BLUR_RADIUS + 1):
        power = base
        for _ in range(distance * distance - 1):
            power *= base
        raw.append(power)
    total = raw[0] + 2.0 * (raw[1] + raw[2] + raw[3] + raw[4])
    outer = [_rounded(weight * _KERNEL_ONE / total) for weight in raw[1:]]
    return (_KERNEL_ONE - 2 * sum(outer), *outer)


def exp(x: float) -> float:
    """e**x for |x| <= 60, from additions and products alone: every machine rounds those alike, but not libm."""
    small, term, series = x / 64.0, 1.0, 1.0
    for order in range(1, 20):
        term *= small / order
        series += term
    for _ in range(6):
        series *= series
    return series


def _blend(planes: Planes, other: Fixed | int, factor: float) -> Planes:
    """factor * planes + (1 - factor) * other, rounded and clipped to 0 ... 255."""
    weight = _rounded(factor * _ONE)
    mixed = np.multiply(planes, np.int32(weight), dtype=np.int32)
    mixed += other * np.int32(_ONE - weight) + np.int32(_ONE // 2)
    mixed >>= 16
    return np.clip(mixed, 0, 255, out=mixed).astype(np.uint8)


def _select(mask: npt.NDArray[np.bool_], one: Signed, other: Signed) -> Signed:
    """`one` where `mask`, else `other`; bitwise, several times as fast as np.where on noisy masks."""
    bits = -mask.astype(np.int16)
    return np.asarray(other ^ ((one ^ other) & bits), dtype=np.int16)


def _filter(rows: Fixed, weights: tuple[int, ...]) -> Fixed:
    """The weighted sum over the first axis, which shrinks by `BLUR_RADIUS` at each end."""
    height = len(rows) - 2 * BLUR_RADIUS
    total = rows[BLUR_RADIUS : BLUR_RADIUS + height] * np.int32(weights[0])
    pair = np.empty_like(total)
    for distance in range(1, BLUR_RADIUS + 1):
        above, below = BLUR_RADIUS - distance, BLUR_RADIUS + distance
        np.add(rows[above : above + height], rows[below : below + height], out=pair)
        pair *= np.int32(weights[distance])
        total += pair
    return total


def _rounded(x: float) -> int:
    """The nearest integer, halves upwards."""
    return int(x + 0.5) if x >= 0 else -int(0.5 - x)
