"""`unic-cache shard` with masks, depth maps, lists and JSONs: what is packed, and what is refused."""

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.shard import run
from tests.conftest import picture
from unic_cache.config import ShardConfig
from unic_cache.errors import ConfigError, ImageError
from unic_cache.views.decode import decode
from unic_cache.views.dense_labels import decode_depth, decode_mask
from unic_cache.views.index import ShardEntry
from unic_cache.views.shards import OpenShard, describe, expand, scan

ON_ITS_SIDE = Path(__file__).parent / "views" / "on_its_side.jpg"


def mask_of(number: int, size: tuple[int, int] = (40, 32)) -> np.ndarray:
    """(H, W) uint8 of classes 0 to 3 that depends on the number, with some 255."""
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    mask = ((rows // 8 + columns // 8 + number) % 4).astype(np.uint8)
    mask[0, :number] = 255
    return mask


def save(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, content)
    else:
        (content if isinstance(content, Image.Image) else Image.fromarray(content)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine images in two folders, a mask and a depth map for each: laid out alike, and flat."""
    for number in range(9):
        place = f"{'ab'[number % 2]}/image {number}"
        save(tmp_path / "images" / f"{place}.png", picture(number, (32, 40)))
        save(tmp_path / "masks" / f"{place}.png", mask_of(number))
        save(tmp_path / "flat" / f"image {number}.png", mask_of(number))
        metres = mask_of(number).astype(np.float32) / 4
        if number % 2:
            save(tmp_path / "depths" / f"{place}.npy", metres)
        else:
            save(tmp_path / "depths" / f"{place}.png", (metres * 1000).astype(np.uint16))
    return tmp_path


def pack(photos: Path, out: str = "out", **more: Any) -> tuple[ShardEntry, ...]:
    named = {name: str(photos / more.pop(name)) for name in ("masks", "depths") if name in more}
    lists = tuple(str(photos / name) for name in more.pop("lists", ()))
    run(ShardConfig(str(photos / more.pop("images", "images")), str(photos / out), lists=lists, **named, **more))
    return describe(expand(f"{photos / out}/*.tar"))


def held(photos: Path, entries: Sequence[ShardEntry], out: str = "out") -> dict[int, dict[str, bytes | None]]:
    """{number of the image: its labels' bytes}."""
    numbers = {np.asarray(picture(number, (32, 40))).tobytes(): number for number in range(9)}
    found = {}
    for entry in entries:
        with OpenShard(f"{photos / out}/{entry.name}.tar", entry) as tar:
            for row in range(entry.rows):
                number = numbers[np.asarray(decode(tar.read(row))).tobytes()]
                kinds = ("mask.png", "depth.png", "depth.npy")
                found[number] = {kind: tar.read_label(row, kind) for kind in kinds}
    assert len(found) == 9
    return found


@pytest.mark.parametrize("masks", ["masks", "flat"])
def test_each_image_gets_its_own_mask_and_depth_map(photos: Path, masks: str) -> None:
    entries = pack(photos, masks=masks, depths="depths", per_shard=4, val_fraction=0.3)
    assert [entry.headers for entry in entries] == [None] * 3, "the index was not believed"
    assert entries == tuple(scan(f"{photos}/out/{entry.name}.tar") for entry in entries)
    assert [entry.held_out for entry in entries] == [False, False, True]
    for number, labels in held(photos, entries).items():
        mask, depth = labels["mask.png"], labels["depth.npy" if number % 2 else "depth.png"]
        assert mask is not None
        assert depth is not None
        assert labels["depth.png" if number % 2 else "depth.npy"] is None
        assert Image.open(io.BytesIO(mask)).mode == "L"
        assert np.array_equal(decode_mask(mask, (40, 32)), mask_of(number))
        metres = decode_depth(depth, "depth.npy" if number % 2 else "depth.png", (40, 32))
        assert np.allclose(metres, mask_of(number) / 4, atol=1e-6)
        (source,) = (photos / "depths").glob(f"*/image {number}.*")
        assert depth == source.read_bytes()


def test_packing_twice_gives_the_same_bytes(photos: Path) -> None:
    for out in ("one", "two"):
        pack(photos, out, masks="masks", depths="depths", per_shard=4)
    for path in sorted((photos / "one").iterdir()):
        assert path.read_bytes() == (photos / "two" / path.name).read_bytes()


def test_an_offset_moves_classes_and_ignores_those_below_zero(photos: Path) -> None:
    labels = held(photos, pack(photos, masks="masks", mask_offset=-1))
    for number, own in labels.items():
        mask = mask_of(number).astype(int)
        expected = np.where(mask == 255, 255, np.where(mask == 0, 255, mask - 1))
        assert np.array_equal(decode_mask(own["mask.png"] or b""), expected)
    pack(photos, "most", masks="masks", mask_offset=251)
    with pytest.raises(
        ImageError, match=r"none of the 9 .*image \d.png: the mask has the class 3, which --mask-offset 252"
    ):
        pack(photos, "over", masks="masks", mask_offset=252)
    with pytest.raises(ConfigError, match=r"--mask-offset changes the classes in masks: add --masks DIR"):
        pack(photos, mask_offset=-1)


def test_what_the_labels_hold_is_said(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(photos, masks="masks", depths="depths")
    said = capsys.readouterr().err
    share = sum(range(9)) / (9 * 40 * 32)
    assert f"masks: 4 classes, 0 to 3; {share:.1%} of the pixels are ignored" in said
    assert "depths: 0.25 to 63.75 m" in said


def test_depths_that_must_be_millimetres_are_refused(photos: Path) -> None:
    for path in (photos / "depths").rglob("*.npy"):
        save(path, np.load(path) * 10_000)
    with pytest.raises(ImageError, match=r"depths are \d,\d\d\d m on average: they look like millimetres; divide them"):
        pack(photos, depths="depths")


def test_masks_of_one_class_are_refused_with_the_likely_reason(photos: Path) -> None:
    for path in (photos / "masks").rglob("*.png"):
        save(path, np.where(np.asarray(Image.open(path)) > 1, 255, 0).astype(np.uint8))
    with pytest.raises(
        ImageError, match=r"all masks together have only the class 0 beside 255, which is ignored; .* 1 inst"
    ):
        pack(photos, masks="masks")
    assert not (photos / "out" / "index.json").exists()


def test_palette_masks_whose_indices_are_not_the_same_classes_are_refused(photos: Path) -> None:
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    for number, path in enumerate(sorted((photos / "masks").rglob("*.png"))):
        classes = Image.fromarray(mask_of(0))
        classes.putpalette(colours.ravel().tolist() + [number] * 756)  # the rest is not used
        save(path, classes)
    pack(photos, masks="masks")
    swapped = Image.fromarray(mask_of(0))
    swapped.putpalette(colours[[0, 1, 3, 2]].ravel().tolist())
    save(photos / "masks" / "b" / "image 5.png", swapped)
    with pytest.raises(
        ImageError, match=r"index 2 has one colour in some palette masks and another in others, so the ind"
    ):
        pack(photos, "two", masks="masks")


def test_an_image_without_a_mask_is_named(photos: Path) -> None:
    (photos / "masks" / "b" / "image 3.png").unlink()
    with pytest.raises(
        ConfigError, match=r"--masks .*masks: 1 of 9 images have no mask there, such as .*b/image 3.png; add"
    ):
        pack(photos, masks="masks")


def test_masks_of_other_names_are_said_to_be_so(photos: Path) -> None:
    for path in list((photos / "masks").rglob("*.png")):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    message = (
        r"no image has a mask there; that of .*a/image 0.png would be a/image 0 or image 0 with .png, but it has 9 "
        r".png files, such as a/image 0_mask.png"
    )
    with pytest.raises(ConfigError, match=message):
        pack(photos, masks="masks")
    (photos / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"it has 0 .png files"):
        pack(photos, masks="empty")
    with pytest.raises(ConfigError, match=r"--depths .*nowhere: no folder is there; check the path"):
        pack(photos, depths="nowhere")


def test_a_mask_of_two_images_and_an_image_as_mask_are_refused(photos: Path) -> None:
    save(photos / "images" / "b" / "image 0.png", picture(20, (32, 40)))
    with pytest.raises(
        ConfigError, match=r"image 0.png would be the mask of .*a/image 0.png and of .*b/image 0.png; lay"
    ):
        pack(photos, masks="flat")
    with pytest.raises(ConfigError, match=r"--masks: .*a/image 0.png is one of the images; keep masks in a folder of"):
        pack(photos, masks="images")
    shutil.copy(photos / "depths" / "b" / "image 1.npy", photos / "depths" / "a" / "image 0.npy")
    with pytest.raises(
        ConfigError, match=r"--depths: .*image 0.npy and image 0.png are of one name and so of one image"
    ):
        pack(photos, depths="depths")


def test_a_mask_that_does_not_fit_its_image_is_skipped_and_named(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(photos / "masks" / "a" / "image 4.png", mask_of(4)[:-1])
    save(photos / "masks" / "b" / "image 5.png", Image.new("RGB", (40, 32)))
    entries = pack(photos, masks="masks")
    assert sum(entry.rows for entry in entries) == 7
    said = capsys.readouterr().err
    assert "image 4.png: " in said
    assert "masks/a/image 4.png: the mask has 40 x 31 pixels but its image, upright, 40 x 32; make them" in said
    assert "masks/b/image 5.png: the mask is a PNG of mode RGB, not grey or palette" in said
    with pytest.raises(ImageError, match=r"masks/a/image 4.png: the mask has 40 x 31|mode RGB"):
        pack(photos, "strict", masks="masks", strict=True)


def test_a_mask_of_an_image_on_its_side_has_the_upright_size(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    shutil.copy(ON_ITS_SIDE, tmp_path / "images" / "x.jpg")
    width, height = decode(ON_ITS_SIDE.read_bytes()).size
    save(tmp_path / "masks" / "x.png", mask_of(1, (height, width)))
    with pytest.raises(ImageError, match=r"masks/x.png: the mask has .* its image, upright, .*: it lies on its side"):
        pack(tmp_path, masks="masks")
    save(tmp_path / "masks" / "x.png", mask_of(1, (width, height)))
    (entry,) = pack(tmp_path, masks="masks")
    assert entry.dense["mask.png"].has(0)


def test_a_list_that_pairs_files_needs_the_folder_of_one_kind(photos: Path) -> None:
    pairs = [f"{'ab'[n % 2]}/image{n}.png /x/{n}.png 518.8\n" for n in range(9)]
    (photos / "pairs.txt").write_text("".join(pairs))
    for n in range(9):
        (photos / "images" / "ab"[n % 2] / f"image {n}.png").rename(photos / "images" / "ab"[n % 2] / f"image{n}.png")
        save(photos / "any" / "x" / f"{n}.png", mask_of(n).astype(np.uint16) * 100)
    entries = pack(photos, lists=["pairs.txt"], depths="any")
    assert all(own["depth.png"] for own in held(photos, entries).values())
    assert set(entries[0].labels) == {-1}
    for given in ({}, {"masks": "masks", "depths": "any"}):
        with pytest.raises(
            ConfigError, match=r"--list names a file beside each image, such as /x/0.png: give the folder"
        ):
            pack(photos, "two", lists=["pairs.txt"], **given)
    (photos / "any" / "x" / "5.png").unlink()
    with pytest.raises(ConfigError, match=r"--depths: no file at .*any/x/5.png, which --list names for .*image5.png"):
        pack(photos, "three", lists=["pairs.txt"], depths="any")


def table(**changes: Any) -> dict[str, Any]:
    data = {
        "images": [{"id": n, "file_name": f"images/{'ab'[n % 2]}/image {n}.png"} for n in range(9)],
        "annotations": [{"id": 50 + n, "image_id": n, "category_id": 5 + n % 3} for n in reversed(range(8))],
        "categories": [{"id": 5 + n, "name": f"Genus species{9 - n}"} for n in range(4)],
    }
    return {**data, **changes}


def test_a_json_keeps_its_categories_numbers_and_names(photos: Path) -> None:
    (photos / "train.json").write_text(json.dumps(table()))
    (entry,) = pack(photos, images="train.json", masks="flat")
    assert sorted(entry.labels) == [-1, 5, 5, 5, 6, 6, 6, 7, 7]
    assert json.loads((photos / "out" / "classes.json").read_text())["8"] == "Genus species6", "also without an image"
    given = {str(number): f"Genus species{number}" for number in range(10)}
    (photos / "given").mkdir()
    (photos / "given" / "classes.json").write_text(json.dumps(given))
    (other,) = pack(photos, "given", images="train.json")
    assert dict(zip(other.keys, other.labels, strict=True)) == {
        key: label if label == -1 else 14 - label for key, label in zip(entry.keys, entry.labels, strict=True)
    }


def test_categories_without_names_of_their_own_are_numbers(photos: Path) -> None:
    for number, names in enumerate(({}, {"name": "any"})):
        categories = [{"id": 5 + n, **names} for n in range(3)]
        (photos / "train.json").write_text(json.dumps(table(categories=categories)))
        (entry,) = pack(photos, str(number), images="train.json")
        assert sorted(entry.labels) == [-1, 5, 5, 5, 6, 6, 6, 7, 7]
        assert not (photos / str(number) / "classes.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"annotations": [{"image_id": 1, "category_id": 5}, {"image_id": 1, "category_id": 6}]},
            "image 1 has the categories 5 and 6",
        ),
        ({"annotations": [{"image_id": 1, "category_id": 9}]}, "image 1 has the category 9, which is not listed"),
        ({"images": [{"id": 1, "file_name": f"images/a/image {n}.png"} for n in (0, 2)]}, "two images have the id 1"),
        ({"categories": [{"id": 5, "name": name} for name in "xy"]}, "two categories have the id 5; give each"),
        ({"annotations": [{"image_id": "1", "category_id": 5}]}, "no annotation is of a listed image: they name ids"),
        ({"images": [{"id": [1], "file_name": "images/a/image 0.png"}]}, "an image's id is neither a number nor a"),
        ({"annotations": None}, "no 'annotations' with image_id and category_id each"),
        ({"categories": [{"id": "5", "name": "x"}]}, "a category's id is not a whole number"),
        ({"categories": [{"id": -5, "name": "x"}], "annotations": []}, "category -5 is negative"),
        ({"images": [{"id": 1, "file_name": "gone.png"}]}, "no file at gone.png; paths are relative to the JSON"),
        ({"images": [{"id": n, "file_name": "images/a/image 0.png"} for n in range(2)]}, "image 0.png is listed twice"),
    ],
)
def test_other_jsons_are_refused(photos: Path, changes: dict[str, Any], message: str) -> None:
    (photos / "x.json").write_text(json.dumps(table(**changes)))
    with pytest.raises(ConfigError, match=message):
        pack(photos, images="x.json")
    (photos / "x.json").write_text("[1")
    with pytest.raises(ConfigError, match=r"x.json is not JSON"):
        pack(photos, images="x.json")
