"""--from RUN: the whole model of a finished run is the start of another, at another size, with other teachers."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines import distill
from pipelines.command.preflight import look
from pipelines.training.first_stage import counterpart, open_first_stage
from pipelines.training.starting import start_student
from tests.conftest import CNN, VIT
from tests.test_distill import StopAfter
from unic_cache.cache import open_cache
from unic_cache.config import DistillConfig
from unic_cache.errors import ConfigError
from unic_cache.student.backbone import encoder_spec
from unic_cache.student.export import load_encoder
from unic_cache.student.run_files import CHECKPOINT, CONFIG


@pytest.fixture(scope="module")
def finished(shards, cache_folder, tmp_path_factory):
    """The config of a finished run of both teachers at 32 px, which kept a moving average."""
    config = DistillConfig(
        cache=str(cache_folder), shards=shards.pattern, out=str(tmp_path_factory.mktemp("runs") / "first"),
        student="test_vit", img_size=32, patch_size=16, steps=2, batch_size=8, lr=1e-3, log_every=2, tracker="none",
        threads=2, ema=0.5, projector="transformer",
    )  # fmt: skip
    distill.run(config)
    return config


@pytest.fixture
def first(finished, tmp_path):
    """`finished` on a copy of the run."""
    shutil.copytree(finished.out, tmp_path / "first")
    return dataclasses.replace(finished, out=str(tmp_path / "first"))


def second(first, **changes):
    fields = {"out": str(Path(first.out).parent / "second"), "from_run": first.out, "ema": None, **changes}
    return dataclasses.replace(first, **fields)


def started(config, **renamed):
    """The student that a config begins with; `renamed` are teachers' names in this run."""
    cache = open_cache(config.cache)
    teachers = [cache.teacher(name) for name in config.teachers or (CNN, VIT)]
    for teacher in teachers:
        teacher.name = renamed.get(teacher.name, teacher.name)
    spec = encoder_spec(config.student, config.img_size, config.patch_size, config.drop_path)
    return start_student(config, spec, teachers, resumed=None, tell=True)


def test_encoder_and_projectors_are_those_that_the_first_run_exported(first, capsys):
    begun = started(second(first))
    weights = load_file(Path(first.out) / CHECKPOINT)
    state = begun.student.state_dict()
    assert all(torch.equal(value, weights[f"ema.{name}"]) for name, value in state.items())
    assert (begun.steps, begun.header, begun.average) == (0, {}, None)
    assert not begun.adamw.state
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"starts from {first.out}, 2 steps: its encoder is taken over" in said
    assert f"{VIT}: its projectors are taken over" in said


def test_another_size_resamples_positions_only_because_it_was_given(first, caplog):
    begun = started(second(first, img_size=48))
    weights = load_file(Path(first.out) / CHECKPOINT)
    state = begun.student.state_dict()
    changed = {name for name, value in state.items() if not torch.equal(value, weights[f"ema.{name}"])} - {
        "encoder.pos_embed"
    }
    assert state["encoder.pos_embed"].shape == (1, 10, 64)
    assert not changed
    assert "positions (pos_embed) are resampled from (1, 5, 64) to (1, 10, 64)" in caplog.text
    with pytest.raises(ConfigError, match=r"does not fit the student unless its positions.*say --img-size 160"):
        started(second(first, img_size=None))


