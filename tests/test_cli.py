"""The command line: every command is documented, errors are one line, exit codes mean what they say."""

import dataclasses
import json
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner
from PIL import Image

import cli
from pipelines.command.flags import worker_from_environment
from tests.conftest import CNN, VIT, picture, tree
from unic_cache import config

COMMANDS = sorted(cli.main.commands)


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(cli.main, [str(argument) for argument in arguments], catch_exceptions=False)


def test_the_commands_are_the_ones_that_scripts_rely_on():
    assert {"shard", "extract", "distill", "evaluate", "inspect", "teachers"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(run, command):
    done = run(command, "--help")
    assert done.exit_code == 0
    assert "Examples:" in done.output
    assert f"  unic-cache {command}" in done.output
    for parameter in cli.main.commands[command].params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            assert any(name in done.output for name in parameter.opts)


CONFIGS = {found.stage: found for found in vars(config).values() if hasattr(found, "stage")}
UNFLAGGED = {
    "evaluate": {"neighbours", "temperature", "bootstrap"},
    "plan": {"strict", "calibration_images", "ray", "worker_index", "num_workers"},
}
OTHERS = {
    "plan": {"as_json", "yes"},
    **{command: {"as_json"} for command in ("evaluate", "inspect", "status", "verify")},
}


def test_every_command_that_works_has_a_config():
    assert sorted([*CONFIGS, "teachers"]) == COMMANDS


@pytest.mark.parametrize("command", CONFIGS)
def test_flags_are_the_fields_of_the_config_and_have_its_defaults(command):
    flags = {parameter.name: parameter for parameter in cli.main.commands[command].params}
    fields = {field.name: field for field in dataclasses.fields(CONFIGS[command])}
    assert set(flags) == (set(fields) - UNFLAGGED.get(command, set())) | OTHERS.get(command, set())
    for name in flags.keys() & fields.keys():
        flag, default = flags[name], fields[name].default
        assert flag.required == (default is dataclasses.MISSING and name != "teachers"), name
        if isinstance(flag, click.Option) and not flag.multiple and not flag.required:
            unset = flag.get_default(click.Context(cli.main.commands[command]))
            assert (unset, type(unset)) == (default, type(default)), name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_has_help(command):
    for flag in cli.main.commands[command].params:
        if isinstance(flag, click.Option) and flag.name != "help":
            assert flag.help, flag.name


def test_help_is_quick_since_it_imports_no_torch():
    code = "import sys, cli; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_teachers_lists_names_rules_licences_and_sources(run):
    text = run("teachers").output
    for name in ("dino", "deit3", "ibot", "dbot-ft", "efficientnet-lite0", "vit-s-saliency", "hed-edges", "timm:NAME"):
        assert name in text
    data = json.loads(run("teachers", "--json").stdout)
    assert {spec["name"] for spec in data} >= {"dino", "ibot"}
    assert all(spec["licence"] for spec in data)


def test_the_whole_way_from_a_folder_of_images_to_a_table(run, tmp_path, weights):
    for number in range(36):
        folder = tmp_path / "images" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        picture(number * 3 + number % 3).save(folder / f"{number}.png")
    named = [f"--weights={name}={path}" for name, path in weights.items()]
    common = ["--shards", tmp_path / "shards/*.tar", "--cache", tmp_path / "cache"]
    teachers = [
        "--teacher",
        VIT,
        "--teacher",
        CNN,
        *named,
        "--size",
        32,
        "--calibration-images",
        40,
        "--batch-size",
        16,
    ]
    done = run("shard", tmp_path / "images", tmp_path / "shards", "--per-shard", 16)
    assert (done.exit_code, done.stdout) == (0, f"Wrote 36 images to 3 shards in {tmp_path / 'shards'}, skipped 0\n")
    done = run("extract", *teachers, *common, "--views", 2)
    assert done.exit_code == 0
    assert "72 views of 6 units extracted" in done.output
    assert run("extract", *teachers, *common, "--views", 1, "--recipe", "center").exit_code == 0
    out = tmp_path / "run"
    distill = ["--student", "test_vit", "--img-size", 32, "--patch-size", 16, "--out", out, "--tracker", "none"]
    done = run("distill", *common, *distill, "--steps", 3, "--batch-size", 8)
    assert done.exit_code == 0
    assert f"timm.create_model('local-dir:{out}', pretrained=True)" in done.output
    done = run("evaluate", "--encoder", out, *common)
    assert done.exit_code == 0
    for name in (VIT, CNN, "random student", "student", "over random (95%)"):
        assert name in done.output
    result = json.loads(run("evaluate", "--encoder", out, *common, "--json").stdout)
    assert [encoder["kind"] for encoder in result["encoders"]] == ["teacher", "teacher", "random student", "student"]
    assert result["images"] == 36
    inspected = json.loads(run("inspect", tmp_path / "cache", "--json").stdout)
    assert set(inspected["teachers"]) == {VIT, CNN}
    view = inspected["teachers"][VIT]["views"]["unic-32-0-001"]
    assert (view["done"], view["missing"], view["images"]) == (3, [], 36)
    assert VIT in run("inspect", tmp_path / "cache").output


class TestErrors:
    def test_of_the_input_are_one_line_and_exit_1(self, run, tmp_path):
        done = run("extract", "--teacher", VIT, "--shards", tmp_path / "*.tar")
        assert done.exit_code == 1
        assert done.output.startswith("Error: no shard")
        assert "Traceback" not in done.output

    def test_of_settings_exit_2(self, run):
        done = run("distill", "--warmup", "3")
        assert done.exit_code == 2
        assert "warmup 3.0 is out of bounds" in done.output

    def test_of_a_missing_teacher_say_how_to_name_one(self, run):
        done = run("extract")
        assert done.exit_code == 2
        assert "name at least one with --teacher" in done.output

    def test_of_the_disk_say_that_nothing_is_lost(self, run, tmp_path, shards, weights):
        (tmp_path / "cache").write_text("a file where a folder should be")
        named = ["--teacher", VIT, "--weights", weights[VIT]]
        done = run("extract", *named, "--shards", shards.pattern, "--cache", tmp_path / "cache")
        assert done.exit_code == 1
        assert "run the same command again" in done.output

    def test_a_signal_exits_with_its_number_and_leaves_a_cache_that_goes_on(self, tmp_path, shards, weights):
        command = [sys.executable, "-m", "cli", "extract", "--teacher", VIT, "--weights", str(weights[VIT])]
        command += ["--shards", shards.pattern, "--cache", str(tmp_path / "cache"), "--size", "32", "--views", "500"]
        command += ["--calibration-images", "40", "--batch-size", "16"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("cache/*/commits/*/*/*.json")) and time.monotonic() < deadline:
            process.poll()
            time.sleep(0.05)
        process.terminate()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 143, errors
        assert "stopped; run the same command again to go on" in errors
        assert not [name for name in tree(tmp_path / "cache") if ".tmp-" in name]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "8"}, (4, 8)),
        ({"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_STEP": "2", "SLURM_ARRAY_TASK_COUNT": "3"}, (2, 3)),
    ],
)
def test_workers_are_told_by_slurm_or_torchrun(monkeypatch, environment, expected):
    for name in (
        "RANK",
        "WORLD_SIZE",
        "SLURM_ARRAY_TASK_ID",
        "SLURM_ARRAY_TASK_MIN",
        "SLURM_ARRAY_TASK_COUNT",
        "SLURM_ARRAY_TASK_STEP",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert worker_from_environment() == expected


@pytest.mark.parametrize("environment", [{"RANK": "x"}, {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "3"}])
def test_workers_that_cannot_be_told_are_a_clear_error(run, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = run("extract", "--teacher", "dino")
    assert done.exit_code == 2
    assert "give --worker-index" in done.output


def test_a_pattern_said_twice_is_refused(run):
    done = run("extract", "--teacher", "dino", "--shards", "a.tar", "--shards", "b.tar")
    assert done.exit_code == 2
    assert "give it once; braces join patterns" in done.output


def test_a_corrupt_image_is_told_and_skipped(run, tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images/good.png")
    (tmp_path / "images/bad.jpg").write_bytes(b"\xff\xd8\xff broken")
    done = run("shard", tmp_path / "images", tmp_path / "out")
    assert done.exit_code == 0
    assert "Wrote 1 image to 1 shard in" in done.output
    assert "skipped 1" in done.output
