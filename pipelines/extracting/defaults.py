"""Settle what an extraction leaves open by what the cache has: the kind and number of views, codec, tokens."""

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any, TypeVar

from pipelines.command.progress import say
from unic_cache.cache import Cache
from unic_cache.config import CENTER, EXACT, FITTED, FITTED_SETTINGS, ExtractConfig, Views
from unic_cache.config.views import CROP_SCALE
from unic_cache.errors import ConfigError
from unic_cache.store.layout import ADDED

Config = TypeVar("Config", bound=ExtractConfig)


def settled(config: Config, cache: Cache) -> Config:
    """The config with the kind and the number of views filled in from the cache; says so if it adds a new kind.

    ConfigError if several kinds in the cache fit.
    """
    found = kinds(cache)
    recipes = {views.recipe for views in found} - {CENTER}
    recipe = config.recipe or _only(cache, "recipe", recipes, config.kind.recipe)
    alike = [views for views in found if views.recipe == recipe] or list(found)
    fitting = [views for views in alike if config.seed in {None, views.seed}] or alike
    size = config.size or _only(cache, "size", {views.size for views in fitting}, config.kind.size)
    alike = [views for views in fitting if views.recipe == recipe]
    seeds = {views.seed for views in alike if views.size == size} or {views.seed for views in alike}
    seed = config.seed
    if seed is None:
        seed = 0 if recipe == CENTER else _only(cache, "seed", seeds, 0)
    scales = {views.crop_scale for views in alike if (views.size, views.seed) == (size, seed)}
    scales = scales or {views.crop_scale for views in alike}
    scale = config.crop_scale or _only(cache, "crop-scale", scales, CROP_SCALE)
    kind = Views(recipe, size, seed, scale)
    config = dataclasses.replace(config, recipe=recipe, size=size, seed=seed, crop_scale=scale)
    _tell(cache, kind, found)
    return dataclasses.replace(config, views=config.views or _count(config, cache, found.get(kind, 0)))


def kinds(cache: Cache) -> dict[Views, int]:
    """Every kind of views in the cache, and how many views of each image."""
    members = [*(teacher.member for teacher in cache.teachers.values()), *cache.uncalibrated.values()]
    found: dict[Views, int] = {}
    for member in [*members, *([] if cache.pixels is None else [cache.pixels])]:
        for views, number, _, tars in cache.committed(member):
            if tars:
                found[views] = max(found.get(views, 0), number + 1)
    return found


def kept_alike(config: Config, cache: Cache) -> Config:
    """The config with codec, quality, coder and tokens filled in where all teachers of the cache agree."""
    specs = [teacher.spec for teacher in cache.teachers.values()]
    changes: dict[str, Any] = {}
    if config.codec is None and all(getattr(config, name) is None for name in FITTED_SETTINGS):
        changes["codec"] = _common(spec["codec"] for spec in specs)
    if changes.get("codec", config.codec) in {None, FITTED} and all(spec["codec"] == FITTED for spec in specs):
        for name in ("quality", "coder"):
            if getattr(config, name) is None:
                changes[name] = _common(spec.get(name, ADDED.get(name)) for spec in specs)
        if config.cls_quality is None:
            changes["cls_quality"] = _cls_quality(config, cache)
    if config.tokens is None:
        changes["tokens"] = _common(spec.get("tokens") for spec in specs)
    added = [name for name in config.teachers if name not in cache.teachers and name not in cache.uncalibrated]
    if added and (changes.get("codec") or changes.get("tokens")):
        told = ", ".join(f"{key} {value}" for key, value in changes.items() if value is not None)
        say(f"{', '.join(added)}: stored like the cache's other teachers: {told}")
    return dataclasses.replace(config, **changes)


def _cls_quality(config: ExtractConfig, cache: Cache) -> float | None:
    """What the teachers with CLS tokens share, unless patch tokens of the quality asked for would be finer."""
    own = (one for one in cache.teachers.values() if not all(kind.grid for kind in one.kinds.values()))
    found = _common(one.spec.get("cls_quality", EXACT) for one in own)
    return None if found is not None and found < (config.quality or 0) else found


def _common(values: Iterable[Any]) -> Any:
    """The value that all share, or None."""
    found = list(values)
    return found[0] if found and all(value == found[0] for value in found) else None


def _only(cache: Cache, flag: str, values: Collection[Any], default: Any) -> Any:
    """The only value, or the default if there is none. ConfigError on several."""
    if len(values) > 1:
        listed = " and ".join(str(value).strip("()").replace(" ", "") for value in sorted(values))
        raise ConfigError(f"{cache.location.url} has views of {flag} {listed}; choose one with --{flag}")
    return next(iter(values), default)


def _count(config: ExtractConfig, cache: Cache, held: int) -> int:
    """As many views as the cache holds, but never fewer than the default: a stopped run may have only begun it."""
    if 0 < held < config.count:
        more = f"for no more than it has, give --views {held}"
        say(f"{cache.location.url} has {held} of the {config.count} views of an image that are the default; {more}")
    return max(config.count, held)


def _tell(cache: Cache, kind: Views, found: Collection[Views]) -> None:
    """Say that a new kind of views joins the cache's; a center view of their size belongs to them and is not new."""
    recipes, sizes = {views.recipe for views in found}, {views.size for views in found}
    belongs = kind.size in sizes and (kind.recipe == CENTER or recipes == {CENTER})
    if not found or kind in found or belongs:
        return
    listed = ", ".join(sorted(map(str, found)))
    say(f"this adds {kind} to {cache.location.url}, which has {listed}")
