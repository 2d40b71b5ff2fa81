"""distill's options for the paper's ablations, and the yardstick that compares the students."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines import distill, extract
from pipelines.training.finished_run import load_student
from pipelines.training.held_out_losses import check_trained, held_out_losses
from pipelines.training.training_set import Snapshot
from tests.conftest import CNN, VIT, log_of, losses_of, views_of
from unic_cache.cache import open_cache
from unic_cache.errors import CacheError, ConfigError
from unic_cache.store.standardize import affine
from unic_cache.student.backbone import prepare
from unic_cache.student.loss import distillation_loss
from unic_cache.student.run_files import CHECKPOINT, CONFIG


class TestKinds:
    def test_what_the_loss_does_not_see_is_not_read(self, training, tmp_path):
        """The same losses from a cache without any patch code on disk."""
        whole = training(kinds=("cls",), out=str(tmp_path / "whole"), steps=2)
        distill.run(whole)
        shutil.copytree(whole.cache, tmp_path / "without")
        for folder in list((tmp_path / "without").rglob("patch")):
            shutil.rmtree(folder)
        distill.run(training(kinds=("cls",), cache=str(tmp_path / "without"), out=str(tmp_path / "less"), steps=2))
        assert losses_of(tmp_path / "less") == losses_of(tmp_path / "whole")
        for teacher in log_of(tmp_path / "less")[0]["teachers"].values():
            assert set(teacher) == {"cls", "coefficient", "top"}

    def test_online_leaves_them_out_too(self, training, settings, shards, tmp_path):
        made = settings(tmp_path)
        online = {"online": True, "teachers": made.teachers, "weights": made.weights, "size": 32, "views": 2}
        distill.run(training(kinds=("patch",), drop_teacher=0.0, steps=1, calibration_images=60, **online))
        found = held_out_losses(tmp_path / "run", training().cache, shards.pattern.replace("*", "000002"), [0])
        assert found.losses_nB.shape == (2, 5)
        (record,) = log_of(tmp_path / "run")
        assert [set(teacher) for teacher in record["teachers"].values()] == [{"patch", "coefficient", "top"}] * 2
        assert record["loss"] == pytest.approx(sum(one["patch"] for one in record["teachers"].values()) / 2)
        with pytest.raises(ConfigError, match="--kinds masks: no teacher gives such tokens; choose from cls, patch"):
            distill.run(training(kinds=("masks",), out=str(tmp_path / "other"), **online))
        assert not list((tmp_path / "other").rglob("calibration.npz"))

    def test_that_no_teacher_or_not_every_teacher_gives_are_named(self, training, cache, monkeypatch):
        with pytest.raises(ConfigError, match="--kinds CLS: no teacher gives such tokens; choose from cls, patch"):
            distill.run(training(kinds=("cls", "CLS")))
        with pytest.raises(ConfigError, match="--tokens 2, but the loss sees no patch tokens; leave --tokens out"):
            distill.run(training(kinds=("cls",), tokens=2))
        monkeypatch.setattr("pipelines.training.training_set.all_teachers", lambda _: (VIT, CNN))
        honest = type(cache).teacher
        half = {VIT: ["cls"], CNN: ["cls", "patch"]}
        monkeypatch.setattr(type(cache), "teacher", lambda self, name: honest(self, name).only(half[name]))
        with pytest.raises(ConfigError, match=rf"no patch tokens from {VIT} \(it gives cls\); add another --kinds"):
            distill.run(training(kinds=("patch",)))


def test_shared_projectors_say_which_teachers_keep_dedicated_ones(training, tmp_path, capsys):
    distill.run(training(shared_projectors=True, projector="last", steps=1))
    assert f"{CNN} keeps a projector per token kind (cls has " in capsys.readouterr().err
    heads = {".".join(name.split(".")[3:4]) for name in load_file(tmp_path / "run" / CHECKPOINT) if "ladder" in name}
    assert heads == {f"{VIT}:*", f"{CNN}:cls", f"{CNN}:patch"}
    with pytest.raises(ConfigError, match=f"none of {CNN} can share its projectors"):
        distill.run(training(shared_projectors=True, teachers=(CNN,), out=str(tmp_path / "other")))


def test_a_run_is_not_resumed_with_other_projectors_or_kinds(training):
    distill.run(training(steps=1))
    for change, began in (
        ({"projector": "last"}, "projector 'ladder', not 'last'"),
        ({"shared_projectors": True}, "shared_projectors False, not True"),
        ({"kinds": ("cls",)}, r"kinds \[\], not \['cls'\]"),
    ):
        with pytest.raises(ConfigError, match=rf"the run began with {began}; keep it to resume"):
            distill.run(training(steps=1, resume=True, **change))


class TestHeldOutLosses:
    @pytest.mark.parametrize(
        "changes", [{"projector": "last", "kinds": ("patch",)}, {"shared_projectors": True, "teachers": (VIT,)}]
    )
    def test_have_the_mean_that_validation_logs(self, training, cache, changes):
        held_out = training().shards.replace("*", "000001")
        config = training(val_shards=held_out, steps=3, **changes)
        run = distill.run(config).encoder.parent
        (value,) = [record["loss"] for record in log_of(run) if record["kind"] == "val"]
        found = held_out_losses(run, config.cache, held_out, [0], threads=1)
        assert found.losses_nB.mean().item() == pytest.approx(value, rel=1e-5)
        assert found.shown == tuple((key, 0) for key in cache.entry(0, 1).keys)
        assert found.losses_nB.shape == (len(found.teachers), 40)

    def test_are_in_the_given_caches_scale_whatever_the_runs_own(self, training, settings, shards, tmp_path):
        """By hand: guesses back to the teacher's own values, then standardized as the other cache's features are."""
        one = {"teachers": (VIT,), "weights": settings(tmp_path).weights[:1]}
        extract.run(settings(tmp_path / "other", calibration_images=30, **one))
        config = training(standardize="phi-s", teachers=(VIT,), steps=3, kinds=("patch",))
        run = distill.run(config).encoder.parent
        found = held_out_losses(run, str(tmp_path / "other"), shards.pattern.replace("*", "000002"), [1, 0], batch=4)
        own, other = (open_cache(folder).teacher(VIT).only(["patch"]) for folder in (config.cache, tmp_path / "other"))
        student, spec, _ = load_student(run, config, (own,))
        matrix, offset = affine(own.calibration, "patch", "phi-s")
        losses = []
        for number in (1, 0):
            guess = student(prepare(torch.from_numpy(views_of(shards, 2, number)), spec))[VIT]["patch"]
            stored = torch.linalg.solve(matrix.double().T, (guess - offset).double().transpose(1, 2)).transpose(1, 2)
            values = own.calibration.destandardize({"patch": stored})
            guesses = {VIT: other.calibration.standardize(values)}
            unit = open_cache(tmp_path / "other").unit(0, 2, f"unic-32-0-{number:03d}")
            targets = {VIT: {"patch": other.features(other.record(unit), range(5))["patch"].double()}}
            losses.append(distillation_loss(guesses, targets, torch.zeros(5, 1), 0.0).losses.detach())
        assert [number for _, number in found.shown] == [1] * 5 + [0] * 5
        torch.testing.assert_close(found.losses_nB.double(), torch.cat(losses, dim=1), rtol=1e-4, atol=1e-5)

    def test_need_the_cache_that_the_run_learned_from_and_its_networks(self, training, settings, shards, tmp_path):
        config = training(steps=1, teachers=(VIT,))
        run = distill.run(config).encoder.parent
        moved = tmp_path / "moved"
        shutil.copytree(config.cache, moved)
        held_out = shards.pattern.replace("*", "000002")
        assert held_out_losses(run, config.cache, held_out, [0], own_cache=str(moved)).losses_nB.shape == (1, 5)
        own, whole = open_cache(moved), open_cache(config.cache)
        teacher = own.teacher(VIT)
        teacher.spec = {**teacher.spec, "teacher": {**teacher.spec["teacher"], "weights_sha256": "0" * 64}}
        with pytest.raises(CacheError, match=rf"{VIT} has other weights than in .*give a cache of the same teachers"):
            check_trained(config, Snapshot.load(run), own, [whole.teacher(VIT)])
        settings = json.loads((run / CONFIG).read_text())
        (run / CONFIG).write_text(json.dumps({**settings, "steps": 2}))
        with pytest.raises(ConfigError, match="run has done 1 of 2 steps; finish it with --resume first"):
            held_out_losses(run, config.cache, held_out, [0], own_cache=str(moved))
        Path(run / CHECKPOINT).unlink()
        with pytest.raises(ConfigError, match="which holds the projectors"):
            held_out_losses(run, config.cache, held_out, [0])
