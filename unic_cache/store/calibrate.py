"""Calibration: the mean and std of each channel of each token type, made once for a teacher and shared by all.

    standardized = (x - mean) / max(std, 1e-6)          std unbiased, after UNIC's feature standardization

UNIC follows the last batches by a moving average; a cache can afford the statistics of a fixed sample, and must: its
features would otherwise not be one data set. Everything is float64 on the CPU in a fixed order, so the bytes depend on
nothing but the tokens.

The covariance lets a reader standardize in another way, and codec `klt` is fitted here, on whole images of the sample.

Letters: N tokens, B images, T patch tokens, D channels.
"""

import dataclasses
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from unic_cache.errors import CacheError
from unic_cache.store.codec import FITTED, FeatureCodec, Features
from unic_cache.store.fit import BandMoments, fit_klt
from unic_cache.store.klt import Klt

Floats = npt.NDArray[np.float64]
STD_GUARD = 1e-6
STD_FLOOR = 0.01  # of the median channel: a channel that hardly moved in the sample may move elsewhere
DEFAULT_QUALITY = 0.99
AT_ONCE = 32  # images that are encoded together to measure fidelity
HELD_OUT = 5  # every fifth image measures fidelity and is not part of the statistics
COVARIANCE_TOKENS = 16  # of each image, evenly: they are enough for it, and all would cost minutes
FIT_IMAGES, HELD_OUT_IMAGES = 384, 128  # of which all tokens are remembered, at most


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

    def of_standardized(self, std: Floats) -> npt.NDArray[np.float32]:
        """(D, D): the covariance of the tokens in units of `std`."""
        centred = self._products - np.outer(self._sum, self._sum) / max(self._count, 1)
        return np.asarray(centred / max(self._count - 1, 1) / np.outer(std, std), np.float32)


