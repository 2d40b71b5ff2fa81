"""What an extraction leaves open, settled by what the cache has: recipe, size, seed and number of views, codec,
tokens.
"""

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any, TypeVar

from pipelines.command.progress import say
from unic_cache.cache import Cache
from unic_cache.config import CENTER, FITTED, ExtractConfig, Views
from unic_cache.errors import ConfigError

Config = TypeVar("Config", bound=ExtractConfig)


def settled(config: Config, cache: Cache) -> Config:
    """The config with the cache's views for what it leaves open; views of another kind than the cache's are said.

    ConfigError where the cache has several kinds that fit.
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
    kind = Views(recipe, size, seed)
    config = dataclasses.replace(config, recipe=recipe, size=size, seed=seed)
    _tell(cache, kind, found)
    # never fewer than by default: the cache may be one that a stopped run has only begun
    return dataclasses.replace(config, views=config.views or max(config.count, found.get(kind, 0)))


def kinds(cache: Cache) -> dict[Views, int]:
    """Every recipe, size and seed of which the cache has something, and how many views of each image."""
    members = [*(teacher.member for teacher in cache.teachers.values()), *cache.uncalibrated.values()]
    found: dict[Views, int] = {}
    for member in [*members, *([] if cache.pixels is None else [cache.pixels])]:
        for view, _, tars in cache.committed(member):
            views, number = Views.parse(view)
            if tars:
                found[views] = max(found.get(views, 0), number + 1)
    return found


def kept_alike(config: Config, cache: Cache) -> Config:
    """The config with codec, quality and tokens as all teachers of the cache have them, where it leaves them open."""
    specs = [teacher.spec for teacher in cache.teachers.values()]
    changes: dict[str, Any] = {}
    if config.codec is None and config.quality is None:
        changes["codec"] = _common(spec["codec"] for spec in specs)
    if config.quality is None and changes.get("codec", config.codec) == FITTED:
        changes["quality"] = _common(spec.get("quality") for spec in specs)
    if config.tokens is None:
        changes["tokens"] = _common(spec.get("tokens") for spec in specs)
    added = [name for name in config.teachers if name not in cache.teachers and name not in cache.uncalibrated]
    if added and (changes.get("codec") or changes.get("tokens")):
        told = ", ".join(f"{key} {value}" for key, value in changes.items() if value is not None)
        say(f"{', '.join(added)}: kept as the cache's other teachers are: {told}")
    return dataclasses.replace(config, **changes)


def _common(values: Iterable[Any]) -> Any:
    """The value that all have, or None."""
    found = list(values)
    return found[0] if found and all(value == found[0] for value in found) else None


def _only(cache: Cache, flag: str, values: Collection[Any], default: Any) -> Any:
    """The one value that there is, or the default where there is none."""
    if len(values) > 1:
        listed = " and ".join(str(value) for value in sorted(values))
        raise ConfigError(f"{cache.location.url} has views of {flag} {listed}; say which with --{flag}")
    return next(iter(values), default)


def _tell(cache: Cache, kind: Views, found: Collection[Views]) -> None:
    """Say that views of another kind come beside those of the cache; a center view of their size belongs to them."""
    sizes = {views.size for views in found}
    if not found or kind in found or (CENTER in {kind.recipe, *_recipes(found)} and kind.size in sizes):
        return
    listed = ", ".join(sorted(map(_described, found)))
    say(f"this adds {_described(kind)} to {cache.location.url}, which has {listed}")


def _recipes(found: Collection[Views]) -> set[str]:
    return {views.recipe for views in found} if len({views.recipe for views in found}) == 1 else set()


def _described(views: Views) -> str:
    return f"{views.recipe} views of {views.size} px (seed {views.seed})"
