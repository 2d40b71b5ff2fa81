"""The contract of every kind of `Location`, as tests that a class for each kind inherits.

`ReadContract` needs the fixtures `folder` (an empty Location) and `fill` (puts files into it by other means, or by
`create`). `WriteContract` needs `folder` and `raw` (all names that really lie there, hidden ones too).
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from unic_cache.errors import ConfigError
from unic_cache.files.location import Location

Files = dict[str, bytes]
BIG = "t/features.zarr/000000/unic-224-0-003/cls/c.0.0"
FILES: Files = {
    "n+1@s_.-x": b"odd characters",
    "t-2/spec.json": b"a neighbour whose name begins alike",
    BIG: bytes(range(256)) * 40,
    "t/features.zarr/empty": b"",
    "t/spec.json": b"{}",
}
OUTSIDE = (
    "",
    ".",
    "..",
    "../x",
    "/etc/passwd",
    "a/../b",
    "a/..",
    "./a",
    "a//b",
    "a/",
    "a\\b",
    "a\0",
    "a b",
    "a\n",
    "ü",
    "~",
)
THREADS = 8


class ReadContract:
    """Reading, listing, and names that stay inside."""

    def test_reads_a_file_whole_and_none_where_there_is_none(
        self, folder: Location, fill: Callable[[Files], None]
    ) -> None:
        fill(FILES)
        assert {name: folder.read(name) for name in FILES} == FILES
        assert folder.read("t/nothing") is None
        assert folder.read("nowhere/nothing") is None

    def test_reads_ranges_as_slices_do(self, folder: Location, fill: Callable[[Files], None]) -> None:
        fill(FILES)
        for name in ("n+1@s_.-x", "t/features.zarr/empty"):
            for offset in range(17):
                for size in (0, 1, 5, 100):
                    assert folder.read_range(name, offset, size) == FILES[name][offset : offset + size]
        assert folder.read_range(BIG, 4000, 3000) == FILES[BIG][4000:7000]

    def test_range_of_no_file_is_an_error(self, folder: Location, fill: Callable[[Files], None]) -> None:
        fill(FILES)
        for size in (0, 4):
            with pytest.raises(FileNotFoundError):
                folder.read_range("t/nothing", 0, size)
            with pytest.raises(FileNotFoundError):
                folder.read_range("t/spec.json/nothing", 0, size)

    def test_open_files_scatter_ranges_over_buffers(self, folder: Location, fill: Callable[[Files], None]) -> None:
        fill(FILES)
        for name in (BIG, "n+1@s_.-x"):
            data, file = FILES[name], folder.open(name)
            for offset, sizes in ((0, [3]), (4000, [1, 90, 2009]), (5, [7, 0, 2]), (len(data) - 1, [1])):
                buffers = [bytearray(size) for size in sizes]
                wanted = data[offset : offset + sum(sizes)]
                assert file.read_into(offset, [memoryview(buffer) for buffer in buffers]) == len(wanted)
                assert b"".join(buffers)[: len(wanted)] == wanted
                assert file.read(offset, sum(sizes)) == wanted

    def test_open_files_end_where_they_end(self, folder: Location, fill: Callable[[Files], None]) -> None:
        fill(FILES)
        for name in (BIG, "t/features.zarr/empty"):
            size, file = len(FILES[name]), folder.open(name)
            for offset in (max(size - 2, 0), size, size + 10_000):
                buffers = [bytearray(b"??"), bytearray(b"??")]
                found = file.read_into(offset, [memoryview(buffer) for buffer in buffers])
                assert b"".join(buffers)[:found] == FILES[name][offset : offset + 4]
                assert found == len(FILES[name][offset : offset + 4])
                assert file.read(offset, 4) == FILES[name][offset : offset + 4]

    def test_open_files_give_what_is_expected_of_them(self, folder: Location, fill: Callable[[Files], None]) -> None:
        fill(FILES)
        spans = [(1, 5), (30, 2), (9000, 1240)]
        file = folder.open(BIG).expecting(spans)
        for offset, size in reversed(spans):
            buffer = bytearray(size)
            assert file.read_into(offset, [memoryview(buffer)]) == size
            assert buffer == FILES[BIG][offset : offset + size]
            assert file.read(offset, size) == buffer
        assert file.near >= 0
        assert file.at_once > 0

    def test_open_files_may_be_expected_to_hold_more_than_they_do(
        self, folder: Location, fill: Callable[[Files], None]
    ) -> None:
        fill(FILES)
        size = len(FILES[BIG])
        file = folder.open(BIG).expecting([(0, 4), (size - 2, 4), (2 * size, 4)])
        for offset in (0, size - 2, 2 * size):
            buffer = bytearray(4)
            found = file.read_into(offset, [memoryview(buffer)])
            assert buffer[:found] == FILES[BIG][offset : offset + 4]
            assert found == len(FILES[BIG][offset : offset + 4])

    def test_open_of_no_file_is_an_error_at_its_first_read_at_the_latest(
        self, folder: Location, fill: Callable[[Files], None]
    ) -> None:
        fill(FILES)
        for name in ("t/nothing", "t/spec.json/nothing"):
            with pytest.raises(FileNotFoundError):
                folder.open(name).read_into(0, [memoryview(bytearray(4))])
            with pytest.raises(FileNotFoundError):
                folder.open(name).expecting([(0, 1), (2, 1)]).read_into(0, [memoryview(bytearray(1))])

    def test_one_open_file_serves_many_threads(self, folder: Location, fill: Callable[[Files], None]) -> None:
        fill(FILES)
        file = folder.open(BIG)

        def read(offset: int) -> bool:
            buffer = bytearray(100)
            file.read_into(offset, [memoryview(buffer)[:40], memoryview(buffer)[40:]])
            return buffer == FILES[BIG][offset : offset + 100]

        with ThreadPoolExecutor(THREADS) as pool:
            assert all(pool.map(read, range(0, 10_000, 97)))

    def test_sizes(self, folder: Location, fill: Callable[[Files], None]) -> None:
        fill(FILES)
        assert {name: folder.size(name) for name in FILES} == {name: len(data) for name, data in FILES.items()}
        assert folder.size("t/nothing") is None
        assert folder.size("nowhere/nothing") is None

    def test_names_are_sorted_and_below_the_folder_only(self, folder: Location, fill: Callable[[Files], None]) -> None:
        fill(FILES)
        assert list(folder.names()) == sorted(FILES)
        assert list(folder.names("t")) == sorted(name for name in FILES if name.startswith("t/"))
        assert list(folder.names("t/features.zarr/000000")) == [BIG]
        assert list(folder.names("nowhere")) == []

    def test_folders_are_those_directly_inside(self, folder: Location, fill: Callable[[Files], None]) -> None:
        fill(FILES)
        assert folder.folders() == ["t", "t-2"]
        assert folder.folders("t/features.zarr") == ["000000"]
        assert folder.folders("t-2") == []
        assert folder.folders("nowhere") == []

    def test_names_between_two_are_those_directly_inside(self, folder: Location, fill: Callable[[Files], None]) -> None:
        inside = [f"t/v/{number:06d}.json" for number in range(0, 60, 10)]
        fill({**dict.fromkeys([*inside, "t/v/000020/deeper", "t/v-2/000020.json", "t/u"], b"x"), **FILES})
        for after, before, expected in [
            ("000010", "000040", inside[1:4]),
            ("000010.json", "000040.json", inside[2:4]),
            ("", "~", inside),
            ("000051", "~", []),
            ("", "0", []),
        ]:
            assert folder.names_between("t/v", after, before) == expected
            times = folder.times_between("t/v", after, before)
            assert sorted(times) == expected
            assert all(at is None or abs(at - time.time()) < 10**9 for at in times.values())
        assert folder.names_between("nowhere", "", "~") == []
        assert folder.times_between("t/spec.json", "", "~") == {}

    @pytest.mark.parametrize("name", OUTSIDE)
    def test_no_name_leaves_the_folder(self, folder: Location, name: str) -> None:
        calls: list[Callable[[], object]] = [
            lambda: folder.read(name),
            lambda: folder.read_range(name, 0, 1),
            lambda: folder.open(name),
            lambda: folder.size(name),
        ]
        if name:  # the empty prefix is the folder itself
            calls += [lambda: list(folder.names(name)), lambda: folder.folders(name)]
        calls += [lambda: folder.names_between(name, "", "~"), lambda: folder.times_between(name, "", "~")]
        for call in calls:
            with pytest.raises(ConfigError, match="is not a name inside a cache"):
                call()


class WriteContract(ReadContract):
    """Files that are created once, by the first writer."""

    @pytest.fixture
    def fill(self, folder: Location) -> Callable[[Files], None]:
        def put(files: Files) -> None:
            for name, data in files.items():
                assert folder.create(name, data)

        return put

    @pytest.fixture(autouse=True)
    def nothing_left_over(self, folder: Location, raw: Callable[[], set[str]]) -> Iterator[None]:
        yield
        assert raw() == set(folder.names())

    def test_what_was_written_is_there_at_once(self, folder: Location) -> None:
        for number in range(20):
            name, data = f"a/{number}", bytes([number]) * (number + 1)
            assert folder.create(name, data)
            assert folder.read(name) == data
            assert folder.size(name) == len(data)
            assert name in set(folder.names("a"))

    def test_create_never_overwrites(self, folder: Location) -> None:
        assert folder.create("a/b", b"first")
        assert not folder.create("a/b", b"second")
        assert not folder.create("a/b", b"first and more")
        assert folder.read("a/b") == b"first"

    def test_create_of_what_stands_there_already_succeeds(self, folder: Location) -> None:
        assert folder.create("a/b", b"same")
        assert folder.create("a/b", b"same")
        assert folder.read("a/b") == b"same"

    def test_a_file_of_many_megabytes_is_created_once_too(self, folder: Location) -> None:
        data = bytes(range(256)) * (24 << 10)  # 6 MiB: above the size at which clients begin to upload in parts
        assert folder.create("big", data)
        assert not folder.create("big", data[:-1] + b"\0")
        assert folder.read("big") == data

    def test_concurrent_creates_have_one_winner(self, folder: Location) -> None:
        names = [f"race/{number}" for number in range(5)]
        start = threading.Barrier(THREADS)

        def create_all(writer: int) -> list[bool]:
            start.wait()
            return [folder.create(name, f"{writer} wrote {name}".encode() * 100) for name in names]

        with ThreadPoolExecutor(THREADS) as pool:
            won = list(pool.map(create_all, range(THREADS)))
        for column, name in enumerate(names):
            winners = [writer for writer in range(THREADS) if won[writer][column]]
            assert len(winners) == 1
            assert folder.read(name) == f"{winners[0]} wrote {name}".encode() * 100

    def test_concurrent_creates_of_equal_bytes_all_succeed(self, folder: Location) -> None:
        start = threading.Barrier(THREADS)

        def create(_: int) -> bool:
            start.wait()
            return folder.create("race/equal", b"the same for all")

        with ThreadPoolExecutor(THREADS) as pool:
            assert all(pool.map(create, range(THREADS)))
        assert folder.read("race/equal") == b"the same for all"

    def test_replace_takes_the_place_of_whatever_is_there(self, folder: Location) -> None:
        folder.replace("a/b", b"from nothing")
        assert folder.read("a/b") == b"from nothing"
        folder.replace("a/b", b"anew")
        assert folder.read("a/b") == b"anew"
        assert not folder.create("a/b", b"later")

    def test_deleted_is_gone_and_can_be_made_again(self, folder: Location) -> None:
        folder.create("a/b", b"first")
        folder.delete("a/b")
        folder.delete("a/b")
        folder.delete("nowhere/nothing")
        assert folder.read("a/b") is None
        assert list(folder.names()) == []
        assert folder.create("a/b", b"second")
        assert folder.read("a/b") == b"second"

    @pytest.mark.parametrize("name", OUTSIDE)
    def test_nothing_is_written_outside_the_folder(self, folder: Location, name: str) -> None:
        for call in (
            lambda: folder.create(name, b"x"),
            lambda: folder.replace(name, b"x"),
            lambda: folder.delete(name),
        ):
            with pytest.raises(ConfigError, match="is not a name inside a cache"):
                call()
