"""Caches and shards on a plain web server, https:// and http://, to read.

The server must answer range requests, for features, and list its folders as pages of links, as nginx (autoindex),
Apache, Caddy and most others do when they are told to.
"""

import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Iterator
from html.parser import HTMLParser

from obstore.exceptions import GenericError

from unic_cache.errors import CacheError
from unic_cache.files.location import NAME, checked
from unic_cache.files.object_store import ObjectFolder
from unic_cache.files.outages import outlive

DEEPEST = 16  # folders below one another; a cache has six
LARGEST = 1 << 26  # bytes of an index page
SILENCE = 60.0  # seconds without a byte of it


class WebFolder(ObjectFolder):
    """A `Location` that is only read from; `names` and `folders` read the server's index pages."""

    def create(self, name: str, data: bytes) -> bool:  # noqa: ARG002
        """CacheError: read-only."""
        raise self._read_only(name)

    def replace(self, name: str, data: bytes) -> None:  # noqa: ARG002
        """CacheError: read-only."""
        raise self._read_only(name)

    def delete(self, name: str) -> None:
        """CacheError: read-only."""
        raise self._read_only(name)

    def names(self, prefix: str = "", without: Collection[str] = ()) -> Iterator[str]:
        """The index pages, one a folder."""
        left_out = {f"{prefix}/{folder}".lstrip("/") for folder in without}
        yield from sorted(self._below(checked(prefix) if prefix else "", DEEPEST, left_out))

    def folders(self, prefix: str = "") -> list[str]:
        """One index page."""
        links = self._links(checked(prefix) if prefix else "")
        return sorted(link.removesuffix("/") for link in links if link.endswith("/"))

    def _below(self, folder: str, depth: int, left_out: Collection[str]) -> Iterator[str]:
        if not depth:
            raise CacheError(f"{self.url}/{folder}: folders lie more than {DEEPEST} deep; this is no cache")
        for link in self._links(folder):
            name = f"{folder}/{link.removesuffix('/')}".lstrip("/")
            if link.endswith("/"):
                if name not in left_out:
                    yield from self._below(name, depth - 1, left_out)
            else:
                yield name

    def _links(self, folder: str) -> set[str]:
        url = f"{self.url}/{folder}".rstrip("/")
        try:
            page = outlive(url, lambda: _index_page(f"{url}/"), answered=True)
        except FileNotFoundError as error:
            if folder:
                return set()
            raise CacheError(
                f"{self.url}: the server has no such folder, or does not list it; correct the URL, or turn the index "
                "pages of the server on (nginx: autoindex on)"
            ) from error
        return _Links(page).found

    def _read_only(self, name: str) -> CacheError:
        return CacheError(f"{self.url}/{name}: a web server is only read from; write to a path, s3:// or gs://")


def _index_page(url: str) -> str:
    """By urllib, as obstore wants a Content-Length, which pages made on the fly often lack; errors as obstore's."""
    try:
        with urllib.request.urlopen(url, timeout=SILENCE) as answer:  # noqa: S310 (open_location lets only http(s) come here)
            page: bytes = answer.read(LARGEST)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise FileNotFoundError(url) from error
        raise GenericError(f"status code: {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise GenericError(str(error)) from error
    if len(page) == LARGEST:
        raise CacheError(f"{url}: an index page of {LARGEST} bytes or more; this is no cache")
    return page.decode(errors="replace")


class _Links(HTMLParser):
    """The names in one folder's index page; what points elsewhere, or is no name in a cache, is left out."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the target of <a href=...> where it is a plain name, with a "/" behind a folder's."""
        link = urllib.parse.unquote(dict(attrs).get("href") or "").removeprefix("./")
        part = link.removesuffix("/")
        if (
            tag == "a"
            and NAME.fullmatch(part)
            and "/" not in part
            and not part.startswith((".tmp-", ".."))
            and part != "."
        ):
            self.found.add(link)
