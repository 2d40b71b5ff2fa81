"""Fits codec `klt` to a teacher: its rotations, the class of each coefficient, and the step for a quality.

Sums are float64 on the CPU in one thread, and the largest entry of each axis is positive: equal tokens give equal
bytes.

Letters: B images, T tokens, D channels, G bands, N stored coefficients.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from unic_cache.store.codecs.klt import Klt, band_tokens, dct, over_grid, rounded
from unic_cache.store.codecs.packing import LARGEST
from unic_cache.store.moments import Counting, Floats, principal
from unic_cache.token_kinds import Grid

# The least rms, in steps, of each class of packing.LARGEST; coefficients below the last are left out. At 0.3 instead of
# 0.09 zstd would need 2 % fewer bytes at an equal cosine, but images unlike the calibration's would lose more.
CLASS_FROM = (20.0, 2.6, 0.85, 0.42, 0.09)
STEPS = (1e-3, 1e2)  # the step lies between
HALVINGS = 18
AT_ONCE = 32  # images
PRIOR_IMAGES = 8
TOKENS_A_BAND = 64  # of each image, evenly spaced: enough for the axes


def nothing() -> None:
    """Do nothing."""


class BandMoments(Counting):
    """Running second moments of the tokens' spectrum in each band, about the first batch's mean."""

    COUNTED = ("origin", "count", "sum", "products")

    def __init__(self, grid: Grid | None, tokens: int) -> None:
        self._grid = grid
        bands = band_tokens(grid, tokens)
        self._every = [max(len(places) // TOKENS_A_BAND, 1) for places in bands]
        self._places = [places[::every] for places, every in zip(bands, self._every, strict=True)]
        self._shifted = self._places[0] if grid is None else self._places[0][:1]  # tokens that the mean moves
        self._matrices = [torch.from_numpy(dct(side).astype(np.float32)) for side in grid or (1, 1)]
        self.origin: npt.NDArray[np.float32] | None = None
        self.count = 0  # of the shifted tokens
        self.sum: Floats | float = 0.0  # of the same
        self.products: Floats | float = 0.0  # (G, D, D)

    def update(self, tokens_BTD: Tensor) -> None:
        """Add B images."""
        self.origin = tokens_BTD.mean(dim=(0, 1)).numpy() if self.origin is None else self.origin
        spectrum_BTD = over_grid(tokens_BTD - torch.from_numpy(self.origin), self._grid, *self._matrices)
        shifted_ND = spectrum_BTD[:, self._shifted].flatten(0, 1).double().numpy()
        self.count += len(shifted_ND)
        self.sum = self.sum + shifted_ND.sum(axis=0)
        flat = [spectrum_BTD[:, places].flatten(0, 1).double().numpy() for places in self._places]
        each = [every * (tokens.T @ tokens) for every, tokens in zip(self._every, flat, strict=True)]
        self.products = self.products + np.stack(each)

    def axes(self, mean: Floats, std: Floats) -> npt.NDArray[np.float32]:
        """(G, D, D) float32: the principal axes of (x - mean) / std in each band, as columns, the largest first.

        The mean moves only the lowest frequency, the first token of the first band; without a grid, all tokens.
        """
        assert self.origin is not None
        shift = (mean - self.origin.astype(np.float64)) * math.sqrt(math.prod(self._grid or (1, 1)))
        cross = np.outer(self.sum, shift)
        first, *others = np.asarray(self.products)
        moments = [first + self._every[0] * (self.count * np.outer(shift, shift) - cross - cross.T), *others]
        return np.stack([principal(moment / np.outer(std, std))[1] for moment in moments]).astype(np.float32)


def axes_of(covariance_DD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(1, D, D) float32: the principal axes of standardized tokens without a grid, as columns, the largest first."""
    return principal(covariance_DD.astype(np.float64))[1][None].astype(np.float32)


