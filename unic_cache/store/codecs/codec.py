"""How a teacher's tokens are stored: one codec for its grid tokens, float16 or `klt` for its summary tokens.

| codec  | tokens are stored as                                      | error                                |
|--------|-----------------------------------------------------------|--------------------------------------|
| `klt`  | decorrelated, one step, entropy coded: see `klt`         | what `quality` allows in mean cosine |
| `f16`  | the standardized value in float16                         | 2**-11 of the value                  |
| `int8` | round(x / s) in int8 and s = max|x| / 127 of each token, float16 | s / 2 of a value, cosine > 0.9995 |
| `int4` | x rotated, floor(y / s) in [-8, 7] and s = 0.3352 rms(y) of each token, float16 | cosine about 0.994 |

Summary tokens are float16, under 1 % of the bytes, except beside `klt`: there they are a tenth at a quality of 0.96 and
more below it, so `cls_quality` gives them a `klt` of their own, of one token without a grid. Calibration fits `klt` to
the teacher.

Letters: B images, T grid tokens, D channels.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from unic_cache.config import CODERS, FITTED, LATTICE, RANDOM
from unic_cache.errors import CacheError
from unic_cache.store.codecs.fixed import F16, Array, Codec, Encoded, Int4, Int8
from unic_cache.store.codecs.klt import Klt, unprefixed
from unic_cache.store.layout import ArraySpec
from unic_cache.store.sampling import Positions, Sample, Shown, no_lattice, stride
from unic_cache.token_kinds import Grid, Kinds, grid_of

CODECS: dict[str, type[Codec]] = {FITTED: Klt, "f16": F16, "int8": Int8, "int4": Int4}
SUMMARY = "f16"  # of summary tokens without a `cls_quality`


@dataclass(frozen=True)
class Features:
    """What spec.json says is stored of each image: the codec's name, and the token kinds.

    CacheError if the kinds have several grids, fewer tokens than `sampled`, or no such lattice.
    """

    codec: str
    kinds: Kinds
    sampled: int | None = None  # grid tokens stored of each view; None for all
    quality: float | None = None  # the mean cosine asked of klt's grid tokens
    sampling: str = RANDOM  # the rule that gives the positions of the `sampled` tokens
    coder: str = CODERS[0]  # of klt's codes
    cls_quality: float | None = None  # the mean cosine asked of klt's summary tokens; None: float16

    def __post_init__(self) -> None:
        grids = {kind.grid for kind in self.kinds.values()} - {None}
        if len(grids) > 1:
            raise CacheError(f"has token kinds on several grids, {grids}; this release stores one grid per teacher")
        if self.grid and self.sampled and self.sampled > math.prod(self.grid):
            raise CacheError(
                f"stores {self.sampled} tokens of each view, but the grid of {self.grid[0]} x {self.grid[1]} has "
                f"{math.prod(self.grid)}; choose fewer with --tokens"
            )
        if self.sampling == LATTICE:
            if self.grid is None or self.sampled is None:
                raise CacheError(f"has sampling {LATTICE}, but no patch tokens to sample")
            if stride(self.grid, self.sampled) is None:
                raise CacheError(no_lattice(self.grid, self.sampled))

    @property
    def grid(self) -> Grid | None:
        """Height and width of the teacher's whole grid; None without grid tokens."""
        return grid_of(self.kinds)

    @property
    def tokens(self) -> int:
        """T, the stored tokens of each grid kind; 1 without grid tokens."""
        return self.sampled or math.prod(self.grid or (1, 1))

    @property
    def fitted(self) -> Mapping[str, float | None]:
        """The kinds whose codec a calibration brings, and the mean cosine asked of each."""
        if self.codec != FITTED:
            return {}
        grids = {name: self.quality for name, kind in self.kinds.items() if kind.grid}
        others = {name: self.cls_quality for name, kind in self.kinds.items() if kind.grid is None}
        return {**grids, **({} if self.cls_quality is None else others)}

    @property
    def sample(self) -> Sample | None:
        """Which tokens of the grid are stored; None without grid tokens."""
        if self.grid is None:
            return None
        return Sample(self.sampling, self.sampled) if self.sampled else Sample(LATTICE, math.prod(self.grid))

    @property
    def stored_grid(self) -> Grid | None:
        """Height and width of the stored tokens: the whole grid, or its lattice; None for random positions."""
        if self.grid is None or self.sample is None or self.sample.rule == RANDOM:
            return None
        step = stride(self.grid, self.tokens)
        assert step is not None
        return self.grid[0] // step, self.grid[1] // step

    def positions(self, seed: int, shown: Shown) -> Positions | None:
        """(B, T) ascending positions of the stored tokens in the grid for each (key, view number); None if all are."""
        if self.grid is None or self.sample is None or self.sampled is None:
            return None
        return self.sample.positions(seed, shown, self.grid)

    def codec_of(self, kind: str) -> str:
        """The name of a kind's codec."""
        return self.codec if self.kinds[kind].grid or kind in self.fitted else SUMMARY

    def row(self, kind: str) -> tuple[int, ...]:
        """The shape of one image's stored tokens: (T, D), or (D,) for a summary token."""
        found = self.kinds[kind]
        return (found.channels,) if found.grid is None else (self.tokens, found.channels)


