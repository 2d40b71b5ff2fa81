"""Codec `klt`: decorrelated tokens, one step for all, then an entropy coder.

    tokens (T, D) -> DCT over the token grid -> rotation of the channels -> / step -> codes -> packing -> coder

Neighbouring tokens are much alike, and so are channels. The two-dimensional DCT-II of each channel over the grid, then
the principal axes of the channels (one rotation for the lowest frequencies, one for all others), give coefficients
that are nearly independent and differ widely in size. For those, one uniform step and an entropy coder come close to
the fewest bits for a given error.

Calibration assigns each coefficient a class by its rms in steps, which bounds its codes, and drops coefficients below
the noise. Codes are stored by falling rms, so that neighbours are alike and the coder's tables fit them. `packing` has
the two ways of storing them: bytes of one to five codes for zstd, or int16 for PCodec.

code = sign(x) floor(|x| / step + 0.4): the dead zone of 0.6 steps saves bits where they buy least. Codes beyond their
class are clamped and counted.

Tokens sampled on a lattice (`--tokens`) are a smaller grid. At random positions they have none: no DCT, and one
rotation for all. A summary token is one token without a grid.

Letters: B images, T tokens, D channels, N stored coefficients of T D, G bands, h, w the grid, P values of a row.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unic_cache.config import CODERS
from unic_cache.errors import CacheError
from unic_cache.store.codecs.fixed import Array, Encoded
from unic_cache.store.codecs.packing import LARGEST, PACKINGS, Packing
from unic_cache.store.layout import ArraySpec
from unic_cache.token_kinds import PATCH, Grid

DEAD_ZONE = 0.6  # of a step
LOW_FREQUENCIES = 4  # the lowest quarter of each side's frequencies shares the first rotation
STORED_AS = {  # dtype and axes in a calibration
    "klt_rotation": (np.dtype(np.float32), 3),
    "klt_order": (np.dtype(np.int32), 1),
    "klt_counts": (np.dtype(np.int64), 1),
    "klt_step": (np.dtype(np.float64), 0),
}


@dataclass(frozen=True, eq=False)
class Klt:
    """The codec fitted to one token kind of a teacher.

    `rotation` (G, D, D) float32 has the basis vectors as columns; `order` (N,) int32 gives for each code, class by
    class, its coefficient t D + d, where t counts tokens band by band (`band_tokens`); `counts` is the number of codes
    in each class.
    """

    grid: Grid | None
    tokens: int
    rotation: npt.NDArray[np.float32]
    order: npt.NDArray[np.int32]
    counts: tuple[int, ...]
    step: float
    coder: str = CODERS[0]

    @property
    def channels(self) -> int:
        """D."""
        return int(self.rotation.shape[-1])

    @cached_property
    def packing(self) -> Packing:
        """How the coder gets the codes."""
        return PACKINGS[self.coder](self.counts)

    def arrays(self, kind: str, row: tuple[int, ...]) -> tuple[ArraySpec, ...]:
        """(P,) values in tiles. CacheError if the codec was fitted to tokens of another number or width."""
        if (1, *row)[-2:] != (self.tokens, self.channels):
            raise CacheError(
                f"the calibration is of {self.tokens} tokens of {self.channels} channels, but the spec says "
                f"{' of '.join(map(str, row))}; they belong to two caches"
            )
        return (self.packing.array(kind),)

    def encode(self, kind: str, tokens_BTD: Tensor) -> Encoded:
        """Standardized tokens to rows (B, P); counts the codes of each image that were clamped or left out.

        A summary token may come as (B, D).
        """
        tables = self._tables(tokens_BTD.device)
        tokens_BTD = tokens_BTD.reshape(-1, self.tokens, self.channels)
        steps = self.coefficients(tokens_BTD).flatten(1).div_(self.step)
        codes_BN = rounded(steps[:, tables.order_N])
        clipped_B = (steps[:, tables.left_out].abs() >= DEAD_ZONE).sum(dim=1)
        for codes, largest in zip(torch.split(codes_BN, list(self.counts), dim=1), LARGEST, strict=True):
            clipped_B += (codes.abs() > largest).sum(dim=1)
            codes.clamp_(-largest, largest)
        return Encoded({kind: self.packing.pack(codes_BN)}, clipped_B.int())

    def decode(self, kind: str, arrays: Mapping[str, Tensor]) -> Tensor:
        """Rows back to standardized float32 tokens (B, T, D)."""
        rows_BP = arrays[kind]
        steps = self.packing.unpack(rows_BP)[:, self._tables(rows_BP.device).place].float().mul_(self.step)
        return self.tokens_of(steps.reshape(-1, self.tokens, self.channels))

    def repacked(self, rows_BP: Tensor, source: "Klt") -> Tensor:
        """Rows of a codec with the same codes, for this one's coder."""
        if self.coder == source.coder:
            return rows_BP
        return self.packing.pack(source.packing.unpack(rows_BP)[:, : len(self.order)].float())

    def coefficients(self, tokens_BTD: Tensor) -> Tensor:
        """Tokens (B, T, D) to coefficients of the same shape, band by band: DCT over the grid, rotated channels."""
        tables = self._tables(tokens_BTD.device)
        spectrum_BTD = over_grid(tokens_BTD, self.grid, tables.rows, tables.columns)
        bands = torch.split(spectrum_BTD[:, tables.by_band], tables.sizes, dim=1)
        return torch.cat([band @ axes for band, axes in zip(bands, tables.rotations, strict=True)], dim=1)

    def tokens_of(self, coefficients_BTD: Tensor) -> Tensor:
        """The inverse of the orthonormal `coefficients`."""
        tables = self._tables(coefficients_BTD.device)
        bands = torch.split(coefficients_BTD, tables.sizes, dim=1)
        spectrum = torch.cat([band @ axes.T for band, axes in zip(bands, tables.rotations, strict=True)], dim=1)
        return over_grid(spectrum[:, tables.from_bands], self.grid, tables.rows.T, tables.columns.T)

    def to_arrays(self) -> dict[str, Array]:
        """The codec as a calibration stores it."""
        return {
            "klt_rotation": self.rotation,
            "klt_order": self.order,
            "klt_counts": np.array(self.counts, np.int64),
            "klt_step": np.array(self.step, np.float64),
        }

    @classmethod
    def from_arrays(cls, found: Mapping[str, Array], grid: Grid | None, tokens: int, coder: str = CODERS[0]) -> "Klt":
        """The codec that `to_arrays` stored. CacheError if arrays are missing or do not fit these tokens."""
        for name, kind in STORED_AS.items():
            if name not in found or (found[name].dtype, found[name].ndim) != kind:
                raise CacheError(f"holds no codec klt ({name} is missing, or not of {kind[0]} with {kind[1]} axes)")
        rotation, order = np.asarray(found["klt_rotation"], np.float32), np.asarray(found["klt_order"], np.int32)
        counts, step = tuple(found["klt_counts"].tolist()), float(found["klt_step"])
        channels = rotation.shape[-1]
        whole = rotation.shape == (1 if grid is None else 2, channels, channels) and np.isfinite(rotation).all()
        fits = len(counts) == len(LARGEST) and min(counts) >= 0 and sum(counts) == len(order)
        inside = order.min(initial=0) >= 0 and order.max(initial=0) < max(tokens * channels, 1)
        if not (whole and fits and inside and 0 < step < np.inf) or len(np.unique(order)) != len(order):
            raise CacheError("holds a codec klt that does not fit its tokens")
        return cls(grid, tokens, rotation, order, counts, step, coder)

    def _tables(self, device: torch.device) -> "_Tables":
        if device not in self._made:
            self._made[device] = _Tables(self, device)
        return self._made[device]

    @cached_property
    def _made(self) -> "dict[torch.device, _Tables]":
        return {}


