"""Every command of docs/EVALUATION.md's table runs on a small made-up copy of its set's layout, as documented."""

import json
import pickle
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from scipy.io import savemat

import cli
from tests.conftest import picture
from unic_cache.views.dense_labels import decode_depth, decode_mask
from unic_cache.views.shards import OpenShard, describe, expand

TEXT = (Path(__file__).parent.parent / "docs" / "EVALUATION.md").read_text()
SNIPPETS = re.findall(r"#### (.+?)\n.*?```python\n(.*?)```", TEXT, re.DOTALL)
SIZE = (12, 10)  # of the images, width and height


def commands() -> dict[str, list[str]]:
    """The table's commands by set."""
    found: dict[str, list[str]] = {}
    for line in TEXT.splitlines():
        if line.startswith("|") and "`unic-cache shard" in line:
            name, _, command, *_ = (cell.strip() for cell in line.strip("|").split("|"))
            found.setdefault(name or list(found)[-1], []).append(command.strip("`"))
    return found


def photo(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number, SIZE[::-1]).save(path)


def text(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def label(path: Path, values: Any, dtype: Any = np.uint8, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, dtype))
    if palette:
        image.putpalette([(37 * n) % 256 for n in range(768)])
    image.save(path)


def mask(number: int, classes: int, ignored: int | None = None) -> np.ndarray:
    """(H, W) of classes 0 to classes - 1, all of them."""
    values = (np.arange(SIZE[0] * SIZE[1]).reshape(SIZE[::-1]) + number) % classes
    if ignored is not None:
        values[0, :3] = ignored
    return values


@dataclass(frozen=True)
class Packed:
    """What OUT must hold: images per class, or per scene None; classes' names; classes in masks; metres of depths."""

    labels: dict[int | None, int]
    names: list[str] | None = None
    masks: set[int] | None = None
    metres: float | None = None
    held_out: int = 0


def imagenet(root: Path) -> dict[str, Packed]:
    wnids = ["n01440764", "n01443537", "n01484850"]
    for n, wnid in enumerate(wnids * 2):
        photo(root / f"imagenet/train/{wnid}/{wnid}_{n}.JPEG")
        photo(root / f"imagenet/val/{wnid}/ILSVRC2012_val_{n:08d}.JPEG")
        photo(root / f"imagenet/val-flat/ILSVRC2012_val_{n:08d}.JPEG")
    text(root / "imagenet/val.txt", [f"ILSVRC2012_val_{n:08d}.JPEG {n % 3}" for n in range(6)])
    classes = Packed({0: 2, 1: 2, 2: 2}, wnids)
    return {"in1k-train": classes, "in1k-val": classes, "in1k-flat": Packed({0: 2, 1: 2, 2: 2})}


def table(root: Path) -> dict[str, Packed]:
    for n in range(3):
        photo(root / f"mine/{n}.jpg")
    text(root / "mine/labels.csv", ["path,label", "0.jpg,tench", "1.jpg,ant", "2.jpg,tench"])
    return {"mine-shards": Packed({0: 1, 1: 2}, ["ant", "tench"])}


def voc(root: Path) -> dict[str, Packed]:
    voc = root / "VOCdevkit/VOC2012"
    for n in range(9):
        photo(voc / f"JPEGImages/2007_{n:06d}.jpg")
    for n in range(7):  # few images have masks
        label(voc / f"SegmentationClass/2007_{n:06d}.png", mask(n, 21, 255), palette=True)
    text(voc / "ImageSets/Segmentation/train.txt", [f"2007_{n:06d}" for n in range(4)])
    text(voc / "ImageSets/Segmentation/val.txt", [f"2007_{n:06d}" for n in range(4, 7)])
    classes = {*range(21), 255}
    return {"voc-train": Packed({None: 4}, masks=classes), "voc-val": Packed({None: 3}, masks=classes)}


