"""Odd tars: joined archives, links, guests, samples without image, images with other names."""

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import picture, png, write_members
from unic_cache.errors import EmptyShardError, ImageError, ShardError
from unic_cache.views.decode import decode
from unic_cache.views.left_out import listed
from unic_cache.views.shards import OpenShard, scan
from unic_cache.views.tars import HELD_OUT, key_crc


def held(path: Path) -> dict[int, bytes]:
    """{crc32 of a key: its image's bytes} for each row of a tar."""
    entry = scan(str(path))
    with OpenShard(str(path), entry) as tar:
        return {entry.keys[row]: tar.read(row) for row in range(entry.rows)}


def left_out(path: Path) -> str:
    return listed(scan(str(path)).left_out)


@pytest.mark.parametrize("padding", [0, 512, 10_240, 3_000_000])
def test_joined_archives_are_read_on(tmp_path: Path, padding: int) -> None:
    parts = [write_members(tmp_path / f"{n}.tar", (f"{n}.jpg", b"%d" % n)).read_bytes() for n in range(3)]
    joined = tmp_path / "joined.tar"
    joined.write_bytes((b"\0" * padding).join(parts))
    assert held(joined) == {key_crc(str(n)): b"%d" % n for n in range(3)}


def test_what_is_no_archive_behind_the_end_is_an_error(tmp_path: Path) -> None:
    path = write_members(tmp_path / "a.tar", ("a.jpg", b"1"))
    size = path.stat().st_size
    for guest, message in [
        (b"<html>", f"byte {size}: the data after the archive's end is not a tar"),
        (b"\0" * 5000 + b"x" * 600, f"byte {size + 5000}: the data after the archive's end is not a tar"),
        (b"\x1f\x8b\x08" + bytes(600), f"byte {size}: it is compressed with gzip"),
    ]:
        joined = tmp_path / "joined.tar"
        joined.write_bytes(path.read_bytes() + guest)
        with pytest.raises(ShardError, match=message):
            scan(str(joined))


def test_a_second_archive_that_is_cut_off_or_repeats_a_key_is_an_error(tmp_path: Path) -> None:
    one, two = (write_members(tmp_path / f"{n}.tar", ("a/x.jpg", b"1" * 900)).read_bytes() for n in range(2))
    (tmp_path / "t.tar").write_bytes(one + two[:1000])
    with pytest.raises(ShardError, match=r"it ends early, within 'a/x.jpg'"):
        scan(str(tmp_path / "t.tar"))
    (tmp_path / "t.tar").write_bytes(one + two)
    with pytest.raises(ShardError, match="the key 'a/x' appears twice"):
        scan(str(tmp_path / "t.tar"))


def test_links_within_a_tar_are_the_files_that_they_lead_to(tmp_path: Path) -> None:
    path = write_members(
        tmp_path / "t.tar",
        ("a/forward.jpg", b"", tarfile.SYMTYPE, "../b/two.jpg"),
        ("a/one.jpg", b"one"),
        ("b/hard.jpg", b"", tarfile.LNKTYPE, "a/one.jpg"),
        ("b/two.jpg", b"two!"),
        ("c/chain.jpg", b"", tarfile.SYMTYPE, "../a/forward.jpg"),
        ("c/self.jpg", b"", tarfile.SYMTYPE, "self.jpg"),
        ("c/out.jpg", b"", tarfile.SYMTYPE, "../../etc/passwd"),
        ("c/gone.jpg", b"", tarfile.LNKTYPE, "a/none.jpg"),
    )
    expected = {"a/forward": b"two!", "a/one": b"one", "b/hard": b"one", "b/two": b"two!", "c/chain": b"two!"}
    assert held(path) == {key_crc(key): data for key, data in expected.items()}
    assert left_out(path) == "3 links to no file of their tar (c/self.jpg, ...)"


def test_guests_and_samples_without_image_are_counted_and_stop_nothing(tmp_path: Path) -> None:
    guests = [
        "a/._0.jpg", ".DS_Store", "a/Thumbs.db", "a/@eaDir/0.jpg/SYNOFILE_THUMB_M.jpg", "__MACOSX/a/0.jpg",
        "a/.ipynb_checkpoints/0-checkpoint.jpg", "PaxHeaders.77/0.jpg", "./.hidden/x.png",
    ]  # fmt: skip
    path = write_members(
        tmp_path / "t.tar",
        *[(guest, b"guest") for guest in guests],
        ("README.md", b"# about"),
        ("LICENSE", b"free"),
        ("a/0.jpg", b"0"),
        ("list", b"0"),
        ("__meta__/z.jpg", b"z"),
        ("a/0.cls", b"5"),
        ("a/1.json", b"{}"),
        ("a/1.txt", b"failed"),
        ("a/2.jpg", b"2"),
    )
    assert set(held(path)) == {key_crc("a/0"), key_crc("a/2")}
    assert scan(str(path)).labels[0] == 5
    assert left_out(path) == (
        "8 hidden files and sidecars (a/._0.jpg, ...), 2 files outside of all samples (LICENSE, ...), "
        "1 document (README.md), 1 file of WebDataset's metadata (__meta__/z.jpg), "
        "1 sample without image (a/1: only json, txt)"
    )


