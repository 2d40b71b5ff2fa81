"""The images that `shard` finds in folders and CSVs, the files it leaves out, and the labels it refuses."""

import os
import time
from pathlib import Path

import pytest

from tests.conftest import picture
from unic_cache.errors import ConfigError
from unic_cache.views.left_out import listed
from unic_cache.views.listing import Sample, _with_keys, list_images
from unic_cache.views.split import held_out


def save(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"") if number < 0 else picture(number).save(path, "JPEG")
    return path


def names(root: Path) -> list[str]:
    return [str(sample.path.relative_to(root)) for sample in list_images(str(root)).samples]


def test_images_are_found_by_what_they_are_and_the_rest_is_counted(tmp_path: Path) -> None:
    for name in ("a/1.jfif", "a/2.jpe", "a/3", "a/4.jpg_large", "b/5.JPG"):
        save(tmp_path / name)
    for name in ("a/notes.txt", "a/README", "b/old.zip", "list.json"):
        (tmp_path / name).write_bytes(b"PK or text")
    for name in (
        "a/.6.jpg", "a/.ipynb_checkpoints/1-checkpoint.jpg", "b/@eaDir/5.JPG/thumb.jpg", "__MACOSX/._1.jpg",
        ".git/x.jpg", "b/Thumbs.db",
    ):  # fmt: skip
        save(tmp_path / name)
    assert names(tmp_path) == ["a/1.jfif", "a/2.jpe", "a/3", "a/4.jpg_large", "b/5.JPG"]
    listing = list_images(str(tmp_path))
    assert listing.classes == ("a", "b")
    assert listed(listing.left_out) == (
        "6 hidden files and sidecars (.git/, ...), 3 files that are not images (list.json, ...), 1 document (a/README)"
    )


def test_a_class_without_image_is_refused_unless_its_number_is_given(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.jpg")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.ppm").write_bytes(b"P6 1 1 255 xyz")
    message = r"/b: no image in this class folder \(1 file that is not an image \(b/x.ppm\)\)"
    with pytest.raises(ConfigError, match=message):
        list_images(str(tmp_path))
    listing = list_images(str(tmp_path), {0: "b", 3: "a"})
    assert [sample.label for sample in listing.samples] == [3]
    assert listing.remarks == ("the 2 classes are numbered as in classes.json in OUT; 1 of them have no image here",)
    with pytest.raises(ConfigError, match=r"/a: classes.json in OUT names 1 classes but not this one"):
        list_images(str(tmp_path), {0: "b"})


def test_links_are_followed_out_of_the_folder_and_counted_within(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "deep" / "1.jpg")
    root = tmp_path / "images"
    save(root / "a" / "2.jpg")
    save(root / "b" / "3.jpg")
    (root / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "again").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "loop").symlink_to(root / "a")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "above").symlink_to(tmp_path)
    (root / "a" / "sibling").symlink_to(root / "b")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    (root / "b" / "file.jpg").symlink_to(tmp_path / "elsewhere" / "deep" / "1.jpg")
    (root / "b" / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    assert names(root) == ["a/2.jpg", "a/again/deep/1.jpg", "b/3.jpg", "b/file.jpg", "b/gone.jpg"]
    assert listed(list_images(str(root)).left_out).startswith("6 links to folders already taken (a/above, ...)")
    (root / "c").symlink_to(root / "b")
    with pytest.raises(ConfigError, match="b and c are the same folder; remove the link"):
        list_images(str(root))


def test_a_pipe_does_not_stop_the_listing_and_a_locked_folder_does(tmp_path: Path, monkeypatch) -> None:
    save(tmp_path / "a" / "1.jpg")
    os.mkfifo(tmp_path / "a" / "2.jpg")
    assert names(tmp_path) == ["a/1.jpg"]
    honest = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return honest(path)

    save(tmp_path / "a" / "locked" / "3.jpg")
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ConfigError, match=r"a/locked cannot be read \(Permission denied\)"):
        list_images(str(tmp_path))


