"""Tars of all origins: their samples, and every way in which they can be broken."""

import bz2
import contextlib
import gzip
import io
import json
import os
import pickle
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from webdataset.tariterators import group_by_keys, tar_file_iterator

from unic_cache.errors import ShardError
from unic_cache.views.index import NO_LABEL, Segment
from unic_cache.views.shards import OpenShard, describe, expand, scan, shard_name

Members = list[tuple[str, bytes]]

THREE: Members = [
    ("a/cat.jpg", b"cat's bytes"),
    ("a/cat.cls", b"3"),
    ("a/dog.cls", b"12\n"),
    ("a/dog.PNG", b"dog" * 500),
    ("b/cat.webp", b""),
]


def write_tar(path: Path, members: Members, tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def three(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "000000.tar", THREE)


def test_scan_lists_keys_places_and_labels(three: Path) -> None:
    entry = scan(str(three))
    data = three.read_bytes()
    assert entry.name == "000000"
    assert entry.size == len(data)
    assert entry.rows == 3
    assert tuple(entry.keys) == tuple(zlib.crc32(key) for key in (b"a/cat", b"a/dog", b"b/cat"))
    assert entry.to_json()["labels"] == [3, 12, None]
    images = [data[offset : offset + size] for offset, size in zip(entry.offsets, entry.sizes, strict=True)]
    assert images == [b"cat's bytes", b"dog" * 500, b""]


def test_samples_are_webdatasets(tmp_path: Path) -> None:
    members = [
        ("./x/a.b.jpg", b"not x/a's image but its b.jpg"),
        ("./x/a.jpg", b"1"),
        ("x.y/a.jpg", b"2"),
        ("x.y/b.txt", b"text"),
        ("x.y/b.tiff", b"3"),
        ("no-extension", b"?"),
        ("__meta__/z.jpg", b"?"),
        ("x.y/B.Gif", b"4"),
        ("ünï.bmp", b"5"),
    ]
    path = write_tar(tmp_path / "t.tar", members, tarfile.PAX_FORMAT)
    with path.open("rb") as file:
        theirs = [one["__key__"] for one in group_by_keys({**each, "__url__": ""} for each in tar_file_iterator(file))]
    entry = scan(str(path))
    assert tuple(entry.keys) == tuple(zlib.crc32(key.encode()) for key in theirs)
    with OpenShard(str(path), entry) as shard:
        assert [shard.read(row) for row in range(entry.rows)] == [b"1", b"2", b"3", b"4", b"5"]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_each_tar_format_and_long_names_are_read(tmp_path: Path, tar_format: int) -> None:
    name = "d" * 60 + "/" + "n" * 90
    path = write_tar(tmp_path / "t.tar", [(f"{name}.jpg", b"long"), ("short.jpg", b"short")], tar_format)
    entry = scan(str(path))
    assert entry.keys[0] == zlib.crc32(name.encode())
    with OpenShard(str(path), entry) as shard:
        assert (shard.read(0), shard.read(1)) == (b"long", b"short")


def test_of_two_images_the_first_in_the_fixed_order_counts(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("a.png", b"mask"), ("a.jpg", b"photo")])
    with OpenShard(str(path), scan(str(path))) as shard:
        assert shard.read(0) == b"photo"


@pytest.mark.parametrize("text", [b"", b"tench", b"-1", b"1.5", b"9" * 19, b" " * 30])
def test_what_is_no_class_number_is_no_label(tmp_path: Path, text: bytes) -> None:
    assert scan(str(write_tar(tmp_path / "t.tar", [("a.jpg", b"1"), ("a.cls", text)]))).labels[0] == NO_LABEL


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("exploded",))


def test_pickles_are_never_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(Bomb())
    members = [("a.jpg", b"1"), ("a.pyd", bomb), ("a.pkl", bomb), ("a.pickle", bomb), ("a.json", b"{"), ("a.pth", bomb)]
    path = write_tar(tmp_path / "t.tar", members)
    assert describe([str(path)])[0].rows == 1
    assert not Path("exploded").exists()


