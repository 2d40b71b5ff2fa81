"""What calibration remembers of the tokens: running moments, and some whole images.

Sums are float64 and in the order of the batches, so equal batches give equal bits.

Letters: N tokens, B images, T tokens of each, D channels.
"""

from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

Floats = npt.NDArray[np.float64]
State = dict[str, npt.NDArray[np.generic]]  # all that was counted so far, to continue elsewhere
STD_FLOOR = 0.01  # of the median channel: a channel that hardly moves in the sample may move elsewhere


class Counting:
    """Sums over batches that can be saved and continued; `COUNTED` names the attributes that hold them."""

    COUNTED: ClassVar[tuple[str, ...]]

    def state(self) -> State:
        """All that was counted, for `restore`, after at least one batch."""
        return {name: np.asarray(getattr(self, name)) for name in self.COUNTED}

    def restore(self, state: State) -> None:
        """Continue from a `state`. KeyError if it lacks something."""
        for name in self.COUNTED:
            setattr(self, name, np.array(state[name]) if state[name].ndim else state[name].item())


class Moments(Counting):
    """Running mean and sum of squared deviations of (N, D) tokens, merged batch by batch (Chan et al. 1979)."""

    COUNTED = ("count", "mean", "squares")

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean: Floats = np.zeros(channels)
        self.squares: Floats = np.zeros(channels)

    def update(self, tokens_ND: npt.NDArray[np.float32]) -> None:
        """Add N tokens."""
        tokens = tokens_ND.astype(np.float64)
        mean = tokens.mean(axis=0)
        squares = np.square(tokens - mean).sum(axis=0)
        total = self.count + len(tokens)
        shift = mean - self.mean
        self.squares = self.squares + squares + np.square(shift) * (self.count * len(tokens) / total)
        self.mean = self.mean + shift * (len(tokens) / total)
        self.count = total

    def std(self) -> Floats:
        """The unbiased standard deviation of each channel, at least a hundredth of the median channel's.

        UNIC guards by 1e-6 alone, but its statistics follow all data. In a sample a channel may stay at zero, and its
        first other value would then be a million times too large.
        """
        std = np.sqrt(self.squares / max(self.count - 1, 1))
        return np.asarray(np.maximum(std, STD_FLOOR * np.median(std)))


class Covariance(Counting):
    """Running covariance of (N, D) tokens about the first batch's mean, corrected for it at the end."""

    COUNTED = ("origin", "count", "sum", "products")

    def __init__(self) -> None:
        self.origin: Floats | None = None
        self.count = 0
        self.sum: Floats | float = 0.0
        self.products: Floats | float = 0.0

    def update(self, tokens_ND: npt.NDArray[np.float32]) -> None:
        """Add N tokens."""
        tokens = tokens_ND.astype(np.float64)
        self.origin = tokens.mean(axis=0) if self.origin is None else self.origin
        tokens -= self.origin
        self.count += len(tokens)
        self.sum = self.sum + tokens.sum(axis=0)
        self.products = self.products + tokens.T @ tokens

    def of_standardized(self, std: Floats) -> npt.NDArray[np.float32]:
        """(D, D): the covariance of the tokens in units of `std`."""
        centred = self.products - np.outer(self.sum, self.sum) / max(self.count, 1)
        return np.asarray(centred / max(self.count - 1, 1) / np.outer(std, std), np.float32)


class SomeImages(Counting):
    """Up to `room` whole images, evenly spaced over all offered: every one, then every second, every fourth, ..."""

    COUNTED = ("every", "offered")

    def __init__(self, room: int) -> None:
        self._room = room
        self.every = 1
        self.offered = 0
        self._kept: list[Tensor] = []

    def offer(self, tokens_BTD: Tensor) -> None:
        """Remember the images of (B, T, D) that fall on the current spacing."""
        for image in tokens_BTD:
            if self.offered % self.every == 0:
                self._kept.append(image.clone())
            self.offered += 1
            if len(self._kept) > self._room:
                self._kept = self._kept[::2]
                self.every *= 2

    def state(self) -> State:
        """The images too."""
        return super().state() | ({"kept": self.stacked().numpy()} if self._kept else {})

    def restore(self, state: State) -> None:
        """The images too."""
        super().restore(state)
        self._kept = list(torch.from_numpy(np.asarray(state["kept"], np.float32))) if "kept" in state else []

    def stacked(self) -> Tensor:
        """(B, T, D); at least one image must have been offered."""
        return torch.stack(self._kept)


def principal(matrix_DD: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues (D,), ascending, and eigenvectors (D, D) as columns, the largest first, of a symmetric matrix.

    The largest entry of each eigenvector is positive, so equal matrices give equal bits.
    """
    with threadpool_limits(1):
        values, axes = np.linalg.eigh(matrix_DD)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    return values, (axes * np.where(largest < 0, -1.0, 1.0))[:, ::-1]
