"""Targets from the cache and from live teachers, standardized in other ways, and held to some tokens."""

import json
import shutil

import numpy as np
import pytest
import torch

from pipelines import distill, extract
from tests.conftest import CNN, VIT, log_of, losses_of, picture, png, tree, write_tar
from tests.test_distill import StopAfter
from unic_cache.cache import open_cache
from unic_cache.errors import CacheError, ConfigError, ShardError
from unic_cache.store.calibrate import Calibration, Calibrator
from unic_cache.store.codecs.codec import Features
from unic_cache.store.standardize import affine, between
from unic_cache.token_kinds import TokenKind


@pytest.fixture
def online(settings, tmp_path):
    """What a DistillConfig needs to run the two teachers of the shared cache itself."""
    made = settings(tmp_path)
    return {
        "online": True,
        "teachers": (VIT, CNN),
        "weights": made.weights,
        "size": made.size,
        "views": made.views,
        "calibration_images": made.calibration_images,
    }


def interrupted(*_, **__):
    """An attempt ends here: the teachers are calibrated, and no checkpoint is written."""
    raise KeyboardInterrupt


class TestOnline:
    def test_losses_are_those_of_an_f16_cache_step_for_step(self, training, online, tmp_path):
        common = {"log_every": 1, "steps": 12, "teachers": (VIT, CNN)}
        distill.run(training(out=str(tmp_path / "cached"), **common))
        distill.run(training(out=str(tmp_path / "live"), **{**common, **online}))
        for cached, live in zip(losses_of(tmp_path / "cached"), losses_of(tmp_path / "live"), strict=True):
            assert cached["step"] == live["step"]
            assert live["loss"] == pytest.approx(cached["loss"], rel=2e-4), cached["step"]
            for name, teacher in cached["teachers"].items():
                assert live["teachers"][name]["cls"] == pytest.approx(teacher["cls"], rel=1e-3)

    def test_sampled_tokens_are_the_same_too(self, training, online, tmp_path):
        common = {"log_every": 1, "steps": 3, "teachers": (VIT, CNN), "tokens": 2}
        distill.run(training(out=str(tmp_path / "cached"), **common))
        distill.run(training(out=str(tmp_path / "live"), **{**common, **online}))
        for cached, live in zip(losses_of(tmp_path / "cached"), losses_of(tmp_path / "live"), strict=True):
            assert live["loss"] == pytest.approx(cached["loss"], rel=2e-4)

    def test_no_feature_is_kept(self, training, online, tmp_path):
        distill.run(training(**online, out=f"file://{tmp_path}/run"))
        assert (tmp_path / "run/online/index/000000.json").exists()
        assert not list((tmp_path / "run/online").rglob("c.*"))

    def test_held_out_shards_are_validated_and_not_trained_on(self, training, online, shards, tmp_path):
        held_out = str(shards.folder / "000002.tar")
        distill.run(training(val_shards=held_out, **online))
        assert [line["kind"] for line in log_of(tmp_path / "run")][-1] == "val"
        assert json.loads((tmp_path / "run/snapshot.json").read_text())["train"] == ["000000", "000001"]

    def test_a_mistyped_validation_set_is_refused_before_anything_is_written(self, training, online, tmp_path):
        with pytest.raises(ShardError, match="--val-shards: no shard matches"):
            distill.run(training(val_shards=str(tmp_path / "nothing-*.tar"), **online))
        assert not (tmp_path / "run/online").exists()

    def test_a_validation_tar_does_not_take_the_place_of_one_that_is_trained_on(
        self, training, online, shards, tmp_path
    ):
        """Of equal names and keys, as of two sets of 000000.tar with numbers as keys, one would be lost."""
        write_tar(tmp_path / "val/000002.tar", [(f"image{n:05d}", png(picture(n + 500)), 0) for n in range(77, 82)])
        with pytest.raises(ShardError, match=r"val/000002.tar has the name of .*/000002.tar, by which tars are known;"):
            distill.run(training(val_shards=str(tmp_path / "val/*.tar"), **online))
        assert not (tmp_path / "run/online").exists()
        (tmp_path / "links").symlink_to(shards.folder)
        shutil.copy(shards.folder / "000002.tar", tmp_path)
        for name in ("links/000002.tar", "000002.tar"):
            distill.run(training(val_shards=str(tmp_path / name), **online, out=str(tmp_path / name[:4])))
            assert json.loads((tmp_path / name[:4] / "snapshot.json").read_text())["train"] == ["000000", "000001"]

    @pytest.mark.parametrize(
        ("then", "said"),
        [
            ({"size": 48}, "views unic-48-0, not unic-32-0"),
            ({"shards": "{}/00000[01].tar"}, "2 tars from 000000 on, not those of --shards in their order"),
            ({"calibration_images": 30}, "30 views for timm:test_vit@32, not 60"),
        ],
    )
    def test_calibrations_of_an_earlier_attempt_serve_its_own_settings_alone(
        self, training, online, shards, tmp_path, monkeypatch, then, said
    ):
        then = {key: value.format(shards.folder) if key == "shards" else value for key, value in then.items()}
        with monkeypatch.context() as patched:
            patched.setattr(distill, "Stream", interrupted)
            with pytest.raises(KeyboardInterrupt):
                distill.run(training(**{**online, **then}))
        with pytest.raises(ConfigError, match=rf"online has the calibrations of an earlier attempt, on {said}; delete"):
            distill.run(training(**online))
        distill.run(training(**{**online, **then}))

    def test_a_resumed_run_keeps_its_tars(self, training, online, shards, tmp_path, monkeypatch):
        few = f"{shards.folder}/00000[02].tar"
        common = {**online, "steps": 6, "batch_size": 8}
        StopAfter(monkeypatch, 3)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 6"):
            distill.run(training(**common, shards=few))
        monkeypatch.undo()
        before = tree(tmp_path / "run")
        with pytest.raises(
            ConfigError, match=r"trains on 2 tars, but .* now give 3: 000001 is new\. Give the same tars"
        ):
            distill.run(training(**common, resume=True))
        with pytest.raises(ConfigError, match=r"trains on 2 tars, but .* now give 1: 000002 is missing"):
            distill.run(training(**common, shards=f"{shards.folder}/000000.tar", resume=True))
        assert tree(tmp_path / "run") == before
        assert np.isfinite(distill.run(training(**common, shards=few, resume=True)).loss)

    @pytest.mark.parametrize("tar", ["000000", "000002"], ids=["trained on", "validated on"])
    def test_a_resumed_run_keeps_its_pictures(self, training, online, shards, tmp_path, monkeypatch, tar):
        shutil.copytree(shards.folder, tmp_path / "tars")
        given = {"shards": f"{tmp_path}/tars/00000[01].tar", "val_shards": f"{tmp_path}/tars/000002.tar"}
        common = {**online, **given, "steps": 6, "batch_size": 8}
        StopAfter(monkeypatch, 3)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 6"):
            distill.run(training(**common))
        monkeypatch.undo()
        numbers = range(37) if tar == "000000" else range(77, 82)
        samples = [(f"image{n:05d}", png(picture(n + 500 * (n in {3, 80}))), n % 3) for n in numbers]  # one is another
        write_tar(tmp_path / f"tars/{tar}.tar", samples)
        with pytest.raises(ConfigError, match=rf"{tar}.tar, row 3: an image of .* bytes, and of .* when .*run began"):
            distill.run(training(**common, resume=True))

    def test_a_teacher_named_twice_is_one(self, training, online, tmp_path):
        common = {**online, "steps": 4, "log_every": 1}
        distill.run(training(**common, out=str(tmp_path / "once")))
        distill.run(training(**{**common, "teachers": (VIT, CNN, VIT)}, out=str(tmp_path / "twice")))
        assert losses_of(tmp_path / "once") == losses_of(tmp_path / "twice")

    def test_every_epoch_shows_another_view_unless_told_otherwise(self, training, online, tmp_path):
        distill.run(training(**{**online, "views": None}, steps=21, batch_size=8))
        assert json.loads((tmp_path / "run/snapshot.json").read_text())["numbers"] == [0, 1, 2]

    def test_a_bad_image_counts_for_nothing(self, training, online, tmp_path):
        samples = [(f"image{n:05d}", png(picture(n)), 0) for n in range(30)]
        samples[7] = ("image00007", b"no image", 0)
        write_tar(tmp_path / "tars/bad.tar", samples)
        done = distill.run(training(**online, shards=str(tmp_path / "tars/*.tar"), steps=4, batch_size=15))
        assert done.broken == 2
        assert np.isfinite(done.loss)

    def test_teachers_must_be_named(self, training, online):
        with pytest.raises(ConfigError, match="--online runs the teachers itself: name each with --teacher"):
            distill.run(training(**{**online, "teachers": (), "weights": ()}))

    def test_a_cache_needs_no_weights(self, training):
        with pytest.raises(ConfigError, match="--weights are of teachers that --online runs"):
            training(weights=(("", "x.pth"),))


