"""How `klt`'s codes of an image become a row of its array, for each coder.

For `pcodec` a row is the codes themselves, int16. For `zstd` small codes share a byte, as its entropy coder, Huffman's,
spends at least one bit on every byte and most coefficients carry far less:

| class | codes | a byte holds |
|---|---|---|
| two bytes | -32767 to 32767 | half of one: high bytes first, low bytes with the next class |
| one byte | -127 to 127 | one |
| pairs | -7 to 7 | two, in base 15 |
| triples | -2 to 2 | three, in base 5 |
| fives | -1 to 1 | five, in base 3 |

Both hold the same codes, so one can be made from the other without loss.

Letters: B images, N codes, P values of a row.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from unic_cache.store.coders import PIECE
from unic_cache.store.layout import CHUNK_ROWS, ArraySpec

LARGEST = (32767, 127, 7, 2, 1)  # the largest code of each class
PACKED = {2: 2, 3: 3, 4: 5}  # class -> codes per byte
TILE = 256  # bytes
TILE_CODES = PIECE // CHUNK_ROWS


class Packing(Protocol):
    """Codes, class by class, to rows and back; `counts` is the number of codes in each class."""

    def __init__(self, counts: tuple[int, ...]) -> None: ...

    def array(self, kind: str) -> ArraySpec:
        """The array of the rows."""
        ...

    def pack(self, codes_BN: Tensor) -> Tensor:
        """Codes, whole numbers in float32 within their classes, to rows (B, P)."""
        ...

    def unpack(self, rows_BP: Tensor) -> Tensor:
        """The inverse, of any dtype: (B, N + 1 or more) with a zero at N, after the last code."""
        ...


@dataclass(frozen=True)
class ByteClasses(Packing):
    """Bytes that hold one to five codes each, in whole tiles."""

    counts: tuple[int, ...]

    @cached_property
    def row_bytes(self) -> int:
        """P."""
        shared = sum(-(-self.counts[kind] // packed) for kind, packed in PACKED.items())
        return max(-(-(2 * self.counts[0] + self.counts[1] + shared) // TILE), 1) * TILE

    def array(self, kind: str) -> ArraySpec:
        """(P,) uint8."""
        return ArraySpec(kind, (self.row_bytes,), "uint8", TILE)

    def pack(self, codes_BN: Tensor) -> Tensor:
        """To bytes (B, P)."""
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

    def unpack(self, rows_BP: Tensor) -> Tensor:
        """To float32 (B, N + 1)."""
        shared = [-(-self.counts[kind] // packed) for kind, packed in PACKED.items()]
        used = [self.counts[0], self.counts[0], self.counts[1], *shared]
        high, low, single, *others, _ = torch.split(rows_BP, [*used, rows_BP.shape[1] - sum(used)], dim=1)
        pieces = [high.view(torch.int8).float().mul_(256).add_(low), single.view(torch.int8).float()]
        for kind, bytes_BP in zip(PACKED, others, strict=True):
            codes = torch.nn.functional.embedding(bytes_BP.int(), _digits(kind, bytes_BP.device)).flatten(1)
            pieces.append(codes[:, : self.counts[kind]])
        return torch.cat([*pieces, pieces[0].new_zeros(len(rows_BP), 1)], dim=1)


@dataclass(frozen=True)
class PlainCodes(Packing):
    """The codes as they are, then zeros, at least one, up to whole tiles."""

    counts: tuple[int, ...]

    def array(self, kind: str) -> ArraySpec:
        """(P,) int16."""
        tiles = sum(self.counts) // TILE_CODES + 1
        return ArraySpec(kind, (tiles * TILE_CODES,), "int16", TILE_CODES, "pcodec")

    def pack(self, codes_BN: Tensor) -> Tensor:
        """To int16 (B, P)."""
        return torch.nn.functional.pad(codes_BN.to(torch.int16), (0, TILE_CODES - codes_BN.shape[1] % TILE_CODES))

    def unpack(self, rows_BP: Tensor) -> Tensor:
        """The rows themselves."""
        return rows_BP


PACKINGS: dict[str, type[Packing]] = {"zstd": ByteClasses, "pcodec": PlainCodes}


@lru_cache(maxsize=32)
def _digits(kind: int, device: torch.device) -> Tensor:
    """(256, k): the codes that each byte of a class holds."""
    base = 2 * LARGEST[kind] + 1
    powers = base ** np.arange(PACKED[kind])
    digits = np.arange(256)[:, None] // powers % base - LARGEST[kind]
    return torch.from_numpy(digits.astype(np.float32)).to(device)
