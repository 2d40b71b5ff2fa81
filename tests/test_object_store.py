"""Object stores against the contract, and against servers that fail on demand."""

import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import obstore
import pytest
from obstore.store import GCSStore, MemoryStore

from tests.location_contract import WriteContract
from tests.object_server import PAGE, ObjectServer
from unic_cache.errors import CacheError
from unic_cache.files import object_store, outages
from unic_cache.files.location import Location
from unic_cache.files.object_store import ObjectFolder
from unic_cache.files.schemes import open_location
from unic_cache.files.web_folder import WebFolder

CALLS: dict[str, Callable[[Location], object]] = {
    "read": lambda folder: folder.read("a/there"),
    "read_range": lambda folder: folder.read_range("a/there", 1, 2),
    "open": lambda folder: opened(folder, "a/there"),
    "size": lambda folder: folder.size("a/there"),
    "create": lambda folder: folder.create("a/new", b"new"),
    "replace": lambda folder: folder.replace("a/new", b"new"),
    "delete": lambda folder: folder.delete("a/there"),
    "names": lambda folder: list(folder.names()),
    "folders": lambda folder: folder.folders(),
    "names_between": lambda folder: folder.names_between("a", "s", "u"),
}


def opened(folder: Location, name: str) -> bytes:
    """Two ranges of a file, fetched together."""
    buffer = memoryview(bytearray(5))
    file = folder.open(name).expecting([(0, 1), (1, 4)])
    return bytes(buffer[: file.read_into(0, [buffer[:1]]) + file.read_into(1, [buffer[1:]])])


