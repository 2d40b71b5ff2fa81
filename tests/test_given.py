"""What every stage says of the tars that it is given: what is left out, what is empty, what a label means."""

import tarfile
from pathlib import Path

import pytest

from pipelines import distill, evaluate, extract
from pipelines.command.tars import given_shards
from pipelines.shard import run as pack
from tests.conftest import VIT, picture, png, write_members, write_tar
from unic_cache.cache import open_cache
from unic_cache.config import DistillConfig, ShardConfig
from unic_cache.errors import ConfigError, EmptyShardError, ShardError
from unic_cache.views.classes import check_classes, classes_beside


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture
def odd(tmp_path: Path) -> str:
    """Three tars: one with guests, one whole, one empty."""
    image = png(picture(1))
    write_members(tmp_path / "0.tar", ("a/._0.jpg", b"x"), ("a/0.png", image), ("a/1.json", b"{}"))
    write_members(tmp_path / "1.tar", ("b/0.png", image), ("b/._0.png", b"x"))
    write_members(tmp_path / "2.tar")
    return f"{tmp_path}/*.tar"


def test_one_line_says_what_is_left_out_and_one_what_is_empty(odd: str, capsys: pytest.CaptureFixture[str]) -> None:
    paths, entries = given_shards(odd, False)
    assert [Path(path).name for path in paths] == ["0.tar", "1.tar"]
    assert [entry.rows for entry in entries] == [1, 1]
    assert said(capsys) == (
        "left out of 2 tars: 2 hidden files and sidecars (a/._0.jpg, ...), 1 sample without image (a/1: only json) "
        f"left out, as they hold no image: {odd.replace('*', '2')}"
    )


def test_strict_stops_at_a_sample_without_image_and_not_at_a_sidecar(odd: str) -> None:
    with pytest.raises(
        ShardError, match=r"0\.tar: 1 sample without image \(a/1: only json\); repair the tar, or leave"
    ):
        given_shards(odd, False, strict=True)
    assert len(given_shards(odd.replace("*", "1"), False, strict=True)[0]) == 1


def test_a_set_of_empty_tars_is_told_from_one_without_images(tmp_path: Path) -> None:
    for name in ("0", "1"):
        write_members(tmp_path / f"{name}.tar")
    with pytest.raises(EmptyShardError, match=r"all 2 tars are empty: .*/0.tar, .*/1.tar"):
        given_shards(f"{tmp_path}/*.tar", False)
    write_members(tmp_path / "2.tar", ("a.json", b"{}"))
    with pytest.raises(ShardError, match=r"none of 3 tars holds an image; the first: .*2.tar, byte 0: no images"):
        given_shards(f"{tmp_path}/*.tar", False)


def test_extraction_of_empty_tars_adds_nothing_and_says_so(
    tmp_path: Path, settings, capsys: pytest.CaptureFixture[str]
) -> None:
    write_members(tmp_path / "0.tar")
    done = extract.run(settings(tmp_path / "cache", shards=f"{tmp_path}/*.tar"))
    assert (done.units, done.images) == (0, 0)
    assert "the tar is empty" in said(capsys)


def test_every_kind_of_odd_tar_is_extracted(tmp_path: Path, settings, weights) -> None:
    images = [(f"a/{n}", png(picture(n))) for n in range(24)]
    write_members(tmp_path / "joined.tar", *[(f"{key}.png", data) for key, data in images[:4]])
    more = write_members(tmp_path / "more", *[(f"{key}.input.png", data) for key, data in images[4:8]])
    with open(tmp_path / "joined.tar", "ab") as file:
        file.write(more.read_bytes())
    write_members(
        tmp_path / "links.tar",
        *[(f"{key}.jfif", data) for key, data in images[8:]],
        ("a/link.png", b"", tarfile.SYMTYPE, "8.jfif"),
    )
    chosen = settings(
        tmp_path / "cache", shards=f"{tmp_path}/*.tar", views=1, teachers=(VIT,), weights=((VIT, str(weights[VIT])),)
    )
    done = extract.run(chosen)
    assert (done.images, done.bad) == (25, {})
    assert extract.run(chosen).skipped == 2


