"""Lists of a split: each way of writing one is read as meant, and what can be meant in two ways is refused."""

from pathlib import Path

import pytest

from unic_cache.errors import ConfigError
from unic_cache.views.listing import Listing, list_images

TREE = (
    "a/abbey/sun_1.jpg",
    "a/abbey/sun_2.jpg",
    "a/apse/indoor/sun_3.jpg",
    "b/sun_3.jpg",
    "b/two words.jpg",
    "b/x.y.png",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in TREE:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"any")
    for name in ("a/abbey/depth_1.png", "b/depth.npy"):
        (tmp_path / "in" / name).write_bytes(b"no image")
    return tmp_path / "in"


def read(root: Path, *texts: str, numbered: dict[int, str] | None = None) -> Listing:
    files = []
    for number, text in enumerate(texts):
        files.append(str(root.parent / f"list{number}.txt"))
        Path(files[-1]).write_text(text)
    return list_images(str(root), numbered, files)


def found(listing: Listing, root: Path) -> list[tuple[str, int | None]]:
    return [(str(sample.path.relative_to(root)), sample.label) for sample in listing.samples]


@pytest.mark.parametrize(
    "text",
    [
        "/a/abbey/sun_1.jpg\n/a/apse/indoor/sun_3.jpg\n/b/two words.jpg\n",  # SUN397
        "a/abbey/sun_1\na/apse/indoor/sun_3\nb/two words",  # Food-101
        "sun_1\n\n  indoor/sun_3.jpg\r\ntwo words\n",
        "# a comment\n./a/abbey/sun_1.jpg\n\nindoor/sun_3\n two words.jpg \n",
    ],
)
def test_names_are_found_with_and_without_folders_and_extension(root: Path, text: str) -> None:
    listing = read(root, text)
    assert found(listing, root) == [("a/abbey/sun_1.jpg", 0), ("a/apse/indoor/sun_3.jpg", 1), ("b/two words.jpg", 2)]
    assert listing.names == {0: "a/abbey", 1: "a/apse/indoor", 2: "b"}
    assert listing.remarks == ("classes are whole folders, such as 'a/abbey'",)
    assert [sample.key for sample in listing.samples] == ["a-abbey_sun_1", "a-apse-indoor_sun_3", "b_two-words"]


def test_a_running_number_is_no_class(tmp_path: Path) -> None:
    """As in ILSVRC's own lists of images, or in a column of ids."""
    names = [f"{number:02d}.jpg" for number in range(12)]
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).write_bytes(b"any")
    running = "".join(f"{name[:-4]} {number}\n" for number, name in enumerate(names, 1))
    table = "path,label\n" + "".join(f"{name},{number + 1000}\n" for number, name in enumerate(names))
    (tmp_path / "in/labels.csv").write_text(table)
    for given in (lambda: read(tmp_path / "in", running), lambda: list_images(str(tmp_path / "in/labels.csv"))):
        with pytest.raises(ConfigError, match=r", line \d: the 12 images have as many numbers, .* a running number or"):
            given()
    classes = "".join(f"{name[:-4]} {number % 11}\n" for number, name in enumerate(names))
    assert [label for _, label in found(read(tmp_path / "in", classes), tmp_path / "in")] == [*range(11), 0]


def test_an_image_whose_name_looks_like_a_comment_is_kept(root: Path) -> None:
    (root / "b" / "#1.png").write_bytes(b"any")
    assert found(read(root, "# a comment\n#1.png\n"), root) == [("b/#1.png", 0)]


def test_several_lists_are_one_split(root: Path) -> None:
    assert found(read(root, "sun_1\n", "abbey/sun_2\n"), root) == [("a/abbey/sun_1.jpg", 0), ("a/abbey/sun_2.jpg", 0)]


@pytest.mark.parametrize(
    ("text", "labels", "names"),
    [
        ("sun_1 65\nsun_2  9\n", [65, 9], {}),  # ImageNet's val.txt
        ("sun_1.jpg\tsea bird\ntwo words.jpg\tAnt\n", [1, 0], {0: "Ant", 1: "sea bird"}),
        ("sun_1 Cessna 172\nsun_2 707-320\n", [1, 0], {0: "707-320", 1: "Cessna 172"}),  # Aircraft
        ("sun_1 3 1 1\nsun_2 3 1 1\nx.y 5 2 1", [3, 3, 5], {}),  # Pets: class, species, breed
    ],
)
def test_classes_behind_the_names_are_numbers_or_names(
    root: Path, text: str, labels: list[int], names: dict[int, str]
) -> None:
    listing = read(root, text)
    assert [sample.label for sample in listing.samples] == labels
    assert listing.names == names


