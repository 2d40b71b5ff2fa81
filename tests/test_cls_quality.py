"""CLS tokens under codec klt: what is kept of them, who keeps which codes, and what older releases would misread."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numcodecs import Zstd

import cli
from pipelines import distill, extract, inspect, plan, recode, verify
from pipelines.extracting.defaults import kept_alike
from pipelines.extracting.specs import fitted_settings
from pipelines.planning.codec_costs import kept_features
from tests.conftest import CNN, VIT, tree
from unic_cache.cache import CachedTeacher, open_cache
from unic_cache.config import DistillConfig, InspectConfig, PlanConfig, RecodeConfig
from unic_cache.errors import CacheError, ConfigError
from unic_cache.store.calibrate import Calibrator
from unic_cache.store.codecs.codec import FeatureCodec, Features
from unic_cache.store.layout import format_of
from unic_cache.token_kinds import TokenKind

NAME = "unic-32-0-000"
KLT = {"codec": "klt", "quality": 0.97}


@pytest.fixture(scope="session")
def coded(tmp_path_factory, settings) -> Path:
    """Two teachers whose CLS tokens are coded too; never to be written to."""
    folder = tmp_path_factory.mktemp("coded") / "cache"
    extract.run(settings(folder, **KLT, cls_quality=0.95))
    return folder


def teachers(folder: Path) -> dict[str, CachedTeacher]:
    return dict(open_cache(folder).teachers)


def stored(folder: Path, kind: str) -> dict[str, bytes]:
    """The objects of a kind's arrays, by name."""
    return {str(name): data for name, data in tree(folder).items() if f"/{kind}/c." in str(name)}


def exact(folder: Path, name: str) -> dict[str, torch.Tensor]:
    cache = open_cache(folder)
    teacher = cache.teachers[name]
    return teacher.features(teacher.record(cache.unit(0, 0, NAME)), range(37))


def whole(folder: Path, **options) -> verify.Report:
    report = verify.run(verify.VerifyConfig(str(folder), **options))
    assert report.state == "whole", report.lines()
    return report


def test_the_mean_cosine_is_as_asked_and_bytes_are_far_fewer():
    torch.manual_seed(0)
    mixing = torch.randn(96, 96) * torch.linspace(1, 0.01, 96)
    features = Features("klt", {"cls": TokenKind(96)}, cls_quality=0.99)
    calibrator = Calibrator(features)
    for _ in range(20):
        calibrator.update({"cls": torch.randn(64, 96) @ mixing.T + 3})
    found = calibrator.calibration()
    codec = found.codec(features)
    unseen = found.standardize({"cls": torch.randn(64, 96) @ mixing.T + 3})
    encoded = codec.encode(unseen)
    decoded = codec.decode(encoded.arrays)
    assert 0.99 <= found.fidelity["cls"] < 0.991
    assert decoded["cls"].shape == unseen["cls"].shape
    assert torch.cosine_similarity(decoded["cls"], unseen["cls"], dim=-1).mean() > 0.987
    assert [array.dtype for array in codec.arrays] == ["uint8"]
    packed = np.ascontiguousarray(encoded.arrays["cls"][:32].numpy().reshape(32, -1, 256).swapaxes(0, 1))
    assert len(Zstd(level=1).encode(packed)) < 32 * 96  # a byte each, half of float16


def test_a_cache_of_coded_cls_tokens_is_whole_and_near_its_teachers(coded, cache_folder, settings):
    report = whole(coded, shards=settings(coded).shards, teacher_check=20, weights=settings(coded).weights)
    assert min(report.cosines.values()) < 0.99
    for name, teacher in teachers(coded).items():
        assert (teacher.spec["format"], teacher.spec["cls_quality"]) == (3, 0.95)
        assert teacher.calibration.fidelity["cls"] == pytest.approx(0.95, abs=0.01)
        ours, theirs = exact(coded, name), exact(cache_folder, name)
        assert ours["cls"].shape == theirs["cls"].shape
        assert torch.cosine_similarity(ours["cls"], theirs["cls"], dim=-1).mean() > 0.9


