"""What needs no torch is told before torch is imported."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

import cli
from pipelines.command import preflight
from tests.conftest import CNN, VIT
from unic_cache.config import DistillConfig, ExtractConfig
from unic_cache.errors import CacheError, TeacherError
from unic_cache.weights.timm_names import close_names

MISTAKES = {
    "no teacher is called 'dinoo'; did you mean dino": ["extract", "--teacher", "dinoo"],
    "timm has no model 'resnet5O'; close names: timm:resnet50": ["extract", "--teacher", "timm:resnet5O"],
    "no shard matches": ["extract", "--teacher", "dino", "--shards", "none/*.tar"],
    "no shard matches 'shards/*.tar'": ["extract", "--teacher", "dino"],
    "there is no such file": ["extract", "--teacher", "dino", "--shards", "a.tar", "--weights", "none.pth"],
    "pass --weights ibot=FILE": ["plan", "--teacher", "ibot", "--shards", "a.tar"],
    "no cache is here": ["distill", "--cache", "none"],
    "timm knows no model 'vit_tinny": ["distill", "--student", "vit_tinny_patch16_224", "--cache", "none"],
    "there is no run to resume here": ["distill", "--resume"],
    "there is no such file or folder": ["evaluate", "--encoder", "none", "--shards", "a.tar"],
    "no folder, .csv or .json at none": ["shard", "none", "out"],
    "s3://bucket": ["inspect", "s3:/bucket"],
    "threads -1": ["verify", "none", "--threads", "-1"],
    "No such command 'extrakt'": ["extrakt"],
}


def test_mistakes_are_told_without_torch(tmp_path):
    """One process tries them all: at its end torch, timm and zarr are still to be imported."""
    (tmp_path / "a.tar").write_bytes(b"")
    code = """
import json, sys
from click.testing import CliRunner
import cli
found = [CliRunner().invoke(cli.main, words) for words in json.loads(sys.argv[1])]
heavy = sorted({"torch", "timm", "zarr", "accelerate", "matplotlib", "sklearn"} & set(sys.modules))
print(json.dumps([[[done.exit_code, done.output] for done in found], heavy]))
"""
    command = [sys.executable, "-c", code, json.dumps(list(MISTAKES.values()))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    answers, heavy = json.loads(done.stdout)
    for said, (exit_code, output) in zip(MISTAKES, answers, strict=True):
        assert exit_code in {1, 2}, output
        assert said in output
        assert "Traceback" not in output
    assert heavy == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]


def test_names_that_timm_has_are_let_through():
    import timm

    names = [
        *timm.list_models()[::160],
        *timm.list_pretrained()[::320],
        "hf-hub:someone/model",
        "vit_base_patch16_224.no_tag",
    ]
    assert [name for name in names if close_names(name) is not None] == []


@pytest.mark.parametrize("name", ["resnet5O", "vit_base_patch16_225", "nothing_like_it_at_all", "Resnet50"])
def test_names_that_timm_has_not_are_told(name):
    close = close_names(name)
    assert close is not None
    assert ("resnet50" in close) == (name.lower().startswith("resnet5"))


def test_kept_views_stand_in_for_tars(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache/views").mkdir(parents=True)
    preflight.look(ExtractConfig(("dino",)))


def test_weights_of_one_teacher_need_no_name(tmp_path, shards):
    (tmp_path / "w.pth").write_bytes(b"")
    preflight.look(ExtractConfig(("ibot",), weights=(("", str(tmp_path / "w.pth")),), shards=shards.pattern))
    with pytest.raises(TeacherError, match="no such file"):
        preflight.look(ExtractConfig(("ibot",), weights=(("", str(tmp_path / "x")),), shards=shards.pattern))


def test_a_teacher_that_a_cache_has_not_is_told(cache_folder, shards):
    config = DistillConfig(str(cache_folder), shards.pattern, teachers=(VIT, "dino"), student="test_vit")
    with pytest.raises(CacheError, match=f"has no teacher 'dino'; it has {CNN}, {VIT}"):
        preflight.look(config)
    preflight.look(DistillConfig(str(cache_folder), shards.pattern, teachers=(VIT, CNN), student="test_vit"))


def test_every_command_that_works_looks_first(monkeypatch, tmp_path, cache_folder):
    looked = []
    monkeypatch.setattr(preflight, "look", lambda config: looked.append(type(config).__name__))
    for words in (["inspect", str(cache_folder)], ["repair", "--dry-run", str(cache_folder)]):
        assert CliRunner().invoke(cli.main, words).exit_code == 0
    for words in (["extract", "--teacher", VIT], ["recode", "none", "b"], ["verify", "none"], ["shard", "none", "b"]):
        monkeypatch.chdir(tmp_path)
        assert CliRunner().invoke(cli.main, words).exit_code in {1, 2}
    assert looked == [f"{name}Config" for name in ("Inspect", "Repair", "Extract", "Recode", "Verify", "Shard")]
