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

import unic_cache
from pipelines import distill, export
from tests.conftest import VIT
from unic_cache.config import DistillConfig, EvaluateConfig, ExportConfig, ExtractConfig
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
        "from unic_cache.evaluate import run_log; assert unic_cache.evaluate is not sys.modules['unic_cache.evaluate']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


def test_the_dataset_explains_every_argument_and_no_other():
    arguments = [name for name in inspect.signature(unic_cache.FeatureDataset).parameters if name != "_"]
    told = re.findall(r"^- ((?:`\w+`(?:, )?)+)", inspect.getdoc(unic_cache.FeatureDataset), re.MULTILINE)
    assert sorted(name for line in told for name in re.findall(r"\w+", line)) == sorted(arguments)


def run_docs(blocks: slice, changes: dict[str, str]) -> dict:
    """The names that some of docs/PYTHON.md's code blocks define, with parts of the code changed."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs/PYTHON.md").read_text(), re.DOTALL)[blocks])
    for shown, changed in changes.items():
        assert shown in code
        code = code.replace(shown, changed)
    scope = {"unic_cache": unic_cache, "torch": torch}
    exec(code, scope)
    return scope


@pytest.fixture
def place(cache_folder, shards, tmp_path, monkeypatch) -> Path:
    """A working folder with `cache` and `shards`."""
    shutil.copytree(cache_folder, tmp_path / "cache")
    (tmp_path / "shards").symlink_to(shards.folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_lines_of_the_docs_give_batches_samples_and_rows(place):
    changes = {
        '"dino"': repr(VIT),
        '"n01440764_10026", view=3': '"image00040", view=1',
        "(0, 3, ": "(0, 1, ",
        "unic-224-0-000": "unic-32-0-000",
        "batch_size=256": "batch_size=16",
    }
    scope = run_docs(slice(3), changes)
    assert {name: tuple(scope[name].shape[1:]) for name in ("image", "cls", "patch")} == {
        "image": (32, 32, 3),
        "cls": (64,),
        "patch": (4, 64),
    }
    assert len(next(iter(scope["loader"]))["key"]) == 16
    assert {kind: tuple(x.shape) for kind, x in scope["one"].items()} == {"cls": (64,), "patch": (4, 64)}
    assert {kind: tuple(x.shape) for kind, x in scope["rows"].items()} == {"cls": (3, 64), "patch": (3, 4, 64)}


@pytest.mark.slow
def test_the_lines_of_the_docs_run_the_stages(place, weights):
    changes = {
        '"dino"': repr(VIT),
        '"dino.pth"': repr(str(weights[VIT])),
        "views=5": "views=2",
        'student="vit_small_patch16_224"': 'student="test_vit", img_size=32, patch_size=16, batch_size=16',
        'out="runs/small"': 'out="runs/small", tracker="none"',
        "epochs=100": "epochs=0.2",
        'shards="labelled/*.tar"': 'shards="shards/*.tar", task="knn", k=5',
    }
    scope = run_docs(slice(4, None), changes)
    assert (scope["summary"].units, scope["summary"].skipped, scope["trained"].steps) == (0, 6, 1)
    assert "student" in [one["name"] for one in scope["result"].to_json()["encoders"]]
    assert callable(unic_cache.evaluate)
    export.run(ExportConfig("runs/small", "heads", "heads"))
    guesses = run_docs(slice(3, 4), {"views": "torch.zeros(2, 48, 48, 3, dtype=torch.uint8)"})["guesses"]
    assert {kind: tuple(x.shape) for kind, x in guesses[VIT].items()} == {"cls": (2, 64), "patch": (2, 4, 64)}


class TestFunctions:
    def test_run_the_stage_with_the_config_that_the_settings_mean(self, monkeypatch):
        monkeypatch.setattr(distill, "run", lambda config: config)
        meant = DistillConfig(cache="a/b", teachers=("dino",), epochs=3.0, ladder_widths=(8, 9), lr=1e-3, tf32=False)
        given = {"teachers": "dino", "epochs": 3, "ladder_widths": [8, 9], "lr": 1e-3, "tf32": False}
        assert unic_cache.distill(cache=Path("a/b"), **given) == meant
        assert unic_cache.distill(cache="a/b", **{**given, "teachers": ["dino"]}) == meant
        pairs = unic_cache.distill(online=True, teachers=["dino"], weights={"dino": Path("x.pth")}).weights
        assert pairs == (("dino", "x.pth"),)
        assert unic_cache.distill() == DistillConfig()

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
