"""timm's layout on the hub and in folders, revisions, licences, and the names of teachers outside timm."""

import subprocess
import sys

import pytest
import timm
import torch
from huggingface_hub import constants

from tests.teachers.outside_models import normalised, on_hub, save_timm, shaken, views
from unic_cache.errors import TeacherError
from unic_cache.store.layout import teacher_folder
from unic_cache.teachers import hub
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.model import load_teacher
from unic_cache.teachers.outside.folders import ModelFolder, opened
from unic_cache.teachers.outside.names import check, imported
from unic_cache.teachers.outside.opening import outside_file, outside_spec

ARCH = "test_vit"


def forget() -> None:
    """As in another process."""
    outside_spec.cache_clear()
    opened.cache_clear()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub's cache; asking the network fails the test."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_reachable", lambda url: pytest.fail("asked the network"))
    forget()
    yield tmp_path
    forget()


def small(seed: int = 0, **options):
    torch.manual_seed(seed)
    return shaken(timm.create_model(ARCH, num_classes=0, img_size=64, **options))


def test_a_model_on_the_hub_gives_timms_tokens(cache):
    model = small()
    save_timm(on_hub(cache, "org/model", "1234"), model, ARCH, model_args={"img_size": 64})
    teacher = load_teacher(resolve("hf-hub:org/model"))
    spec = teacher.spec
    assert (spec.name, spec.arch, spec.licence) == ("hf-hub:org/model", ARCH, "ours-1.0")
    assert (spec.input_size, spec.mean, spec.version) == (64, (0.4, 0.5, 0.6), None)
    assert spec.published.endswith("/org/model, commit 1234")
    assert "version" not in spec.to_json()
    with torch.inference_mode():
        expected = model.forward_features(normalised(views(64)))
    torch.testing.assert_close(teacher(views(64)), {"cls": expected[:, 0], "patch": expected[:, 1:]})
    assert load_teacher(resolve("hf-hub:org/model@96+cls=none")).spec.kinds["patch"].grid == (6, 6)
    assert load_teacher(spec).spec == spec


def test_arguments_of_the_description_are_used(tmp_path):
    model = small(reg_tokens=2, depth=2)
    save_timm(tmp_path / "m", model, ARCH, model_args={"img_size": 64, "reg_tokens": 2, "depth": 2})
    teacher = load_teacher(resolve(f"local-dir:{tmp_path}/m"))
    with torch.inference_mode():
        expected = model.forward_features(normalised(views(64)))
    torch.testing.assert_close(teacher(views(64))["patch"], expected[:, 3:])


def test_a_revision_is_a_branch_or_a_commit(cache):
    folders = [
        save_timm(on_hub(cache, "org/model", f"c{number}", ref), small(number), ARCH)
        for number, ref in enumerate(("main", "refs/pr/1"))
    ]
    for name, folder in (("", folders[0]), ("#refs/pr/1", folders[1]), ("#c1", folders[1])):
        spec = resolve(f"hf-hub:org/model{name}")
        assert spec.published.endswith(f"commit {folder.name}")
        assert outside_file(spec) == folder / "model.safetensors"
    assert teacher_folder("hf-hub:org/model#refs/pr/1") == "hf-hub.org--model@@refs--pr--1"
    with pytest.raises(
        TeacherError, match=r"config.json of org/model is not in .*HF_HUB_OFFLINE is set.* as local-dir:PATH"
    ):
        resolve("hf-hub:org/model#v3")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "vit_unheard_of"}, r"timm \S+ has no architecture 'vit_unheard_of'"),
        ({"pretrained_cfg": {"mean": [0, 0, 0]}}, r"lacks 'input_size'"),
        (
            {"pretrained_cfg": {"input_size": [3, 64, 64], "mean": [127] * 3, "std": [58] * 3}},
            r"its config.json's mean \[127, 127, 127\] is not one of pixels in \[0, 1\]",
        ),
        ({"pretrained_cfg": "ours"}, r"config.json or the processor's file is not as it should be: TypeError"),
        ({"model_args": ["img_size"]}, r"config.json or the processor's file is not as it should be: ValueError"),
        ({"model_args": {"in_chans": 1}}, r"no square of three colours"),
    ],
)
def test_descriptions_that_are_wrong_are_refused(tmp_path, change, message):
    save_timm(tmp_path / "m", small(), ARCH, **{"architecture": ARCH, **change})
    with pytest.raises(TeacherError, match=message):
        resolve(f"local-dir:{tmp_path}/m")


