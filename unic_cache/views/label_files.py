"""Find each image's mask and depth map: the file of its name in a folder laid out as the images', or flat."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from unic_cache.errors import ConfigError
from unic_cache.views.dense_places import DEPTH_NPY, DEPTH_PNG, MASK
from unic_cache.views.left_out import is_guest, shown
from unic_cache.views.listing import Listing, Sample


@dataclass(frozen=True)
class _Wanted:
    """What one option gives: its name, what it holds, and the kind of label by extension."""

    flag: str
    what: str
    kinds: Mapping[str, str]

    @property
    def files(self) -> str:
        return " or ".join(self.kinds)


MASKS = _Wanted("--masks", "mask", {".png": MASK})
DEPTHS = _Wanted("--depths", "depth map", {".png": DEPTH_PNG, ".npy": DEPTH_NPY})


def with_dense_labels(listing: Listing, masks: str | None, depths: str | None) -> Listing:
    """The listing with the files of its masks and depth maps, from these folders.

    A list that names a file beside each image gives those of the only folder; else a file belongs to the image whose
    path below IMAGES it has in its own folder, or whose name it has there, extensions aside.

    ConfigError if an image has none, or two that differ in extension, or one that is another's too.
    """
    given = [(wanted, Path(folder)) for wanted, folder in ((MASKS, masks), (DEPTHS, depths)) if folder is not None]
    if listing.beside and len(given) != 1:
        raise ConfigError(
            f"--list names a file beside each image, such as {shown(listing.beside[0])}: give the folder that these "
            "paths begin in, with either --masks or --depths"
        )
    found: list[dict[str, Path]] = [{} for _ in listing.samples]
    for wanted, folder in given:
        if not folder.is_dir():
            raise ConfigError(f"{wanted.flag} {shown(str(folder))}: no folder is there; check the path")
        files = _named(listing, folder, wanted) if listing.beside else _matched(listing, folder, wanted)
        _check_own(listing.samples, files, wanted)
        for own, path in zip(found, files, strict=True):
            own[wanted.kinds[path.suffix.lower()]] = path
    samples = [replace(sample, dense=own) for sample, own in zip(listing.samples, found, strict=True)]
    return replace(listing, samples=tuple(samples))


def _named(listing: Listing, folder: Path, wanted: _Wanted) -> list[Path]:
    """The file that the list names for each sample, below `folder`."""
    files = [folder / name.lstrip("/") for name in listing.beside]
    for sample, path in zip(listing.samples, files, strict=True):
        if path.suffix.lower() not in wanted.kinds:
            raise ConfigError(f"{wanted.flag}: {shown(str(path))}, by --list, is not {wanted.files}")
        if not path.is_file():
            raise ConfigError(
                f"{wanted.flag}: no file at {shown(str(path))}, which --list names for {shown(str(sample.path))}; its "
                f"paths begin in {wanted.flag}"
            )
    return files


def _matched(listing: Listing, folder: Path, wanted: _Wanted) -> list[Path]:
    """The file of each sample's name."""
    files = _files(folder, wanted)
    places = [_place(sample, listing.root) for sample in listing.samples]
    found = [files.get(place) or files.get(PurePath(place.name)) for place in places]
    lacking = [sample for sample, path in zip(listing.samples, found, strict=True) if path is None]
    if len(lacking) == len(found):
        place, held = places[0], f"it has {len(files):,} {wanted.files} files"
        if files:
            held += f", such as {shown(str(next(iter(files.values())).relative_to(folder)))}"
        raise ConfigError(
            f"{wanted.flag} {shown(str(folder))}: no image has a {wanted.what} there; that of "
            f"{shown(str(listing.samples[0].path))} would be {shown(str(place))} or {shown(place.name)} with "
            f"{wanted.files}, but {held}"
        )
    if lacking:
        raise ConfigError(
            f"{wanted.flag} {shown(str(folder))}: {len(lacking):,} of {len(found):,} images have no {wanted.what} "
            f"there, such as {shown(str(lacking[0].path))}; add it, or name the images that have one with --list"
        )
    return [path for path in found if path is not None]


def _files(folder: Path, wanted: _Wanted) -> dict[PurePath, Path]:
    """{path below `folder` without extension: file}. ConfigError for two files that differ only in extension."""
    found: dict[PurePath, Path] = {}
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not is_guest(name))
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix.lower() not in wanted.kinds or is_guest(name):
                continue
            other = found.setdefault(path.relative_to(folder).with_suffix(""), path)
            if other is not path:
                both = f"{shown(str(other))} and {shown(path.name)}"
                raise ConfigError(f"{wanted.flag}: {both} are of one name and so of one image; keep one")
    return found


def _place(sample: Sample, root: Path) -> PurePath:
    """The sample's path below `root` without extension; only its name if it lies elsewhere."""
    place = PurePath(os.path.relpath(sample.path, root))
    return PurePath(place.stem) if ".." in place.parts else place.with_suffix("")


def _check_own(samples: tuple[Sample, ...], files: list[Path], wanted: _Wanted) -> None:
    """ConfigError for a file of two images, or one that is an image itself."""
    images = {sample.path.absolute() for sample in samples}
    owner: dict[Path, Sample] = {}
    for sample, path in zip(samples, files, strict=True):
        other = owner.setdefault(path, sample)
        if other is not sample:
            raise ConfigError(
                f"{wanted.flag}: {shown(str(path))} would be the {wanted.what} of {shown(str(other.path))} and of "
                f"{shown(str(sample.path))}; lay the {wanted.what}s out in the same folders as the images"
            )
        if path.absolute() in images:
            raise ConfigError(
                f"{wanted.flag}: {shown(str(path))} is one of the images; keep {wanted.what}s in a folder of their "
                "own, or name the images with --list"
            )


def _unreadable(error: OSError) -> None:
    raise ConfigError(f"{shown(str(error.filename))} cannot be read ({error.strerror}); fix that, or move it away")
