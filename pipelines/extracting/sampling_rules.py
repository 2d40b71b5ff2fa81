"""The rule by which --tokens samples each teacher: the one asked for, the cache's, or what the grid allows."""

from collections.abc import Iterable, Mapping

from pipelines.command.progress import say
from unic_cache.config import LATTICE, RANDOM
from unic_cache.errors import ConfigError
from unic_cache.files.location import Location
from unic_cache.store.codecs.codec import Features
from unic_cache.store.foreign_folders import sort_folders
from unic_cache.store.layout import VIEWS_MEMBER, teacher_folder
from unic_cache.store.member import Member
from unic_cache.store.sampling import Sample, no_lattice, stride
from unic_cache.token_kinds import Grid


def sampling_rules(
    tokens: int | None, asked: str | None, location: Location, grids: Mapping[str, Grid | None]
) -> dict[str, str]:
    """Each teacher's rule: the one asked for, or its own in the cache, or `lattice` where its grid has one.

    A new teacher is sampled at random beside one of the same grid that is, so that both store the same positions.
    `grids` are the teachers', by name. ConfigError if `lattice` is asked for and a grid has none of that many tokens,
    or a rule is asked for and nothing is sampled.
    """
    own, _ = sort_folders(location)
    opened = {folder: Member.open(location, folder) for folder in own if folder != VIEWS_MEMBER}
    there = {folder: one.features for folder, one in opened.items() if one is not None and one.features is not None}
    found: dict[str, str] = {}
    for name, grid in grids.items():
        before = there.get(teacher_folder(name))
        count = tokens or (None if before is None else before.sampled)
        if grid is None or count is None:
            continue
        if asked == LATTICE and stride(grid, count) is None:
            raise ConfigError(f"{name}: {no_lattice(grid, count)}")
        stays = before.sampling if before is not None and before.sampled == count else None
        found[name] = asked or stays or usual(grid, count, there.values())
    if asked and not found and any(grids.values()):
        raise ConfigError(f"--sampling {asked} chooses the positions of sampled tokens: add --tokens N")
    return {name: found.get(name, RANDOM) for name in grids}


def usual(grid: Grid, count: int, there: Iterable[Features]) -> str:
    """The rule for a new teacher, if none is asked for, beside those that are `there`."""
    beside = {one.sampling for one in there if one.grid == grid and one.sampled}
    return RANDOM if stride(grid, count) is None or RANDOM in beside else LATTICE


def tell(tokens: int, rules: Mapping[str, str], grids: Mapping[str, Grid | None]) -> None:
    """Say in a line which positions of each teacher's grid are stored."""
    each = ", ".join(
        f"{Sample(rule, tokens)} of {name}'s {grid[0]} x {grid[1]}"
        for name, rule in rules.items()
        if (grid := grids[name]) is not None
    )
    if each:
        say(f"patch tokens of each view: {each}")
