"""How much of a planned extraction the cache holds already: that is neither made nor written again."""

from collections.abc import Mapping

from pipelines.planning.forecast import PlanConfig
from unic_cache.cache import Cache
from unic_cache.files.schemes import open_location
from unic_cache.store.codecs.codec import Features
from unic_cache.store.member import Member


class Held:
    """The cache as it stands; `shards` maps the name of each tar of the plan to its rows."""

    def __init__(self, config: PlanConfig, shards: Mapping[str, int]) -> None:
        self._views = [config.kind.name(number) for number in range(config.count)]
        self._cache = Cache(open_location(config.cache))
        self._shards = shards

    def of_teacher(self, name: str, features: Features) -> float:
        """The share of all views whose features stand there, kept as `features` says; 0 to 1."""
        teacher = self._cache.teachers.get(name)
        if teacher is None:
            return 0.0
        kept = teacher.codec.features
        same = (kept.codec, kept.sampled) == (features.codec, features.sampled)
        return self._share(teacher.member) if same and kept.quality in {features.quality, None} else 0.0

    def calibrated(self, name: str) -> bool:
        """Whether the teacher's calibration stands there."""
        return name in self._cache.teachers

    @property
    def pixels(self) -> Member | None:
        """The member `views` as it stands."""
        return self._cache.pixels

    def of_pixels(self, codec: str) -> float:
        """The share of all views whose pixels stand there, by that codec."""
        pixels = self.pixels
        return self._share(pixels) if pixels is not None and pixels.spec.get("codec", codec) == codec else 0.0

    def _share(self, member: Member) -> float:
        places = self._cache.shards()
        rows = 0
        for view in self._views:
            tars = {(s.number, tar) for s in self._cache.segments for tar in member.committed(s.number, view)}
            rows += sum(size for name, size in self._shards.items() if places.get(name) in tars)
        return rows / (len(self._views) * sum(self._shards.values()))
