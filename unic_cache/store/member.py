"""A member of a cache: a teacher's folder, or the stored views. Its spec, its arrays, and its committed units."""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Self

from crc32c import crc32c

from unic_cache.config import CODERS, FITTED, RANDOM, SAMPLINGS
from unic_cache.errors import BrokenError, CacheError
from unic_cache.files.location import Location
from unic_cache.store.calibrate import Calibration
from unic_cache.store.codecs.codec import CODECS, FeatureCodec, Features
from unic_cache.store.codecs.pixel_codec import PIXEL_CODECS, PixelCodec
from unic_cache.store.commit import CommitRecord, Unit, calibration_of, parse_record
from unic_cache.store.layout import (
    ADDED,
    FORMAT,
    LATEST_FORMAT,
    VIEWS_MEMBER,
    ArraySpec,
    commit_folder,
    commit_name,
    format_of,
)
from unic_cache.store.seal import Ints, Seals, runs, tars_of
from unic_cache.token_kinds import check_size, kinds_from_json

LIMIT_ROW_BYTES = 2**28  # of one row of one array: the most that a hostile spec can make us allocate
LIMIT_SPEC_BYTES = 2**20
MAY_DIFFER = {"versions", "batch_size", "device", "calibration_images", "provenance"}  # see Member.ensure
UNPARSED = (ValueError, RecursionError, AttributeError, TypeError)  # what JSON of no spec makes `_parsed` raise