def test_a_student_trains_from_them_and_any_rows_decode_alike(coded, tmp_path, shards):
    done = distill.run(
        DistillConfig(
            cache=str(coded), out=str(tmp_path / "run"), student="test_vit", img_size=32, patch_size=16, steps=3,
            batch_size=8, tracker="none", threads=2, views=1, shards=shards.pattern,
        )
    )  # fmt: skip
    assert np.isfinite(done.loss)
    cache = open_cache(coded)
    for name, teacher in cache.teachers.items():
        unit = cache.unit(0, 0, NAME)
        order = [36, 0, 17, 31, 32]
        rows = teacher.features(teacher.record(unit), order)
        for kind, x in rows.items():  # a product of other rows may round otherwise
            torch.testing.assert_close(x, exact(coded, name)[kind][order], rtol=0, atol=1e-5)


class TestExtract:
    def test_1_means_float16_and_leaves_no_trace(self, tmp_path, settings):
        extract.run(settings(tmp_path / "one", **KLT, cls_quality=1.0, views=1))
        for teacher in teachers(tmp_path / "one").values():
            assert teacher.spec["format"] == 1
            assert "cls_quality" not in teacher.spec
            assert teacher.calibration.fidelity["cls"] > 0.99999

    def test_the_cache_is_continued_as_it_is(self, coded, tmp_path, settings):
        first = settings(tmp_path / "cache", teachers=(VIT,), **KLT, cls_quality=0.95, views=1)
        extract.run(replace(first, weights=first.weights[:1], calibration_images=60))
        extract.run(settings(tmp_path / "cache", codec=None))  # another teacher, and another view
        assert tree(tmp_path / "cache") == tree(coded)

    def test_another_quality_of_the_same_teacher_is_refused_by_name(self, coded, settings):
        before = tree(coded)
        with pytest.raises(CacheError, match=r"was made with cls_quality 0\.95, not 0\.9;"):
            extract.run(settings(coded, codec=None, cls_quality=0.9))
        with pytest.raises(CacheError, match=r"was made with cls_quality 0\.95, not null;"):
            extract.run(settings(coded, codec=None, cls_quality=1.0))
        assert tree(coded) == before

    def test_another_codec_has_no_such_setting(self, settings, cache_folder, tmp_path):
        with pytest.raises(ConfigError, match="cls-quality is a setting of codec klt; int8 has none"):
            settings(tmp_path, codec="int8", cls_quality=0.9)
        with pytest.raises(ConfigError, match=r"cls-quality is a setting of codec klt, but .* keeps .* as f16; leave"):
            extract.run(settings(cache_folder, codec=None, cls_quality=0.9))


