"""Segments: their content, their growth, and what is refused."""

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from unic_cache.errors import CacheError, ShardError
from unic_cache.files.local import LocalFolder
from unic_cache.views import index_seal, segments
from unic_cache.views.index import Segment, ShardEntry
from unic_cache.views.segments import extend_index, read_segments


def entry(name: str = "000000", rows: int = 3, first_key: int = 100) -> ShardEntry:
    return ShardEntry.of(
        name=name,
        size=1024 * (rows + 2),
        keys=tuple(range(first_key, first_key + rows)),
        offsets=tuple(512 + 1024 * row for row in range(rows)),
        sizes=(300,) * rows,
        labels=tuple(None if row == 1 else row for row in range(rows)),
    )


@pytest.fixture
def cache(tmp_path: Path) -> LocalFolder:
    return LocalFolder(tmp_path / "cache")


def test_a_segment_survives_its_json() -> None:
    segment = Segment(7, (entry("a", 2), entry("b-1.x", 5)))
    assert Segment.from_json(segment.to_json(), "here") == segment
    assert segment.rows == 5


def test_json_is_compact_and_sorted_and_holds_no_time_or_host() -> None:
    text = Segment(0, (entry(rows=1),)).to_json().decode()
    assert text == (
        '{"format":1,"kind":"unic-cache index","number":0,"shards":'
        '[{"keys":[100],"labels":[0],"name":"000000","offsets":[512],"size":3072,"sizes":[300]}]}'
    )


def test_an_unknown_format_is_refused_by_number() -> None:
    data = Segment(0, (entry(),)).to_json().replace(b'"format":1', b'"format":2')
    with pytest.raises(CacheError, match=r"index.json has format 2, this release reads 1; upgrade unic-cache"):
        Segment.from_json(data, "index.json")


HOSTILE: list[tuple[str, Any, str]] = [
    ("name", "../up", r"shard 0: name '\.\./up' is not a shard's name"),
    ("name", ".hidden", "is not a shard's name"),
    ("name", 5, "is not a shard's name"),
    ("size", -1, "size -1 is not a number of bytes"),
    ("size", 1e3, "size 1000.0 is not"),
    ("size", 2**70, "is not a number of bytes"),
    ("keys", {}, "keys is not a list"),
    ("keys", [1, 2, 2**32], r"keys\[2\] is '4294967296', which is out of bounds"),
    ("keys", [1, 2, True], r"keys\[2\] is 'True'"),
    ("keys", [1, 2, "3"], r"keys\[2\] is '3'"),
    ("keys", [1, 2], r"must have one length above zero, but have \{'keys': 2, 'offsets': 3, 'sizes': 3, 'labels': 3\}"),
    ("offsets", [512, -512, 0], r"offsets\[1\] is '-512'"),
    ("offsets", [512, 512, 5000], "row 2 ends at byte 5300 of a tar of 5120 bytes"),
    ("sizes", [1, 2, None], r"sizes\[2\] is 'None'"),
    ("labels", [0, 0, -3], r"labels\[2\] is '-3'"),
    ("labels", [0, 0, [0]], r"labels\[2\]"),
]


@pytest.mark.parametrize(("field", "value", "message"), HOSTILE)
def test_hostile_entries_are_refused_with_file_and_place(field: str, value: Any, message: str) -> None:
    data = json.loads(Segment(0, (entry(),)).to_json())
    data["shards"][0][field] = value
    with pytest.raises(CacheError, match=message) as caught:
        Segment.from_json(json.dumps(data).encode(), "index/000000.json")
    assert str(caught.value).startswith("index/000000.json, shard 0: ")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a unic-cache index"),
        (b'{"version":2,"shards":[]}', "is not a unic-cache index"),
        (b'{"kind":"unic-cache index","format":1}', "number, shards missing"),
        (b'{"kind":"unic-cache index","format":1,"number":0,"shards":[]}', "needs a number and a list of shards"),
        (b'{"kind":"unic-cache index","format":1,"number":-1,"shards":[1]}', "needs a number and a list of shards"),
        (b'{"kind":"unic-cache index","format":1,"number":0,"shards":[1]}', "shard 0: name, size, keys"),
    ],
)
def test_other_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(CacheError, match=message):
        Segment.from_json(data, "there.json")


def test_a_shard_listed_twice_is_refused() -> None:
    with pytest.raises(CacheError, match="lists the shard '000000' twice"):
        Segment.from_json(Segment(0, (entry(), entry())).to_json(), "x")


def test_a_new_cache_has_no_segments(cache: LocalFolder) -> None:
    assert read_segments(cache) == ()


