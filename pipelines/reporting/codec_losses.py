"""What a cache's codec lost, and where, as far as the cache itself tells.

| codec | the cache knows | so it tells |
|---|---|---|
| all | mean cosine on held-out views, values clipped | how much, per token kind |
| `f16`, `int8`, `int4` | the distance of two codes, for each token | the error of each token |
| `klt` | the class of each coefficient | which frequencies of the grid have few bits |

Rounding to codes that are s apart has an error of s / sqrt(12), uniform between -s / 2 and s / 2. klt spreads its error
over all tokens of an image, by its DCT; the error of one token needs the teacher itself.

Letters: N images, T tokens, D channels, h, w the grid.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipelines.reporting.holdings import views_of
from pipelines.reporting.images import grid_kind
from unic_cache.cache import Cache, CachedTeacher
from unic_cache.evaluate.page import Grid
from unic_cache.store.calibrate import to_teacher
from unic_cache.store.codecs.klt import Klt, band_tokens, unprefixed
from unic_cache.store.codecs.packing import LARGEST

Floats = npt.NDArray[np.float64]
Arrays = Mapping[str, Tensor]


def fidelity_table(cache: Cache) -> Grid:
    """Per teacher and token kind: codec, quality asked, mean cosine to the teacher, and the relative error of that.

    Of a recoded cache the cosine is estimated, over all its recodings.
    """
    rows = []
    for name, teacher in cache.teachers.items():
        views = views_of(cache, teacher.member).values()
        images, clipped = (sum(view[key] for view in views) for key in ("images", "clipped"))
        cosines = to_teacher(teacher.calibration.fidelity, teacher.spec)
        for kind, tokens in teacher.kinds.items():
            cosine = cosines.get(kind)
            features = teacher.codec.features
            stored = 1 if tokens.grid is None else features.tokens
            share = f"{1e6 * clipped / (images * stored * tokens.channels):.2f}" if tokens.grid and images else ""
            rows.append(
                [
                    f"{name} {kind}",
                    features.codec_of(kind),
                    str(features.fitted.get(kind) or ""),
                    "" if cosine is None else f"{cosine:.5f}",
                    "" if cosine is None else f"{100 * np.sqrt(max(2 - 2 * cosine, 0)):.1f}",
                    share,
                ]
            )
    head = [
        "teacher, tokens",
        "codec",
        "quality asked",
        "cosine to the teacher",
        "relative error %",
        "clipped per million",
    ]
    return Grid("Fidelity on held-out views, and values clipped", head, rows)


def token_errors(teacher: CachedTeacher, arrays: Arrays) -> Floats | None:
    """(N, T): the rms rounding error of each grid token over the token's rms; None if the codec does not tell."""
    kind, find = grid_kind(teacher), STEPS.get(teacher.codec.features.codec)
    if kind is None or find is None:
        return None
    decoded_NTD = teacher.codec.decode(dict(arrays))[kind].double().numpy()
    rms_NT = np.sqrt(np.square(decoded_NTD).mean(axis=-1))
    return np.asarray(find(kind, arrays) / np.sqrt(12) / np.maximum(rms_NT, 1e-12))


def frequency_bits(teacher: CachedTeacher) -> Floats | None:
    """(h, w): the mean bits that klt gives a coefficient of each frequency, before its coder; None for other codecs.

    A class of codes up to L has log2(2 L + 1) bits, a coefficient that is not stored 0. The lowest frequency is first.
    Of tokens on a lattice, frequencies of the lattice. None for random positions too, which have no grid.
    """
    kind, features = grid_kind(teacher), teacher.codec.features
    if kind is None or kind not in features.fitted or features.stored_grid is None:
        return None
    klt = Klt.from_arrays(unprefixed(kind, teacher.calibration.klt), features.stored_grid, features.tokens)
    bits = np.repeat(np.log2(2 * np.array(LARGEST) + 1), klt.counts)
    sums = np.bincount(klt.order // klt.channels, weights=bits, minlength=klt.tokens)  # band by band
    found = np.empty(klt.tokens)
    found[np.concatenate(band_tokens(klt.grid, klt.tokens))] = sums / klt.channels
    return found.reshape(features.stored_grid)


def _f16_steps(kind: str, arrays: Arrays) -> Floats:
    """The rms of the distances between float16 neighbours, over a token's channels."""
    return np.asarray(np.sqrt(np.square(np.spacing(np.abs(arrays[kind].numpy())).astype(np.float64)).mean(axis=-1)))


def _scales(kind: str, arrays: Arrays) -> Floats:
    return np.asarray(arrays[f"{kind}_scale"].numpy().astype(np.float64))


STEPS: dict[str, Callable[[str, Arrays], Floats]] = {"f16": _f16_steps, "int8": _scales, "int4": _scales}
