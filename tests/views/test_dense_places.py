"""Masks and depth maps in tars: found in any order, never taken for images, and in no cache's index."""

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import picture, png, write_members
from unic_cache.errors import CacheError, EmptyShardError, ShardError
from unic_cache.files.local import LocalFolder
from unic_cache.views.index import Segment, ShardEntry
from unic_cache.views.left_out import listed
from unic_cache.views.segments import extend_index
from unic_cache.views.shards import OpenShard, describe, scan

PICTURES = [png(picture(number)) for number in range(5)]
MEMBERS = [
    ("a.mask.png", b"mask of a"),
    ("a.png", PICTURES[0]),
    ("b/b.input.jpg", PICTURES[1]),
    ("b/b.cls", b"4"),
    ("b/b.seg.MASK.png", b"mask of b"),
    ("b/b.depth.npy", b"metres of b"),
    ("c.depth.png", b"millimetres of c"),
    ("c.PNG", PICTURES[2]),
    ("d.jpg", PICTURES[3]),
    ("e.mask.png", b""),
    ("e.0.mask.png", b"not the mask of e"),
    ("e", PICTURES[4]),
]
LABELS = {
    "mask.png": [b"mask of a", b"mask of b", None, None],
    "depth.npy": [None, b"metres of b", None, None],
    "depth.png": [None, None, b"millimetres of c", None],
}


def labels(path: Path, entry: ShardEntry) -> dict[str, list[bytes | None]]:
    with OpenShard(str(path), entry) as tar:
        assert [tar.read(row) for row in range(4)] == PICTURES[:4]
        return {kind: [tar.read_label(row, kind) for row in range(4)] for kind in LABELS}


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return write_members(tmp_path / "t.tar", *MEMBERS[:9])


def index_of(tar: Path, **changes: Any) -> Path:
    """Write the index beside the tar as `shard` does, with changes to its only shard."""
    data = json.loads(Segment(0, (scan(str(tar)),)).to_json())
    data["shards"][0].update(changes)
    path = tar.parent / "index.json"
    path.write_text(json.dumps({**data, "shards": [{k: v for k, v in data["shards"][0].items() if v is not None}]}))
    return path


def test_labels_are_found_by_suffix_before_and_after_the_image(tar: Path) -> None:
    entry = scan(str(tar))
    assert labels(tar, entry) == LABELS
    assert entry.labels.tolist() == [-1, 4, -1, -1]
    assert entry.left_out == ()


def test_a_tar_without_labels_holds_none_in_memory_and_in_its_index(tmp_path: Path) -> None:
    entry = scan(str(write_members(tmp_path / "t.tar", ("a.png", PICTURES[0]))))
    assert entry.dense == {}
    assert b"dense" not in Segment(0, (entry,)).to_json()
    with OpenShard(str(tmp_path / "t.tar"), entry) as opened:
        assert opened.read_label(0, "mask.png") is None


def test_a_label_alone_or_beside_other_members_is_never_the_image(tmp_path: Path) -> None:
    path = write_members(
        tmp_path / "t.tar", ("a.mask.png", PICTURES[0]), ("b.png", PICTURES[1]), ("c.x.depth.png", PICTURES[0])
    )
    entry = scan(str(path))
    assert entry.rows == 1
    assert entry.dense == {}
    assert listed(entry.left_out) == "2 samples without image (a: only mask.png, ...)"
    with pytest.raises(EmptyShardError, match=r"no images.*1 sample without image \(a: only mask.png\)"):
        scan(str(write_members(tmp_path / "u.tar", ("a.mask.png", PICTURES[0]))))


def test_of_several_masks_the_exact_name_counts_or_none(tmp_path: Path) -> None:
    several = [("f.png", PICTURES[0]), ("f.0.mask.png", b"0"), ("f.1.mask.png", b"1")]
    path = write_members(tmp_path / "t.tar", ("e.png", PICTURES[0]), *MEMBERS[9:11], *several)
    entry = scan(str(path))
    with OpenShard(str(path), entry) as opened:
        assert [opened.read_label(row, "mask.png") for row in range(2)] == [b"", None]
    assert listed(entry.left_out) == "2 masks or depth maps of samples with several (f: 0.mask.png, 1.mask.png, ...)"


def test_two_samples_may_share_a_mask_by_a_link(tmp_path: Path) -> None:
    path = write_members(
        tmp_path / "t.tar",
        ("a.png", PICTURES[0]),
        ("a.mask.png", b"shared"),
        ("b.mask.png", b"", tarfile.LNKTYPE, "a.mask.png"),
        ("b.png", PICTURES[1]),
    )
    with OpenShard(str(path), scan(str(path))) as opened:
        assert [opened.read_label(row, "mask.png") for row in range(2)] == [b"shared"] * 2


def test_two_kinds_of_depth_map_in_a_sample_are_refused(tmp_path: Path) -> None:
    path = write_members(tmp_path / "t.tar", ("a.png", b"1"), ("a.depth.npy", b"2"), ("a.x.depth.png", b"3"))
    with pytest.raises(
        ShardError, match=r"byte 2048: the key 'a' has two depth maps, depth.png and depth.npy; keep one"
    ):
        scan(str(path))


