"""Presets: sizes as in timm, targets as a plain forward gives them, and every one from pixels to a trained student."""

import itertools
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn.functional import layer_norm

from benchmarks.teachers import check, check_derived, page, small
from pipelines import distill, extract, inspect, plan
from tests.conftest import make_shards
from unic_cache.cache import open_cache
from unic_cache.config import DistillConfig, ExtractConfig, InspectConfig, PlanConfig
from unic_cache.errors import TeacherError
from unic_cache.inputs import network_input
from unic_cache.teachers import catalog
from unic_cache.teachers.catalog import CATALOG, PRESETS, resolve
from unic_cache.teachers.model import load_teacher

RULES = ("dinov2-s-reg", "pe-core-t", "eva02-t-mim", "dinov3-convnext-t", "sam-b", "c-radio-v3-b")  # one each
OTHERS = ("dinov2-s+patch=none", "dinov2-s+cls=none,patch=raw-block:0", "pe-spatial-t")
FAMILIES = {
    family: [one.spec.name for one in ones]
    for family, ones in itertools.groupby(PRESETS.values(), lambda one: one.family)
}


def weights_of(spec, folder: Path) -> str:
    """A file of random weights under timm's names, norms and biases too."""
    torch.manual_seed(0)
    state = timm.create_model(spec.arch, num_classes=0, **dict(spec.arch_options)).state_dict()
    if spec.headless:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("pre_logits")}
    state = {name: x + 0.1 * torch.randn_like(x) if x.is_floating_point() else x for name, x in state.items()}
    path = folder / f"{spec.name.translate(str.maketrans('+=,:', '....'))}.safetensors"
    save_file({name: x.contiguous() for name, x in state.items()}, path)
    return str(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Small teachers in the catalog's place while the module runs, and a function that writes weights for a name."""
    folder, patch = tmp_path_factory.mktemp("presets"), pytest.MonkeyPatch()
    for name, spec in list(CATALOG.items()):
        patch.setitem(catalog.CATALOG, name, small(spec))
    yield lambda name: weights_of(resolve(name), folder)
    patch.undo()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("pictures"), (2,)).pattern


def tokens_of(name, tiny):
    """(spec, targets of two images, the model, its input) of a small teacher."""
    teacher = load_teacher(resolve(name), tiny(name))
    spec = teacher.spec
    views = torch.randint(256, (2, spec.input_size, spec.input_size, 3), dtype=torch.uint8)
    return spec, teacher(views), teacher.model, network_input(views, spec.input_size, spec.mean, spec.std)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_pe_cores_class_target_is_timms_own_pool_and_not_its_class_token(tiny):
    spec, found, model, images = tokens_of("pe-core-t", tiny)
    features = model.forward_features(images)
    close(found["cls"], model(images))
    close(found["cls"], model.fc_norm(model.attn_pool(features)))
    assert not torch.allclose(found["cls"], features[:, 0], atol=0.1)
    close(found["patch"], features[:, 1:])
    assert resolve("timm:vit_pe_core_tiny_patch16_384.fb").summary_rules == spec.summary_rules == {"cls": "pooled"}


@torch.inference_mode()
def test_eva02_mims_targets_are_normed_by_the_norm_that_was_the_final_one(tiny):
    _, found, model, images = tokens_of("eva02-t-mim", tiny)
    x, rope = model._pos_embed(model.patch_embed(images))
    for block in model.blocks:
        x = block(x, rope=rope)
    normed = layer_norm(x, (64,), model.fc_norm.weight, model.fc_norm.bias, model.fc_norm.eps)
    close(found["cls"], normed[:, 0])
    close(found["patch"], normed[:, 1:])


@torch.inference_mode()
def test_dinov3_convnexts_targets_are_its_mean_and_its_last_map_normed_together(tiny):
    spec, found, model, images = tokens_of("dinov3-convnext-t", tiny)
    rows = model.stages(model.stem(images)).flatten(2).transpose(1, 2)
    norm = model.head.norm
    together = layer_norm(torch.cat([rows.mean(1, keepdim=True), rows], dim=1), (32,), norm.weight, norm.bias, norm.eps)
    close(found["cls"], together[:, 0])
    close(found["patch"], together[:, 1:])
    assert spec.kinds["patch"].grid == (2, 2)


@torch.inference_mode()
def test_sams_patches_are_its_necks_256_channels_and_it_has_no_class_target(tiny):
    _, found, model, images = tokens_of("sam-b", tiny)
    x = model.blocks(model.patch_embed(images) + model.pos_embed)
    close(found["patch"], model.neck(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2))
    assert list(found) == ["patch"]
    assert found["patch"].shape == (2, 16, 256)


