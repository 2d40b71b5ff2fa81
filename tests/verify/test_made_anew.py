"""Making a sample of views and features again finds what no checksum can."""

import dataclasses

import pytest
import timm
import torch
from crc32c import crc32c
from safetensors.torch import save_file

from pipelines import recode
from pipelines.verifying.recompute import check_rules
from tests.conftest import CNN, VIT, picture, png, write_tar
from tests.verify.damage import CNN_FOLDER, check, record_of
from unic_cache.config import RecodeConfig
from unic_cache.errors import CacheError, ConfigError
from unic_cache.store.npz import load_npz, save_npz


class TestMadeAnew:
    def test_views_and_answers_are_those_that_are_kept(self, whole, tars, settings):
        weights = settings(whole).weights
        report = check(whole, shards=str(tars / "*.tar"), pixel_check=30, teacher_check=7, weights=weights)
        assert (report.exit_code, report.views) == (0, 30)
        assert min(report.cosines[VIT], report.cosines[CNN]) > 0.9995

    def test_teachers_are_asked_about_kept_views_without_any_tar(self, whole, settings):
        assert check(whole, teacher_check=3, weights=settings(whole).weights).cosines[CNN] > 0.9999

    def test_a_recoded_cache_has_the_losses_of_all_its_codecs(self, whole, tmp_path, settings):
        recode.run(RecodeConfig(str(whole), str(tmp_path / "klt"), codec="klt", quality=0.97, device="cpu"))
        recode.run(RecodeConfig(str(tmp_path / "klt"), str(tmp_path / "f16"), codec="f16", device="cpu"))
        report = check(tmp_path / "f16", teacher_check=30, weights=settings(whole).weights)
        assert report.exit_code == 0
        assert 0.85 < min(report.cosines.values()) < 0.999

    def test_other_answers_are_told(self, broken, settings):
        """A calibration swapped together with its checksum in every record: nothing else detects it."""
        path = broken / CNN_FOLDER / "calibration.npz"
        arrays = load_npz(path.read_bytes(), "x")
        arrays["cls_mean"] = arrays["cls_mean"] + 3 * arrays["cls_std"]
        records = [record_of(broken, CNN, shard) for shard in (0, 1)]
        path.write_bytes(save_npz(arrays))
        for record in records:
            changed = dataclasses.replace(record, calibration=crc32c(path.read_bytes()))
            (broken / record.name).write_bytes(changed.to_bytes())
        assert check(broken).exit_code == 0
        report = check(broken, teacher_check=5, weights=settings(broken).weights)
        assert report.exit_code == 1
        (first, *_) = report.broken
        assert "to the teacher's output, at least 0.9999 expected: that differs now, or mean, std" in first.why

    def test_other_weights_are_refused(self, whole, tmp_path, settings):
        torch.manual_seed(99)
        save_file(timm.create_model("test_vit").state_dict(), tmp_path / "other.safetensors")
        weights = ((VIT, str(tmp_path / "other.safetensors")), settings(whole).weights[1])
        with pytest.raises(CacheError, match=r"was made with weights [0-9a-f]{64}, not [0-9a-f]{64}"):
            check(whole, teacher_check=3, weights=weights)

    def test_other_tars_are_refused(self, whole, tmp_path):
        write_tar(tmp_path / "000000.tar", [(f"other{n}", png(picture(n)), 0) for n in range(35)])
        with pytest.raises(CacheError, match="made with other shards"):
            check(whole, shards=str(tmp_path / "*.tar"))

    def test_a_pixel_check_without_tars_makes_no_sense(self, whole):
        with pytest.raises(ConfigError, match="--pixel-check makes views again from tars: add --shards PATTERN"):
            check(whole, pixel_check=3)


def test_a_name_that_stood_for_other_targets_is_told_and_not_compared():
    now = {"cls_rule": "pooled", "patch_rule": "norm-patch"}
    check_rules("timm:x", now, dict(now))
    with pytest.raises(CacheError, match=r"timm:x: the cache was made with cls_rule norm-cls, and the name now means"):
        check_rules("timm:x", {**now, "cls_rule": "norm-cls"}, now)
