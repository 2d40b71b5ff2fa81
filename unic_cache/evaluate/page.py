"""One self-contained HTML page from sections of text, tables and figures: no network, no scripts, light and dark."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from unic_cache.evaluate.drawing import Picture

TEMPLATE = "page.html.j2"
GENERATOR = "unic-cache page 1"  # marks a page of ours, so that only such a page is ever replaced
FILES = re.compile(rb'href="(figures/[a-z0-9-]+\.(?:png|svg))"')


@dataclass(frozen=True)
class Grid:
    """A table: the first column names its rows. A folded one opens on a click."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A heading, what there is to say, and what to show."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    tables: Sequence[Grid] = ()


@dataclass(frozen=True)
class Page:
    """All of a page; `missing` says which figures are not there, and what would give them."""

    title: str
    about: str
    sections: Sequence[Section]
    missing: Sequence[str] = ()

    @property
    def pictures(self) -> list[Picture]:
        """All figures, in the page's order."""
        return [picture for section in self.sections for picture in section.pictures]


def html(page: Page) -> bytes:
    """The page as UTF-8; equal pages give equal bytes."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(page=page, generator=GENERATOR).encode()


def files_of(text: bytes) -> set[str] | None:
    """The figure files that a page of ours links to; None for any other text."""
    if f'content="{GENERATOR}"'.encode() not in text[:4096]:
        return None
    return {name.decode() for name in FILES.findall(text)}