def fit_klt(
    rotation: npt.NDArray[np.float32],
    fit_BTD: Tensor,
    held_out_BTD: Tensor,
    grid: Grid | None,
    quality: float,
    summary: bool = False,
    check: Callable[[], object] = nothing,
) -> Klt:
    """The codec with these axes whose mean cosine on held-out standardized tokens is `quality`, or just above.

    `fit_BTD`, standardized too, gives the rms of each coefficient. Of `summary` tokens there may be fewer than
    channels: their axes then fit those that they were made from too well, so what others have counts where it is more.
    `check` is called before each step that is tried; its error ends the fit.
    """
    tokens = fit_BTD.shape[1]
    codec = Klt(grid, tokens, rotation, np.zeros(0, np.int32), (0, 0, 0, 0, 0), 1.0)
    with threadpool_limits(1):
        held_out = [codec.coefficients(part) for part in torch.split(held_out_BTD, AT_ONCE)]
        fit = (codec.coefficients(part) for part in torch.split(fit_BTD, AT_ONCE))
        rms = coefficient_rms(codec, itertools.chain(fit, held_out))
        if summary:
            rms = np.maximum(rms, coefficient_rms(codec, held_out))
        low, high = np.log(STEPS)
        for _ in range(HALVINGS):
            check()
            middle = (low + high) / 2
            good = fidelity(with_step(codec, rms, float(np.exp(middle))), held_out, held_out_BTD) >= quality
            low, high = (middle, high) if good else (low, middle)
        return with_step(codec, rms, float(np.exp(low)))


def coefficient_rms(codec: Klt, batches: Iterable[Tensor]) -> Floats:
    """(T D,) the rms of each coefficient (B, T, D), shrunk towards the product of its token's and channel's means.

    The prior weighs `PRIOR_IMAGES` images. Held-out images count too: axes fitted to few images look too good on them.
    """
    counted = [(len(batch), batch.double().square().sum(dim=0)) for batch in batches]
    images, power_TD = sum(count for count, _ in counted), torch.stack([power for _, power in counted]).sum(dim=0)
    sizes = [len(places) for places in band_tokens(codec.grid, codec.tokens)]
    smooth = [
        band.mean(dim=1, keepdim=True) * band.mean(dim=0) / band.mean().clamp(min=1e-30)
        for band in torch.split(power_TD, sizes)
    ]
    if codec.grid is None:  # a sampled token may come from any position
        power_TD = smooth[0].mean(dim=0).expand(codec.tokens, codec.channels)
        smooth = [power_TD]
    mixed_TD = (power_TD + torch.cat(smooth) * (PRIOR_IMAGES / images)) / (images + PRIOR_IMAGES)
    return np.asarray(mixed_TD.sqrt().flatten().numpy())


def with_step(codec: Klt, rms: npt.NDArray[np.float64], step: float) -> Klt:
    """The codec with this step: coefficients by falling rms, each in the class of its rms."""
    order = np.argsort(-rms, kind="stable")
    at_least = [int((rms >= step * least).sum()) for least in CLASS_FROM]
    counts = tuple(np.diff([0, *at_least]).tolist())
    return dataclasses.replace(codec, order=order[: at_least[-1]].astype(np.int32), counts=counts, step=step)


def fidelity(codec: Klt, coefficients: Sequence[Tensor], exact_BTD: Tensor) -> float:
    """The mean cosine between tokens and what their codes decode to, from the coefficients of each batch of them.

    What `Klt.encode` and `decode` give, to the bit, without packing: a fit tries many steps on the same coefficients.
    """
    largest = torch.zeros(codec.tokens * codec.channels)  # 0: left out
    largest[torch.from_numpy(codec.order).long()] = torch.tensor(np.repeat(LARGEST, codec.counts), dtype=torch.float32)
    largest_TD, total = largest.view(codec.tokens, codec.channels), 0.0
    for batch_BTD, exact in zip(coefficients, torch.split(exact_BTD, AT_ONCE), strict=True):
        codes_BTD = rounded(batch_BTD / codec.step).clamp_(-largest_TD, largest_TD)
        decoded = codec.tokens_of(codes_BTD.mul_(codec.step))
        total += torch.cosine_similarity(decoded.double(), exact.double(), dim=-1).sum().item()
    return total / exact_BTD.shape[:2].numel()