@pytest.fixture(scope="module")
def split(tmp_path_factory, settings, weights) -> Path:
    """OUT of `shard --val-fraction` and a cache of it with its views."""
    root = tmp_path_factory.mktemp("split")
    for number in range(24):
        folder = root / "images" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / f"{number}.png")
    pack(ShardConfig(str(root / "images"), str(root / "shards"), per_shard=10, val_fraction=0.25))
    extract.run(
        settings(
            root / "cache", shards=f"{root}/shards/*.tar", views=1,
            teachers=(VIT,), weights=((VIT, str(weights[VIT])),), keep_views=True,
        )
    )  # fmt: skip
    return root


@pytest.mark.parametrize("tars", [True, False])
def test_what_shard_held_out_is_validated_on_and_not_trained_on(
    split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tars: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    done = distill.run(distillation(split, tmp_path, f"{split}/shards/*.tar" if tars else None))
    assert "the validation set is val-000000, held out by `shard --val-fraction`" in said(capsys)
    assert '"val": [\n  "val-000000"\n ]' in (done.encoder.parent / "snapshot.json").read_text()
    assert '"train": [\n  "000000",\n  "000001"\n ]' in (done.encoder.parent / "snapshot.json").read_text()


def test_the_split_is_in_the_cache_and_held_out_tars_alone_are_refused(split: Path, tmp_path: Path) -> None:
    assert [entry.held_out for entry in open_cache(split / "cache").segments[0].shards] == [False, False, True]
    with pytest.raises(ConfigError, match="every tar is held out, val-000000 by an earlier run"):
        distill.run(distillation(split, tmp_path, f"{split}/shards/val-*.tar"))


def distillation(split: Path, out: Path, shards: str | None) -> DistillConfig:
    return DistillConfig(
        cache=str(split / "cache"), shards=shards, out=str(out / "run"), student="test_vit", img_size=32, patch_size=16,
        steps=2, batch_size=8, tracker="none", threads=1, eval_every=2,
    )  # fmt: skip


def test_evaluate_says_which_images_have_no_label_or_none_that_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["0", "1.0", "", "-1", "cat", "\ufeff1", "2x"]
    members = [x for n, label in enumerate(labels) for x in ((f"k{n}.png", b"1"), (f"k{n}.cls", label.encode()))]
    path = str(write_members(tmp_path / "t.tar", *members, ("k9.png", b"1")))
    found = evaluate.labelled(path, None)
    assert found.labels_N.tolist() == [0, 1, 1]
    assert said(capsys) == (
        f"not evaluated of the 8 images of {path}: 3 have no label, and 2 have a label that cannot be read (k4: 'cat')"
    )


def test_classes_are_compared_by_name(tmp_path: Path) -> None:
    texts = {
        "one": '{"0": "ant", "1": "bee", "2": "cat"}', "fewer": '{"1": "bee"}', "moved": '{"0": "bee", "1": "cat"}',
        "none": None,
    }  # fmt: skip
    for name, text in texts.items():
        write_tar(tmp_path / name / "0.tar", [("a", b"1", 0)])
        if text:
            (tmp_path / name / "classes.json").write_text(text)

    def check(*names: str) -> None:
        check_classes(classes_beside([f"{tmp_path}/{name}/0.tar" for name in names]))

    check("one", "fewer")
    check("none")
    with pytest.raises(ShardError, match=r"number their classes differently .*: 0 is 'ant' and 'bee'"):
        check("one", "moved")
    with pytest.raises(ShardError, match=r"one/classes.json names the classes, but .*none has only their numbers"):
        check("none", "one")
    (tmp_path / "none" / "classes.json").write_text("{")
    with pytest.raises(ShardError, match=r"none/classes.json is not a list of classes"):
        check("none")


def test_labels_without_names_are_taken_on_trust_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        write_tar(tmp_path / name / "0.tar", [(f"{name}{n}", png(picture(n)), n) for n in range(2)])
    evaluate.check_sets([evaluate.labelled(f"{tmp_path}/{name}/0.tar", None) for name in ("one", "two")])
    assert f"the labels in {tmp_path}/one, {tmp_path}/two are trusted to mean the same" in said(capsys)
