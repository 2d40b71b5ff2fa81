"""Stochastic depth whose draws are those of the whole batch, whatever part of it is in a forward pass.

timm's layer draws for the images that it is given. Here every image has its own place in the batch: a process, or a
part of an accumulated batch, draws for the whole batch from the step's seed and takes its own rows. So one process that
takes a batch at once, and parts of it elsewhere, drop the same paths of the same images.

Letters: B images of the batch, b of them in a forward pass.
"""

from dataclasses import dataclass

import torch
from timm.layers import DropPath
from torch import Tensor, nn


@dataclass
class Places:
    """Where the images of the next forward pass are in the batch; by default, they are all of it."""

    batch: int | None = None  # images
    rows_b: Tensor | None = None  # int64, on the model's device

    def at(self, first: int, images: int, batch: int, device: torch.device) -> None:
        """The next forward pass has `images` of the batch's images, from `first` on."""
        self.batch = batch
        self.rows_b = None if images == batch else torch.arange(first, first + images, device=device)


class PlacedDropPath(nn.Module):
    """timm's DropPath, drawn for the batch that `places` tells of."""

    def __init__(self, layer: DropPath, places: Places) -> None:
        super().__init__()
        self.rate = layer.drop_prob
        self.scaled = layer.scale_by_keep
        self.places = places

    def forward(self, x: Tensor) -> Tensor:
        """(b, ...) with some images set to zero and the others scaled, so that the mean stays; all of it in eval.

        Or (b times the same number of rows, ...), an image's rows together, each of which is drawn.
        """
        if not self.training or self.rate == 0.0:
            return x
        rows_b = self.places.rows_b
        batch = len(x) if self.places.batch is None else self.places.batch
        each = len(x) // (batch if rows_b is None else len(rows_b))  # MobileViT and TNT have a row for each patch
        kept = x.new_empty((batch, each)).bernoulli_(1 - self.rate)
        if self.scaled and self.rate < 1:
            kept.div_(1 - self.rate)
        return x * (kept if rows_b is None else kept[rows_b]).reshape(len(x), *(1,) * (x.ndim - 1))


def place_drop_path(encoder: nn.Module) -> Places:
    """Replace every DropPath of timm in the encoder; returns the places that all of them look up."""
    places = Places()
    for module in [*encoder.modules()]:
        for name, layer in module.named_children():
            if isinstance(layer, DropPath):
                setattr(module, name, PlacedDropPath(layer, places))
    return places
