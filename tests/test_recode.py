"""Caches made of caches: against decoding, picking and encoding by hand, and against what extraction would keep."""

import json
import shutil
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import cli
from pipelines import distill, extract, recode, verify
from pipelines.recode import Summary
from pipelines.recoding.copying import copy_foundations
from tests.conftest import CNN, VIT, make_shards, picture, png, tree, write_tar
from tests.object_server import ObjectServer
from tests.web_server import WithRanges
from unic_cache.cache import Cache, CachedTeacher, open_cache
from unic_cache.config import DistillConfig, RecodeConfig
from unic_cache.errors import BrokenError, CacheError, ConfigError
from unic_cache.files.local import LocalFolder
from unic_cache.store.layout import VIEWS_MEMBER
from unic_cache.store.member import Member
from unic_cache.store.sampling import random_positions
from unic_cache.views import index_seal, segments
from unic_cache.views.index import Segment

NAME = "unic-32-0-001"
ROWS = 40


@pytest.fixture(scope="session")
def source(tmp_path_factory, settings, shards) -> Path:
    """Two teachers in f16 over two views, kept pixels, and one bad image; never to be written to."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(shards.folder, folder / "tars")
    write_tar(
        folder / "tars/spoiled.tar", [("a", png(picture(1)), 0), ("b", b"no image", 0), ("c", png(picture(2)), 0)]
    )
    extract.run(settings(folder / "cache", shards=str(folder / "tars/*.tar"), keep_views=True))
    return folder / "cache"


def run(source: Path | str, target: Path | str, **changes) -> Summary:
    return recode.run(RecodeConfig(str(source), str(target), **{"device": "cpu", "threads": 2, **changes}))


def check(cache: Path | str) -> verify.Report:
    report = verify.run(verify.VerifyConfig(str(cache)))
    assert (report.state, report.foreign) == ("whole", []), report.lines()
    return report


def opened(folder: Path | str, name: str = VIT) -> tuple[Cache, CachedTeacher]:
    cache = open_cache(folder)
    return cache, cache.teachers[name]


def features(folder: Path | str, name: str = VIT) -> dict[str, torch.Tensor]:
    cache, teacher = opened(folder, name)
    return teacher.features(teacher.record(cache.unit(0, 1, NAME)), range(ROWS))


def keys_shown(cache: Cache) -> list[tuple[int, int]]:
    return [(key, 1) for key in cache.entry(0, 1).keys]


def test_a_quality_that_saves_nothing_is_told(tmp_path, source):
    """As that of an earlier default: the source's rounding stays, and the codes take more."""
    run(source, tmp_path / "coarse", codec="klt", quality=0.9, cls_quality=0.9)
    for quality, said in ((0.99, True), (0.8, False)):
        config = RecodeConfig(str(tmp_path / "coarse"), str(tmp_path / f"{quality}"), quality=quality, device="cpu")
        lines = recode.run(config).lines(config)
        assert any("no smaller: a quality of 0.99 saves bytes only below that of" in line for line in lines) == said


