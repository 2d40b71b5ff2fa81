"""How figures look and how they are saved: ink that follows the page, one palette, the same bytes every time.

In a page, a figure is an inline SVG: transparent, its ink `currentColor`, its text the page's. As files, it is dark ink
on white. Colours of series are of middle lightness, to be seen on both. matplotlib is imported when the first figure is
made, so that a command that draws nothing starts without it.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (
    "#3f7fbf",
    "#d9731a",
    "#2f9a5a",
    "#c0485a",
    "#8a6bc1",
    "#8f6a4f",
    "#c765a8",
    "#8b8f2e",
    "#2b9db0",
    "#7d8590",
)
INK = "#1c1c21"  # also stands for currentColor in a page
WIDTH = 6.6  # inches: of a figure in the page's column
LINE, HALF = 90, 38  # letters across a figure, and across one of two panels
DPI = 150  # of PNG files
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "none",
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a name may hold dollar signs
}
WHITE = '<rect width="100%" height="100%" fill="white"/>'
OWN_IDS = re.compile(r' id="[A-Za-z0-9]+_\d+"')  # of groups, equal in all figures


@dataclass(frozen=True)
class Picture:
    """A drawn figure, with the words that go with it."""

    name: str  # of its files: letters, digits and dashes
    title: str
    alt: str  # what it shows, for who cannot see it
    caption: str
    inline: str  # SVG for a page
    svg: bytes
    png: bytes


@contextmanager
def style() -> Iterator[None]:
    """The style of all figures; decorates every function that draws one."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a page's own fonts may have it
        yield


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size (inches)."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def panels(count: int, height: float, most: int = 2) -> "tuple[Figure, list[Axes]]":
    """A figure of `count` axes, at most `most` beside each other, each row `height` inches high."""
    columns = min(count, most)
    rows = -(-count // columns)
    figure = new_figure(WIDTH, height * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.remove()
    for own in axes[:count]:
        own.grid(True)
        own.set_axisbelow(True)
    return figure, axes[:count]


def finish(figure: "Figure", name: str, title: str, alt: str, caption: str) -> Picture:
    """The figure as files and for a page."""
    import matplotlib

    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is found once, for all files
    with matplotlib.rc_context({"svg.hashsalt": f"unic-cache {name}"}):
        svg = _svg(figure)
    on_white = re.sub(r"(<svg [^>]*>)", rf"\1{WHITE}", svg, count=1)
    return Picture(name, title, alt, caption, _inline(svg, alt), on_white.encode(), _png(figure))


def legend(figure: "Figure", axes: "Sequence[Axes]") -> None:
    """One legend below the axes, of every label once."""
    found = {label: handle for one in axes for handle, label in zip(*one.get_legend_handles_labels(), strict=True)}
    if found:
        columns = max(LINE // (max(len(line) for name in found for line in name.split("\n")) + 6), 1)
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=min(len(found), columns))


def label(text: str, letters: int = LINE - 8) -> str:
    """A name as matplotlib shows it, in lines of `letters`: it would leave out one that begins with an underscore."""
    return textwrap.fill(f" {text}" if text.startswith("_") else text, letters)


def _svg(figure: "Figure") -> str:
    """The figure without background."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    return drawn.getvalue().decode()


def _png(figure: "Figure") -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return drawn.getvalue()


def _inline(svg: str, alt: str) -> str:
    """The <svg> element for a page, without prolog and metadata, named for screen readers."""
    element = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    element = OWN_IDS.sub("", element).replace(INK, "currentColor")
    return element.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)
