"""Caches and shards on object stores, s3:// and gs://. (`unic_cache.files.web_folder` reads web servers.)

A file is one object, written by one PUT that the server refuses if the name is taken (If-None-Match: *). Every call
retries through outages (see `unic_cache.files.outages`).

obstore, the client, runs threads that do not survive fork(2): in a child of a process that has used it, any call
hangs, and then hangs the parent. So a store opens at its first use, and refuses to open in such a child.
"""

import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import GCSStore, HTTPStore, S3Store

from unic_cache.errors import CacheError
from unic_cache.files.location import checked
from unic_cache.files.open_file import OpenFile, RangeFile, Span
from unic_cache.files.outages import outlive, reason

if TYPE_CHECKING:
    from obstore import Bytes as Buffer
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

PAGE = 1000  # names in a server's answer
NO_RETRIES: "RetryConfig" = {"max_retries": 0}  # obstore's own; `outlive` retries all kinds of requests

LARGE = 2**30  # bytes: servers take 5 GiB in one PUT
PART = 2**26  # bytes, of at most 10,000 parts

T = TypeVar("T")
_used_by: set[int] = set()  # the process that owns obstore's threads


class ObjectFolder:
    """A `Location` below a prefix of a bucket. Connects at its first use."""

    waits = True

    def __init__(self, url: str, store: "ObjectStore | None" = None) -> None:
        """`store` replaces the one that `url` would open, such as obstore's MemoryStore in tests."""
        self.url = url.rstrip("/")
        self.scheme = url.split(":", 1)[0]
        self._store = store
        self._answered = False
        self._known_to_refuse = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __reduce__(self) -> "tuple[type[ObjectFolder], tuple[str]]":
        return type(self), (self.url,)

    def read(self, name: str) -> bytes | None:
        """One GET."""
        path = checked(name)
        try:
            return self._persist(path, lambda store: obstore.get(store, path).bytes().to_bytes())
        except FileNotFoundError:
            return None

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """One GET of a range."""
        path = checked(name)

        def attempt(store: "ObjectStore") -> bytes:
            if size == 0:
                obstore.head(store, path)
                return b""
            try:
                return obstore.get_range(store, path, start=offset, length=size).to_bytes()
            except BaseError as error:
                if offset < obstore.head(store, path)["size"]:
                    raise error
                return b""

        return self._persist(path, attempt)

    def open(self, name: str) -> OpenFile:
        """No request yet."""
        return _ObjectFile(self, checked(name))

    def read_ranges(self, name: str, spans: Sequence[Span]) -> "list[Buffer]":
        """Several ranges at once, near ones by one GET; none may end beyond the object."""
        path = checked(name)
        starts, lengths = zip(*spans, strict=True)
        return self._persist(path, lambda store: list(obstore.get_ranges(store, path, starts=starts, lengths=lengths)))

    def size(self, name: str) -> int | None:
        """One HEAD."""
        path = checked(name)

        def attempt(store: "ObjectStore") -> int:
            try:
                return obstore.head(store, path)["size"]
            except FileNotFoundError:  # HEAD has no body to tell a missing object from a missing bucket
                return obstore.get(store, path).meta["size"]

        try:
            return self._persist(path, attempt)
        except FileNotFoundError:
            return None

    def create(self, name: str, data: bytes) -> bool:
        """One conditional PUT; if the name is taken, one GET to compare the bytes."""
        path = checked(name)

        def attempt(store: "ObjectStore") -> bool:
            try:
                obstore.put(store, path, data, mode="create", use_multipart=False)
            except AlreadyExistsError as taken:
                try:
                    return obstore.get(store, path).bytes().to_bytes() == data
                except FileNotFoundError:  # being written, or just deleted
                    raise taken from None
            return True

        created = self._persist(path, attempt)
        if created and not self._known_to_refuse:
            self._persist(path, lambda store: self._see_it_refused(store, path, data))
        return created

    def replace(self, name: str, data: bytes) -> None:
        """One PUT, or one of several parts above LARGE, which appears whole too."""
        path = checked(name)
        parts: dict[str, Any] = {"use_multipart": len(data) > LARGE, "chunk_size": PART}
        self._persist(path, lambda store: obstore.put(store, path, data, **parts))

    def delete(self, name: str) -> None:
        """One DELETE."""
        path = checked(name)
        try:
            self._persist(path, lambda store: obstore.delete(store, path))
        except FileNotFoundError:
            return

    def names(self, prefix: str = "", without: Collection[str] = ()) -> Iterator[str]:
        """A listing, a thousand names per request."""
        path = checked(prefix) if prefix else None
        left_out = tuple(f"{prefix}/{folder}/".lstrip("/") for folder in without)
        found = self._persist(
            prefix, lambda store: sorted(entry["path"] for page in obstore.list(store, path) for entry in page)
        )
        yield from (name for name in found if not name.startswith(left_out))

    def names_between(self, folder: str, after: str, before: str) -> list[str]:
        """A listing that begins after one name and ends with the request that passes the other."""
        return sorted(self.times_between(folder, after, before))

    def times_between(self, folder: str, after: str, before: str) -> dict[str, float | None]:
        """The same listing, which has times."""
        path = checked(folder)

        def attempt(store: "ObjectStore") -> dict[str, float | None]:
            found: dict[str, float | None] = {}
            for page in obstore.list(store, path, offset=f"{path}/{after}" if after else None, chunk_size=PAGE):
                found |= {entry["path"]: entry["last_modified"].timestamp() for entry in page}
                if page and min(entry["path"] for entry in page) >= f"{path}/{before}":
                    break
            return found

        found = {name: at for name, at in self._persist(folder, attempt).items() if name.rpartition("/")[0] == path}
        return {name: at for name, at in found.items() if after < name.rpartition("/")[2] < before}

    def folders(self, prefix: str = "") -> list[str]:
        """A listing up to the next "/"."""
        path = checked(prefix) if prefix else None
        found = self._persist(prefix, lambda store: obstore.list_with_delimiter(store, path)["common_prefixes"])
        return sorted(folder.rsplit("/", 1)[-1] for folder in found)

    def _see_it_refused(self, store: "ObjectStore", path: str, data: bytes) -> None:
        """CacheError if the server lets a name be created twice: workers would overwrite each other."""
        try:
            obstore.put(store, path, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            self._known_to_refuse = True
        else:
            raise CacheError(
                f"{self.url}/{path}: the server let this object be created twice, so workers would overwrite each "
                "other; use one that honours If-None-Match in a PUT, as Amazon's, Ceph's and MinIO's do"
            )

    def _open(self) -> "ObjectStore":
        if _used_by and os.getpid() not in _used_by:
            raise CacheError(
                f"{self.url}: this process was forked from one that had already used an object store, so any call "
                "would hang; start workers by spawn or forkserver instead of fork"
            )
        if self._store is None:
            try:
                self._store = STORES[self.scheme](self.url)
            except (BaseError, ValueError) as error:
                raise CacheError(f"{self.url} cannot be opened: {reason(error)}") from error
        _used_by.add(os.getpid())
        return self._store

    def _persist(self, name: str, call: "Callable[[ObjectStore], T]") -> T:
        store = self._open()
        answer = outlive(f"{self.url}/{name}".rstrip("/"), lambda: call(store), answered=self._answered)
        self._answered = True
        return answer


class _ObjectFile(RangeFile):
    """One object."""

    def __init__(self, folder: ObjectFolder, name: str) -> None:
        super().__init__(partial(folder.read_range, name))
        self._folder = folder
        self._name = name
        self._size: int | None = None

    def expecting(self, spans: Sequence[Span]) -> OpenFile:
        """The ranges, fetched together. Asks for the object's size once, since obstore panics beyond it."""
        if len(spans) < 2:
            return self
        if self._size is None:
            self._size = self._folder.size(self._name) or 0
        if max(offset + size for offset, size in spans) > self._size:
            return self
        fetched = self._folder.read_ranges(self._name, spans)
        parts = {offset: memoryview(data) for (offset, _), data in zip(spans, fetched, strict=True)}
        return RangeFile(lambda offset, size: parts[offset][:size])


def _open_s3(url: str) -> "ObjectStore":
    endpoint = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "https://")
    if not re.match(r"https?://", endpoint):
        raise CacheError(f"AWS_ENDPOINT_URL={endpoint!r} is not a URL; write it as https://HOST or http://HOST:PORT")
    options = _client_options(endpoint)
    return S3Store.from_url(url, client_options=options, retry_config=NO_RETRIES, disable_bulk_delete=True)


def _open_as(kind: type[GCSStore | HTTPStore], url: str) -> "ObjectStore":
    return kind.from_url(url, client_options=_client_options(url), retry_config=NO_RETRIES)


def _client_options(endpoint: str) -> "ClientConfig":
    """Long timeouts: by default obstore gives up on a request after 30 s, too early for a large object."""
    return {
        "allow_http": endpoint.startswith("http://"),
        "timeout": timedelta(hours=1),
        "read_timeout": timedelta(minutes=5),
    }


ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
STORES: "dict[str, Callable[[str], ObjectStore]]" = {
    "s3": _open_s3,
    "gs": partial(_open_as, GCSStore),
    "https": partial(_open_as, HTTPStore),
    "http": partial(_open_as, HTTPStore),
}