class TestCodecs:
    @pytest.mark.parametrize(("codec", "cosine"), [("f16", 1), ("int8", 0.9995), ("int4", 0.99), ("klt", 0.95)])
    def test_what_comes_back_is_what_was_kept_but_for_the_codecs_error(self, tmp_path, source, codec, cosine):
        done = run(source, tmp_path / "cache", codec=codec)
        assert (done.units, done.skipped, done.views) == (16, 0, 8)
        check(tmp_path / "cache")
        for name in (VIT, CNN):
            ours, theirs = features(tmp_path / "cache", name), features(source, name)
            alike = torch.cosine_similarity(ours["cls"].double(), theirs["cls"].double(), dim=-1).mean()
            assert torch.equal(ours["cls"], theirs["cls"]) if codec != "klt" else alike > 0.98
            found = torch.cosine_similarity(ours["patch"].double(), theirs["patch"].double(), dim=-1).mean()
            assert found >= cosine - 1e-12
            assert done.fidelity[name]["patch"] == pytest.approx(float(found), abs=0.01)
            before = opened(source, name)[1].calibration.fidelity["patch"]
            assert done.to_teacher[name]["patch"] == pytest.approx(before * done.fidelity[name]["patch"], abs=1e-12)

    def test_encoding_is_that_of_extraction_on_the_same_tokens(self, tmp_path, source):
        run(source, tmp_path / "cache", codec="int4")
        cache, teacher = opened(tmp_path / "cache")
        kept = teacher.parts(teacher.record(cache.unit(0, 1, NAME)), range(ROWS))
        for name, values in teacher.codec.encode(features(source)).arrays.items():
            assert np.array_equal(kept[name], values.numpy()), name

    def test_statistics_stay_to_the_bit_and_provenance_says_where_it_came_from(self, tmp_path, source):
        run(source, tmp_path / "klt", codec="klt", quality=0.97)
        run(tmp_path / "klt", tmp_path / "int8", codec="int8")
        (_, first), (_, last) = opened(source), opened(tmp_path / "int8")
        for part in ("mean", "std", "covariance"):
            for kind, values in getattr(first.calibration, part).items():
                assert getattr(last.calibration, part)[kind].tobytes() == values.tobytes()
        came = last.spec["provenance"]["recoded_from"]
        assert (came["codec"], came["quality"], came["tokens"]) == ("klt", 0.97, None)
        assert came["recoded_from"]["codec"] == "f16"
        assert came["recoded_from"]["fidelity"] == dict(first.calibration.fidelity)
        assert "quality" not in last.spec
        same = {"teacher", "features", "dtype", "batch_size", "calibration_images", "augment", "device", "format"}
        assert {key: last.spec[key] for key in same} == {key: first.spec[key] for key in same}

    @pytest.mark.parametrize("settled", [{"codec": "f16"}, {"codec": "int8"}, {"codec": "klt", "quality": 0.95}])
    def test_the_same_settings_give_the_same_arrays(self, tmp_path, source, settled):
        run(source, tmp_path / "first", **settled)
        done = run(tmp_path / "first", tmp_path / "second")
        assert set(done.fidelity[VIT].values()) == {1.0}
        check(tmp_path / "second")
        objects = [{n: data for n, data in tree(tmp_path / at).items() if "/c." in n} for at in ("first", "second")]
        assert objects[0] == objects[1]
        clipped = [
            [teacher.record(cache.unit(0, shard, NAME)).clipped for shard in range(4)]
            for cache, teacher in (opened(tmp_path / "first"), opened(tmp_path / "second"))
        ]
        assert clipped[0] == clipped[1]

    def test_bad_images_stay_zeros_with_their_reasons_and_pixels_keep_their_checksums(self, tmp_path, source):
        run(source, tmp_path / "cache", codec="int8")
        for name in (VIT, CNN):
            (cache, ours), (_, theirs) = opened(tmp_path / "cache", name), opened(source, name)
            for shard in range(4):
                unit = cache.unit(0, shard, NAME)
                assert np.array_equal(ours.record(unit).pixels, theirs.record(unit).pixels)
                assert ours.record(unit).bad == theirs.record(unit).bad
            assert list(ours.record(unit).bad) == [1]
            assert not any(rows.any() for rows in ours.parts(ours.record(unit), [1]).values())


