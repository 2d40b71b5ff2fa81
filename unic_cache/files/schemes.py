"""Open a path or URL as a `Location`: one entry of `SCHEMES` per URL scheme."""

from collections.abc import Callable
from pathlib import Path

from unic_cache.files.local import LocalFolder
from unic_cache.files.location import Location
from unic_cache.files.paths import check_path


def _object_store(url: str) -> Location:
    from unic_cache.files.object_store import ObjectFolder

    return ObjectFolder(url)


def _web_server(url: str) -> Location:
    from unic_cache.files.web_folder import WebFolder

    return WebFolder(url)


# Imports are late: obstore is not needed for local files. `object_store.STORES` opens what the scheme names.
SCHEMES: dict[str, Callable[[str], Location]] = {
    "s3": _object_store,
    "gs": _object_store,
    "https": _web_server,
    "http": _web_server,
}


def open_location(where: str | Path, worker: int = 0) -> Location:
    """The `Location` of a path or URL, which need not exist yet; `worker` marks its temporary files."""
    text = check_path(str(where))
    scheme = text.partition("://")[0] if "://" in text else "file"
    if scheme in SCHEMES:
        return SCHEMES[scheme](text)
    return LocalFolder(text.removeprefix("file://"), worker)
