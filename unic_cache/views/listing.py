"""List the images to pack into shards: a folder of class folders, lists of its images, a CSV or a JSON.

A sample's key depends only on its class and file name, so its views do not change with the shuffle or the shard size.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from unic_cache.errors import ConfigError
from unic_cache.views.classes import CLASSES_FILE, Names
from unic_cache.views.csv_labels import Row, labels_of, read_rows
from unic_cache.views.image_files import files_of, images_below, is_class_folder
from unic_cache.views.image_json import read_json
from unic_cache.views.image_names import ImageNames
from unic_cache.views.labels import is_number
from unic_cache.views.left_out import LeftOut, Tally, listed, shown
from unic_cache.views.split_list import LABELLED, PAIRED, read_lists
from unic_cache.views.tars import IMAGE_EXTENSIONS

MAX_KEY = 80  # characters; a plain tar's member name has room for 100


@dataclass(frozen=True)
class Sample:
    """One image file with its key, its label, and the files of its masks and depth maps by kind."""

    key: str
    path: Path
    label: int | None
    dense: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """All samples in a fixed order; `names[label]` is a class's name, `names` empty if labels are plain numbers."""

    samples: tuple[Sample, ...]
    names: Names
    left_out: tuple[LeftOut, ...] = ()
    remarks: tuple[str, ...] = ()  # for the user, one line each
    root: Path = Path()  # the folder that paths in it are relative to
    beside: tuple[str, ...] = ()  # the mask or depth map that a list names for each sample, if it does

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names by number."""
        return tuple(self.names[number] for number in sorted(self.names))


def list_images(source: str, numbered: Names | None = None, lists: Sequence[str] = ()) -> Listing:
    """The images of a folder, or those of it that the lists name, or of a .csv or .json file.

    Classes are numbered as in `numbered`, if given. ConfigError if there are no images, a file is missing, or a label
    would be wrong: a class without an image, a class not in `numbered`, a label that is not a class number.
    """
    path = Path(source)
    if not path.exists():
        raise ConfigError(f"no folder, .csv or .json at {shown(source)}; check the path")
    if path.is_dir():
        listing = _from_lists(path, lists, numbered) if lists else _from_folder(path, numbered)
    elif lists:
        raise ConfigError(
            f"{shown(source)} is not a folder, but --list names images in a folder; leave one of them out"
        )
    elif path.is_file() and path.suffix.lower() in _FILES:
        listing = _FILES[path.suffix.lower()](path, numbered)
    else:
        raise ConfigError(f"{shown(source)} is neither a folder nor a .csv of path,label, nor a .json")
    if not listing.samples:
        held = f"; it holds {listed(listing.left_out)}" if listing.left_out else ""
        raise ConfigError(
            f"no images in {shown(source)}; an image's name ends in {', '.join(IMAGE_EXTENSIONS)}, or its first bytes "
            f"are an image's{held}"
        )
    return replace(listing, root=path if path.is_dir() else path.parent)


def _from_folder(root: Path, numbered: Names | None) -> Listing:
    """Sorted subfolders are classes 0, 1, ... with all images below them; without subfolders there are no labels."""
    tally = Tally()
    folders = [path for path in sorted(root.iterdir()) if is_class_folder(path, tally)]
    loose = list(files_of(root, tally))
    if not folders:
        return Listing(_with_keys(("", path, None) for path in loose), {}, tally.total())
    if loose:
        raise ConfigError(
            f"{shown(str(root))} has class folders and images beside them, such as {shown(loose[0].name)}; move those "
            "into one"
        )
    _check_folders(root, folders)
    images = {folder.name: images_below(folder, root, tally) for folder in folders}
    filled = [name for name, paths in images.items() if paths]
    empty = [name for name, paths in images.items() if not paths]
    names, remarks = _named(filled, empty, numbered, root, tally)
    number_of = {name: number for number, name in names.items()}
    found = [(name, path, number_of[name]) for name in filled for path in images[name]]
    return Listing(_with_keys(found), names, tally.total(), remarks)


def _named(
    filled: list[str], empty: list[str], numbered: Names | None, root: Path, tally: Tally
) -> tuple[Names, tuple[str, ...]]:
    """(the classes by number, remarks). ConfigError for a class without an image or not in `numbered`."""
    if numbered is not None:
        unknown = sorted(set(filled) - set(numbered.values()))
        if unknown:
            raise ConfigError(
                f"{shown(str(root / unknown[0]))}: {CLASSES_FILE} in OUT names {len(numbered)} classes but not this "
                "one; rename the folder, or delete that file to number the classes anew"
            )
        lacking = len(numbered) - len(filled)
        without = f"; {lacking} of them have no image here" if lacking else ""
        return numbered, (f"the {len(numbered)} classes are numbered as in {CLASSES_FILE} in OUT{without}",)
    if empty and filled:
        held = f" ({listed(tally.total())})" if tally.total() else ""
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise ConfigError(
            f"{shown(str(root / empty[0]))}{more}: no image in this class folder{held}; an empty class would shift all "
            "later labels by one. Remove the folder, or add its images"
        )
    names = dict(enumerate(filled))
    other = next((number for number, name in names.items() if is_number(name) and name != str(number)), None)
    if other is None:
        return names, ()
    return names, (f"class folders are numbered in order of their names: {names[other]!r} is label {other}",)


def _check_folders(root: Path, folders: list[Path]) -> None:
    """ConfigError for a name that is not UTF-8, and for two names of one folder."""
    real: dict[Path, Path] = {}
    for folder in folders:
        try:
            folder.name.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"{shown(str(folder))}: this class name is not UTF-8; rename the folder "
                "(convmv -f latin1 -t utf8 --notest)"
            ) from None
        other = real.setdefault(folder.resolve(), folder)
        if other is not folder:
            raise ConfigError(
                f"{shown(str(root))}: {other.name} and {folder.name} are the same folder; remove the link"
            )


def _from_lists(root: Path, files: Sequence[str], numbered: Names | None) -> Listing:
    """The images that lists name. Their class is the one in the list, or else their folder below `root`."""
    images = ImageNames(root)
    lists = read_lists(files, images)
    folders = [row.path.parent.relative_to(root).as_posix() for row in lists.rows]
    folders = ["" if folder == "." else folder for folder in folders]
    if lists.form == LABELLED:
        return _from_rows(lists.rows, numbered)
    if lists.form == PAIRED:
        found = [(folder, row.path, None) for folder, row in zip(folders, lists.rows, strict=True)]
        return Listing(_with_keys(found), {}, beside=tuple(row.beside for row in lists.rows))
    filled = sorted(set(folders) - {""})
    names, remarks = _named(filled, [], numbered, root, Tally()) if filled else ({}, ())
    number_of: Mapping[str, int] = {name: number for number, name in names.items()}
    loose = folders.count("")
    if filled and loose:
        remarks += (f"{loose:,} of {len(folders):,} images have no label, being in no folder",)
    deep = next((name for name in filled if "/" in name), None)
    if deep:
        remarks += (f"classes are whole folders, such as {deep!r}",)
    listed_ = [(folder, row.path, number_of.get(folder)) for folder, row in zip(folders, lists.rows, strict=True)]
    return Listing(_with_keys(listed_), names, (), remarks)


def _from_csv(file: Path, numbered: Names | None) -> Listing:
    """Rows of path,label or path alone; paths are relative to the CSV."""
    return _from_rows(read_rows(file), numbered)


def _from_json(file: Path, numbered: Names | None) -> Listing:
    """Images with their categories, which keep their numbers unless `numbered` has others for their names."""
    rows, names = read_json(file)
    if names and numbered is not None:
        return _from_rows([replace(row, label=names[int(row.label)] if row.label else "") for row in rows], numbered)
    return _from_rows(rows, numbered, names)


def _from_rows(rows: Sequence[Row], numbered: Names | None, given: Names | None = None) -> Listing:
    """Rows with labels, which are numbers of the classes `given`, if they are."""
    labels, names, remarks = labels_of(rows, numbered)
    names = given or names
    found = [
        (names.get(label, "") if label is not None else "", row.path, label)
        for row, label in zip(rows, labels, strict=True)
    ]
    return Listing(_with_keys(found), names, (), remarks)


def _with_keys(found: Iterable[tuple[str, Path, int | None]]) -> tuple[Sample, ...]:
    """Samples with keys of [A-Za-z0-9_-], made of class and stem; repeats get the suffixes -2, -3, ..."""
    taken: set[str] = set()
    counts: dict[str, int] = {}  # the last suffix of each base
    samples = []
    for name, path, label in found:
        stem = path.stem if not name or path.stem.startswith(f"{name}_") else f"{name}_{path.stem}"
        base = re.sub(r"[^A-Za-z0-9_-]", "-", stem)[:MAX_KEY]
        key, count = base, counts.get(base, 1)
        while key in taken:
            count += 1
            key = f"{base}-{count}"
        counts[base] = count
        taken.add(key)
        samples.append(Sample(key, path, label))
    return tuple(samples)


_FILES: dict[str, Callable[[Path, Names | None], Listing]] = {".csv": _from_csv, ".json": _from_json}