@torch.inference_mode()
@pytest.mark.parametrize(("name", "count", "prefix"), [("c-radio-v3-b", 3, 8), ("c-radio-v4-so400m", 2, 10)])
def test_c_radios_class_targets_are_all_that_its_teachers_trained(tiny, name, count, prefix):
    _, found, model, images = tokens_of(name, tiny)
    features = model.forward_features(images)
    summaries = [found[kind] for kind in ("cls", "cls-1", "cls-2")[:count]]
    assert len(found) == count + 1
    close(torch.cat(summaries, dim=1), features[:, :count].flatten(1))
    close(found["patch"], features[:, prefix:])


@torch.inference_mode()
def test_other_activations_are_chosen_by_name_in_one_pass(tiny, tmp_path):
    name = "dinov2-s-reg+cls=norm-cls,cls-1=norm-cls:2,patch=raw-block:0"
    spec, found, model, images = tokens_of(name, tiny)
    assert spec.name == name
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    first = model.blocks[0](x)
    last = model.blocks[1](first)
    close(found["cls"], model.norm(last)[:, 0])
    close(found["cls-1"], model.norm(last)[:, 2])
    close(found["patch"], first[:, 5:])
    raw = load_teacher(resolve("dinov2-s-reg+cls=raw-cls,patch=raw-patch"), tiny("dinov2-s-reg"))
    views = torch.randint(256, (2, spec.input_size, spec.input_size, 3), dtype=torch.uint8)
    found, images = raw(views), network_input(views, spec.input_size, spec.mean, spec.std)
    first = model.blocks[0](model._pos_embed(model.patch_embed(images)))
    close(torch.cat([found["cls"][:, None], found["patch"]], dim=1), model.blocks[1](first)[:, [0, *range(5, 21)]])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("eva02-t-mim+patch=norm-patch", r"it ends without a norm; take fc-norm-cls, fc-norm-patch"),
        ("dinov2-s+cls=norm-cls:1", r"it has 1 prefix tokens"),
        ("dinov2-s+patch=block:2", r"its blocks are 0 to 1"),
        ("siglip-b+cls=norm-cls", r"it has 0 prefix tokens; for a summary take pooled or grid-mean"),
        ("dinov2-s+cls=fc-norm-mean", r"it has no fc_norm"),
        ("dinov2-s+cls=pooled,patch=neck", r"it has no neck"),
        ("dinov3-convnext-t+patch=raw-patch", r"ends in a map"),
    ],
)
def test_a_rule_that_the_model_cannot_serve_is_refused_before_anything_runs(tiny, name, message):
    with pytest.raises(TeacherError, match=message):
        load_teacher(resolve(name), tiny(name))


def through(names, tiny, pictures, folder: Path) -> None:
    """Extract two images from all teachers into one cache, look at it, and distill a student from it."""
    weights = tuple((name, tiny(name)) for name in names)
    cache, options = str(folder / "cache"), {"shards": pictures, "threads": 1}
    made = {"views": 1, "size": 32, "codec": "f16", "batch_size": 2, "calibration_images": 10}
    extract.run(ExtractConfig(tuple(names), cache=cache, weights=weights, device="cpu", **made, **options))
    assert inspect.run(InspectConfig(cache))["teachers"].keys() == set(names)
    kinds = {name: teacher.kinds for name, teacher in open_cache(cache).teachers.items()}
    assert all({*resolve(name).summary_rules, *resolve(name).grid_rules} == {*kinds[name]} for name in names)
    student = {"student": "test_vit", "img_size": 32, "patch_size": 16, "steps": 2, "batch_size": 2, "tracker": "none"}
    distill.run(DistillConfig(cache=cache, out=str(folder / "run"), **student, **options))


def test_each_rule_goes_from_pixels_to_a_trained_student(tiny, pictures, tmp_path):
    through([*RULES, *OTHERS], tiny, pictures, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dinov2-s+patch=none", "sam-b"])
def test_a_plan_costs_teachers_without_patches_and_without_a_class_token(tiny, pictures, name):
    made = {"views": 1, "size": 32, "batch_size": 2, "calibration_images": 10, "device": "cpu", "threads": 1}
    options = {"student": "test_vit", "img_size": 32, "patch_size": 16, "shards": pictures}
    report = plan.run(PlanConfig((name,), weights=((name, tiny(name)),), **made, **options))
    assert report.costs.forward_seconds.keys() == {name}
    assert {kept.teacher for kept in report.costs.kept} == {name}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_preset_goes_from_pixels_to_a_trained_student(tiny, pictures, tmp_path, family):
    through(FAMILIES[family], tiny, pictures, tmp_path)


@pytest.mark.parametrize("name", ["c-radio-v3-b", "dinov3-convnext-t"])
def test_sizes_and_rules_are_those_of_timms_model(name):
    check(PRESETS[name])
    check_derived(PRESETS[name].spec)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_all_sizes_and_rules_are_those_of_timms_models(family):
    for name in FAMILIES[family]:
        check(PRESETS[name])
    first = PRESETS[FAMILIES[family][0]].spec
    if first.source == "timm":
        check_derived(first)


def test_the_page_is_what_the_command_writes():
    assert Path("docs/TEACHERS.md").read_text() == page(), "run `python -m benchmarks.teachers`"