def test_a_branch_that_moves_leaves_a_teacher_of_one_commit(cache):
    before = save_timm(on_hub(cache, "org/model", "1234"), small(0), ARCH)
    spec = resolve("hf-hub:org/model")
    after = save_timm(on_hub(cache, "org/model", "5678"), small(1), ARCH)
    assert outside_file(spec) == before / "model.safetensors"
    forget()
    spec = resolve("hf-hub:org/model")
    assert (spec.published[-4:], outside_file(spec).parent) == ("5678", after)


def test_what_is_cached_does_not_decide_between_two_layouts(cache, monkeypatch):
    """A repository may be in timm's or transformers' layout and in open_clip's; config.json counts."""
    folder = save_timm(on_hub(cache, "org/model", "1234"), small(), ARCH)
    config = (folder / "config.json").rename(cache / "config.json")
    (folder / "open_clip_config.json").write_text("{}")

    def fetch(repo, file, revision):
        assert (repo, file) == ("org/model", "config.json")
        return str(config.rename(folder / file))

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_reachable", lambda url: True)
    monkeypatch.setattr(hub.huggingface_hub, "hf_hub_download", fetch)
    assert resolve("hf-hub:org/model").arch == ARCH


def test_a_file_that_the_cache_knows_to_be_absent_is_not_asked_for(cache, monkeypatch):
    folder = on_hub(cache, "org/model", "1234")
    absent = folder.parent.parent / ".no_exist/1234"
    absent.mkdir(parents=True)
    (absent / "model.safetensors").touch()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert hub.repo_file("org/model", ["model.safetensors"]).startswith("none of the expected files is there")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("license: [mit, apache-2.0]", "mit, apache-2.0"),
        ("license: other\nlicense_name: ours", "ours"),
        ("- a list", "not stated by its card"),
    ],
)
def test_licences_of_every_form_are_read(tmp_path, card, licence):
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n")
    assert ModelFolder("name", "local-dir", str(tmp_path)).licence().startswith(licence)


def test_missing_weights_are_told(cache):
    folder = save_timm(on_hub(cache, "org/model", "1234"), small(), ARCH)
    (folder / "model.safetensors").unlink()
    with pytest.raises(TeacherError, match=r"model.safetensors of org/model is not in"):
        outside_file(resolve("hf-hub:org/model"))


def test_random_weights_are_told(tmp_path, caplog):
    save_timm(tmp_path / "m", timm.create_model(ARCH, num_classes=0, img_size=64), ARCH)
    load_teacher(resolve(f"local-dir:{tmp_path}/m"))
    assert "these look like random weights" in caplog.text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf-hub:model", r"must be hf-hub:ORG/NAME"),
        ("hf-hub:org/model:v2", r"must be hf-hub:ORG/NAME or hf-hub:ORG/NAME#REVISION"),
        ("hf-hub:../../etc/passwd", r"must be hf-hub:ORG/NAME"),
        ("local-dir:", r"must be local-dir:PATH"),
        ("local-dir:no folder", r"must be local-dir:PATH, of letters"),
        ("local-dir:nowhere", r"there is no folder nowhere"),
        ("local-dir:tests", r"neither config.json nor open_clip_config.json in tests"),
        ("py:module", r"must be py:package.module:factory"),
        ("py:no_such_package.module:factory", r"Python finds no module 'no_such_package'; .* PYTHONPATH"),
        ("hf-hub:org/model@big", r"after '@' comes the input size in px"),
    ],
)
def test_names_that_are_wrong_are_told(name, message):
    with pytest.raises(TeacherError, match=message):
        resolve(name)


def test_names_are_checked_without_libraries():
    code = """
import sys
from pipelines.command.preflight import check_folders, check_teachers
for name in ("hf-hub:org/model", "open_clip:ViT-B-32/openai", "py:json:loads", "hf-hub:org/model#v1@64+cls=none"):
    check_teachers([name], {})
check_folders(["hf-hub:org/model", "dino"])
from unic_cache.teachers.listing import lines, matching
list(lines(matching([])))
assert not {"torch", "timm", "transformers", "open_clip", "huggingface_hub"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_extra_is_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TeacherError, match=r"it needs open_clip, .*pip install 'unic-cache\[open-clip\]'"):
        check("open_clip:ViT-B-32/openai")


def test_an_extra_that_cannot_be_imported_is_told(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_torchvision")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TeacherError, match=r"half_installed cannot be imported: ModuleNotFoundError: No module named"):
        imported("half_installed", "open_clip:ViT-B-32/openai")
