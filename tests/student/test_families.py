"""Students of every family: their levels by the models' own layers, their start, gradients, export and statistics."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests import tiny_models
from unic_cache.config import DistillConfig
from unic_cache.errors import ConfigError
from unic_cache.student.anatomy import examined, levels_of
from unic_cache.student.backbone import anatomy, build_encoder, create_options, embed, encoder_spec, prepare, tokens
from unic_cache.student.batch_statistics import good_alone, normalizes_by_batch, statistics_kept
from unic_cache.student.export import load_encoder, save_encoder, timm_line
from unic_cache.student.ladder import Ladder
from unic_cache.student.projectors import build_student
from unic_cache.token_kinds import TokenKind

EVA, PYRAMIDS = ("tiny_dinov3", "tiny_eva02", "tiny_pe"), ("tiny_swin", "test_convnext", "test_resnet", "test_maxvit")
WITH_HEADS = ("test_efficientnet", "mobilenetv4_conv_small_035", "test_mambaout")  # trained layers behind the last map
VITS = ("test_vit", "tiny_vit_reg_gap", "test_vit3", "tiny_siglip")
QUICK = ("tiny_dinov3", "tiny_siglip", "tiny_swin", "test_resnet", "test_efficientnet")
FAMILIES = tuple(
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in (*VITS, *EVA, *PYRAMIDS, *WITH_HEADS)
)
SIZES = {"test_vit": 32, "tiny_eva02": 56}  # px; the others 64
TARGETS = {
    "both": {"cls": TokenKind(5), "patch": TokenKind(6, (4, 4))},
    "cls": {"cls": TokenKind(5)},
    "patch": {"patch": TokenKind(6, (3, 3))},
}
assert tiny_models.default_cfgs


def spec_of(name: str) -> Any:
    return encoder_spec(name, SIZES.get(name, 64))


def images_for(name: str, batch: int = 2) -> Tensor:
    size = SIZES.get(name, 64)
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def hooked(encoder: nn.Module, layers: list[nn.Module], images: Tensor) -> list[Tensor]:
    """What the layers gave in one forward pass of timm's own."""
    seen: list[Tensor] = []
    handles = [layer.register_forward_hook(lambda _, __, output: seen.append(output)) for layer in layers]
    with torch.inference_mode():
        encoder(images)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", EVA)
def test_levels_of_an_eva_are_its_blocks_and_its_feature_is_the_last_summary(name: str) -> None:
    encoder = build_encoder(spec_of(name), seed=0).eval()
    images = images_for(name)
    blocks = hooked(encoder, list(encoder.blocks), images)
    with torch.inference_mode():
        levels, grids = levels_of(encoder, images)
        feature = encoder(images)
    prefix = encoder.num_prefix_tokens
    assert len(levels) == len(blocks)
    assert set(grids) == {spec_of(name).grid}
    for (cls_BD, patch_BTD), block in zip(levels, blocks, strict=True):
        assert torch.equal(patch_BTD, block[:, prefix:])
        if block is not blocks[-1]:
            assert torch.equal(cls_BD, block[:, 0])
    assert torch.equal(levels[-1][0], feature)


def test_levels_of_a_pyramid_are_its_stages_with_channels_last_or_first() -> None:
    for name, stages in (
        ("tiny_swin", lambda model: list(model.layers)),
        ("test_convnext", lambda model: list(model.stages)),
        ("test_resnet", lambda model: [model.layer1, model.layer2, model.layer3, model.layer4]),
        ("test_efficientnet", lambda model: list(model.blocks)[1:]),  # without the one of 2 px a cell
    ):
        encoder = build_encoder(spec_of(name), seed=0).eval()
        maps = hooked(encoder, stages(encoder), images_for(name))
        if name == "tiny_swin":
            maps = [one.permute(0, 3, 1, 2) for one in maps]
        with torch.inference_mode():
            levels, grids = levels_of(encoder, images_for(name))
            feature = embed(encoder, images_for(name))
        assert grids == tuple(tuple(one.shape[2:]) for one in maps) == ((16, 16), (8, 8), (4, 4), (2, 2)), name
        for at, ((cls_BD, patch_BTD), one) in enumerate(zip(levels, maps, strict=True)):
            assert torch.equal(patch_BTD, one.flatten(2).transpose(1, 2)), name
            torch.testing.assert_close(cls_BD, feature if at == 3 else one.mean(dim=(2, 3)))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_that_requires_a_gradient_gets_one(name: str) -> None:
    spec = spec_of(name)
    for which, kinds in TARGETS.items():
        student = build_student(build_encoder(spec, seed=0), spec, {"t": kinds}, DistillConfig()).eval()
        guesses = student(images_for(name))
        torch.stack([value.square().mean() for value in guesses["t"].values()]).sum().backward()
        without = {key for key, value in student.named_parameters() if value.requires_grad and value.grad is None}
        assert not without, (which, without)
        frozen = {key for key, value in student.encoder.named_parameters() if not value.requires_grad}
        heads = {"norm", "fc_norm", "attn_pool", "head", "conv_head", "norm_head", "bn2"}
        assert {key.partition(".")[0] for key in frozen} <= (heads if which == "patch" else {"norm", "fc_norm"}), which


