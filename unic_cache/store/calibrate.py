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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from unic_cache.errors import CacheError
from unic_cache.store.codecs.codec import FeatureCodec, Features
from unic_cache.store.codecs.fit import BandMoments, fit_klt
from unic_cache.store.codecs.klt import Klt
from unic_cache.store.moments import Covariance, Floats, Moments, SomeImages, State, below, part

STD_GUARD = 1e-6
DEFAULT_QUALITY = 0.99
AT_ONCE = 32  # images that are encoded together to measure fidelity
KINDS = ("cls", "patch")
HELD_OUT = 5  # every fifth image measures fidelity and is not part of the statistics
COVARIANCE_TOKENS = 16  # of each image, evenly: they are enough for it, and all would cost minutes
FIT_IMAGES, HELD_OUT_IMAGES = 384, 128  # of which all tokens are remembered, at most


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
        if not features.fitted:
            return FeatureCodec(features)
        return FeatureCodec(features, Klt.from_arrays(self.klt, features.whole_grid, features.tokens))

    def _scale(self, kind: str, like: Tensor) -> Tensor:
        return self._tensor(self.std, kind, like).clamp(min=STD_GUARD)

    @staticmethod
    def _tensor(values: Mapping[str, Floats], kind: str, like: Tensor) -> Tensor:
        return torch.from_numpy(values[kind]).to(device=like.device, dtype=like.dtype)


