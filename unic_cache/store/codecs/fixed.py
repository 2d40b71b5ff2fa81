"""Codecs that need no calibration and no byte codec, so that any row can be read alone; and what all codecs share.

Letters: B images, T tokens, D channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unic_cache.errors import CacheError
from unic_cache.store.codecs.rotation import hadamard
from unic_cache.store.layout import ArraySpec
from unic_cache.token_kinds import Grid

HALF_MAX = 65504.0

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Encoded:
    """Arrays of B rows by name, and how many values of each image the codec clipped by more than a step."""

    arrays: dict[str, Tensor]
    clipped_B: Tensor | None = None  # None: the codec does not clip


class Codec(Protocol):
    """Standardized float32 tokens of one kind to arrays of B rows, and back, on the tokens' device.

    The first array has the kind's name; further names begin with it.
    """

    @classmethod
    def from_arrays(cls, found: Mapping[str, Array], grid: Grid | None, tokens: int, coder: str) -> Self:  # noqa: ARG003
        """The codec as a calibration's arrays describe it. CacheError if it needs some and they do not fit."""
        return cls()

    def arrays(self, kind: str, row: tuple[int, ...]) -> tuple[ArraySpec, ...]:
        """What one image's tokens, (T, D) or (D,), become. CacheError if the codec cannot store them."""
        ...

    def encode(self, kind: str, tokens_BTD: Tensor) -> Encoded:
        """The arrays that `arrays` describes."""
        ...

    def decode(self, kind: str, arrays: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `encode`, up to the codec's error."""
        ...


class F16(Codec):
    """Values in float16, clamped to its range. Also for summary tokens, (B, D)."""

    def arrays(self, kind: str, row: tuple[int, ...]) -> tuple[ArraySpec, ...]:
        """(T, D) or (D,) float16."""
        return (ArraySpec(kind, row, "float16"),)

    def encode(self, kind: str, tokens_BTD: Tensor) -> Encoded:
        """Round to the nearest float16."""
        return Encoded({kind: half(tokens_BTD)})

    def decode(self, kind: str, arrays: Mapping[str, Tensor]) -> Tensor:
        """Exact."""
        return arrays[kind].float()


class Int8(Codec):
    """Codes in [-127, 127] and one float16 scale per token, symmetric around zero."""

    def arrays(self, kind: str, row: tuple[int, ...]) -> tuple[ArraySpec, ...]:
        """(T, D) int8 codes and (T,) float16 scales."""
        return ArraySpec(kind, row, "int8"), ArraySpec(f"{kind}_scale", row[:-1], "float16")

    def encode(self, kind: str, tokens_BTD: Tensor) -> Encoded:
        """Rounds the scale to float16 before the codes, so that they are nearest for the stored scale."""
        scale_BT = half(tokens_BTD.abs().amax(dim=-1) / 127).clamp(min=torch.finfo(torch.float16).tiny)
        codes_BTD = (tokens_BTD / scale_BT.float()[..., None]).round().clamp(-127, 127).to(torch.int8)
        return Encoded({kind: codes_BTD, f"{kind}_scale": scale_BT})

    def decode(self, kind: str, arrays: Mapping[str, Tensor]) -> Tensor:
        """Codes times scale."""
        return arrays[kind].float() * arrays[f"{kind}_scale"].float()[..., None]


class Int4(Codec):
    """Rotated tokens on 16 levels, (code + 0.5) s with code in [-8, 7], two codes a byte, one float16 scale per token.

    The rotation (see `rotation.hadamard`) makes a token's values nearly Gaussian, and 0.3352 of their rms is the best
    step of a uniform 16-level quantizer for a Gaussian (Max 1960). Byte i holds channel 2 i in its low half and channel
    2 i + 1 in its high half, each as code + 8.
    """

    step = 0.3352  # of a token's rms

    def arrays(self, kind: str, row: tuple[int, ...]) -> tuple[ArraySpec, ...]:
        """(T, D / 2) uint8 pairs of codes and (T,) float16 scales. CacheError if D is odd."""
        *tokens, channels = row
        if channels % 2:
            raise CacheError(f"codec int4 stores two channels in a byte, and {channels} channels are odd; use int8")
        return ArraySpec(kind, (*tokens, channels // 2), "uint8"), ArraySpec(f"{kind}_scale", row[:-1], "float16")

    def encode(self, kind: str, tokens_BTD: Tensor) -> Encoded:
        """Rotate, scale, floor, pack."""
        rotated_BTD = tokens_BTD @ hadamard(tokens_BTD.shape[-1], tokens_BTD.device)
        rms_BT = rotated_BTD.square().mean(dim=-1).sqrt()
        scale_BT = half(self.step * rms_BT).clamp(min=torch.finfo(torch.float16).tiny)
        codes_BTD = (rotated_BTD / scale_BT.float()[..., None]).floor().clamp(-8, 7).add(8).to(torch.uint8)
        return Encoded({kind: codes_BTD[..., 0::2] | (codes_BTD[..., 1::2] << 4), f"{kind}_scale": scale_BT})

    def decode(self, kind: str, arrays: Mapping[str, Tensor]) -> Tensor:
        """Unpack, scale, rotate back: one matrix product."""
        pairs = arrays[kind]
        codes_BTD = torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(-2)
        rotated_BTD = (codes_BTD.float() - 7.5) * arrays[f"{kind}_scale"].float()[..., None]
        return rotated_BTD @ hadamard(rotated_BTD.shape[-1], pairs.device).T


def half(values: Tensor) -> Tensor:
    """The nearest float16, clamped to its range."""
    return values.clamp(-HALF_MAX, HALF_MAX).to(torch.float16)