def test_links_devices_and_names_that_leave_the_folder_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE), ("c.jpg", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("../../up.jpg")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"up"))
    entry = scan(str(path))
    assert tuple(entry.keys) == (zlib.crc32(b"../../up"),)
    with OpenShard(str(path), entry) as shard:
        assert shard.read(0) == b"up"
    assert [found.name for found in tmp_path.rglob("*")] == ["t.tar"]
    assert not (tmp_path / "../../up.jpg").exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("a.jpg", b"1"), ("a.jpg", b"2")],
            r"byte 1024: the key 'a' appears twice; give every sample a key of its own",
        ),
        ([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.cls", b"3")], "byte 2048: the key 'a' appears twice"),
        ([("a.jpg", b"1"), ("a.JPG", b"2")], "the key 'a' appears twice"),
        ([("readme", b"1")], "byte 0: no images; an image's name ends in jpg, jpeg, png"),
        ([], "byte 0: no images"),
    ],
)
def test_samples_that_make_no_sense_are_refused(tmp_path: Path, members: Members, message: str) -> None:
    path = write_tar(tmp_path / "t.tar", members)
    with pytest.raises(ShardError, match=message) as caught:
        scan(str(path))
    assert str(caught.value).startswith(f"{path}, byte ")


def test_a_tar_cut_anywhere_is_never_taken_for_whole(three: Path) -> None:
    whole = three.read_bytes()
    end = scan(str(three)).offsets[-1]  # of an empty image: its header's end
    for size in [1, 100, 511, 512, 515, 1024, 1100, 2048, 2600, 3000, 4000, end - 512, end - 1, end, end + 511]:
        three.write_bytes(whole[:size])
        with pytest.raises(ShardError, match=r"000000.tar, byte \d+: (it ends early|it is not a tar)"):
            scan(str(three))
    three.write_bytes(whole[: end + 512])
    assert scan(str(three)).rows == 3


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (4000, "byte 4000: it ends early, within 'a/dog.PNG'; copy it again"),
        (3000, "byte 3000: it ends early or is damaged: unexpected end of data; copy it again"),
        (512 * 10, "byte 5120: it ends early, before the archive's end mark"),
        (512 * 10 + 100, "byte 5220: it ends early, before the archive's end mark"),
    ],
)
def test_a_cut_tar_says_where(three: Path, size: int, message: str) -> None:
    three.write_bytes(three.read_bytes()[:size])
    with pytest.raises(ShardError, match=message):
        scan(str(three))


def test_a_damaged_header_is_an_error_and_not_the_end(three: Path) -> None:
    data = bytearray(three.read_bytes())
    second = scan(str(three)).offsets[1] - 512
    data[second + 5] ^= 1
    three.write_bytes(data)
    with pytest.raises(ShardError, match=f"byte {second}: a damaged header; copy it again"):
        scan(str(three))


@pytest.mark.parametrize(("pack", "name"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2")])
def test_a_compressed_tar_is_refused_by_name(three: Path, pack: type, name: str) -> None:
    three.write_bytes(pack(three.read_bytes()))
    with pytest.raises(ShardError, match=f"byte 0: it is compressed with {name}; decompress it to a plain tar"):
        scan(str(three))


@pytest.mark.parametrize("data", [b"", b"hello", b"\0" * 100, bytes(range(256)) * 40])
def test_what_is_no_tar_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"byte 0: it is not a tar: .*; give the path of a plain tar"):
        scan(str(path))


def test_an_index_whose_labels_are_not_the_tars_is_refused(three: Path) -> None:
    index = Segment(0, (scan(str(three)),)).to_json()
    (three.parent / "index.json").write_bytes(index)
    assert describe([str(three)])[0].to_json()["labels"] == [3, 12, None]
    (three.parent / "index.json").write_bytes(index.replace(b'"labels":[3,', b'"labels":[8,'))
    with pytest.raises(ShardError, match=r"samples or labels are not those in index.json; .*delete the index"):
        describe([str(three)])


def test_a_tar_that_the_index_does_not_list_is_scanned(three: Path) -> None:
    (three.parent / "index.json").write_bytes(Segment(0, (scan(str(three)),)).to_json())
    other = write_tar(three.parent / "other.tar", THREE[:1])
    assert [entry.rows for entry in describe([str(other), str(three)])] == [1, 3]


def test_a_tar_of_another_size_than_its_index_says_is_refused(three: Path) -> None:
    size = three.stat().st_size
    (three.parent / "index.json").write_bytes(Segment(0, (scan(str(three)),)).to_json())
    three.write_bytes(three.read_bytes()[:3000])
    with pytest.raises(ShardError, match=f"has 3000 bytes but {size} in index.json: truncated or rewritten"):
        describe([str(three)])


def test_someone_elses_index_is_ignored(three: Path) -> None:
    (three.parent / "index.json").write_text(json.dumps({"version": 2, "shards": [{"column_names": []}]}))
    assert describe([str(three)])[0].rows == 3


def test_a_damaged_index_is_an_error_with_a_remedy(three: Path) -> None:
    index = Segment(0, (scan(str(three)),)).to_json()
    (three.parent / "index.json").write_bytes(index.replace(b'"labels":[', b'"labels":["x",'))
    with pytest.raises(
        ShardError, match=r"index.json, shard 0: labels\[0\] is 'x'.*delete it so that the tars are scanned"
    ):
        describe([str(three)])


def test_expand_takes_paths_globs_and_braces(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number:06d}.tar").touch()
    (tmp_path / ".tmp-x.tar").touch()
    names = [f"{tmp_path}/{number:06d}.tar" for number in range(12)]
    assert expand(names[3]) == (names[3],)
    assert expand(f"file://{names[3]}") == (names[3],)
    assert expand(f"{tmp_path}/*.tar") == tuple(names)
    assert expand(f"{tmp_path}/{{000000..000011}}.tar") == tuple(names)
    assert expand(f"{tmp_path}/{{000004,000001}}.tar") == (names[4], names[1])
    assert expand(f"{tmp_path}/{{00000,00001}}?.tar") == tuple(names)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{root}/*.tar", r"no shard matches '.*/\*.tar'; give a path, a glob"),
        ("{root}/x.tar", "no shard at .*/x.tar, of 1 that .* names"),
        ("{root}/{{0..3}}.tar", "no shard at .*/0.tar and 3 more, of 4 that"),
        ("{root}", r"is a folder; write '.*/\*.tar'"),
        ("{root}/{{0..3.tar", "the braces cannot be expanded"),
    ],
)
def test_expand_says_what_is_missing(tmp_path: Path, pattern: str, message: str) -> None:
    with pytest.raises(ShardError, match=message):
        expand(pattern.format(root=tmp_path))