def test_given_classes_number_those_of_lists_and_of_folders(root: Path) -> None:
    given = {0: "b", 4: "a/abbey"}
    assert found(read(root, "sun_1\ntwo words\n", numbered=given), root) == [
        ("a/abbey/sun_1.jpg", 4),
        ("b/two words.jpg", 0),
    ]
    assert found(read(root, "sun_1 b\n", numbered=given), root) == [("a/abbey/sun_1.jpg", 0)]
    with pytest.raises(ConfigError, match=r"a/apse/indoor: classes.json in OUT names 2 classes but not this one"):
        read(root, "indoor/sun_3\n", numbered=given)


def test_a_file_beside_the_name_is_kept_for_masks_and_depths(root: Path) -> None:
    listing = read(root, "/a/abbey/sun_1.jpg /a/abbey/depth_1.png 518.8579\n/b/sun_3.jpg b/depth.npy 1\n")
    assert listing.beside == ("/a/abbey/depth_1.png", "b/depth.npy")
    assert found(listing, root) == [("a/abbey/sun_1.jpg", None), ("b/sun_3.jpg", None)], "scenes are no classes"
    assert [sample.key for sample in listing.samples] == ["a-abbey_sun_1", "b_sun_3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sun_1\nsun_3\n", r"list0.txt, line 2: 'sun_3' may be a/apse/indoor/sun_3.jpg and b/sun_3.jpg; write more of"),
        ("sun_1\n\nsun_9\n", r"list0.txt, line 3: no image 'sun_9' in .*in\. Names are relative to IMAGES"),
        ("c/sun_1.jpg\n", r"line 1: no image 'c/sun_1.jpg' in .*; there is one at a/abbey/sun_1.jpg"),
        ("../in/b/x.y\n", r"line 1: no image '../in/b/x.y'"),
        ("sun_1\nabbey/sun_1.jpg\n", r"line 2: .*sun_1.jpg is already in .*list0.txt, line 1; keep one line per image"),
        ("sun_1\nsun_2 5\n", r"line 2: this line is a name and a class, but .*line 1 is a name alone; write all lines"),
        ("sun_1 ant\nsun_2 5\n", r"line 1: the label 'ant' is a name, but '5' on line 2 is a number"),
        ("sun_1 1\nsun_2 -1\n", r"line 2: -1 is not a class. In VOC's lists of one class, 1 and -1 say whether"),
        ("sun_1 3 10 20\nsun_2 3 10 21\n", r"line 2: '3 10 21' is not one class, as '3 10 20' in .*line 1 shows; keep"),
        ("sun_1 3 10 20\nsun_2 4 10 21\n", r"line 1: '3 10 20' is not one class; keep only the class"),
        ("sun_1 3 1\nsun_2 3\n", r"line 2: '3' is not one class, as '3 1' in .* shows"),
        ("sun_1 2.5\n", r"line 1: the label '2.5' is not a class number"),
        ("\n# nothing\n", r"list0.txt: the list is empty"),
        ("", r"list0.txt: the list is empty"),
    ],
)
def test_what_is_not_clear_is_refused_with_its_line(root: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(root, text)


def test_a_line_that_is_one_image_and_begins_with_another_is_refused(root: Path) -> None:
    (root / "b" / "two").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(
        ConfigError, match=r"line 1: 'b/two words.jpg' is an image, and so is 'b/two', with more behind"
    ):
        read(root, "b/two words.jpg\n")


def test_what_is_no_list_and_lists_of_what_is_no_folder_are_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"--list nowhere.txt cannot be read: No such file"):
        list_images(str(root), None, ["nowhere.txt"])
    (root.parent / "l.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ConfigError, match=r"l.txt is not a list in UTF-8"):
        list_images(str(root), None, [str(root.parent / "l.txt")])
    (root.parent / "x.csv").write_text("in/b/x.y.png\n")
    with pytest.raises(ConfigError, match=r"x.csv is not a folder, but --list names images in a folder"):
        list_images(str(root.parent / "x.csv"), None, ["l.txt"])


def test_a_name_with_a_path_costs_no_walk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unic_cache.views.image_names.images_below", lambda *_: pytest.fail("walked"))
    assert len(read(root, "a/abbey/sun_1.jpg\n/b/x.y.png\n").samples) == 2
