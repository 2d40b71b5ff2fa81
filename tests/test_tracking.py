"""Trackers get the log's numbers under names that they take, and none of them can stop a run."""

import re
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
from accelerate import tracking
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipelines import distill
from pipelines.command import preflight
from pipelines.training.tracking import tracked_settings, tracked_values, tracker_names
from tests.conftest import VIT, log_of
from unic_cache.config import TRACKERS, DistillConfig
from unic_cache.errors import ConfigError


class Vendor(ModuleType):
    """A vendor's package: what it was called with, and the calls that fail."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.calls: list[tuple[str, object, object]] = []
        self.fails: dict[str, Exception] = {}

    def call(self, called: str, /, *arguments: object, **options: object) -> "Vendor":
        self.calls.append((called, arguments, options))
        if called in self.fails:
            raise self.fails[called]
        return self

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return self if name == "config" else lambda *a, **o: self.call(name, *a, **o)

    def of(self, name: str) -> list[tuple[object, object]]:
        return [(arguments, options) for called, arguments, options in self.calls if called == name]


@pytest.fixture
def vendor(monkeypatch):
    """A function that pretends that a tracker's package is installed."""

    def install(name: str) -> Vendor:
        module = Vendor(name)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(tracking, "_available_trackers", [LoggerType(name)])
        return module

    return install


def test_tensorboard_has_the_numbers_of_the_log(training, tmp_path, shards):
    distill.run(training(tracker="tensorboard", steps=4, eval_every=2, knn_shards=shards.pattern))
    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    for kind, tag in (("knn", "accuracy"), ("train", "loss")):
        logged = [(record["step"], record[tag]) for record in log_of(tmp_path / "run") if record["kind"] == kind]
        shown = [(scalar.step, scalar.value) for scalar in events.Scalars(f"{kind}/{tag}")]
        assert shown == [(step, pytest.approx(value, rel=1e-6)) for step, value in logged]
    (teacher,) = (tag for tag in events.Tags()["scalars"] if tag.endswith("test_vit_32/cls"))
    assert teacher == "train/teachers/timm_test_vit_32/cls"


def test_wandb_gets_project_run_settings_and_numbers(training, tmp_path, vendor):
    wandb = vendor("wandb")
    distill.run(training(tracker="wandb", project="my study", steps=4, teachers=(VIT,)))
    out = str(tmp_path / "run")
    assert wandb.of("init") == [((), {"project": "my study", "name": "run", "dir": out})]
    (((settings,), _),) = wandb.of("update")
    assert settings["teachers"] == f'["{VIT}"]'
    assert "val_shards" not in settings
    assert all(isinstance(value, int | float | str | bool) for value in settings.values())
    losses = [(options["step"], values["train/loss"]) for (values,), options in wandb.of("log")]
    assert losses == [(record["step"], record["loss"]) for record in log_of(tmp_path / "run")]
    assert len(wandb.of("finish")) == 1


def test_names_are_such_that_mlflow_takes_them():
    found = tracked_values("train", {"loss": 1.0, "teachers": {"timm:vit@224": {"cls-1": 0.5}, "a b": {"é": 2}}})
    assert found == {
        "train/loss": 1.0,
        "train/teachers/timm_vit_224/cls-1": 0.5,
        "train/teachers/a_b/_": 2,
    }
    assert all(re.fullmatch(r"[\w/.: -]*", name, re.ASCII) for name in found)


@pytest.mark.parametrize("call", ["log", "finish"])
@pytest.mark.parametrize("error", [ValueError("bad step"), ConnectionError("no route"), RuntimeError("quota")])
def test_a_tracker_that_fails_later_costs_one_line_and_no_step(training, tmp_path, vendor, capsys, call, error):
    vendor("wandb").fails[call] = error
    assert distill.run(training(tracker="wandb", steps=4)).steps == 4
    assert [record["step"] for record in log_of(tmp_path / "run")] == [2, 4]
    said = [line for line in capsys.readouterr().err.splitlines() if "tracker cannot" in line]
    assert len(said) == 1
    assert re.match(rf"the tracker cannot write \(.*{error}\); training goes on without it, and .*log.jsonl", said[0])


@pytest.mark.parametrize(
    "error", [KeyError("api_key not set"), ConnectionRefusedError(111, "refused"), OSError("proxy")]
)
def test_a_tracker_that_cannot_start_stops_the_run_before_it_begins(training, tmp_path, vendor, error):
    vendor("wandb").fails["init"] = error
    with pytest.raises(ConfigError, match=r"the tracker wandb cannot start: .*(api_key|refused|proxy).*\. Set it up"):
        distill.run(training(tracker="wandb"))
    assert not (tmp_path / "run/config.json").exists()


def test_a_full_disk_at_the_trackers_start_is_told_as_such(training, vendor):
    vendor("wandb").fails["init"] = OSError(28, "No space left on device", "run/wandb")
    with pytest.raises(OSError, match="No space left"):
        distill.run(training(tracker="wandb"))


@pytest.mark.parametrize("name", [name for name in TRACKERS if name not in {"tensorboard", "none"}])
def test_a_tracker_that_is_not_installed_is_told_first(training, tmp_path, name, monkeypatch):
    monkeypatch.setattr(tracking, "_available_trackers", [])
    monkeypatch.setattr(preflight, "find_spec", lambda module: None)
    said = rf"--tracker {name}: its package is missing .*`pip install {name}`, or choose another tracker or none"
    for look in (preflight.look, distill.run):
        with pytest.raises(ConfigError, match=said):
            look(training(tracker=name))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [name for name in TRACKERS if name != "none"])
def test_every_tracker_takes_its_names_and_options(tmp_path, name):
    project, options = tracker_names(name, "study", tmp_path / "student")
    made = tracking.LOGGER_TYPE_TO_CLASS[name]
    folder = [str(tmp_path)] if made.requires_logging_directory else []
    tracker = made(project, *folder, **options)
    named = {value for value in (project, *options.values()) if isinstance(value, str)}
    assert tracker.name == name
    assert "study" in named or name in {"tensorboard", "dvclive"}
    assert "student" in named or name in {"tensorboard", "dvclive", "comet_ml"}


def test_settings_that_are_lists_become_text():
    found = tracked_settings(DistillConfig(teachers=("a", "b"), ladder_widths=(8, 16)))
    assert (found["teachers"], found["ladder_widths"]) == ('["a", "b"]', "[8, 16]")


@pytest.mark.parametrize("project", ["", "a/b", "it's", " a", "a" * 101])
def test_a_project_that_some_tracker_refuses_is_refused(project):
    with pytest.raises(ConfigError, match="is no name that every tracker takes"):
        DistillConfig(project=project)
