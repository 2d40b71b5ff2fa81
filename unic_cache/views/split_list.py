"""Read the lists of a split, one image a line, as the authors of data sets write them.

| line | read as | such as |
|---|---|---|
| `NAME` | an image; its class is its folder below IMAGES | VOC, Food-101, DTD, SUN397, CoG |
| `NAME CLASS` | an image and its class: a number, or a name with or without spaces | Aircraft, ImageNet's val.txt |
| `NAME CLASS N N` | the same, if the class decides the other numbers | Pets: class, species, breed |
| `NAME FILE.png [NUMBER]` | an image and its mask or depth map | NYUd, lists of VOC for training |

A space or a tab ends NAME; a tab if there is one. All lines of all lists have one form. Empty lines and comments
(#) are skipped.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unic_cache.errors import ConfigError
from unic_cache.views.csv_labels import Row
from unic_cache.views.image_names import ImageNames
from unic_cache.views.labels import is_number
from unic_cache.views.left_out import shown

_FILE = re.compile(r"(\S+\.(?:png|npy))(?:\s+(\S+))?", re.IGNORECASE)
_WHOLE = re.compile(r"-?[0-9]+(\s+-?[0-9]+)+")

ALONE, LABELLED, PAIRED = "a name alone", "a name and a class", "a name and a file"


@dataclass(frozen=True)
class Lists:
    """The rows of all lists, and the form that they all have: ALONE, LABELLED or PAIRED."""

    rows: tuple[Row, ...]
    form: str


def read_lists(files: Sequence[str], images: ImageNames) -> Lists:
    """The images that the lists name, in their order.

    ConfigError, with the line, for a name that is not exactly one image, an image named twice, a line that can be read
    in two ways or in another way than the first one, and labels that are not one class per image.
    """
    lines = [(file, line, text) for file in map(Path, files) for line, text in _lines(file)]
    read = [_row(file, line, text, images) for file, line, text in lines if not _is_comment(text, images)]
    if not read:
        raise ConfigError(f"{', '.join(map(shown, files))}: the list is empty")
    first, form = read[0]
    for row, other in read:
        if other != form:
            raise ConfigError(f"{_at(row)}: this line is {other}, but {_at(first)} is {form}; write all lines alike")
    rows = tuple(row for row, _ in read)
    _check_once(rows)
    return Lists(_classes(rows) if form == LABELLED else rows, form)


def _lines(file: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines that are not empty."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"--list {shown(str(file))} cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown(str(file))} is not a list in UTF-8 ({error}); save it as one") from error
    stripped = [(number, text.strip()) for number, text in enumerate(lines, 1)]
    return [(number, text) for number, text in stripped if text]


def _is_comment(text: str, images: ImageNames) -> bool:
    """Whether a line begins with '#' and is not about an image whose name does."""
    return text.startswith("#") and not any(images.find(name) for name in (text, text.split(maxsplit=1)[0]))


def _row(file: Path, line: int, text: str, images: ImageNames) -> tuple[Row, str]:
    """A line's row and form. ConfigError unless it can be read in exactly one way."""
    name, *rest = re.split(r"\t+" if "\t" in text else r"\s+", text, maxsplit=1)
    try:
        whole, short = images.find(text), images.find(name) if rest else None
    except ConfigError as error:
        raise ConfigError(f"{shown(str(file))}, line {line}: {error}") from error
    path = whole or short
    if path is None:
        alike = images.alike(name) or images.alike(text)
        hint = f"; there is one at {shown(str(alike.relative_to(images.root)))}" if alike else ""
        raise ConfigError(
            f"{shown(str(file))}, line {line}: no image {shown(name)!r} in {shown(str(images.root))}{hint}. Names are "
            "relative to IMAGES, with or without folders and extension"
        )
    if whole and short:
        raise ConfigError(
            f"{shown(str(file))}, line {line}: {shown(text)!r} is an image, and so is {shown(name)!r}, with "
            "more behind it; rename one of them"
        )
    if whole or not rest:
        return Row(file, line, path, ""), ALONE
    pair = _FILE.fullmatch(rest[0].strip())
    if pair and (pair[2] is None or is_number(pair[2])):
        return Row(file, line, path, "", pair[1]), PAIRED
    return Row(file, line, path, rest[0].strip()), LABELLED


def _check_once(rows: Sequence[Row]) -> None:
    seen: dict[Path, Row] = {}
    for row in rows:
        before = seen.setdefault(row.path, row)
        if before is not row:
            raise ConfigError(
                f"{_at(row)}: {shown(str(row.path))} is already in {_at(before)}; keep one line per image"
            )


def _classes(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with their classes alone. ConfigError if a number behind the class tells something else of the image."""
    absent = next((row for row in rows if re.fullmatch(r"-1(\s.*)?", row.label)), None)
    if absent is not None:
        raise ConfigError(
            f"{_at(absent)}: -1 is not a class. In VOC's lists of one class, 1 and -1 say whether an image shows it; "
            "give a list of names, or of one class per image"
        )
    several = [bool(_WHOLE.fullmatch(row.label)) for row in rows]
    if not any(several):
        return tuple(rows)
    known: dict[str, Row] = {}
    for row, numbers in zip(rows, several, strict=True):
        before = known.setdefault(row.label.split()[0], row)
        if not numbers or before.label.split() != row.label.split():
            raise ConfigError(
                f"{_at(row)}: {row.label!r} is not one class, as {before.label!r} in {_at(before)} shows; keep only "
                "the class after the name (cut -d' ' -f1,2)"
            )
    if len(known) == len(rows):
        raise ConfigError(f"{_at(rows[0])}: {rows[0].label!r} is not one class; keep only the class after the name")
    return tuple(replace(row, label=row.label.split()[0]) for row in rows)


def _at(row: Row) -> str:
    return f"{shown(str(row.file))}, line {row.line}"
