"""Position embeddings resampled to another grid. Code bases differ here, so each spec names its rule.

Shape letters: N positions (prefix and grid), D channels, h w the grid.

- `timm`: bicubic with antialiasing to the new grid, as timm resamples.
- `bicubic`: without antialiasing, to the new grid (DeiT-III, dBOT, and the export of the saliency ViT).
- `bicubic-scale`: without antialiasing, by the factor (n + 0.1) / n_own, as in the code of DINO and iBOT: the 0.1 keeps
  the grid from being rounded down, and moves the sampling positions.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import interpolate

from unic_cache.token_kinds import Grid


def resample(pos_1ND: torch.Tensor, grid: Grid, prefix: int, rule: str) -> torch.Tensor:
    """`pos_1ND` with its square grid resampled to `grid`, its first `prefix` positions unchanged.

    Returns (1, prefix + h * w, D) in the dtype of `pos_1ND`. ValueError if its own grid is not square.
    """
    own = math.isqrt(pos_1ND.shape[1] - prefix)
    if own * own != pos_1ND.shape[1] - prefix:
        raise ValueError(f"{pos_1ND.shape[1]} positions with {prefix} before the grid make no square grid")
    if grid == (own, own):
        return pos_1ND
    plane_1Dhw = pos_1ND[:, prefix:].float().transpose(1, 2).reshape(1, -1, own, own)
    moved_1ND = RULES[rule](plane_1Dhw, grid).flatten(2).transpose(1, 2).to(pos_1ND.dtype)
    return torch.cat([pos_1ND[:, :prefix], moved_1ND], dim=1)


def _bicubic(plane_1Dhw: torch.Tensor, grid: Grid, antialias: bool = False) -> torch.Tensor:
    return interpolate(plane_1Dhw, size=grid, mode="bicubic", antialias=antialias)


def _bicubic_scale(plane_1Dhw: torch.Tensor, grid: Grid) -> torch.Tensor:
    own = plane_1Dhw.shape[-1]
    return interpolate(plane_1Dhw, scale_factor=((grid[0] + 0.1) / own, (grid[1] + 0.1) / own), mode="bicubic")


RULES: dict[str, Callable[[torch.Tensor, Grid], torch.Tensor]] = {
    "timm": partial(_bicubic, antialias=True),
    "bicubic": _bicubic,
    "bicubic-scale": _bicubic_scale,
}
