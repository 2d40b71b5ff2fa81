"""Students of other families through the commands, by the spellings that --student and --init take."""

import dataclasses
import json
import re
import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from pipelines import distill, evaluate, extract
from pipelines.extracting.students import named_spec, named_start, pixels_words, started_encoder, student_spec
from pipelines.training import learner
from pipelines.training.gradients import Gradients
from pipelines.training.held_out_losses import held_out_losses
from tests import tiny_models
from tests.conftest import log_of, losses_of, make_shards
from tests.test_distill import StopAfter
from unic_cache.config import DistillConfig, EvaluateConfig, ExtractConfig
from unic_cache.errors import ConfigError
from unic_cache.student.backbone import build_encoder, embed, encoder_spec
from unic_cache.student.export import load_encoder, save_encoder
from unic_cache.student.run_files import CHECKPOINT, CONFIG, ENCODER
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.model import load_teacher

slow = pytest.mark.slow
SIX = (  # a plain ViT with registers, rotary positions, windows, batch norms, a convolution after the maps, attention
    "test_resnet",
    pytest.param("tiny_dinov3", marks=slow),
    pytest.param("tiny_swin", marks=slow),
    pytest.param("test_convnext", marks=slow),
    pytest.param("test_efficientnet", marks=slow),
    pytest.param("tiny_vit_reg_gap", marks=slow),
    pytest.param("mobilenetv4_conv_small_035", marks=slow),
    pytest.param("test_vit3", marks=slow),
    pytest.param("mobilevit_xxs", marks=slow),
)


@pytest.fixture
def family(training):
    """A DistillConfig for a student of any family at 64 px."""

    def make(student: str, **changes: Any) -> DistillConfig:
        fields = {"student": student, "img_size": 64, "patch_size": None, "steps": 10, "batch_size": 4, "log_every": 5}
        return training(**{**fields, **changes})

    return make