class TestWhereNoneIsAsked:
    """The study's qualities for a new teacher, and for all others what stands."""

    def test_new_teachers_get_the_studys(self, tmp_path, settings):
        extract.run(settings(tmp_path / "cache", codec=None, views=1))
        kept = {(one.spec["quality"], one.spec["cls_quality"]) for one in teachers(tmp_path / "cache").values()}
        assert kept == {(0.96, 0.99)}

    @pytest.mark.parametrize(("quality", "cls_quality"), [(0.9, 0.99), (0.99, 0.99), (0.991, None), (0.9998, None)])
    def test_cls_tokens_are_never_coarser_than_patch_tokens(self, quality, cls_quality):
        asked = RecodeConfig("SRC", "DST", codec="klt", quality=quality)
        kinds = {"cls": TokenKind(8), "patch": TokenKind(8, (2, 2))}
        assert fitted_settings(asked, {}, kinds).get("cls_quality") == cls_quality
        assert "cls_quality" not in fitted_settings(asked, {}, {"patch": kinds["patch"]})

    @pytest.mark.parametrize(("kinds", "cls_quality"), [(("cls", "patch"), 0.99), (("patch",), None)])
    def test_plan_assumes_the_same(self, kinds, cls_quality):
        every = {"cls": TokenKind(8), "patch": TokenKind(8, (2, 2))}
        teacher = SimpleNamespace(spec=SimpleNamespace(kinds={kind: every[kind] for kind in kinds}))
        found = kept_features(PlanConfig(("a",)), teacher, "klt")
        assert (found.quality, found.cls_quality) == (0.96, cls_quality)
        assert kept_features(PlanConfig(("a",)), teacher, "int8").cls_quality is None

    def test_a_cache_with_float16_cls_tokens_goes_on_so(self, tmp_path, settings):
        first = settings(tmp_path / "cache", teachers=(VIT,), **KLT, cls_quality=1.0, views=1)
        extract.run(replace(first, weights=first.weights[:1]))
        extract.run(settings(tmp_path / "cache", codec=None, views=2))
        kept = {name: (one.spec["quality"], one.spec["format"]) for name, one in teachers(tmp_path / "cache").items()}
        assert kept == {VIT: (0.97, 1), CNN: (0.97, 1)}

    @pytest.mark.parametrize(
        ("quality", "others", "cls_quality"),
        [
            (None, [("cls", None)], 1.0),
            (None, [("cls", 0.9)], 0.9),
            (0.96, [("cls", None)], 1.0),
            (0.96, [("cls", 0.97)], 0.97),
            (0.98, [("cls", 0.97)], None),  # finer than that: its own default
            (None, [("cls", 0.9), ("patch", None)], 0.9),  # a teacher without CLS tokens says nothing of them
            (None, [("patch", None)], None),
            (None, [("cls", 0.9), ("cls", None)], None),
        ],
    )
    def test_a_new_teachers_are_kept_as_the_others_have_them(self, tmp_path, settings, quality, others, cls_quality):
        every = {"cls": TokenKind(8), "patch": TokenKind(8, (2, 2))}
        found = {
            str(place): SimpleNamespace(
                spec={"codec": "klt", "quality": 0.96, **({} if kept is None else {"cls_quality": kept})},
                kinds={name: kind for name, kind in every.items() if name in {first, "patch"}},
            )
            for place, (first, kept) in enumerate(others)
        }
        asked = settings(tmp_path, codec=None, quality=quality)
        cache = SimpleNamespace(teachers=found, uncalibrated={})
        assert kept_alike(asked, cache).cls_quality == cls_quality

    def test_a_teacher_without_cls_tokens_has_no_such_setting(self):
        asked = RecodeConfig("SRC", "DST", codec="klt", cls_quality=0.9)
        assert "cls_quality" not in fitted_settings(asked, {}, {"patch": TokenKind(8, (2, 2))})

    def test_recode_keeps_what_klt_has_and_gives_another_codec_the_studys(self, tmp_path, settings, cache_folder):
        extract.run(settings(tmp_path / "klt", **KLT, cls_quality=1.0, views=1))
        found = {}
        for name, source in (("same", tmp_path / "klt"), ("fitted", cache_folder)):
            recode.run(RecodeConfig(str(source), str(tmp_path / name), codec="klt", device="cpu", threads=2))
            spec = teachers(tmp_path / name)[VIT].spec
            found[name] = spec["quality"], spec.get("cls_quality")
        assert found == {"same": (0.97, None), "fitted": (0.96, 0.99)}


class TestRecode:
    def run(self, source: Path, target: Path, **changes) -> recode.Summary:
        return recode.run(RecodeConfig(str(source), str(target), device="cpu", threads=2, **changes))

    def test_coding_cls_tokens_leaves_every_patch_code_and_the_other_way_round(self, tmp_path, settings):
        extract.run(settings(tmp_path / "plain", **KLT, cls_quality=1.0))
        done = self.run(tmp_path / "plain", tmp_path / "coded", cls_quality=0.9)
        assert stored(tmp_path / "coded", "patch") == stored(tmp_path / "plain", "patch") != {}
        assert stored(tmp_path / "coded", "cls") != stored(tmp_path / "plain", "cls")
        assert done.after < done.before
        for name in (VIT, CNN):
            assert done.fidelity[name]["patch"] == 1
            assert done.fidelity[name]["cls"] == pytest.approx(0.9, abs=0.03)
        whole(tmp_path / "coded")
        self.run(tmp_path / "coded", tmp_path / "coarse", quality=0.9)
        assert stored(tmp_path / "coarse", "cls") == stored(tmp_path / "coded", "cls")
        assert stored(tmp_path / "coarse", "patch") != stored(tmp_path / "coded", "patch")
        self.run(tmp_path / "coded", tmp_path / "sampled", tokens=2, sampling="random")
        assert stored(tmp_path / "sampled", "cls") == stored(tmp_path / "coded", "cls")
        came = teachers(tmp_path / "coarse")[VIT].spec["provenance"]["recoded_from"]
        assert (came["cls_quality"], "cls_quality" in came["recoded_from"]) == (0.9, False)
        for folder in ("coarse", "sampled"):
            whole(tmp_path / folder)

    def test_to_another_codec_they_become_float16_of_what_was_kept(self, coded, tmp_path):
        self.run(coded, tmp_path / "f16", codec="f16")
        whole(tmp_path / "f16")
        assert "cls_quality" not in teachers(tmp_path / "f16")[VIT].spec
        for kind in ("cls", "patch"):
            assert torch.allclose(exact(coded, VIT)[kind], exact(tmp_path / "f16", VIT)[kind], rtol=1e-3, atol=1e-3)

    def test_the_same_settings_copy_every_code_and_another_coder_too(self, coded, tmp_path):
        self.run(coded, tmp_path / "same")
        assert all(stored(tmp_path / "same", kind) == stored(coded, kind) for kind in ("cls", "patch"))
        self.run(coded, tmp_path / "pcodec", coder="pcodec")
        whole(tmp_path / "pcodec")
        assert all(
            torch.equal(exact(tmp_path / "pcodec", CNN)[kind], exact(coded, CNN)[kind]) for kind in ("cls", "patch")
        )

    def test_clipped_values_of_codes_that_stay_stay_counted(self, coded, tmp_path):
        self.run(coded, tmp_path / "same")
        for folder in (coded, tmp_path / "same"):
            cache = open_cache(folder)
            counts = [record.clipped for teacher in cache.teachers.values() for record in records(cache, teacher)]
            assert sum(counts) == sum(
                record.clipped for teacher in open_cache(coded).teachers.values() for record in records(cache, teacher)
            )