class CodecSample:
    """Whole images of a teacher's tokens: most to fit a codec to, the others to measure it by."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self._bands = BandMoments(features.whole_grid, features.tokens) if features.fitted else None
        self._fit = SomeImages(FIT_IMAGES)
        self._held_out: dict[str, SomeImages] = {}

    def update(self, tokens: Mapping[str, Tensor], held_out_B: Tensor) -> None:
        """Add a batch {"cls": (B, 1, D), "patch": (B, T, D)} on the CPU, T the tokens that are kept."""
        for kind, values in tokens.items():
            self._held_out.setdefault(kind, SomeImages(HELD_OUT_IMAGES)).offer(values[held_out_B])
            if kind == "patch" and self._bands is not None and not held_out_B.all():
                self._fit.offer(values[~held_out_B])
                self._bands.update(values[~held_out_B])

    def state(self) -> State:
        """What `restore` takes."""
        state: State = {}
        for kind, found in self._held_out.items():
            state |= below(f"held_out/{kind}", found.state())
        if self._bands is not None and self._bands.begun:
            state |= below("fit", self._fit.state()) | below("bands", self._bands.state())
        return state

    def restore(self, state: State) -> None:
        """Go on from there."""
        for kind in sorted({name.split("/")[1] for name in state if name.startswith("held_out/")}, key=KINDS.index):
            self._held_out[kind] = SomeImages(HELD_OUT_IMAGES)
            self._held_out[kind].restore(part(f"held_out/{kind}", state))
        if self._bands is not None and part("bands", state):
            self._fit.restore(part("fit", state))
            self._bands.restore(part("bands", state))

    def calibration(self, known: Calibration) -> Calibration:
        """`known`, by which the images are standardized, with the codec fitted to them and its held-out fidelity."""
        exact = known.standardize({kind: found.stacked() for kind, found in self._held_out.items()})
        if "cls" in exact:
            exact["cls"] = exact["cls"].squeeze(1)
        features = self._features
        if self._bands is not None:
            fit = known.standardize({"patch": self._fit.stacked()})["patch"]
            axes = self._bands.axes(known.mean["patch"], known.std["patch"])
            klt = fit_klt(axes, fit, exact["patch"], features.whole_grid, features.quality or DEFAULT_QUALITY)
            known = dataclasses.replace(known, klt=klt.to_arrays())
        return dataclasses.replace(known, fidelity=fidelity(known.codec(features), exact))


class Calibrator:
    """Collects a teacher's tokens batch by batch, then gives the calibration and the held-out fidelity of a codec."""

    def __init__(self, features: Features) -> None:
        self._sample = CodecSample(features)
        self._moments: dict[str, Moments] = {}
        self._covariance: dict[str, Covariance] = {}
        self.images = 0

    def update(self, features: Mapping[str, Tensor], kept_BN: Tensor | None = None) -> None:
        """Add a batch {"cls": (B, D), "patch": (B, T, D)} of a teacher's own float32 values.

        The statistics are of all tokens; the codec is fitted to those at `kept_BN`, where it will keep no others.
        """
        held_out_B = held_out(self.images, len(next(iter(features.values()))))
        self.images += len(held_out_B)
        batch = {kind: x.detach().cpu().reshape(len(held_out_B), -1, x.shape[-1]) for kind, x in features.items()}
        with threadpool_limits(1):
            for kind, tokens in batch.items() if not held_out_B.all() else ():
                every = max(tokens.shape[1] // COVARIANCE_TOKENS, 1)
                seen = tokens[~held_out_B]
                self._moments.setdefault(kind, Moments(tokens.shape[-1])).update(seen.flatten(0, 1).numpy())
                self._covariance.setdefault(kind, Covariance()).update(seen[:, ::every].flatten(0, 1).numpy())
            if kept_BN is not None:
                batch["patch"] = batch["patch"].take_along_dim(kept_BN[..., None], dim=1)
            self._sample.update(batch, held_out_B)

    def state(self) -> State:
        """All that was counted, so that `restore` goes on as if there had been no end."""
        state: State = {"images": np.asarray(self.images), **below("sample", self._sample.state())}
        for kind in self._moments:
            state |= below(f"moments/{kind}", self._moments[kind].state())
            state |= below(f"covariance/{kind}", self._covariance[kind].state())
        return state

    def restore(self, state: State) -> None:
        """Go on from there."""
        self.images = int(state["images"])
        self._sample.restore(part("sample", state))
        for kind in sorted({name.split("/")[1] for name in state if name.startswith("moments/")}, key=KINDS.index):
            mean = state[f"moments/{kind}/mean"]
            self._moments[kind], self._covariance[kind] = Moments(len(mean)), Covariance()
            self._moments[kind].restore(part(f"moments/{kind}", state))
            self._covariance[kind].restore(part(f"covariance/{kind}", state))

    def calibration(self) -> Calibration:
        """The statistics of all images but every fifth, the codec fitted to them, and its fidelity on the fifth.

        CacheError on under five images.
        """
        if self.images < HELD_OUT:
            raise CacheError(
                f"{self.images} views are too few for a calibration: {HELD_OUT} are needed at least; extract from "
                "more images, or from ones that can be decoded, or say more --views"
            )
        mean = {kind: moments.mean for kind, moments in self._moments.items()}
        std = {kind: np.maximum(moments.std(), STD_GUARD) for kind, moments in self._moments.items()}
        covariance = {kind: found.of_standardized(std[kind]) for kind, found in self._covariance.items()}
        return self._sample.calibration(Calibration(mean, std, {}, covariance))


def refit(known: Calibration, features: Features, batches: Iterable[Mapping[str, Tensor]]) -> Calibration:
    """`known` with the codec of `features` fitted to tokens that are standardized by it, and measured by every fifth.

    The batches are {"cls": (B, D), "patch": (B, T, D)}, T the tokens that are kept. CacheError on under five images.
    """
    sample, images = CodecSample(features), 0
    with threadpool_limits(1):
        for batch in batches:
            held_out_B = held_out(images, len(next(iter(batch.values()))))
            images += len(held_out_B)
            tokens = {kind: x.cpu().reshape(len(x), -1, x.shape[-1]) for kind, x in batch.items()}
            sample.update(tokens, held_out_B)
    if images < HELD_OUT:
        raise CacheError(f"{images} images are too few to fit a codec to: {HELD_OUT} are needed at least")
    one = {kind: np.ones_like(std) for kind, std in known.std.items()}
    found = sample.calibration(Calibration({kind: np.zeros_like(std) for kind, std in one.items()}, one, {}))
    return dataclasses.replace(known, klt=found.klt, fidelity=found.fidelity)


def held_out(images: int, batch: int) -> Tensor:
    """(B,): which of the images that come after the first `images` measure fidelity."""
    return torch.arange(images, images + batch) % HELD_OUT == HELD_OUT - 1


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
