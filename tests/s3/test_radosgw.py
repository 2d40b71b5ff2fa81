"""Ceph's gateway against the contract of every Location, its refusals, and a minute in which it is dead."""

import threading
import time
from collections.abc import Callable

import pytest

from tests.location_contract import WriteContract
from tests.s3 import radosgw as harness
from tests.s3.radosgw import Gateway, MissingPackagesError, radosgw
from unic_cache.errors import CacheError
from unic_cache.files.location import Location
from unic_cache.files.schemes import open_location

OUTAGE = 60.0  # seconds
CALLERS = 8


class TestCeph(WriteContract):
    @pytest.fixture
    def folder(self, bucket: str) -> Location:
        return open_location(f"{bucket}/a/prefix")

    @pytest.fixture
    def raw(self, bucket: str) -> Callable[[], set[str]]:
        return lambda: {name.removeprefix("a/prefix/") for name in open_location(bucket).names()}


def test_two_prefixes_of_one_bucket_are_apart(bucket: str) -> None:
    one, other = open_location(f"{bucket}/one"), open_location(f"{bucket}/one-more")
    assert one.create("a", b"1")
    assert other.create("a", b"2")
    assert (one.read("a"), other.read("a"), list(one.names())) == (b"1", b"2", ["a"])


def test_more_names_than_one_answer_lists(bucket: str) -> None:
    folder = open_location(f"{bucket}/many")
    for number in range(1100):
        folder.replace(f"{number:04d}", b"")
    assert list(folder.names()) == [f"{number:04d}" for number in range(1100)]


def test_wrong_key_is_told(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    folder = open_location(f"{bucket}/x")
    told = rf"{bucket}/x/a: the server answered 403 Forbidden \(SignatureDoesNotMatch\); set AWS_ACCESS_KEY_ID"
    with pytest.raises(CacheError, match=told):
        folder.read("a")
    with pytest.raises(CacheError, match=told):
        folder.create("a", b"")
    with pytest.raises(CacheError, match="403 Forbidden"):
        list(folder.names())


def test_missing_bucket_is_told(gateway: Gateway) -> None:
    folder = open_location("s3://no-such-bucket/x")
    for call in (lambda: folder.read("a"), lambda: folder.size("a"), lambda: folder.create("a", b""), folder.folders):
        with pytest.raises(CacheError, match=r"\(NoSuchBucket\); create the bucket or correct the URL"):
            call()


def test_a_minute_without_the_gateway_is_outlived(gateway: Gateway, bucket: str) -> None:
    """Callers of all kinds work on while the gateway is killed and, a minute later, started again: nothing is lost."""
    folder = open_location(f"{bucket}/outage")
    back = threading.Event()
    done: list[list[str]] = [[] for _ in range(CALLERS)]
    longest = [0.0] * CALLERS
    troubles: list[BaseException] = []

    def call_on_and_on(caller: int) -> None:
        number = 0
        while not back.is_set() or number % 5:
            name, data = f"{caller}/{number}", f"{caller}:{number}".encode() * (1000 if caller else 10_000_000)
            began = time.monotonic()
            assert folder.create(name, data)
            assert folder.read(name) == data
            assert folder.read_range(name, 3, 50) == data[3:53]
            assert folder.size(name) == len(data)
            assert name in set(folder.names(str(caller)))
            if number % 3 == 2:
                folder.delete(name)
            else:
                done[caller].append(name)
            longest[caller] = max(longest[caller], time.monotonic() - began)
            number += 1

    def guarded(caller: int) -> None:
        try:
            call_on_and_on(caller)
        except BaseException as error:
            troubles.append(error)

    threads = [threading.Thread(target=guarded, args=(caller,)) for caller in range(CALLERS)]
    for thread in threads:
        thread.start()
    while not all(done):
        back.wait(0.01)
    gateway.kill()
    back.wait(OUTAGE)
    gateway.restart()
    back.set()
    for thread in threads:
        thread.join()
    assert not troubles
    assert min(longest) >= OUTAGE - 1  # each of them had a call under way all the while
    assert list(folder.names()) == sorted(name for names in done for name in names)


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "PROGRAMS", ("radosgw", "no-such-program"))
    with pytest.raises(MissingPackagesError, match="no-such-program not found; run `apt-get install --no-install-rec"):
        radosgw().__enter__()