def test_the_same_network_at_another_size_keeps_its_projectors_and_others_begin_anew(first, capsys):
    one = second(first, teachers=(VIT,))
    begun = started(one, **{VIT: "timm:test_vit@48"})
    weights = load_file(Path(first.out) / CHECKPOINT)
    head = begun.student.ladder.heads["timm:test_vit@48:*"]
    old = f"ema.ladder.heads.{VIT}:*."
    assert all(torch.equal(value, weights[old + name]) for name, value in head.state_dict().items())
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"timm:test_vit@48: its projectors are taken over from {VIT}" in said
    assert f"{CNN}: its projectors are left behind: it is no teacher of this run" in said
    fresh = started(dataclasses.replace(one, from_run=None), **{VIT: "other"})
    begun = started(one, **{VIT: "other"})
    assert (
        f"other: its projectors begin anew: {first.out} had no teacher of that name"
        in capsys.readouterr().err.replace("\n", " ")
    )
    ours, theirs = (run.student.ladder.state_dict() for run in (begun, fresh))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_teachers_of_other_weights_kinds_or_standardization_begin_anew(first, capsys):
    spec = encoder_spec("test_vit", 32, 16)
    run = open_first_stage(second(first), spec)
    teacher = open_cache(first.cache).teacher(VIT)
    assert counterpart(run, teacher) == VIT
    teacher.spec = {**teacher.spec, "teacher": {**teacher.spec["teacher"], "weights_sha256": "0" * 64}}
    assert counterpart(run, teacher) is None
    started(second(first, standardize="phi-s"))
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"{VIT}: its projectors begin anew: {first.out} had its targets standardized by channel, not phi-s" in said


@pytest.mark.slow
def test_the_second_run_resumes_without_the_first_and_tells_of_all_teachers(first, tmp_path, monkeypatch):
    config = second(first, teachers=(CNN,), steps=3)
    whole = distill.run(config)
    assert set(whole.licences) == {CNN, VIT}
    parts = dataclasses.replace(config, out=str(tmp_path / "parts"))
    StopAfter(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        distill.run(parts)
    monkeypatch.undo()
    Path(first.out).rename(tmp_path / "gone")
    resumed = dataclasses.replace(parts, resume=True)
    look(resumed)
    assert set(distill.run(resumed).licences) == {CNN, VIT}
    ours, theirs = (load_file(tmp_path / name / CHECKPOINT) for name in ("parts", "second"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    provenance = load_encoder(tmp_path / "parts")[2]
    assert provenance["from"]["steps"] == 2
    assert set(provenance["from"]["teachers"]) == {CNN, VIT}
    assert set(provenance["teachers"]) == {CNN}


class TestRefused:
    def test_what_is_no_finished_run(self, first, tmp_path, monkeypatch):
        (tmp_path / "empty").mkdir()
        for folder in ("nowhere", "empty"):
            with pytest.raises(ConfigError, match="no run of `unic-cache distill`"):
                look(second(first, from_run=str(tmp_path / folder)))
        StopAfter(monkeypatch, 1)
        stopped = dataclasses.replace(first, out=str(tmp_path / "stopped"), steps=6)
        with pytest.raises(KeyboardInterrupt):
            distill.run(stopped)
        monkeypatch.undo()
        with pytest.raises(ConfigError, match=r"stopped has done 1 of 6 steps; finish it with --resume first"):
            distill.run(second(first, from_run=stopped.out))
        (Path(stopped.out) / CHECKPOINT).unlink()
        with pytest.raises(ConfigError, match=rf"--from .*has no {CHECKPOINT}, which holds the projectors"):
            started(second(first, from_run=stopped.out))
        assert not Path(second(first).out, CHECKPOINT).exists()

    def test_another_student_and_other_projectors(self, first):
        with pytest.raises(ConfigError, match="its student is test_vit, not test_vit2; add --student test_vit"):
            started(second(first, student="test_vit2"))
        with pytest.raises(
            ConfigError, match="its --projector is transformer, not ladder, and projectors fit no others"
        ):
            started(second(first, projector="ladder"))

    def test_an_encoder_of_another_step_than_the_checkpoint(self, first, tmp_path):
        shutil.copytree(first.out, tmp_path / "mixed")
        settings = json.loads((tmp_path / "mixed" / CONFIG).read_text())
        (tmp_path / "mixed" / CONFIG).write_text(json.dumps({**settings, "steps": 9}))
        with pytest.raises(ConfigError, match="has done 2 of 9 steps"):
            started(second(first, from_run=str(tmp_path / "mixed")))