@pytest.mark.parametrize("name", SIX)
def test_ten_steps_are_resumed_to_the_bit_and_the_export_loads_in_timm(family, name, tmp_path, monkeypatch, capsys):
    changes = {"val_shards": family(name).shards.replace("*", "000002"), "eval_every": 5}
    whole = distill.run(family(name, out=str(tmp_path / "whole"), **changes))
    assert "the student sees 64 px, up-sampled 2 times from views of 32 px" in capsys.readouterr().err
    StopAfter(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4 of 10"):
        distill.run(family(name, out=str(tmp_path / "parts"), **changes))
    monkeypatch.undo()
    distill.run(family(name, out=str(tmp_path / "parts"), resume=True, **changes))
    for file in (CHECKPOINT, ENCODER):
        one, other = (load_file(tmp_path / folder / file) for folder in ("whole", "parts"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), file
    assert losses_of(tmp_path / "whole")[-1] == losses_of(tmp_path / "parts")[-1]
    space: dict[str, Any] = {"timm": timm}
    exec(f"model = {whole.timm_line}", space)
    encoder, spec, _ = load_encoder(tmp_path / "whole")
    images = torch.randn(2, 3, spec.img_size, spec.img_size, generator=torch.Generator().manual_seed(0))
    folder = timm.create_model(f"local-dir:{tmp_path / 'whole'}", pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(space["model"].eval()(images), embed(encoder, images), atol=1e-6, rtol=0)
        assert torch.equal(folder(images), space["model"](images))
    start = timm.create_model(spec.name, num_classes=0).state_dict()
    moved = {key for key, value in load_file(whole.encoder).items() if "running_" in key and value.ne(start[key]).any()}
    assert bool(moved) == any("running_" in key for key in start)


def test_broken_rows_do_not_reach_batch_norms(family):
    """Averages after a batch with a broken image, and after one with no other."""

    class Student(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(3)

        def forward(self, images, seen):
            assert not seen
            return {"t": {"cls": self.norm(images)}}

    student, rows = Student(), torch.tensor([[1.0, 2.0, 3.0], [9.0, 9.0, 9.0]])
    learner.guess(student, rows, {}, torch.tensor([True, False]))
    assert torch.equal(student.norm.running_mean, 0.1 * rows[0])
    learner.guess(student, rows, {}, torch.tensor([False, False]))
    assert torch.equal(student.norm.running_mean, 0.1 * rows[0])
    with pytest.raises(
        ConfigError, match=r"normalises by its batch .* raise --batch-size, or choose a student without"
    ):
        distill.run(family("test_resnet", batch_size=1))


@pytest.mark.parametrize(
    ("accumulate", "where", "name", "call", "error"),
    [(2, distill, "waited", 5, OSError("gone")), (1, Gradients, "clipped", 2, RuntimeError("gone"))],
)
def test_an_error_within_a_step_saves_the_step_before(
    family, tmp_path, monkeypatch, accumulate, where, name, call, error
):
    """In the third step: after its first part's forward pass, or after its only part's backward pass.

    The averages of that part are not in the checkpoint.
    """
    fields = {"steps": 4, "accumulate": accumulate}
    StopAfter(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        distill.run(family("test_resnet", out=str(tmp_path / "stopped"), **fields))
    monkeypatch.undo()
    honest, calls = getattr(where, name), iter(range(6))

    def failing(*arguments):
        if next(calls) == call:
            raise error
        return honest(*arguments)

    monkeypatch.setattr(where, name, failing)
    with pytest.raises(type(error), match="gone"):
        distill.run(family("test_resnet", out=str(tmp_path / "failed"), **fields))
    (note,) = error.__notes__
    assert re.search("/failed has the checkpoint of step 2; fix th(is|at) and continue with --resume$", note), note
    stopped, failed = (load_file(tmp_path / name / CHECKPOINT) for name in ("stopped", "failed"))
    assert stopped.keys() == failed.keys()
    assert [key for key in stopped if not torch.equal(stopped[key], failed[key])] == []


def test_a_student_has_the_spellings_of_a_teacher():
    assert named_spec("timm:test_vit@32", None, 16) == named_spec("test_vit", 32, 16)
    found = named_spec("efficientnet-lite0@64")
    assert (found.name, found.img_size, found.grid) == ("tf_efficientnet_lite0", 64, (2, 2))
    assert named_spec("efficientnet-lite0").img_size == 224
    with pytest.raises(ConfigError, match="--student test_vit@32 and --img-size 64 are two sizes; give one"):
        named_spec("test_vit@32", 64)
    with pytest.raises(ConfigError, match="after '@' comes the input size in px"):
        named_spec("timm:test_vit@big")


def test_pixels_are_those_of_the_model_that_the_student_starts_from(tmp_path, monkeypatch):
    def mean(**fields: Any) -> tuple[float, ...]:
        return student_spec(DistillConfig(**{"student": "tiny_siglip", **fields})).mean

    imagenet = tiny_models.IMAGENET["mean"]
    assert mean() == mean(init="dino") == mean(init="tiny_pe", normalize="imagenet") == imagenet
    assert mean(init="timm:tiny_pe") == mean(normalize="model") == (0.5, 0.5, 0.5)
    assert mean(normalize="0.1,0.2,0.3/1") == (0.1, 0.2, 0.3)
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    assert mean(init=str(tmp_path / "plain.safetensors")) == imagenet
    with pytest.raises(ConfigError, match=r"--init .*gone\.safetensors: there is no such file"):
        mean(init=str(tmp_path / "gone.safetensors"))
    (tmp_path / "siglip-b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert mean(init="siglip-b") == (0.5, 0.5, 0.5)  # the teacher, as its weights are
    spec = dataclasses.replace(named_spec("test_vit@32"), mean=(0.1, 0.2, 0.3))
    (tmp_path / "test_vit").mkdir()
    save_encoder(tmp_path / "test_vit" / ENCODER, build_encoder(spec, 0), spec, {})
    assert mean(from_run="test_vit") == (0.1, 0.2, 0.3)  # the run, not timm's model
    with pytest.raises(ConfigError, match=r"--normalize 'imagnet' is not MEAN/STD"):
        mean(normalize="imagnet")
    assert pixels_words(student_spec(DistillConfig(student="tiny_siglip"))) == "ImageNet's mean/std"


def test_a_teacher_of_the_catalog_is_a_start_by_its_name():
    """Its weights are found, read and checked as for extraction; here, those of a package."""
    config = DistillConfig(student="efficientnet-lite0", init="efficientnet-lite0")
    encoder = started_encoder(student_spec(config), config.seed, config.init, ())
    teacher = load_teacher(resolve("efficientnet-lite0")).model.state_dict()
    assert all(torch.equal(value, teacher[name]) for name, value in encoder.state_dict().items())
    assert student_spec(config).mean == (0.5, 0.5, 0.5)
    config = DistillConfig(student="vit-s-saliency@112", init="vit-s-saliency")  # from the file's 37 x 37, once
    encoder = started_encoder(student_spec(config), config.seed, config.init, ("positions",))
    assert torch.equal(encoder.pos_embed, load_teacher(resolve("vit-s-saliency@112")).model.pos_embed)
    spec = student_spec(DistillConfig(student="vit-s-saliency@112", init="vit-s-saliency@112"))
    assert torch.equal(started_encoder(spec, 0, "vit-s-saliency@112", ()).pos_embed, encoder.pos_embed)
    by_file = DistillConfig(student="test_vit@32", init="ibot")
    with pytest.raises(
        ConfigError, match=r"--init ibot: its authors publish .*; fetch the file, and give it as --init"
    ):
        started_encoder(student_spec(by_file), by_file.seed, by_file.init, ())


@pytest.mark.parametrize(
    ("init", "student"),
    [
        ("clip-b16-openai", "vit_base_patch16_clip_224"),
        ("vit_base_patch16_clip_quickgelu_224.openai", "vit_base_patch16_clip_224"),
        ("timm:vit_base_patch16_clip_224.laion2b", "vit_base_patch16_clip_quickgelu_224"),
    ],
)
def test_a_start_with_another_activation_is_refused(init, student):
    """Every shape fits, and the features would be others."""
    with pytest.raises(ConfigError, match=rf"--init {init}: one of .* has QuickGELU, and the other GELU; say"):
        started_encoder(encoder_spec(student, 224, 16), 0, init, ())


def test_a_file_is_taken_though_it_is_called_like_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "vit_base_patch16_clip_quickgelu_224.safetensors"
    save_file({"x": torch.zeros(1)}, name)
    with pytest.raises(ConfigError, match="do not fit the student"):
        started_encoder(encoder_spec("vit_base_patch16_clip_224", 224, 16), 0, name, ())


def test_what_stands_behind_the_name_of_a_start(tmp_path):
    assert named_start("timm:test_vit@32") == ("timm:test_vit", 32)
    assert named_start("dinov2-s@224") == ("dinov2-s", 224)
    assert named_start("hf-hub:org/name#main@224") == ("hf-hub:org/name#main", 224)
    (tmp_path / "start@2.pth").touch()
    for file in (str(tmp_path / "start@2.pth"), "runs/gone@2.pth"):
        assert named_start(file) == (file, None)
    with pytest.raises(ConfigError, match=r"--init dino\+cls=none: rules behind .* the whole model, --init dino$"):
        named_start("dino+cls=none")
    with pytest.raises(ConfigError, match="--init dino@big: after '@' comes the input size in px, as in dino@224"):
        named_start("dino@big")
    with pytest.raises(ConfigError, match=r"--init dino@448: the student has 32 px; say --img-size 448, or --init"):
        started_encoder(named_spec("test_vit@32"), 0, "dino@448", ())


def test_a_run_keeps_its_pixels_and_an_older_one_imagenets(family, tmp_path, monkeypatch):
    file = tmp_path / "start.safetensors"
    spec = dataclasses.replace(named_spec("test_vit@32"), mean=(0.5, 0.5, 0.5))
    save_encoder(file, build_encoder(spec, 0), spec, {})
    fields = {"img_size": 32, "init": str(file), "steps": 4}
    StopAfter(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        distill.run(family("test_vit", **fields))
    monkeypatch.undo()
    assert load_encoder(tmp_path / "run")[1].mean == (0.5, 0.5, 0.5)  # of the encoder that it starts from
    config = json.loads((tmp_path / "run" / CONFIG).read_text())
    del config["normalize"]
    (tmp_path / "run" / CONFIG).write_text(json.dumps(config))
    distill.run(family("test_vit", resume=True, **fields))
    assert load_encoder(tmp_path / "run")[1].mean == tiny_models.IMAGENET["mean"]


@slow
@pytest.mark.parametrize("name", ["test_efficientnet", "tiny_swin", "tiny_eva02"])
def test_other_families_are_evaluated_and_asked_for_their_losses(family, name, tmp_path, shards):
    size = 56 if name == "tiny_eva02" else 64
    config = family(name, img_size=size, val_shards=family(name).shards.replace("*", "000001"), eval_every=10)
    distill.run(family(name, img_size=size, steps=4, knn_shards=config.shards.replace("*", "000000"), eval_every=2))
    assert [record["kind"] for record in log_of(tmp_path / "run")].count("knn") == 2
    found = evaluate.run(
        EvaluateConfig(encoder=(str(tmp_path / "run"),), shards=shards.pattern, analysis=True, device="cpu", threads=1)
    )
    assert found.analysis["student"]["pruning"]["90"] >= 0
    losses = held_out_losses(tmp_path / "run", config.cache, config.shards, (0,))
    assert losses.losses_nB.isfinite().all()


def test_unic_ls_pair_at_their_own_sizes_beside_a_student_at_another(tmp_path, capsys, caplog):
    """DINOv2-g/14 at 518 px and MetaCLIP-H/14 at 224 into ViT-L/14 at 224, then 336 px: tiny, of these classes."""
    tars = make_shards(tmp_path / "tars", (4,))
    teachers = ("timm:tiny_dinov2_g", "timm:tiny_metaclip_h")
    weights = []
    for name in teachers:
        torch.manual_seed(1)
        path = tmp_path / f"{name.removeprefix('timm:')}.safetensors"
        save_file(timm.create_model(name.removeprefix("timm:")).state_dict(), path)
        weights.append((name, str(path)))
    config = {
        "teachers": teachers, "weights": tuple(weights), "shards": tars.pattern, "cache": str(tmp_path / "cache"),
        "views": 1, "codec": "f16", "calibration_images": 10, "batch_size": 4, "device": "cpu", "threads": 1,
    }  # fmt: skip
    told = "timm:tiny_dinov2_g sees 518 px, up-sampled 2.3 times from views of 224 px; "
    extract.run(ExtractConfig(**config, size=224))
    assert told + "say --size 518, or run it at a smaller size (NAME@SIZE)" in capsys.readouterr().err
    common = {
        "cache": str(tmp_path / "cache"), "shards": tars.pattern, "student": "tiny_vit_l14", "steps": 2,
        "batch_size": 2, "lr": 1e-3, "tracker": "none", "threads": 1, "log_every": 1,
    }  # fmt: skip
    distill.run(DistillConfig(**common, out=str(tmp_path / "first")))
    assert told + f"extract views of {518} px" in capsys.readouterr().err
    second = DistillConfig(**common, out=str(tmp_path / "second"), img_size=336, init=str(tmp_path / "first" / ENCODER))
    distill.run(second)
    assert "the student sees 336 px, resampled from views of 224 px" in capsys.readouterr().err
    assert "positions (pos_embed) are resampled from (1, 257, 16) to (1, 577, 16)" in caplog.text
    assert load_encoder(tmp_path / "second")[1].grid == (24, 24)


@slow
def test_two_processes_validate_a_student_with_averages_on_an_odd_number_of_batches(family, tmp_path):
    """The wrapper would share buffers at every batch, and wait for the process that has one batch fewer."""
    config = family("test_resnet", steps=4, eval_every=2, threads=1)
    config = dataclasses.replace(config, val_shards=config.shards.replace("*", "000002"))  # 5 images: 3 batches of 2
    flags = [
        part
        for field in dataclasses.fields(DistillConfig)
        if (value := getattr(config, field.name)) != field.default and field.name not in {"teachers", "weights"}
        for part in (f"--{field.name.replace('_', '-')}", str(value))
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "cli"]
    done = subprocess.run([*command, "distill", *flags], capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [record["kind"] for record in log_of(tmp_path / "run") if record["kind"] == "val"] == ["val", "val"]
