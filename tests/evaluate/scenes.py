"""Small made-up scenes for the dense tasks: a map of two halves, and tokens that tell with noise what is under them."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unic_cache.evaluate.task import Examples

HEIGHT, WIDTH, CHANNELS = 4, 5, 12  # of the grid
PIXELS = (16, 30)  # 4 and 6 of a token


def tokens_of(values_NHW: npt.NDArray[Any], seed: int, noise: float = 0.3) -> npt.NDArray[np.float16]:
    """(N, T, D): the mean of each token's pixels in a random direction, each channel with an offset and a scale."""
    rng, same = np.random.default_rng(seed), np.random.default_rng(0)
    count = len(values_NHW)
    cells = values_NHW.reshape(count, HEIGHT, PIXELS[0] // HEIGHT, WIDTH, PIXELS[1] // WIDTH, -1).mean(axis=(2, 4))
    direction = same.normal(size=(cells.shape[-1], CHANNELS))
    told = cells.reshape(count, HEIGHT * WIDTH, -1) @ direction + noise * rng.normal(size=(count, 20, CHANNELS))
    return (told * same.uniform(0.1, 3, CHANNELS) + same.normal(size=CHANNELS)).astype(np.float16)


def segmented(count: int, seed: int, numbers: tuple[int, ...] = (3, 0, 200)) -> Examples:
    """Each image has one class left of a column and another right of it, and an unknown border."""
    rng = np.random.default_rng(seed)
    place_NHW = np.zeros((count, *PIXELS), np.int64)
    for number in range(count):
        left, right = rng.permutation(len(numbers))[:2]
        place_NHW[number] = np.where(np.arange(PIXELS[1]) < rng.integers(5, 25), left, right)
    masks_NHW = np.array(numbers, np.uint8)[place_NHW]
    masks_NHW[:, :2] = 255
    patches = tokens_of(np.eye(len(numbers))[place_NHW], seed)
    return Examples(torch.zeros(count, 3), None, patches, (HEIGHT, WIDTH), masks_NHW=masks_NHW)


def ramps(count: int, seed: int) -> Examples:
    """Depth rises by 1 to 3 m over the height, from a start that only the summary tells."""
    rng = np.random.default_rng(seed)
    starts, rises = rng.uniform(1, 6, count), rng.uniform(1, 3, count)
    rows = np.linspace(0, 1, PIXELS[0])
    above_NHW = np.broadcast_to((rises[:, None] * rows)[:, :, None], (count, *PIXELS))
    depths_NHW = (starts[:, None, None] + above_NHW).astype(np.float32)
    depths_NHW[:, :, :3] = 0
    summary = torch.from_numpy(np.stack([starts * 3, -starts, np.ones(count)], axis=1)).float()
    return Examples(summary, None, tokens_of(above_NHW, seed, 0.05), (HEIGHT, WIDTH), depths_NHW=depths_NHW)