def test_a_class_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.jpg")
    save(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")) / "1.jpg")
    with pytest.raises(ConfigError, match=r"/caf\\udce9: this class name is not UTF-8; rename the folder"):
        list_images(str(tmp_path))


def test_class_folders_that_are_numbers_say_that_labels_differ(tmp_path: Path) -> None:
    for name in ("1", "2", "10"):
        save(tmp_path / name / "x.jpg")
    assert list_images(str(tmp_path)).remarks == ("class folders are numbered in order of their names: '1' is label 0",)


@pytest.fixture
def table(tmp_path: Path):
    for number in range(4):
        save(tmp_path / f"{number}.jpg", number)

    def write(text: str | bytes) -> str:
        path = tmp_path / "list.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("0.jpg,2.0\n1.jpg,+3\n2.jpg,-1\n3.jpg,\n", [2, 3, None, None]),
        ("\ufeffpath,label\r\n0.jpg,7\r\n1.jpg,007\r\n", [7, 7]),
        ("Label,Image\n5,0.jpg\n6,1.jpg\n", [5, 6]),
        ('filename\n"0.jpg"\n\n./1.jpg\n', [None, None]),
        ("0.jpg,b\n1.jpg,-1\n2.jpg,a\n", [1, None, 0]),
        ("0.jpg,1000000000\n1.jpg,4\n", [1_000_000_000, 4]),
    ],
)
def test_labels_mean_what_they_say(table, text: str, labels: list[int | None]) -> None:
    assert [sample.label for sample in list_images(table(text)).samples] == labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.jpg,1\n1.jpg,1.5\n", "line 2: the label '1.5' is not a class number"),
        ("0.jpg,1\n1.jpg,-2\n", "line 2: the label '-2' is not a class number"),
        ("0.jpg,1\n1.jpg,cat\n", "line 2: the label 'cat' is a name, but '1' on line 1 is a number; write all"),
        ("0.jpg,1\n./0.jpg,2\n", r"line 2: ./0.jpg is already on line 1; keep one row per image"),
        ("1,0.jpg\n", r"line 1: no file at 1, but there is one at 0.jpg: put the path first"),
        ('path,label\n0.jpg,"a\nb"\n9.jpg,c\n', r"line 4: no file at 9.jpg; paths are relative to the CSV"),
        ("0.jpg;1\n", r"line 1: no file at 0.jpg;1"),
        (",1\n", "line 1: expected path,label but found ',1'"),
        (b"0.jpg,caf\xe9\n", "is not a CSV in UTF-8"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_line(table, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        list_images(table(text))


def test_gaps_missing_labels_and_names_alike_are_said(table) -> None:
    assert list_images(table("0.jpg,0\n1.jpg,5\n2.jpg,\n")).remarks == (
        "1 of 3 images have no label (line 3)",
        "labels go up to 5, but 4 of the numbers below have no image, such as 1",
    )
    assert list_images(table("0.jpg,Cat\n1.jpg,cat\n")).remarks == (
        "1 class names differ only in upper and lower case, such as 'cat'",
    )


def test_given_classes_number_a_csvs_names_and_check_its_numbers(table) -> None:
    given = {0: "ant", 1: "bee", 2: "cat"}
    listing = list_images(table("0.jpg,cat\n1.jpg,1\n2.jpg,\n"), given)
    assert ([sample.label for sample in listing.samples], listing.names) == ([2, 1, None], given)
    for label in ("dog", "3"):
        with pytest.raises(
            ConfigError, match=f"line 1: the label '{label}' is not among the 3 classes in classes.json"
        ):
            list_images(table(f"0.jpg,{label}\n"), given)


def test_numbers_are_not_read_as_names_in_one_row_and_as_numbers_in_another(table) -> None:
    given = dict(enumerate(("1", "2", "3")))
    assert [sample.label for sample in list_images(table("0.jpg,1\n1.jpg,3\n"), given).samples] == [0, 2]
    with pytest.raises(ConfigError, match=r"line 2: the label '1' is the name of a class in .*, but '0' on line 1 is"):
        list_images(table("0.jpg,0\n1.jpg,1\n"), given)


def test_keys_that_collide_are_the_same_as_one_by_one_and_take_linear_time() -> None:
    paths = [Path(f"/d/{name}.png") for name in ("a", "a-2", "a", "a", "a-2", "a-3", "a", "b", "a.x", "a-2-2")]
    keys = [sample.key for sample in _with_keys(("", path, None) for path in paths)]
    taken: list[str] = []
    for path in paths:
        base = path.stem.replace(".", "-")
        taken.append(next(key for key in [base, *(f"{base}-{n}" for n in range(2, 99))] if key not in taken))
    assert keys == taken
    began = time.process_time()
    _with_keys(("", Path(f"/d/{n}/rgb.png"), None) for n in range(30_000))
    assert time.process_time() - began < 10, "quadratic time would take minutes"


def test_a_share_of_each_class_is_held_out_by_seed_and_twins_together(tmp_path: Path) -> None:
    samples = [Sample(f"{n}", save(tmp_path / f"{n}.jpg", n), n % 3) for n in range(30)]
    samples += [Sample("alone", save(tmp_path / "alone.jpg", 77), 9)]
    samples += [Sample(f"twin{n}", save(tmp_path / f"twin{n}.jpg", n), n % 3) for n in range(30)]

    def split(count: int, share: float, seed: int = 0) -> frozenset[int]:
        return held_out(samples[:count], share, seed, lambda places: [True] * len(places))

    held = split(61, 0.2)
    assert [sum(samples[at].label == label for at in held) for label in (0, 1, 2, 9)] == [4, 4, 4, 0]
    assert {samples[at].key for at in held if at < 30} == {
        samples[at].key.removeprefix("twin") for at in held if at > 30
    }
    assert held == split(61, 0.2) != split(61, 0.2, 1)
    assert len(split(6, 0.01)) == len(split(6, 0.99)) == 3