def test_the_index_beside_the_tar_gives_what_a_scan_gives(tar: Path) -> None:
    index = index_of(tar)
    places = json.loads(index.read_text())["shards"][0]["dense"]
    assert places["depth.npy"]["sizes"] == [None, 11, None, None]
    (entry,) = describe([str(tar)])
    assert entry == scan(str(tar))
    assert labels(tar, entry) == LABELS
    (read,) = Segment.from_json(index.read_bytes(), "here").shards
    assert read == entry, "read from JSON alone"
    assert labels(tar, read) == LABELS


@pytest.mark.parametrize("kind", ["mask.png", "depth.npy"])
def test_an_index_that_lacks_labels_or_moves_them_is_refused(tar: Path, kind: str) -> None:
    dense = json.loads(index_of(tar).read_text())["shards"][0]["dense"]
    places = dense.pop(kind)
    places["offsets"] = [offset and offset + 512 for offset in places["offsets"]]
    for changed in (None, dense, {**dense, kind: places}):
        index_of(tar, dense=changed)
        with pytest.raises(ShardError, match=r"index.json.*; the tar was replaced, renamed or edited"):
            describe([str(tar)])


def test_a_label_renamed_in_place_is_refused_when_it_is_read(tar: Path) -> None:
    index_of(tar)
    entries = {
        "scanned": scan(str(tar)),
        "indexed": Segment.from_json((tar.parent / "index.json").read_bytes(), "").shards[0],
    }
    data = tar.read_bytes().replace(b"b/b.seg.MASK.png", b"b/x.seg.MASK.png")
    tar.write_bytes(data)
    for how, entry in entries.items():
        message = {
            "scanned": "not the one found when the tar was scanned",
            "indexed": "the one that index.json describes",
        }
        with OpenShard(str(tar), entry) as opened:
            assert opened.read_label(0, "mask.png") == b"mask of a"
            with pytest.raises(ShardError, match=rf"the mask.png of row 1 is .*{message[how]}"):
                opened.read_label(1, "mask.png")


def test_a_depth_map_is_not_read_as_a_mask(tar: Path) -> None:
    dense = json.loads(index_of(tar).read_text())["shards"][0]["dense"]
    (entry,) = Segment.from_json(index_of(tar, dense={"mask.png": dense["depth.npy"]}).read_bytes(), "").shards
    with OpenShard(str(tar), entry) as opened, pytest.raises(ShardError, match=r"the mask.png of row 1 is not the one"):
        opened.read_label(1, "mask.png")


def test_a_tar_that_ends_within_a_label_is_refused(tmp_path: Path) -> None:
    path = write_members(tmp_path / "t.tar", ("a.png", b"1"), ("a.mask.png", b"x" * 600))
    entry = scan(str(path))
    path.write_bytes(path.read_bytes()[:1700])
    with OpenShard(str(path), entry) as opened, pytest.raises(ShardError, match="byte 1700: it ends early"):
        opened.read_label(0, "mask.png")


HOSTILE: list[tuple[Any, str]] = [
    ([], r"dense '\[\]' has other kinds than mask.png, depth.png, depth.npy"),
    ({"mask.jpg": {}}, "has other kinds than"),
    ({"mask.png": {"offsets": [1, 2]}}, "dense mask.png: sizes missing"),
    ({"mask.png": {"offsets": [512], "sizes": [1]}}, "1 offsets and 1 sizes of 4 samples"),
    ({"mask.png": {"offsets": [512, None, None, -4], "sizes": [1, None, None, 1]}}, r"offsets\[3\] is '-4'"),
    ({"mask.png": {"offsets": [512, None, None, None], "sizes": [1, None, None, 1]}}, "row 3 has only one of offset"),
    (
        {"mask.png": {"offsets": [512, None, None, None], "sizes": [10**9, None, None, None]}},
        "row 0 ends at byte 1000000512",
    ),
    ({k: {"offsets": [512] * 4, "sizes": [1] * 4} for k in ("depth.png", "depth.npy")}, "row 0 has two depth maps"),
]


@pytest.mark.parametrize(("dense", "message"), HOSTILE)
def test_hostile_places_are_refused_with_file_and_place(tar: Path, dense: Any, message: str) -> None:
    index = index_of(tar, dense=dense)
    with pytest.raises(CacheError, match=message) as caught:
        Segment.from_json(index.read_bytes(), "index.json")
    assert str(caught.value).startswith("index.json, shard 0")


def test_a_label_at_the_first_byte_is_refused_when_it_is_read(tar: Path) -> None:
    index = index_of(tar, dense={"mask.png": {"offsets": [0, None, None, None], "sizes": [9, None, None, None]}})
    (entry,) = Segment.from_json(index.read_bytes(), "").shards
    with OpenShard(str(tar), entry) as opened, pytest.raises(ShardError, match=r"the mask.png of row 0 is not the one"):
        opened.read_label(0, "mask.png")


def test_a_caches_own_index_is_the_same_with_and_without_labels(tar: Path, tmp_path: Path) -> None:
    images = [member for member in MEMBERS[:9] if not re.search(r"mask|depth", member[0], re.IGNORECASE)]
    (tmp_path / "bare").mkdir()
    bare = scan(str(write_members(tmp_path / "bare" / "t.tar", *images)))
    cache = LocalFolder(tmp_path / "cache")
    (segment,) = extend_index(cache, [scan(str(tar))])
    assert b"dense" not in (cache.read("index/000000.json") or b"dense")
    assert segment == Segment.from_json(segment.to_bytes(), "here")
    assert extend_index(cache, [bare]) == (segment,), "the same keys"