def test_autograds_graph_finds_what_a_plain_vit_leaves_unread() -> None:
    with torch.device("meta"):
        model = timm.create_model("test_vit", num_classes=0, img_size=32)
    known = examined(model, 32)
    encoder = build_encoder(encoder_spec("test_vit", 32), seed=0).requires_grad_()
    sums = [value.sum() for pair in levels_of(encoder, images_for("test_vit")).tokens for value in pair]
    grads = torch.autograd.grad(torch.stack(sums).sum(), list(encoder.parameters()), allow_unused=True)
    names = [name for name, _ in encoder.named_parameters()]
    assert known.unread == {name for name, grad in zip(names, grads, strict=True) if grad is None}


@pytest.mark.parametrize("name", FAMILIES)
def test_start_depends_on_the_seed_alone_and_exports_load_in_timm(name: str, tmp_path: Path) -> None:
    spec = spec_of(name)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    encoder = build_encoder(spec, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = build_encoder(spec, seed=3).state_dict(), build_encoder(spec, seed=4).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in encoder.state_dict().items())
    assert not all(torch.equal(value, other[key]) for key, value in encoder.state_dict().items())
    with torch.no_grad():  # as if trained: no norm at its start, no average at 0 and 1
        for value in (one for one in encoder.state_dict().values() if one.is_floating_point()):
            value.add_(0.01 * torch.rand(value.shape, generator=torch.Generator().manual_seed(value.numel())))
    save_encoder(tmp_path / "encoder.safetensors", encoder, spec, {})
    space: dict[str, Any] = {"timm": timm}
    exec(f"model = {timm_line(spec, tmp_path / 'encoder.safetensors')}", space)
    loaded, read, _ = load_encoder(tmp_path)
    assert read == spec
    images = images_for(name)
    with torch.inference_mode():
        theirs = space["model"].eval()(images)
        torch.testing.assert_close(embed(encoder.eval(), images), theirs, atol=1e-6, rtol=0)
        feature, patches = tokens(loaded, images)
        torch.testing.assert_close(feature, theirs, atol=1e-6, rtol=0)
    assert feature.shape == (2, anatomy(spec).feature)
    assert patches.shape[1] == spec.grid[0] * spec.grid[1]


def test_levels_of_other_widths_and_grids_are_summed_as_modules_one_by_one() -> None:
    widths, grids = [(4, 6), (8, 8), (10, 3)], [(6, 4), (3, 2), (2, 2)]
    targets = {"a": TARGETS["both"], "b": {"cls": TokenKind(4), "patch": TokenKind(6, (3, 2))}}
    ladder = Ladder(widths, targets, seed=1).double()
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    levels = [
        (draw(2, cls), draw(2, rows * columns, patch))
        for (cls, patch), (rows, columns) in zip(widths, grids, strict=True)
    ]
    guesses = ladder(levels, grids)
    for teacher, kinds in targets.items():
        for kind, token in kinds.items():
            total: Any = 0
            for module, (cls, patch), (rows, columns) in zip(
                ladder.heads[f"{teacher}:{kind}"].children(), levels, grids, strict=True
            ):
                read = cls
                if token.grid is not None:
                    maps = patch.transpose(1, 2).unflatten(2, (rows, columns))
                    sampled = nn.functional.interpolate(maps, size=token.grid, mode="bilinear", align_corners=False)
                    read = sampled.flatten(2).transpose(1, 2)
                total = total + module(read)
            torch.testing.assert_close(guesses[teacher][kind], total, atol=1e-10, rtol=0)
    hidden = [len(module.get_parameter("0.weight")) for module in ladder.heads["a:patch"].children()]
    assert hidden == [6, 8, 4 * 3]
    alike = {"a": {"cls": TokenKind(6), "patch": TokenKind(6, (4, 4))}}
    with pytest.raises(ConfigError, match="summary has 4 channels and its patch tokens 6; leave out --shared-projec"):
        Ladder(widths, alike, seed=1, shared=True)


