"""Read caches and shards from a plain web server, https:// or http://.

The server must answer range requests and list its folders as pages of links, as nginx (autoindex), Apache, Caddy and
most others can.
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

DEEPEST = 16  # nested folders; a cache has six
LARGEST = 1 << 26  # bytes of an index page
SILENCE = 60.0  # seconds without a byte of a page


class WebFolder(ObjectFolder):
    """A read-only `Location`; `names` and `folders` read the server's index pages."""

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
        """One index page per folder."""
        left_out = {f"{prefix}/{folder}".lstrip("/") for folder in without}
        yield from sorted(self._below(checked(prefix) if prefix else "", DEEPEST, left_out))

    def names_between(self, folder: str, after: str, before: str) -> list[str]:
        """One index page."""
        links = self._links(checked(folder))
        return sorted(f"{folder}/{link}" for link in links if not link.endswith("/") and after < link < before)

    def times_between(self, folder: str, after: str, before: str) -> dict[str, float | None]:
        """One index page, without times."""
        return dict.fromkeys(self.names_between(folder, after, before))

    def folders(self, prefix: str = "") -> list[str]:
        """One index page."""
        links = self._links(checked(prefix) if prefix else "")
        return sorted(link.removesuffix("/") for link in links if link.endswith("/"))

    def _below(self, folder: str, depth: int, left_out: Collection[str]) -> Iterator[str]:
        if not depth:
            raise CacheError(f"{self.url}/{folder}: folders nest more than {DEEPEST} deep; this is not a cache")
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
                f"{self.url}: the server has no such folder, or does not list it; correct the URL, or turn on the "
                "server's index pages (nginx: autoindex on)"
            ) from error
        return _Links(page).found

    def _read_only(self, name: str) -> CacheError:
        return CacheError(f"{self.url}/{name}: web servers are read-only here; write to a path, s3:// or gs://")


def _index_page(url: str) -> str:
    """The page's text. By urllib, since obstore needs a Content-Length, which dynamic pages often lack.

    FileNotFoundError and GenericError as obstore raises them; CacheError for a page of `LARGEST` bytes or more.
    """
    try:
        with urllib.request.urlopen(url, timeout=SILENCE) as answer:  # noqa: S310 (only http(s) URLs get here)
            page: bytes = answer.read(LARGEST)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise FileNotFoundError(url) from error
        raise GenericError(f"status code: {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise GenericError(str(error)) from error
    if len(page) == LARGEST:
        raise CacheError(f"{url}: an index page of {LARGEST} bytes or more; this is not a cache")
    return page.decode(errors="replace")


class _Links(HTMLParser):
    """The names in one folder's index page, without links that lead elsewhere or are not names in a cache."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the target of <a href=...> if it is a plain name; a folder's ends in "/"."""
        link = urllib.parse.unquote(dict(attrs).get("href") or "").removeprefix("./")
        part = link.removesuffix("/")
        is_name = NAME.fullmatch(part) and "/" not in part and part != "."
        if tag == "a" and is_name and not part.startswith((".tmp-", "..")):
            self.found.add(link)