def records(cache, teacher) -> list:
    return [teacher.record(unit) for unit in cache.units(teacher.member)]


class TestPlan:
    def test_it_counts_them_and_its_command_asks_for_them(self, tmp_path, settings, shards):
        found = {}
        for quality in (None, 0.9):
            config = PlanConfig(
                teachers=(VIT,), weights=settings(tmp_path).weights[:1], cache=str(tmp_path / "c"),
                shards=shards.pattern, size=32, images=40, student="test_vit", img_size=32, patch_size=16, device="cpu",
                threads=1, views=2, codec="klt", coder="zstd", cls_quality=quality,
            )  # fmt: skip
            found[quality] = plan.run(config)
        before, after = (
            next(k.bytes_a_view for k in one.costs.kept if k.way == ("klt", "zstd", None)) for one in found.values()
        )
        assert after < before
        assert "--cls-quality 0.9" in " ".join(found[0.9].command)
        assert "--cls-quality" not in " ".join(found[None].command)
        assert "CLS tokens at 0.9 " in found[0.9].evidence


class TestSpecs:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": 1}, "says format 1, which does not fit its cls_quality"),
            ({"format": 2, "coder": "pcodec"}, "says format 2, which does not fit its coder and cls_quality"),
            ({"cls_quality": 1.0}, "cls_quality 1.0 is not a mean cosine"),
            ({"cls_quality": "0.9"}, "cls_quality '0.9' is not a mean cosine"),
            ({"codec": "f16"}, "cls_quality is a setting of codec klt"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, coded, tmp_path, change, message):
        spec = {**teachers(coded)[VIT].spec, **change}
        member = teachers(coded)[VIT].member
        with pytest.raises(CacheError, match=message):
            type(member)(member.location, member.folder, spec)

    def test_only_the_key_makes_it_of_format_3(self, coded):
        spec = teachers(coded)[VIT].spec
        assert format_of({**spec, "coder": "pcodec"}) == format_of(spec) == 3
        assert format_of({key: value for key, value in spec.items() if key != "cls_quality"}) == 1

    def test_a_calibration_without_their_tables_is_refused(self, coded):
        teacher = teachers(coded)[VIT]
        patch_alone = {name: x for name, x in teacher.calibration.klt.items() if not name.startswith("cls_")}
        with pytest.raises(CacheError, match="holds no codec klt"):
            FeatureCodec(teacher.codec.features, patch_alone)
        narrow = replace(teacher.codec.features, kinds={**teacher.kinds, "cls": TokenKind(8)})
        with pytest.raises(CacheError, match=r"the calibration is of 1 tokens of \d+ channels, but the spec says 8"):
            FeatureCodec(narrow, teacher.calibration.klt)


def test_inspect_and_the_command_line_say_it(coded, tmp_path):
    found = inspect.run(InspectConfig(str(coded)))["teachers"][VIT]
    assert found["cls_quality"] == 0.95
    assert found["bytes_per_token"]["cls"] < 2 * found["features"]["cls_dim"]
    assert "--cls-quality" in CliRunner().invoke(cli.main, ["extract", "--help"]).output
    done = CliRunner().invoke(cli.main, ["inspect", str(coded), "--json"])
    assert json.loads(done.stdout)["teachers"][VIT]["cls_quality"] == 0.95