class FeatureCodec:
    """All tokens of a teacher to arrays, and back. `found` holds a calibration's arrays, for a fitted codec.

    CacheError if the codec cannot store such tokens, or the calibration does not fit them.
    """

    def __init__(self, features: Features, found: Mapping[str, Array] | None = None) -> None:
        self.features = features
        self._codecs: dict[str, Codec] = {}
        for name, kind in features.kinds.items():
            own = unprefixed(name, found or {})
            stored = (features.stored_grid, features.tokens) if kind.grid else (None, 1)
            self._codecs[name] = CODECS[features.codec_of(name)].from_arrays(own, *stored, features.coder)
        self._arrays = {name: codec.arrays(name, features.row(name)) for name, codec in self._codecs.items()}
        self.arrays: tuple[ArraySpec, ...] = tuple(array for arrays in self._arrays.values() for array in arrays)

    def names(self, kinds: Iterable[str]) -> set[str]:
        """The names of the arrays that hold these kinds."""
        return {array.name for kind in kinds for array in self._arrays[kind]}

    @property
    def steps(self) -> dict[str, float]:
        """For each kind, the distance of two codes if it is the same for all tokens, else 0."""
        return {name: codec.step if isinstance(codec, Klt) else 0.0 for name, codec in self._codecs.items()}

    def encode(self, features: Mapping[str, Tensor]) -> Encoded:
        """Standardized float32 tokens of some kinds, (B, D) or (B, T, D), to arrays of B rows on the tokens' device."""
        each = [codec.encode(name, features[name]) for name, codec in self._codecs.items() if name in features]
        arrays = {name: values for one in each for name, values in one.arrays.items()}
        clipped = [one.clipped_B for one in each if one.clipped_B is not None]
        return Encoded(arrays, sum(clipped[1:], clipped[0]) if clipped else None)

    def repacked(self, arrays: Mapping[str, Tensor], source: "FeatureCodec") -> dict[str, Tensor]:
        """The arrays of some kinds of a codec with the same codes, for this codec's coder."""
        found = dict(arrays)
        for name, codec in self._codecs.items():
            if name in found and isinstance(codec, Klt) and isinstance(other := source._codecs[name], Klt):
                found[name] = codec.repacked(arrays[name], other)
        return found

    def decode(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Standardized float32 tokens by kind, (B, D) or (B, T, D), of all kinds whose arrays are given."""
        return {
            name: codec.decode(name, arrays).reshape(-1, *self.features.row(name))
            for name, codec in self._codecs.items()
            if name in arrays
        }
