"""Other standardizations than the cache's own, made from it when features are read.

The cache keeps (x - mean) / std for each channel, UNIC's. All others here are affine maps of that:

| name | gives |
|---|---|
| `channel` | what is kept |
| `phi-s` | a H U^T (x - mean), a = 1 / sqrt(mean eigenvalue): one scalar after a rotation that evens out variance |
| `none` | x, the teacher's own values |

In `phi-s` (PHI-S, arXiv 2410.01680) U holds the eigenvectors of the covariance and H is a Hadamard matrix: every
channel gets variance 1, and distances between tokens stay what they are but for the scalar.

Letters: D channels.
"""

from collections.abc import Callable

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from unic_cache.errors import CacheError
from unic_cache.store.calibrate import STD_GUARD, Calibration
from unic_cache.store.codecs.rotation import hadamard


def affine(calibration: Calibration, kind: str, name: str) -> tuple[Tensor, Tensor] | None:
    """(matrix (D, D), offset (D,)), float32, with kept @ matrix + offset; None where what is kept is what is asked.

    CacheError where the calibration has no covariance to make `phi-s` from.
    """
    return STANDARDIZATIONS[name](calibration, kind)


def _phi_s(calibration: Calibration, kind: str) -> tuple[Tensor, Tensor]:
    if kind not in calibration.covariance:
        raise CacheError(f"standardization phi-s needs the covariance of {kind} tokens, which the calibration lacks")
    std = np.maximum(calibration.std[kind], STD_GUARD)
    covariance = calibration.covariance[kind].astype(np.float64) * np.outer(std, std)
    with threadpool_limits(1):
        eigenvalues, axes = np.linalg.eigh(covariance)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    axes = (axes * np.where(largest < 0, -1.0, 1.0))[:, ::-1]
    spread = hadamard(len(std), torch.device("cpu")).double().numpy()
    matrix = std[:, None] * (axes @ spread.T) / np.sqrt(max(eigenvalues.mean(), STD_GUARD**2))
    return torch.from_numpy(matrix).float(), torch.zeros(len(std))


def _own_values(calibration: Calibration, kind: str) -> tuple[Tensor, Tensor]:
    std = np.maximum(calibration.std[kind], STD_GUARD)
    return torch.from_numpy(np.diag(std)).float(), torch.from_numpy(calibration.mean[kind]).float()


STANDARDIZATIONS: dict[str, Callable[[Calibration, str], tuple[Tensor, Tensor] | None]] = {
    "channel": lambda calibration, kind: None,  # noqa: ARG005 (what is kept)
    "phi-s": _phi_s,
    "none": _own_values,
}
