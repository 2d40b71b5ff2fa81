"""Codecs: standardized tokens to the arrays that are kept, and back. Both directions are torch, on any device.

| codec  | patch tokens are kept as                                  | error                                |
|--------|-----------------------------------------------------------|--------------------------------------|
| `klt`  | decorrelated, one step, packed and compressed: see `klt`  | what `quality` allows in mean cosine |
| `f16`  | the standardized value in float16                         | 2**-11 of the value                  |
| `int8` | round(x / s) in int8 and s = max|x| / 127 of each token, float16 | s / 2 of a value, cosine > 0.9995 |
| `int4` | x rotated, floor(y / s) in [-8, 7] and s = 0.3352 rms(y) of each token, float16 | cosine about 0.994 |

CLS tokens are always `f16`: they are under 1 % of the bytes, but for `klt`. `klt` is fitted to the teacher by its
calibration; the others need nothing, and have no byte codec behind them, so that any row can be read alone.

Letters: B images, T patch tokens, D channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unic_cache.config import FITTED
from unic_cache.errors import CacheError
from unic_cache.store.codecs.klt import Grid, Klt
from unic_cache.store.codecs.rotation import hadamard
from unic_cache.store.layout import ArraySpec
from unic_cache.tokens import TokenKind

HALF_MAX = 65504.0


class Codec(Protocol):
    """Patch tokens (B, T, D) to named arrays of B rows, and back."""

    def arrays(self, tokens: int, channels: int) -> tuple[ArraySpec, ...]:
        """What is kept of one image's (T, D) patch tokens."""
        ...

    def encode(self, patch_BTD: Tensor) -> dict[str, Tensor]:
        """Standardized float32 tokens to the arrays of `arrays`, on the tokens' device.

        A codec that can clip adds `clipped` (B,): how many values of each image it had to change by more than a step.
        """
        ...

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The arrays back to standardized float32 tokens, on the arrays' device."""
        ...


class F16:
    """Standardized values in float16; what lies beyond float16's range is clamped to it."""

    def arrays(self, tokens: int, channels: int) -> tuple[ArraySpec, ...]:
        """(T, D) float16."""
        return (ArraySpec("patch", (tokens, channels), "float16"),)

    def encode(self, patch_BTD: Tensor) -> dict[str, Tensor]:
        """Round to the nearest float16."""
        return {"patch": half(patch_BTD)}

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Exact."""
        return parts["patch"].float()


class Int8:
    """Codes in [-127, 127] and one float16 scale a token, symmetric around zero."""

    def arrays(self, tokens: int, channels: int) -> tuple[ArraySpec, ...]:
        """(T, D) int8 codes and (T,) float16 scales."""
        return ArraySpec("patch", (tokens, channels), "int8"), ArraySpec("patch_scale", (tokens,), "float16")

    def encode(self, patch_BTD: Tensor) -> dict[str, Tensor]:
        """The scale is rounded to float16 first, so that the codes are nearest for the scale that is kept."""
        scale_BT = half(patch_BTD.abs().amax(dim=-1) / 127).clamp(min=torch.finfo(torch.float16).tiny)
        codes_BTD = (patch_BTD / scale_BT.float()[..., None]).round().clamp(-127, 127).to(torch.int8)
        return {"patch": codes_BTD, "patch_scale": scale_BT}

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Codes times scale."""
        return parts["patch"].float() * parts["patch_scale"].float()[..., None]


