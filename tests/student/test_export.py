"""The exported file: read by timm alone, by us, and refused when it is not what it should be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from unic_cache.errors import ConfigError
from unic_cache.student.backbone import EncoderSpec, build_encoder, embed
from unic_cache.student.export import load_encoder, save_encoder, timm_line
from unic_cache.student.run_files import ENCODER

TINY = EncoderSpec("vit_tiny_patch16_224", 32, 8)
PROVENANCE = {"teachers": ["dino"], "steps": 3}


def exported(folder: Path, spec: EncoderSpec = TINY) -> tuple[Path, VisionTransformer]:
    encoder = build_encoder(spec, seed=1)
    with torch.no_grad():
        for value in encoder.parameters():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())) * 0.01)
    path = folder / ENCODER
    save_encoder(path, encoder, spec, PROVENANCE)
    return path, encoder.eval()


@pytest.mark.parametrize(
    "spec",
    [
        EncoderSpec("vit_tiny_patch16_224", 64, 8),
        EncoderSpec("vit_tiny_patch16_224", 224, 16),
        EncoderSpec("vit_pwee_patch16_reg1_gap_256", 64, 16),
        EncoderSpec("vit_small_patch14_reg4_dinov2", 56, 14),
    ],
    ids=lambda spec: f"{spec.name}-{spec.img_size}-{spec.patch_size}",
)
def test_the_printed_line_makes_the_same_encoder_with_timm_alone(tmp_path: Path, spec: EncoderSpec) -> None:
    path, encoder = exported(tmp_path, spec)
    space = {"timm": timm}
    exec(f"model = {timm_line(spec, path)}", space)
    model = space["model"].eval()
    images = torch.randn(2, 3, spec.img_size, spec.img_size)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), embed(encoder, images), atol=1e-6, rtol=0)


def test_the_printed_line_runs_in_a_fresh_interpreter(tmp_path: Path) -> None:
    path, encoder = exported(tmp_path)
    script = (
        f"import timm, torch\nmodel = {timm_line(TINY, path)}.eval()\n"
        f"with torch.inference_mode(): print(model(torch.ones(1, 3, 32, 32))[0, :4].tolist())"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    with torch.inference_mode():
        assert json.loads(printed) == pytest.approx(embed(encoder, torch.ones(1, 3, 32, 32))[0, :4].tolist(), abs=1e-6)


def test_loading_gives_back_encoder_spec_and_provenance(tmp_path: Path) -> None:
    path, encoder = exported(tmp_path)
    for where in (path, tmp_path):
        loaded, spec, provenance = load_encoder(where)
        assert (spec, provenance) == (TINY, PROVENANCE)
        assert not loaded.training
        state = loaded.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())


def test_equal_encoders_give_equal_bytes(tmp_path: Path) -> None:
    path, encoder = exported(tmp_path)
    first = path.read_bytes()
    save_encoder(path, encoder.train().to(memory_format=torch.channels_last), TINY, dict(reversed(PROVENANCE.items())))
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == [ENCODER]


def test_half_precision_encoders_are_exported_in_float32(tmp_path: Path) -> None:
    save_encoder(tmp_path / ENCODER, build_encoder(TINY, seed=1).bfloat16(), TINY, {})
    assert {value.dtype for value in safetensors.torch.load_file(tmp_path / ENCODER).values()} == {torch.float32}


def test_files_that_are_not_an_exported_encoder_are_refused(tmp_path: Path) -> None:
    path, encoder = exported(tmp_path)
    whole = path.read_bytes()
    with pytest.raises(ConfigError, match=r"gone\.safetensors: no such file; `unic-cache distill --out DIR`"):
        load_encoder(tmp_path / "gone.safetensors")
    for size in (0, 5, 1000, len(whole) - 4):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"encoder\.safetensors: not a whole safetensors file"):
            load_encoder(path)
    state = {name: value.contiguous() for name, value in encoder.state_dict().items()}
    for metadata in (None, {"unic_cache": "nonsense"}, {"unic_cache": "[1]"}):
        safetensors.torch.save_file(state, path, metadata)
        with pytest.raises(ConfigError, match="but not an encoder that `unic-cache distill` exported"):
            load_encoder(path)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    path, encoder = exported(tmp_path)
    metadata = {"format": 2, "spec": TINY.to_json(), "provenance": {}}
    safetensors.torch.save_file(encoder.state_dict(), path, {"unic_cache": json.dumps(metadata)})
    with pytest.raises(ConfigError, match="exported in format 2, and this unic-cache reads format 1"):
        load_encoder(path)


def test_tensors_that_contradict_the_spec_are_refused_with_both_shapes(tmp_path: Path) -> None:
    path, _ = exported(tmp_path)
    small = build_encoder(EncoderSpec("vit_pwee_patch16_reg1_gap_256", 32, 16), seed=0)
    save_encoder(path, small, TINY, {})
    with pytest.raises(ConfigError, match=r"encoder\.safetensors do not fit the student: cls_token is missing"):
        load_encoder(path)
    narrow = {name: value[..., :1].contiguous() for name, value in build_encoder(TINY, 0).state_dict().items()}
    metadata = {"format": 1, "spec": TINY.to_json(), "provenance": {}}
    safetensors.torch.save_file(narrow, path, {"unic_cache": json.dumps(metadata)})
    with pytest.raises(ConfigError, match=r"cls_token is \(1, 1, 1\) where the student has \(1, 1, 192\)"):
        load_encoder(path)