def test_broken_images_stay_out_of_the_statistics_of_a_batch() -> None:
    spec = spec_of("test_resnet")
    views = torch.randint(1, 256, (5, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    good = torch.tensor([True, False, True, False, False])
    stood_in = good_alone(views * good[:, None, None, None], good)
    assert [next(at for at in range(5) if torch.equal(one, views[at])) for one in stood_in] == [0, 0, 2, 2, 0]
    assert good_alone(views, torch.ones(5, dtype=torch.bool)) is views
    encoder = build_encoder(spec, seed=0)
    assert normalizes_by_batch(encoder)
    assert not normalizes_by_batch(build_encoder(spec_of("test_vit"), seed=0))
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    with statistics_kept(encoder):
        held = encoder(prepare(views, spec))
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())
    assert all(module.training for module in encoder.modules())
    torch.testing.assert_close(held, encoder.eval()(prepare(views, spec)))
    encoder.train()(prepare(views, spec))
    assert not torch.equal(encoder.bn1.running_mean, before["bn1.running_mean"])


def test_options_are_those_that_timm_takes() -> None:
    assert create_options(spec_of("tiny_swin")) == {"img_size": 64}
    assert create_options(spec_of("test_resnet")) == {}
    assert create_options(spec_of("tiny_eva02")) == {"img_size": 56, "patch_size": 14}


def test_an_eva_starts_from_a_file_with_a_classifier_and_at_another_size_only_where_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = build_encoder(spec_of("tiny_eva02"), seed=9).state_dict()
    path = tmp_path / "eva.safetensors"
    save_file({**state, "head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}, path)
    encoder = build_encoder(spec_of("tiny_eva02"), seed=1, init=str(path))
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    larger = encoder_spec("tiny_eva02", 84)
    with pytest.raises(
        ConfigError, match=r"positions \(pos_embed\) are resampled from .*, or say --img-size 84 to have"
    ):
        build_encoder(larger, seed=1, init=str(path))
    build_encoder(larger, seed=1, init=str(path), resample=("positions",))
    assert "positions (pos_embed) are resampled from (1, 17, 32) to (1, 37, 32)" in caplog.text


def test_dinov3s_own_files_start_an_encoder_unless_a_bias_of_theirs_would_be_lost(tmp_path: Path) -> None:
    state = build_encoder(spec_of("tiny_dinov3"), seed=9).state_dict()
    state = {name: value for name, value in state.items() if not name.endswith("qkv.bias")}
    named = {name.replace("reg_token", "storage_tokens"): value for name, value in state.items()}
    named = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name): value.clone() for name, value in named.items()}
    named |= {f"blocks.{n}.attn.qkv.bias": torch.zeros(96) for n in range(3)}
    save_file(named, tmp_path / "authors.safetensors")
    encoder = build_encoder(spec_of("tiny_dinov3"), seed=1, init=str(tmp_path / "authors.safetensors"))
    assert all(torch.equal(encoder.state_dict()[name], value) for name, value in state.items())
    named["blocks.1.attn.qkv.bias"][3] = 0.1
    save_file(named, tmp_path / "biased.safetensors")
    with pytest.raises(ConfigError, match=r"has a bias blocks\.1\.attn\.qkv\.bias, and the student no place for it"):
        build_encoder(spec_of("tiny_dinov3"), seed=1, init=str(tmp_path / "biased.safetensors"))


def test_a_residual_network_starts_from_its_own_files_and_refuses_others(tmp_path: Path) -> None:
    state = build_encoder(spec_of("test_resnet"), seed=9).state_dict()
    path = tmp_path / "resnet.safetensors"
    classifier = {"fc.weight": torch.zeros(10, 96), "fc.bias": torch.zeros(10)}
    save_file({f"module.{name}": value for name, value in {**state, **classifier}.items()}, path)
    encoder = build_encoder(spec_of("test_resnet"), seed=1, init=str(path))
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    with pytest.raises(ConfigError, match=r"these are not weights of the student, a ConvNeXt .* its names: module\."):
        build_encoder(spec_of("test_convnext"), seed=1, init=str(path))


@pytest.mark.filterwarnings("ignore:torch.searchsorted")  # these two: timm's interpolator of tables
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_tables_of_relative_positions_are_resampled_only_where_the_size_was_given(tmp_path: Path) -> None:
    state = build_encoder(spec_of("tiny_swin"), seed=9).state_dict()
    table = next(name for name in state if name.endswith("relative_position_bias_table"))
    path = tmp_path / "swin.safetensors"
    larger = {name: torch.zeros(81, x.shape[1]) if name == table else x.clone() for name, x in state.items()}
    save_file(larger, path)
    assert larger[table].shape != state[table].shape
    with pytest.raises(ConfigError, match="are resampled from"):
        build_encoder(spec_of("tiny_swin"), seed=1, init=str(path))