def rounded(steps: Tensor) -> Tensor:
    """The code of each coefficient, given in steps: to the nearest whole number, but 0 in the dead zone."""
    return steps.sign().mul_(1 - DEAD_ZONE).add_(steps).trunc_()


def unprefixed(kind: str, found: Mapping[str, Array]) -> dict[str, Array]:
    """Of a calibration's arrays, those of one kind's codec, under the names of `Klt.to_arrays`."""
    return {name: found[f"{prefix(kind)}{name}"] for name in STORED_AS if f"{prefix(kind)}{name}" in found}


def prefix(kind: str) -> str:
    """What precedes the names of a kind's arrays in a calibration: nothing for `patch`."""
    return "" if kind == PATCH else f"{kind}_"


def band_tokens(grid: Grid | None, tokens: int) -> list[npt.NDArray[np.int64]]:
    """For each rotation the numbers of its tokens: the lowest frequencies of the grid, and all others."""
    if grid is None:
        return [np.arange(tokens)]
    rows, columns = np.divmod(np.arange(tokens), grid[1])
    low = (rows * LOW_FREQUENCIES < grid[0]) & (columns * LOW_FREQUENCIES < grid[1])
    return [np.flatnonzero(low), np.flatnonzero(~low)]


def dct(size: int) -> npt.NDArray[np.float64]:
    """The orthonormal DCT-II: row u is frequency u."""
    matrix = np.cos(np.pi * (np.arange(size) + 0.5) * np.arange(size)[:, None] / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def over_grid(values_BTD: Tensor, grid: Grid | None, rows: Tensor, columns: Tensor) -> Tensor:
    """`rows` (h, h) and `columns` (w, w) applied along the two axes of the grid; unchanged without one."""
    if grid is None:
        return values_BTD
    batch, _, channels = values_BTD.shape
    along = rows @ values_BTD.reshape(batch, grid[0], grid[1] * channels)
    return (columns @ along.reshape(batch * grid[0], grid[1], channels)).reshape(values_BTD.shape)


class _Tables:
    """The tensors for encoding and decoding, on one device."""

    def __init__(self, codec: Klt, device: torch.device) -> None:
        def here(values: Array) -> Tensor:
            return torch.from_numpy(values).to(device)

        kept = len(codec.order)
        place = np.full(codec.tokens * codec.channels, kept, np.int64)
        place[codec.order] = np.arange(kept)
        bands = band_tokens(codec.grid, codec.tokens)
        by_band = np.concatenate(bands)
        self.rows, self.columns = (here(dct(side).astype(np.float32)) for side in codec.grid or (1, 1))  # (h, h) (w, w)
        self.by_band = here(by_band)  # (T,) tokens, band by band
        self.from_bands = here(np.argsort(by_band))  # (T,) the inverse
        self.sizes = [len(places) for places in bands]
        self.rotations = [here(rotation.copy()) for rotation in codec.rotation]  # (D, D) of each band
        self.order_N = here(codec.order.astype(np.int64))  # the coefficient of each code
        self.left_out = here(np.flatnonzero(place == kept))  # coefficients without a code
        self.place = here(place)  # (T D,) the code of each coefficient; N if it has none
