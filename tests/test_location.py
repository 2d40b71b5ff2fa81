"""Local folders: the contract, power cuts and kills after every call, a failure of every call, odd file systems."""

import errno
import fcntl
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.disk import LOST, Disk, Files, lay_out, open_below, tree
from tests.location_contract import WriteContract
from unic_cache.errors import CacheError, ConfigError
from unic_cache.files import durable, local
from unic_cache.files.local import LocalFolder
from unic_cache.files.location import Location
from unic_cache.files.open_file import LocalFile
from unic_cache.files.schemes import open_location

CACHE = "above/cache"
DATA, FEATURES = "t/features.zarr/000000/unic-224-0-000/c.0.0", bytes(range(256)) * 9
RECORD, VOUCHER = "t/commits/000000/unic-224-0-000/000000.json", b'{"rows": 3}'
FINISHED = {f"{CACHE}/{DATA}": FEATURES, f"{CACHE}/{RECORD}": VOUCHER}


class TestLocalFolder(WriteContract):
    @pytest.fixture
    def folder(self, tmp_path: Path) -> LocalFolder:
        return LocalFolder(tmp_path / "not" / "yet" / "there")

    @pytest.fixture
    def raw(self, folder: LocalFolder) -> Callable[[], set[str]]:
        return lambda: set(tree(folder.path))

    def test_a_folder_is_no_file(self, folder: Location) -> None:
        folder.create("a/b", b"")
        assert folder.read("a") is None
        assert folder.size("a") is None

    def test_it_travels_to_a_spawned_worker(self, folder: Location) -> None:
        folder.create("a/b", b"data")
        assert pickle.loads(pickle.dumps(folder)).read("a/b") == b"data"


class TestPastThePageCache(TestLocalFolder):
    """Files that do not fit in memory are read with O_DIRECT, with the same results."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> LocalFolder:
        return LocalFolder(tmp_path / "not" / "yet" / "there", page_cache=0)


class TestWhetherTheStoreFits:
    """Read through the page cache, given the bytes opened so far."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> LocalFolder:
        lay_out({"a": bytes(60), "b": bytes(60)}, tmp_path)
        return LocalFolder(tmp_path, page_cache=100)

    def test_a_file_counts_once(self, folder: LocalFolder) -> None:
        assert [past_cache(folder, name) for name in ("a", "a", "a", "b", "a")] == [False, False, False, True, True]

    def test_reads_wait_for_the_disk_from_then_on(self, folder: LocalFolder) -> None:
        for name, waits in (("a", False), ("a", False), ("b", True), ("a", True)):
            folder.open(name)
            assert folder.waits == waits

    def test_half_of_the_memory_is_for_it(self, folder: LocalFolder) -> None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert LocalFolder(folder.path).page_cache == memory // 2

    @pytest.mark.parametrize("call", ["open", "preadv"])
    def test_a_file_system_that_cannot_is_read_through_it(
        self, folder: LocalFolder, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        real = {name: getattr(os, name) for name in ("open", "preadv")}

        def refuse_to_open(path: Path, flags: int) -> int:
            if flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, "ordered")
            return int(real["open"](path, flags))

        def refuse_to_read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "ordered")
            return int(real["preadv"](descriptor, buffers, offset))

        monkeypatch.setattr(os, call, {"open": refuse_to_open, "preadv": refuse_to_read}[call])
        folder.page_cache = 0
        file = folder.open("a")
        for _ in range(2):
            buffer = bytearray(b"x" * 10)
            assert file.read_into(55, [memoryview(buffer)]) == 5
            assert buffer == bytes(5) + b"x" * 5
            assert file.read(50, 20) == bytes(10)


def past_cache(folder: LocalFolder, name: str) -> bool:
    file = folder.open(name)
    assert isinstance(file, LocalFile)
    return file.past_cache


def test_an_open_file_closes_when_nothing_refers_to_it(tmp_path: Path) -> None:
    lay_out({"a": b"data"}, tmp_path)
    folder, before = LocalFolder(tmp_path), open_below(tmp_path)
    file = folder.open("a")
    assert len(open_below(tmp_path) - before) == 1
    del file
    assert open_below(tmp_path) == before


