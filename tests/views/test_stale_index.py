"""An index.json is used only while it matches its tar, whatever happened to the tar since."""

import dataclasses
import io
import tarfile
from pathlib import Path

import pytest

from pipelines.shard import run
from tests.conftest import picture
from unic_cache.config import ShardConfig
from unic_cache.errors import ShardError
from unic_cache.views.index import Segment
from unic_cache.views.shards import OpenShard, describe, scan


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """One tar of 12 images in two classes, with its index."""
    for number in range(12):
        folder = tmp_path / "images" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / f"{number}.png")
    run(ShardConfig(str(tmp_path / "images"), str(tmp_path / "out")))
    (tmp_path / "out" / "000000.tar").chmod(0o644)
    return tmp_path / "out" / "000000.tar"


def members(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return tar.getmembers()


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def read_all(path: Path) -> list[bytes]:
    (entry,) = describe([str(path)])
    with OpenShard(str(path), entry) as tar:
        return [tar.read(row) for row in range(entry.rows)]


def test_the_index_that_fits_is_believed(packed: Path) -> None:
    (entry,) = describe([str(packed)])
    assert entry.headers is None, "it was scanned"
    assert entry == scan(str(packed))
    assert len(read_all(packed)) == 12


def test_a_label_that_was_edited_in_place_is_refused_when_its_row_is_read(packed: Path) -> None:
    labels = [member for member in members(packed) if member.name.endswith(".cls")]
    old = packed.read_bytes()[labels[2].offset_data]
    overwrite(packed, labels[2].offset_data, b"7")
    with pytest.raises(ShardError, match=rf"the label of row 2 is 7, but {chr(old)} in index.json; .*delete the index"):
        read_all(packed)
    (packed.parent / "index.json").unlink()
    assert describe([str(packed)])[0].labels[2] == 7


def test_a_member_that_was_appended_is_refused(packed: Path) -> None:
    size = packed.stat().st_size
    with tarfile.open(packed, "a") as tar:
        info = tarfile.TarInfo("more.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"new"))
    assert packed.stat().st_size == size, "padding hides it"
    with pytest.raises(ShardError, match=r"its samples or labels are not those in index.json"):
        describe([str(packed)])


def test_an_image_that_was_renamed_or_swapped_in_place_is_refused(packed: Path) -> None:
    image = [member for member in members(packed) if member.name.endswith(".png")][3]
    block = bytearray(packed.read_bytes()[image.offset_data - 512 : image.offset_data])
    other = tarfile.TarInfo.frombuf(bytes(block), "utf-8", "surrogateescape")
    other.name = "another.png"
    overwrite(packed, image.offset_data - 512, other.tobuf(tarfile.USTAR_FORMAT))
    with pytest.raises(ShardError, match=r"row 3 is not the image that index.json describes"):
        read_all(packed)


def test_a_tar_of_equal_size_with_other_samples_is_refused(packed: Path) -> None:
    for number in range(12):
        picture(number).save(packed.parent.parent / "images" / "class0" / f"{number}.png")
    for path in (packed.parent.parent / "images" / "class1").iterdir():
        path.unlink()
    picture(1).save(packed.parent.parent / "images" / "class1" / "1.png")
    run(ShardConfig(str(packed.parent.parent / "images"), str(packed.parent.parent / "two")))
    data = (packed.parent.parent / "two" / "000000.tar").read_bytes()
    size = packed.stat().st_size
    packed.write_bytes(data[:size].ljust(size, b"\0"))
    with pytest.raises(ShardError, match=r"index\.json"):
        read_all(packed)


def test_a_tar_that_changes_between_scan_and_read_is_refused(packed: Path) -> None:
    entry = scan(str(packed))
    with OpenShard(str(packed), entry) as tar:
        tar.read(4)
        overwrite(packed, entry.offsets[4] - 512, b"other")
        with pytest.raises(ShardError, match=r"row 4 is not the image found when the tar was scanned"):
            tar.read(4)


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("name", ["d" * 70 + "/" + "n" * 90, "ünï/bild", "plain"])
def test_names_of_any_length_pass_the_check_of_their_header(tmp_path: Path, kind: int, name: str) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=kind) as tar:
        for suffix, data in (("cls", b"4"), ("jpg", b"image")):
            info = tarfile.TarInfo(f"{name}.{suffix}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    entry = scan(str(path))
    for believed in (entry, dataclasses.replace(entry, headers=None)):
        with OpenShard(str(path), believed) as tar:
            assert tar.read(0) == b"image"
    (tmp_path / "index.json").write_bytes(Segment(0, (entry,)).to_json())
    assert describe([str(path)]) == (entry,)


def test_tars_of_a_shard_that_has_not_ended_are_no_data(packed: Path) -> None:
    (packed.parent / ".unfinished").write_text("{}")
    with pytest.raises(ShardError, match="holds the tars of an unfinished `shard`; run the same `shard` again"):
        describe([str(packed)])
