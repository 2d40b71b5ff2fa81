"""`unic-cache shard`: folders and CSVs to shards, the same bytes each time, and what it refuses."""

import errno
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_iterator

from pipelines import shard
from pipelines.shard import run
from unic_cache.config import ShardConfig
from unic_cache.errors import ConfigError, ImageError, ShardError
from unic_cache.views.decode import decode
from unic_cache.views.index import Segment
from unic_cache.views.listing import list_images
from unic_cache.views.shards import OpenShard, describe, expand, scan

DEMO = Path(__file__).parent / "data" / "noto-emoji"


def save(path: Path, level: int = 0, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (6, 5), level if mode == "L" else (level, 0, 9)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for name in ("zebra", "ant"):
        for number in range(5):
            save(root / name / f"img {number}.png", 10 * number)
    save(root / "ant" / "deeper" / "grey.png", 200, "L")
    (root / "ant" / "notes.txt").write_text("no image")
    save(root / "ant" / ".hidden.png")
    return root


def config(images: Path, out: Path, per_shard: int = 4, **more: object) -> ShardConfig:
    return ShardConfig(str(images), str(out), per_shard=per_shard, **more)  # type: ignore[arg-type]


def samples(out: Path) -> dict[str, dict[str, bytes]]:
    """What WebDataset reads, in its order."""
    found = {}
    for path in sorted(out.glob("*.tar")):
        with path.open("rb") as file:
            members = ({**member, "__url__": path.name} for member in tar_file_iterator(file))
            found.update({sample["__key__"]: sample for sample in group_by_keys(members)})
    return found


def test_a_folder_of_classes_becomes_shards_that_webdataset_reads(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = run(config(photos, out))
    assert (summary.images, len(summary.entries), summary.classes, len(summary.bad)) == (11, 3, 2, 0)
    found = samples(out)
    assert sorted(found) == sorted(
        [f"{name}_img-{number}" for name in ("ant", "zebra") for number in range(5)] + ["ant_grey"]
    )
    assert {key: sample["cls"] for key, sample in found.items()} == {
        key: b"0" if key.startswith("ant") else b"1" for key in found
    }
    assert found["ant_img-3"]["png"] == (photos / "ant" / "img 3.png").read_bytes()
    assert np.asarray(Image.open(io.BytesIO(found["ant_grey"]["png"]))).tolist() == [[[200] * 3] * 6] * 5
    assert json.loads((out / "classes.json").read_text()) == {"0": "ant", "1": "zebra"}
    assert sorted(path.name for path in out.iterdir()) == [
        "000000.tar", "000001.tar", "000002.tar", "classes.json", "index.json",
    ]  # fmt: skip


def test_the_index_is_what_a_scan_finds(photos: Path, tmp_path: Path) -> None:
    run(config(photos, tmp_path / "out"))
    segment = Segment.from_json((tmp_path / "out" / "index.json").read_bytes(), "index.json")
    assert segment.shards == tuple(scan(path) for path in expand(f"{tmp_path}/out/*.tar"))
    assert [shard.rows for shard in segment.shards] == [4, 4, 3]


def test_two_runs_give_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    for out in ("one", "two"):
        run(config(photos, tmp_path / out))
    one = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert one == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    assert len(one) == 5


def test_another_seed_is_another_order_of_the_same_samples(photos: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        run(config(photos, tmp_path / str(seed), seed=seed))
    zero, one = samples(tmp_path / "0"), samples(tmp_path / "1")
    assert list(zero) != list(one)
    assert {key: sample["png"] for key, sample in zero.items()} == {key: sample["png"] for key, sample in one.items()}
    assert [key[0] for key in zero] != sorted(key[0] for key in zero)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "flat" / f"{number}.jpg")
    summary = run(config(tmp_path / "flat", tmp_path / "out"))
    assert (summary.images, summary.classes) == (3, 0)
    assert describe(expand(f"{tmp_path}/out/*.tar"))[0].to_json()["labels"] == [None, None, None]
    assert not (tmp_path / "out" / "classes.json").exists()


@pytest.mark.parametrize("header", ["path,label\n", ""])
def test_a_csv_keeps_integer_labels(tmp_path: Path, header: str) -> None:
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "b.png")
    (tmp_path / "in" / "list.csv").write_text(f"{header}a.png,907\n../b.png, 3\n")
    assert run(config(tmp_path / "in" / "list.csv", tmp_path / "out")).classes == 0
    assert {key: sample["cls"] for key, sample in samples(tmp_path / "out").items()} == {"a": b"907", "b": b"3"}


def test_a_csv_numbers_names_in_sorted_order(tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / f"{name}.png")
    (tmp_path / "list.csv").write_text('a.png,tench\nb.png,"ant, red"\nc.png,tench\n')
    listing = list_images(str(tmp_path / "list.csv"))
    assert listing.classes == ("ant, red", "tench")
    assert [(sample.key, sample.label) for sample in listing.samples] == [
        ("tench_a", 1), ("ant--red_b", 0), ("tench_c", 1),
    ]  # fmt: skip


def test_a_csv_of_paths_alone_has_no_labels(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("path\na.png\n")
    assert [sample.label for sample in list_images(str(tmp_path / "list.csv")).samples] == [None]


def test_keys_are_safe_unique_and_not_too_long(tmp_path: Path) -> None:
    for name in ("a b.png", "a.b.png", "a-b.jpg", "n0_7.png", "ünï.png", "x" * 200 + ".png", "UP.PNG"):
        save(tmp_path / "n0" / name)
    keys = [sample.key for sample in list_images(str(tmp_path)).samples]
    assert len(set(keys)) == len(keys) == 7
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,90}", key) for key in keys)
    assert {"n0_a-b", "n0_a-b-2", "n0_a-b-3", "n0_7", "n0_UP"} < set(keys)


def test_a_bad_image_is_reported_and_left_out(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "zebra" / "img 2.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    summary = run(config(photos, tmp_path / "out"))
    assert summary.images == 10
    assert len(summary.bad) == 1
    assert "header cannot be read" in summary.bad[str(photos / "zebra" / "img 2.png")]
    assert "zebra_img-2" not in samples(tmp_path / "out")


def test_strict_stops_at_a_bad_image_and_leaves_no_index(photos: Path, tmp_path: Path) -> None:
    (photos / "zebra" / "img 2.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"img 2.png: not a supported image .*leave --strict out"):
        run(config(photos, tmp_path / "out", strict=True))
    assert not (tmp_path / "out" / "index.json").exists()


def test_only_bad_images_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"x")
    with pytest.raises(
        ImageError, match=r"none of the 1 images in .* can be decoded; the first: not a supported image"
    ):
        run(config(tmp_path / "in", tmp_path / "out"))


def test_shards_are_never_overwritten(photos: Path, tmp_path: Path) -> None:
    run(config(photos, tmp_path / "out"))
    before = (tmp_path / "out" / "000000.tar").read_bytes()
    with pytest.raises(ConfigError, match=r"out already holds 000000.tar; choose another folder, or delete this one"):
        run(config(photos, tmp_path / "out", seed=5))
    assert (tmp_path / "out" / "000000.tar").read_bytes() == before


def test_a_killed_runs_hidden_file_is_no_shard_and_no_hindrance(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".tmp-000000.tar").write_bytes(b"half")
    run(config(photos, tmp_path / "out"))
    assert list((tmp_path / "out").glob(".tmp*")) == []


def test_missing_and_empty_inputs_say_so(tmp_path: Path) -> None:
    (tmp_path / "empty" / "class").mkdir(parents=True)
    (tmp_path / "file.txt").write_text("")
    save(tmp_path / "mixed" / "class" / "a.png")
    save(tmp_path / "mixed" / "loose.png")
    (tmp_path / "none.csv").write_text("path,label\n")
    (tmp_path / "gone.csv").write_text("path,label\nfile.txt,1\ngone.png,2\n")
    (tmp_path / "odd.csv").write_text("file.txt,1\nfile.txt\n")
    for source, message in [
        ("nowhere", "no folder, .csv or .json at .*nowhere; check the path"),
        ("file.txt", "file.txt is neither a folder nor a .csv of path,label"),
        ("empty", "no images in .*empty; an image's name ends in jpg"),
        ("mixed", "has class folders and images beside them, such as loose.png"),
        ("none.csv", "no images in .*none.csv"),
        ("gone.csv", "gone.csv, line 3: no file at gone.png; paths are relative to the CSV"),
        ("odd.csv", "odd.csv, line 2: expected path,label but found 'file.txt'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            run(config(tmp_path / source, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"file.txt is a file; choose a folder for the shards"):
        run(config(tmp_path / "mixed" / "class", tmp_path / "file.txt"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_demo_shards_are_whole_and_balanced(split: str) -> None:
    paths = expand(f"{DEMO}/{split}/*.tar")
    entries = describe(paths)
    assert entries == tuple(scan(path) for path in paths)
    counts = np.bincount([label for entry in entries for label in entry.labels])
    assert len(counts) == len(json.loads((DEMO / split / "classes.json").read_text())) == 9
    assert counts.min() > 0.9 * counts.max()
    with OpenShard(paths[0], entries[0]) as shard:
        assert decode(shard.read(0)).size == (64, 64)


def test_demo_splits_share_their_classes_and_no_image() -> None:
    keys = [
        {key for entry in describe(expand(f"{DEMO}/{split}/*.tar")) for key in entry.keys}
        for split in ("train", "test")
    ]
    assert not keys[0] & keys[1]
    assert (DEMO / "train" / "classes.json").read_bytes() == (DEMO / "test" / "classes.json").read_bytes()


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(9):
        Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(images / f"{number}.png")
    shard.run(ShardConfig(str(images), str(tmp_path / "whole"), per_shard=3))
    honest, calls = shard._write_tar, iter(range(10))

    def stopped(*arguments: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return honest(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shard, "_write_tar", stopped)
        with pytest.raises(KeyboardInterrupt):
            shard.run(ShardConfig(str(images), str(tmp_path / "out"), per_shard=3))
    with pytest.raises(ConfigError, match="already holds"):
        shard.run(ShardConfig(str(images), str(tmp_path / "out"), per_shard=4))
    shard.run(ShardConfig(str(images), str(tmp_path / "out"), per_shard=3))
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "out")]
    assert files[0] == files[1]


@pytest.mark.parametrize("where", ["s3://bucket/x", "file:///tmp/x"])
def test_a_url_is_refused_as_a_place_for_shards(tmp_path: Path, where: str) -> None:
    with pytest.raises(ConfigError, match="packs local files into a local folder"):
        shard.run(ShardConfig(str(tmp_path), where))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_stopped_run_left_is_cleared_by_the_same_command_and_never_data(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken = photos / "zebra" / "img 0.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"junk")
    with pytest.raises(ImageError):
        run(config(photos, out, per_shard=1, strict=True))
    assert len(names(out)) > 2
    with pytest.raises(ShardError, match="an unfinished `shard`"):
        describe(expand(f"{out}/*.tar"))
    (out / ".tmp-000009.tar").write_bytes(b"half")
    (out / ".tmp-0-0123456789abcdef").write_bytes(b"half")
    (out / "other-000000.tar").write_bytes(b"of somebody else")
    for name in ("ant/img 1.png", "ant/img 2.png", "ant/img 3.png", "zebra/img 3.png", "zebra/img 4.png"):
        (photos / name).unlink()
    broken.write_bytes(whole)
    with pytest.raises(ConfigError, match=r"already holds .*A `shard` with other settings was stopped there"):
        run(config(photos, out, per_shard=2, strict=True))
    assert len(run(config(photos, out, per_shard=1, strict=True)).entries) == 6
    left = [f"{number:06d}.tar" for number in range(6)]
    assert names(out) == [*left, "classes.json", "index.json", "other-000000.tar"]


def test_settings_that_an_older_release_left_are_the_same_command(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    settings = config(photos, out).to_json()
    del settings["val_fraction"]
    (out / ".unfinished").write_text(json.dumps(settings, sort_keys=True))
    (out / "000007.tar").write_bytes(b"old")
    run(config(photos, out))
    assert "000007.tar" not in names(out)


def test_two_runs_do_not_pack_into_one_folder_at_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = shard._write_tar

    def second(*arguments: Any) -> Any:
        with pytest.raises(ConfigError, match=r"out: .* is writing there"):
            run(config(photos, tmp_path / "out"))
        return honest(*arguments)

    monkeypatch.setattr(shard, "_write_tar", second)
    assert run(config(photos, tmp_path / "out")).images == 11


def test_a_run_that_fails_before_its_first_tar_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"x")
    with pytest.raises(ImageError):
        run(config(tmp_path / "in", tmp_path / "out"))
    assert names(tmp_path / "out") == []


def test_images_and_shards_never_lie_within_each_other(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(photos)
    for images, out, message in [
        (photos, photos / "out", "OUT, .*out, is inside the folder of images"),
        (photos, tmp_path / "link" / "out", "is inside the folder of images"),
        (photos / "ant", photos, "contains the folder of images"),
        (photos, tmp_path / "link", "is the folder of images"),
    ]:
        with pytest.raises(ConfigError, match=message):
            run(config(images, out))
    assert names(photos) == ["ant", "zebra"]


def test_a_class_that_loses_all_its_images_is_an_error_that_names_it(photos: Path, tmp_path: Path) -> None:
    for path in (photos / "zebra").iterdir():
        path.write_bytes(b"\xff\xd8\xff no more")
    message = r"none of the 5 images of class 'zebra' can be decoded; the first: .*zebra/img 0.png: the image's header"
    with pytest.raises(ImageError, match=message):
        run(config(photos, tmp_path / "out"))
    assert "index.json" not in names(tmp_path / "out")


def test_every_file_is_counted_once(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "zebra" / "img 0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (photos / "zebra" / "gone.jpg").symlink_to(tmp_path / "nothing")
    summary = run(config(photos, tmp_path / "out"))
    files = sum(1 for path in photos.rglob("*") if not path.is_dir())
    assert summary.images + len(summary.bad) + sum(one.count for one in summary.left_out) == files
    assert str(summary) == f"Wrote 10 images to 3 shards in {tmp_path / 'out'}, skipped 2, left out 2 other files"
    left_out = "left out: 1 hidden file or sidecar (ant/.hidden.png), 1 file that is not an image (ant/notes.txt)"
    assert left_out in " ".join(capsys.readouterr().err.split())


def test_a_second_set_takes_the_numbers_of_the_first(photos: Path, tmp_path: Path) -> None:
    run(config(photos, tmp_path / "train"))
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "classes.json").write_bytes((tmp_path / "train" / "classes.json").read_bytes())
    save(tmp_path / "more" / "zebra" / "1.png")
    summary = run(config(tmp_path / "more", tmp_path / "val", prefix="val-"))
    assert (summary.images, summary.classes) == (1, 2)
    assert samples(tmp_path / "val")["zebra_1"]["cls"] == b"1"
    assert (tmp_path / "val" / "classes.json").read_bytes() == (tmp_path / "train" / "classes.json").read_bytes()
    save(tmp_path / "more" / "yak" / "1.png")
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "classes.json").write_bytes((tmp_path / "train" / "classes.json").read_bytes())
    with pytest.raises(ConfigError, match=r"more/yak: classes.json in OUT names 2 classes but not this one"):
        run(config(tmp_path / "more", tmp_path / "third"))
    (tmp_path / "third" / "classes.json").write_text('["ant"]')
    with pytest.raises(ConfigError, match=r"third/classes.json is not a list of classes such as"):
        run(config(tmp_path / "more", tmp_path / "third"))


def test_a_share_of_each_class_goes_to_tars_that_say_so(photos: Path, tmp_path: Path) -> None:
    for number in range(5):
        save(photos / "zebra" / f"img {number}.png", 10 * number + 5)
    whole = run(config(photos, tmp_path / "whole"))
    summary = run(config(photos, tmp_path / "out", val_fraction=0.3))
    assert (summary.images, summary.held_out, summary.held_shards) == (whole.images, 4, ("val-000000.tar",))
    assert str(summary).endswith("skipped 0, left out 2 other files; held out 4, in val-000000.tar")
    paths = expand(f"{tmp_path}/out/*.tar")
    entries = describe(paths)
    assert [entry.held_out for entry in entries] == [False, False, True]
    assert sorted(entries[2].labels) == [0, 0, 1, 1]
    assert entries == tuple(scan(path) for path in paths)
    assert samples(tmp_path / "out").keys() == samples(tmp_path / "whole").keys()
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "renamed.tar").write_bytes(Path(paths[2]).read_bytes())
    assert describe([f"{tmp_path}/copied/renamed.tar"])[0].held_out
    run(config(photos, tmp_path / "again", val_fraction=0.3))
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()
    }


def test_bad_images_are_not_held_out_in_the_place_of_good_ones(tmp_path: Path) -> None:
    for number in range(8):
        save(tmp_path / "in" / "a" / f"{number}.png", 9 * number)
        if number < 6:
            (tmp_path / "in" / "a" / f"{number}.png").write_bytes(b"junk %d" % number)
    summary = run(config(tmp_path / "in", tmp_path / "out", val_fraction=0.1))
    assert (summary.images, len(summary.bad), summary.held_out) == (2, 6, 1)


def test_a_share_that_cannot_be_held_out_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / "in" / name / "1.png", ord(name))
    with pytest.raises(ConfigError, match="no class has two images"):
        run(config(tmp_path / "in", tmp_path / "out", val_fraction=0.5))
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"val-fraction .* is out of bounds"):
            config(tmp_path, tmp_path / "out", val_fraction=share)


def test_an_error_that_is_not_of_the_file_ends_the_run(photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Too many open files say nothing of an image: it is not left out for them."""
    honest = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.is_relative_to(photos):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return honest(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(OSError, match="Too many open files"):
        run(config(photos, tmp_path / "out"))


@pytest.mark.parametrize("held", ["index", "checkpoint.safetensors"])
def test_the_folder_of_a_cache_or_of_a_run_is_refused(photos: Path, tmp_path: Path, held: str) -> None:
    (tmp_path / "out" / held).mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"out holds {held}: it is a cache's folder, or a run's"):
        run(config(photos, tmp_path / "out"))
