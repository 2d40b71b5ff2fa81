"""A student without its smallest weights, to see how much of it is used.

Counted are the weight matrices: those of all linear layers (attention and MLP) and of the patch embedding. Biases,
norms, layer scales, positions, class and register tokens are neither counted nor changed.
"""

import copy

import torch
from torch import Tensor, nn

from unic_cache.errors import ConfigError


def weight_matrices(encoder: nn.Module) -> dict[str, Tensor]:
    """What pruning counts, by module: the weights of linear and convolutional layers."""
    return {name: layer.weight for name, layer in encoder.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}


@torch.no_grad()
def pruned(encoder: nn.Module, share: float) -> nn.Module:
    """A copy with round(share * n) of its n matrix weights set to zero: those smallest in magnitude, over all layers.

    Of equal magnitudes, the earlier in the encoder goes first. ConfigError unless 0 <= share <= 1, or on NaN.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"a share of {share} of the weights cannot be set to zero; choose 0 to 1")
    copied = copy.deepcopy(encoder)
    weights = list(weight_matrices(copied).values())
    sizes_N = torch.cat([weight.abs().flatten() for weight in weights])
    if sizes_N.isnan().any():
        raise ConfigError("the encoder's weights are not numbers (NaN): its training diverged")
    count = round(share * len(sizes_N))
    if count == 0:
        return copied
    threshold = sizes_N.kthvalue(count).values
    gone_N = sizes_N < threshold
    equal = (sizes_N == threshold).nonzero().flatten()
    gone_N[equal[: count - int(gone_N.sum())]] = True
    done = 0
    for weight in weights:
        weight[gone_N[done : done + weight.numel()].view_as(weight)] = 0
        done += weight.numel()
    return copied
