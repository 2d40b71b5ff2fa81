"""Which images there are before there are shards: a folder of class folders, or a CSV of path,label.

A sample's key is made of its class and its file's name alone, so that other shuffles and shard sizes leave its key,
and with it its views, as they were.
"""

import csv
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from unic_cache.errors import ConfigError
from unic_cache.views.tars import IMAGE_EXTENSIONS

MAX_KEY = 80  # characters; a plain tar's member name has room for 100


@dataclass(frozen=True)
class Sample:
    """One image file with its key and label."""

    key: str
    path: Path
    label: int | None


@dataclass(frozen=True)
class Listing:
    """All samples in a fixed order; `classes[label]` is a class's name, empty where labels have none."""

    samples: tuple[Sample, ...]
    classes: tuple[str, ...]


def list_images(source: str) -> Listing:
    """The images of a folder or of a .csv file. ConfigError where there is none, or what is named is missing."""
    path = Path(source)
    if path.is_dir():
        listing = _from_folder(path)
    elif path.is_file() and path.suffix.lower() == ".csv":
        listing = _from_csv(path)
    elif path.exists():
        raise ConfigError(f"{source} is neither a folder nor a .csv of path,label")
    else:
        raise ConfigError(f"no folder or .csv at {source}; check the path")
    if not listing.samples:
        raise ConfigError(f"no images in {source}; an image's name ends in {', '.join(IMAGE_EXTENSIONS)}")
    return listing


def _from_folder(root: Path) -> Listing:
    """Sub-folders in sorted order are classes 0, 1, ...; all files below one belong to it. No sub-folder: no labels."""
    classes = tuple(sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")))
    loose = [path for path in sorted(root.iterdir()) if path.is_file() and _is_image(path.name)]
    if not classes:
        return Listing(_with_keys(("", path, None) for path in loose), ())
    if loose:
        raise ConfigError(
            f"{root} has class folders and images beside them, such as {loose[0].name}; move those into one"
        )
    found = [(name, path, label) for label, name in enumerate(classes) for path in _images_below(root / name)]
    return Listing(_with_keys(found), classes)


def _from_csv(file: Path) -> Listing:
    """Rows of path,label or of path alone; paths are relative to the CSV. Labels that are all integers are kept."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(opened), 1) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file} is no CSV in UTF-8 ({error}); save it as one") from error
    if rows and [cell.lower() for cell in rows[0][1]] in (["path"], ["path", "label"]):
        rows = rows[1:]
    for number, row in rows:
        if len(row) != len(rows[0][1]) or len(row) > 2 or not all(row):
            raise ConfigError(f"{file}, line {number}: expected path,label and found {','.join(row)!r}")
        if not (file.parent / row[0]).is_file():
            raise ConfigError(f"{file}, line {number}: no file at {row[0]}; paths are relative to the CSV")
    paths = [file.parent / row[0] for _, row in rows]
    names = [row[1] for _, row in rows if len(row) == 2]
    if not names:
        return Listing(_with_keys(("", path, None) for path in paths), ())
    if all(re.fullmatch(r"[0-9]{1,9}", name) for name in names):
        return Listing(_with_keys(("", path, int(name)) for path, name in zip(paths, names, strict=True)), ())
    classes = tuple(sorted(set(names)))
    number_of = {name: label for label, name in enumerate(classes)}
    found = ((name, path, number_of[name]) for path, name in zip(paths, names, strict=True))
    return Listing(_with_keys(found), classes)


def _images_below(folder: Path) -> list[Path]:
    found = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names if _is_image(name)]
    return sorted(found)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().rpartition(".")[2] in IMAGE_EXTENSIONS


def _with_keys(found: Iterable[tuple[str, Path, int | None]]) -> tuple[Sample, ...]:
    """Keys of [A-Za-z0-9_-]: class and stem; the second sample that would have the same one ends in -2, and so on."""
    taken: set[str] = set()
    samples = []
    for name, path, label in found:
        stem = path.stem if not name or path.stem.startswith(f"{name}_") else f"{name}_{path.stem}"
        base = re.sub(r"[^A-Za-z0-9_-]", "-", stem)[:MAX_KEY]
        key, count = base, 1
        while key in taken:
            count += 1
            key = f"{base}-{count}"
        taken.add(key)
        samples.append(Sample(key, path, label))
    return tuple(samples)