class TestCoders:
    def test_another_coder_keeps_every_code_and_the_way_back_gives_the_same_bytes(self, tmp_path, source):
        run(source, tmp_path / "zstd", codec="klt", cls_quality=1.0, views=False)
        done = run(tmp_path / "zstd", tmp_path / "pcodec", coder="pcodec")
        run(tmp_path / "pcodec", tmp_path / "back", coder="zstd")
        check(tmp_path / "pcodec")
        for name in (VIT, CNN):
            before, after = (opened(tmp_path / folder, name)[1] for folder in ("zstd", "pcodec"))
            assert (after.spec["format"], after.spec["coder"]) == (2, "pcodec")
            assert (before.spec["format"], before.spec.get("coder")) == (1, None)
            back = opened(tmp_path / "back", name)[1].spec["provenance"]["recoded_from"]
            assert (back["coder"], "coder" in back["recoded_from"]) == ("pcodec", False)
            assert done.fidelity[name]["patch"] == 1
            ours, theirs = features(tmp_path / "zstd", name), features(tmp_path / "pcodec", name)
            assert all(torch.equal(ours[kind], theirs[kind]) for kind in ours)
        stored = [tree(tmp_path / folder) for folder in ("zstd", "back")]
        objects = [{name: data for name, data in found.items() if "/c." in str(name)} for found in stored]
        assert objects[0] == objects[1]

    def test_extraction_goes_on_with_the_coder_of_the_cache(self, tmp_path, source, settings, shards):
        run(source, tmp_path / "cache", codec="klt", coder="pcodec", views=False)
        extract.run(settings(tmp_path / "cache", shards=str(source.parent / "tars/*.tar"), views=3, codec=None))
        check(tmp_path / "cache")
        assert opened(tmp_path / "cache")[1].spec["coder"] == "pcodec"


class TestTokens:
    def test_fewer_are_those_that_extraction_would_have_kept(self, tmp_path, source, settings, shards):
        tars = str(source.parent / "tars/*.tar")
        extract.run(settings(tmp_path / "extracted", shards=tars, tokens=2, teachers=(VIT,), weights=vit(settings)))
        run(source, tmp_path / "recoded", tokens=2, teachers=(VIT,))
        check(tmp_path / "recoded")
        kept = [
            {name: data for name, data in tree(tmp_path / at).items() if "/c." in name and not name.startswith("views")}
            for at in ("extracted", "recoded")
        ]
        assert kept[0] == kept[1]

    @pytest.mark.parametrize("codec", ["f16", "int8", "int4"])
    def test_a_sample_of_a_sample_is_a_subset_of_codes_as_they_are(self, tmp_path, source, codec):
        run(source, tmp_path / "three", codec=codec, tokens=3)
        done = run(tmp_path / "three", tmp_path / "one", tokens=1)
        assert done.fidelity[VIT]["patch"] == 1
        check(tmp_path / "one")
        cache, _ = opened(source)
        shown = keys_shown(cache)
        three, one = (random_positions(0, shown, (2, 2), count) for count in (3, 1))
        place = [row.tolist().index(only) for row, (only,) in zip(three, one, strict=True)]
        more, less = (opened(tmp_path / at)[1] for at in ("three", "one"))
        found = [t.parts(t.record(cache.unit(0, 1, NAME)), range(ROWS)) for t in (more, less)]
        for name, rows in found[1].items():
            expected = found[0][name] if name == "cls" else found[0][name][np.arange(ROWS), place][:, None]
            assert np.array_equal(rows, expected), name

    def test_klt_of_fewer_tokens_is_fitted_anew(self, tmp_path, source):
        run(source, tmp_path / "all", codec="klt", quality=0.98)
        done = run(tmp_path / "all", tmp_path / "two", tokens=2)
        check(tmp_path / "two")
        _, teacher = opened(tmp_path / "two")
        assert (teacher.spec["codec"], teacher.spec["quality"], teacher.spec["tokens"]) == ("klt", 0.98, 2)
        assert done.fidelity[VIT]["patch"] >= 0.98 - 1e-6
        cache, _ = opened(source)
        wanted = torch.from_numpy(random_positions(0, keys_shown(cache), (2, 2), 2))[..., None]
        exact = features(tmp_path / "all")["patch"].take_along_dim(wanted, dim=1)
        assert torch.cosine_similarity(features(tmp_path / "two")["patch"], exact, dim=-1).mean() > 0.96

    def test_more_than_the_source_keeps_are_refused_and_nothing_is_written(self, tmp_path, source):
        run(source, tmp_path / "two", tokens=2, teachers=(VIT,))
        message = rf"{VIT}: 3 patch tokens of each view are asked for, but .*two keeps 2; `recode` only drops tokens"
        with pytest.raises(CacheError, match=message):
            run(tmp_path / "two", tmp_path / "three", tokens=3)
        assert not (tmp_path / "three").exists()


def vit(settings) -> tuple[tuple[str, str], ...]:
    return settings(Path()).weights[:1]


