"""Calibration: mean and std of each channel of each token kind, computed once per teacher and used by all.

    standardized = (x - mean) / max(std, 1e-6)          std unbiased, after UNIC's feature standardization

UNIC tracks the last batches by a moving average. A cache uses the statistics of a fixed sample, so that all its
features are standardized alike. Sums are float64 on the CPU in a fixed order: equal tokens give equal bytes.

The covariance allows other standardizations when features are read, and has the axes of summary tokens. Codec `klt` is
fitted here, to whole images of the sample.

Letters: N tokens, B images, T grid tokens, D channels.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from unic_cache.config import DEFAULT_QUALITY
from unic_cache.errors import CacheError
from unic_cache.store.codecs.codec import FeatureCodec, Features
from unic_cache.store.codecs.fit import BandMoments, axes_of, fit_klt, nothing
from unic_cache.store.codecs.klt import prefix
from unic_cache.store.moments import Counting, Covariance, Floats, Moments, SomeImages, State
from unic_cache.store.npz import load_npz, save_npz
from unic_cache.store.sampling import at_positions

STD_GUARD = 1e-6
AT_ONCE = 32  # images encoded together to measure fidelity
HELD_OUT = 5  # every fifth image measures fidelity and does not enter the statistics
COVARIANCE_TOKENS = 16  # of each image, evenly spaced; all of them would take minutes and change little
FIT_IMAGES, HELD_OUT_IMAGES = 384, 128  # remembered whole, at most


@dataclass(frozen=True)
class Calibration:
    """mean and std of each token kind, float64 (D,), and what was measured with them.

    Fidelity is the mean cosine between held-out standardized tokens and their decoded codes. `covariance` is that of
    the standardized tokens, float32 (D, D). `klt` holds the fitted codec's arrays, and is empty for other codecs.
    """

    mean: Mapping[str, Floats]
    std: Mapping[str, Floats]
    fidelity: Mapping[str, float]
    covariance: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    klt: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)

    def standardize(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(x - mean) / max(std, 1e-6) of float32 tokens, on their device."""
        return {kind: (x - mean) / std for kind, x in features.items() for mean, std in [self._tables(kind, x)]}

    def destandardize(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `standardize`: the teacher's own values."""
        return {kind: x * std + mean for kind, x in features.items() for mean, std in [self._tables(kind, x)]}

    def to_bytes(self) -> bytes:
        """An .npz whose bytes depend on the values alone."""
        arrays: dict[str, npt.ArrayLike] = dict(self.klt)
        for name in ("mean", "std", "fidelity", "covariance"):
            arrays |= {f"{kind}_{name}": np.asarray(values) for kind, values in getattr(self, name).items()}
        return save_npz(arrays)

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Calibration":
        """The calibration that `to_bytes` wrote. CacheError naming `where` for anything else."""
        arrays = load_npz(data, where)
        try:
            kinds = [name.removesuffix("_mean") for name in arrays if name.endswith("_mean")]
            found = cls(
                {kind: np.asarray(arrays[f"{kind}_mean"], np.float64) for kind in kinds},
                {kind: np.asarray(arrays[f"{kind}_std"], np.float64) for kind in kinds},
                {kind: float(np.asarray(arrays[at], float)) for kind in kinds if (at := f"{kind}_fidelity") in arrays},
                {kind: np.asarray(arrays[at], np.float32) for kind in kinds if (at := f"{kind}_covariance") in arrays},
                {name: values for name, values in arrays.items() if "klt_" in name},
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
        """The codec of these features. CacheError if it is `klt` and was not fitted, or to other tokens."""
        return FeatureCodec(features, self.klt)

    def _tables(self, kind: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """mean and max(std, 1e-6) of a kind, uploaded once per device and dtype."""
        place = kind, like.device, like.dtype
        if place not in self._made:
            mean, std = (torch.from_numpy(x[kind]).to(like.device, like.dtype) for x in (self.mean, self.std))
            self._made[place] = mean, std.clamp(min=STD_GUARD)
        return self._made[place]

    @cached_property
    def _made(self) -> dict[tuple[str, torch.device, torch.dtype], tuple[Tensor, Tensor]]:
        return {}


def to_teacher(fidelity: Mapping[str, float], spec: Mapping[str, Any]) -> dict[str, float]:
    """Estimated cosine to the teacher: the product over all recodings of a member, as if errors were independent."""
    found = dict(fidelity)
    came = spec["provenance"].get("recoded_from")
    while came:
        found = {kind: value * came["fidelity"].get(kind, 1.0) for kind, value in found.items()}
        came = came.get("recoded_from")
    return found


class CodecSample:
    """Whole images of a teacher's tokens: every fifth to measure a codec by, the others to fit it to."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self._held_out = {kind: SomeImages(HELD_OUT_IMAGES) for kind in features.kinds}
        self._fit = {kind: SomeImages(FIT_IMAGES) for kind in features.fitted}
        grids = [kind for kind in features.fitted if features.kinds[kind].grid]
        self._bands = {kind: BandMoments(features.stored_grid, features.tokens) for kind in grids}

    def update(self, tokens: Mapping[str, Tensor], held_out_B: Tensor) -> None:
        """Add a batch on the CPU: by kind (B, T, D) with T the stored tokens, 1 for a summary token."""
        for kind, values in tokens.items():
            self._held_out[kind].offer(values[held_out_B])
            if kind in self._fit and not held_out_B.all():
                self._fit[kind].offer(values[~held_out_B])
                if kind in self._bands:
                    self._bands[kind].update(values[~held_out_B])

    def parts(self) -> dict[str, Counting]:
        """All sums, by the names under which a stopped calibration stores them."""
        parts: dict[str, Counting] = {f"held_out/{kind}": found for kind, found in self._held_out.items()}
        parts |= {f"{prefix(kind)}fit": found for kind, found in self._fit.items()}
        return parts | {f"{prefix(kind)}bands": found for kind, found in self._bands.items()}

    def calibration(self, known: Calibration, check: Callable[[], object] = nothing) -> Calibration:
        """`known`, which standardizes the images, with the codec fitted to them and its held-out fidelity.

        The axes of a summary token are those of its covariance, which has seen more images.
        """
        features = self._features
        exact = known.standardize({kind: found.stacked() for kind, found in self._held_out.items()})
        klt: dict[str, npt.NDArray[np.generic]] = {}
        for kind, asked in features.fitted.items():
            fit_BTD = known.standardize({kind: self._fit[kind].stacked()})[kind]
            if kind in self._bands:
                axes, grid = self._bands[kind].axes(known.mean[kind], known.std[kind]), features.stored_grid
            else:
                axes, grid = axes_of(known.covariance[kind]), None
            summary = kind not in self._bands
            codec = fit_klt(axes, fit_BTD, exact[kind], grid, asked or DEFAULT_QUALITY, summary, check)
            klt |= {f"{prefix(kind)}{name}": values for name, values in codec.to_arrays().items()}
        known = dataclasses.replace(known, klt=klt)
        exact = {kind: x if features.kinds[kind].grid else x.squeeze(1) for kind, x in exact.items()}
        return dataclasses.replace(known, fidelity=fidelity(known.codec(features), exact))


class Calibrator:
    """Collects a teacher's tokens batch by batch, then computes the calibration and the codec's held-out fidelity."""

    def __init__(self, features: Features) -> None:
        self._sample = CodecSample(features)
        self._moments = {name: Moments(kind.channels) for name, kind in features.kinds.items()}
        self._covariance = {name: Covariance() for name in features.kinds}
        self.images = 0

    def update(self, features: Mapping[str, Tensor], kept_BN: Tensor | None = None) -> None:
        """Add a batch of a teacher's own float32 tokens by kind, (B, D) or (B, T, D).

        The statistics use all tokens. The codec is fitted to those at `kept_BN`, if it will store no others.
        """
        held_out_B = held_out(self.images, len(next(iter(features.values()))))
        self.images += len(held_out_B)
        features = {kind: x.detach().cpu() for kind, x in features.items()}
        with threadpool_limits(1):
            for kind, tokens in per_token(features).items() if not held_out_B.all() else ():
                every = max(tokens.shape[1] // COVARIANCE_TOKENS, 1)
                seen = tokens[~held_out_B]
                self._moments[kind].update(seen.flatten(0, 1).numpy())
                self._covariance[kind].update(seen[:, ::every].flatten(0, 1).numpy())
            self._sample.update(per_token(at_positions(features, kept_BN)), held_out_B)

    def state(self) -> State:
        """All that was counted, so that `restore` continues as if nothing had stopped."""
        state: State = {"images": np.asarray(self.images)}
        for name, part in self._parts().items() if self.images else ():
            state |= {f"{name}/{key}": values for key, values in part.state().items()}
        return state

    def restore(self, state: State) -> None:
        """Continue from a `state`. KeyError if it lacks something."""
        self.images = int(state["images"])
        for name, part in self._parts().items() if self.images else ():
            part.restore({key.removeprefix(f"{name}/"): x for key, x in state.items() if key.startswith(f"{name}/")})

    def _parts(self) -> dict[str, Counting]:
        parts = {f"sample/{name}": part for name, part in self._sample.parts().items()}
        for kind, moments in self._moments.items():
            parts |= {f"moments/{kind}": moments, f"covariance/{kind}": self._covariance[kind]}
        return parts

    def calibration(self, check: Callable[[], object] = nothing) -> Calibration:
        """Statistics of all images but every fifth, the codec fitted to them, and its fidelity on the fifth.

        `check` is called every few seconds at least; its error ends the work. CacheError for fewer than five images.
        """
        if self.images < HELD_OUT:
            raise CacheError(
                f"{self.images} views are too few for a calibration: at least {HELD_OUT} are needed; extract from "
                "more images, or from ones that can be decoded, or with more --views"
            )
        mean = {kind: moments.mean for kind, moments in self._moments.items()}
        std = {kind: np.maximum(moments.std(), STD_GUARD) for kind, moments in self._moments.items()}
        covariance = {kind: found.of_standardized(std[kind]) for kind, found in self._covariance.items()}
        return self._sample.calibration(Calibration(mean, std, {}, covariance), check)


def refit(known: Calibration, features: Features, batches: Iterable[Mapping[str, Tensor]]) -> Calibration:
    """`known` with the codec of `features` fitted to standardized tokens, and its fidelity on every fifth image.

    Each batch holds the stored tokens by kind, (B, D) or (B, T, D). CacheError for fewer than five images.
    """
    sample, images = CodecSample(features), 0
    with threadpool_limits(1):
        for batch in batches:
            held_out_B = held_out(images, len(next(iter(batch.values()))))
            images += len(held_out_B)
            sample.update(per_token({kind: x.cpu() for kind, x in batch.items()}), held_out_B)
    if images < HELD_OUT:
        raise CacheError(f"{images} images are too few to fit a codec to: at least {HELD_OUT} are needed")
    one = {kind: np.ones_like(std) for kind, std in known.std.items()}
    zero = {kind: np.zeros_like(std) for kind, std in one.items()}
    found = sample.calibration(Calibration(zero, one, {}, known.covariance))
    return dataclasses.replace(known, klt=found.klt, fidelity=found.fidelity)


def held_out(images: int, batch: int) -> Tensor:
    """(B,) flags: which of the next `batch` images, after the first `images`, measure fidelity."""
    return torch.arange(images, images + batch) % HELD_OUT == HELD_OUT - 1


def per_token(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Summary tokens (B, D) as (B, 1, D); grid tokens unchanged."""
    return {kind: x.unsqueeze(1) if x.ndim == 2 else x for kind, x in features.items()}


def cosine_of_images(decoded: Tensor, exact: Tensor) -> Tensor:
    """(B,) the mean cosine of each image's tokens, of both (B, D) or (B, T, D)."""
    return torch.cosine_similarity(decoded, exact, dim=-1).reshape(len(exact), -1).mean(dim=1)


def fidelity(codec: FeatureCodec, exact: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean cosine of each kind between standardized tokens and their decoded codes."""
    sums = dict.fromkeys(exact, 0.0)
    images = len(next(iter(exact.values())))
    for start in range(0, images, AT_ONCE):
        batch = {kind: values[start : start + AT_ONCE] for kind, values in exact.items()}
        decoded = codec.decode(codec.encode(batch).arrays)
        for kind, values in batch.items():
            sums[kind] += float(cosine_of_images(decoded[kind].double(), values.double()).sum())
    return {kind: total / images for kind, total in sums.items()}
