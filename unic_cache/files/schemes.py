"""Which `Location` a path or URL is, by its scheme."""

from pathlib import Path

from unic_cache.files.local import LocalFolder
from unic_cache.files.location import Location
from unic_cache.files.paths import check_path


def open_location(where: str | Path, worker: int = 0) -> Location:
    """A path or a URL as a `Location`; the folder need not exist yet."""
    text = check_path(str(where))
    scheme = text.partition("://")[0] if "://" in text else "file"
    if scheme in {"s3", "gs"}:
        from unic_cache.files.object_store import ObjectFolder

        return ObjectFolder(text)
    if scheme in {"http", "https"}:
        from unic_cache.files.web_folder import WebFolder

        return WebFolder(text)
    return LocalFolder(text.removeprefix("file://"), worker)
