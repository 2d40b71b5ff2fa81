"""Encoders that normalise by their batch (BatchNorm), and images that must stay out of its statistics.

In training such an encoder normalises by the images of one process's batch, and averages what it saw for evaluation.

Letters: B images, H and W pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

AVERAGES = ("running_mean", "running_var")  # buffers of a layer that keeps statistics


def normalizes_by_batch(module: nn.Module) -> bool:
    """Whether any layer keeps statistics of its batches."""
    return any(name.endswith(AVERAGES) for name, _ in module.named_buffers())


def good_alone(views_BHWC: Tensor, good_B: Tensor) -> Tensor:
    """The views with copies of good ones, in turn, in place of the others; unchanged if none is good, or all are."""
    good_N = good_B.nonzero().flatten()
    if len(good_N) in {0, len(good_B)}:
        return views_BHWC
    rows_B = torch.arange(len(good_B))
    rows_B[~good_B] = good_N[torch.arange(len(good_B) - len(good_N)) % len(good_N)]
    return views_BHWC[rows_B.to(views_BHWC.device)]


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Inside, the layers normalise by their averages, and change none."""
    layers = [one for one in module.modules() if normalizes_by_batch_itself(one) and one.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


@contextmanager
def statistics_restored_on_error(module: nn.Module) -> Iterator[None]:
    """If an error ends what is inside, the statistics are again those of its beginning."""
    layers = [one for one in module.modules() if normalizes_by_batch_itself(one)]
    before = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers(recurse=False)]
    try:
        yield
    except BaseException:
        for buffer, value in before:
            buffer.copy_(value)
        raise


def normalizes_by_batch_itself(layer: nn.Module) -> bool:
    """Whether the layer, without its children, keeps statistics of its batches."""
    return any(name.endswith(AVERAGES) for name, _ in layer.named_buffers(recurse=False))
