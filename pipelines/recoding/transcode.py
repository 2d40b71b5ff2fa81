"""Convert one teacher's stored features from one cache's codec to another's.

    stored rows -> decode -> pick tokens -> encode -> stored rows

Mean, std and covariance stay equal to the bit, so that a student's targets stay comparable; `klt` is fitted anew, to
the source's decoded features. A token kind whose codec and quality stay keeps its codes: if tokens are dropped and each
code belongs to one token, those of the others are copied; if only the coder changes, they are packed for the other one.

Letters: B images, M patch tokens in the source, N in the target.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import torch
from crc32c import crc32c
from torch import Tensor

from pipelines.command.progress import Progress
from pipelines.extracting.calibrating import check_calibration
from pipelines.extracting.recorder import sampled
from pipelines.extracting.sampling_rules import sampling_rules
from pipelines.extracting.specs import fitted_settings
from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import FITTED, FITTED_SETTINGS, LATTICE, RANDOM, RecodeConfig
from unic_cache.errors import CacheError
from unic_cache.files.location import Location
from unic_cache.store.calibrate import FIT_IMAGES, HELD_OUT, Calibration, refit
from unic_cache.store.codecs.fixed import Encoded
from unic_cache.store.codecs.klt import prefix, unprefixed
from unic_cache.store.layout import ADDED, format_of
from unic_cache.store.member import Member
from unic_cache.store.npz import save_npz
from unic_cache.store.reader import RowArray
from unic_cache.store.sampling import Sample, at_positions, coarser, places_among
from unic_cache.store.writer import UnitWriter
from unic_cache.stream.address import addresses, shown
from unic_cache.stream.row_samples import spread

WRITERS = ("zarr", "pcodec")  # of the target's objects
SAMPLE_IMAGES = FIT_IMAGES * HELD_OUT // (HELD_OUT - 1)  # a fifth of them measures fidelity


@dataclass(frozen=True, eq=False)
class Transcoder:
    """A teacher in the source cache and in the target."""

    source: CachedTeacher
    target: Member
    writer: UnitWriter
    calibration: Calibration  # the target's
    device: torch.device

    @cached_property
    def stays(self) -> frozenset[str]:
        """The token kinds whose codes go on."""
        return codes_that_stay(self.source.member, self.target)

    @property
    def grids_stay(self) -> bool:
        """Whether the codes of all grid tokens go on."""
        return all(name in self.stays for name, kind in self.source.kinds.items() if kind.grid)

    def encode(self, parts: Mapping[str, RowArray], seed: int, shown: Sequence[tuple[int, int]]) -> Encoded:
        """The target's rows, on the CPU, of the source's rows of (sample key, view number) `shown`."""
        assert self.target.codec is not None
        here = {name: torch.from_numpy(rows).to(self.device) for name, rows in parts.items()}
        kept_BN = kept_among(self.source.member, self.target, seed, shown)
        summary = {name for name, kind in self.source.kinds.items() if kind.grid is None}
        place_BN = slice(None) if kept_BN is None else (torch.arange(len(kept_BN))[:, None], kept_BN)
        copied = {name: here.pop(name) for name in self.source.codec.names(self.stays)}
        copied = {name: rows if name in summary else rows[place_BN] for name, rows in copied.items()}
        arrays, clipped_B = self.target.codec.repacked(copied, self.source.codec), None
        if here:
            made = self.target.codec.encode(at_positions(self.source.codec.decode(here), kept_BN))
            arrays, clipped_B = {**arrays, **made.arrays}, made.clipped_B
        return Encoded(
            {name: rows.cpu() for name, rows in arrays.items()}, None if clipped_B is None else clipped_B.cpu()
        )


def target_spec(config: RecodeConfig, source: CachedTeacher, location: Location) -> dict[str, Any]:
    """spec.json in the target at `location`: the source's with another codec, quality and tokens, and its origin.

    Settings of the teacher in the target that the config leaves open stay. CacheError if tokens are asked for that
    the source does not keep.
    """
    before = Member.open(location, source.member.folder)
    stands = (source.member if before is None else before).spec
    asked = any(getattr(config, name) is not None for name in FITTED_SETTINGS)
    codec = config.codec or (FITTED if asked else stands["codec"])
    tokens = stands.get("tokens") if config.tokens is None else config.tokens
    sampling = target_sampling(config, source, location, tokens)
    provenance = source.spec["provenance"]
    came = {
        **{key: source.spec.get(key) for key in ("codec", "quality", "tokens")},
        **{key: source.spec[key] for key in ADDED if key in source.spec},
        "fidelity": dict(source.calibration.fidelity),
        **{key: provenance[key] for key in ("recoded_from",) if key in provenance},
    }
    made = {
        **{key: value for key, value in source.spec.items() if key not in {*FITTED_SETTINGS, "sampling"}},
        "codec": codec,
        **(fitted_settings(config, stands, source.kinds) if codec == FITTED else {}),
        "tokens": tokens,
        **({"sampling": LATTICE} if sampling == LATTICE else {}),
        "provenance": {**provenance, "recoded_from": came},
        "versions": {**source.spec["versions"], **{name: version(name) for name in WRITERS}},
    }
    return {**made, "format": format_of(made)}


def target_sampling(config: RecodeConfig, source: CachedTeacher, location: Location, tokens: int | None) -> str:
    """The rule by which the target at `location` keeps `tokens` of each view: as asked, or the source's.

    Of whole grids it is what `extract` would choose. ConfigError for a rule without tokens, or a lattice that the grid
    lacks; CacheError if the source does not keep these tokens.
    """
    features, url = source.codec.features, source.member.location.url
    grid, stored = features.grid, features.sample
    if grid is None or stored is None:
        return RANDOM
    wanted = tokens or math.prod(grid)
    if wanted > features.tokens:
        raise CacheError(
            f"{source.name}: {wanted} patch tokens of each view are asked for, but {url} keeps {features.tokens}; "
            "`recode` only drops tokens: ask for fewer, or extract into another cache"
        )
    rule = features.sampling if features.sampled and tokens and config.sampling is None else None
    target = Sample(rule or sampling_rules(tokens, config.sampling, location, {source.name: grid})[source.name], wanted)
    if not stored.holds(target, grid):
        counts = " or ".join(map(str, coarser(stored, grid)))
        served = f"--tokens {counts} and --sampling {LATTICE}" if counts else f"--sampling {RANDOM}"
        raise CacheError(
            f"{source.name}: {target} of each view's patch tokens are asked for, but {url} keeps {stored}, which need "
            f"not be the same; choose {served}, or extract into another cache"
        )
    return target.rule


def transcoder(
    cache: Cache, source: CachedTeacher, spec: Mapping[str, Any], location: Location, device: torch.device
) -> Transcoder:
    """Open a teacher in both caches; create the target's spec and calibration. CacheError if it has other ones."""
    target = Member.ensure(location, source.member.folder, spec)
    same_origin(source, spec, target)
    if target.calibration() is None:
        made = recalibrated(cache, source, target).to_bytes()
        check_calibration(Cache(location), target, crc32c(made))
        location.create(target.calibration_name, made)
    found = same_statistics(source, target)
    if found is None:
        raise CacheError(f"{location.url}/{target.calibration_name} vanished; start again")
    return Transcoder(source, target, UnitWriter(target, found[1]), found[0], device)