def test_appended_shards_become_the_next_segment_and_no_file_changes(cache: LocalFolder) -> None:
    first = extend_index(cache, [entry("a"), entry("b")])
    before = cache.read("index/000000.json")
    assert extend_index(cache, [entry("b"), entry("a")]) == first
    both = extend_index(cache, [entry("a"), entry("c"), entry("d")])
    assert [[shard.name for shard in segment.shards] for segment in both] == [["a", "b"], ["c", "d"]]
    assert [segment.number for segment in both] == [0, 1]
    assert read_segments(cache) == both
    assert cache.read("index/000000.json") == before
    assert list(cache.names()) == ["index/000000.json", "index/000001.json"]


def test_a_subset_of_the_known_shards_changes_nothing(cache: LocalFolder) -> None:
    both = extend_index(cache, [entry("a"), entry("b")])
    assert extend_index(cache, [entry("b")]) == both


def test_a_tar_packed_anew_is_the_same_shard(cache: LocalFolder) -> None:
    original = extend_index(cache, [entry("a")])
    moved = dataclasses.replace(entry("a"), size=9000, offsets=(1000, 3000, 5000))
    assert extend_index(cache, [moved]) == original


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            entry("a", 3, first_key=101),
            "has 3 samples, this one 3; at row 0 the key's crc32 is 00000064 there but 00000065",
        ),
        (entry("a", 4), "has 3 samples, this one 4; at row 3 the key's crc32 is none there but 00000067 here"),
        (entry("a", 2), "has 3 samples, this one 2; at row 2 the key's crc32 is 00000066 there but none here"),
    ],
)
def test_other_keys_under_a_known_name_are_refused(cache: LocalFolder, other: ShardEntry, message: str) -> None:
    extend_index(cache, [entry("a", 3)])
    with pytest.raises(CacheError, match=message) as caught:
        extend_index(cache, [entry("b"), other])
    assert "was made with other shards: its 'a'" in str(caught.value)
    assert "choose another cache" in str(caught.value)
    assert len(read_segments(cache)) == 1


def test_two_shards_of_one_name_are_refused(cache: LocalFolder) -> None:
    with pytest.raises(ShardError, match=r"two shards are called 'a'.*rename one"):
        extend_index(cache, [entry("a"), entry("b"), entry("a")])


class SlowFolder(LocalFolder):
    """Another writer takes the name between our read and our write."""

    def create(self, name: str, data: bytes) -> bool:
        other = LocalFolder(self.path)
        if name == "index/000000.json" and other.read(name) is None:
            other.create(name, Segment(0, (entry("a"), entry("b"))).to_json())
        return super().create(name, data)


def test_the_slower_of_two_writers_adds_only_what_is_left(tmp_path: Path) -> None:
    segments = extend_index(SlowFolder(tmp_path), [entry("b"), entry("c")])
    assert [[shard.name for shard in segment.shards] for segment in segments] == [["a", "b"], ["c"]]


def test_the_slower_writer_notices_other_shards(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="made with other shards"):
        extend_index(SlowFolder(tmp_path), [entry("b", first_key=7)])


def test_many_writers_at_once_lose_no_shard_and_list_none_twice(tmp_path: Path) -> None:
    def write(worker: int) -> None:
        extend_index(LocalFolder(tmp_path, worker), [entry(f"s{n}") for n in range(worker, worker + 5)])

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [shard.name for segment in read_segments(LocalFolder(tmp_path)) for shard in segment.shards]
    assert sorted(names) == sorted(f"s{n}" for n in range(10))


def test_a_missing_segment_is_an_error(cache: LocalFolder) -> None:
    cache.create("index/000001.json", Segment(1, (entry(),)).to_json())
    with pytest.raises(
        CacheError, match=r"has index/000001.json but no index/000000.json; copy the cache's whole index/"
    ):
        read_segments(cache)


def test_a_segment_under_another_number_is_an_error(cache: LocalFolder) -> None:
    cache.create("index/000000.json", Segment(3, (entry(),)).to_json())
    with pytest.raises(CacheError, match=r"index/000000.json says that it is segment 3"):
        read_segments(cache)


def test_a_shard_in_two_segments_is_an_error(cache: LocalFolder) -> None:
    for number in range(2):
        cache.create(f"index/{number:06d}.json", Segment(number, (entry("a"),)).to_json())
    with pytest.raises(CacheError, match="lists the shard 'a' in two segments"):
        read_segments(cache)