def test_a_sparse_file_and_a_pipe_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, data, extra in [
            ("pipe.jpg", tarfile.FIFOTYPE, b"", {}),
            ("a.jpg", tarfile.REGTYPE, b"1", {}),
            ("s.jpg", tarfile.REGTYPE, b"holes", {"GNU.sparse.map": "0,5", "GNU.sparse.size": "50000000"}),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.pax_headers = kind, len(data), extra
            tar.addfile(info, io.BytesIO(data))
    assert set(held(path)) == {key_crc("a")}
    assert left_out(path) == "1 device, pipe or file of an unknown type (pipe.jpg), 1 sparse file (s.jpg)"


@pytest.mark.parametrize(
    ("members", "image"),
    [
        (["s.input.jpg", "s.output.cls"], "s.input.jpg"),
        (["shot.1.5.jpg"], "shot.1.5.jpg"),
        (["s.jpg", "s.mask.png"], "s.jpg"),
        (["s.JFIF", "s.txt"], "s.JFIF"),
        (["s.jpe"], "s.jpe"),
        (["s.png", "s.jfif"], "s.jfif"),
        (["s.img"], "s.img"),
        (["s.json", "s.data"], "s.data"),
        (["d.1/s", "d.1/s.cls"], "d.1/s"),
    ],
)
def test_the_only_image_of_a_sample_is_its_image(tmp_path: Path, members: list[str], image: str) -> None:
    pixels = png(picture(1))
    text = {"cls": b"1", "txt": b"text", "json": b"{}"}
    path = write_members(tmp_path / "t.tar", *[(name, text.get(name.rpartition(".")[2], pixels)) for name in members])
    assert held(path) == {key_crc("d.1/s" if image == "d.1/s" else image.partition(".")[0]): pixels}
    assert scan(str(path)).labels[0] == (1 if any(name.endswith("cls") for name in members) else -1)


@pytest.mark.parametrize(
    "names",
    [
        ["s.input.jpg", "s.target.jpg"],
        ["shot.1.jpg", "shot.2.jpg", "shot.3.jpg"],
        ["s.webp", "s.png"],
        ["s.png", "s.tif"],
    ],
)
def test_several_images_under_one_key_are_refused_with_the_rule(tmp_path: Path, names: list[str]) -> None:
    path = write_members(tmp_path / "t.tar", *[(name, b"1") for name in names])
    with pytest.raises(
        ShardError, match=rf"has {len(names)} images, .*: a key ends at the name's first dot; give each"
    ):
        scan(str(path))


def test_the_first_bytes_tell_an_image_and_text_is_none(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "AVIF")
    path = write_members(
        tmp_path / "t.tar",
        ("a.bin", buffer.getvalue()),
        ("b.txt", b"BMW and other cars, and RIFFs too"),
        ("c.wav", b"RIFF\x10\0\0\0WAVEfmt "),
    )
    assert set(held(path)) == {key_crc("a")}
    assert left_out(path) == "2 samples without image (b: only txt, ...)"


def test_an_empty_tar_is_told_from_one_without_images(tmp_path: Path) -> None:
    with pytest.raises(EmptyShardError) as empty:
        scan(str(write_members(tmp_path / "t.tar")))
    with pytest.raises(EmptyShardError, match="it holds 1 sample without image") as imageless:
        scan(str(write_members(tmp_path / "t.tar", ("a.json", b"{}"))))
    assert (empty.value.members, imageless.value.members) == (0, 1)


def test_a_member_marks_a_tar_as_held_out(tmp_path: Path) -> None:
    assert not scan(str(write_members(tmp_path / "t.tar", ("a.jpg", b"1")))).held_out
    entry = scan(str(write_members(tmp_path / "t.tar", (HELD_OUT, b""), ("a.jpg", b"1"))))
    assert entry.held_out
    assert entry.rows == 1
    assert not entry.left_out


def test_names_that_are_not_utf8_are_read_and_shown(tmp_path: Path) -> None:
    path = write_members(tmp_path / "t.tar", ("caf\udce9/a.jpg", b"1"), ("caf\udce9/._a.jpg", b"2"))
    assert list(held(path).values()) == [b"1"]
    assert left_out(path) == r"1 hidden file or sidecar (caf\udce9/._a.jpg)"


def test_a_pointer_of_git_lfs_says_what_it_is(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    (tmp_path / "t.tar").write_bytes(pointer.ljust(600))
    with pytest.raises(ShardError, match="it is not a tar but a Git LFS pointer to one; run `git lfs pull`"):
        scan(str(tmp_path / "t.tar"))
    with pytest.raises(ImageError, match="a Git LFS pointer"):
        decode(pointer)


def test_headers_are_checked_whatever_way_tarfile_parses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12.3 of Ubuntu 24.04 calls no overridden `TarInfo.frombuf` any more."""
    parse = tarfile.TarInfo.fromtarfile.__func__
    monkeypatch.setattr(tarfile.TarInfo, "fromtarfile", classmethod(lambda _, tar: parse(tarfile.TarInfo, tar)))
    path = write_members(tmp_path / "a.tar", (f"{'long' * 40}.jpg", b"1"), ("b.jpg", b"2"))
    assert held(path) == {key_crc("long" * 40): b"1", key_crc("b"): b"2"}
    data = bytearray(path.read_bytes())
    entry = scan(str(path))
    data[entry.offsets[1] - 512] ^= 1
    path.write_bytes(data)
    with OpenShard(str(path), entry) as tar, pytest.raises(ShardError, match="row 1 is not the image found"):
        tar.read(1)