ANSWERS = {
    "read": b"there",
    "read_range": b"he",
    "open": b"there",
    "size": 5,
    "create": True,
    "replace": None,
    "delete": None,
    "names": ["a/there", "b", "c"],
    "folders": ["a"],
    "names_between": ["a/there"],
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(outages, "FIRST_PAUSE", 0.001)
    with ObjectServer() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield running


@pytest.fixture
def filled(server: ObjectServer) -> ObjectFolder:
    server.objects.update({"pre/a/there": b"there", "pre/b": b"", "pre/c": b"", "else/where": b""})
    return ObjectFolder("s3://bucket/pre")


class TestMemory(WriteContract):
    """obstore's own store in memory, the reference."""

    @pytest.fixture
    def folder(self) -> ObjectFolder:
        return ObjectFolder("memory://", MemoryStore())

    @pytest.fixture
    def raw(self, folder: ObjectFolder) -> Callable[[], set[str]]:
        return lambda: {entry["path"] for page in obstore.list(folder._open()) for entry in page}


class TestS3(WriteContract):
    @pytest.fixture
    def folder(self, server: ObjectServer) -> Location:
        return open_location("s3://bucket/a/prefix/")

    @pytest.fixture
    def raw(self, server: ObjectServer) -> Callable[[], set[str]]:
        return lambda: {key.removeprefix("a/prefix/") for key in server.objects}


class TestGoogle(WriteContract):
    @pytest.fixture
    def folder(self, server: ObjectServer) -> Location:
        key = {"client_email": "", "private_key": "", "private_key_id": "", "disable_oauth": True}
        store = GCSStore(
            "bucket",
            prefix="a/prefix",
            service_account_key=json.dumps({**key, "gcs_base_url": server.endpoint}),
            client_options={"allow_http": True},
            retry_config=object_store.NO_RETRIES,
        )
        return ObjectFolder("gs://bucket/a/prefix", store)

    @pytest.fixture
    def raw(self, server: ObjectServer) -> Callable[[], set[str]]:
        return lambda: {key.removeprefix("a/prefix/") for key in server.objects}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", [408, 429, 500, 502, 503, 504, "drop", "lose"])
def test_trouble_that_passes_is_outlived(
    filled: ObjectFolder, server: ObjectServer, call: str, fault: int | str
) -> None:
    server.faults.extend([fault] * 4)
    assert CALLS[call](filled) == ANSWERS[call]
    assert not server.faults


def test_a_listing_between_two_names_takes_requests_for_what_it_finds(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PAGE", PAGE)
    names = [f"v/{number:06d}.json" for number in range(20 * PAGE)]
    server.objects.update({f"pre/{name}": b"" for name in names})
    folder = ObjectFolder("s3://bucket/pre")
    assert folder.names_between("v", "000005", "000007") == names[5:7]
    assert len(server.asked) <= 3
    assert list(folder.names("v")) == names
    assert len(server.asked) > 20


def test_create_whose_answer_was_lost_meets_its_own_first_try(filled: ObjectFolder, server: ObjectServer) -> None:
    server.faults.append("lose")
    assert filled.create("a/new", b"mine")
    assert server.asked[:3] == ["PUT /bucket/pre/a/new", "PUT /bucket/pre/a/new", "GET /bucket/pre/a/new"]
    server.faults.append("lose")
    assert not filled.create("a/there", b"mine")
    assert server.objects["pre/a/there"] == b"there"


def test_create_in_conflict_with_one_under_way_is_tried_again(filled: ObjectFolder, server: ObjectServer) -> None:
    server.faults.extend([409, 404, 409])
    assert filled.create("a/new", b"mine")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("status", [400, 401, 403])
def test_refusal_is_told_at_once(filled: ObjectFolder, server: ObjectServer, call: str, status: int) -> None:
    server.faults.extend([status] * 2)
    with pytest.raises(CacheError, match=rf"^s3://bucket/pre\S*: the server answered {status} ") as caught:
        CALLS[call](filled)
    assert len(server.asked) <= 2
    assert ("AWS_SECRET_ACCESS_KEY" in str(caught.value)) == (status != 400)


@pytest.mark.parametrize("call", CALLS)
def test_missing_bucket_is_told_at_once(server: ObjectServer, call: str) -> None:
    with pytest.raises(CacheError, match=r"s3://lost/pre.*\(NoSuchBucket\); create the bucket or correct the URL"):
        CALLS[call](ObjectFolder("s3://lost/pre"))
    assert len(server.asked) <= 2


def test_wrong_region_is_told_at_once(filled: ObjectFolder, server: ObjectServer) -> None:
    server.faults.append(301)
    with pytest.raises(CacheError, match="set AWS_REGION to the bucket's region"):
        filled.read("a/there")


@pytest.mark.parametrize("call", CALLS)
def test_server_that_stays_away_is_told_in_the_end(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    clock = SimpleNamespace(now=100.0)
    clock.monotonic, clock.sleep = lambda: clock.now, lambda seconds: setattr(clock, "now", clock.now + seconds)
    monkeypatch.setattr(outages, "time", clock)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    told = r"s3://bucket/pre.*Connection refused\); check that AWS_ENDPOINT_URL is right"
    with caplog.at_level(logging.WARNING), pytest.raises(CacheError, match=told):
        CALLS[call](ObjectFolder("s3://bucket/pre"))
    assert len(caplog.records) == 1
    assert "trying again for another" in caplog.text


def test_missing_credentials_are_told_soon(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "LOGIN_PATIENCE", 0.05)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(CacheError, match=r"s3://bucket/pre/x: .*set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        ObjectFolder("s3://bucket/pre").read("x")


@pytest.mark.parametrize("endpoint", ["nonsense", "localhost:9000", "ftp://host"])
def test_endpoint_that_is_no_url_is_told(server: ObjectServer, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(CacheError, match=f"AWS_ENDPOINT_URL='{endpoint}' is not a URL; write it as https://HOST"):
        ObjectFolder("s3://bucket/pre").read("x")


def test_settings_that_cannot_be_read_are_told(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "maybe")
    with pytest.raises(CacheError, match=r's3://bucket/pre cannot be opened: .*failed to parse "maybe" as boolean'):
        ObjectFolder("s3://bucket/pre").read("x")
    with pytest.raises(CacheError, match="s3: cannot be opened"):
        ObjectFolder("s3://").read("x")


def test_near_ranges_are_fetched_by_one_request(filled: ObjectFolder, server: ObjectServer) -> None:
    server.objects["pre/big"] = bytes(range(256)) * 2**14
    spans = [(0, 10), (2**19, 10), (2**22 - 10, 10)]
    file = filled.open("big").expecting(spans)
    asked = ["HEAD /bucket/pre/big", *["GET /bucket/pre/big"] * 2]  # the first two are near, the third is far off
    assert server.asked == asked
    for offset, size in spans:
        buffer = bytearray(size)
        assert file.read_into(offset, [memoryview(buffer)]) == size
        assert buffer == server.objects["pre/big"][offset : offset + size]
    assert server.asked == asked


def test_server_that_lets_a_name_be_created_twice_is_refused(filled: ObjectFolder, server: ObjectServer) -> None:
    server.honours_create_only = False
    with pytest.raises(CacheError, match=r"a/new: the server let this object be created twice.*If-None-Match"):
        filled.create("a/new", b"new")
    assert server.objects["pre/a/new"] == b"new"


def test_nothing_is_opened_before_it_is_used() -> None:
    kinds = {
        "s3://bucket/x": ObjectFolder,
        "gs://bucket/x": ObjectFolder,
        "https://h/x": WebFolder,
        "http://h/x": WebFolder,
    }
    for url, kind in kinds.items():
        folder = open_location(url)
        assert type(folder) is kind
        assert isinstance(folder, Location)
        assert isinstance(folder, ObjectFolder)
        assert folder._store is None
        assert folder.waits
        assert folder.url == url
        assert repr(folder) == f"{kind.__name__}('{url}')"


def test_a_folder_travels_to_a_spawned_worker_and_is_opened_there(filled: ObjectFolder) -> None:
    assert filled.read("a/there") == b"there"
    travelled = pickle.loads(pickle.dumps(filled))
    assert travelled._store is None
    assert travelled.read("a/there") == b"there"


FORKS = """
import os, signal, sys
from obstore.store import MemoryStore
from unic_cache.files.object_store import ObjectFolder

folder = ObjectFolder("memory://", MemoryStore())
if sys.argv[1] == "used":
    folder.create("x", b"x")
child = os.fork()
if child == 0:
    signal.alarm(20)
    print("create", folder.create("y", b"y"))
    sys.exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("before", ["used", "unused"])
def test_fork_after_use_is_an_error_and_not_a_hang(before: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKS, before]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if before == "unused":
        assert (done.returncode, done.stdout) == (0, "create True\n")
    else:
        assert done.returncode == 1
        assert "forked from one that had already used an object store" in done.stderr
        assert "start workers by spawn or forkserver" in done.stderr


def test_obstore_is_loaded_only_for_urls() -> None:
    script = (
        "import sys; from unic_cache.files.schemes import open_location; open_location('x'); "
        "assert 'obstore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
