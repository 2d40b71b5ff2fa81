"""transformers' vision models as teachers: tokens equal to the library's own, by family; what is wrong is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.teachers.outside_models import PIXELS, SMALL, normalised, save, shaken, views
from unic_cache.errors import TeacherError
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.model import load_teacher
from unic_cache.teachers.outside import vision
from unic_cache.teachers.spec import TeacherSpec

transformers = pytest.importorskip("transformers")
REGISTERS = {**SMALL, "num_register_tokens": 4}
VISIBLE = {"vision_config": SMALL, "text_config": {**SMALL, "vocab_size": 50}}
# config class, its settings, model class, tokens before the patches, CLS rule, patch rule
FAMILIES = {
    "vit": ("ViT", SMALL, "ViTModel", 1, "norm-cls", "norm-patch"),
    "deit": ("DeiT", SMALL, "DeiTModel", 2, "norm-cls", "norm-patch"),
    "vit_mae": ("ViTMAE", SMALL, "ViTMAEForPreTraining", 1, "norm-cls", "norm-patch"),
    "vit_msn": ("ViTMSN", SMALL, "ViTMSNModel", 1, "norm-cls", "norm-patch"),
    "ijepa": ("IJepa", SMALL, "IJepaModel", 0, "grid-mean", "norm-patch"),
    "beit": ("Beit", {**SMALL, "use_mean_pooling": False}, "BeitModel", 1, "norm-cls", "norm-patch"),
    "beit-mean": (
        "Beit", {**SMALL, "use_relative_position_bias": True, "use_mean_pooling": True}, "BeitForImageClassification",
        1, "pooled", "raw-patch",
    ),
    "dinov2": ("Dinov2", SMALL, "Dinov2ForImageClassification", 1, "norm-cls", "norm-patch"),
    "dinov2_with_registers": (
        "Dinov2WithRegisters", REGISTERS, "Dinov2WithRegistersModel", 5, "norm-cls", "norm-patch",
    ),
    "dinov3_vit": ("DINOv3ViT", REGISTERS, "DINOv3ViTModel", 5, "norm-cls", "norm-patch"),
    "dinov3_convnext": (
        "DINOv3ConvNext", {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1], "image_size": 64},
        "DINOv3ConvNextModel", 1, "norm-cls", "norm-patch",
    ),
    "clip_vision_model": ("CLIPVision", SMALL, "CLIPVisionModel", 1, "norm-cls", "norm-patch"),
    "metaclip_2_vision_model": ("MetaClip2Vision", SMALL, "MetaClip2VisionModel", 1, "norm-cls", "norm-patch"),
    "siglip_vision_model": ("SiglipVision", SMALL, "SiglipVisionModel", 0, "pooled", "norm-patch"),
    "aimv2_vision_model": (
        "Aimv2Vision", {**SMALL, "use_head": False}, "Aimv2VisionModel", 0, "grid-mean", "norm-patch",
    ),
    "tipsv2_vision_model": (
        "Tipsv2Vision", {**SMALL, "num_register_tokens": 1}, "Tipsv2VisionModel", 2, "norm-cls", "norm-patch",
    ),
}  # fmt: skip
WIDE = {**PIXELS, "size": {"height": 64, "width": 64}}


def made(family: str):
    config, settings, model, *_ = FAMILIES[family]
    torch.manual_seed(0)
    return shaken(getattr(transformers, model)(getattr(transformers, f"{config}Config")(**settings)))


def own_outputs(family: str, model, images_BCHW):
    """(CLS, patches) by a plain forward pass of the library."""
    base = getattr(model, model.base_model_prefix, model) if "For" in type(model).__name__ else model
    extra = {}
    if family == "vit_mae":  # its order is that of noise, and its head sees a quarter of the patches
        base.config.mask_ratio = 0.0
        extra = {"noise": torch.arange(16).expand(len(images_BCHW), -1)}
    prefix, rule = FAMILIES[family][3:5]
    with torch.inference_mode():
        answer = base(pixel_values=images_BCHW, **extra)
        sequence = answer.last_hidden_state
        if "clip" in family:
            sequence = base.post_layernorm(sequence)
            assert torch.equal(answer.pooler_output, sequence[:, 0])
    cls = {"norm-cls": sequence[:, 0], "grid-mean": sequence.mean(dim=1), "pooled": answer.get("pooler_output")}[rule]
    return cls, sequence[:, prefix:]


def test_every_family_is_tested_and_documented():
    assert {family.partition("-")[0] for family in FAMILIES} == set(vision.FAMILIES)
    page = Path("docs/OWN_TEACHERS.md").read_text().partition("## transformers")[2].partition("Any other")[0]
    assert {name.removesuffix("_vision_model") for name in vision.FAMILIES} <= set(re.findall(r"`(\w+)`", page))


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_the_librarys_own(tmp_path, family):
    model = made(family)
    save(tmp_path / "m", model, WIDE if "convnext" in family else PIXELS)
    teacher = load_teacher(resolve(f"local-dir:{tmp_path}/m"))
    spec, (_, _, _, _, cls_rule, patch_rule) = teacher.spec, FAMILIES[family]
    assert (spec.summary_rules, spec.grid_rules) == ({"cls": cls_rule}, {"patch": patch_rule})
    assert TeacherSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    images = views(spec.input_size)
    cls, patch = own_outputs(family, model, normalised(images))
    found = teacher(images)
    assert spec.kinds["patch"].grid == ((2, 2) if "convnext" in family else (4, 4))
    torch.testing.assert_close(found["cls"], cls)
    torch.testing.assert_close(found["patch"], patch)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory) -> str:
    """The name of a small DINOv2 in a folder; nothing changes it."""
    folder = save(tmp_path_factory.mktemp("models") / "dinov2", made("dinov2"))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA small one.\n")
    return f"local-dir:{folder}"


def test_the_spec_says_where_it_is_from(dinov2):
    spec = resolve(dinov2)
    assert (spec.arch, spec.licence, spec.position_rule) == ("transformers:Dinov2Model", "apache-2.0", "own")
    assert (spec.mean, spec.std, spec.input_size, spec.stride) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 56, 14)
    assert spec.version.startswith("config ")
    loaded = load_teacher(spec).spec
    assert None not in {loaded.weights_sha256, loaded.weights_file_sha256}
    assert load_teacher(loaded).spec == loaded


def test_rules_read_blocks_and_sequences(dinov2):
    model = transformers.Dinov2Model.from_pretrained(dinov2.removeprefix("local-dir:")).eval()
    name = f"{dinov2}+cls=raw-cls,patch=block:0"
    teacher = load_teacher(resolve(name))
    assert teacher.spec.name == name
    with torch.inference_mode():
        hidden = model(pixel_values=normalised(views()), output_hidden_states=True).hidden_states
        expected = {"cls": hidden[2][:, 0], "patch": model.layernorm(hidden[1])[:, 1:]}
    torch.testing.assert_close(teacher(views()), expected)
    assert load_teacher(resolve(f"{dinov2}+cls=none")).spec.kinds.keys() == {"patch"}
    mean = load_teacher(resolve(f"{dinov2}+cls=grid-mean"))(views())
    torch.testing.assert_close(mean["cls"], mean["patch"].mean(dim=1))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            "cls=norm-cls:1",
            r"rule norm-cls:1 does not fit transformers:Dinov2Model: it has 1 tokens before its patches",
        ),
        ("patch=block:2", r"rule block:2 does not fit .*: its blocks are 0 to 1"),
        ("patch=stride16-map", r"patch rule 'stride16-map' is unknown; choose from norm-patch, raw-patch, block"),
    ],
)
def test_rules_that_a_model_cannot_serve_are_refused(dinov2, rules, message):
    with pytest.raises(TeacherError, match=message):
        load_teacher(resolve(f"{dinov2}+{rules}"))


def test_pooled_of_a_model_that_pools_nothing_is_refused(tmp_path):
    save(tmp_path / "m", made("vit"))
    with pytest.raises(TeacherError, match=r"rule pooled does not fit transformers:ViTModel: it pools nothing"):
        load_teacher(resolve(f"local-dir:{tmp_path}/m+cls=pooled"))


@pytest.mark.parametrize("family", ["vit", "dinov2", "siglip_vision_model", "clip_vision_model"])
def test_another_size_resamples_positions_as_the_library_does(tmp_path, family):
    model = made(family)
    save(tmp_path / "m", model)
    teacher = load_teacher(resolve(f"local-dir:{tmp_path}/m@84"))
    assert teacher.spec.kinds["patch"].grid == (6, 6)
    assert teacher.spec.name.endswith("/m@84")
    base = getattr(model, "dinov2", model)
    more = {} if family == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.inference_mode():
        sequence = base(pixel_values=normalised(views(84)), **more).last_hidden_state
        sequence = base.post_layernorm(sequence) if "clip" in family else sequence
    torch.testing.assert_close(teacher(views(84))["patch"], sequence[:, FAMILIES[family][3] :])


def test_a_size_that_the_library_cannot_run_is_refused(tmp_path):
    save(tmp_path / "m", made("aimv2_vision_model"))
    with pytest.raises(TeacherError, match=r"transformers:Aimv2VisionModel cannot run at 84 px: RuntimeError"):
        load_teacher(resolve(f"local-dir:{tmp_path}/m@84"))


@pytest.mark.parametrize("pair", ["CLIP", "MetaClip2", "Siglip", "Aimv2", "Tipsv2"])
def test_of_a_pair_the_image_tower_is_taken(tmp_path, pair):
    """Whatever its names begin with in the file."""
    model = shaken(getattr(transformers, f"{pair}Model")(getattr(transformers, f"{pair}Config")(**VISIBLE)))
    save(tmp_path / "m", model)
    teacher = load_teacher(resolve(f"local-dir:{tmp_path}/m"))
    tower = model.vision_model
    with torch.inference_mode():
        answer = tower(pixel_values=normalised(views()))
        sequence = answer.last_hidden_state
        sequence = tower.post_layernorm(sequence) if "clip" in pair.lower() and pair != "Siglip" else sequence
    pooled, prefix = teacher.spec.summary_rules == {"cls": "pooled"}, teacher.model.prefix
    expected = {"cls": answer.pooler_output if pooled else sequence[:, 0], "patch": sequence[:, prefix:]}
    torch.testing.assert_close(teacher(views()), expected)


def test_a_siglip_without_its_pool_gives_the_mean(tmp_path):
    model = shaken(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SMALL, vision_use_head=False)))
    save(tmp_path / "m", model)
    assert resolve(f"local-dir:{tmp_path}/m").summary_rules == {"cls": "grid-mean"}
    load_teacher(resolve(f"local-dir:{tmp_path}/m"))


def test_weights_in_parts_and_of_half_precision_are_read(tmp_path, dinov2):
    model = transformers.Dinov2Model.from_pretrained(dinov2.removeprefix("local-dir:"))
    save(tmp_path / "m", model)
    for path in tmp_path.glob("m/*.safetensors"):
        path.unlink()
    model.half().save_pretrained(tmp_path / "m", max_shard_size="20KB")
    assert (tmp_path / "m/model.safetensors.index.json").exists()
    teacher = load_teacher(resolve(f"local-dir:{tmp_path}/m"))
    assert {tensor.dtype for tensor in teacher.model.parameters()} == {torch.float32}
    assert teacher.spec.weights_file_sha256 is None
    expected = load_teacher(resolve(dinov2))(views())["patch"]
    assert torch.cosine_similarity(teacher(views())["patch"], expected, dim=-1).min() > 0.999


def test_a_part_that_the_users_index_lacks_is_not_taken_from_the_folder(tmp_path, dinov2):
    model = transformers.Dinov2Model.from_pretrained(dinov2.removeprefix("local-dir:"))
    for folder in ("published", "tuned"):
        save(tmp_path / folder, model)
        (tmp_path / folder / "model.safetensors").unlink()
        model.save_pretrained(tmp_path / folder, max_shard_size="20KB")
    parts = sorted(tmp_path.glob("tuned/model-*.safetensors"))
    parts[-1].unlink()
    with pytest.raises(TeacherError, match=rf"{parts[-1].name}.*there is no such file"):
        load_teacher(resolve(f"local-dir:{tmp_path}/published"), str(tmp_path / "tuned/model.safetensors.index.json"))


def test_a_file_with_two_networks_is_told(tmp_path, dinov2, caplog):
    state = load_file(Path(dinov2.removeprefix("local-dir:"), "model.safetensors"))
    other = {name: values + 1 for name, values in state.items()}
    torch.save({"ema": other, "model": state}, tmp_path / "named.pth")
    teacher = load_teacher(resolve(dinov2), str(tmp_path / "named.pth"))
    assert "took 'model', and left 'ema'" in caplog.text
    assert teacher.spec.weights_sha256 == load_teacher(resolve(dinov2)).spec.weights_sha256
    torch.save({"first": other, "second": state}, tmp_path / "unnamed.pth")
    with pytest.raises(TeacherError, match=r"holds 2 networks of one size, under 'first' and 'second'"):
        load_teacher(resolve(dinov2), str(tmp_path / "unnamed.pth"))


def changed(state, change):
    state = dict(state)
    change(state)
    return state


NORM = "dinov2.layernorm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(NORM), r"do not fit its model, Dinov2Model: layernorm.weight is missing"),
        (lambda state: state.update({"dinov2.extra.weight": torch.ones(3)}), r"extra.weight is not part of it"),
        (
            lambda state: state.update({NORM: torch.ones(31)}),
            r"layernorm.weight \(31,\), where it has \(32,\), does not fit",
        ),
        (
            lambda state: state.update({NORM: torch.full((32,), torch.nan)}),
            r"NaN or infinite values in model.layernorm",
        ),
        (
            lambda state: state.update({NORM: torch.ones(32, dtype=torch.int8)}),
            r"layernorm.weight is int8, a quantized",
        ),
        (lambda state: state.clear() or state.update({"other": torch.ones(3)}), r"do not fit its model"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, dinov2, change, message):
    state = load_file(Path(dinov2.removeprefix("local-dir:"), "model.safetensors"))
    save_file(changed(state, change), tmp_path / "other.safetensors")
    with pytest.raises(TeacherError, match=message):
        load_teacher(resolve(dinov2), str(tmp_path / "other.safetensors"))


def test_a_file_of_the_users_takes_the_place_of_the_folders(tmp_path, dinov2):
    state = load_file(Path(dinov2.removeprefix("local-dir:"), "model.safetensors"))
    save_file(changed(state, lambda state: state.update({NORM: torch.ones(32)})), tmp_path / "other.safetensors")
    teacher = load_teacher(resolve(dinov2), str(tmp_path / "other.safetensors"))
    assert teacher.file == tmp_path / "other.safetensors"
    assert teacher.spec.weights_sha256 != load_teacher(resolve(dinov2)).spec.weights_sha256
    assert torch.equal(teacher.model.model.layernorm.weight, torch.ones(32))


def test_a_config_never_makes_transformers_fetch_code(tmp_path, dinov2):
    folder = Path(dinov2.removeprefix("local-dir:"))
    raw = json.loads((folder / "config.json").read_text())
    more = {
        "attn_implementation": "someone/kernel",
        "auto_map": {"AutoModel": "someone/code--x.Y"},
        "use_kernels": True,
    }
    (tmp_path / "config.json").write_text(json.dumps({**raw, **more}))
    for name in ("model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).symlink_to(folder / name)
    teacher = load_teacher(resolve(f"local-dir:{tmp_path}"))
    assert teacher.model.model.config._attn_implementation in {"sdpa", "eager"}


CROPPED = {**PIXELS, "size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}, "do_center_crop": True}


@pytest.mark.parametrize(
    ("config", "pixels", "message"),
    [
        ({"model_type": "siglip2"}, PIXELS, r"model_type 'siglip2' is not among those .*NaFlex"),
        ({"model_type": "resnet"}, PIXELS, r"take the same network from timm"),
        (
            {"model_type": "theirs", "auto_map": {"AutoModel": "x.Y"}},
            PIXELS,
            r"own code \(auto_map\), which is never run",
        ),
        ({}, PIXELS, r"names neither timm's architecture nor transformers' model_type"),
        ({"model_type": "vit", "num_channels": 4}, PIXELS, r"4 channels, not 3"),
        ({"model_type": "vit", "quantization_config": {"quant_method": "gptq"}}, PIXELS, r"its weights are quantized"),
        ({"model_type": "vit", "image_size": "56"}, PIXELS, r"transformers cannot read its config.json: .*image_size"),
        ({"model_type": "clip", "vision_config": "small"}, PIXELS, r"transformers cannot read its config.json"),
        ({"model_type": "clip"}, PIXELS, r"its config.json is of a pair, clip, and has no vision_config"),
        ({"model_type": "vit"}, None, r"mean and std are not known: \S+ holds none of preprocessor_config.json"),
        ({"model_type": "vit"}, {**PIXELS, "rescale_factor": "1/255"}, r"not as it should be: ValueError"),
        ({"model_type": "vit"}, {**PIXELS, "do_flip_channel_order": True}, r"has do_flip_channel_order; wrap"),
        ({"model_type": "vit"}, {**PIXELS, "image_mean": [127] * 3}, r"mean \[127, 127, 127\] is not one of pixels"),
        ({"model_type": "vit"}, {**PIXELS, "size": "56"}, r"makes inputs of '56' x '56' px"),
        ({"model_type": "vit"}, {**PIXELS, "rescale_factor": 1 / 127.5}, r"scales pixels by 0.0078"),
        ({"model_type": "vit"}, {**PIXELS, "do_rescale": False}, r"scales pixels by 1,"),
        ({"model_type": "vit"}, {**PIXELS, "image_std": [1, 1]}, r"std is \[1, 1\], and must be three numbers"),
        ({"model_type": "vit"}, {**PIXELS, "size": {"height": 56, "width": 70}}, r"inputs of 56 x 70 px"),
        ({"model_type": "vit", "patch_size": 15}, PIXELS, r"56 px is no multiple of the patch size 15 px"),
    ],
)
def test_models_that_cannot_be_teachers_are_refused(tmp_path, config, pixels, message):
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, **config} if config else {}))
    if pixels is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(pixels))
    with pytest.raises(TeacherError, match=message):
        resolve(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (CROPPED, (56, (0.4, 0.5, 0.6))),
        ({"image_processor": PIXELS}, (56, (0.4, 0.5, 0.6))),
        ({"do_normalize": False, "size": 70}, (70, (0.0, 0.0, 0.0))),
        ({"image_mean": 0.5, "image_std": 0.5, "do_resize": False}, (56, (0.5, 0.5, 0.5))),
    ],
)
def test_processors_of_every_form_are_read(tmp_path, pixels, expected):
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "model_type": "vit"}))
    name = "processor_config.json" if "image_processor" in pixels else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps(pixels))
    spec = resolve(f"local-dir:{tmp_path}")
    assert (spec.input_size, spec.mean) == expected
