"""Losses of predicted depth, as DINOv2's depth heads use them, over the pixels whose depth is known.

With g = log(prediction + 0.001) - log(depth + 0.001) of each known pixel:

    SigLoss = sqrt(var g + 0.15 (mean g)^2)

the scale-invariant loss of Eigen et al. 2014 with lambda 0.85, as AdaBins (Bhat et al. 2021) takes its root. During
warm-up it is sqrt(0.15 (mean g)^2): the scale first.

    gradient loss = sum over strides 1, 2, 4, 6 of (|g differences down| + |g differences across|) / known pixels

after MegaDepth (Li & Snavely 2018), of pixels two apart on an image of every stride-th pixel. Meta's published code
takes strides and differences along the first two axes of a (batch, 1, height, width) tensor; here they go down and
across.

Letters: B images, H and W pixels.
"""

import torch
from torch import Tensor

EPSILON = 1e-3  # metres
BALANCE = 0.15  # 1 - lambda
STRIDES = (1, 2, 4, 6)


def log_errors(predicted_BHW: Tensor, depths_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """g, 0 where the depth is 0 (unknown), and which pixels are known, (B, H, W) both."""
    known_BHW = depths_BHW > 0
    errors_BHW = (predicted_BHW + EPSILON).log() - (depths_BHW + EPSILON).log()
    return errors_BHW.where(known_BHW, 0.0), known_BHW


def sig_loss(errors_BHW: Tensor, known_BHW: Tensor, warm_up: bool) -> Tensor:
    """SigLoss over all known pixels of the batch; needs 2 of them."""
    errors = errors_BHW[known_BHW]
    scale = BALANCE * errors.mean().square()
    return (scale if warm_up else errors.var() + scale).clamp(min=torch.finfo(errors.dtype).tiny).sqrt()


def gradient_loss(errors_BHW: Tensor, known_BHW: Tensor) -> Tensor:
    """The gradient loss over all known pixels of the batch."""
    total = errors_BHW.new_zeros(())
    for stride in STRIDES:
        errors, known = errors_BHW[:, ::stride, ::stride], known_BHW[:, ::stride, ::stride]
        down = ((errors[:, 2:] - errors[:, :-2]).abs() * (known[:, 2:] & known[:, :-2])).sum()
        across = ((errors[:, :, 2:] - errors[:, :, :-2]).abs() * (known[:, :, 2:] & known[:, :, :-2])).sum()
        total = total + (down + across) / known.sum().clamp(min=1)
    return total
