"""The caches that runs read: one in float16 per base, extracted once, and others recoded from it, once each.

    WORK/caches/BASE/f16           all views of the trained images, and one view of each held-out image
    WORK/caches/BASE/klt-0.96      the same units under another codec or with fewer tokens

The stages make only what is missing, so a stopped study goes on where it was.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.runs import Kept
from benchmarks.study.sets import Sets
from pipelines import extract, recode
from pipelines.command.caches import opened
from unic_cache.config import EXACT, FITTED, ExtractConfig, RecodeConfig
from unic_cache.errors import ShardError
from unic_cache.views.shards import describe, expand

WEIGHTS = tuple[tuple[str, str], ...]


class Caches:
    """Caches by the `images` and `cache` of a run's settings, each completed once per process."""

    def __init__(self, work: Path, sets: Sets, weights: WEIGHTS = ()) -> None:
        self._folder, self._sets, self._weights = work / "caches", sets, weights
        self._whole: set[Path] = set()

    def trained(self, images: Mapping[str, Any]) -> str:
        """The pattern of the tars that a base's runs are trained on: the first that hold as many images."""
        return first_tars(self._sets.distilled, images["images"])

    def held_out(self) -> str:
        """The pattern of the tars of images that no run is trained on."""
        return self._sets.held_out

    def base(self, images: Mapping[str, Any]) -> Path:
        """The float16 cache of a base."""
        path = self._folder / images["base"] / Kept().name
        if path not in self._whole:
            views = images["views"] + images["unseen_views"]
            for shards, count in ((self.trained(images), views), (self._sets.held_out, 1)):
                extract.run(
                    ExtractConfig(
                        teachers=tuple(images["teachers"]),
                        weights=self._weights,
                        shards=shards,
                        cache=str(path),
                        views=count,
                        recipe="unic",
                        size=images["size"],
                        codec="f16",
                        keep_views=True,
                        pixel_codec="compact",
                    )
                )
            self._whole.add(path)
        return path

    def of(self, settings: Mapping[str, Any]) -> Path:
        """The cache that a run is trained from."""
        source, kept = self.base(settings["images"]), Kept(**settings["cache"])
        path = source.parent / kept.name
        if path not in self._whole:
            summaries = {"cls_quality": EXACT} if kept.codec == FITTED and kept.cls_quality is None else {}
            recode.run(RecodeConfig(str(source), str(path), **kept.to_json(), **summaries))
            self._whole.add(path)
        return path

    def bytes_kept(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Bytes of features per view of the trained images, and how many times smaller that is than float16."""
        names = [entry.name for entry in describe(expand(self.trained(settings["images"])))]
        teachers = settings["distill"].get("teachers") or settings["images"]["teachers"]
        own, whole = (bytes_of(path, teachers, names) for path in (self.of(settings), self.base(settings["images"])))
        view = sum(own.values())
        return {"view": view, "teachers": own, "ratio": sum(whole.values()) / view}


def bytes_of(cache: Path, teachers: Sequence[str], tars: Sequence[str]) -> dict[str, float]:
    """Stored bytes per view of each teacher over these tars, from the commit records."""
    found, open_cache = {}, opened(str(cache))
    for name in teachers:
        teacher = open_cache.teacher(name)
        units = [unit for unit in open_cache.units(teacher.member) if unit.name in tars]
        kept = sum(record.bytes_kept for unit in units if (record := teacher.record(unit)) is not None)
        found[name] = kept / sum(unit.rows for unit in units)
    return found


def first_tars(pattern: str, images: int) -> str:
    """The first tars of a pattern, in order, that hold at least `images`, as a pattern. ShardError with too few."""
    paths, count = [], 0
    for path in expand(pattern):
        if count >= images:
            break
        paths.append(path)
        count += describe([path])[0].rows
    if count < images:
        raise ShardError(f"{pattern} has {count} images, but the study needs {images}; choose fewer in its scale")
    return "::".join(paths)
