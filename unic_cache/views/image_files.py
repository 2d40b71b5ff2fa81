"""Find image files on disk: by content, through links, without the files that other systems leave behind."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from unic_cache.errors import ConfigError
from unic_cache.views.decode import HEAD, image_kind
from unic_cache.views.left_out import DOCUMENT, GUEST, LOOP, NO_PICTURE, SPECIAL, Tally, is_document, is_guest, shown
from unic_cache.views.tars import IMAGE_EXTENSIONS


def is_class_folder(path: Path, tally: Tally) -> bool:
    """Whether a path in a data set's root is a class folder; counts folders that are guests."""
    if not path.is_dir():
        return False
    if is_guest(path.name):
        tally.add(GUEST, f"{path.name}/")
        return False
    return True


def images_below(folder: Path, root: Path, tally: Tally) -> list[Path]:
    """The images below a class folder, sorted.

    Follows links to folders outside of `root`, once each; a link to a folder inside `root` would repeat its images.
    """
    found: list[Path] = []
    taken: set[tuple[int, int]] = set()
    inside, links = root.resolve(), [folder]
    while links:
        top = links.pop(0)
        target = top.resolve()
        within = inside in target.parents or target in {inside, *inside.parents}
        if top != folder and (within or _identity(target) in taken):
            tally.add(LOOP, str(top.relative_to(root)))
            continue
        for parent, names, _ in os.walk(top, onerror=_unreadable):
            here = Path(parent)
            taken.add(_identity(here))
            names[:] = [name for name in sorted(names) if _entered(here / name, tally, links)]
            found += files_of(here, tally, str(here.relative_to(root)))
    return sorted(found)


def files_of(folder: Path, tally: Tally, within: str = "") -> Iterator[Path]:
    """The images directly in a folder, in order; counts other files."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir())
    except OSError as error:
        _unreadable(error)
    for name in names:
        path, place = folder / name, f"{within}/{name}" if within else name
        if is_guest(name):
            tally.add(GUEST, place)
        elif path.exists() and not stat.S_ISREG(path.stat().st_mode):
            tally.add(SPECIAL, place)
        elif path.suffix.lower()[1:] in IMAGE_EXTENSIONS or _is_image(path):
            yield path  # packing reports dead links among them
        else:
            tally.add(DOCUMENT if is_document(name) else NO_PICTURE, place)


def _is_image(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return image_kind(file.read(HEAD)) is not None
    except OSError:
        return False


def _entered(path: Path, tally: Tally, links: list[Path]) -> bool:
    """Whether to walk into a folder now: not into guests, which are counted, nor links, which are queued."""
    if is_guest(path.name):
        tally.add(GUEST, f"{path.parent.name}/{path.name}/")
        return False
    if path.is_symlink():
        links.append(path)
        return False
    return True


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _unreadable(error: OSError) -> None:
    raise ConfigError(f"{shown(str(error.filename))} cannot be read ({error.strerror}); fix that, or move it away")
