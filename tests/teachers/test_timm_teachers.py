"""Any timm model as a teacher: rules by what the model is, tokens equal to the model's own, in every shape of model."""

import dataclasses

import pytest
import safetensors.torch
import timm
import torch
from torch.nn.functional import interpolate

from unic_cache.errors import TeacherError
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.model import load_teacher
from unic_cache.teachers.token_rules import tokens
from unic_cache.token_kinds import TokenKind


def views(size: int, count: int = 2) -> torch.Tensor:
    draws = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=draws)


def normalised(views_BHWC, spec):
    images = views_BHWC.permute(0, 3, 1, 2) / 255
    return (images - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)


def loaded(name, tmp_path, **options):
    """A teacher from a file of random weights with a classifier of 10, and the model inside it."""
    spec = resolve(name)
    torch.manual_seed(0)
    safetensors.torch.save_file(
        timm.create_model(spec.arch, num_classes=10).state_dict(), tmp_path / "weights.safetensors"
    )
    teacher = load_teacher(spec, str(tmp_path / "weights.safetensors"), **options)
    return teacher, teacher.model


# name, CLS rule, patch rule, prefix tokens, grid, widths
SEQUENCES = [
    ("timm:vit_tiny_patch16_224@64", "norm-cls", "norm-patch", 1, 4, 192),
    ("timm:deit_tiny_distilled_patch16_224@64", "norm-cls", "norm-patch", 2, 4, 192),
    ("timm:vit_wee_patch16_reg1_gap_256@64", "pooled", "raw-patch", 1, 4, 256),
    ("timm:gmlp_ti16_224", "pooled", "norm-patch", 0, 14, 128),
]
# name, the module whose output is the map, whether its channels come last, grid, widths
PYRAMIDS = [
    ("timm:resnet18@64", "layer3", False, 4, 512, 256),
    ("timm:convnext_atto@64", "stages.2", False, 4, 320, 160),
    ("timm:swin_tiny_patch4_window7_224", "layers.2", True, 14, 768, 384),
    ("timm:test_efficientnet@96", "blocks.3", False, 6, 256, 48),
]


@pytest.mark.parametrize(("name", "cls_rule", "patch_rule", "prefix", "side", "width"), SEQUENCES)
def test_sequence_models_give_their_own_tokens(tmp_path, name, cls_rule, patch_rule, prefix, side, width):
    teacher, model = loaded(name, tmp_path)
    spec = teacher.spec
    assert (spec.summary_rules, spec.grid_rules) == ({"cls": cls_rule}, {"patch": patch_rule})
    assert spec.kinds == {"cls": TokenKind(width), "patch": TokenKind(width, (side, side))}
    found = teacher(views(spec.input_size))
    with torch.inference_mode():
        features = model.forward_features(normalised(views(spec.input_size), spec))
        cls = features[:, 0] if cls_rule == "norm-cls" else model.forward_head(features, pre_logits=True)
    assert torch.equal(found["patch"], features[:, prefix:])
    assert torch.equal(found["cls"], cls)


@pytest.mark.parametrize(("name", "module", "channels_last", "side", "cls_dim", "patch_dim"), PYRAMIDS)
def test_feature_map_models_give_pooled_vector_and_stride_16_map(
    tmp_path, name, module, channels_last, side, cls_dim, patch_dim
):
    teacher, model = loaded(name, tmp_path)
    spec = teacher.spec
    assert (spec.summary_rules, spec.grid_rules) == ({"cls": "pooled"}, {"patch": "stride16-map"})
    assert spec.kinds == {"cls": TokenKind(cls_dim), "patch": TokenKind(patch_dim, (side, side))}
    seen = []
    hook = model.get_submodule(module).register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.inference_mode():
        cls = model.forward_head(model.forward_features(normalised(views(spec.input_size), spec)), pre_logits=True)
    hook.remove()
    last = seen[0] if channels_last else seen[0].permute(0, 2, 3, 1)
    found = teacher(views(spec.input_size))
    assert torch.equal(found["patch"], last.reshape(2, side * side, patch_dim))
    torch.testing.assert_close(found["cls"], cls, atol=1e-6, rtol=1e-6)


