"""The folder of a page: index.html and its figures, replaced only where an earlier page lies.

The page is self-contained, so it is written first, and whole whatever happens later. It names its figures' files: what
else lies in the folder is not ours, and refused.
"""

from pathlib import Path

from unic_cache.errors import ConfigError
from unic_cache.evaluate.page import Page, files_of, html
from unic_cache.files.local import LocalFolder

INDEX = "index.html"


def check_free(out: str) -> set[str]:
    """The figures of an earlier page in OUT, none if OUT is new or empty. ConfigError if OUT holds anything else."""
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{out} is a file; choose a folder for the page")
    folder = LocalFolder(path)
    names = list(folder.names())
    before = files_of(folder.read(INDEX) or b"")
    others = [name for name in names if before is None or name not in {INDEX, *before}]
    if others:
        raise ConfigError(f"{out} holds {others[0]}, which is not of an earlier page; choose a folder of its own")
    return before or set()


def write_page(out: str, page: Page) -> Path:
    """Write the page and its figures, each atomically, and delete figures that only an earlier page had."""
    before = check_free(out)
    folder = LocalFolder(Path(out))
    folder.remove_leftovers()
    files = {f"figures/{picture.name}.png": picture.png for picture in page.pictures}
    files |= {f"figures/{picture.name}.svg": picture.svg for picture in page.pictures}
    for name in sorted(before - files.keys()):
        folder.delete(name)
    folder.replace(INDEX, html(page))
    for name, data in files.items():
        folder.replace(name, data)
    return Path(out) / INDEX