def test_expand_says_which_part_of_a_pattern_matches_nothing(tmp_path: Path) -> None:
    (tmp_path / "000000.tar").touch()
    for pattern in ("{root}/{{0*,val/*}}.tar", "{root}/0*.tar::{root}/val/*.tar"):
        with pytest.raises(ShardError, match=r"no shard matches '.*/val/\*.tar', a part of .*; correct it, or leave"):
            expand(pattern.format(root=tmp_path))


def test_shard_names_are_safe() -> None:
    assert shard_name("/x/train-0.01.tar") == "train-0.01"
    for path in ("/x/a b.tar", "/x/.tar", "/x/.hidden.tar", "/x/é.tar"):
        with pytest.raises(ShardError, match="use only letters, digits"):
            shard_name(path)


def test_an_open_shard_reads_any_row_from_many_threads(tmp_path: Path) -> None:
    images = [bytes([number]) * (100 + 37 * number) for number in range(50)]
    path = write_tar(tmp_path / "t.tar", [(f"{number}.jpg", data) for number, data in enumerate(images)])
    with OpenShard(str(path), scan(str(path))) as shard, ThreadPoolExecutor(4) as pool:
        rows = [row for _ in range(10) for row in reversed(range(50))]
        assert list(pool.map(shard.read, rows)) == [images[row] for row in rows]


def test_an_open_shard_that_shrinks_is_an_error(three: Path) -> None:
    entry = scan(str(three))
    with OpenShard(str(three), entry) as shard:
        os.truncate(three, entry.offsets[1] + 700)
        with pytest.raises(ShardError, match=f"byte {entry.offsets[1] + 700}: it ends early; copy it again"):
            shard.read(1)


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_flipped_bytes_give_an_entry_or_a_shard_error_and_nothing_else(tmp_path: Path, tar_format: int) -> None:
    path = write_tar(tmp_path / "t.tar", [*THREE, ("d" * 60 + "/" + "n" * 90 + ".jpg", b"1")], tar_format)
    whole = path.read_bytes()
    random = Random(0)
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(3):
            data[random.randrange(0, 6000)] = random.randrange(256)
        path.write_bytes(data)
        with contextlib.suppress(ShardError):
            assert scan(str(path)).rows > 0


def test_a_tar_that_took_anothers_name_is_not_paired_with_its_index(tmp_path: Path) -> None:
    entries = []
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for row in range(3):
                info = tarfile.TarInfo(f"image{shard}{row}.png")
                info.size = 4
                tar.addfile(info, io.BytesIO(b"data"))
        entries.append(scan(str(tmp_path / f"{shard}.tar")))
    (tmp_path / "index.json").write_bytes(Segment(0, tuple(entries)).to_json())
    assert describe([str(tmp_path / "0.tar")]) == (entries[0],)
    (tmp_path / "0.tar").rename(tmp_path / "x.tar")
    (tmp_path / "1.tar").rename(tmp_path / "0.tar")
    with pytest.raises(ShardError, match=r"0\.tar: row 0 is not the image that index\.json describes"):
        describe([str(tmp_path / "0.tar")])
