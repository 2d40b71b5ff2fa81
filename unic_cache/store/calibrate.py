"""Calibration: the mean and std of each channel of each token type, made once for a teacher and shared by all.

    standardized = (x - mean) / max(std, 1e-6)          std unbiased, after UNIC's feature standardization

UNIC follows the last batches by a moving average; a cache can afford the statistics of a fixed sample, and must: its
features would otherwise not be one data set. Everything is float64 on the CPU in a fixed order, so the bytes depend on
nothing but the tokens.

Letters: N tokens, B images, T patch tokens, D channels.
"""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from unic_cache.errors import CacheError
from unic_cache.store.codec import FeatureCodec

Floats = npt.NDArray[np.float64]
STD_GUARD = 1e-6
STD_FLOOR = 0.01  # of the median channel: a channel that hardly moved in the sample may move elsewhere
HELD_OUT = 5  # every fifth image measures fidelity and is not part of the statistics
HELD_OUT_TOKENS = 16  # patch tokens kept of a held-out image


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

    def std(self) -> Floats:
        """The unbiased standard deviation of each channel, at least a hundredth of the median channel's.

        UNIC guards by 1e-6 alone; but its statistics follow all the data, and a sample's may hold a channel that rests
        at zero, whose first stir would then count a million times.
        """
        std = np.sqrt(self.squares / max(self.count - 1, 1))
        return np.asarray(np.maximum(std, STD_FLOOR * np.median(std)))


@dataclass(frozen=True)
class Calibration:
    """mean and std of each token type ("cls", "patch"), float64 (D,), and the codec's fidelity where it was measured.

    Fidelity is the mean cosine between held-out standardized tokens and what the codec gives back.
    """

    mean: Mapping[str, Floats]
    std: Mapping[str, Floats]
    fidelity: Mapping[str, float]

    def standardize(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(x - mean) / max(std, 1e-6) of float32 tokens, on their device."""
        return {kind: (x - self._tensor(self.mean, kind, x)) / self._scale(kind, x) for kind, x in features.items()}

    def destandardize(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `standardize`: the teacher's own values."""
        return {kind: x * self._scale(kind, x) + self._tensor(self.mean, kind, x) for kind, x in features.items()}

    def to_bytes(self) -> bytes:
        """An .npz whose bytes depend on the values alone (no time, no compression level)."""
        arrays: dict[str, npt.ArrayLike] = {f"{kind}_mean": self.mean[kind] for kind in self.mean}
        arrays |= {f"{kind}_std": self.std[kind] for kind in self.std}
        arrays |= {f"{kind}_fidelity": np.float64(self.fidelity[kind]) for kind in self.fidelity}
        return save_npz(arrays)

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Calibration":
        """What `to_bytes` wrote. CacheError naming `where` when it is anything else."""
        arrays = load_npz(data, where)
        try:
            kinds = [name.removesuffix("_mean") for name in arrays if name.endswith("_mean")]
            found = cls(
                {kind: np.asarray(arrays[f"{kind}_mean"], np.float64) for kind in kinds},
                {kind: np.asarray(arrays[f"{kind}_std"], np.float64) for kind in kinds},
                {
                    kind: float(np.asarray(arrays[f"{kind}_fidelity"], np.float64))
                    for kind in kinds
                    if f"{kind}_fidelity" in arrays
                },
            )
        except (KeyError, ValueError, TypeError) as error:
            raise CacheError(f"{where}: not a calibration ({error})") from error
        for kind in kinds:
            mean, std = found.mean[kind], found.std[kind]
            if mean.ndim != 1 or mean.shape != std.shape or not np.isfinite([mean, std]).all():
                raise CacheError(f"{where}: the {kind} statistics are not finite vectors of one length")
        return found

    def _scale(self, kind: str, like: Tensor) -> Tensor:
        return self._tensor(self.std, kind, like).clamp(min=STD_GUARD)

    @staticmethod
    def _tensor(values: Mapping[str, Floats], kind: str, like: Tensor) -> Tensor:
        return torch.from_numpy(values[kind]).to(device=like.device, dtype=like.dtype)


class Calibrator:
    """Collects a teacher's tokens batch by batch, then gives the calibration and the held-out fidelity of a codec."""

    def __init__(self) -> None:
        self._moments: dict[str, Moments] = {}
        self._held_out: dict[str, list[Tensor]] = {}
        self.images = 0

    def update(self, features: Mapping[str, Tensor]) -> None:
        """Add a batch {"cls": (B, D), "patch": (B, T, D)} of a teacher's own float32 values."""
        batch = len(next(iter(features.values())))
        held_out = (torch.arange(self.images, self.images + batch) % HELD_OUT) == HELD_OUT - 1
        self.images += batch
        with threadpool_limits(1):
            for kind, values in features.items():
                tokens = values.detach().cpu().reshape(batch, -1, values.shape[-1])
                moments = self._moments.setdefault(kind, Moments(tokens.shape[-1]))
                if not held_out.all():
                    moments.update(tokens[~held_out].flatten(0, 1).numpy())
                every = max(tokens.shape[1] // HELD_OUT_TOKENS, 1)
                self._held_out.setdefault(kind, []).append(tokens[held_out][:, ::every])

    def calibration(self, codec: FeatureCodec) -> Calibration:
        """The statistics of all images but every fifth, and the codec's fidelity on those."""
        mean = {kind: moments.mean for kind, moments in self._moments.items()}
        std = {kind: moments.std() for kind, moments in self._moments.items()}
        calibration = Calibration(mean, std, {})
        exact = calibration.standardize({kind: torch.cat(values) for kind, values in self._held_out.items()})
        if "cls" in exact:
            exact["cls"] = exact["cls"].squeeze(1)
        decoded = codec.decode(codec.encode(exact))
        fidelity = {
            kind: float(torch.cosine_similarity(decoded[kind].double(), values.double(), dim=-1).mean())
            for kind, values in exact.items()
            if len(values)
        }
        return Calibration(mean, std, fidelity)


def save_npz(arrays: Mapping[str, npt.ArrayLike]) -> bytes:
    """An uncompressed .npz with fixed times: equal arrays give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(arrays[name], order="C"), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), member.getvalue())
    return buffer.getvalue()


def load_npz(data: bytes, where: str, limit: int = 2**30) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays of an .npz without pickle; CacheError naming `where` if it is broken or over `limit` bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > limit:
                raise CacheError(f"{where}: unpacks to more than {limit} bytes; refused")
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise CacheError(f"{where}: holds compressed members; refused")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except CacheError:
        raise
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError, MemoryError) as error:
        raise CacheError(f"{where}: not a readable .npz ({error})") from error
