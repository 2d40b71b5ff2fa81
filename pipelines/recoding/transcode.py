"""One teacher's kept answers, from the way that one cache keeps them to the way that another does.

    stored rows -> decode -> pick tokens -> encode -> stored rows

Mean, std and covariance stay what they were, to the bit, so that a student's targets stay comparable; `klt` is fitted
anew, to what the source gives. Where tokens are dropped and nothing else, codes that each belong to one token are taken
as they are.

Letters: B images, M patch tokens that the source keeps of each, N of which are kept on.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from crc32c import crc32c
from torch import Tensor

from pipelines.command.progress import Progress
from pipelines.extracting.calibrating import check_calibration
from pipelines.extracting.recorder import sampled
from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import RecodeConfig, Views
from unic_cache.errors import CacheError
from unic_cache.files.location import Location
from unic_cache.store.calibrate import DEFAULT_QUALITY, FIT_IMAGES, HELD_OUT, Calibration, refit
from unic_cache.store.codecs.codec import FITTED
from unic_cache.store.commit import Unit
from unic_cache.store.member import Member
from unic_cache.store.reader import RowArray
from unic_cache.store.sampling import places_among
from unic_cache.store.writer import UnitWriter
from unic_cache.stream.evenly import spread

SAMPLE_IMAGES = FIT_IMAGES * HELD_OUT // (HELD_OUT - 1)  # a fifth of which measures fidelity


@dataclass(frozen=True)
class Transcoder:
    """A teacher of the source cache, and the same one in the target."""

    source: CachedTeacher
    target: Member
    writer: UnitWriter
    calibration: Calibration  # the target's
    device: torch.device

    def encode(self, parts: Mapping[str, RowArray], seed: int, shown: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """The target's rows, and `clipped` as in `Codec.encode`, of the source's rows of (key, view number) `shown`."""
        assert self.target.codec is not None
        here = {name: torch.from_numpy(rows).to(self.device) for name, rows in parts.items()}
        kept_BN = kept_among(self.source.member, self.target, seed, shown)
        if codes_stay(self.source.member, self.target):
            return {name: rows if name == "cls" else picked(rows, kept_BN) for name, rows in here.items()}
        return self.target.codec.encode(picked_features(self.source.codec.decode(here), kept_BN))


def target_spec(config: RecodeConfig, source: CachedTeacher, before: Member | None) -> dict[str, Any]:
    """spec.json in the target: the source's with another codec, quality and tokens, and where it was recoded from.

    `before` is the teacher as the target has it: what the config leaves open stays as it is there. CacheError where
    more tokens are asked for than the source keeps.
    """
    stands = (source.member if before is None else before).spec
    codec = config.codec or (FITTED if config.quality is not None else stands["codec"])
    quality = {"quality": config.quality or stands.get("quality", DEFAULT_QUALITY)} if codec == FITTED else {}
    tokens = stands.get("tokens") if config.tokens is None else config.tokens
    features = source.codec.features
    wanted = tokens or math.prod(features.grid)
    if features.patch_dim is not None and wanted > features.tokens:
        raise CacheError(
            f"{source.name}: {wanted} patch tokens of each view are asked for, and {source.member.location.url} keeps "
            f"{features.tokens}; `recode` only drops tokens, so ask for fewer, or extract them into another cache"
        )
    provenance = source.spec["provenance"]
    came = {
        **{key: source.spec.get(key) for key in ("codec", "quality", "tokens")},
        "fidelity": dict(source.calibration.fidelity),
        **{key: provenance[key] for key in ("recoded_from",) if key in provenance},
    }
    return {
        **{key: value for key, value in source.spec.items() if key != "quality"},
        "codec": codec,
        **quality,
        "tokens": tokens,
        "provenance": {**provenance, "recoded_from": came},
        "versions": {**source.spec["versions"], "zarr": version("zarr")},  # the one that writes the target's objects
    }


def transcoder(
    cache: Cache, source: CachedTeacher, spec: Mapping[str, Any], location: Location, device: torch.device
) -> Transcoder:
    """The target's spec and calibration, made where they are missing. CacheError where others stand there."""
    target = Member.ensure(location, source.member.folder, spec)
    if target.calibration() is None:
        made = recalibrated(cache, source, target).to_bytes()
        check_calibration(Cache(location), target, crc32c(made))
        location.create(target.calibration_name, made)
    found = target.calibration()
    if found is None:
        raise CacheError(f"{location.url}/{target.calibration_name} vanished; start again")
    where = f"{location.url}/{target.calibration_name} is not of {cache.location.url}"
    ours, theirs = statistics(source.calibration), statistics(found[0])
    if ours.keys() != theirs.keys() or not all(np.array_equal(ours[key], theirs[key]) for key in ours):
        raise CacheError(f"{where}: its statistics are others, and two standardizations do not mix; choose another DST")
    if codes_stay(source.member, target) and not same_klt(source.calibration, found[0]):
        raise CacheError(f"{where}: its codec {FITTED} was fitted to other tokens; choose another DST")
    return Transcoder(source, target, UnitWriter(target, found[1]), found[0], device)


