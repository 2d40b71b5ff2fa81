"""distill's options for the paper's ablations."""

import shutil

import pytest
from safetensors.torch import load_file

from pipelines import distill
from tests.conftest import CNN, VIT, log_of, losses_of
from unic_cache.errors import ConfigError
from unic_cache.student.run_files import CHECKPOINT


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

    def test_online_leaves_them_out_too(self, training, settings, tmp_path):
        made = settings(tmp_path)
        online = {"online": True, "teachers": made.teachers, "weights": made.weights, "size": 32, "views": 2}
        distill.run(training(kinds=("patch",), drop_teacher=0.0, steps=1, calibration_images=60, **online))
        (record,) = log_of(tmp_path / "run")
        assert [set(teacher) for teacher in record["teachers"].values()] == [{"patch", "coefficient", "top"}] * 2
        assert record["loss"] == pytest.approx(sum(one["patch"] for one in record["teachers"].values()) / 2)

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