class Int4:
    """Rotated tokens on 16 levels, (code + 0.5) s with code in [-8, 7], two codes a byte, one float16 scale a token.

    The rotation (see `rotation.hadamard`) makes a token's values nearly Gaussian, and 0.3352 of their rms is the best
    step of a uniform 16-level quantizer for a Gaussian (Max 1960). Byte i holds channel 2 i in its low half and channel
    2 i + 1 in its high half, each as code + 8.
    """

    step = 0.3352

    def arrays(self, tokens: int, channels: int) -> tuple[ArraySpec, ...]:
        """(T, D / 2) uint8 pairs of codes and (T,) float16 scales. CacheError where D is odd."""
        if channels % 2:
            raise CacheError(f"codec int4 keeps two channels a byte, and {channels} channels are odd; use int8")
        return ArraySpec("patch", (tokens, channels // 2), "uint8"), ArraySpec("patch_scale", (tokens,), "float16")

    def encode(self, patch_BTD: Tensor) -> dict[str, Tensor]:
        """Rotate, scale, floor, pack."""
        rotated_BTD = patch_BTD @ hadamard(patch_BTD.shape[-1], patch_BTD.device)
        rms_BT = rotated_BTD.square().mean(dim=-1).sqrt()
        scale_BT = half(self.step * rms_BT).clamp(min=torch.finfo(torch.float16).tiny)
        codes_BTD = (rotated_BTD / scale_BT.float()[..., None]).floor().clamp(-8, 7).add(8).to(torch.uint8)
        return {"patch": codes_BTD[..., 0::2] | (codes_BTD[..., 1::2] << 4), "patch_scale": scale_BT}

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Unpack, scale, rotate back: one matrix product."""
        pairs = parts["patch"]
        codes_BTD = torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(-2)
        rotated_BTD = (codes_BTD.float() - 7.5) * parts["patch_scale"].float()[..., None]
        return rotated_BTD @ hadamard(rotated_BTD.shape[-1], pairs.device).T


FIXED_CODECS: dict[str, Codec] = {"f16": F16(), "int8": Int8(), "int4": Int4()}


@dataclass(frozen=True)
class Features:
    """What is kept of an image, as spec.json says it: the codec's name, and what tokens there are.

    `grid` is that of all the teacher's patch tokens; `sampled` is how many of them are kept, None for all.
    """

    codec: str
    cls_dim: int | None
    grid: Grid
    patch_dim: int | None
    sampled: int | None = None
    quality: float | None = None  # the mean cosine that was asked of klt

    @property
    def kinds(self) -> dict[str, TokenKind]:
        """The kinds of tokens, summary tokens first."""
        found = {} if self.cls_dim is None else {"cls": TokenKind(self.cls_dim)}
        return found if self.patch_dim is None else {**found, "patch": TokenKind(self.patch_dim, self.grid)}

    @property
    def tokens(self) -> int:
        """T, the patch tokens that are kept."""
        return self.sampled or self.grid[0] * self.grid[1]

    @property
    def fitted(self) -> bool:
        """Whether the patch codec is one that a calibration brings; without patch tokens there is none."""
        return self.codec == FITTED and self.patch_dim is not None

    @property
    def whole_grid(self) -> Grid | None:
        """The grid of the kept tokens, None where they are a sample of one."""
        return None if self.sampled else self.grid


class FeatureCodec:
    """All that a teacher says of an image, CLS (D,) and patches (T, Dp), under one codec; either may be missing.

    `patch` is the fitted codec where the features' codec is one that is fitted.
    """

    def __init__(self, features: Features, patch: Codec | None = None) -> None:
        self.features = features
        self.arrays: tuple[ArraySpec, ...] = ()
        self._patch = patch
        if features.cls_dim is not None:
            self.arrays += (ArraySpec("cls", (features.cls_dim,), "float16"),)
        if features.patch_dim is not None:
            self._patch = patch or FIXED_CODECS[features.codec]
            self.arrays += self._patch.arrays(features.tokens, features.patch_dim)

    @property
    def step(self) -> float:
        """The distance of two codes where it is one for all tokens, 0 elsewhere."""
        return self._patch.step if isinstance(self._patch, Klt) else 0.0

    @property
    def cls_dim(self) -> int | None:
        """Channels of the CLS token."""
        return self.features.cls_dim

    @property
    def patch_dim(self) -> int | None:
        """Channels of a patch token."""
        return self.features.patch_dim

    def encode(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Standardized {"cls": (B, D), "patch": (B, T, Dp)} to arrays of B rows, and `clipped` as in `Codec.encode`."""
        parts = {"cls": half(features["cls"])} if self.cls_dim is not None else {}
        if self._patch is not None:
            parts |= self._patch.encode(features["patch"])
        return parts

    def decode(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Arrays of B rows to standardized float32 {"cls": (B, D), "patch": (B, T, Dp)}."""
        features = {"cls": parts["cls"].float()} if self.cls_dim is not None else {}
        if self._patch is not None:
            features["patch"] = self._patch.decode(parts)
        return features


def half(values: Tensor) -> Tensor:
    """The nearest float16, clamped to its range."""
    return values.clamp(-HALF_MAX, HALF_MAX).to(torch.float16)
