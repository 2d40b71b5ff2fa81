"""Find the images below a folder by the names that a list gives them: with or without folders and extension."""

from pathlib import Path, PurePosixPath

from unic_cache.errors import ConfigError
from unic_cache.views.image_files import images_below
from unic_cache.views.left_out import Tally, shown


class ImageNames:
    """The images below `root` by name. The folder is walked only for names that are not paths in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.walked = Tally()  # files that are not images
        self._index: dict[str, list[Path]] | None = None  # by name and by name without extension

    def find(self, name: str) -> Path | None:
        """The image at this path, or the only one whose path ends so, with or without extension; None without one.

        ConfigError if there are several.
        """
        parts = _parts(name)
        if not parts:
            return None
        exact = self.root.joinpath(*parts)
        if exact.is_file():
            return exact
        found = [path for path in self._named(parts[-1]) if _lies_in(path.relative_to(self.root), parts[:-1])]
        if len(found) > 1:
            places = " and ".join(shown(str(path.relative_to(self.root))) for path in found[:2])
            raise ConfigError(f"{shown(name)!r} may be {places}; write more of the path")
        return found[0] if found else None

    def alike(self, name: str) -> Path | None:
        """An image of the same name in other folders, if any."""
        parts = _parts(name)
        return next(iter(self._named(parts[-1])), None) if parts else None

    def _named(self, last: str) -> list[Path]:
        if self._index is None:
            self._index = {}
            for path in images_below(self.root, self.root, self.walked):
                for own in {path.name, path.stem}:
                    self._index.setdefault(own, []).append(path)
        return self._index.get(last, [])


def _parts(name: str) -> tuple[str, ...]:
    """The folders and the name; a leading '/' stands for the root. Nothing for what would leave it."""
    parts = PurePosixPath(name.lstrip("/")).parts
    return () if ".." in parts else parts


def _lies_in(path: Path, folders: tuple[str, ...]) -> bool:
    """Whether the last folders of a path are these."""
    own = path.parts[:-1]
    return own[len(own) - len(folders) :] == folders if len(folders) <= len(own) else False