class TestTokens:
    def test_a_cache_of_some_tokens_trains_as_a_whole_one_that_is_held_to_them(self, training, settings, tmp_path):
        extract.run(settings(tmp_path / "some", tokens=3))
        distill.run(training(out=str(tmp_path / "held"), tokens=3, log_every=1))
        distill.run(training(out=str(tmp_path / "kept"), cache=str(tmp_path / "some"), log_every=1))
        assert losses_of(tmp_path / "held") == losses_of(tmp_path / "kept")

    def test_fewer_tokens_of_a_sample_are_those_of_the_whole(self, training, settings, tmp_path):
        extract.run(settings(tmp_path / "some", tokens=3))
        distill.run(training(out=str(tmp_path / "held"), tokens=2, log_every=1))
        distill.run(training(out=str(tmp_path / "kept"), cache=str(tmp_path / "some"), tokens=2, log_every=1))
        assert losses_of(tmp_path / "held") == losses_of(tmp_path / "kept")

    def test_the_loss_is_unbiased_over_views(self, training, tmp_path):
        distill.run(training(out=str(tmp_path / "all"), steps=1, log_every=1, drop_teacher=0.0))
        distill.run(
            training(out=str(tmp_path / "some"), steps=1, log_every=1, drop_teacher=0.0, tokens=2, batch_size=8)
        )
        whole, some = (losses_of(tmp_path / name)[0]["teachers"][VIT] for name in ("all", "some"))
        assert some["cls"] == whole["cls"]
        assert some["patch"] != whole["patch"]
        assert some["patch"] == pytest.approx(whole["patch"], rel=0.2)

    def test_more_than_are_kept_are_refused(self, training):
        with pytest.raises(ConfigError, match="--tokens 5, but only 4 tokens of the grid 2 x 2 are stored"):
            distill.run(training(tokens=5))