class TestSealedIndex:
    """A large segment is read tar by tar, by its seal."""

    @pytest.fixture(autouse=True)
    def three_tars_are_many(self, monkeypatch) -> None:
        for module in (segments, index_seal):
            monkeypatch.setattr(module, "SEALED_TARS", 3)

    @pytest.fixture
    def entries(self) -> list[ShardEntry]:
        tars = [entry(f"tar-{tar}", tar + 1, 100 * tar) for tar in range(4)]
        return [tars[0], dataclasses.replace(tars[1], held_out=True), *tars[2:]]

    @pytest.fixture
    def sealed(self, cache: LocalFolder, entries: list[ShardEntry]) -> LocalFolder:
        extend_index(cache, entries)
        return cache

    def test_its_tars_are_those_of_the_segment_and_none_is_read_before_it_is_asked_for(
        self, sealed, entries, monkeypatch
    ) -> None:
        (whole,) = read_segments(sealed, by_seals=False)
        monkeypatch.setattr(LocalFolder, "read_range", None)
        (segment,) = read_segments(sealed)
        assert segment.names == whole.names == tuple(one.name for one in entries)
        assert segment.counts.tolist() == [1, 2, 3, 4]
        assert (segment.rows, segment.held_out, len(segment.shards)) == (4, (1,), 4)
        assert all(segment.has(tar, one.keys) for tar, one in enumerate(entries))
        assert not segment.has(1, entries[2].keys)
        assert not segment.has(0, entry(first_key=7, rows=1).keys)
        monkeypatch.undo()
        assert list(segment.shards) == [segment.shards[tar] for tar in range(4)] == entries == list(whole.shards)
        assert segment.shards[-1] == entries[-1]
        assert segment.shards[1:3] == entries[1:3]
        with pytest.raises(IndexError):
            segment.shards[4]
        assert segment.to_bytes() == whole.to_bytes() == sealed.read("index/000000.json")

    def test_it_is_a_function_of_the_file_and_small_segments_have_none(self, sealed, entries, tmp_path) -> None:
        other = LocalFolder(tmp_path / "other")
        other.create("index/000000.json", sealed.read("index/000000.json") or b"")
        extend_index(other, [*entries, entry("more")])
        assert other.read("index/seals/000000.json") == sealed.read("index/seals/000000.json")
        assert [name for name in other.names("index") if "seals" in name] == ["index/seals/000000.json"]
        assert [len(segment.shards) for segment in read_segments(other)] == [4, 1]

    @pytest.mark.parametrize(
        "harm",
        [
            lambda data: data.replace(b"tar-1", b"tar-9"),
            lambda data: data[:-1],
            lambda data: b"{}",
            lambda data: b"\xff",
            lambda data: b"[" * 10**5,
        ],
    )
    def test_a_damaged_one_is_ignored(self, sealed, entries, harm) -> None:
        sealed.replace("index/seals/000000.json", harm(sealed.read("index/seals/000000.json") or b""))
        (segment,) = read_segments(sealed)
        assert segment.shards == tuple(entries)

    @pytest.mark.parametrize(
        "change",
        [
            {"names": [1, 2, 3, 4]},
            {"names": ["../x", "a", "b", "c"]},
            {"rows": [0, 1, 2, 3]},
            {"offsets": [-1, 0, 0, 0]},
            {"held_out": [4]},
            {"crcs": [1]},
            {"size": "1"},
            {"number": 1},
            {"more": 0},
        ],
    )
    def test_an_impossible_one_is_ignored(self, sealed, entries, change) -> None:
        body = {**json.loads(sealed.read("index/seals/000000.json") or b""), **change}
        del body["self"]
        own = index_seal.crc32c(index_seal._json(body))
        sealed.replace("index/seals/000000.json", index_seal._json({**body, "self": own}))
        (segment,) = read_segments(sealed)
        assert segment.shards == tuple(entries)

    def test_one_of_another_file_is_ignored_or_told(self, sealed, entries, tmp_path) -> None:
        other = LocalFolder(tmp_path / "other")
        extend_index(other, [*entries[:3], entry("tar-3", 5)])
        sealed.replace("index/000000.json", other.read("index/000000.json") or b"")
        (segment,) = read_segments(sealed)
        assert segment.shards[3].rows == 5
        text = (other.read("index/000000.json") or b"").replace(b"[512,", b"[513,")
        other.replace("index/000000.json", text)
        (segment,) = read_segments(other)
        with pytest.raises(CacheError, match=r"shard 2: not as index/seals/000000\.json says; `unic-cache verify`"):
            segment.shards[2]

    def test_other_samples_under_a_known_name_are_refused(self, sealed, entries) -> None:
        with pytest.raises(CacheError, match="its 'tar-2' has 3 samples, this one 2; at row 0"):
            extend_index(sealed, [*entries[:2], entry("tar-2", 2)])

    def test_more_samples_than_a_segment_takes_are_cut(self, cache, entries, monkeypatch) -> None:
        monkeypatch.setattr(segments, "LIMIT_SAMPLES", 5)
        assert [segment.names for segment in extend_index(cache, entries)] == [
            ("tar-0", "tar-1"),
            ("tar-2",),
            ("tar-3",),
        ]
        assert read_segments(cache) == extend_index(cache, entries)