class SomeImages:
    """Whole images, at most `room` of them, evenly over all that were offered: every one, then every second, ..."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._every = 1
        self._offered = 0
        self._kept: list[Tensor] = []

    def offer(self, tokens_BTD: Tensor) -> None:
        """Remember those images whose turn it is."""
        for image in tokens_BTD:
            if self._offered % self._every == 0:
                self._kept.append(image.clone())
            self._offered += 1
            if len(self._kept) > self._room:
                self._kept = self._kept[::2]
                self._every *= 2

    def stacked(self, like: "SomeImages") -> Tensor:
        """(B, T, D); those of `like` where there are none."""
        return torch.stack(self._kept or like._kept)


@dataclass(frozen=True)
class Calibration:
    """mean and std of each token type ("cls", "patch"), float64 (D,), and what was found beside them.

    Fidelity is the mean cosine between held-out standardized tokens and what the codec gives back. `covariance` is that
    of the standardized tokens, float32 (D, D). `klt` is the fitted codec's arrays, empty for other codecs.
    """

    mean: Mapping[str, Floats]
    std: Mapping[str, Floats]
    fidelity: Mapping[str, float]
    covariance: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    klt: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)

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
        arrays |= {f"{kind}_covariance": self.covariance[kind] for kind in self.covariance}
        return save_npz({**arrays, **self.klt})

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
                {
                    kind: np.asarray(arrays[f"{kind}_covariance"], np.float32)
                    for kind in kinds
                    if f"{kind}_covariance" in arrays
                },
                {name: values for name, values in arrays.items() if name.startswith("klt_")},
            )
        except (KeyError, ValueError, TypeError) as error:
            raise CacheError(f"{where}: not a calibration ({error})") from error
        for kind in kinds:
            mean, std = found.mean[kind], found.std[kind]
            if mean.ndim != 1 or mean.shape != std.shape or not np.isfinite([mean, std]).all():
                raise CacheError(f"{where}: the {kind} statistics are not finite vectors of one length")
            spread = found.covariance.get(kind)
            if spread is not None and (spread.shape != (len(mean), len(mean)) or not np.isfinite(spread).all()):
                raise CacheError(f"{where}: the {kind} covariance is not a finite matrix of {len(mean)} channels")
        return found

    def codec(self, features: Features) -> FeatureCodec:
        """The codec of the features; `klt` as it was fitted. CacheError where it was not, or to other tokens."""
        if features.codec != FITTED or features.patch_dim is None:
            return FeatureCodec(features)
        return FeatureCodec(features, Klt.from_arrays(self.klt, features.whole_grid, features.tokens))

    def _scale(self, kind: str, like: Tensor) -> Tensor:
        return self._tensor(self.std, kind, like).clamp(min=STD_GUARD)

    @staticmethod
    def _tensor(values: Mapping[str, Floats], kind: str, like: Tensor) -> Tensor:
        return torch.from_numpy(values[kind]).to(device=like.device, dtype=like.dtype)


class Calibrator:
    """Collects a teacher's tokens batch by batch, then gives the calibration and the held-out fidelity of a codec."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self._bands: BandMoments | None = None
        self._moments: dict[str, Moments] = {}
        self._covariance: dict[str, Covariance] = {}
        self._held_out: dict[str, SomeImages] = {}
        self._fit = SomeImages(FIT_IMAGES)
        self.images = 0

    def update(self, features: Mapping[str, Tensor], kept_BN: Tensor | None = None) -> None:
        """Add a batch {"cls": (B, D), "patch": (B, T, D)} of a teacher's own float32 values.

        The statistics are of all tokens; the codec is fitted to those at `kept_BN`, where it will keep no others.
        """
        batch = len(next(iter(features.values())))
        held_out = (torch.arange(self.images, self.images + batch) % HELD_OUT) == HELD_OUT - 1
        self.images += batch
        with threadpool_limits(1):
            for kind, values in features.items():
                tokens = values.detach().cpu().reshape(batch, -1, values.shape[-1])
                moments = self._moments.setdefault(kind, Moments(tokens.shape[-1]))
                covariance = self._covariance.setdefault(kind, Covariance())
                if not held_out.all():
                    every = max(tokens.shape[1] // COVARIANCE_TOKENS, 1)
                    moments.update(tokens[~held_out].flatten(0, 1).numpy())
                    covariance.update(tokens[~held_out][:, ::every].flatten(0, 1).numpy())
                if kind == "patch" and kept_BN is not None:
                    tokens = tokens.take_along_dim(kept_BN[..., None], dim=1)
                self._held_out.setdefault(kind, SomeImages(HELD_OUT_IMAGES)).offer(tokens[held_out])
                if kind == "patch" and self.features.codec == FITTED and not held_out.all():
                    self._fit.offer(tokens[~held_out])
                    self._bands = self._bands or BandMoments(self.features.whole_grid, self.features.tokens)
                    self._bands.update(tokens[~held_out])

    def calibration(self) -> Calibration:
        """The statistics of all images but every fifth, the codec fitted to them, and its fidelity on the fifth."""
        mean = {kind: moments.mean for kind, moments in self._moments.items()}
        std = {kind: moments.std() for kind, moments in self._moments.items()}
        covariance = {kind: found.of_standardized(std[kind]) for kind, found in self._covariance.items()}
        plain = Calibration(mean, std, {}, covariance)
        exact = plain.standardize({kind: found.stacked(self._fit) for kind, found in self._held_out.items()})
        if "cls" in exact:
            exact["cls"] = exact["cls"].squeeze(1)
        features = self.features
        if features.codec == FITTED and features.patch_dim is not None:
            fit = plain.standardize({"patch": self._fit.stacked(self._held_out["patch"])})["patch"]
            assert self._bands is not None
            axes = self._bands.axes(mean["patch"], std["patch"])
            klt = fit_klt(axes, fit, exact["patch"], features.whole_grid, features.quality or DEFAULT_QUALITY)
            plain = dataclasses.replace(plain, klt=klt.to_arrays())
        return dataclasses.replace(plain, fidelity=fidelity(plain.codec(features), exact))


def fidelity(codec: FeatureCodec, exact: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean cosine of each token type between standardized tokens and what the codec gives back."""
    sums = dict.fromkeys(exact, 0.0)
    images = len(next(iter(exact.values())))
    for start in range(0, images, AT_ONCE):
        part = {kind: values[start : start + AT_ONCE] for kind, values in exact.items()}
        decoded = codec.decode(codec.encode(part))
        for kind, values in part.items():
            cosine = torch.cosine_similarity(decoded[kind].double(), values.double(), dim=-1)
            sums[kind] += float(cosine.reshape(len(values), -1).mean(dim=1).sum())
    return {kind: total / images for kind, total in sums.items()}


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