def recalibrated(cache: Cache, source: CachedTeacher, target: Member) -> Calibration:
    """The source's statistics, the target's codec fitted to what the source gives, and its fidelity to that."""
    assert target.features is not None
    if codes_stay(source.member, target):
        same = dict.fromkeys(source.calibration.fidelity, 1.0)
        return dataclasses.replace(source.calibration, fidelity=same)
    try:
        return refit(source.calibration, target.features, sample(cache, source, target))
    except CacheError as error:
        raise type(error)(f"{source.name}: {error}") from error


def sample(cache: Cache, source: CachedTeacher, target: Member) -> Iterator[dict[str, Tensor]]:
    """The standardized features of some good images, evenly over all that is committed; the tokens that are kept on."""
    units = cache.units(source.member)
    with Progress(f"calibrate {source.name}", sum(unit.rows for unit in units), "images") as progress:
        for unit, rows in spread(units, SAMPLE_IMAGES):
            record = source.record(unit)
            assert record is not None
            good = [row for row in rows if row not in record.bad]
            progress.advance(len(rows))
            if good:
                seed, shown = shown_rows(cache, unit, good)
                kept_BN = kept_among(source.member, target, seed, shown)
                yield picked_features(source.features(record, good), kept_BN)


def shown_rows(cache: Cache, unit: Unit, rows: Sequence[int]) -> tuple[int, list[tuple[int, int]]]:
    """The views' seed, and the (key, view number) of each row: what sampled positions are drawn from."""
    views, number = Views.parse(unit.view)
    keys = cache.entry(unit.segment, unit.shard).keys
    return views.seed, [(keys[row], number) for row in rows]


def kept_among(source: Member, target: Member, seed: int, shown: Sequence[tuple[int, int]]) -> Tensor | None:
    """(B, N): where the tokens that are kept on stand among those of the source; None where they are the same."""
    assert source.features is not None
    assert target.features is not None
    if source.features.tokens == target.features.tokens:
        return None
    theirs_BM, wanted_BN = sampled(source, seed, shown), sampled(target, seed, shown)
    if theirs_BM is None or wanted_BN is None:
        return wanted_BN
    return torch.from_numpy(places_among(theirs_BM.numpy(), wanted_BN.numpy()))


def codes_stay(source: Member, target: Member) -> bool:
    """Whether the source's codes serve as they are: the same codec, and what it was fitted to if it is a fitted one."""
    ours, theirs = source.features, target.features
    assert ours is not None
    assert theirs is not None
    if ours.codec != theirs.codec:
        return ours.patch_dim is None
    return ours.codec != FITTED or (ours.sampled, ours.quality) == (theirs.sampled, theirs.quality)


def picked(rows_BM: Tensor, kept_BN: Tensor | None) -> Tensor:
    """(B, N, ...) of (B, M, ...)."""
    if kept_BN is None:
        return rows_BM
    index = kept_BN.to(rows_BM.device)
    return rows_BM.take_along_dim(index.reshape(*index.shape, *[1] * (rows_BM.ndim - 2)), dim=1)


def picked_features(features: Mapping[str, Tensor], kept_BN: Tensor | None) -> dict[str, Tensor]:
    """The patch tokens at the places given, and the CLS token."""
    return {kind: picked(x, kept_BN) if kind == "patch" else x for kind, x in features.items()}


def statistics(calibration: Calibration) -> dict[str, Any]:
    """All that standardizes."""
    by_kind = {"mean": calibration.mean, "std": calibration.std, "covariance": calibration.covariance}
    return {f"{kind} {name}": values for name, found in by_kind.items() for kind, values in found.items()}


def same_klt(one: Calibration, other: Calibration) -> bool:
    """Whether two calibrations hold the same fitted codec, or none."""
    return one.klt.keys() == other.klt.keys() and all(np.array_equal(one.klt[key], other.klt[key]) for key in one.klt)
