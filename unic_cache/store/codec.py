"""Codecs: standardized tokens to the arrays that are kept, and back. Both directions are torch, on any device.

| codec  | patch tokens are kept as                                  | error                                |
|--------|-----------------------------------------------------------|--------------------------------------|
| `f16`  | the standardized value in float16                         | 2**-11 of the value                  |
| `int8` | round(x / s) in int8 and s = max|x| / 127 of each token, float16 | s / 2 of a value, cosine > 0.9995 |

CLS tokens are always `f16`: they are under 1 % of the bytes. Neither codec has a byte codec behind it, so any row can
be read alone.

Letters: B images, T patch tokens, D channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unic_cache.store.layout import ArraySpec

HALF_MAX = 65504.0


class Codec(Protocol):
    """Patch tokens (B, T, D) to named arrays of B rows, and back."""

    def arrays(self, tokens: int, channels: int) -> tuple[ArraySpec, ...]:
        """What is kept of one image's (T, D) patch tokens."""
        ...

    def encode(self, patch_BTD: Tensor) -> dict[str, Tensor]:
        """Standardized float32 tokens to the arrays of `arrays`, on the tokens' device."""
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


PATCH_CODECS: dict[str, Codec] = {"f16": F16(), "int8": Int8()}


@dataclass(frozen=True)
class FeatureCodec:
    """All that a teacher says of an image, CLS (D,) and patches (T, Dp), under one codec; either may be missing."""

    name: str
    cls_dim: int | None
    tokens: int
    patch_dim: int | None

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """Every array that is kept, CLS first."""
        cls = () if self.cls_dim is None else (ArraySpec("cls", (self.cls_dim,), "float16"),)
        patch = () if self.patch_dim is None else PATCH_CODECS[self.name].arrays(self.tokens, self.patch_dim)
        return cls + patch

    def encode(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Standardized {"cls": (B, D), "patch": (B, T, Dp)} to arrays of B rows."""
        parts = {"cls": half(features["cls"])} if self.cls_dim is not None else {}
        if self.patch_dim is not None:
            parts |= PATCH_CODECS[self.name].encode(features["patch"])
        return parts

    def decode(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Arrays of B rows to standardized float32 {"cls": (B, D), "patch": (B, T, Dp)}."""
        features = {"cls": parts["cls"].float()} if self.cls_dim is not None else {}
        if self.patch_dim is not None:
            features["patch"] = PATCH_CODECS[self.name].decode(parts)
        return features


def half(values: Tensor) -> Tensor:
    """The nearest float16, clamped to its range."""
    return values.clamp(-HALF_MAX, HALF_MAX).to(torch.float16)
