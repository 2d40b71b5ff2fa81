"""How much of a planned extraction the cache holds already: it is neither made nor written again."""

from collections.abc import Mapping

from unic_cache.cache import Cache
from unic_cache.config import PlanConfig
from unic_cache.store.codecs.codec import Features
from unic_cache.store.member import Member


class Held:
    """What a cache holds of a plan; `shards` maps the name of each planned tar to its rows."""

    def __init__(self, config: PlanConfig, cache: Cache, shards: Mapping[str, int]) -> None:
        self._views = [config.kind.name(number) for number in range(config.count)]
        self._cache = cache
        self._shards = shards

    def of_teacher(self, name: str, features: Features, coder: str) -> float:
        """Share of all views, 0 to 1, whose features the cache holds as `features` describes them, by this coder."""
        teacher = self._cache.teachers.get(name)
        if teacher is None:
            return 0.0
        kept = teacher.codec.features
        same = kept.coder == coder and all(
            getattr(kept, what) == getattr(features, what) for what in ("codec", "sampled", "sampling", "cls_quality")
        )
        return self._share(teacher.member) if same and kept.quality in {features.quality, None} else 0.0

    def of_pixels(self, codec: str) -> float:
        """Share of all views, 0 to 1, whose pixels the cache holds under that codec."""
        pixels = self._cache.pixels
        return self._share(pixels) if pixels is not None and pixels.spec.get("codec", codec) == codec else 0.0

    def _share(self, member: Member) -> float:
        places = self._cache.shards()
        rows = 0
        for view in self._views:
            tars = {
                (one.number, tar)
                for one in self._cache.segments
                for tar in member.committed(one.number, view, one.counts)
            }
            rows += sum(size for name, size in self._shards.items() if places.get(name) in tars)
        return rows / (len(self._views) * sum(self._shards.values()))
