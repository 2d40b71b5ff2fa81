"""Token kinds: what a network gives for an image, by name.

A summary token is one vector per image, (B, D), such as `cls`; a network may have several, each a kind of its own.
Grid tokens are one vector per cell of a grid, (B, T, D), row by row, such as `patch`. Code handles the kinds it is
given and never asks for their names.

In JSON, `cls` and `patch` have keys of their own; further kinds share one key, which is absent without them:

    {"cls_dim": 768, "grid": [14, 14], "patch_dim": 768, "kinds": {"cls-1": {"channels": 768, "grid": null}}}
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CLS, PATCH = "cls", "patch"  # the kinds with JSON keys of their own
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")  # names arrays on disk
LARGEST_SIZE = 2**20

Grid = tuple[int, int]  # height and width, in tokens


@dataclass(frozen=True)
class TokenKind:
    """Channels of a kind's tokens, and their grid; None for a summary token. ValueError for impossible sizes."""

    channels: int
    grid: Grid | None = None

    def __post_init__(self) -> None:
        height, width = self.grid or (1, 1)
        for size in (self.channels, height, width):
            check_size(size)


Kinds = Mapping[str, TokenKind]  # summary tokens first, see `in_order`


def in_order(kinds: Kinds) -> Kinds:
    """Summary tokens before grid tokens, `cls` and `patch` first among theirs, the others by name."""
    names = sorted(kinds, key=lambda name: (kinds[name].grid is not None, name not in {CLS, PATCH}, name))
    return {name: kinds[name] for name in names}


def grid_of(kinds: Kinds) -> Grid | None:
    """Height and width of the first grid kind; None if all are summary tokens."""
    return next((kind.grid for kind in kinds.values() if kind.grid), None)


def kinds_to_json(kinds: Kinds) -> dict[str, Any]:
    """The kinds as JSON-ready data; `kinds_from_json` reads them back."""
    cls, patch = kinds.get(CLS), kinds.get(PATCH)
    assert cls is None or cls.grid is None, "cls is a summary token"
    assert patch is None or patch.grid is not None, "patch tokens have a grid"
    more = {
        name: {"channels": kind.channels, "grid": kind.grid and list(kind.grid)}
        for name, kind in kinds.items()
        if name not in {CLS, PATCH}
    }
    return {
        "cls_dim": cls and cls.channels,
        "patch_dim": patch and patch.channels,
        "grid": patch and patch.grid and list(patch.grid),
        **({"kinds": more} if more else {}),
    }


def kinds_from_json(data: Mapping[str, Any]) -> Kinds:
    """The kinds that `kinds_to_json` wrote. KeyError, TypeError, ValueError or AttributeError for anything else."""
    own = {CLS: (data["cls_dim"], None), PATCH: (data["patch_dim"], tuple(data["grid"] or (1, 1)))}
    found = {name: TokenKind(channels, grid) for name, (channels, grid) in own.items() if channels is not None}
    for name, kind in data.get("kinds", {}).items():
        if not NAME.fullmatch(name) or name in own:
            raise ValueError(f"{name!r:.40} is not a name of a further token kind")
        found[name] = TokenKind(kind["channels"], kind["grid"] and tuple(kind["grid"]))
    return in_order(found)


def check_size(value: Any) -> int:
    """`value`, if it is an integer from 1 to 2**20; else ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_SIZE:
        raise ValueError(f"{value!r:.40} is not a size between 1 and 2**20")
    return value
