"""What calibration remembers of the tokens: running moments, and some whole images.

Sums are float64 and in the order of the batches, so equal batches give equal bits.

Letters: N tokens, B images, T tokens of each, D channels.
"""

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

Floats = npt.NDArray[np.float64]
State = dict[str, npt.NDArray[np.generic]]  # all that was counted so far, to continue elsewhere
STD_FLOOR = 0.01  # of the median channel: a channel that hardly moves in the sample may move elsewhere


class Moments:
    """Running mean and sum of squared deviations of (N, D) tokens, merged batch by batch (Chan et al. 1979)."""

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

    def state(self) -> State:
        """All that was counted, for `restore`."""
        return {"count": np.asarray(self.count), "mean": self.mean, "squares": self.squares}

    def restore(self, state: State) -> None:
        """Continue from a `state`."""
        self.count = int(state["count"])
        self.mean, self.squares = (np.asarray(state[name], np.float64) for name in ("mean", "squares"))

    def std(self) -> Floats:
        """The unbiased standard deviation of each channel, at least a hundredth of the median channel's.

        UNIC guards by 1e-6 alone, but its statistics follow all data. In a sample a channel may stay at zero, and its
        first other value would then be a million times too large.
        """
        std = np.sqrt(self.squares / max(self.count - 1, 1))
        return np.asarray(np.maximum(std, STD_FLOOR * np.median(std)))


class Covariance:
    """Running covariance of (N, D) tokens about the first batch's mean, corrected for it at the end."""

    def __init__(self) -> None:
        self._origin: Floats | None = None
        self._count = 0
        self._sum: Floats | float = 0.0
        self._products: Floats | float = 0.0

    def update(self, tokens_ND: npt.NDArray[np.float32]) -> None:
        """Add N tokens."""
        tokens = tokens_ND.astype(np.float64)
        self._origin = tokens.mean(axis=0) if self._origin is None else self._origin
        tokens -= self._origin
        self._count += len(tokens)
        self._sum = self._sum + tokens.sum(axis=0)
        self._products = self._products + tokens.T @ tokens

    def state(self) -> State:
        """All that was counted, for `restore`."""
        assert self._origin is not None
        sums = {"sum": np.asarray(self._sum), "products": np.asarray(self._products)}
        return {"origin": self._origin, "count": np.asarray(self._count), **sums}

    def restore(self, state: State) -> None:
        """Continue from a `state`."""
        self._origin, self._sum, self._products = (
            np.asarray(state[name], np.float64) for name in ("origin", "sum", "products")
        )
        self._count = int(state["count"])

    def of_standardized(self, std: Floats) -> npt.NDArray[np.float32]:
        """(D, D): the covariance of the tokens in units of `std`."""
        centred = self._products - np.outer(self._sum, self._sum) / max(self._count, 1)
        return np.asarray(centred / max(self._count - 1, 1) / np.outer(std, std), np.float32)


class SomeImages:
    """Up to `room` whole images, evenly spaced over all offered: every one, then every second, every fourth, ..."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._every = 1
        self._offered = 0
        self._kept: list[Tensor] = []

    def offer(self, tokens_BTD: Tensor) -> None:
        """Remember the images of (B, T, D) that fall on the current spacing."""
        for image in tokens_BTD:
            if self._offered % self._every == 0:
                self._kept.append(image.clone())
            self._offered += 1
            if len(self._kept) > self._room:
                self._kept = self._kept[::2]
                self._every *= 2

    def state(self) -> State:
        """All that was counted, for `restore`."""
        kept = {"kept": self.stacked().numpy()} if self._kept else {}
        return {"every": np.asarray(self._every), "offered": np.asarray(self._offered), **kept}

    def restore(self, state: State) -> None:
        """Continue from a `state`."""
        self._every, self._offered = int(state["every"]), int(state["offered"])
        self._kept = list(torch.from_numpy(np.asarray(state["kept"], np.float32))) if "kept" in state else []

    def stacked(self) -> Tensor:
        """(B, T, D); at least one image must have been offered."""
        return torch.stack(self._kept)


def below(prefix: str, state: State) -> State:
    """The state of a part, named for the state of the whole."""
    return {f"{prefix}/{name}": values for name, values in state.items()}


def part(prefix: str, state: State) -> State:
    """The inverse of `below`; empty if the whole has no such part."""
    return {name.removeprefix(f"{prefix}/"): x for name, x in state.items() if name.startswith(f"{prefix}/")}


def principal(matrix_DD: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues (D,), ascending, and eigenvectors (D, D) as columns, the largest first, of a symmetric matrix.

    The largest entry of each eigenvector is positive, so equal matrices give equal bits.
    """
    with threadpool_limits(1):
        values, axes = np.linalg.eigh(matrix_DD)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    return values, (axes * np.where(largest < 0, -1.0, 1.0))[:, ::-1]
