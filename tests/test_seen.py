"""A unit is added, and a teacher, only where the tar still gives the pixels that the cache has seen."""

import dataclasses
import io
import shutil

import pytest
from webdataset import TarWriter

from pipelines import extract, recode
from tests.conftest import CNN, VIT, picture, png, tree, write_tar
from unic_cache.config import RecodeConfig
from unic_cache.errors import CacheError
from unic_cache.store.calibrate import Calibration
from unic_cache.stream import seen_pixels as seen

ROWS = 20


def pack(path, *replaced, first=0, bad=()):
    """A tar of pictures; those of the rows named are others, under the same keys."""
    samples = [(f"k{n:02d}", png(picture(n + first + (300 if n in replaced else 0))), n % 2) for n in range(ROWS)]
    samples = [(key, b"no image" if row in bad else data, label) for row, (key, data, label) in enumerate(samples)]
    return write_tar(path, samples)


@pytest.fixture(scope="module")
def options(settings):
    """One teacher and a tar of 20 pictures."""

    def make(tar, cache, **changes):
        one = {"teachers": (VIT,), "weights": settings(cache).weights[:1], "views": 1, "calibration_images": 10}
        return settings(cache, **{**one, "shards": str(tar), "batch_size": 8, **changes})

    return make


@pytest.fixture
def made(tmp_path, options):
    """A cache of one view."""
    extract.run(options(pack(tmp_path / "old/a.tar"), tmp_path / "cache"))
    return tmp_path / "cache"


MORE = {
    "another view": {"views": 2},
    "another recipe": {"recipe": "center"},
    "another size": {"size": 48},
    "another teacher": {"teachers": (CNN,)},
    "another teacher under another view": {"teachers": (CNN,), "recipe": "light"},
    "the pixels": {"teachers": (), "weights": (), "keep_views": True, "views": 2},
}


@pytest.mark.parametrize("more", MORE.values(), ids=MORE)
def test_one_replaced_picture_among_many_stops_whatever_would_be_added(tmp_path, made, options, settings, more):
    weights = settings(made).weights
    config = options(
        pack(tmp_path / "new/a.tar", 7), made, **{"weights": weights[1:] if CNN in str(more) else weights[:1], **more}
    )
    before = tree(made)
    with pytest.raises(
        CacheError,
        match=r"new/a.tar, row 7 \(k07.png\): another picture than the cache has seen: .*, row 7: its pixels",
    ):
        extract.run(config)
    added = tree(made).keys() - before.keys()
    assert not [name for name in added if "/commits/" in name]


def test_a_tar_that_was_packed_anew_goes_on(tmp_path, made, options):
    tar = write_tar(tmp_path / "new/a.tar", [(f"k{n:02d}", png(picture(n)), None) for n in range(ROWS)])
    assert extract.run(options(tar, made, views=2)).units == 1


def test_a_picture_that_was_bad_is_passed_over_and_one_that_became_bad_is_told(tmp_path, options):
    cache = tmp_path / "cache"
    extract.run(options(pack(tmp_path / "old/a.tar", bad=(3,)), cache))
    assert extract.run(options(pack(tmp_path / "mended/a.tar"), cache, views=2)).units == 1
    with pytest.raises(CacheError, match=r"row 5 \(k05.png\): cannot be used .* but was good when the cache saw it"):
        extract.run(options(pack(tmp_path / "worse/a.tar", bad=(3, 5)), cache, views=3))


def test_each_row_is_compared_once_a_run_whatever_number_of_views_is_added(made, options, tmp_path, monkeypatch):
    compared = []  # keys, whose views one thread makes in turn: two that hold a row at once both compare it
    real = seen.make_view
    monkeypatch.setattr(seen, "make_view", lambda *a: compared.append(a[2]) or real(*a))
    extract.run(options(tmp_path / "old/a.tar", made, views=5, threads=1))
    assert len(compared) == len(set(compared)) == ROWS


def test_a_set_that_is_numbered_like_another_is_told_although_nothing_is_to_be_made(tmp_path, made, options):
    write_tar(tmp_path / "val/a.tar", [(f"k{n:02d}", png(picture(n + 900, (50, 60))), 0) for n in range(ROWS)])
    with pytest.raises(CacheError, match=r"val/a.tar, row .*: another picture than"):
        extract.run(options(tmp_path / "val/a.tar", made))


def test_of_many_tars_the_one_that_needs_no_work_is_looked_at_too(tmp_path, options):
    cache = tmp_path / "cache"
    for n in range(20):  # more rows than the probe has
        pack(tmp_path / f"old/{n:02d}.tar", first=20 * n)
    extract.run(options(tmp_path / "old/*.tar", cache))
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    write_tar(tmp_path / "new/07.tar", [(f"k{n:02d}", png(picture(n + 900, (50, 60))), 0) for n in range(ROWS)])
    with pytest.raises(CacheError, match=r"new/07.tar, row \d+ .*: another picture than"):
        extract.run(options(tmp_path / "new/*.tar", cache))


def test_bad_images_are_named(tmp_path, options):
    done = extract.run(options(pack(tmp_path / "old/a.tar", bad=(3,)), tmp_path / "cache"))
    (reason,) = done.bad.values()
    assert (list(done.bad), reason.partition(": ")[0]) == (["a row 3"], "k03.png")


def test_a_calibration_that_was_replaced_is_told_before_anything_is_added(made, options, tmp_path):
    path = made / VIT.replace(":", ".") / "calibration.npz"
    kept = Calibration.from_bytes(path.read_bytes(), "x")
    path.write_bytes(dataclasses.replace(kept, mean={kind: mean + 1 for kind, mean in kept.mean.items()}).to_bytes())
    before = tree(made)
    with pytest.raises(CacheError, match=r"calibration.npz has checksum \d+, but view .* the file was replaced"):
        extract.run(options(tmp_path / "old/a.tar", made, views=2))
    assert tree(made) == before


def test_a_cache_is_not_recoded_into_one_that_has_seen_other_pictures_under_another_view(made, options, tmp_path):
    extract.run(options(pack(tmp_path / "new/a.tar", 7), tmp_path / "other", views=2))
    less = str(tmp_path / "less")
    recode.run(RecodeConfig(str(made), less, codec="int8", device="cpu"))
    with pytest.raises(CacheError, match=r"other and .*less have seen other pictures in shard a, by unic-32-0-000"):
        recode.run(RecodeConfig(str(tmp_path / "other"), less, device="cpu"))


def bitmaps(folder, first):
    """Twenty tars of uncompressed pictures: of two such folders all headers are equal to the last byte."""
    folder.mkdir()
    for tar in range(20):
        with TarWriter(str(folder / f"{tar:02d}.tar"), mtime=0) as writer:
            for row in range(ROWS):
                data = io.BytesIO()
                picture(first + tar * ROWS + row).save(data, "BMP")
                writer.write({"__key__": f"k{row:02d}", "bmp": data.getvalue()})
    return folder


def test_pictures_of_one_size_in_bytes_are_told_apart_too(tmp_path, options):
    train, test = bitmaps(tmp_path / "train", 0), bitmaps(tmp_path / "test", 1000)
    extract.run(options(train / "*.tar", tmp_path / "cache"))
    for name in ("03.tar", "11.tar"):
        assert (train / name).stat().st_size == (test / name).stat().st_size
        shutil.copy(test / name, train / name)
        with pytest.raises(CacheError, match=rf"train/{name}, row \d+ .*another picture than"):
            extract.run(options(train / name, tmp_path / "cache"))
