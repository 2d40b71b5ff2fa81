"""Semantic segmentation by a linear layer on frozen patch tokens, after DINOv2's linear head.

Tokens are standardized (see `dense.py`); a linear layer gives logits of the classes, up-sampled bilinearly to the size
of the mask; cross entropy over the pixels that are not 255. AdamW, learning rate 1e-2 with a linear warm-up over the
first 1.9 % of the steps (1,500 of UNIC's 80,000) and then linearly to 0, weight decay 1e-4, batches of 8.

UNIC trains 80,000 steps at 1e-3 on augmented crops of 512 px. Here every image has the one view that is cached, without
augmentation: numbers compare encoders with each other, and lie below published ones. The problem is convex, so the
layer starts at zero. Its rate is ten times UNIC's, for fewer steps: a layer that has not arrived tells how soon an
encoder's tokens are fitted, not what they hold. Tried by changing RATE, on a ViT-S's tokens of 4,500 images with emoji
of 9 classes: at 1e-3 an mIoU of 21 % after 500 steps and 34 % after 8,000, at 1e-2 one of 35 % after 1,000.

A step's loss is that of about 4 x 4 pixels per token, on a lattice whose offset is drawn anew for each step. Every
pixel is as likely as any other, so the expected gradient is that of all pixels; neighbours hardly differ.

Letters: N images, T tokens (h rows, w columns), D channels, K classes, H and W pixels, B images of a batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from unic_cache import draws
from unic_cache.errors import ConfigError
from unic_cache.evaluate import dense
from unic_cache.evaluate.checks import check_known
from unic_cache.evaluate.task import IGNORED, Examples, Metric, Metrics, Numbers, Settings, mean, mean_iou
from unic_cache.token_kinds import Grid

RATE, DECAY, WARM_UP = 1e-2, 1e-4, 1500 / 80_000
PER_TOKEN = 4  # rows and columns of a token's pixels in a step's loss
LOGITS = 2**24  # in memory while testing

Classes: TypeAlias = npt.NDArray[np.int64]


def segmentation(train: Examples, test: Examples, settings: Settings) -> Metrics:
    """ "mIoU" over all pixels of the test images, with each class's IoU, then "pixel accuracy".

    The classes are those of the training masks. ConfigError if tokens and masks do not go together, if tokens are not
    finite, if training masks have fewer than 2 classes, or if test masks have no known pixel or a class that they lack.
    """
    assert not settings.leave_one_out, "a head needs a split"
    grid = dense.check_sides(train, test, "masks_NHW")
    classes_K = _classes(train, test)
    head = _trained(train, grid, classes_K, settings)
    intersections_NK, unions_NK, pixels_N2 = _counts(head, test, classes_K)
    hits_K, wholes_K = intersections_NK.sum(axis=0), unions_NK.sum(axis=0)
    per_class = {
        int(number): float(hits / whole)
        for number, hits, whole in zip(classes_K, hits_K, wholes_K, strict=True)
        if whole
    }
    return {
        "mIoU": Metric(np.concatenate([intersections_NK, unions_NK], axis=1), mean_iou, per_class=per_class),
        "pixel accuracy": Metric(pixels_N2, mean),
    }


@dataclass(frozen=True)
class Head:
    """Standardization and a linear layer (D + 1, K), whose last row is the bias."""

    grid: Grid
    standardize: dense.Standardizer
    weights_EK: Tensor

    def logits(self, tokens_BTD: Tensor) -> Tensor:
        """(B, K, h, w)."""
        folded_EK = self.standardize.folded(self.weights_EK)
        logits_BTK = tokens_BTD @ folded_EK[:-1] + folded_EK[-1]
        return logits_BTK.transpose(1, 2).reshape(len(tokens_BTD), -1, *self.grid)


def _classes(train: Examples, test: Examples) -> Classes:
    """The class numbers in the training masks, in order."""
    known, asked = (_present(side.masks_NHW) for side in (train, test))
    if len(known) < 2:
        found = f"only class {known.pop()}" if known else "no pixel of any class"
        raise ConfigError(f"the training masks have {found} ({IGNORED} is unknown); use at least 2 classes")
    if not asked:
        raise ConfigError(f"the test masks have no pixel of any class, only {IGNORED} (unknown)")
    check_known(known, asked)
    return np.array(sorted(known))


def _present(masks_NHW: npt.NDArray[np.uint8] | None) -> set[int]:
    assert masks_NHW is not None
    seen_256 = np.zeros(256, np.int64)
    for mask_HW in masks_NHW:
        seen_256 += np.bincount(mask_HW.reshape(-1), minlength=256)
    return set(np.flatnonzero(seen_256).tolist()) - {IGNORED}


def _numbered(masks_BHW: npt.NDArray[np.uint8], classes_K: Classes) -> npt.NDArray[np.int64]:
    """Masks with classes from 0 to K - 1, IGNORED as it is."""
    number_256 = np.full(256, IGNORED)
    number_256[classes_K] = np.arange(len(classes_K))
    return number_256[masks_BHW]


def _trained(train: Examples, grid: Grid, classes_K: Classes, settings: Settings) -> Head:
    assert train.patches_NTD is not None
    standardize = dense.standardizer(train.patches_NTD, settings.device)
    start_EK = torch.zeros(train.patches_NTD.shape[2] + 1, len(classes_K), device=settings.device)
    steps = dense.steps(len(train.patches_NTD), settings)
    warm = max(1, round(WARM_UP * steps))
    rates = [RATE * min(1, (step + 1) / warm) * (1 - step / steps) for step in range(steps)]
    losses = _losses(train, Head(grid, standardize, start_EK), classes_K, steps, settings)
    return Head(grid, standardize, dense.descend(start_EK, losses, rates, DECAY))


def _losses(
    train: Examples, head: Head, classes_K: Classes, steps: int, settings: Settings
) -> Iterator[Callable[[Tensor], Tensor]]:
    """The loss of each step as a function of the head's weights."""
    assert train.patches_NTD is not None
    assert train.masks_NHW is not None
    sizes = train.masks_NHW.shape[1:]
    strides = [max(1, round(size / (PER_TOKEN * cells))) for size, cells in zip(sizes, head.grid, strict=True)]
    up_hH, up_wW = (
        dense.upsampling(cells, size).to(settings.device) for cells, size in zip(head.grid, sizes, strict=True)
    )
    raw = draws.words(draws.Purpose.PIXELS, settings.seed, 0, 0, 2 * steps)
    offsets = (draws.uniforms(raw).reshape(-1, 2) * strides).astype(np.int64)
    for rows_B, offset in zip(dense.batches(len(train.patches_NTD), steps, settings.seed), offsets, strict=True):
        tokens_BTD = dense.read(train.patches_NTD, rows_B, settings.device)
        vertical, horizontal = (slice(start, None, stride) for start, stride in zip(offset, strides, strict=True))
        masks_BHW = _numbered(train.masks_NHW[rows_B][:, vertical, horizontal], classes_K)
        targets_BHW = torch.from_numpy(masks_BHW).to(settings.device)
        yield partial(_loss, head, tokens_BTD, targets_BHW, up_hH[:, vertical], up_wW[:, horizontal])


