"""--accumulate, --ema, --clip-grad, --compile, --balancing and --loss in whole runs: exact resume, and the log."""

import dataclasses
import json

import pytest
import torch
from accelerate import Accelerator
from click.testing import CliRunner
from safetensors.torch import load_file
from torch.nn.utils import clip_grad_norm_

import cli
from pipelines import distill
from pipelines.command.run_folder import run_settings
from pipelines.training.batch_parts import BatchParts
from pipelines.training.compiling import check_compiler
from pipelines.training.finished_run import open_finished
from pipelines.training.gradients import Gradients
from pipelines.training.run_state import RunState
from pipelines.training.runlog import Meter
from tests.conftest import log_of, losses_of
from tests.test_distill import StopAfter
from unic_cache.cache import open_cache
from unic_cache.config import DistillConfig
from unic_cache.errors import ConfigError
from unic_cache.student.anatomy import levels_of
from unic_cache.student.loss import distillation_loss
from unic_cache.student.run_files import CHECKPOINT


@pytest.fixture
def recorded(monkeypatch):
    """The encoder's class token after each step of a run that keeps a moving average."""
    tokens: list[torch.Tensor] = []
    honest = RunState.update_average

    def update(state: RunState) -> None:
        tokens.append(state.model.encoder.cls_token.detach().clone())
        honest(state)

    monkeypatch.setattr(RunState, "update_average", update)
    return tokens


