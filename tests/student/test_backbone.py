"""The encoder: its sizes, its reproducible start, its tokens and its input."""

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from tests import tiny_models
from unic_cache.errors import ConfigError
from unic_cache.student.anatomy import levels_of
from unic_cache.student.backbone import EncoderSpec, anatomy, build_encoder, embed, encoder_spec, prepare
from unic_cache.student.ladder import Ladder
from unic_cache.student.loss import distillation_loss, drop_uniforms
from unic_cache.student.projectors import Student
from unic_cache.token_kinds import TokenKind

assert tiny_models.default_cfgs
TINY = EncoderSpec("vit_tiny_patch16_224", 32, 8)
WITHOUT_CLASS_TOKEN = EncoderSpec("vit_pwee_patch16_reg1_gap_256", 32, 16)


def images(spec: EncoderSpec, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, spec.img_size, spec.img_size, generator=torch.Generator().manual_seed(0))


def test_sizes_default_to_the_models_own() -> None:
    assert encoder_spec("vit_base_patch16_224") == EncoderSpec("vit_base_patch16_224", 224, 16, 0.1)
    assert encoder_spec("vit_small_patch14_dinov2").img_size == 518
    assert encoder_spec("vit_tiny_patch16_224", 64, 8, 0.0) == EncoderSpec("vit_tiny_patch16_224", 64, 8, 0.0)
    assert encoder_spec("vit_tiny_patch16_224", 64, 8).grid == (8, 8)


def test_spec_round_trips_through_json_and_refuses_other_fields() -> None:
    spec = encoder_spec("vit_tiny_patch16_224", 64, 8)
    assert EncoderSpec.from_json(spec.to_json()) == spec
    with pytest.raises(ConfigError, match=r"not an encoder's spec: it has \['name'\]"):
        EncoderSpec.from_json({"name": "vit_tiny_patch16_224"})


def test_start_depends_on_the_seed_alone_and_leaves_the_global_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = build_encoder(TINY, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same, other = build_encoder(TINY, seed=3).state_dict(), build_encoder(TINY, seed=4).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


def test_drop_path_rises_from_zero_over_the_blocks() -> None:
    encoder = build_encoder(TINY, seed=0)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.blocks]
    assert rates == pytest.approx(np.linspace(0, 0.1, 12), abs=1e-6)


@pytest.mark.parametrize("spec", [TINY, WITHOUT_CLASS_TOKEN], ids=lambda spec: spec.name)
def test_levels_are_the_blocks_raw_outputs(spec: EncoderSpec) -> None:
    encoder = build_encoder(spec, seed=0).eval()
    raw: list[Tensor] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda module, inputs, output: raw.append(output))
    with torch.inference_mode():
        tokens, grids = levels_of(encoder, images(spec))
    assert set(grids) == {spec.grid}
    assert len(tokens) == len(raw) == len(encoder.blocks)
    prefix = encoder.num_prefix_tokens
    for (cls_BD, patch_BTD), output in zip(tokens, raw, strict=True):
        assert torch.equal(patch_BTD, output[:, prefix:])
        expected = output[:, 0] if encoder.has_class_token else output[:, prefix:].mean(dim=1)
        assert torch.equal(cls_BD, expected)


def test_embedding_is_the_class_token_after_the_final_norm() -> None:
    encoder = build_encoder(TINY, seed=0).eval()
    with torch.inference_mode():
        last_cls = levels_of(encoder, images(TINY)).tokens[-1][0]
        torch.testing.assert_close(embed(encoder, images(TINY)), encoder.norm(last_cls))


CLS, PATCH = {"cls": TokenKind(5)}, {"patch": TokenKind(6, (2, 2))}


@pytest.mark.parametrize("target", [{**CLS, **PATCH}, CLS, {"patch": TokenKind(6, (4, 4))}])
@pytest.mark.parametrize("spec", [TINY, WITHOUT_CLASS_TOKEN], ids=lambda spec: spec.name)
def test_every_parameter_that_requires_a_gradient_gets_one(spec: EncoderSpec, target: dict[str, TokenKind]) -> None:
    encoder = build_encoder(spec, seed=0)
    student = Student(encoder, Ladder(anatomy(spec).widths, {"t": target}, seed=0)).eval()
    guesses = student(images(spec))
    targets = {"t": {kind: torch.randn_like(value) for kind, value in guesses["t"].items()}}
    distillation_loss(guesses, targets, drop_uniforms(0, 0, 2, 1), 0.5).loss.backward()
    reached = {name for name, value in student.named_parameters() if value.grad is not None}
    assert reached == {name for name, value in student.named_parameters() if value.requires_grad}
    assert "encoder.norm.weight" not in reached
    assert "encoder.pos_embed" in reached


def test_prepared_views_are_scaled_and_normalised() -> None:
    views = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    prepared = prepare(views, TINY)
    assert prepared.dtype == torch.float32
    for channel in range(3):
        expected = (views[..., channel].double() / 255 - TINY.mean[channel]) / TINY.std[channel]
        torch.testing.assert_close(prepared[:, channel].double(), expected, atol=1e-6, rtol=0)


def test_views_of_another_size_are_resized_bicubically_and_clamped() -> None:
    views = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    views[:, :, 30:] = 255  # an edge that bicubic overshoots
    plain = torch.nn.functional.interpolate(
        views.permute(0, 3, 1, 2).float() / 255, size=(32, 32), mode="bicubic", antialias=True, align_corners=False
    )
    assert plain.min() < 0
    mean, std = torch.tensor(TINY.mean).view(3, 1, 1), torch.tensor(TINY.std).view(3, 1, 1)
    torch.testing.assert_close(prepare(views, TINY), (plain.clamp(0, 1) - mean) / std)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        (
            "vit_tiny_patch16_244",
            (None, None),
            r"timm knows no model 'vit_tiny_patch16_244'; did you mean vit_tiny_patch16_",
        ),
        ("qqqq", (None, None), r"no model 'qqqq'; try vit_tiny_patch16_224"),
        ("vit_base_patch16_224.nonsense", (None, None), r"timm cannot make .*Invalid pretrained tag \(nonsense\)"),
        (
            "tiny_blind",
            (64, None),
            r"tiny_blind, a Blind, cannot be a student at 64 px: .*forward_interm.* be a plain ViT",
        ),
        ("vgg11", (None, None), r"timm builds a VGG without drop path; choose --drop-path 0"),
        ("test_convnext", (64, 8), r"a ConvNeXt has no patch size to choose; leave out --patch-size"),
        ("test_resnet", (102, None), r"102 px are no multiple of the 4 x 4 cells .* choose --img-size 104 or"),
        (
            "vit_tiny_patch16_224",
            (100, None),
            r"an image of 100 px cannot be cut into patches of 16 px; choose --img-size",
        ),
        ("vit_tiny_patch16_224", (None, 15), r"an image of 224 px cannot be cut into patches of 15 px"),
        ("vit_tiny_patch16_224", (0, 16), r"an image of 0 px"),
    ],
)
def test_impossible_encoders_are_refused(name: str, sizes: tuple[int | None, int | None], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encoder_spec(name, *sizes)


def test_timm_alone_gives_the_same_features_from_the_same_weights() -> None:
    ours = build_encoder(TINY, seed=0).eval()
    theirs = timm.create_model(TINY.name, num_classes=0, img_size=32, patch_size=8).eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.inference_mode():
        assert torch.equal(embed(ours, images(TINY)), theirs(images(TINY)))
