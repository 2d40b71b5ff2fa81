"""How many dimensions of a feature space are in use: the principal components of its features.

With the eigenvalues of the covariance in falling order and p their shares of the sum:

    dimensions at 90 %: the fewest components whose shares add up to 0.9 or more
    effective rank: exp(- sum p ln p)

after Roy & Vetterli 2007, who take the shares of singular values where these are of eigenvalues, that is of variance.

Letters: N images, M training images, T tokens, D channels, S rows of a block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unic_cache.errors import ConfigError
from unic_cache.evaluate.task import Numbers

SHARES = {"90": 0.90, "95": 0.95, "99": 0.99}
ROUNDING = 1e-12  # a sum of shares may fall short of 1 by so much
BLOCK = 2**23  # numbers in memory at a time, 64 MiB


class Rows(Protocol):
    """An array, or rows of one that are read when asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D) or (N, T, D)."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]: ...


@dataclass(frozen=True)
class Spectrum:
    """Dimensions that hold shares of the variance."""

    channels: int
    dimensions: Mapping[str, int]  # percent of the variance -> components
    effective_rank: float


def spectrum(features: Sequence[Rows]) -> Spectrum:
    """Of one or more arrays of features, (N, D) or (N, T, D), read in blocks of rows.

    ConfigError if features are not finite, or all equal.
    """
    _, covariance_DD = _moments(features)
    eigenvalues_D = np.linalg.eigvalsh(covariance_DD)[::-1].clip(min=0)
    if not eigenvalues_D.sum() > 0:
        raise ConfigError("the features of all images are equal: they span no dimension; use another encoder")
    shares_D = eigenvalues_D / eigenvalues_D.sum()
    held_D, used = shares_D.cumsum(), shares_D[shares_D > 0]
    return Spectrum(
        len(shares_D),
        {name: int(np.searchsorted(held_D, share - ROUNDING)) + 1 for name, share in SHARES.items()},
        float(np.exp(-(used * np.log(used)).sum())),
    )


def first_components(train_MD: Tensor, test_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides in the principal components of the training features, largest variance first, their mean removed.

    Columns [:c] are the projection on the first c components. ConfigError if features are not finite.
    """
    mean_D, covariance_DD = _moments([train_MD.cpu().numpy()])
    components_DD = np.linalg.eigh(covariance_DD)[1][:, ::-1].copy()
    mean, components = torch.from_numpy(mean_D), torch.from_numpy(components_DD)
    train, test = (((side.cpu().double() - mean) @ components).float() for side in (train_MD, test_ND))
    return train, test


def _moments(features: Sequence[Rows]) -> tuple[Numbers, Numbers]:
    """Mean (D,) and (biased) covariance (D, D) in float64, blocks merged as by Chan et al. 1979."""
    count, mean_D, scatter_DD = 0, np.zeros(0), np.zeros((0, 0))
    for array in features:
        rows = max(1, BLOCK // int(np.prod(array.shape[1:])))
        for start in range(0, len(array), rows):
            block_SD = np.asarray(array[start : start + rows], np.float64).reshape(-1, array.shape[-1])
            if not np.isfinite(block_SD).all():
                raise ConfigError("features are not finite; the encoder has diverged or its input is broken")
            if not count:
                mean_D, scatter_DD = np.zeros(block_SD.shape[1]), np.zeros((block_SD.shape[1], block_SD.shape[1]))
            own_D = block_SD.mean(axis=0)
            centred_SD, apart_D, total = block_SD - own_D, own_D - mean_D, count + len(block_SD)
            scatter_DD += centred_SD.T @ centred_SD + np.outer(apart_D, apart_D) * (count * len(block_SD) / total)
            mean_D, count = mean_D + apart_D * (len(block_SD) / total), total
    if not count:
        raise ConfigError("there are no features to take principal components of")
    return mean_D, scatter_DD / count
