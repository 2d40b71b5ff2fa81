"""Names to specs: pure data, quick, and helpful when a name or a size is wrong."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import timm

from unic_cache.errors import TeacherError
from unic_cache.store.layout import teacher_folder
from unic_cache.teachers.catalog import CATALOG, resolve
from unic_cache.teachers.spec import TeacherSpec
from unic_cache.token_kinds import TokenKind
from unic_cache.weights.conversion import quickgelu_name


def test_catalog_holds_the_four_unic_teachers_and_the_three_from_packages():
    assert list(CATALOG)[:7] == [
        "dino",
        "deit3",
        "ibot",
        "dbot-ft",
        "efficientnet-lite0",
        "vit-s-saliency",
        "hed-edges",
    ]


@pytest.mark.parametrize(
    "name",
    [
        *CATALOG,
        "dino@448",
        "dinov2-b@336+cls=none,patch=block:9",
        "c-radio-v3-b+cls=none",
        "timm:test_vit",
        "timm:test_resnet@96",
    ],
)
def test_spec_survives_the_trip_through_json(name):
    kinds = {"cls": TokenKind(7), "patch": TokenKind(5, (3, 3))}
    spec = dataclasses.replace(resolve(name), kinds=kinds, weights_sha256="ab")
    assert TeacherSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_json_with_other_fields_is_refused():
    data = CATALOG["dino"].to_json()
    del data["mean"]
    with pytest.raises(TeacherError, match=r"unknown fields \['colour'\], absent fields \['mean'\]"):
        TeacherSpec.from_json({**data, "colour": "red"})


def test_size_suffix_changes_name_input_and_model_size_and_nothing_else():
    small, own = resolve("dino@96"), CATALOG["dino"]
    assert (small.name, small.input_size, dict(small.arch_options)["img_size"]) == ("dino@96", 96, 96)
    assert dataclasses.replace(small, name="dino", input_size=224, arch_options=own.arch_options) == own


def test_own_size_as_suffix_is_the_plain_teacher():
    assert resolve("dino@224") == CATALOG["dino"]
    assert resolve("timm:test_vit@160") == resolve("timm:test_vit")


def test_folder_is_a_plain_name():
    assert teacher_folder("timm:resnet18.a1_in1k@128") == "timm.resnet18.a1_in1k@128"
    assert teacher_folder("dbot-ft") == "dbot-ft"
    assert teacher_folder("dino@96+cls=none,patch=block:8") == "dino@96..cls-none.patch-block.8"


def test_rules_behind_a_name_change_the_targets_and_are_part_of_the_name():
    spec = resolve("dinov2-b@336+patch=block:9")
    assert (spec.name, spec.summary_rules, spec.grid_rules) == (
        "dinov2-b@336+patch=block:9",
        {"cls": "norm-cls"},
        {"patch": "block:9"},
    )
    assert resolve("dino+patch=none,cls=pooled").name == "dino+cls=pooled,patch=none"
    assert resolve("dino+cls=norm-cls,patch=norm-patch") == CATALOG["dino"]
    assert resolve("c-radio-v3-b+cls=raw-cls:2").summary_rules == {"cls": "raw-cls:2"}
    assert resolve("dinov2-b+cls=norm-cls,cls-1=block:5").summary_rules == {"cls": "norm-cls", "cls-1": "block:5"}
    assert resolve("dinov3-convnext-t+patch=stride16-map").stride == 16
    assert resolve("timm:test_vit+cls=none").summary_rules == {}


def test_every_preset_has_a_name_that_a_shell_a_flag_and_a_folder_take():
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in CATALOG)
    assert len({spec.about for spec in CATALOG.values()}) > 100
    assert all(spec.licence and spec.published for spec in CATALOG.values())


def test_unic_token_rules():
    specs = {name: CATALOG[name].to_json() for name in ("dino", "deit3", "ibot", "dbot-ft")}
    assert {name: (spec["cls_rule"], spec["patch_rule"]) for name, spec in specs.items()} == {
        "dino": ("norm-cls", "norm-patch"),
        "deit3": ("norm-cls", "norm-patch"),
        "ibot": ("norm-cls", "norm-patch"),
        "dbot-ft": ("fc-norm-mean", "raw-patch"),
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinoo", r"no teacher is called 'dinoo'; did you mean dino or "),
        ("zzz", r"no teacher is called 'zzz'; `unic-cache teachers` lists them all. Any timm model is timm:NAME"),
        ("dinov2", r"did you mean dinov2-s or dinov2-b or dinov2-l or dinov2-g or dinov2-s-reg or dinov2-b-reg\?"),
        ("pe-cor-b", r"did you mean pe-core-b or "),
        ("dino+cls", r"after '\+' come rules, as in dino\+cls=none,patch=block:8"),
        ("dino+head=pooled", r"after '\+' come rules"),
        ("dino+cls=none,cls=pooled", r"a kind has two rules; give one"),
        ("dino+cls=none@96", r"CLS rule 'none@96' is unknown; choose from norm-cls, raw-cls"),
        ("dino+cls=block", r"CLS rule 'block' must be block:NUMBER, as in block:8"),
        ("dino+patch=norm-patch:2", r"patch rule 'norm-patch:2' must be norm-patch"),
        ("dino+cls=none,patch=none", r"without CLS and patches it gives nothing"),
        ("dino+patch=neck", r"rules neck, norm-cls do not go together: beside a map"),
        ("timm:resnet19", r"has no model 'resnet19'; close names: timm:resnet18"),
        ("timm:qqqqqqqqqq", r"has no model 'qqqqqqqqqq'; timm.list_models\(\) has all"),
        ("timm:resnet18.nobody", r"has no model 'resnet18.nobody'; close names: timm:"),
        ("dino@", r"after '@' comes the input size in px, as in dino@224"),
        ("dino@big", r"after '@' comes the input size in px"),
        ("dino@225", r"teacher dino@225: .* 225 px is no multiple of the patch size 16 px; .*: 224 or 240"),
        ("vit-s-saliency@100", r"no multiple of the patch size 14 px; .*: 98 or 112"),
        ("dino@8", r"8 px is no multiple of the patch size 16 px; .*: 16 "),
        ("dino@0", r"0 px is out of bounds; choose 1 to"),
        ("timm:test_resnet@100", r"100 px is no multiple of the patch size 16 px; .*: 96 or 112"),
        (
            "timm:xception41",
            r"299 px is no multiple of the patch size 16 px; .*: 288 or 304 \(say timm:xception41@SIZE",
        ),
        ("timm:crossvit_9_240", r"timm:crossvit_9_240: .* choose another model"),
        ("timm:deepseek_vit_412m", r"neither one sequence of patch tokens nor a map with 16 px a cell"),
        ("timm:vgg11_bn@16", r"timm cannot run vgg11_bn.* at 16 px"),
    ],
)
def test_wrong_names_and_sizes_say_what_would_do(name, message):
    with pytest.raises(TeacherError, match=message):
        resolve(name)


@pytest.mark.parametrize(
    "change", [{"summary_rules": {"cls": "best"}}, {"grid_rules": {"patch": "best"}}, {"position_rule": "best"}]
)
def test_unknown_rule_is_refused(change):
    with pytest.raises(TeacherError, match=r"teacher dino: .* rule 'best' is unknown; choose from"):
        dataclasses.replace(CATALOG["dino"], **change)


def test_listing_the_teachers_imports_neither_torch_nor_timm():
    code = "import sys, unic_cache.teachers.catalog; print(sorted({'torch', 'timm', 'onnx'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_17_clips_of_timm_that_lack_their_quickgelu_have_the_right_name():
    better = {name: found for name in timm.list_pretrained() if (found := quickgelu_name(name)) is not None}
    assert len(better) == 17
    for name, found in better.items():
        theirs, ours = (timm.get_pretrained_cfg(one) for one in (name, found))
        assert (theirs.hf_hub_id, theirs.input_size) == (ours.hf_hub_id, ours.input_size)
    presets = {spec.arch for spec in CATALOG.values()}
    assert not presets & better.keys()
    assert set(better.values()) <= presets


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("vit_base_patch32_clip_224.openai", "timm:vit_base_patch32_clip_quickgelu_224.openai"),
        ("vit_base_patch32_clip_224.laion2b", None),
        ("vit_base_patch32_clip_quickgelu_224.openai", None),
    ],
)
def test_clips_that_were_trained_with_quickgelu_are_told_where_timm_runs_them_without(name, better, caplog):
    resolve(f"timm:{name}")
    assert (f"say {better}" in caplog.text) == (better is not None)
    assert better is not None or not caplog.text