def test_spec_takes_mean_std_size_and_licence_from_timm():
    spec = resolve("timm:test_vit")
    config = timm.get_pretrained_cfg("test_vit")
    assert (spec.arch, spec.mean, spec.std) == ("test_vit.r160_in1k", config.mean, config.std)
    assert (spec.input_size, spec.stride, spec.licence) == (160, 16, "apache-2.0")


def test_views_of_another_size_are_resized_by_the_one_rule(tmp_path):
    teacher, model = loaded("timm:test_vit@64", tmp_path)
    stark = (views(12) > 127).repeat_interleave(8, dim=1).repeat_interleave(8, dim=2).to(torch.uint8) * 255
    resized = interpolate(stark.permute(0, 3, 1, 2) / 255, size=(64, 64), mode="bicubic", antialias=True)
    assert resized.min() < 0
    assert resized.max() > 1
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (teacher.spec.mean, teacher.spec.std))
    with torch.inference_mode():
        expected = model.forward_features((resized.clamp(0, 1) - mean) / std)
    assert torch.equal(teacher(stark)["patch"], expected[:, 1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_compute_by_autocast_and_answer_in_float32(tmp_path, dtype):
    short, model = loaded("timm:test_vit@64", tmp_path, dtype=dtype)
    full = load_teacher(short.spec, str(tmp_path / "weights.safetensors"))
    assert next(model.parameters()).dtype == torch.float32
    for kind, values in short(views(64)).items():
        expected = full(views(64))[kind]
        assert values.dtype == torch.float32
        assert not torch.equal(values, expected)
        assert torch.cosine_similarity(values, expected, dim=-1).min() > 0.999


def test_a_loaded_spec_loads_again_to_the_same_spec(tmp_path):
    teacher, _ = loaded("timm:test_vit@64", tmp_path)
    assert load_teacher(teacher.spec, str(tmp_path / "weights.safetensors")).spec == teacher.spec


def test_nan_names_teacher_token_type_and_rows(tmp_path):
    teacher, _ = loaded("timm:test_vit@64", tmp_path)
    teacher.model.blocks[0].register_forward_hook(lambda _, __, out: out.index_fill(0, torch.tensor([1]), torch.nan))
    with pytest.raises(
        TeacherError, match=r"timm:test_vit@64: NaN or infinite cls features for 1 of 3 images, at \[1\]"
    ):
        teacher(views(64, 3))


def test_nan_in_the_weights_stops_loading(tmp_path):
    state = timm.create_model("test_vit").state_dict()
    torch.save({**state, "norm.bias": torch.full((64,), torch.nan)}, tmp_path / "nan.pth")
    with pytest.raises(TeacherError, match=r"teacher timm:test_vit: NaN or infinite .* check its weights"):
        load_teacher(resolve("timm:test_vit"), str(tmp_path / "nan.pth"))


@pytest.mark.parametrize("kind", ["cls", "patch"])
@pytest.mark.parametrize("name", ["timm:test_vit@64", "timm:test_resnet@64"])
def test_a_teacher_may_lack_one_of_the_two(tmp_path, name, kind):
    teacher, _ = loaded(name, tmp_path)
    other = {"cls": "grid_rules", "patch": "summary_rules"}[kind]
    spec = dataclasses.replace(resolve(name), **{other: {}})
    alone = load_teacher(spec, str(tmp_path / "weights.safetensors"))
    assert list(alone.spec.kinds) == [kind]
    found = alone(views(64))
    assert list(found) == [kind]
    torch.testing.assert_close(found[kind], teacher(views(64))[kind], atol=1e-6, rtol=1e-6)


def test_block_rule_norms_that_block_and_computes_none_after_it(tmp_path):
    _, model = loaded("timm:test_vit@64", tmp_path)
    spec = dataclasses.replace(
        resolve("timm:test_vit@64"), summary_rules={"cls": "block:2"}, grid_rules={"patch": "block:2"}
    )
    images = normalised(views(64), spec)
    ran = []
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, __, ___, index=index: ran.append(index))
    with torch.inference_mode():
        found = tokens(model, images, spec)
        assert ran == [0, 1, 2]
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        for block in model.blocks[:3]:
            x = block(x)
        x = model.norm(x)
    assert torch.equal(found["cls"], x[:, 0])
    assert torch.equal(found["patch"], x[:, 1:])