class TestResume:
    def test_running_again_changes_nothing_and_says_so(self, tmp_path, source):
        run(source, tmp_path / "cache", codec="klt")
        before = tree(tmp_path / "cache")
        done = run(source, tmp_path / "cache")
        assert (done.units, done.views, done.skipped) == (0, 0, 24)
        assert tree(tmp_path / "cache") == before
        assert "0 units" in done.lines(RecodeConfig("a", "b"))[0]

    def test_only_what_is_missing_is_made_and_the_codec_stays_where_none_is_said(self, tmp_path, source):
        run(source, tmp_path / "cache", codec="int4", tokens=2)
        whole = tree(tmp_path / "cache")
        for name in whole:
            if name.startswith("timm.test_vit") and f"{NAME}/000001.json" in name:
                (tmp_path / "cache" / name).unlink()
        done = run(source, tmp_path / "cache")
        assert (done.units, done.skipped) == (1, 23)
        assert tree(tmp_path / "cache") == whole

    @pytest.mark.slow
    def test_a_kill_before_any_file_leaves_a_cache_that_the_next_run_completes(self, tmp_path, source, monkeypatch):
        run(source, tmp_path / "whole", codec="klt", threads=1)
        whole = tree(tmp_path / "whole")
        honest = LocalFolder.create
        for number in range(0, len(whole), 11):
            left, target = iter(range(number)), tmp_path / str(number)

            def dying(location, name, data, left=left):
                if next(left, None) is None:
                    raise KeyboardInterrupt
                return honest(location, name, data)

            with monkeypatch.context() as patch:
                patch.setattr(LocalFolder, "create", dying)
                with pytest.raises(KeyboardInterrupt):
                    run(source, target, codec="klt", threads=1)
            standing = tree(target) if target.exists() else {}
            assert standing.items() <= whole.items()
            for name, data in standing.items():
                if "/commits/" in name:
                    assert all(f'"{at}"'.encode() not in data or at in standing for at in whole)
            run(source, target, codec="klt")
            assert tree(target) == whole
            shutil.rmtree(target)

    def test_workers_share_the_tars_and_make_together_what_one_makes(self, tmp_path, source):
        alone = run(source, tmp_path / "alone", codec="klt")
        shares = [run(source, tmp_path / "shared", codec="klt", worker_index=n, num_workers=2) for n in (1, 0)]
        assert [share.units > 0 for share in shares] == [True, True]
        assert sum(share.units for share in shares) == alone.units
        assert sum(share.views for share in shares) == alone.views
        assert tree(tmp_path / "shared") == tree(tmp_path / "alone")

    def test_appended_tars_and_more_views_of_the_source_follow(self, tmp_path, settings):
        tars = make_shards(tmp_path / "tars", (20, 9))
        small = settings(tmp_path / "source", shards=tars.pattern, views=1, teachers=(VIT,), weights=vit(settings))
        extract.run(small)
        run(tmp_path / "source", tmp_path / "target", codec="int8")
        before = tree(tmp_path / "target")
        make_shards(tmp_path / "tars", (6,), first=500, name="later-{:03d}")
        extract.run(replace(small, views=2))
        assert run(tmp_path / "source", tmp_path / "target").units == 4
        assert before.items() <= tree(tmp_path / "target").items()
        check(tmp_path / "target")

    def test_extraction_goes_on_with_a_recoded_cache(self, tmp_path, source, settings):
        run(source, tmp_path / "cache", codec="int8", tokens=2)
        more = settings(tmp_path / "cache", shards=str(source.parent / "tars/*.tar"), codec=None, views=3)
        assert extract.run(more).units == 4
        assert check(tmp_path / "cache").units == 24 + 8


