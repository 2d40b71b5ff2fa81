"""Depth from frozen features by a linear layer over bins, after DINOv2's linear head for NYUd.

Each patch token, with the image's summary beside it, is standardized (see `dense.py`) and mapped to logits of 256
depths, uniform from 0.001 to 10 m. Logits are up-sampled 4 times; then depth = sum of p times bin, where p is
relu(logits) + 0.1 divided by its sum. (The published head up-samples features first, which gives the same logits:
interpolation and a linear layer commute.) Depth is up-sampled to the label's size. All up-sampling is bilinear.

The loss is SigLoss, in its warm-up for the first 100/38,400 of the steps, plus half the gradient loss (see
`depth_losses.py`). AdamW, weight decay 0.01, a linear warm-up of the learning rate over a third of the steps while it
falls by cosine to 0. UNIC trains 38,400 steps on augmented crops. Here every image has the one view that is cached, and
a step takes a window of a quarter of the height and width, drawn anew. Its rate is 1e-3 instead of 1e-4, for fewer
steps: on made-up scenes 500 steps reached an RMSE of 0.073 m, and 1,000 steps at 1e-4 one of 0.082 m. On a ViT-S's
tokens of 4,500 images with made-up depths, 1,000 steps reached 0.65 m and 4,000 steps 0.55 m (0.64 and 0.56 at 3e-3):
more steps see more windows.

A pixel counts if its depth is known (not 0) and at most 10 m, in training as in metrics, as in NYUd's protocol.

Letters: N images, T tokens (h rows, w columns), D channels, S channels of the summary, E = D + S + 1, K bins,
P and Q rows and columns of the logits' finer grid, H and W pixels, B images of a batch.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unic_cache import draws
from unic_cache.errors import ConfigError
from unic_cache.evaluate import dense
from unic_cache.evaluate.checks import check_finite
from unic_cache.evaluate.depth_losses import gradient_loss, log_errors, sig_loss
from unic_cache.evaluate.task import Examples, Metric, Metrics, Numbers, Settings, mean, per_image
from unic_cache.token_kinds import Grid

BINS, NEAREST, FARTHEST = 256, 0.001, 10.0  # metres
FINER = 4  # than the tokens' grid
FLOOR = 0.1  # of each bin before normalization
RATE, DECAY, WARM_UP, SCALE_FIRST = 1e-3, 0.01, 1 / 3, 100 / 38_400
INITIAL_STD = 0.01  # of the weights
WINDOW = 0.25  # of the height and width, in a step
ROWS = 4  # images at a time while testing


def depth(train: Examples, test: Examples, settings: Settings) -> Metrics:
    """ "RMSE" in metres, then "AbsRel" and "delta 1": of each image over its pixels that count, then means over images.

    Images without such pixels are left out of all three. ConfigError if features and depths do not go together or are
    not finite, or if a side has no pixel that counts or most of its known pixels are beyond 10 m.
    """
    assert not settings.leave_one_out, "a head needs a split"
    grid = dense.check_sides(train, test, "depths_NHW")
    for name, side in (("training", train), ("test", test)):
        check_finite(side.summary_ND)
        _check_depths(name, side.depths_NHW)
    values_N3, counted_N = _errors(_trained(train, grid, settings), test)
    rmse_N, relative_N, close_N = values_N3.T
    return {
        "RMSE": Metric(per_image(rmse_N, counted_N), mean, unit="m", higher_is_better=False),
        "AbsRel": Metric(per_image(relative_N, counted_N), mean, unit="", higher_is_better=False),
        "delta 1": Metric(per_image(close_N, counted_N), mean),
    }


@dataclass(frozen=True)
class Head:
    """Standardization and a linear layer (E, K): rows of token channels, then of summary channels, then the bias."""

    grid: Grid
    tokens: dense.Standardizer
    summaries: dense.Standardizer
    weights_EK: Tensor

    def depths(self, tokens_BTD: Tensor, summaries_BS: Tensor, up_hP: Tensor, up_wQ: Tensor) -> Tensor:
        """Metres at the points of a finer grid that the two matrices lead to, (B, P, Q)."""
        token_EK = self.tokens.folded(torch.cat([self.weights_EK[: tokens_BTD.shape[2]], self.weights_EK[-1:]]))
        no_bias_1K = torch.zeros_like(self.weights_EK[-1:])
        summary_EK = self.summaries.folded(torch.cat([self.weights_EK[tokens_BTD.shape[2] : -1], no_bias_1K]))
        shared_BK = summaries_BS @ summary_EK[:-1] + summary_EK[-1] + token_EK[-1]
        logits_BTK = tokens_BTD @ token_EK[:-1] + shared_BK[:, None]
        logits_BKhw = logits_BTK.transpose(1, 2).reshape(len(tokens_BTD), BINS, *self.grid)
        raised_BKPQ = (up_hP.T @ logits_BKhw @ up_wQ).relu()
        bins_K = torch.linspace(NEAREST, FARTHEST, BINS, device=raised_BKPQ.device)
        weighed = torch.stack([bins_K, torch.ones_like(bins_K)]) @ raised_BKPQ.flatten(2)  # (B, 2, P * Q)
        metres = (weighed[:, 0] + FLOOR * bins_K.sum()) / (weighed[:, 1] + FLOOR * BINS)
        return metres.view(-1, *raised_BKPQ.shape[2:])


def _check_depths(name: str, depths_NHW: npt.NDArray[np.float32] | None) -> None:
    assert depths_NHW is not None
    known = far = 0
    for row, depths_HW in enumerate(depths_NHW):
        if not np.isfinite(depths_HW).all() or (depths_HW < 0).any():
            raise ConfigError(f"a depth of the {name} image in row {row} is negative or not finite; 0 is unknown")
        known += int(np.count_nonzero(depths_HW))
        far += int(np.count_nonzero(depths_HW > FARTHEST))
    if not known:
        raise ConfigError(f"no pixel of the {name} images has a known depth (they are all 0)")
    if far > known / 2:
        raise ConfigError(
            f"{far} of {known} known depths of the {name} images are beyond {FARTHEST:g} m, the farthest that the head "
            "predicts; are they in metres?"
        )


def _usable(depths_BHW: npt.NDArray[np.float32], device: torch.device) -> Tensor:
    """Depths (B, H, W) with 0 beyond 10 m, too."""
    return torch.from_numpy(np.where(depths_BHW > FARTHEST, np.float32(0), depths_BHW)).to(device)


def _trained(train: Examples, grid: Grid, settings: Settings) -> Head:
    assert train.patches_NTD is not None
    inputs = train.patches_NTD.shape[2] + train.summary_ND.shape[1]
    raw = draws.words(draws.Purpose.HEAD_INIT, settings.seed, 0, 0, inputs * BINS)
    start_EK = torch.zeros(inputs + 1, BINS)
    start_EK[:-1] = torch.from_numpy((2 * draws.uniforms(raw) - 1) * math.sqrt(3) * INITIAL_STD).view(inputs, BINS)
    head = Head(
        grid,
        dense.standardizer(train.patches_NTD, settings.device),
        dense.standardizer(train.summary_ND.cpu().numpy()[:, None], settings.device),
        start_EK.to(settings.device),
    )
    steps = dense.steps(len(train.patches_NTD), settings)
    warm = max(1, round(WARM_UP * steps))
    rates = [RATE * min(1, (step + 1) / warm) * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]
    return replace(head, weights_EK=dense.descend(head.weights_EK, _losses(train, head, steps, settings), rates, DECAY))


def _losses(train: Examples, head: Head, steps: int, settings: Settings) -> Iterator[Callable[[Tensor], Tensor]]:
    """The loss of each step, over a window of its images, as a function of the head's weights."""
    assert train.patches_NTD is not None
    assert train.depths_NHW is not None
    count, *sizes = train.depths_NHW.shape
    lengths = [math.ceil(WINDOW * size) for size in sizes]
    raw = draws.words(draws.Purpose.PIXELS, settings.seed, 0, 0, 2 * steps)
    places = [size - length + 1 for size, length in zip(sizes, lengths, strict=True)]
    starts = (draws.uniforms(raw).reshape(-1, 2) * places).astype(np.int64)
    for step, rows_B in enumerate(dense.batches(count, steps, settings.seed)):
        inputs = _inputs(train, rows_B, settings.device)
        down, across = (slice(start, start + length) for start, length in zip(starts[step], lengths, strict=True))
        depths_BHW = _usable(train.depths_NHW[rows_B, down, across], settings.device)
        ups = [
            _window(cells, size, span, settings.device)
            for cells, size, span in zip(head.grid, sizes, (down, across), strict=True)
        ]
        yield partial(_loss, head, inputs, depths_BHW, ups, step < max(1, round(SCALE_FIRST * steps)))