def ade(root: Path) -> dict[str, Packed]:
    data = root / "ADEChallengeData2016"
    for long, short, count in (("training", "train", 4), ("validation", "val", 2)):
        for n in range(1, count + 1):
            photo(data / f"images/{long}/ADE_{short}_{n:08d}.jpg")
            label(data / f"annotations/{long}/ADE_{short}_{n:08d}.png", mask(n, 151))  # 0 is unknown
    text(data / "sceneCategories.txt", ["ADE_train_00000001 airport_terminal"])
    found = {(n + i) % 151 for n in range(1, 5) for i in range(SIZE[0] * SIZE[1])}
    classes = {value - 1 if value else 255 for value in found}
    val = {(n + i) % 151 for n in range(1, 3) for i in range(SIZE[0] * SIZE[1])}
    return {
        "ade-train": Packed({None: 4}, masks=classes),
        "ade-val": Packed({None: 2}, masks={value - 1 if value else 255 for value in val}),
    }


def nyud(root: Path) -> dict[str, Packed]:
    for part, scenes, slash in (
        ("sync", ["kitchen_0028b", "office_0001a"], "/"),
        ("official_splits/test", ["bathroom"], ""),
    ):
        lines = []
        for scene in scenes:
            for n in range(45, 48):
                photo(root / f"nyu_depth_v2/{part}/{scene}/rgb_{n:05d}.jpg")
                label(
                    root / f"nyu_depth_v2/{part}/{scene}/sync_depth_{n:05d}.png", np.full(SIZE[::-1], 2750), np.uint16
                )
                if n < 47:  # the lists leave frames out
                    lines.append(f"{slash}{scene}/rgb_{n:05d}.jpg {slash}{scene}/sync_depth_{n:05d}.png 518.8579")
        text(root / f"train_test_inputs/nyudepthv2_{'test' if not slash else 'train'}_files_with_gt.txt", lines)
    return {"nyud-train": Packed({None: 4}, metres=2.75), "nyud-test": Packed({None: 2}, metres=2.75)}


def nyud_labelled(root: Path) -> dict[str, Packed]:
    """The .mat as h5py gives it: reversed axes."""
    images = np.stack([np.asarray(picture(n, SIZE[::-1])).transpose(2, 1, 0) for n in range(5)])
    file = {"images": images, "depths": np.full((5, *SIZE), 1.5, np.float32)}
    savemat(root / "splits.mat", {"trainNdxs": [[1], [3], [4]], "testNdxs": [[2], [5]]})
    h5py = SimpleNamespace(File=lambda path: Opened(file))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "h5py", h5py)
        run_snippet("NYUd, labelled")
    assert np.array_equal(Image.open(root / "nyud/images/0003.png"), picture(2, SIZE[::-1]))
    return {"nyud795": Packed({None: 3}, metres=1.5), "nyud654": Packed({None: 2}, metres=1.5)}


class Opened(dict[str, Any]):
    """An open HDF5 file, as far as the snippet needs it."""

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def cog(root: Path) -> dict[str, Packed]:
    levels = [{f"n0000{level}{n}" for n in range(2)} for level in range(1, 6)]
    split: dict[str, dict[str, Any]] = {}
    for wnid in sorted(set().union(*levels)):
        names = [f"/{wnid}/{wnid}_{n}.JPEG" for n in range(4)]
        for name in names:
            photo(root / f"imagenet21k{name}")
        split[wnid] = {"train": np.array(names[:3]), "test": np.array(names[3:])}
    photo(root / "imagenet21k/n09999999/n09999999_1.JPEG")  # of no level
    (root / "cog_levels_mapping_file.pkl").write_bytes(pickle.dumps(levels))
    (root / "cog_concepts_split_file.pkl").write_bytes(pickle.dumps(split))
    run_snippet("CoG")
    found = {}
    for number, concepts in enumerate(levels, 1):
        found[f"cog-l{number}-train"] = Packed({0: 3, 1: 3}, sorted(concepts))
        found[f"cog-l{number}-test"] = Packed({0: 1, 1: 1}, sorted(concepts))
    return found


def aircraft(root: Path) -> dict[str, Packed]:
    data = root / "fgvc-aircraft-2013b/data"
    for n in range(6):
        photo(data / f"images/{1025794 + n}.jpg")
    kinds = ["707-320", "Cessna 172", "DC-10"]
    text(data / "images_variant_trainval.txt", [f"{1025794 + n} {kinds[n % 3]}" for n in range(3)])
    text(data / "images_variant_test.txt", [f"{1025794 + n} {kinds[n % 3]}" for n in range(3, 6)])
    return {f"aircraft-{split}": Packed({0: 1, 1: 1, 2: 1}, kinds) for split in ("train", "test")}