class TestStandardizations:
    @pytest.fixture
    def tokens(self):
        generator = torch.Generator().manual_seed(0)
        mixing = torch.randn(6, 6, generator=generator)
        return torch.randn(400, 9, 6, generator=generator) @ mixing * torch.logspace(-1, 1, 6) + 5

    @pytest.fixture
    def calibration(self, tokens) -> Calibration:
        calibrator = Calibrator(Features("f16", {"patch": TokenKind(6, (3, 3))}))
        calibrator.update({"patch": tokens})
        return calibrator.calibration()

    def changed(self, calibration, tokens, name):
        kept = calibration.standardize({"patch": tokens})["patch"]
        matrix, offset = affine(calibration, "patch", name)
        return kept @ matrix + offset

    def test_channel_is_what_is_kept(self, calibration):
        assert affine(calibration, "patch", "channel") is None

    def test_none_gives_the_teachers_own_values(self, calibration, tokens):
        assert torch.allclose(self.changed(calibration, tokens, "none"), tokens, rtol=1e-4, atol=1e-4)

    def test_phi_s_gives_every_channel_variance_one_by_one_scalar_and_a_rotation(self, calibration, tokens):
        changed = self.changed(calibration, tokens, "phi-s").reshape(-1, 6)
        covariance = torch.cov(changed.T.double())
        assert covariance.diagonal().mean().item() == pytest.approx(1, abs=0.05)
        own = torch.cdist(tokens.reshape(-1, 6)[:50], tokens.reshape(-1, 6)[:50])
        ratio = torch.cdist(changed[:50], changed[:50])[own > 0.1] / own[own > 0.1]
        assert ratio.std() / ratio.mean() < 1e-3
        assert changed.mean(dim=0).abs().max() < 0.1

    def test_phi_s_balances_the_channels_where_hadamard_matrices_exist(self):
        tokens = torch.randn(4000, 1, 8, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 2, 8)
        calibrator = Calibrator(Features("f16", {"patch": TokenKind(8, (1, 1))}))
        calibrator.update({"patch": tokens})
        found = calibrator.calibration()
        variances = self.changed(found, tokens, "phi-s").reshape(-1, 8).var(dim=0)
        assert (variances - 1).abs().max() < 0.1

    def test_a_calibration_without_covariance_has_no_phi_s(self, calibration):
        bare = Calibration(calibration.mean, calibration.std, {})
        with pytest.raises(CacheError, match="phi-s needs the covariance of patch tokens"):
            affine(bare, "patch", "phi-s")

    def test_a_run_trains_on_what_it_was_asked_for(self, training, tmp_path, cache_folder):
        for name in ("channel", "phi-s", "none"):
            distill.run(training(out=str(tmp_path / name), standardize=name, steps=2))
        losses = {name: losses_of(tmp_path / name)[-1]["loss"] for name in ("channel", "phi-s", "none")}
        assert len(set(losses.values())) == 3
        assert open_cache(cache_folder).teachers[VIT].calibration.covariance


@pytest.mark.parametrize("name", ["channel", "phi-s", "none"])
def test_values_are_restated_in_another_caches_statistics(name):
    draws = np.random.default_rng(0)
    own, other = (
        Calibration(
            {"patch": draws.normal(size=8)},
            {"patch": draws.uniform(0.5, 2, 8)},
            {},
            {"patch": np.eye(8, dtype=np.float32)},
        )
        for _ in range(2)
    )
    values = torch.from_numpy(draws.normal(size=(5, 8))).float()
    stored = own.standardize({"patch": values})["patch"]
    found = affine(own, "patch", name)
    asked = stored if found is None else stored @ found[0] + found[1]
    matrix, offset = between(own, other, "patch", name)
    torch.testing.assert_close(asked @ matrix + offset, other.standardize({"patch": values})["patch"])
    assert between(own, own, "patch", "channel") is None