def check_target(source: CachedTeacher, spec: Mapping[str, Any], location: Location) -> None:
    """CacheError if the target at `location` has the teacher by other settings or with other statistics."""
    target = Member.agreeing(location, source.member.folder, spec)
    if target is not None:
        same_statistics(source, target)
        same_origin(source, spec, target)


def same_origin(source: CachedTeacher, spec: Mapping[str, Any], target: Member) -> None:
    """CacheError unless the target's features come from those of such a source: their fidelity is recorded once.

    A copy of the source itself has its codes and its origin.
    """
    ours = json.loads(json.dumps(spec["provenance"]["recoded_from"]))
    theirs, found = target.spec["provenance"].get("recoded_from"), target.calibration()
    if (
        found is not None
        and found[0].fidelity == source.calibration.fidelity
        and codes_that_stay(source.member, target) == source.kinds.keys()
        and theirs == source.spec["provenance"].get("recoded_from")
    ):
        return
    where, url = f"{target.location.url}/{target.folder}", source.member.location.url
    if not isinstance(theirs, dict):
        raise CacheError(
            f"{where} holds features that `extract` made, and those of {url} would be recoded; choose another DST"
        )
    if any(ours[key] != value for key, value in theirs.items() if key in ours):
        raise CacheError(
            f"{where} was recoded from another source, of codec {theirs.get('codec')}, than {url}, of codec "
            f"{ours['codec']}; all features of a teacher come from one, whose fidelity is recorded: choose another DST"
        )