class TestRefusals:
    @pytest.mark.parametrize("target", [".", "inside", ".."])
    def test_of_a_cache_recoded_into_itself(self, source, target):
        with pytest.raises(
            ConfigError, match="are the same folder, or one contains the other: recoding makes a new cache"
        ):
            run(source, source / target, codec="int8")

    def test_of_a_target_by_another_codec_name_both(self, tmp_path, source):
        run(source, tmp_path / "cache", codec="int8", teachers=(VIT,), views=False)
        before = tree(tmp_path / "cache")
        with pytest.raises(CacheError, match=r'made with codec "int8", not "int4"'):
            run(source, tmp_path / "cache", codec="int4", teachers=(CNN, VIT))
        assert tree(tmp_path / "cache") == before

    def test_of_a_target_with_kept_views_of_another_size(self, tmp_path, source):
        run(source, tmp_path / "cache", codec="int8", teachers=(VIT,), views=False)
        location, spec = LocalFolder(tmp_path / "cache"), opened(source)[0].pixels.spec
        Member.ensure(location, VIEWS_MEMBER, {**spec, "size": 64})
        before = tree(tmp_path / "cache")
        with pytest.raises(CacheError, match="was made with size 64, not 32"):
            run(source, tmp_path / "cache", codec="int8")
        assert tree(tmp_path / "cache") == before

    def test_of_a_target_of_other_tars(self, tmp_path, source, cache_folder, monkeypatch):
        for module in (index_seal, segments):
            monkeypatch.setattr(module, "SEALED_TARS", 3)
        shutil.copytree(cache_folder, tmp_path / "sealed")
        sealed = LocalFolder(tmp_path / "sealed")
        segments.seal_index(sealed, segments.read_segments(sealed))
        assert sealed.size("index/seals/000000.json")
        run(source, tmp_path / "cache", codec="int8", views=False)
        before = tree(tmp_path / "cache")
        with pytest.raises(CacheError, match=r"was made with other tars than .*segment 0 differs"):
            run(tmp_path / "sealed", tmp_path / "cache")
        assert tree(tmp_path / "cache") == before

    def test_an_index_seal_is_not_copied_beside_another_text_of_the_index(self, tmp_path, cache_folder, monkeypatch):
        for module in (index_seal, segments):
            monkeypatch.setattr(module, "SEALED_TARS", 3)
        shutil.copytree(cache_folder, tmp_path / "sealed")
        sealed, location = LocalFolder(tmp_path / "sealed"), LocalFolder(tmp_path / "cache")
        (segment,) = segments.read_segments(sealed)
        segments.seal_index(sealed, [segment])
        repacked = [replace(tar, size=tar.size + 1024) for tar in segment.shards]
        location.create("index/000000.json", Segment(0, tuple(repacked)).to_bytes())
        copy_foundations(open_cache(tmp_path / "sealed"), location)
        assert location.size("index/seals/000000.json") is None
        assert segments.read_segments(location)[0].names == segment.names

    def test_a_copy_of_the_source_follows_it(self, tmp_path, source):
        run(source, tmp_path / "small", codec="int8")
        for origin in (source, tmp_path / "small"):
            copy = tmp_path / f"copy-{origin.name}"
            shutil.copytree(origin, copy)
            for name in tree(copy):
                if name.startswith("timm") and f"{NAME}/000001.json" in name:
                    (copy / name).unlink()
            assert run(origin, copy).units == 2
            assert tree(copy) == tree(origin)

    def test_of_a_target_from_other_features(self, tmp_path, source, settings):
        """Its fidelity is that to its first source, so all of its views must come from such features."""
        coarse, fine, target = (tmp_path / name for name in ("coarse", "fine", "cache"))
        run(source, coarse, codec="klt", quality=0.6)
        run(source, target, codec="int8")
        for name in tree(target):
            if f"{NAME}/000001.json" in name:
                (target / name).unlink()
        before = tree(target)
        with pytest.raises(
            CacheError, match=r"@32 was recoded from another source, of codec f16, than .*coarse, of codec"
        ):
            run(coarse, target)
        assert tree(target) == before
        extract.run(settings(fine, shards=str(source.parent / "tars/*.tar"), views=1))
        with pytest.raises(CacheError, match=r"@32 holds features that `extract` made, and those of .*coarse would be"):
            run(coarse, fine, codec="f16")

    def test_of_a_target_standardized_otherwise(self, tmp_path, source, settings):
        tars, few = str(source.parent / "tars/*.tar"), {"teachers": (VIT,), "weights": vit(settings), "views": 1}
        extract.run(settings(tmp_path / "other", shards=tars, calibration_images=30, **few))
        run(source, tmp_path / "cache", views=False, teachers=(VIT,))
        before = tree(tmp_path / "cache")
        with pytest.raises(CacheError, match="its statistics differ, and two standardizations do not mix"):
            run(tmp_path / "other", tmp_path / "cache")
        assert tree(tmp_path / "cache") == before

    def test_of_pixels_that_another_teacher_of_the_target_did_not_see(self, tmp_path, source):
        run(source, tmp_path / "cache", teachers=(CNN,), views=False)
        shutil.copytree(source, tmp_path / "source")
        cache, teacher = opened(tmp_path / "source")
        record = teacher.record(cache.unit(0, 1, NAME))
        changed = replace(record, pixels=record.pixels + np.uint32(1))
        (tmp_path / "source" / record.name).write_bytes(changed.to_bytes())
        with pytest.raises(CacheError, match=r"of shard 000001: .* and .* saw different pixels, and one cache cannot"):
            run(tmp_path / "source", tmp_path / "cache", teachers=(VIT,))

    def test_of_a_teacher_that_is_not_there_name_those_that_are(self, tmp_path, source):
        with pytest.raises(CacheError, match=f"no teacher 'dino'; it has {CNN}, {VIT}"):
            run(source, tmp_path / "cache", teachers=("dino",))

    @pytest.mark.parametrize("what", ["features", "pixels", "record"])
    def test_of_broken_rows_lose_nothing_and_go_on_when_they_are_mended(self, tmp_path, source, what):
        shutil.copytree(source, tmp_path / "source")
        name = {
            "features": f"timm.test_vit@32/features.zarr/000000/{NAME}/patch/c.1.0.0.0",
            "pixels": f"views/features.zarr/000000/{NAME}/rgb/c.1.0.0.0.0",
            "record": f"timm.test_vit@32/commits/000000/{NAME}/000001.json",
        }[what]
        whole = (tmp_path / "source" / name).read_bytes()
        (tmp_path / "source" / name).write_bytes(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
        ran = CliRunner().invoke(
            cli.main, ["recode", str(tmp_path / "source"), str(tmp_path / "cache"), "--codec=int8"]
        )
        assert ran.exit_code == 1
        text = " ".join(ran.output.split())
        assert "unic-cache verify" in text or "unic-cache repair" in text
        assert "Nothing is lost: " in text
        with pytest.raises(BrokenError, match=r"once .*source is repaired, the same command goes on"):
            run(tmp_path / "source", tmp_path / "cache", codec="int8")
        (tmp_path / "source" / name).write_bytes(whole)
        run(tmp_path / "source", tmp_path / "cache")
        run(source, tmp_path / "reference", codec="int8")
        assert tree(tmp_path / "cache") == tree(tmp_path / "reference")


class TestKeptViews:
    def test_are_copied_byte_for_byte(self, tmp_path, source):
        run(source, tmp_path / "cache", codec="int4")
        kept = [
            {name: data for name, data in tree(at).items() if name.startswith("views/")}
            for at in (source, tmp_path / "cache")
        ]
        assert kept[0] == kept[1]
        assert len(kept[0]) > 16

    def test_that_were_compressed_are_copied_so(self, tmp_path, settings, shards):
        plain = settings(tmp_path / "source", teachers=(VIT,), weights=vit(settings), keep_views=True, views=1)
        extract.run(replace(plain, pixel_codec="compact"))
        run(tmp_path / "source", tmp_path / "cache", codec="int8")
        kept = [
            {name: data for name, data in tree(tmp_path / at).items() if name.startswith("views/")}
            for at in ("source", "cache")
        ]
        assert kept[0] == kept[1]
        check(tmp_path / "cache")
        name = next(name for name in kept[0] if name.endswith("rgb/c.1.0.0.0.0"))
        data = kept[0][name]
        (tmp_path / "source" / name).write_bytes(data[:700] + bytes([data[700] ^ 1]) + data[701:])
        with pytest.raises(BrokenError, match=r"views, .*shard 000001: its pixels are not as committed"):
            run(tmp_path / "source", tmp_path / "again", codec="int8")

    def test_of_other_pixels_than_the_targets_teachers_saw_are_refused(self, tmp_path, source):
        run(source, tmp_path / "cache", views=False)
        shutil.copytree(source, tmp_path / "source")
        cache = open_cache(tmp_path / "source")
        record = cache.pixel_record(cache.unit(0, 1, NAME))
        changed = replace(record, pixels=record.pixels + np.uint32(1))
        (tmp_path / "source" / record.name).write_bytes(changed.to_bytes())
        with pytest.raises(CacheError, match=r"shard 000001: .* saw other pixels than the kept ones; .*--no-views"):
            run(tmp_path / "source", tmp_path / "cache")

    def test_are_left_out_where_that_is_asked(self, tmp_path, source):
        assert run(source, tmp_path / "cache", views=False).views == 0
        assert open_cache(tmp_path / "cache").pixels is None
        check(tmp_path / "cache")


@pytest.mark.parametrize("codec", ["klt", "int8"])
def test_a_student_trains_on_a_recoded_cache(tmp_path, source, codec):
    run(source, tmp_path / "cache", codec=codec, tokens=2)
    done = distill.run(
        DistillConfig(
            cache=str(tmp_path / "cache"), out=str(tmp_path / "run"), student="test_vit", img_size=32, patch_size=16,
            steps=2, batch_size=8, tracker="none", threads=2,
        )
    )  # fmt: skip
    assert np.isfinite(done.loss)


class TestRemote:
    def test_caches_on_an_object_store_become_the_same_bytes(self, tmp_path, source, monkeypatch):
        run(source, tmp_path / "cache", codec="klt")
        with ObjectServer() as server:
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            server.objects.update({f"source/{name}": data for name, data in tree(source).items()})
            run("s3://bucket/source", "s3://bucket/cache", codec="klt")
            kept = {n.removeprefix("cache/"): data for n, data in server.objects.items() if n.startswith("cache/")}
            with pytest.raises(ConfigError, match="are the same folder, or one contains the other"):
                run("s3://bucket/source", "s3://bucket/source/")
        assert kept == tree(tmp_path / "cache")

    def test_a_cache_on_a_web_server_is_recoded_here(self, tmp_path, source, serve):
        shutil.copytree(source, tmp_path / "cache")
        run(f"{serve(WithRanges)}/cache", tmp_path / "target", codec="int8", teachers=(CNN,))
        run(source, tmp_path / "reference", codec="int8", teachers=(CNN,))
        assert tree(tmp_path / "target") == tree(tmp_path / "reference")


def test_the_command_says_bytes_before_and_after_and_both_fidelities(tmp_path, source):
    done = CliRunner().invoke(cli.main, ["recode", str(source), str(tmp_path / "cache"), "--codec", "int4"])
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "16 units and 8 of kept pixels" in text
    assert "MB before" in text
    assert "%; 0 units were there already" in text
    assert f"{VIT}: cosine to the source cls 1.00000" in text
    assert "(to the teacher 0." in text


def test_flags_are_the_fields_of_the_config_and_have_its_defaults():
    flags = {parameter.name: parameter for parameter in cli.recode.params}
    fields = {field.name: field for field in fields_of(RecodeConfig)}
    assert set(flags) == set(fields)
    for name, field in fields.items():
        if not flags[name].required and not flags[name].multiple:
            said = flags[name].default() if callable(flags[name].default) else flags[name].default
            assert (said if isinstance(said, bool | int | float | str) else None) == field.default, name
    config = RecodeConfig("a", "b", "klt", 0.98, 0.97, "pcodec", 64, "random", (VIT,), False, "cpu", 3, 1, 2)
    assert RecodeConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(ConfigError, match="worker-index 2 is not one of 0 to 1"):
        RecodeConfig("a", "b", worker_index=2, num_workers=2)
    with pytest.raises(ConfigError, match="quality is a setting of codec klt; int4 has none"):
        RecodeConfig("a", "b", "int4", 0.98)
