"""One member of a cache: a teacher's folder, or the kept pixels. What its files mean, and which units are committed."""

import json
from collections.abc import Mapping
from typing import Any, Self

from crc32c import crc32c

from unic_cache.config import CODECS, FITTED, PIXEL_CODECS
from unic_cache.errors import BrokenError, CacheError
from unic_cache.files.location import Location
from unic_cache.store.calibrate import Calibration
from unic_cache.store.codecs.codec import FeatureCodec, Features
from unic_cache.store.commit import CommitRecord, Unit, calibration_of, parse_record
from unic_cache.store.layout import FORMAT, VIEWS_MEMBER, ArraySpec, commit_folder, commit_name, pixel_arrays

LIMIT_ROW_BYTES = 2**28  # of one row of one array: what a hostile spec may make us allocate
LIMIT_SPEC_BYTES = 2**20


class Member:
    """A member's folder name, its spec (plain JSON data) and the arrays that the spec implies."""

    def __init__(self, location: Location, folder: str, spec: Mapping[str, Any]) -> None:
        self.location = location
        self.folder = folder
        self.spec = spec
        self.features: Features | None = None  # None for the kept pixels
        self._codec: FeatureCodec | None = None
        where = f"{location.url}/{folder}/spec.json"
        try:
            if spec["format"] != FORMAT:
                raise CacheError(f"format {spec['format']!r:.20}, but this release reads format {FORMAT}; upgrade it")
            if folder == VIEWS_MEMBER:
                _ = self.arrays
            else:
                self.features = _features(spec)
                if not self.needs_calibration:
                    _ = self.codec
        except CacheError as error:
            raise CacheError(f"{where}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise CacheError(f"{where}: not a spec that this release reads ({error!r:.200})") from error

    @property
    def needs_calibration(self) -> bool:
        """Whether not even the arrays' shapes are known without it."""
        return self.features is not None and self.features.fitted

    @property
    def codec(self) -> FeatureCodec | None:
        """How features are kept; None for the kept pixels. CacheError where a calibration that it needs is missing."""
        if self._codec is None and self.features is not None:
            # no cached_property: in Python 3.11 its lock, one for all members, would be held while the store is read
            self._codec = self._fitted(self.features) if self.needs_calibration else FeatureCodec(self.features)
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
        """Every array of the member."""
        return _pixel_arrays(self.spec) if self.codec is None else self.codec.arrays

    @classmethod
    def open(cls, location: Location, folder: str) -> Self | None:
        """The member as its spec.json describes it, or None where there is no such member."""
        where = f"{location.url}/{folder}/spec.json"
        data = read_within(location, f"{folder}/spec.json", LIMIT_SPEC_BYTES)
        if data is None:
            return None
        try:
            spec = json.loads(data)
            own = spec.pop("self", None)
        except (ValueError, RecursionError, AttributeError, TypeError) as error:
            raise CacheError(f"{where}: not the JSON of a spec ({error})") from error
        member = cls(location, folder, spec)
        if own is not None and own != _checksum(spec):
            raise CacheError(f"{where}: its checksum does not fit its content; put back a copy of it")
        return member

    @classmethod
    def ensure(cls, location: Location, folder: str, spec: Mapping[str, Any]) -> Self:
        """Create spec.json, or open the one that stands there if it says the same.

        `versions`, `batch_size`, `calibration_images` and `device` may differ, as they move features within tolerance
        only, and so may `provenance`: where the same weights came from.
        """
        wanted = cls(location, folder, spec)
        location.create(f"{folder}/spec.json", spec_bytes(spec))
        found = cls.open(location, folder)
        if found is None:
            raise CacheError(f"{location.url}/{folder}/spec.json vanished while it was read; start again")
        free = {"versions", "batch_size", "device", "calibration_images", "provenance"}
        for key in sorted((set(spec) | set(found.spec)) - free):
            mine, theirs = _plain(wanted.spec.get(key)), found.spec.get(key)
            if mine != theirs:
                raise CacheError(
                    f"{location.url}/{folder} was made with {_difference(key, theirs, mine)}; "
                    "use the same settings, or another --cache"
                )
        return found

    @property
    def calibration_name(self) -> str:
        """Where the calibration stands in the cache."""
        return f"{self.folder}/calibration.npz"

    def calibration(self) -> tuple[Calibration, int] | None:
        """The calibration and its crc32c, or None before it is made."""
        data = self.location.read(self.calibration_name)
        if data is None:
            return None
        calibration = Calibration.from_bytes(data, f"{self.location.url}/{self.calibration_name}")
        return calibration, crc32c(data)

    def committed(self, segment: int, view: str) -> set[int]:
        """The tars of a segment that have a record under a view."""
        names = self.location.names(commit_folder(self.folder, segment, view))
        stems = [name.rpartition("/")[2].removesuffix(".json") for name in names if name.endswith(".json")]
        return {int(stem) for stem in stems if stem.isdigit()}

    def record(self, unit: Unit) -> CommitRecord | None:
        """The unit's commit record, checked; None where there is none. BrokenError where it does not fit the unit."""
        data = self.record_bytes(unit)
        return None if data is None else self.parse(data, unit)

    def calibration_of(self, unit: Unit) -> int | None:
        """The checksum of the calibration that a committed unit was made with, whether or not it still stands."""
        data = self.record_bytes(unit)
        try:
            return None if data is None else calibration_of(data, self.folder, unit)
        except CacheError as error:
            raise BrokenError(str(error)) from error

    def record_bytes(self, unit: Unit) -> bytes | None:
        """The file of the unit's commit record; a longer one than a record can be is refused."""
        name = commit_name(self.folder, unit.segment, unit.view, unit.shard)
        return read_within(self.location, name, 2**16 + 2**10 * unit.rows)

    def parse(self, data: bytes, unit: Unit) -> CommitRecord:
        """What `record_bytes` gave, checked."""
        try:
            return parse_record(data, self.folder, unit, self.arrays)
        except CacheError as error:
            raise BrokenError(str(error)) from error


def read_within(location: Location, name: str, limit: int) -> bytes | None:
    """A whole small file, or None where there is none; BrokenError where it is larger than what it is can be."""
    try:
        data = location.read_range(name, 0, limit + 1)
    except FileNotFoundError:
        return None
    if len(data) > limit:
        raise BrokenError(f"{location.url}/{name}: over {limit} bytes; refused")
    return data


def whole_spec(data: bytes) -> dict[str, Any] | None:
    """The content of a spec.json whose own checksum fits it; None where it does not, or where it is no such file."""
    try:
        spec = json.loads(data)
        own = spec.pop("self", None)
    except (ValueError, RecursionError, AttributeError, TypeError):
        return None
    return spec if isinstance(spec, dict) and own in {None, _checksum(spec)} else None


def spec_bytes(spec: Mapping[str, Any]) -> bytes:
    """spec.json: sorted keys, and `self`, the crc32c of the rest, so that a changed byte is told."""
    return (json.dumps({**spec, "self": _checksum(spec)}, sort_keys=True, indent=1) + "\n").encode()


def _checksum(spec: Mapping[str, Any]) -> int:
    return int(crc32c(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()))


def _pixel_arrays(spec: Mapping[str, Any]) -> tuple[ArraySpec, ...]:
    codec, size = spec.get("codec", "raw"), _bounded(spec["size"])
    if codec not in PIXEL_CODECS:
        raise CacheError(
            f"pixels kept as {codec!r:.40} are unknown to this release; it knows {', '.join(PIXEL_CODECS)}"
        )
    if size * size * 3 > LIMIT_ROW_BYTES:
        raise CacheError(f"describes rows of no or over {LIMIT_ROW_BYTES} bytes; refused")
    return pixel_arrays(size, codec)


def _features(spec: Mapping[str, Any]) -> Features:
    name, dims = spec["codec"], spec["features"]
    if not isinstance(name, str) or name not in CODECS:
        raise CacheError(f"codec {name!r:.40} is unknown to this release; it knows {', '.join(CODECS)}")
    cls_dim = None if dims["cls_dim"] is None else _bounded(dims["cls_dim"])
    patch_dim = None if dims["patch_dim"] is None else _bounded(dims["patch_dim"])
    height, width = (_bounded(side) for side in dims["grid"] or (1, 1))
    sampled = None if spec.get("tokens") is None else _bounded(spec["tokens"])
    quality = spec.get("quality")
    if quality is not None and not (isinstance(quality, float) and 0 < quality < 1):
        raise ValueError(f"quality {quality!r:.40} is not a mean cosine")
    features = Features(name, cls_dim, (height, width), patch_dim, sampled, quality)
    if not 0 < 2 * max(cls_dim or 0, features.tokens * (patch_dim or 0)) <= LIMIT_ROW_BYTES:
        raise CacheError(f"describes rows of no or over {LIMIT_ROW_BYTES} bytes; refused")
    if patch_dim is not None and sampled is not None and sampled > height * width:
        raise CacheError(
            f"keeps {sampled} tokens of each view, but the grid of {height} x {width} has {height * width}; say fewer "
            "with --tokens"
        )
    return features


def _bounded(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**20:
        raise ValueError(f"{value!r:.40} is not a size between 1 and 2**20")
    return value


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _difference(key: str, theirs: Any, mine: Any) -> str:
    """The first leaf in which two JSON values differ, as 'key THEIRS, not MINE'."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        for part in sorted(set(theirs) | set(mine)):
            if theirs.get(part) != mine.get(part):
                return _difference(f"{key}.{part}", theirs.get(part), mine.get(part))
    return f"{key} {json.dumps(theirs):.200}, not {json.dumps(mine):.200}"
