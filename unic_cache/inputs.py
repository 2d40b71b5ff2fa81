"""How a view becomes a network's input: one rule for every teacher and for the student.

Letters: B images, H and W pixels, C the 3 colours.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

RULE = "views (uint8) to [0, 1]; where sizes differ bicubic with antialiasing, clamped; then (x - mean) / std"
Colour = tuple[float, float, float]  # of RGB in [0, 1]


def network_input(views_BHWC: Tensor, size: int, mean: Colour, std: Colour) -> Tensor:
    """uint8 views of any size as float32 (B, C, size, size) on their device, by RULE.

    The memory stays that of the views, channels last, unless they are resized.
    """
    images_BCHW = views_BHWC.permute(0, 3, 1, 2).float() / 255
    if images_BCHW.shape[2:] != (size, size):
        resized = interpolate(images_BCHW, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
        images_BCHW = resized.clamp(0, 1)
    return (images_BCHW - _per_channel(mean, views_BHWC.device)) / _per_channel(std, views_BHWC.device)


@lru_cache(maxsize=64)
def _per_channel(values: Colour, device: torch.device) -> Tensor:
    """(C, 1, 1) float32, uploaded once a device."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(3, 1, 1)
