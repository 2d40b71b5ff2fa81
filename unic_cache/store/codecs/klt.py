"""Codec `klt`: decorrelated tokens, one step for all, several small codes per byte, then zstd.

    tokens (T, D) -> DCT over the token grid -> rotation of the channels -> / step -> codes -> bytes -> zstd

Neighbouring tokens are much alike, and so are channels. The two-dimensional DCT-II of each channel over the grid, then
the principal axes of the channels (one rotation for the lowest frequencies, one for all others), give coefficients
that are nearly independent and differ widely in size. For those, one uniform step and an entropy coder come close to
the fewest bits for a given error. zstd's entropy coder, Huffman's, spends at least one bit on every byte; most
coefficients carry far less, so small ones share a byte:

| class | codes | a byte holds |
|---|---|---|
| two bytes | -32767 to 32767 | half of one: high bytes first, low bytes with the next class |
| one byte | -127 to 127 | one |
| pairs | -7 to 7 | two, in base 15 |
| triples | -2 to 2 | three, in base 5 |
| fives | -1 to 1 | five, in base 3 |

Calibration assigns each coefficient a class by its rms in steps, and drops coefficients below the noise. Bytes of
similar coefficients are adjacent, so each zstd block gets a Huffman code that fits it. Three to six times fewer bytes
need decompressing, checking and sending to the device than with one byte per value.

code = sign(x) floor(|x| / step + 0.4): the dead zone of 0.6 steps saves bits where they buy least. Codes beyond their
class are clamped and counted.

Tokens sampled on a lattice (`--tokens`) are a smaller grid. At random positions they have none: no DCT, and one
rotation for all.

Letters: B images, T tokens, D channels, N stored coefficients of T D, G bands, h, w the grid, P bytes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unic_cache.errors import CacheError
from unic_cache.store.codecs.fixed import Array, Encoded
from unic_cache.store.layout import ArraySpec
from unic_cache.token_kinds import PATCH, Grid

TILE = 256
DEAD_ZONE = 0.6  # of a step
LARGEST = (32767, 127, 7, 2, 1)  # the largest code of each class
PACKED = {2: 2, 3: 3, 4: 5}  # class -> codes per byte
LOW_FREQUENCIES = 4  # the lowest quarter of each side's frequencies shares the first rotation
STORED_AS = {  # dtype and axes in a calibration
    "klt_rotation": (np.dtype(np.float32), 3),
    "klt_order": (np.dtype(np.int32), 1),
    "klt_counts": (np.dtype(np.int64), 1),
    "klt_step": (np.dtype(np.float64), 0),
}


@dataclass(frozen=True, eq=False)
class Klt:
    """The codec fitted to one teacher's grid tokens.

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

    @property
    def channels(self) -> int:
        """D."""
        return int(self.rotation.shape[-1])

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one image before zstd, in whole tiles."""
        shared = sum(-(-self.counts[kind] // packed) for kind, packed in PACKED.items())
        return max(-(-(2 * self.counts[0] + self.counts[1] + shared) // TILE), 1) * TILE

    def arrays(self, kind: str, row: tuple[int, ...]) -> tuple[ArraySpec, ...]:
        """(P,) bytes in tiles. CacheError if the codec was fitted to tokens of another number or width."""
        if row != (self.tokens, self.channels):
            raise CacheError(
                f"the calibration is of {self.tokens} tokens of {self.channels} channels, but the spec says "
                f"{' of '.join(map(str, row))}; they belong to two caches"
            )
        return (ArraySpec(kind, (self.row_bytes,), "uint8", TILE),)

    def encode(self, kind: str, tokens_BTD: Tensor) -> Encoded:
        """Standardized tokens to bytes (B, P); counts the codes of each image that were clamped or left out."""
        tables = self._tables(tokens_BTD.device)
        steps = self.coefficients(tokens_BTD).flatten(1).div_(self.step)
        codes_BN = steps[:, tables.order_N]
        codes_BN = codes_BN.sign().mul_(1 - DEAD_ZONE).add_(codes_BN).trunc_()
        clipped_B = (steps[:, tables.left_out].abs() >= DEAD_ZONE).sum(dim=1)
        for codes, largest in zip(torch.split(codes_BN, list(self.counts), dim=1), LARGEST, strict=True):
            clipped_B += (codes.abs() > largest).sum(dim=1)
            codes.clamp_(-largest, largest)
        return Encoded({kind: self._pack(codes_BN)}, clipped_B.int())

    def decode(self, kind: str, arrays: Mapping[str, Tensor]) -> Tensor:
        """Bytes back to standardized float32 tokens (B, T, D)."""
        packed_BP = arrays[kind]
        steps = self._unpack(packed_BP)[:, self._tables(packed_BP.device).place].mul_(self.step)
        return self.tokens_of(steps.reshape(-1, self.tokens, self.channels))

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
    def from_arrays(cls, found: Mapping[str, Array], grid: Grid | None, tokens: int) -> "Klt":
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
        return cls(grid, tokens, rotation, order, counts, step)

    def _tables(self, device: torch.device) -> "_Tables":
        if device not in self._made:
            self._made[device] = _Tables(self, device)
        return self._made[device]

    @cached_property
    def _made(self) -> "dict[torch.device, _Tables]":
        return {}

    def _pack(self, codes_BN: Tensor) -> Tensor:
        """Codes, class by class, to bytes (B, P)."""
        classes = torch.split(codes_BN, list(self.counts), dim=1)
        wide, single = classes[0].to(torch.int16), classes[1].to(torch.int8).view(torch.uint8)
        pieces = [(wide >> 8).to(torch.int8).view(torch.uint8), (wide & 255).to(torch.uint8), single]
        for kind, packed in PACKED.items():
            codes = torch.nn.functional.pad(classes[kind], (0, -self.counts[kind] % packed))
            base = float(2 * LARGEST[kind] + 1)
            weights = base ** torch.arange(packed, device=codes.device, dtype=torch.float32)
            groups = codes.reshape(len(codes), codes.shape[1] // packed, packed)
            bytes_BP = groups @ weights + LARGEST[kind] * weights.sum()
            pieces.append(bytes_BP.to(torch.uint8))
        packed_BP = torch.cat(pieces, dim=1)
        return torch.nn.functional.pad(packed_BP, (0, self.row_bytes - packed_BP.shape[1]))

    def _unpack(self, packed_BP: Tensor) -> Tensor:
        """The inverse of `_pack`, float32 (B, N + 1): a zero follows the last code."""
        shared = [-(-self.counts[kind] // packed) for kind, packed in PACKED.items()]
        used = [self.counts[0], self.counts[0], self.counts[1], *shared]
        high, low, single, *others, _ = torch.split(packed_BP, [*used, packed_BP.shape[1] - sum(used)], dim=1)
        pieces = [high.view(torch.int8).float().mul_(256).add_(low), single.view(torch.int8).float()]
        for kind, bytes_BP in zip(PACKED, others, strict=True):
            codes = torch.nn.functional.embedding(bytes_BP.int(), _digits(kind, bytes_BP.device)).flatten(1)
            pieces.append(codes[:, : self.counts[kind]])
        return torch.cat([*pieces, pieces[0].new_zeros(len(packed_BP), 1)], dim=1)


def unprefixed(kind: str, found: Mapping[str, Array]) -> dict[str, Array]:
    """Of a calibration's arrays, those of one kind's codec, under the names of `Klt.to_arrays`."""
    return {name.removeprefix(prefix(kind)): x for name, x in found.items() if name.startswith(prefix(kind))}


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


@lru_cache(maxsize=32)
def _digits(kind: int, device: torch.device) -> Tensor:
    """(256, k): the codes that each byte of a class holds."""
    base = 2 * LARGEST[kind] + 1
    powers = base ** np.arange(PACKED[kind])
    digits = np.arange(256)[:, None] // powers % base - LARGEST[kind]
    return torch.from_numpy(digits.astype(np.float32)).to(device)
