"""Teachers outside timm through the commands: docs/OWN_TEACHERS.md's example, caches, and what is refused there."""

import importlib
import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from click.testing import CliRunner
from rich.console import Console

import cli
from pipelines import distill, evaluate, extract, provenance, verify
from pipelines.command import preflight
from pipelines.command.printing import results
from pipelines.command.progress import Progress, say
from pipelines.extracting.opening_options import TeacherOptions
from pipelines.extracting.students import init_pixels, named_spec, started_encoder
from pipelines.extracting.teacher_weights import check_same_weights, chosen_spec
from tests.teachers.outside_models import save_timm, shaken
from unic_cache.cache import open_cache
from unic_cache.config import EvaluateConfig, InspectConfig, VerifyConfig
from unic_cache.errors import CacheError, ConfigError
from unic_cache.store.layout import teacher_folder
from unic_cache.teachers.outside import own_module
from unic_cache.teachers.outside.opening import outside_spec

NAME = "py:my_teachers:scanner"
SIZED = f"{NAME}@32"


def forget() -> None:
    """As in another process."""
    own_module._described.cache_clear()
    outside_spec.cache_clear()
    sys.modules.pop("my_teachers", None)
    importlib.invalidate_caches()


@pytest.fixture
def module(tmp_path, monkeypatch) -> Path:
    """The page's module with weights, in the working folder, on Python's path."""
    (code,) = re.findall(r"```python\n(.*?)```", Path("docs/OWN_TEACHERS.md").read_text(), re.DOTALL)
    path = tmp_path / "my_teachers.py"
    path.write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    forget()
    torch.manual_seed(0)
    scope = {"__name__": "my_teachers"}
    exec(code, scope)
    torch.save(shaken(scope["Scanner"](32)).state_dict(), tmp_path / "scanner.pth")
    yield path
    forget()


def config_of(settings, folder, *teachers, **changes):
    return settings(folder, teachers=teachers, weights=(), **{"views": 1, **changes})


def test_the_pages_example_runs(tmp_path, module, settings, training, shards):
    cache = tmp_path / "cache"
    extract.run(config_of(settings, cache, SIZED))
    spec = json.loads((cache / "py.my_teachers.scanner@32/spec.json").read_text())
    assert spec["teacher"]["version"] == "2"
    assert spec["provenance"]["licence"] == "internal use only"
    assert spec["teacher"]["arch"] == NAME
    forget()
    again = extract.run(config_of(settings, cache, SIZED))
    assert again.skipped == 3
    report = verify.run(VerifyConfig(str(cache), shards=shards.pattern, teacher_check=4, device="cpu", threads=2))
    assert not report.broken
    assert report.cosines[SIZED] > 0.9999
    trained = distill.run(training(cache=str(cache), steps=2, log_every=1))
    assert trained.steps == 2
    assert trained.licences == {SIZED: "internal use only"}
    inherited = provenance.run(InspectConfig(str(trained.encoder)))["teachers"][SIZED]
    assert inherited["version"] == provenance.run(InspectConfig(str(cache)))["teachers"][SIZED]["version"] == "2"


def test_another_version_or_other_weights_are_refused(tmp_path, module, settings, shards):
    cache = tmp_path / "cache"
    extract.run(config_of(settings, cache, SIZED))
    code = module.read_text()
    module.write_text(code.replace('"scanner-s", "2"', '"scanner-s", "3"'))
    forget()
    with pytest.raises(CacheError, match=r"was made with .*version.*2.*3"):
        extract.run(config_of(settings, cache, SIZED))
    with pytest.raises(CacheError, match=r"the cache was made with version 2, and the name now means 3"):
        verify.run(VerifyConfig(str(cache), teacher_check=4, device="cpu", threads=2))
    module.write_text(code.replace("size: int = 224", "size: int = 64"))
    forget()
    extract.run(config_of(settings, cache, NAME))
    module.write_text(code)
    forget()
    with pytest.raises(CacheError, match=r"scanner: the cache was made with input_size 64, and the name now means 224"):
        verify.run(VerifyConfig(str(cache), teacher_check=4, device="cpu", threads=2))
    state = torch.load("scanner.pth", weights_only=True)
    torch.save({name: tensor + 0.01 for name, tensor in state.items()}, "scanner.pth")
    forget()
    with pytest.raises(CacheError, match=r"was made with other weights: .*\(without a file\)"):
        extract.run(config_of(settings, cache, SIZED))


