"""Other standardizations than the cache's own, applied when features are read.

The cache stores (x - mean) / std for each channel, UNIC's. All others here are affine maps of that:

| name | gives |
|---|---|
| `channel` | the stored values |
| `phi-s` | a H U^T (x - mean), a = 1 / sqrt(mean eigenvalue): one scalar, after a rotation that evens out variance |
| `none` | x, the teacher's own values |

In `phi-s` (PHI-S, arXiv 2410.01680) U holds the eigenvectors of the covariance and H is a Hadamard matrix: every
channel gets variance 1, and distances between tokens only change by the scalar.

Letters: D channels.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from unic_cache.errors import CacheError
from unic_cache.store.calibrate import STD_GUARD, Calibration
from unic_cache.store.codecs.rotation import hadamard
from unic_cache.store.moments import principal


def affine(calibration: Calibration, kind: str, name: str) -> tuple[Tensor, Tensor] | None:
    """float32 (matrix (D, D), offset (D,)): stored @ matrix + offset is standardized by `name`. None for `channel`.

    CacheError if `phi-s` needs a covariance that the calibration lacks.
    """
    return STANDARDIZATIONS[name](calibration, kind)


def between(own: Calibration, other: Calibration, kind: str, name: str) -> tuple[Tensor, Tensor] | None:
    """float32 (matrix, offset): `own` values standardized by `name`, x, as `other` stores them: x @ matrix + offset.

    None if both are the same. CacheError as in `affine`.
    """
    found = affine(own, kind, name)
    scale = np.maximum(own.std[kind], STD_GUARD) / np.maximum(other.std[kind], STD_GUARD)
    shift = (own.mean[kind] - other.mean[kind]) / np.maximum(other.std[kind], STD_GUARD)
    if found is None:
        if np.array_equal(scale, np.ones_like(scale)) and not shift.any():
            return None
        return torch.from_numpy(np.diag(scale)).float(), torch.from_numpy(shift).float()
    matrix, offset = (part.double().numpy() for part in found)
    to_stored = np.linalg.inv(matrix)
    return torch.from_numpy(to_stored * scale).float(), torch.from_numpy(shift - offset @ to_stored * scale).float()


def own_scale(calibration: Calibration, kind: str, name: str) -> tuple[Tensor, Tensor]:
    """float32 (scale (D,) or (D, D), offset (D,)): what takes values standardized by `name` to the teacher's own.

    They are value * scale + offset, or value @ scale + offset. CacheError as in `affine`.
    """
    std, mean = np.maximum(calibration.std[kind], STD_GUARD), calibration.mean[kind]
    found = affine(calibration, kind, name)
    if found is None:
        return torch.from_numpy(std).float(), torch.from_numpy(mean).float()
    matrix, offset = (part.double().numpy() for part in found)
    if np.array_equal(matrix, np.diag(np.diagonal(matrix))):
        to_stored = 1 / np.diagonal(matrix)
        return torch.from_numpy(to_stored * std).float(), torch.from_numpy(mean - offset * to_stored * std).float()
    to_stored = np.linalg.inv(matrix)
    return torch.from_numpy(to_stored * std).float(), torch.from_numpy(mean - offset @ to_stored * std).float()


def _phi_s(calibration: Calibration, kind: str) -> tuple[Tensor, Tensor]:
    if kind not in calibration.covariance:
        raise CacheError(f"standardization phi-s needs the covariance of {kind} tokens, which the calibration lacks")
    std = np.maximum(calibration.std[kind], STD_GUARD)
    eigenvalues, axes = principal(calibration.covariance[kind].astype(np.float64) * np.outer(std, std))
    spread = hadamard(len(std), torch.device("cpu")).double().numpy()
    matrix = std[:, None] * (axes @ spread.T) / np.sqrt(max(eigenvalues.mean(), STD_GUARD**2))
    return torch.from_numpy(matrix).float(), torch.zeros(len(std))


def _own_values(calibration: Calibration, kind: str) -> tuple[Tensor, Tensor]:
    std = np.maximum(calibration.std[kind], STD_GUARD)
    return torch.from_numpy(np.diag(std)).float(), torch.from_numpy(calibration.mean[kind]).float()


STANDARDIZATIONS: dict[str, Callable[[Calibration, str], tuple[Tensor, Tensor] | None]] = {
    "channel": lambda *_: None,
    "phi-s": _phi_s,
    "none": _own_values,
}


class Scales:
    """A teacher's stored tokens in any standardization, each map computed and uploaded once."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        self._maps: dict[tuple[str, str, torch.device], tuple[Tensor, Tensor] | None] = {}

    def __call__(self, tokens: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
        """Stored values by kind, (..., D), standardized by `name` on their device. CacheError as in `affine`."""
        if name == "none":
            return self._calibration.destandardize(tokens)
        found = dict(tokens)
        for kind, x in tokens.items():
            own = self._map(kind, name, x.device)
            found[kind] = x if own is None else x @ own[0] + own[1]
        return found

    def _map(self, kind: str, name: str, device: torch.device) -> tuple[Tensor, Tensor] | None:
        if (kind, name, device) not in self._maps:
            own = affine(self._calibration, kind, name)
            self._maps[kind, name, device] = None if own is None else (own[0].to(device), own[1].to(device))
        return self._maps[kind, name, device]