def same_statistics(source: CachedTeacher, target: Member) -> tuple[Calibration, int] | None:
    """The target's calibration and its checksum; None before it is made. CacheError if it is not of the source."""
    found = target.calibration()
    if found is None:
        return None
    where = f"{target.location.url}/{target.calibration_name} is not of {source.member.location.url}"
    ours, theirs = (dataclasses.replace(one, fidelity={}, klt={}) for one in (source.calibration, found[0]))
    if ours.to_bytes() != theirs.to_bytes():
        raise CacheError(f"{where}: its statistics differ, and two standardizations do not mix; choose another DST")
    for kind in codes_that_stay(source.member, target):
        tables = [save_npz(unprefixed(kind, one.klt)) for one in (source.calibration, found[0])]
        if tables[0] != tables[1]:
            raise CacheError(f"{where}: its codec {FITTED} was fitted to other {kind} tokens; choose another DST")
    return found


def recalibrated(cache: Cache, source: CachedTeacher, target: Member) -> Calibration:
    """The source's statistics, the target's codec fitted to the source's features, and its fidelity to those."""
    assert target.features is not None
    stays, known = codes_that_stay(source.member, target), source.calibration
    same = dict.fromkeys(stays & known.fidelity.keys(), 1.0)
    if stays == source.kinds.keys():
        return dataclasses.replace(known, fidelity=same)
    try:
        found = refit(known, target.features, sample(cache, source, target))
    except CacheError as error:
        raise type(error)(f"{source.name}: {error}") from error
    kept = {f"{prefix(kind)}{name}": x for kind in stays for name, x in unprefixed(kind, known.klt).items()}
    return dataclasses.replace(found, klt={**found.klt, **kept}, fidelity={**found.fidelity, **same})


def sample(cache: Cache, source: CachedTeacher, target: Member) -> Iterator[dict[str, Tensor]]:
    """Standardized features of some good images, evenly over all committed units; only the tokens that go on."""
    units = cache.units(source.member)
    with Progress(f"calibrate {source.name}", sum(unit.rows for unit in units), "images") as progress:
        for unit, rows in spread(units, SAMPLE_IMAGES):
            record = source.record(unit)
            assert record is not None
            good = [row for row in rows if row not in record.bad]
            progress.advance(len(rows))
            if good:
                kept_BN = kept_among(source.member, target, unit.views.seed, shown(cache, addresses(unit, good)))
                yield at_positions(source.features(record, good), kept_BN)


def kept_among(source: Member, target: Member, seed: int, shown: Sequence[tuple[int, int]]) -> Tensor | None:
    """(B, N) places of the tokens that go on among the source's stored ones; None if all go on."""
    assert source.features is not None
    assert target.features is not None
    if source.features.tokens == target.features.tokens:
        return None
    theirs_BM, wanted_BN = sampled(source, seed, shown), sampled(target, seed, shown)
    if theirs_BM is None or wanted_BN is None:
        return wanted_BN
    return torch.from_numpy(places_among(theirs_BM.numpy(), wanted_BN.numpy()))


def codes_that_stay(source: Member, target: Member) -> frozenset[str]:
    """The token kinds whose codes go on: the codec is the same, and fitted to the same tokens if fitted."""
    ours, theirs = source.features, target.features
    assert ours is not None
    assert theirs is not None
    same_tokens = ours.sample == theirs.sample
    return frozenset(
        name
        for name, kind in ours.kinds.items()
        if ours.codec_of(name) == theirs.codec_of(name)
        and ours.fitted.get(name) == theirs.fitted.get(name)
        and (same_tokens or kind.grid is None or name not in ours.fitted)
    )