def commit(folder: LocalFolder) -> None:
    """A writer: data first, record last."""
    assert folder.create(DATA, FEATURES)
    assert folder.create(RECORD, VOUCHER)


def replace_and_commit(folder: LocalFolder) -> None:
    folder.replace(DATA, FEATURES)
    assert folder.create(RECORD, VOUCHER)


def commit_and_repair(folder: LocalFolder) -> None:
    commit(folder)
    folder.delete(RECORD)
    folder.delete(DATA)
    commit(folder)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip real syncs: the disk under the tests keeps its power, and thousands of syncs take minutes."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


WORKS = [commit, replace_and_commit, commit_and_repair]


def check_whole(files: Files) -> None:
    """No name leads to part of a file, and no record to missing data."""
    named = {name: data for name, data in files.items() if ".tmp-" not in name}
    assert named.items() <= FINISHED.items()
    assert f"{CACHE}/{DATA}" in named or f"{CACHE}/{RECORD}" not in named


def check_finishing(files: Files, root: Path) -> None:
    """The same worker, restarted on the remains, ends with exactly the right files."""
    lay_out(files, root)
    folder = LocalFolder(root / CACHE)
    folder.remove_leftovers()
    commit(folder)
    assert tree(root) == FINISHED


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("work", WORKS)
def test_power_cut_or_kill_after_any_call_is_made_good(tmp_path: Path, work: Callable[[LocalFolder], None]) -> None:
    disk = Disk(tmp_path / "disk")
    with disk.watch():
        work(LocalFolder(disk.root / CACHE))
    assert len(disk.instants) > 40
    for number, instant in enumerate(disk.instants):
        for left in (instant.killed, instant.cut):
            check_whole(left)
        check_finishing(instant.killed, tmp_path / f"killed-{number}")
        check_finishing(instant.cut, tmp_path / f"cut-{number}")
    assert disk.instants[-1].killed == disk.instants[-1].cut == FINISHED


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "ordered"), KeyboardInterrupt("ordered")], ids=["error", "stopped"]
)
@pytest.mark.slow
def test_failure_of_any_call_leaves_the_whole_file_or_nothing(
    tmp_path: Path, work: Callable[[LocalFolder], None], error: BaseException
) -> None:
    number = 0
    while True:
        disk = Disk(tmp_path / f"disk-{number}")
        disk.fail(number, error.with_traceback(None))
        with disk.watch():
            try:
                work(LocalFolder(disk.root / CACHE))
            except type(error):
                assert disk.failed
            check_whole(tree(disk.root))
            assert sum(".tmp-" in name for name in tree(disk.root)) <= (disk.failed == "unlink")
            if not disk.failed:
                break
            commit(LocalFolder(disk.root / CACHE))
        assert disk.instants[-1].cut.items() >= FINISHED.items()
        check_finishing({}, disk.root)
        number += 1
    assert number > 40


