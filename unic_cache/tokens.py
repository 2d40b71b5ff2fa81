"""Kinds of tokens: what a network says of an image, by name.

A summary token is one vector an image, (B, D), such as `cls`; a network may have several, each a kind of its own. Grid
tokens are one vector a cell of a grid, (B, T, D), row by row, such as `patch`. What handles tokens goes by the kinds
that it is given, never by their names.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Grid = tuple[int, int]  # height and width, in tokens


@dataclass(frozen=True)
class TokenKind:
    """Channels of a kind's tokens, and their grid; no grid makes it a summary token."""

    channels: int
    grid: Grid | None = None


Kinds = Mapping[str, TokenKind]  # summary tokens first