class Member:
    """A member's folder, its spec (plain JSON data), and the arrays that the spec implies.

    CacheError if this release cannot read the spec.
    """

    def __init__(self, location: Location, folder: str, spec: Mapping[str, Any]) -> None:
        self.location = location
        self.folder = folder
        self.spec = spec
        self.features: Features | None = None  # None for stored views
        self.pixel_codec: PixelCodec | None = None  # None for teachers
        self._codec: FeatureCodec | None = None
        self._calibration_crc: int | None = None  # once known
        self.seals = Seals(location, folder, self.calibration_crc)
        where = f"{location.url}/{folder}/spec.json"
        try:
            _check_format(spec)
            if folder == VIEWS_MEMBER:
                self.pixel_codec = _pixel_codec(spec)
            else:
                self.features = _features(spec)
                if not self.needs_calibration:
                    self._codec = FeatureCodec(self.features)
        except CacheError as error:
            raise CacheError(f"{where}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CacheError(f"{where}: not a spec that this release reads ({error!r:.200})") from error

    @property
    def needs_calibration(self) -> bool:
        """Whether even the arrays' shapes depend on the calibration."""
        return self.features is not None and bool(self.features.fitted)

    @property
    def codec(self) -> FeatureCodec | None:
        """How tokens are stored; None for stored views. CacheError if a needed calibration is missing or broken."""
        if self._codec is None and self.features is not None:
            # no cached_property: in Python 3.11 one lock for all members would be held while the store is read
            self._codec = self._fitted(self.features)
        return self._codec

    def _fitted(self, features: Features) -> FeatureCodec:
        found = self.calibration()
        if found is None:
            raise CacheError(
                f"{self.location.url}/{self.calibration_name} is missing, and nothing of codec {FITTED} can be read "
                "without it; put it back, or make it with the `unic-cache extract` that made the cache"
            )
        try:
            return found[0].codec(features)
        except CacheError as error:
            raise CacheError(f"{self.location.url}/{self.calibration_name}: {error}") from error

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """Every array of the member. CacheError as for `codec`."""
        if self.pixel_codec is not None:
            return (self.pixel_codec.array(self.spec["size"]),)
        assert self.codec is not None
        return self.codec.arrays

    @classmethod
    def open(cls, location: Location, folder: str) -> Self | None:
        """The member that spec.json describes; None without one. CacheError if it is broken or not readable."""
        where = f"{location.url}/{folder}/spec.json"
        data = read_within(location, f"{folder}/spec.json", LIMIT_SPEC_BYTES)
        if data is None:
            return None
        try:
            spec, own = _parsed(data)
        except UNPARSED as error:
            raise CacheError(f"{where}: not the JSON of a spec ({error})") from error
        member = cls(location, folder, spec)
        if own not in (None, _checksum(spec)):
            raise CacheError(f"{where}: its checksum does not fit its content; put back a copy of it")
        return member

    @classmethod
    def ensure(cls, location: Location, folder: str, spec: Mapping[str, Any]) -> Self:
        """Create spec.json, or open an existing one that agrees. CacheError as for `agreeing`."""
        cls(location, folder, spec)  # or CacheError, before it is written
        location.create(f"{folder}/spec.json", spec_bytes(spec))
        found = cls.agreeing(location, folder, spec)
        if found is None:
            raise CacheError(f"{location.url}/{folder}/spec.json vanished while it was read; start again")
        return found

    @classmethod
    def agreeing(cls, location: Location, folder: str, spec: Mapping[str, Any]) -> Self | None:
        """The member in the cache, or None. CacheError naming the first setting that is not as in `spec`.

        `versions`, `batch_size`, `calibration_images` and `device` may differ, as they change features within
        tolerance only; so may `provenance`, the origin of the same weights.
        """
        wanted, found = cls(location, folder, spec), cls.open(location, folder)
        if found is None:
            return None
        plain = json.loads(json.dumps(wanted.spec))
        settings = (set(spec) | set(found.spec)) - MAY_DIFFER - {"format"}  # which follows from the others
        for key in sorted(settings, key=lambda key: (key in ADDED, key)):
            mine, theirs = (one.get(key, ADDED.get(key)) for one in (plain, found.spec))
            if mine != theirs:
                raise CacheError(
                    f"{location.url}/{folder} was made with {_difference(key, theirs, mine)}; "
                    "use the same settings, or another --cache"
                )
        return found

    @property
    def calibration_name(self) -> str:
        """The calibration's name in the cache."""
        return f"{self.folder}/calibration.npz"

    def calibration(self) -> tuple[Calibration, int] | None:
        """The calibration and its crc32c, or None before it is made. CacheError if it is broken."""
        data = self.location.read(self.calibration_name)
        if data is None:
            return None
        calibration = Calibration.from_bytes(data, f"{self.location.url}/{self.calibration_name}")
        self._calibration_crc = crc32c(data)
        return calibration, self._calibration_crc

    def calibration_crc(self) -> int | None:
        """The crc32c of the calibration, whole or not; None before it is made."""
        if self._calibration_crc is None and self.features is not None:
            data = self.location.read(self.calibration_name)
            self._calibration_crc = None if data is None else crc32c(data)
        return self._calibration_crc

    def committed(self, segment: int, view: str, rows: Ints) -> Collection[int]:
        """The tars with a record under a view, of a segment's of so many `rows`: by seals that fit, or by its name."""
        tars = len(rows)
        if not runs(tars):
            return _tars(self.location.names(commit_folder(self.folder, segment, view)))
        sealed = self.seals.fitting(segment, view, rows)
        unsealed = sorted(set(runs(tars)).difference(sealed))
        if not unsealed:
            return range(tars)
        between = range(tars_of(unsealed[0], tars).start, tars_of(unsealed[-1], tars).stop)
        return self.recorded(segment, view, between).union(*(tars_of(run, tars) for run in sealed))

    def recorded(self, segment: int, view: str, between: range) -> set[int]:
        """Those of a few neighbouring tars that have a commit record under a view, by its name."""
        folder = commit_folder(self.folder, segment, view)
        return _tars(self.location.names_between(folder, f"{between.start:06d}", f"{between.stop:06d}"))

    def record(self, unit: Unit) -> CommitRecord | None:
        """The unit's commit record, or None. BrokenError if it is unreadable or does not fit the unit."""
        data = self.record_bytes(unit)
        return None if data is None else self.parse(data, unit)

    def calibration_of(self, unit: Unit) -> int | None:
        """The checksum of the calibration that a committed unit was made with, which may be lost since."""
        data = self.record_bytes(unit)
        try:
            return None if data is None else calibration_of(data, self.folder, unit)
        except CacheError as error:
            raise BrokenError(str(error)) from error

    def record_bytes(self, unit: Unit) -> bytes | None:
        """The unit's commit record as stored, or None. BrokenError if the file is longer than a record can be."""
        name = commit_name(self.folder, unit.segment, unit.view, unit.shard)
        return read_within(self.location, name, 2**16 + 2**10 * unit.rows)

    def parse(self, data: bytes, unit: Unit) -> CommitRecord:
        """The record in `data`. BrokenError if it is unreadable or does not fit the unit."""
        try:
            return parse_record(data, self.folder, unit, self.arrays)
        except CacheError as error:
            raise BrokenError(str(error)) from error


def _tars(names: Iterable[str]) -> set[int]:
    """The numbers of the tars whose commit records have these names."""
    stems = [name.rpartition("/")[2].removesuffix(".json") for name in names if name.endswith(".json")]
    return {int(stem) for stem in stems if stem.isdigit()}


def read_within(location: Location, name: str, limit: int) -> bytes | None:
    """A whole file, or None if it is absent. BrokenError over `limit` bytes."""
    try:
        data = location.read_range(name, 0, limit + 1)
    except FileNotFoundError:
        return None
    if len(data) > limit:
        raise BrokenError(f"{location.url}/{name}: over {limit} bytes; refused")
    return data


def whole_spec(data: bytes) -> dict[str, Any] | None:
    """The content of a spec.json, or None if it is not JSON of a spec, or its checksum does not fit."""
    try:
        spec, own = _parsed(data)
    except UNPARSED:
        return None
    return spec if isinstance(spec, dict) and own in (None, _checksum(spec)) else None


def spec_bytes(spec: Mapping[str, Any]) -> bytes:
    """spec.json: sorted keys, and `self`, the crc32c of the rest, which reveals a changed byte."""
    return (json.dumps({**spec, "self": _checksum(spec)}, sort_keys=True, indent=1) + "\n").encode()


def _parsed(data: bytes) -> tuple[Any, Any]:
    """The JSON of a spec, and the checksum in it."""
    spec = json.loads(data)
    return spec, spec.pop("self", None)


def _checksum(spec: Mapping[str, Any]) -> int:
    return int(crc32c(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()))


def _check_format(spec: Mapping[str, Any]) -> None:
    """CacheError if this release does not know the spec's format, or the spec is of another one than it says."""
    found = spec["format"]
    if found not in range(FORMAT, LATEST_FORMAT + 1):
        raise CacheError(
            f"format {found!r:.20}, but this release reads formats {FORMAT} to {LATEST_FORMAT}; upgrade it"
        )
    if found != format_of(spec):
        newer = " and ".join([key for key in ADDED if key in spec] or ADDED)
        raise CacheError(f"says format {found}, which does not fit its {newer}; put back a copy of it")


def _pixel_codec(spec: Mapping[str, Any]) -> PixelCodec:
    codec, size = spec.get("codec", "raw"), check_size(spec["size"])
    if codec not in PIXEL_CODECS:
        raise CacheError(f"pixel codec {codec!r:.40} is unknown to this release; it knows {', '.join(PIXEL_CODECS)}")
    if size * size * 3 > LIMIT_ROW_BYTES:
        raise CacheError(f"describes rows of 0, or of over {LIMIT_ROW_BYTES} bytes; refused")
    return PIXEL_CODECS[codec]


def _features(spec: Mapping[str, Any]) -> Features:
    name = spec["codec"]
    if not isinstance(name, str) or name not in CODECS:
        raise CacheError(f"codec {name!r:.40} is unknown to this release; it knows {', '.join(CODECS)}")
    kinds = kinds_from_json(spec["features"])
    sampled = None if spec.get("tokens") is None else check_size(spec["tokens"])
    sampling, coder = spec.get("sampling", RANDOM), spec.get("coder", CODERS[0])
    if sampling not in SAMPLINGS:
        raise CacheError(f"sampling {sampling!r:.40} is unknown to this release; it knows {', '.join(SAMPLINGS)}")
    for key in ("quality", "cls_quality"):
        if (asked := spec.get(key)) is not None and not (isinstance(asked, float) and 0 < asked < 1):
            raise ValueError(f"{key} {asked!r:.40} is not a mean cosine")
    if coder not in CODERS:
        raise CacheError(f"coder {coder!r:.40} is unknown to this release; it knows {', '.join(CODERS)}")
    for key in ("coder", "cls_quality"):
        if key in spec and name != FITTED:
            raise ValueError(f"{key} is a setting of codec {FITTED}")
    features = Features(name, kinds, sampled, spec.get("quality"), sampling, coder, spec.get("cls_quality"))
    if not 0 < 2 * sum(math.prod(features.row(kind)) for kind in kinds) <= LIMIT_ROW_BYTES:
        raise CacheError(f"describes rows of 0, or of over {LIMIT_ROW_BYTES} bytes; refused")
    return features


def _difference(key: str, theirs: Any, mine: Any) -> str:
    """The first leaf where two JSON values differ, as 'key THEIRS, not MINE'."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        for part in sorted(set(theirs) | set(mine)):
            if theirs.get(part) != mine.get(part):
                return _difference(f"{key}.{part}", theirs.get(part), mine.get(part))
    return f"{key} {json.dumps(theirs):.200}, not {json.dumps(mine):.200}"
