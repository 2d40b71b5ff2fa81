"""The package from Python: what it shows, docs/PYTHON.md's lines, and the commands as functions."""

import dataclasses
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import unic_cache
from pipelines import distill
from tests.conftest import VIT
from unic_cache.config import DistillConfig, EvaluateConfig, ExtractConfig
from unic_cache.errors import ConfigError

ROOT = Path(__file__).parent.parent
STAGES = [("extract", ExtractConfig), ("distill", DistillConfig), ("evaluate", EvaluateConfig)]


def test_dir_shows_what_there_is_and_nothing_is_loaded_before_it_is_used():
    assert dir(unic_cache) == sorted(unic_cache.__all__)
    assert all(inspect.getdoc(getattr(unic_cache, name)) for name in unic_cache.__all__)
    assert all(f"`{name}`" in unic_cache.__doc__ for name in unic_cache.__all__ if name != "CachedTeacher")
    with pytest.raises(AttributeError, match="no attribute 'Dataset'; it has Cache, "):
        unic_cache.Dataset  # noqa: B018
    code = (
        "import sys, unic_cache; dir(unic_cache); help(unic_cache.distill); assert 'torch' not in sys.modules;"
        "from unic_cache.evaluate import curves; assert unic_cache.evaluate is not sys.modules['unic_cache.evaluate']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


def test_the_dataset_explains_every_argument_and_no_other():
    arguments = [name for name in inspect.signature(unic_cache.FeatureDataset).parameters if name != "_"]
    told = re.findall(r"^- ((?:`\w+`(?:, )?)+)", inspect.getdoc(unic_cache.FeatureDataset), re.MULTILINE)
    assert sorted(name for line in told for name in re.findall(r"\w+", line)) == sorted(arguments)


def test_the_lines_of_the_docs_run(cache_folder, shards, weights, tmp_path, monkeypatch):
    shutil.copytree(cache_folder, tmp_path / "cache")
    (tmp_path / "shards").symlink_to(shards.folder)
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs/PYTHON.md").read_text(), re.DOTALL))
    ours = {
        '"dino"': repr(VIT),
        '"dino.pth"': repr(str(weights[VIT])),
        '"n01440764_10026", view=3': '"image00040", view=1',
        "(0, 3, ": "(0, 1, ",
        "unic-224-0-000": "unic-32-0-000",
        "batch_size=256": "batch_size=16",
        "views=4": "views=2",
        'student="vit_small_patch16_224"': 'student="test_vit", img_size=32, patch_size=16, batch_size=16',
        'out="runs/small"': 'out="runs/small", tracker="none"',
        "epochs=100": "epochs=0.2",
        'shards="labelled/*.tar"': 'shards="shards/*.tar", task="knn", k=5',
    }
    for shown, changed in ours.items():
        assert shown in code
        code = code.replace(shown, changed)
    scope = {}
    exec(code, scope)
    assert {name: tuple(scope[name].shape[1:]) for name in ("image", "cls", "patch")} == {
        "image": (32, 32, 3),
        "cls": (64,),
        "patch": (4, 64),
    }
    assert len(next(iter(scope["loader"]))["key"]) == 16
    assert {kind: tuple(x.shape) for kind, x in scope["one"].items()} == {"cls": (64,), "patch": (4, 64)}
    assert {kind: tuple(x.shape) for kind, x in scope["rows"].items()} == {"cls": (3, 64), "patch": (3, 4, 64)}
    assert (scope["summary"].units, scope["summary"].skipped, scope["trained"].steps) == (0, 6, 1)
    assert "student" in [one["name"] for one in scope["result"].to_json()["encoders"]]


class TestFunctions:
    def test_do_what_the_stage_does(self, training, tmp_path):
        config = training(steps=2)
        given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        distill.run(config)
        done = unic_cache.distill(**{**given, "out": tmp_path / "other", "teachers": [], "lr": 1e-3})
        one, other = (load_file(path) for path in (tmp_path / "run/encoder.safetensors", done.encoder))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)

    @pytest.mark.parametrize(("name", "config"), STAGES)
    def test_have_the_settings_of_the_config_and_explain_them(self, name, config):
        function = getattr(unic_cache, name)
        shown = inspect.signature(function).parameters
        fields = {field.name: field for field in dataclasses.fields(config)}
        assert list(shown) == list(fields)
        for parameter in shown.values():
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
            field = fields[parameter.name]
            assert (parameter.default, parameter.annotation) == (
                inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
                field.type,
            )
            if field.metadata.get("about"):
                assert f"- `{field.name}`: " in inspect.getdoc(function)

    @pytest.mark.parametrize(
        ("name", "given", "message"),
        [
            ("extract", {}, "extract needs teachers"),
            ("extract", {"teacher": "dino"}, "extract has no setting 'teacher'; did you mean teachers"),
            ("extract", {"teachers": "dino", "views": "4"}, r"views '4' is not of type int \| None"),
            ("extract", {"teachers": [1]}, r"teachers \[1\] is not of type tuple"),
            ("extract", {"teachers": "x", "weights": "x.pth"}, "weights 'x.pth' .*give a dictionary {NAME: TEXT}"),
            ("extract", {"teachers": "dino", "views": 0}, "views 0 is out of bounds"),
            ("distill", {"steps": True}, "steps True is not of type int"),
            ("distill", {"cache": None}, "cache None is not of type str"),
            ("distill", {"ladder_widths": [768]}, r"ladder_widths \[768\] is not of type"),
            ("distill", {"projector": "cube"}, "projector 'cube' is unknown; choose from ladder"),
            ("distill", {"frobnicate": 1}, r"no setting 'frobnicate'; help\(unic_cache.distill\) lists all"),
            ("evaluate", {}, "give --shards PATTERN"),
        ],
    )
    def test_refuse_what_they_cannot_mean(self, name, given, message):
        with pytest.raises(ConfigError, match=message):
            getattr(unic_cache, name)(**given)

    def test_take_settings_by_name_alone(self):
        with pytest.raises(ConfigError, match=r"distill: give settings by name, as in cache=\.\.\."):
            unic_cache.distill("cache")