def test_parts_average_and_clipping_resume_to_the_bit_and_parts_are_the_whole_batch(
    training, tmp_path, monkeypatch, recorded
):
    held_out = training().shards.replace("*", "000002")
    options = {"ema": 0.6, "clip_grad": 0.5, "val_shards": held_out, "eval_every": 3, "steps": 4}
    distill.run(training(out=str(tmp_path / "one"), **options))
    config = training(out=str(tmp_path / "whole"), accumulate=2, **options)
    recorded.clear()
    distill.run(config)

    # The average, by hand
    average = recorded[0]
    for token in recorded[1:]:
        average = 0.6 * average + 0.4 * token
    whole = load_file(tmp_path / "whole" / CHECKPOINT)
    torch.testing.assert_close(whole["ema.encoder.cls_token"], average)
    assert torch.equal(whole["model.encoder.cls_token"], recorded[-1])
    exported = load_file(tmp_path / "whole/encoder.safetensors")
    assert all(torch.equal(value, whole[f"ema.encoder.{name}"]) for name, value in exported.items())
    student = open_finished(tmp_path / "whole", config, open_cache(config.cache)).student
    assert torch.equal(student.encoder.cls_token, whole["ema.encoder.cls_token"])

    # The same steps as with the batch at once
    for ours, theirs in zip(log_of(tmp_path / "whole"), log_of(tmp_path / "one"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert ours.get("grad_norm") == pytest.approx(theirs.get("grad_norm"), abs=1e-3)
    assert [line["grad_norm"] > 0.5 for line in log_of(tmp_path / "one") if line["kind"] == "train"] == [True, True]
    one = load_file(tmp_path / "one" / CHECKPOINT)
    for name in one:
        torch.testing.assert_close(whole[name], one[name], atol=2e-4, rtol=0, msg=name)

    # Stopped and resumed
    parts = dataclasses.replace(config, out=str(tmp_path / "parts"))
    StopAfter(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        distill.run(parts)
    monkeypatch.undo()
    distill.run(dataclasses.replace(parts, resume=True))
    assert losses_of(tmp_path / "parts") == losses_of(tmp_path / "whole")
    for file in (CHECKPOINT, "encoder.safetensors"):
        ours, theirs = (load_file(tmp_path / name / file) for name in ("parts", "whole"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(ConfigError, match=r"the run began with ema 0\.6, not None; keep it to resume"):
        distill.run(dataclasses.replace(parts, resume=True, ema=None))


def test_am_radios_loss_with_dunes_projectors_and_no_dropping_trains(training, tmp_path):
    distill.run(training(loss="am-radio", projector="transformer", balancing="none", steps=1))
    (line,) = log_of(tmp_path / "run")
    teachers = line["teachers"].values()
    assert [teacher["coefficient"] for teacher in teachers] == [1, 1]
    assert line["loss"] == pytest.approx(sum(teacher[kind] for teacher in teachers for kind in ("cls", "patch")) / 4)


def test_the_gradient_is_clipped_as_torch_clips_it_or_left_alone():
    layer = torch.nn.Linear(3, 2)
    layer(torch.ones(1, 3)).sum().backward()
    before = [parameter.grad.clone() for parameter in layer.parameters()]
    alone = BatchParts(batch=1, processes=1, process=0, parts=1, group=1)
    assert Gradients(Accelerator(cpu=True), layer, alone).clipped() is None
    assert all(torch.equal(value, x.grad) for value, x in zip(before, layer.parameters(), strict=True))
    norm = Gradients(Accelerator(cpu=True), layer, alone, 0.1).clipped()
    after = [parameter.grad for parameter in layer.parameters()]
    for parameter, value in zip(layer.parameters(), before, strict=True):
        parameter.grad = value
    assert norm.item() == clip_grad_norm_(layer.parameters(), 0.1).item() > 0.1
    assert all(torch.equal(value, x.grad) for value, x in zip(after, layer.parameters(), strict=True))


def test_the_log_has_the_mean_of_the_finite_norms_and_of_the_images_that_a_teacher_has():
    """fp16 leaves out steps whose gradient overflows."""
    guesses = {"a": {"cls": torch.ones(2, 3)}, "b": {"cls": torch.ones(2, 3)}}
    targets = {"a": {"cls": torch.randn(2, 3)}, "b": {"cls": torch.randn(2, 3)}}
    meter = Meter(Accelerator(cpu=True), {"a": ["cls"], "b": ["cls"]}, clipped=True)
    found = []
    for norm, present in (
        (1.0, [[1, 1], [1, 0]]),
        (torch.inf, [[1, 0], [1, 0]]),
        (torch.nan, [[1, 1], [1, 1]]),
        (4.0, None),
    ):
        shown = None if present is None else torch.tensor(present).bool()
        terms = distillation_loss(guesses, targets, torch.ones(2, 2), 0.5, present_Bn=shown)
        found += [terms.losses[1][image].item() for image in range(2) if present is None or present[image][1]]
        meter.add(terms, norm=torch.tensor(norm))
    line = meter.read()
    assert line["grad_norm"] == 2.5
    assert line["teachers"]["b"]["cls"] == pytest.approx(sum(found) / len(found))
    assert line["teachers"]["b"]["coefficient"] == pytest.approx(5 / 8)


class TestCompile:
    def test_the_encoder_alone_is_compiled_and_gives_the_same_student(self, training, tmp_path, monkeypatch):
        compiled = []

        def stand_in(function, options=None):
            compiled.append((function, options))
            return function

        monkeypatch.setattr(torch, "compile", stand_in)
        distill.run(training(out=str(tmp_path / "compiled"), compile=True, steps=1))
        assert compiled[1:] == [(levels_of, {"fallback_random": True})]
        distill.run(training(out=str(tmp_path / "plain"), steps=1))
        assert len(compiled) == 2
        assert losses_of(tmp_path / "compiled") == losses_of(tmp_path / "plain")

    def test_without_a_compiler_it_is_refused_before_anything_is_done(self, training, tmp_path, monkeypatch):
        def fails(*_, **__):
            raise RuntimeError("No working C++ compiler found")

        monkeypatch.setattr(torch, "compile", fails)
        message = r"--compile needs torch.compile, which takes a C\+\+ compiler.*No working C\+\+ compiler.*leave out"
        with pytest.raises(ConfigError, match=message):
            distill.run(training(compile=True))
        assert not (tmp_path / "run/config.json").exists()

    @pytest.mark.slow
    def test_torch_compiles_here_what_it_is_asked_to(self):
        check_compiler(torch.device("cpu"))


class TestBalancing:
    @pytest.mark.slow
    def test_runs_of_earlier_releases_are_read_and_resumed_by_the_old_name(self, training, tmp_path, monkeypatch):
        StopAfter(monkeypatch, 2)
        with pytest.raises(KeyboardInterrupt):
            distill.run(training(balancing="image"))
        monkeypatch.undo()
        path = tmp_path / "run/config.json"
        settings = json.loads(path.read_text())
        settings["normalization"] = settings.pop("balancing")
        path.write_text(json.dumps(settings))
        assert run_settings(tmp_path / "run").balancing == "image"
        with pytest.raises(ConfigError, match="the run began with balancing 'image', not 'batch'"):
            distill.run(training(resume=True))
        assert distill.run(training(balancing="image", resume=True)).steps == 6

    @pytest.mark.parametrize("flag", ["--balancing", "--normalization"])
    def test_the_old_flag_is_the_new_one(self, flag, monkeypatch):
        made = []
        monkeypatch.setattr("pipelines.command.preflight.look", made.append)
        monkeypatch.setattr(distill, "run", lambda config: 1 / 0)
        CliRunner().invoke(cli.main, ["distill", flag, "image"])
        assert [config.balancing for config in made] == ["image"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": "a.pth", "from_run": "runs/a"}, "--init and --from both give the encoder's weights; choose one"),
        ({"balancing": "none", "drop_teacher": 0.3}, r"--drop-teacher 0\.3 has no effect with --balancing none"),
        ({"batch_size": 8, "accumulate": 3}, "--batch-size 8 does not divide by --accumulate 3"),
        ({"ema": 1.0}, r"ema 1\.0 is out of bounds; choose more than 0 to below 1"),
        ({"clip_grad": 0.0}, r"clip-grad 0\.0 is out of bounds; choose more than 0"),
        ({"crop_scale": (1.0, 0.4)}, r"crop-scale 1\.0,0\.4: the least share comes first, as in 0\.4,1"),
        ({"loss": "l2"}, "loss 'l2' is unknown; choose from unic, am-radio"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        DistillConfig(**changes)