def _inputs(side: Examples, rows: slice | npt.NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
    assert side.patches_NTD is not None
    return dense.read(side.patches_NTD, rows, device), side.summary_ND[rows].to(device).float()


def _window(cells: int, size: int, span: slice, device: torch.device) -> tuple[Tensor, Tensor]:
    """Along one axis: from tokens to those points of the finer grid that the span of pixels rests on, and to these."""
    pixels = dense.upsampling(FINER * cells, size)[:, span]
    used = pixels.any(dim=1)
    return dense.upsampling(cells, FINER * cells)[:, used].to(device), pixels[used].to(device)


def _loss(
    head: Head,
    inputs: tuple[Tensor, Tensor],
    depths_BHW: Tensor,
    ups: list[tuple[Tensor, Tensor]],
    warm_up: bool,
    weights_EK: Tensor,
) -> Tensor:
    """SigLoss plus half the gradient loss; 0 if the window has fewer than 2 known pixels."""
    (up_hP, on_PH), (up_wQ, on_QW) = ups
    predicted_BPQ = replace(head, weights_EK=weights_EK).depths(*inputs, up_hP, up_wQ)
    errors_BHW, known_BHW = log_errors(on_PH.T @ predicted_BPQ @ on_QW, depths_BHW)
    if known_BHW.sum() < 2:
        return 0 * errors_BHW.sum()
    return sig_loss(errors_BHW, known_BHW, warm_up) + 0.5 * gradient_loss(errors_BHW, known_BHW)


def _errors(head: Head, test: Examples) -> tuple[Numbers, npt.NDArray[np.bool_]]:
    """RMSE, AbsRel and delta 1 of each image, (N, 3), and whether it has any pixel that counts."""
    assert test.patches_NTD is not None
    assert test.depths_NHW is not None
    count, *sizes = test.depths_NHW.shape
    device = head.weights_EK.device
    ups = [_window(cells, size, slice(None), device) for cells, size in zip(head.grid, sizes, strict=True)]
    (up_hP, on_PH), (up_wQ, on_QW) = ups
    found_N3, counted_N = np.zeros((count, 3)), np.zeros(count, np.bool_)
    for block, tokens_BTD in dense.in_order(test.patches_NTD, device, ROWS):
        coarse_BPQ = head.depths(tokens_BTD, test.summary_ND[block].to(device).float(), up_hP, up_wQ)
        predicted_BHW = (on_PH.T @ coarse_BPQ @ on_QW).double().cpu().numpy()
        truth_BHW = _usable(test.depths_NHW[block], torch.device("cpu")).double().numpy()
        for place, (predicted, truth) in enumerate(zip(predicted_BHW, truth_BHW, strict=True), block.start):
            known = truth > 0
            counted_N[place] = known.any()
            if counted_N[place]:
                found_N3[place] = _image_errors(predicted[known], truth[known])
    return found_N3, counted_N


def _image_errors(predicted: Numbers, truth: Numbers) -> tuple[float, float, float]:
    ratio = np.maximum(predicted / truth, truth / predicted)
    rmse = np.sqrt(np.square(predicted - truth).mean())
    return float(rmse), float((np.abs(predicted - truth) / truth).mean()), float((ratio < 1.25).mean())