def _loss(
    head: Head, tokens_BTD: Tensor, targets_BHW: Tensor, up_hH: Tensor, up_wW: Tensor, weights_EK: Tensor
) -> Tensor:
    """The mean cross entropy over known pixels, 0 if there are none."""
    logits_BKhw = replace(head, weights_EK=weights_EK).logits(tokens_BTD)
    logits_BKHW = up_hH.T @ logits_BKhw @ up_wW
    known = (targets_BHW != IGNORED).sum().clamp(min=1)
    return cross_entropy(logits_BKHW, targets_BHW, ignore_index=IGNORED, reduction="sum") / known


def _counts(head: Head, test: Examples, classes_K: Classes) -> tuple[Numbers, Numbers, Numbers]:
    """Pixels of each image: in each class's intersection and union (N, K), and those right and those known (N, 2)."""
    assert test.patches_NTD is not None
    assert test.masks_NHW is not None
    count, *size = test.masks_NHW.shape
    classes = len(classes_K)
    confusion_NKK = np.empty((count, classes, classes))
    rows = max(1, min(dense.ROWS, LOGITS // (classes * size[0] * size[1])))
    for block, tokens_BTD in dense.in_order(test.patches_NTD, head.weights_EK.device, rows):
        logits_BKHW = interpolate(head.logits(tokens_BTD), size=size, mode="bilinear", align_corners=False)
        predicted_BHW = logits_BKHW.argmax(dim=1).cpu().numpy()
        truth_BHW = _numbered(test.masks_NHW[block], classes_K)
        for place, (predicted, truth) in enumerate(zip(predicted_BHW, truth_BHW, strict=True), block.start):
            known = truth != IGNORED
            pairs = np.bincount(truth[known] * classes + predicted[known], minlength=classes**2)
            confusion_NKK[place] = pairs.reshape(classes, classes)
    hits_NK = np.diagonal(confusion_NKK, axis1=1, axis2=2)
    unions_NK = confusion_NKK.sum(axis=1) + confusion_NKK.sum(axis=2) - hits_NK
    return hits_NK, unions_NK, np.stack([hits_NK.sum(axis=1), confusion_NKK.sum(axis=(1, 2))], axis=1)
