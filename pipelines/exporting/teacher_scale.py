"""From a run's guesses to its teachers' own values: by the statistics of the cache that it learned from."""

from collections.abc import Mapping, Sequence
from typing import Any

from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import Views
from unic_cache.errors import CacheError
from unic_cache.store.standardize import own_scale
from unic_cache.stream.sealed_rows import learned_from
from unic_cache.student.heads import Scale

FACTS = ("about", "licence", "published")  # of a teacher's provenance
NETWORK = ("arch", "arch_options", "version", "weights_sha256")  # of its spec: which network it is,
INPUT = ("input_size", "mean", "std", "position_rule")  # how it sees images,
TARGETS = ("cls_rule", "patch_rule", "summary_rules", "grid_rules")  # and which of its activations are taken


def scales_of(teachers: Sequence[CachedTeacher], standardize: str) -> dict[tuple[str, str], Scale]:
    """The scale of each teacher and kind; `standardize` is the run's."""
    return {
        (teacher.name, kind): own_scale(teacher.calibration, kind, standardize)
        for teacher in teachers
        for kind in teacher.kinds
    }


def facts_of(teacher: CachedTeacher) -> dict[str, Any]:
    """What is known of a teacher, JSON-ready: which activations of which network its tokens are."""
    spec, made = teacher.spec["teacher"], teacher.spec["provenance"]
    return {
        **{key: made.get(key) for key in FACTS},
        **{key: spec[key] for key in (*NETWORK, *INPUT, *TARGETS) if key in spec},
    }


def check_learned(
    cache: Cache,
    teachers: Sequence[CachedTeacher],
    provenance: Mapping[str, Any],
    shown: tuple[Views, Sequence[int], Sequence[str]] | None,
    records: Mapping[str, int],
) -> None:
    """CacheError unless the run learned from this cache: another may lie under its name now.

    Its teachers have the weights that the run's had, and each has a commit record that the run began with. `shown` is
    what the run saw: views, their numbers, and tars; None for a run without records, whose teachers were --online.
    """
    url = cache.location.url
    for teacher in teachers:
        before = provenance.get("teachers", {}).get(teacher.name, {})
        if teacher.spec["teacher"]["weights_sha256"] != before.get("weights_sha256"):
            raise CacheError(f"{url}: {teacher.name} has other weights than the run's teacher; name its cache: --cache")
        if shown is None:
            continue
        if not learned_from(records, cache, teacher, *shown):
            raise CacheError(f"{url} is not the cache that the run learned {teacher.name} from; name it with --cache")
