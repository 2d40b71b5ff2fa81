"""Read a CSV of path,label and its labels. Errors name the line."""

import csv
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unic_cache.errors import ConfigError
from unic_cache.views.classes import CLASSES_FILE, Names
from unic_cache.views.labels import class_number, is_number

_PATHS = {"path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "img_path"}
TOO_MANY = 10  # images, each with a number of its own, for these to be classes
_LABELS = {"label", "labels", "class", "class_id", "target", "category", "y"}


@dataclass(frozen=True)
class Row:
    """One image: where it is listed, its file, and its label as written, "" if there is none."""

    file: Path  # the list
    line: int
    path: Path
    label: str
    beside: str = ""  # path of its mask or depth map, as written


def read_rows(file: Path) -> list[Row]:
    """The rows of path,label or path alone, without a header row; paths are relative to the CSV.

    ConfigError, with the line, for a wrong number of columns, a path without a file, or a repeated path.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            reader = csv.reader(opened)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file} is not a CSV in UTF-8 ({error}); save it as one") from error
    width = len(rows[0][1]) if rows else 0
    header = [cell.lower() for cell in rows[0][1]] if rows else []
    swapped = width == 2 and header[0] in _LABELS and header[1] in _PATHS
    if swapped or (header and header[0] in _PATHS and set(header[1:]) <= _LABELS):
        rows = rows[1:]
    found: list[Row] = []
    lines: dict[str, int] = {}
    for line, cells in rows:
        name, label = (cells[::-1] if swapped else [*cells, ""])[:2] if len(cells) == width <= 2 else ("", "")
        if not name:
            raise ConfigError(f"{file}, line {line}: expected path,label but found {','.join(cells)!r}")
        path = file.parent / name
        if not path.is_file():
            other = label and (file.parent / label).is_file()
            hint = f", but there is one at {label}: put the path first" if other else "; paths are relative to the CSV"
            raise ConfigError(f"{file}, line {line}: no file at {name}{hint}")
        before = lines.setdefault(os.path.normpath(path), line)
        if before != line:
            raise ConfigError(f"{file}, line {line}: {name} is already on line {before}; keep one row per image")
        found.append(Row(file, line, path, label))
    return found


def labels_of(rows: Sequence[Row], numbered: Names | None) -> tuple[list[int | None], Names, tuple[str, ...]]:
    """(each row's class number or None, the classes' names by number, remarks for the user).

    Labels are either all class numbers, which are kept, or all names, which are numbered in sorted order or as in
    `numbered`. "" and -1 mean no label. ConfigError, with the line, for anything else.
    """
    given = [row for row in rows if _parsed(row.label) is not None]
    names, remarks = _classes(given, numbered)
    number_of = {name: number for number, name in names.items()}
    labels = [None if _parsed(row.label) is None else _number(row, names, number_of) for row in rows]
    if given and len(given) < len(rows):
        first = next(row.line for row in rows if _parsed(row.label) is None)
        remarks.append(f"{len(rows) - len(given):,} of {len(rows):,} images have no label (line {first})")
    if not names:
        remarks += _gaps([label for label in labels if label is not None])
    return labels, names, tuple(remarks)


def _classes(given: Sequence[Row], numbered: Names | None) -> tuple[Names, list[str]]:
    """(the classes by number, empty if labels are numbers; remarks). ConfigError if names and numbers are mixed."""
    if numbered is not None:
        _refuse_both(given, numbered)
        return numbered, [f"the {len(numbered)} classes are numbered as in {CLASSES_FILE} in OUT"] if given else []
    named = [row for row in given if not is_number(row.label)]
    plain = [row for row in given if is_number(row.label)]
    if named and plain:
        raise ConfigError(
            f"{named[0].file}, line {named[0].line}: the label {named[0].label!r} is a name, but {plain[0].label!r} on "
            f"line {plain[0].line} is a number; write all labels as names or all as numbers"
        )
    if len(plain) >= TOO_MANY and len({_parsed(row.label) for row in plain}) == len(plain):
        raise ConfigError(
            f"{plain[0].file}, line {plain[0].line}: the {len(plain):,} images have as many numbers, {plain[0].label} "
            f"to {plain[-1].label}: a running number or an id, no class. Give the class of each, by name if each has "
            "one of its own, or no label"
        )
    names = sorted({row.label for row in named})
    alike = [name for name, count in Counter(name.casefold() for name in names).items() if count > 1]
    remarks = [f"{len(alike)} class names differ only in upper and lower case, such as {alike[0]!r}"] if alike else []
    return dict(enumerate(names)), remarks


def _refuse_both(given: Sequence[Row], numbered: Names) -> None:
    """ConfigError if some of the labels that are numbers are names of classes, and others are not."""
    names, plain = set(numbered.values()), [row for row in given if is_number(row.label)]
    named = next((row for row in plain if row.label in names), None)
    other = next((row for row in plain if row.label not in names), None)
    if named and other:
        raise ConfigError(
            f"{named.file}, line {named.line}: the label {named.label!r} is the name of a class in {CLASSES_FILE}, but "
            f"{other.label!r} on line {other.line} is not, and would be taken as a number; write all labels as names"
        )


def _number(row: Row, names: Names, number_of: dict[str, int]) -> int:
    number = number_of.get(row.label, _parsed(row.label))
    if not isinstance(number, int) or (names and number not in names):
        known = f"is not among the {len(names)} classes in {CLASSES_FILE}" if names else "is not a class number"
        raise ConfigError(
            f"{row.file}, line {row.line}: the label {row.label!r} {known}; correct it, or leave it empty for no label"
        )
    return number


def _parsed(label: str) -> int | str | None:
    """A class number, a name, or None for no label."""
    try:
        return class_number(label)
    except ValueError:
        return label


def _gaps(labels: Sequence[int]) -> list[str]:
    """A remark if the numbers are not 0, 1, 2, ..."""
    used = set(labels)
    missing = max(used, default=-1) + 1 - len(used)
    if not missing:
        return []
    first = next(number for number in range(len(used) + 1) if number not in used)
    return [f"labels go up to {max(used):,}, but {missing:,} of the numbers below have no image, such as {first}"]