def test_the_other_commands_take_such_names(tmp_path, module, settings, training, shards):
    distill.run(training(cache=None, online=True, teachers=(SIZED,), size=32, steps=1, calibration_images=20))
    found = evaluate.run(
        EvaluateConfig(encoder=(SIZED,), shards=shards.pattern, task=("knn",), device="cpu", threads=2, bootstrap=100)
    )
    assert found.tasks


def test_a_name_is_printed_as_it_is(capsys):
    """`:robot:` and other words are codes of emoji to rich."""
    results().print("py:robot:factory")
    say("py:robot:factory")
    with Progress("run py:robot:factory", 2, "images") as progress:
        line = Console(width=100, file=io.StringIO(), force_terminal=True)
        line.print(progress._bar.get_renderable())
    assert line.file.getvalue().count("py:robot:factory") == 1
    assert capsys.readouterr() == ("py:robot:factory\n", "py:robot:factory\n")


def test_two_names_with_one_folder_are_refused(tmp_path, settings):
    first, second = (tmp_path / "a" / "b--c", tmp_path / "a--b" / "c")
    for folder in (first, second):
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
    names = [f"local-dir:{folder}" for folder in (first, second)]
    with pytest.raises(
        ConfigError, match=r"teachers local-dir:\S+ and local-dir:\S+ would share the folder local-dir\.--"
    ):
        preflight.look(config_of(settings, tmp_path / "cache", *names))
    there = SimpleNamespace(folder=teacher_folder(names[0]), features=(), spec={"teacher": {"name": names[0]}})
    with pytest.raises(
        CacheError, match=r"holds the features of local-dir:\S+b--c, and local-dir:\S+c would have the same"
    ):
        check_same_weights(SimpleNamespace(spec=SimpleNamespace(name=names[1])), there, "cache")


def test_a_student_starts_from_timms_layout_in_a_folder(tmp_path):
    model = shaken(timm.create_model("test_vit", num_classes=0, img_size=32))
    name = f"local-dir:{save_timm(tmp_path / 'm', model, 'test_vit', 32)}"
    spec = named_spec("test_vit", 32, 16)
    encoder = started_encoder(spec, 0, name, ())
    assert torch.equal(encoder.pos_embed, model.pos_embed)
    assert init_pixels(name) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    with pytest.raises(ConfigError, match=r"built by timm's name for its architecture; .* give them as --init"):
        named_spec(name)
    save_timm(tmp_path / "m", model, "test_vit", 32, model_args={"img_size": 32, "num_heads": 1})
    outside_spec.cache_clear()
    with pytest.raises(ConfigError, match=r"its config.json builds test_vit with {'num_heads': 1}, and a student"):
        started_encoder(spec, 0, name, ())


def test_position_rules_of_others_are_refused(module):
    with pytest.raises(
        ConfigError, match=r"--positions 'bicubic' is not a rule of py:my_teachers:scanner, which has only own"
    ):
        chosen_spec(TeacherOptions((NAME,), positions=(("", "bicubic"),)), NAME)


def test_the_command_line_takes_their_names(tmp_path, module, shards):
    words = ["extract", "--teacher", SIZED, "--shards", shards.pattern, "--cache", "cache", "--views", "1"]
    words += ["--size", "32", "--device", "cpu", "--codec", "f16", "--licence", f"{SIZED}=ours", "--threads", "2"]
    done = CliRunner().invoke(cli.main, words)
    assert done.exit_code == 0, done.output
    assert "weights of its own code (sha256 " in done.output
    assert "version 2, ours" in done.output
    assert open_cache("cache").teachers[SIZED].spec["provenance"]["licence"] == "ours"
