"""open_clip's image towers as teachers: tokens equal to open_clip's own, before the projection."""

import dataclasses
import json

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from tests.teachers.outside_models import MEAN, PIXELS, STD, on_hub, shaken, views
from unic_cache.errors import TeacherError
from unic_cache.teachers import positions
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.model import load_teacher
from unic_cache.teachers.outside.opening import outside_spec
from unic_cache.token_kinds import TokenKind

open_clip = pytest.importorskip("open_clip")
TEXT = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 64, "patch_size": 16, "width": 64, "head_width": 16, "layers": 2}
TIMM = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160}
SAID = {"mean": PIXELS["image_mean"], "std": PIXELS["image_std"]}


def normalised(images_BHWC):
    return (images_BHWC.permute(0, 3, 1, 2) / 255 - MEAN) / STD


def save(folder, vision, **more):
    """A whole small model in open_clip's layout, and the model."""
    folder.mkdir(parents=True, exist_ok=True)
    description = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT, **more}
    torch.manual_seed(0)
    model = shaken(open_clip.CLIP(**description))
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": description, "preprocess_cfg": SAID}))
    save_file(
        {name: tensor.clone() for name, tensor in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return model.visual


def own_tokens(visual, images):
    """Normed tokens by a plain pass of the tower's parts."""
    with torch.inference_mode():
        return visual.ln_post(visual.transformer(visual._embeds(normalised(images))))


@pytest.mark.parametrize("gelu", [False, True])
def test_tokens_of_its_own_vit(tmp_path, gelu):
    visual = save(tmp_path / "m", VIT, quick_gelu=gelu)
    teacher = load_teacher(resolve(f"local-dir:{tmp_path}/m"))
    expected = own_tokens(visual, views(64))
    torch.testing.assert_close(teacher(views(64)), {"cls": expected[:, 0], "patch": expected[:, 1:]})
    with torch.inference_mode():
        assert torch.allclose(expected[:, 0] @ visual.proj, visual(normalised(views(64))), atol=1e-5)
    spec = teacher.spec
    assert (spec.summary_rules, spec.input_size, spec.stride) == ({"cls": "norm-cls"}, 64, 16)
    assert "proj" not in teacher.model.model.state_dict()


def test_pooled_tokens_blocks_and_average_pools(tmp_path):
    visual = save(tmp_path / "m", {**VIT, "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True})
    teacher = load_teacher(resolve(f"local-dir:{tmp_path}/m+patch=raw-block:0"))
    with torch.inference_mode():
        first = visual.transformer.resblocks[0](visual._embeds(normalised(views(64))))
        visual.proj = None
        pooled = visual(normalised(views(64)))
    assert teacher.spec.summary_rules == {"cls": "pooled"}
    torch.testing.assert_close(teacher(views(64)), {"cls": pooled, "patch": first[:, 1:]})


def test_a_tower_of_timms_has_timms_rules(tmp_path):
    visual = save(tmp_path / "m", TIMM)
    teacher = load_teacher(resolve(f"local-dir:{tmp_path}/m"))
    with torch.inference_mode():
        expected = visual.trunk.forward_features(normalised(views(160)))
    torch.testing.assert_close(teacher(views(160)), {"cls": expected[:, 0], "patch": expected[:, 1:]})
    small = load_teacher(resolve(f"local-dir:{tmp_path}/m@64"))
    assert small.spec.kinds["patch"].grid == (4, 4)
    assert small.spec.weights_sha256 == teacher.spec.weights_sha256


def test_another_size_resamples_positions_as_open_clip_does(tmp_path):
    visual = save(tmp_path / "m", VIT)
    teacher = load_teacher(resolve(f"local-dir:{tmp_path}/m@96"))
    state = {"visual.positional_embedding": visual.positional_embedding.detach().clone()}
    wide = open_clip.CLIP(24, {**VIT, "image_size": 96}, TEXT)
    open_clip.model.resize_pos_embed(state, wide)
    visual.positional_embedding = torch.nn.Parameter(state["visual.positional_embedding"])
    expected = own_tokens(visual, views(96))
    torch.testing.assert_close(teacher(views(96))["patch"], expected[:, 1:])
    assert "timm" in positions.RULES


def test_positions_of_timms_tower_follow_timms_rule_alone(tmp_path):
    """Another rule would be recorded, and not be what was done."""
    save(tmp_path / "m", TIMM)
    spec = dataclasses.replace(resolve(f"local-dir:{tmp_path}/m@64"), position_rule="bicubic")
    with pytest.raises(TeacherError, match=r"resampled by rule timm alone, not bicubic; leave out --positions"):
        load_teacher(spec)


def test_a_rule_for_another_width_is_refused(tmp_path):
    """The last norm of a tower with an attention pool is of what it pools."""
    save(tmp_path / "m", {**VIT, "attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2})
    assert load_teacher(resolve(f"local-dir:{tmp_path}/m")).spec.kinds["cls"] == TokenKind(24)
    with pytest.raises(TeacherError, match=r"cannot run at 64 px: RuntimeError"):
        load_teacher(resolve(f"local-dir:{tmp_path}/m+patch=norm-patch"))


def test_a_summary_that_is_a_map_is_refused(tmp_path):
    """open_clip's own pool comes after timm's network, which then pools nothing."""
    vision = {"timm_model_name": "test_convnext", "timm_pool": "rot_attn", "timm_proj": "", "image_size": 160}
    save(tmp_path / "m", vision)
    with pytest.raises(TeacherError, match=r"its cls by rule pooled has shape \(1, 64, 5, 5\), and is no vector"):
        load_teacher(resolve(f"local-dir:{tmp_path}/m"))
    assert load_teacher(resolve(f"local-dir:{tmp_path}/m+cls=grid-mean")).spec.kinds["cls"] == TokenKind(48)


def test_a_tag_takes_its_file_from_the_hubs_cache(tmp_path, monkeypatch):
    """Of a model that open_clip knows, with the sizes of a small one."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    outside_spec.cache_clear()
    known = open_clip.get_pretrained_cfg("ViT-B-16", "laion2b_s34b_b88k")
    repo, _, file = known["hf_hub"].rpartition("/")
    folder = on_hub(tmp_path, repo, "1234")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    visual = save(folder, VIT)
    (folder / "open_clip_model.safetensors").rename(folder / (file or "open_clip_model.safetensors"))
    small = {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT}
    monkeypatch.setattr(open_clip, "get_model_config", lambda arch: small if arch == "ViT-B-16" else None)
    teacher = load_teacher(resolve("open_clip:ViT-B-16/laion2b_s34b_b88k"))
    assert (teacher.spec.mean, teacher.spec.licence) == (tuple(known["mean"]), "mit")
    assert teacher.spec.arch == "open_clip:ViT-B-16/laion2b_s34b_b88k"
    assert torch.equal(teacher.model.model.conv1.weight, visual.conv1.weight)
    outside_spec.cache_clear()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-B-17/openai", r"open_clip has no model 'ViT-B-17'; close names: ViT-B-1"),
        ("open_clip:ViT-B-32/laion", r"open_clip has no weights 'laion' of ViT-B-32, only openai, "),
        ("open_clip:ViT-B-32", r"must be open_clip:ARCH/TAG"),
        ("open_clip:RN50/cc12m", r"its image tower is open_clip's ModifiedResNet; take it from timm"),
        ("open_clip:ViT-B-32/laion2b_e16@100", r"100 px is no multiple of the patch size 32 px"),
    ],
)
def test_what_open_clip_cannot_give_is_refused(name, message, monkeypatch):
    with pytest.raises(TeacherError, match=message):
        resolve(name)


def test_a_name_without_quickgelu_is_told(caplog):
    resolve("open_clip:ViT-B-32/openai")
    assert "say open_clip:ViT-B-32-quickgelu/openai" in caplog.text


def test_weights_of_another_tower_are_refused(tmp_path):
    save(tmp_path / "m", VIT)
    save(tmp_path / "other", {**VIT, "layers": 3})
    file = str(tmp_path / "other/open_clip_model.safetensors")
    with pytest.raises(TeacherError, match=r"transformer.resblocks.2\S* \(.*\) is not part of it"):
        load_teacher(resolve(f"local-dir:{tmp_path}/m"), file)
    assert any(name.startswith("visual.") for name in load_file(file))
