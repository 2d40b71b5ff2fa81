"""Stage one end to end on tiny real models."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import zarr
from PIL import Image
from safetensors.torch import load_file

from pipelines import extract
from pipelines.extracting.specs import pixel_spec
from tests.conftest import CNN, VIT, make_shards, picture, png, tree, views_of, write_tar
from unic_cache.cache import open_cache
from unic_cache.errors import CacheError, ConfigError, ImageError, ShardError, TeacherError
from unic_cache.files.local import LocalFolder
from unic_cache.store.layout import VIEWS_MEMBER, teacher_folder
from unic_cache.store.member import Member
from unic_cache.teachers import model as teachers
from unic_cache.views.augment import make_view

NAME = "unic-32-0-000"


def test_features_equal_a_direct_run_of_timm(cache, shards, weights):
    teacher = cache.teachers[VIT]
    views_BHWC = views_of(shards, 1, 1)
    model = timm.create_model("test_vit", img_size=32, num_classes=0).eval()
    state = {name: value for name, value in load_file(weights[VIT]).items() if not name.startswith("head")}
    state["pos_embed"] = timm.layers.resample_abs_pos_embed(state["pos_embed"], [2, 2])
    model.load_state_dict(state)
    mean, std = (torch.tensor(teacher.spec["teacher"][key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        images = (torch.from_numpy(views_BHWC).permute(0, 3, 1, 2).float() / 255 - mean) / std
        tokens = model.forward_features(images)
    exact = teacher.calibration.standardize({"cls": tokens[:, 0], "patch": tokens[:, 1:]})
    record = teacher.record(cache.unit(0, 1, "unic-32-0-001"))
    kept = teacher.features(record, range(40))
    for kind in ("cls", "patch"):
        assert (kept[kind] - exact[kind]).abs().max() < 2e-3 * exact[kind].abs().max().clamp(min=1)


def test_calibration_is_of_the_tokens_that_were_seen(cache):
    teacher = cache.teachers[VIT]
    standardized = torch.cat(
        [
            teacher.features(teacher.record(cache.unit(0, shard, NAME)), range(rows))["cls"]
            for shard, rows in enumerate((37, 40))
        ]
    )
    assert standardized.mean(dim=0).abs().max() < 0.5
    assert 0.5 < standardized.std(dim=0).mean() < 2
    assert set(teacher.calibration.fidelity) == {"cls", "patch"}
    assert min(teacher.calibration.fidelity.values()) > 0.99999


def test_stock_zarr_reads_what_our_reader_reads(cache, cache_folder):
    for name, teacher in cache.teachers.items():
        group = zarr.open(cache_folder / teacher.member.folder / "features.zarr", mode="r")
        for shard, rows in enumerate((37, 40, 5)):
            parts = teacher.parts(teacher.record(cache.unit(0, shard, NAME)), range(rows))
            for array, values in parts.items():
                stock = group[f"000000/{NAME}/{array}"][shard, :rows]
                assert np.array_equal(stock, values), (name, array)


def test_cls_tokens_are_read_without_patches(cache, monkeypatch):
    teacher = cache.teachers[VIT]
    record = teacher.record(cache.unit(0, 1, NAME))
    asked = []
    honest = teacher.rows.fill
    monkeypatch.setattr(teacher.rows, "fill", lambda r, p, out: asked.extend(out) or honest(r, p, out))
    assert torch.equal(teacher.features(record, [7, 2], ["cls"])["cls"], teacher.features(record, [7, 2])["cls"])
    assert asked == ["cls", "cls", "patch"]


def test_pixel_checksums_are_those_of_the_views(cache, shards):
    from crc32c import crc32c

    views = views_of(shards, 0, 0)
    record = cache.teachers[CNN].record(cache.unit(0, 0, NAME))
    assert record.pixels.tolist() == [crc32c(view.tobytes()) for view in views]


def test_two_runs_give_identical_bytes(tmp_path, settings, cache_folder):
    extract.run(settings(tmp_path / "again"))
    extract.run(settings(tmp_path / "again", recipe="center", views=1))
    assert tree(tmp_path / "again") == tree(cache_folder)


def test_bytes_do_not_depend_on_threads_or_on_which_worker_did_what(tmp_path, settings, cache_folder):
    for index in (2, 0, 1):
        extract.run(settings(tmp_path / "shared", worker_index=index, num_workers=3, threads=1 + index))
    extract.run(settings(tmp_path / "shared", recipe="center", views=1, threads=1))
    assert tree(tmp_path / "shared") == tree(cache_folder)


def test_running_again_changes_nothing_and_says_so(tmp_path, settings, cache_folder):
    shutil.copytree(cache_folder, tmp_path / "cache")
    done = extract.run(settings(tmp_path / "cache"))
    assert (done.units, done.skipped, done.bytes) == (0, 6, 0)
    assert tree(tmp_path / "cache") == tree(cache_folder)


def test_resume_makes_only_the_uncommitted_units(tmp_path, settings, cache_folder):
    shutil.copytree(cache_folder, tmp_path / "cache")
    folder = tmp_path / "cache" / open_cache(cache_folder).teachers[VIT].member.folder
    (folder / "commits/000000" / NAME / "000001.json").unlink()
    done = extract.run(settings(tmp_path / "cache"))
    assert (done.units, done.images) == (1, 40)
    assert tree(tmp_path / "cache") == tree(cache_folder)


def test_more_views_more_teachers_and_appended_tars_leave_every_old_byte(tmp_path, settings, shards):
    folder, growing = tmp_path / "cache", tmp_path / "shards"
    shutil.copytree(shards.folder, growing)
    extract.run(settings(folder, teachers=(VIT,), weights=settings(folder).weights[:1], views=1))
    before = tree(folder)
    make_shards(growing, (6,), first=500, name="later-{:03d}")
    extract.run(settings(folder, shards=str(growing / "*.tar")))
    after = tree(folder)
    assert {name: after[name] for name in before} == before
    cache = open_cache(folder)
    assert [len(segment.shards) for segment in cache.segments] == [3, 1]
    for teacher in cache.teachers.values():
        for number in (0, 1):
            record = teacher.record(cache.unit(1, 0, f"unic-32-0-{number:03d}"))
            assert teacher.features(record, range(6))["patch"].isfinite().all()


def uncommit(cache: Path, shard: int) -> Path:
    """Remove a unit's record, as if its writer had died just before; the folder of its view's arrays."""
    folder = cache / open_cache(cache).teachers[VIT].member.folder
    (folder / "commits/000000" / NAME / f"{shard:06d}.json").unlink()
    return folder / "features.zarr/000000" / NAME


def test_an_interrupted_unit_adopts_what_another_machine_left(tmp_path, settings, cache_folder):
    shutil.copytree(cache_folder, tmp_path / "cache")
    nudged = uncommit(tmp_path / "cache", 0) / "cls/c.0.0.0"
    rows = np.frombuffer(nudged.read_bytes()[: 37 * 128], np.float16).copy()
    rows[5] = np.nextafter(rows[5], np.float16(10))
    foreign = rows.tobytes() + nudged.read_bytes()[rows.nbytes :]
    nudged.write_bytes(foreign)
    extract.run(settings(tmp_path / "cache"))
    assert nudged.read_bytes() == foreign
    cache = open_cache(tmp_path / "cache")
    teacher = cache.teachers[VIT]
    kept = teacher.parts(teacher.record(cache.unit(0, 0, NAME)), range(37))["cls"]
    assert kept.tobytes() == rows.tobytes()


def test_what_is_not_ours_under_an_uncommitted_name_is_reported_and_left_alone(tmp_path, settings, cache_folder):
    shutil.copytree(cache_folder, tmp_path / "cache")
    spoiled = uncommit(tmp_path / "cache", 1) / "patch/c.1.0.0.0"
    spoiled.write_bytes(b"half a shard")
    before = tree(tmp_path / "cache")
    message = r"test_vit@32, view unic-32-0-000 of shard 000001: what stands there is not .* run `unic-cache repair`"
    with pytest.raises(CacheError, match=message):
        extract.run(settings(tmp_path / "cache"))
    assert tree(tmp_path / "cache") == before
    spoiled.unlink()
    extract.run(settings(tmp_path / "cache"))
    assert tree(tmp_path / "cache") == tree(cache_folder)


@pytest.mark.parametrize(("codec", "cosine"), [("f16", 0.999999), ("int8", 0.9995), ("int4", 0.99)])
def test_codecs_are_close_in_the_standardized_space(tmp_path, settings, cache, codec, cosine):
    extract.run(settings(tmp_path / "cache", codec=codec, views=1))
    other = open_cache(tmp_path / "cache")
    for name, teacher in other.teachers.items():
        exact = cache.teachers[name]
        unit = cache.unit(0, 0, NAME)
        ours, theirs = (t.features(t.record(unit), range(37))["patch"] for t in (teacher, exact))
        assert torch.cosine_similarity(ours, theirs, dim=-1).mean() >= cosine


def test_kept_views_are_the_pixels_and_serve_a_teacher_that_comes_later(tmp_path, settings, shards, weights):
    folder = tmp_path / "cache"
    extract.run(settings(folder, teachers=(VIT,), weights=((VIT, str(weights[VIT])),), keep_views=True))
    cache = open_cache(folder)
    unit = cache.unit(0, 2, "unic-32-0-001")
    out = np.empty((5, 32, 32, 3), np.uint8)
    cache.read_pixels(cache.pixel_record(unit), range(5), out)
    assert np.array_equal(out, views_of(shards, 2, 1))
    extract.run(settings(folder, teachers=(CNN,), weights=((CNN, str(weights[CNN])),), shards=None))
    reference = tmp_path / "reference"
    extract.run(settings(reference))
    later, first = open_cache(folder).teachers[CNN], open_cache(reference).teachers[CNN]
    assert np.array_equal(
        later.parts(later.record(unit), range(5))["patch"], first.parts(first.record(unit), range(5))["patch"]
    )


class TestBadImages:
    @pytest.fixture
    def spoiled(self, tmp_path):
        good = [(f"image{n}", png(picture(n)), 0) for n in range(12)]
        good[3] = ("broken", png(picture(3))[:60], 0)
        good[7] = ("text", b"no image at all", 0)
        write_tar(tmp_path / "shards/000000.tar", good)
        return str(tmp_path / "shards/*.tar")

    def test_are_skipped_counted_and_named_in_the_record(self, tmp_path, settings, spoiled):
        done = extract.run(settings(tmp_path / "cache", shards=spoiled, calibration_images=10))
        assert sorted(done.bad) == ["000000 row 3", "000000 row 7"]
        cache = open_cache(tmp_path / "cache")
        record = cache.teachers[VIT].record(cache.unit(0, 0, NAME))
        assert sorted(record.bad) == [3, 7]
        assert record.good_rows().tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
        assert record.pixels[[3, 7]].tolist() == [0, 0]
        parts = cache.teachers[VIT].parts(record, [3, 7])
        assert not any(values.any() for values in parts.values())

    def test_leave_their_neighbours_as_they_are(self, tmp_path, settings, spoiled):
        extract.run(settings(tmp_path / "spoiled", shards=spoiled, calibration_images=10, views=1))
        write_tar(
            tmp_path / "whole/000000.tar",
            [(f"image{n}" if n != 3 else "broken", png(picture(n)), 0) for n in range(12)],
        )
        cache = open_cache(tmp_path / "spoiled")
        record = cache.teachers[VIT].record(cache.unit(0, 0, NAME))
        assert cache.teachers[VIT].features(record, [2])["cls"].isfinite().all()

    def test_stop_a_strict_run_and_are_named(self, tmp_path, settings, spoiled):
        with pytest.raises(ImageError, match=r"unic-32-0-000 of shard 000000, row 3: .*[Ww]ithout --strict"):
            extract.run(settings(tmp_path / "cache", shards=spoiled, strict=True, calibration_images=10))


class TestRefusals:
    def test_of_another_seed_makes_other_views_not_other_bytes(self, tmp_path, settings, cache_folder):
        shutil.copytree(cache_folder, tmp_path / "cache")
        extract.run(settings(tmp_path / "cache", seed=1, views=1))
        after = tree(tmp_path / "cache")
        assert {name: after[name] for name in tree(cache_folder)} == tree(cache_folder)
        assert any("unic-32-1-000" in name for name in after)

    def test_of_other_weights_name_both_checksums(self, tmp_path, settings, weights, cache_folder):
        shutil.copytree(cache_folder, tmp_path / "cache")
        torch.manual_seed(99)
        from safetensors.torch import save_file

        save_file(timm.create_model("test_vit").state_dict(), tmp_path / "other.safetensors")
        config = settings(tmp_path / "cache", teachers=(VIT,), weights=((VIT, str(tmp_path / "other.safetensors")),))
        with pytest.raises(
            CacheError,
            match=r"was made with other weights: teacher\.weights_sha256 [0-9a-f]{12}\.\.\. .*, not [0-9a-f]{12}",
        ):
            extract.run(config)
        assert tree(tmp_path / "cache") == tree(cache_folder)

    @pytest.fixture
    def more(self, tmp_path, shards, cache_folder):
        """The tars of a cache that has only VIT, `tmp_path / "cache"`, and one that is new to it."""
        shutil.copytree(cache_folder, tmp_path / "cache")
        shutil.rmtree(tmp_path / "cache" / teacher_folder(CNN))
        shutil.copytree(shards.folder, tmp_path / "tars")
        write_tar(tmp_path / "tars/new.tar", [("new", png(picture(500)), 0)])
        return str(tmp_path / "tars/*.tar")

    def test_of_another_codec_name_both(self, tmp_path, settings, more):
        before = tree(tmp_path / "cache")
        with pytest.raises(
            CacheError, match=r'was made with codec "f16", not "int8"; use the same settings, or another'
        ):
            extract.run(settings(tmp_path / "cache", codec="int8", shards=more, teachers=(CNN, VIT)))
        assert tree(tmp_path / "cache") == before

    def test_of_kept_views_of_another_size(self, tmp_path, settings, more):
        Member.ensure(LocalFolder(tmp_path / "cache"), VIEWS_MEMBER, pixel_spec(64, "raw"))
        before = tree(tmp_path / "cache")
        with pytest.raises(CacheError, match="was made with size 64, not 32"):
            extract.run(settings(tmp_path / "cache", keep_views=True, shards=more, teachers=(CNN, VIT)))
        assert tree(tmp_path / "cache") == before

    def test_of_other_shards_name_the_shard_and_the_row(self, tmp_path, settings, cache_folder):
        shutil.copytree(cache_folder, tmp_path / "cache")
        other = make_shards(tmp_path / "other", (37,), first=900)
        with pytest.raises(CacheError, match=r"made with other shards.*'000000'.*row 0"):
            extract.run(settings(tmp_path / "cache", shards=other.pattern))
        assert tree(tmp_path / "cache") == tree(cache_folder)

    def test_of_pixels_that_differ_name_versions_and_size(self, tmp_path, settings, more, monkeypatch):
        honest = make_view
        monkeypatch.setattr("unic_cache.stream.pixels.make_view", lambda *a: np.bitwise_xor(honest(*a), 1, out=a[-1]))
        monkeypatch.setattr("unic_cache.stream.decoder_probe.decoder_versions", lambda: {"pillow": "0.0.test"})
        message = (
            r"differ by up to 1 levels of 255 \(1\.0+ on average\)\. The cache was made with .*pillow \d.*"
            r"this machine has .*pillow 0\.0\.test"
        )
        before = tree(tmp_path / "cache")
        with pytest.raises(CacheError, match=message):
            extract.run(settings(tmp_path / "cache", shards=more, teachers=(CNN, VIT)))
        assert tree(tmp_path / "cache") == before

    def test_of_a_second_teacher_on_other_pixels_name_shard_row_and_member(self, tmp_path, settings, shards, weights):
        first = settings(tmp_path / "cache", teachers=(VIT,), weights=((VIT, str(weights[VIT])),), views=1)
        extract.run(first)
        folder = tmp_path / "tars"
        shutil.copytree(shards.folder, folder)
        samples = [(f"image{n:05d}", png(picture(n)), n % 3) for n in range(37, 77)]
        samples[11] = (samples[11][0], png(picture(7)), 0)
        write_tar(folder / "000001.tar", samples)
        second = settings(
            tmp_path / "cache",
            teachers=(CNN,),
            weights=((CNN, str(weights[CNN])),),
            views=1,
            shards=str(folder / "*.tar"),
        )
        message = r"shard 000001, row 11: its pixels are not those that timm\.test_vit@32 saw \(checksum"
        with pytest.raises(CacheError, match=message):
            extract.run(second)

    def test_of_another_calibration_under_kept_features(self, tmp_path, settings, cache_folder):
        shutil.copytree(cache_folder, tmp_path / "cache")
        folder = tmp_path / "cache" / open_cache(cache_folder).teachers[VIT].member.folder
        (folder / "calibration.npz").unlink()
        with pytest.raises(
            CacheError, match=r"the one made now has checksum \d+, not \d+ .*--batch-size \(16\) that it was made with"
        ):
            extract.run(settings(tmp_path / "cache", views=3, seed=1))
        (tmp_path / "cache/probe/unic-32-1.npz").unlink()
        extract.run(settings(tmp_path / "cache"))
        assert tree(tmp_path / "cache") == tree(cache_folder)

    def test_of_a_quality_that_the_kept_codec_has_not(self, tmp_path, settings, cache_folder):
        shutil.copytree(cache_folder, tmp_path / "cache")
        with pytest.raises(ConfigError, match=rf"keeps {VIT} as f16; leave"):
            extract.run(settings(tmp_path / "cache", codec=None, quality=0.98))
        assert tree(tmp_path / "cache") == tree(cache_folder)

    def test_of_a_teacher_that_cannot_be_had_leave_no_trace(self, tmp_path, settings):
        with pytest.raises(TeacherError):
            extract.run(settings(tmp_path / "cache", teachers=("ibot",), weights=()))
        assert not tree(tmp_path / "cache")

    def test_of_nan_name_the_teacher_and_keep_nothing_of_the_shard(self, tmp_path, settings, weights):
        state = load_file(weights[VIT])
        state["norm.weight"][3] = float("nan")
        from safetensors.torch import save_file

        save_file(state, tmp_path / "nan.safetensors")
        config = settings(tmp_path / "cache", teachers=(VIT,), weights=((VIT, str(tmp_path / "nan.safetensors")),))
        with pytest.raises(TeacherError, match=rf"teacher {VIT}: NaN or infinite values in norm\.weight"):
            extract.run(config)
        assert not tree(tmp_path / "cache")

    def test_of_nan_midway_name_the_shard_and_keep_what_was_committed(self, tmp_path, settings, monkeypatch):
        honest, calls = teachers.tokens, iter(range(1000))

        def failing(*arguments):
            found = honest(*arguments)
            return {kind: values * float("nan") for kind, values in found.items()} if next(calls) == 17 else found

        monkeypatch.setattr(teachers, "tokens", failing)
        config = settings(tmp_path / "cache", teachers=(VIT,), weights=settings(tmp_path).weights[:1])
        with pytest.raises(TeacherError, match=r"view unic-32-0-00\d of shard 00000\d: teacher .*NaN.*all that was c"):
            extract.run(config)
        monkeypatch.setattr(teachers, "tokens", honest)
        done = extract.run(config)
        assert done.units > 0
        assert done.skipped > 0

    def test_of_shards_that_are_not_there(self, tmp_path, settings):
        with pytest.raises(ShardError, match="no shard"):
            extract.run(settings(tmp_path / "cache", shards=str(tmp_path / "*.tar")))

    def test_of_weights_for_a_teacher_that_is_not_named(self, tmp_path, settings):
        with pytest.raises(ConfigError, match=f"--weights names '{CNN}', which no --teacher names: {VIT}"):
            extract.run(settings(tmp_path / "cache", teachers=(VIT,)))


def test_the_codec_stays_what_it_was_where_none_is_said(tmp_path, settings):
    extract.run(settings(tmp_path / "cache", views=1, codec="int8"))
    extract.run(settings(tmp_path / "cache", views=2, codec=None))
    assert {teacher.spec["codec"] for teacher in open_cache(tmp_path / "cache").teachers.values()} == {"int8"}


def test_the_spec_says_what_the_features_are(cache):
    spec = cache.teachers[VIT].spec
    assert spec["format"] == 1
    assert spec["features"] == {"cls_dim": 64, "grid": [2, 2], "patch_dim": 64}
    assert len(spec["teacher"]["weights_sha256"]) == 64
    assert {"torch", "timm", "pillow", "zarr", "numpy"} <= set(spec["versions"])
    assert spec["provenance"]["licence"]
    assert json.loads(json.dumps(spec)) == spec


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_reported_and_nothing_committed_is_lost(tmp_path, settings, cache_folder):
    import subprocess

    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(small)], capture_output=True, check=False
    ).returncode:
        pytest.skip("this container does not allow mounts")
    try:
        with pytest.raises(OSError, match="No space left on device"):
            extract.run(settings(small / "cache", views=8))
        cache = open_cache(small / "cache")
        committed = [
            (teacher, teacher.record(cache.unit(segment, shard, views, number)))
            for teacher in cache.teachers.values()
            for views, number, segment, tars in cache.committed(teacher.member)
            for shard in tars
        ]
        assert committed
        for teacher, record in committed:
            teacher.parts(record, range(record.unit.rows))
        cache.close()
        assert not [name for name in tree(small / "cache") if ".tmp-" in name]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_config_round_trips_through_json(settings, tmp_path):
    config = settings(tmp_path)
    assert type(config).from_json(json.loads(json.dumps(config.to_json()))) == config
    assert dataclasses.replace(config, views=3) != config
    assert Path(config.cache) == tmp_path


def test_images_unlike_those_that_a_codec_was_fitted_to_are_told(tmp_path, settings, capsys):
    """A pilot on a few images of one kind fixes mean, std and tables."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    flat = [(f"flat{n}", png(Image.new("RGB", (32, 32), (5 * n, 100, 100))), 0) for n in range(40)]
    rough = [(f"rough{n}", png(Image.fromarray(values)), 0) for n, values in enumerate(noise)]
    pilot = str(write_tar(tmp_path / "a.tar", flat))
    write_tar(tmp_path / "b.tar", rough)
    common = {"teachers": (VIT,), "weights": settings(tmp_path).weights[:1], "codec": "klt", "views": 1}
    extract.run(settings(tmp_path / "pilot", **common, shards=pilot))
    assert "have a mean cosine of" not in capsys.readouterr().err
    extract.run(settings(tmp_path / "pilot", **common, shards=f"{tmp_path}/?.tar"))
    said = capsys.readouterr().err
    assert "Added 1 tar to " in said
    assert "mean, std and codecs stay those fitted to 40 views of the first tars" in said
    assert re.search(rf"{VIT}: stored patch tokens of these images have a mean cosine of 0\.\d+ .*, 40 views of", said)
    extract.run(settings(tmp_path / "whole", **common, shards=f"{tmp_path}/?.tar"))
    assert "have a mean cosine of" not in capsys.readouterr().err
