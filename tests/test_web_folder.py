"""Plain web servers: Python's own over a folder on disk, with the range requests that real ones answer."""

import pickle
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from obstore.exceptions import GenericError

from tests.location_contract import Files, ReadContract
from tests.web_server import WithoutRanges, WithRanges
from unic_cache.errors import CacheError
from unic_cache.files import outages
from unic_cache.files.local import LocalFolder
from unic_cache.files.location import Location
from unic_cache.files.schemes import open_location


class TestWebFolder(ReadContract):
    @pytest.fixture
    def folder(self, tmp_path: Path, serve: Callable[[type[SimpleHTTPRequestHandler]], str]) -> Location:
        (tmp_path / "some" / "cache").mkdir(parents=True)
        return open_location(f"{serve(WithRanges)}/some/cache/")

    @pytest.fixture
    def fill(self, tmp_path: Path) -> Callable[[Files], None]:
        def put(files: Files) -> None:
            cache = LocalFolder(tmp_path / "some" / "cache")
            for name, data in files.items():
                cache.create(name, data)
            (cache.path / "t" / ".tmp-0-left-over").write_bytes(b"")

        return put

    def test_it_is_only_read_from(self, folder: Location) -> None:
        for call in (lambda: folder.create("a", b""), lambda: folder.replace("a", b""), lambda: folder.delete("a")):
            with pytest.raises(
                CacheError, match="/some/cache/a: web servers are read-only here; write to a path, s3://"
            ):
                call()

    def test_it_travels_to_a_spawned_worker(self, folder: Location, fill: Callable[[Files], None]) -> None:
        fill({"t/a": b"data"})
        assert folder.read("t/a") == b"data"
        assert pickle.loads(pickle.dumps(folder)).read("t/a") == b"data"


def test_server_without_ranges_is_told_of(
    tmp_path: Path, serve: Callable[[type[SimpleHTTPRequestHandler]], str]
) -> None:
    (tmp_path / "a").write_bytes(b"data")
    with pytest.raises(
        CacheError, match=r"/a: .*Range.*; serve the folder with a web server that answers range requests"
    ):
        open_location(serve(WithoutRanges)).read_range("a", 1, 2)


def test_folder_that_is_not_there_or_not_listed_is_told_of(
    serve: Callable[[type[SimpleHTTPRequestHandler]], str],
) -> None:
    folder = open_location(f"{serve(WithRanges)}/lost")
    for call in (lambda: list(folder.names()), folder.folders):
        with pytest.raises(
            CacheError, match=r"/lost: the server has no such folder, or does not list it; correct the URL"
        ):
            call()


def test_hostile_index_page_yields_only_names_inside(
    tmp_path: Path, serve: Callable[[type[SimpleHTTPRequestHandler]], str]
) -> None:
    links = [
        "../up",
        "..%2fup",
        "/etc/passwd",
        "https://elsewhere/x",
        "a/b",
        "?C=M",
        "#top",
        ".",
        "./",
        "..",
        "",
        "%00",
        "ü",
    ]
    page = "".join(f'<a href="{link}">x</a>' for link in links) + '<a>none</a><img href="b"><a href="./good">x</a>'
    (tmp_path / "index.html").write_text(page)
    folder = open_location(serve(WithRanges))
    assert list(folder.names()) == ["good"]
    assert folder.folders() == []


def test_folders_without_an_end_are_told_of(serve: Callable[[type[SimpleHTTPRequestHandler]], str]) -> None:
    class Endless(WithoutRanges):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'<a href="deeper/">deeper</a>')

    with pytest.raises(CacheError, match=r"deeper: folders nest more than 16 deep; this is not a cache"):
        list(open_location(serve(Endless)).names())


def test_outage_is_outlived(
    tmp_path: Path,
    serve: Callable[[type[SimpleHTTPRequestHandler]], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outages, "FIRST_PAUSE", 0.001)
    broken = iter(range(6))

    class Limping(WithRanges):
        def do_GET(self) -> None:
            if next(broken, None) is None:
                super().do_GET()
            else:
                self.send_error(503)

    (tmp_path / "a").write_bytes(b"data")
    folder = open_location(serve(Limping))
    assert list(folder.names()) == ["a"]
    broken = iter(range(3))
    assert folder.read("a") == b"data"


def test_server_that_stays_away_is_told_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "PATIENCE", 0.05)
    folder = open_location("http://127.0.0.1:1/cache")
    for call in (lambda: list(folder.names()), lambda: folder.read("a"), lambda: folder.size("a")):
        with pytest.raises(
            CacheError, match=r"^http://127.0.0.1:1/cache.*Connection refused.*check that the URL is right"
        ):
            call()


def test_untrusted_certificate_is_told_at_once() -> None:
    texts = [
        "HTTP error: error sending request\n\nDebug source:\n... InvalidCertificate(UnknownIssuer)",
        "<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] ...>",
    ]
    for text in texts:

        def call(text: str = text) -> bytes:
            raise GenericError(text)

        with pytest.raises(
            CacheError, match=r"^https://h: the server's certificate is not trusted here; check that the URL"
        ):
            outages.outlive("https://h", call, answered=True)


def test_refused_listing_is_told_at_once(serve: Callable[[type[SimpleHTTPRequestHandler]], str]) -> None:
    class Refusing(WithoutRanges):
        def do_GET(self) -> None:
            self.send_error(403)

    with pytest.raises(
        CacheError, match="the server answered 403 Forbidden; let the web server serve and list this folder"
    ):
        open_location(serve(Refusing)).folders()


def test_answer_without_a_length_is_told_at_once(serve: Callable[[type[SimpleHTTPRequestHandler]], str]) -> None:
    class Endless(WithoutRanges):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"data")

    with pytest.raises(CacheError, match="Content-Length Header missing"):
        open_location(serve(Endless)).read("a")