def cars(root: Path) -> dict[str, Packed]:
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]
    (root / "stanford_cars/devkit").mkdir(parents=True)
    savemat(root / "stanford_cars/devkit/cars_meta.mat", {"class_names": np.array(names, dtype=object)[None]})
    kinds = [("bbox_x1", "u1"), ("class", "u1"), ("fname", object)]
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        for n in range(1, 4):
            photo(root / f"stanford_cars/cars_{split}/{n:05d}.jpg")
        cars = np.array([(30, n % 2 + 1, f"{n:05d}.jpg") for n in range(1, 4)], dtype=kinds)
        savemat(root / f"stanford_cars/{file}", {"annotations": cars[None]})
    run_snippet("Cars196")
    return {f"cars-{split}": Packed({0: 1, 1: 2}, names) for split in ("train", "test")}


def dtd(root: Path) -> dict[str, Packed]:
    for kind in ("banded", "zigzagged"):
        for n in range(4):
            photo(root / f"dtd/images/{kind}/{kind}_{n:04d}.jpg")
    for n, split in enumerate(("train", "val", "test")):
        text(root / f"dtd/labels/{split}1.txt", [f"{kind}/{kind}_{n:04d}.jpg" for kind in ("banded", "zigzagged")])
    return {
        f"dtd-{split}": Packed({0: count, 1: count}, ["banded", "zigzagged"])
        for split, count in (("train", 2), ("test", 1))
    }


def eurosat(root: Path) -> dict[str, Packed]:
    for kind in ("AnnualCrop", "Forest"):
        for n in range(10):
            photo(root / f"eurosat/2750/{kind}/{kind}_{n}.jpg", n + 10 * (kind == "Forest"))
    return {"eurosat-shards": Packed({0: 10, 1: 10}, ["AnnualCrop", "Forest"], held_out=6)}


def flowers(root: Path) -> dict[str, Packed]:
    for n in range(1, 13):
        photo(root / f"flowers-102/jpg/image_{n:05d}.jpg")
    savemat(root / "flowers-102/imagelabels.mat", {"labels": np.array([[1] * 4 + [2] * 4 + [3] * 4], np.uint8)})
    ids = {"trnid": [[1, 5, 9]], "valid": [[2, 6, 10]], "tstid": [[3, 4, 8, 12]]}
    savemat(root / "flowers-102/setid.mat", {name: np.array(values, np.uint16) for name, values in ids.items()})
    run_snippet("Flowers")
    return {"flowers-train": Packed({0: 2, 1: 2, 2: 2}), "flowers-test": Packed({0: 2, 1: 1, 2: 1})}


def pets(root: Path) -> dict[str, Packed]:
    lines = []
    for n, (breed, numbers) in enumerate(
        [("Abyssinian", "1 1 1"), ("american_bulldog", "2 2 1"), ("Bengal", "6 1 2")] * 4
    ):
        photo(root / f"oxford-iiit-pet/images/{breed}_{n}.jpg")
        lines.append(f"{breed}_{n} {numbers}")
    text(root / "oxford-iiit-pet/annotations/list.txt", ["#Image CLASS-ID SPECIES BREED ID", *lines])
    text(root / "oxford-iiit-pet/annotations/trainval.txt", lines[:6])
    text(root / "oxford-iiit-pet/annotations/test.txt", lines[6:])
    return {f"pets-{split}": Packed({1: 2, 2: 2, 6: 2}) for split in ("train", "test")}


def food(root: Path) -> dict[str, Packed]:
    kinds = ["apple_pie", "waffles"]
    for kind in kinds:
        for n in range(4):
            photo(root / f"food-101/images/{kind}/100{n}.jpg")
    for split, numbers in (("train", (0, 1, 2)), ("test", (3,))):
        text(root / f"food-101/meta/{split}.txt", [f"{kind}/100{n}" for kind in kinds for n in numbers])
    return {"food-train": Packed({0: 3, 1: 3}, kinds), "food-test": Packed({0: 1, 1: 1}, kinds)}