def test_power_cut_forgets_what_was_not_synced(tmp_path: Path) -> None:
    """The model detects naive writers, which lose a file, its bytes or its path."""
    disk = Disk(tmp_path / "disk")
    with disk.watch():
        naive = disk.root / "a" / "naive"
        os.mkdir(naive.parent)
        naive.write_bytes(b"data")
        os.link(naive, disk.root / "second")
        assert disk.instants[-1].cut == {}
        for folder in (naive.parent, disk.root):
            descriptor = os.open(folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        assert disk.instants[-1].cut == {"a/naive": LOST, "second": LOST}


def test_deleted_is_gone_for_good_before_the_next_call(tmp_path: Path) -> None:
    """Otherwise a power cut could bring back a record whose data were deleted after it."""
    disk = Disk(tmp_path / "disk")
    with disk.watch():
        folder = LocalFolder(disk.root / CACHE)
        commit(folder)
        folder.delete(RECORD)
        assert disk.instants[-1].cut == {f"{CACHE}/{DATA}": FEATURES}
        folder.delete(DATA)
        assert disk.instants[-1].cut == {}


def test_folders_that_another_made_and_never_synced_become_durable(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk")
    with disk.watch():
        (disk.root / CACHE / DATA).parent.mkdir(parents=True)
        LocalFolder(disk.root / CACHE).create(DATA, FEATURES)
        assert disk.instants[-1].cut == {f"{CACHE}/{DATA}": FEATURES}


@pytest.mark.parametrize("ours", [FEATURES, b"others"])
def test_file_that_another_made_and_never_synced_becomes_durable(tmp_path: Path, ours: bytes) -> None:
    disk = Disk(tmp_path / "disk")
    with disk.watch():
        lay_out({f"{CACHE}/{DATA}": FEATURES}, disk.root)
        assert LocalFolder(disk.root / CACHE).create(DATA, ours) == (ours == FEATURES)
        assert disk.instants[-1].cut == {f"{CACHE}/{DATA}": FEATURES}


@pytest.mark.parametrize("lie", [FileExistsError(errno.EEXIST, "lie"), OSError(errno.EIO, "lie")])
def test_link_that_was_made_but_reported_as_failed_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: OSError
) -> None:
    real = os.link

    def link(source: Path, target: Path) -> None:
        real(source, target)
        raise lie

    monkeypatch.setattr(os, "link", link)
    folder = LocalFolder(tmp_path)
    assert folder.create("a/b", b"data")
    assert tree(tmp_path) == {"a/b": b"data"}


NO_LINKS = [errno.EPERM, errno.EMLINK]


def refuse_links(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As on exFAT, SMB and some FUSE file systems."""

    def link(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    monkeypatch.setattr(os, "link", link)


class TestWithoutHardLinks(TestLocalFolder):
    """Without link(2) all guarantees hold, for one writer and for many."""

    @pytest.fixture(params=NO_LINKS)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> LocalFolder:
        refuse_links(monkeypatch, request.param)
        return LocalFolder(tmp_path / "not" / "yet" / "there")


@pytest.mark.usefixtures("quick")
def test_power_cut_or_kill_without_hard_links_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_links(monkeypatch, errno.EPERM)
    disk = Disk(tmp_path / "disk")
    with disk.watch():
        commit(LocalFolder(disk.root / CACHE))
    for number, instant in enumerate(disk.instants):
        for left in (instant.killed, instant.cut):
            check_whole(left)
        check_finishing(instant.killed, tmp_path / f"killed-{number}")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_file_system_that_cannot_create_only_once_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse_links(monkeypatch, number)
    monkeypatch.setattr(durable, "_renameat2", lambda: None)
    with pytest.raises(
        CacheError, match=r"a: this file system has neither hard links \(.*put the cache on another one"
    ):
        LocalFolder(tmp_path).create("a/b", b"data")
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP])
@pytest.mark.parametrize("call", ["open", "fsync"])
def test_file_system_that_syncs_no_folders_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    real = {name: getattr(os, name) for name in ("open", "fsync")}

    def refuse(what: Path | int, *rest: int) -> object:
        name = what if call == "open" else f"/proc/self/fd/{what}"
        if os.path.isdir(name):
            raise OSError(number, os.strerror(number))
        return real[call](what, *rest)

    monkeypatch.setattr(os, call, refuse)
    folder = LocalFolder(tmp_path / "x")
    assert folder.create("a/b", b"data")
    folder.replace("a/c", b"data")
    folder.delete("a/b")
    assert tree(tmp_path) == {"x/a/c": b"data"}


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_error_of_a_file_that_cannot_be_written_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = LocalFolder(tmp_path)
    folder.create("old", b"old")
    if call == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(local, "open", lambda path, mode: Full(path, mode, fail), raising=False)
    for write in (folder.create, folder.replace):
        with pytest.raises(OSError, match=r"No space left") as caught:
            write("new", b"data")
        assert caught.value.filename == str(tmp_path / "new")
    assert tree(tmp_path) == {"old": b"old"}


class Full(io.FileIO):
    """A file on a full disk."""

    def __init__(self, path: Path, mode: str, fail: Callable[..., int]) -> None:
        super().__init__(path, mode.replace("b", ""))
        self.write = fail  # type: ignore[method-assign]


def test_file_in_the_way_of_a_folder_is_told(tmp_path: Path) -> None:
    lay_out({"cache": b"a file"}, tmp_path)
    with pytest.raises(NotADirectoryError) as caught:
        LocalFolder(tmp_path / "cache").create("a/b", b"data")
    assert str(tmp_path / "cache") in str(caught.value.filename)


def test_worker_whose_twin_removes_its_temporary_file_writes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, twin = os.link, LocalFolder(tmp_path)
    removed: list[int] = []

    def link(source: Path, target: Path) -> None:
        if not removed:
            removed.append(twin.remove_leftovers())
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr("unic_cache.files.local.keep", lambda descriptor: None)  # found before it was locked
    assert LocalFolder(tmp_path).create("a/b", b"data")
    assert removed == [1]
    assert tree(tmp_path) == {"a/b": b"data"}


WRITER = """
import os, sys, time
from unic_cache.files.local import LocalFolder

def wait(source, target):
    print("written", flush=True)
    sys.stdin.read()

os.link = wait
LocalFolder(sys.argv[1]).create("a/b", b"data")
"""


def test_a_temporary_file_stays_while_its_process_lives_and_goes_when_it_was_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        (left,) = tree(tmp_path)
        assert left.startswith("a/.tmp-0-")
        assert LocalFolder(tmp_path).remove_leftovers() == 0
        assert LocalFolder(tmp_path).create("a/b", b"data")
        assert set(tree(tmp_path)) == {left, "a/b"}
        writer.kill()
        writer.wait()
    assert LocalFolder(tmp_path).remove_leftovers() == 1
    assert tree(tmp_path) == {"a/b": b"data"}


TWIN = """
import sys
from unic_cache.files.local import LocalFolder

folder = LocalFolder(sys.argv[1])
for number in range(60):
    assert folder.create(f"a/{number}", b"data")
    folder.replace(f"b/{number}", b"data")
    folder.remove_leftovers()
"""
NO_LOCKS = """
import errno, fcntl
def flock(*_):
    raise OSError(errno.ENOLCK, "no locks")
fcntl.flock = flock
"""


@pytest.mark.parametrize("locks", [True, False])
def test_two_processes_of_one_index_that_clean_beside_each_other_write_every_file(tmp_path: Path, locks: bool) -> None:
    words = [sys.executable, "-c", ("" if locks else NO_LOCKS) + TWIN, str(tmp_path)]
    twins = [subprocess.Popen(words) for _ in range(2)]
    assert [twin.wait() for twin in twins] == [0, 0]
    assert tree(tmp_path) == {f"{folder}/{number}": b"data" for folder in "ab" for number in range(60)}


def test_without_locks_leftovers_go_once_they_are_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("unic_cache.files.temporary.fcntl.flock", flock)
    lay_out({"a/.tmp-0-x": b"", "a/.tmp-0-y": b""}, tmp_path)
    os.utime(tmp_path / "a/.tmp-0-x", (1, 1))
    assert LocalFolder(tmp_path).remove_leftovers() == 1
    assert set(tree(tmp_path)) == {"a/.tmp-0-y"}


def test_left_overs_are_removed_by_the_same_worker_alone(tmp_path: Path) -> None:
    lay_out({"a/.tmp-1-x": b"", "a/b/.tmp-1-y": b"", "a/.tmp-11-x": b"", "a/.tmp-0-x": b"", "a/c": b""}, tmp_path)
    folder = LocalFolder(tmp_path, worker=1)
    assert list(folder.names()) == ["a/c"]
    assert folder.remove_leftovers() == 2
    assert set(tree(tmp_path)) == {"a/.tmp-11-x", "a/.tmp-0-x", "a/c"}


def test_folder_that_cannot_be_listed_is_an_error_and_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out({"a/b": b""}, tmp_path)
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("/a"):
            raise PermissionError(errno.EACCES, "ordered", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="ordered"):
        list(LocalFolder(tmp_path).names())


def test_a_path_and_a_file_url_are_local_folders(tmp_path: Path) -> None:
    for where in (tmp_path, str(tmp_path), f"file://{tmp_path}"):
        folder = open_location(where, worker=3)
        assert isinstance(folder, LocalFolder)
        assert isinstance(folder, Location)
        assert (folder.path, folder.worker, folder.url) == (tmp_path, 3, str(tmp_path))


def test_unknown_scheme_is_told() -> None:
    with pytest.raises(ConfigError, match=r"azure://c/x: azure:// is not supported; use a path, s3://, gs://"):
        open_location("azure://c/x")
