"""What heads on patch tokens share: batches, standardization, up-sampling and the descent.

The encoder is frozen and every image has one view, so the statistics that a batch norm would approach by running means
can be computed exactly, once, from all training tokens. That is what the heads do; batch norm's own scale and shift add
nothing to a linear layer that follows and are left out.

Letters: N images, T tokens (h rows, w columns), D channels, H and W pixels, B images of a batch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from unic_cache import draws
from unic_cache.errors import ConfigError
from unic_cache.evaluate.task import Examples, Settings
from unic_cache.token_kinds import Grid

BATCH = 8  # images of a step, as UNIC's segmentation
FEWEST, EPOCHS = 1000, 10  # steps by default
EPSILON = 1e-5  # batch norm's
ROWS = 64  # images of a block that is only read

Patches = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Standardizer:
    """(x - mean) / sqrt(variance + 1e-5) of each channel."""

    mean_D: Tensor
    scale_D: Tensor

    def folded(self, weights_EK: Tensor) -> Tensor:
        """The layer that does to raw tokens what `weights_EK` (D + 1, K), whose last row is the bias, does to these."""
        scaled_DK = self.scale_D[:, None] * weights_EK[:-1]
        return torch.cat([scaled_DK, weights_EK[-1:] - self.mean_D @ scaled_DK])


def check_sides(train: Examples, test: Examples, labels: str) -> Grid:
    """The grid of the patch tokens. ConfigError unless both sides have tokens of one form, and labels for each image.

    `labels` is the field of Examples that holds them.
    """
    forms = []
    for name, side in (("training", train), ("test", test)):
        maps = getattr(side, labels)
        if side.patches_NTD is None or side.grid is None:
            raise ConfigError(f"the {name} images have no patch tokens; use an encoder that has a grid of them")
        images, tokens, channels = side.patches_NTD.shape
        if maps is None or len(maps) != images or images == 0:
            count = 0 if maps is None else len(maps)
            raise ConfigError(f"{images} {name} images do not go with {count} {labels.partition('_')[0]}")
        if tokens != side.grid[0] * side.grid[1]:
            raise ConfigError(f"{tokens} {name} tokens are not a grid of {side.grid[0]} x {side.grid[1]}")
        forms.append((*side.grid, channels))
    if forms[0] != forms[1]:
        raise ConfigError(f"training tokens (height, width, channels) are {forms[0]} and test tokens {forms[1]}")
    return forms[0][:2]


def read(patches_NTD: Patches, rows: slice | npt.NDArray[np.int64], device: torch.device) -> Tensor:
    """Tokens of some images as float32; a copy, since torch cannot hold the pages of a file opened for reading."""
    return torch.from_numpy(np.array(patches_NTD[rows])).to(device).float()


def in_order(patches_NTD: Patches, device: torch.device, rows: int = ROWS) -> Iterator[tuple[slice, Tensor]]:
    """All tokens, in blocks of at most `rows` images. ConfigError if one is not finite."""
    for start in range(0, len(patches_NTD), rows):
        block = slice(start, start + rows)
        tokens_BTD = read(patches_NTD, block, device)
        if not tokens_BTD.sum(dim=2, dtype=torch.float64).isfinite().all():
            raise ConfigError(
                f"patch features of some image in rows {start} to {start + len(tokens_BTD) - 1} are not finite; the "
                "encoder has diverged or its input is broken"
            )
        yield block, tokens_BTD


def standardizer(patches_NTD: Patches, device: torch.device) -> Standardizer:
    """The exact mean and (biased) variance of each channel over all tokens, summed in float64."""
    count = patches_NTD.shape[0] * patches_NTD.shape[1]
    sums_D = squares_D = torch.zeros(patches_NTD.shape[2], dtype=torch.float64)
    for _, tokens_BTD in in_order(patches_NTD, torch.device("cpu")):
        tokens_SD = tokens_BTD.flatten(0, 1).double()
        sums_D, squares_D = sums_D + tokens_SD.sum(dim=0), squares_D + tokens_SD.square_().sum(dim=0)
    mean_D = sums_D / count
    variance_D = (squares_D / count - mean_D.square()).clamp(min=0)
    return Standardizer(mean_D.float().to(device), (variance_D + EPSILON).rsqrt().float().to(device))


def steps(images: int, settings: Settings) -> int:
    """The settings' steps of a head; by default 1,000, or 10 epochs if these are more."""
    return max(FEWEST, EPOCHS * images // BATCH) if settings.steps is None else settings.steps


def batches(count: int, steps: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """The 8 images of each step: epoch after epoch in a new order, cut into eights. One may span two epochs."""
    waiting: npt.NDArray[np.int64] = np.empty(0, np.int64)
    epoch = 0
    for _ in range(steps):
        while len(waiting) < BATCH:
            order = draws.permutation(draws.words(draws.Purpose.HEAD_ORDER, seed, 0, epoch, count))
            waiting, epoch = np.concatenate([waiting, order]), epoch + 1
        yield waiting[:BATCH]
        waiting = waiting[BATCH:]


def upsampling(size: int, larger: int) -> Tensor:
    """The matrix (size, larger) of linear interpolation along one axis, pixel centres aligned (align_corners=False)."""
    return interpolate(torch.eye(size)[None], size=larger, mode="linear", align_corners=False)[0]


def descend(
    weights: Tensor, losses: Iterable[Callable[[Tensor], Tensor]], rates: Sequence[float], decay: float
) -> Tensor:
    """The weights after AdamW, which has one learning rate and one loss, a function of the weights, for each step."""
    weights = weights.clone().requires_grad_()
    optimizer = torch.optim.AdamW([weights], weight_decay=decay)
    for rate, loss in zip(rates, losses, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss(weights).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return weights.detach()