def sun(root: Path) -> dict[str, Packed]:
    places = ["a/abbey", "a/apse/indoor", "b/beach"]
    text(root / "SUN397/ClassName.txt", [f"/{place}" for place in places])
    for split, letters in (("Training", "xy"), ("Testing", "z")):
        for place in places:
            for letter in letters:
                photo(root / f"SUN397/{place}/sun_{letter}.jpg")
        lines = [f"/{place}/sun_{letter}.jpg" for place in places for letter in letters]
        text(root / f"Partitions/{split}_01.txt", lines)
    return {"sun-train": Packed({0: 2, 1: 2, 2: 2}, places), "sun-test": Packed({0: 1, 1: 1, 2: 1}, places)}


def inat(year: int, group: str) -> Callable[[Path], dict[str, Packed]]:
    def make(root: Path) -> dict[str, Packed]:
        names = [f"{group} species{n}" for n in (3, 1, 2)]  # not in the order of their numbers
        for split, count in (("train", 6), ("val", 3)):
            images = []
            for n in range(count):
                images.append(
                    {"id": 100 + n, "file_name": f"train_val{year}/{group}/{n % 3}/{split}{n}.jpg", "width": 800}
                )
                photo(root / f"inat{year}" / images[-1]["file_name"])
            marks = [{"id": n, "image_id": 100 + n, "category_id": n % 3} for n in reversed(range(count))]
            categories = [{"id": n, "name": name, "supercategory": group} for n, name in enumerate(names)]
            data = {"info": {}, "images": images, "licenses": [], "annotations": marks, "categories": categories}
            (root / f"inat{year}/{split}{year}.json").write_text(json.dumps(data))
        out = f"inat{year % 100}"
        return {f"{out}-train": Packed({0: 2, 1: 2, 2: 2}, names), f"{out}-val": Packed({0: 1, 1: 1, 2: 1}, names)}

    return make


LAYOUTS: dict[str, Callable[[Path], dict[str, Packed]]] = {
    "ImageNet-1K": imagenet,
    "CSV": table,
    "VOC 2012": voc,
    "ADE20K": ade,
    "NYUd, Eigen split": nyud,
    "NYUd, labelled": nyud_labelled,
    **{f"CoG L{level}": cog for level in range(1, 6)},
    "Aircraft": aircraft,
    "Cars196": cars,
    "DTD": dtd,
    "EuroSAT": eurosat,
    "Flowers": flowers,
    "Pets": pets,
    "Food-101": food,
    "SUN397": sun,
    "iNat-2018": inat(2018, "Aves"),
    "iNat-2019": inat(2019, "Birds"),
}


def run_snippet(name: str) -> None:
    """Run the Python lines that the document gives for a set, in the current folder."""
    (code,) = [code for title, code in SNIPPETS if title == name]
    exec(code, {})


@pytest.mark.parametrize(("name", "lines"), commands().items(), ids=commands())
def test_the_commands_of_a_set_pack_it_with_its_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, lines: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = LAYOUTS[name](tmp_path)
    for line in lines:
        words = shlex.split(line)[1:]
        result = CliRunner().invoke(cli.main, words)
        assert result.exit_code == 0, result.output
        check(Path(words[2]), expected[words[2]])


def check(out: Path, expected: Packed) -> None:
    entries = describe(expand(f"{out}/*.tar"))
    labels = Counter(None if found == -1 else found for entry in entries for found in entry.labels)
    assert labels == expected.labels
    assert sum(entry.rows for entry in entries if entry.held_out) == expected.held_out
    names = json.loads((out / "classes.json").read_text()) if (out / "classes.json").exists() else None
    assert names == (None if expected.names is None else {str(n): name for n, name in enumerate(expected.names)})
    masks, depths = set(), []
    for entry in entries:
        with OpenShard(f"{out}/{entry.name}.tar", entry) as tar:
            for row in range(entry.rows):
                found, depth = tar.read_label(row, "mask.png"), tar.read_label(row, "depth.png")
                assert (found is not None, depth is not None) == (
                    expected.masks is not None,
                    expected.metres is not None,
                )
                masks |= set(np.unique(decode_mask(found, SIZE)).tolist()) if found else set()
                depths += [decode_depth(depth, "depth.png", SIZE)] if depth else []
    assert masks == (expected.masks or set())
    assert all((depth == expected.metres).all() for depth in depths)


def test_every_layout_is_in_the_table() -> None:
    assert list(commands()) == list(LAYOUTS)
