"""Shares of the work: taken from the environment only where it is clear, and always said."""

import pytest
from click.testing import CliRunner

import cli
from pipelines import extract
from pipelines.command.environment import RESULTS, say_surroundings
from pipelines.command.shares import SIZES, environment_share, share_lines, unshared_lines
from tests.conftest import VIT
from unic_cache.errors import ConfigError

VARIABLES = ["RANK", "WORLD_SIZE", *(f"SLURM_ARRAY_TASK_{part}" for part in ("ID", "MIN", "COUNT", "STEP"))]


@pytest.fixture
def environment(monkeypatch):
    """An environment with these variables and no others of their kind."""

    def make(**variables: str) -> None:
        for name in [*VARIABLES, *(name for pair in SIZES.values() for name in pair)]:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    make()
    return make


def array(task: int, count: int) -> dict[str, str]:
    return {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": str(count)}


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        (array(2, 4), "worker 3 of 4 (SLURM array): 6 of 24 units are this worker's"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "worker 1 of 2 (RANK and WORLD_SIZE): 6 of 24 units are this worker's"),
        (array(0, 1) | {"RANK": "1", "WORLD_SIZE": "2"}, "worker 2 of 2 (RANK and WORLD_SIZE)"),
    ],
)
def test_a_share_of_the_environment_is_said_with_its_origin(environment, variables, line):
    environment(**variables)
    share = environment_share()
    assert share_lines(share.index, share.count, 6, 24)[0].startswith(line)


def test_a_share_of_flags_is_said_too_and_all_of_it_needs_no_word(environment):
    environment(**array(2, 4))
    assert share_lines(1, 8, 3, 24) == ["worker 2 of 8 (--worker-index 1): 3 of 24 units are this worker's"]
    environment()
    assert share_lines(0, 1, 24, 24) == []


@pytest.mark.parametrize(("size", "rank"), SIZES.values())
def test_processes_that_all_do_everything_are_told(environment, size, rank):
    environment(**{size: "4", rank: "1"})
    assert "4 processes, and this one does all 24 units" in share_lines(0, 1, 24, 24)[0]
    assert f"--worker-index ${rank}" in share_lines(0, 1, 24, 24)[0]


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK is 4 .* WORLD_SIZE is 4"),
        ({"RANK": "1"}, "RANK is 1 .* WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is 4 .* RANK is not set"),
        ({"RANK": "-1", "WORLD_SIZE": "4"}, "RANK is '-1'"),
        (array(2, 4) | {"RANK": "0", "WORLD_SIZE": "2"}, "worker 3 of 4 .* and also 1 of 2"),
        (array(7, 4), "not evenly spaced"),
    ],
)
def test_a_share_that_is_unclear_is_refused(environment, variables, reason):
    environment(**variables)
    with pytest.raises(ConfigError, match=f"{reason}.*give --worker-index and --num-workers"):
        environment_share()
    done = CliRunner().invoke(cli.main, ["extract", "--teacher", "dino"])
    assert done.exit_code == 2
    assert "Error: " in done.output.splitlines()[-1]


@pytest.mark.parametrize("command", [["extract", "--teacher", "dino"], ["recode", "a", "b"]])
@pytest.mark.parametrize("flag", ["--worker-index=0", "--num-workers=4"])
def test_one_flag_without_the_other_is_refused(environment, command, flag):
    environment(**array(2, 4))
    done = CliRunner().invoke(cli.main, [*command, flag])
    assert done.exit_code == 2
    assert "give both, or neither" in done.output


@pytest.mark.parametrize("command", sorted(cli.main.commands))
def test_a_command_that_shares_nothing_says_so(environment, command):
    environment()
    assert unshared_lines(command) == []
    environment(RANK="1", WORLD_SIZE="2")
    lines = [f"process 2 of 2: `{command}` does not split its work, so each does all of it"]
    assert unshared_lines(command) == ([] if command in {"extract", "recode", "distill"} else lines)


def test_flags_go_before_an_unclear_environment(environment):
    environment(RANK="x")
    done = CliRunner().invoke(cli.main, ["extract", "--teacher", "dinoo", "--worker-index=0", "--num-workers=4"])
    assert "no teacher is called 'dinoo'" in done.output


def test_extraction_says_its_share(environment, tmp_path, shards, weights):
    environment(**array(1, 2))
    flags = ["--size", 32, "--views", 1, "--batch-size", 16, "--calibration-images", 20, "--codec", "f16"]
    words = [
        "extract",
        "--teacher",
        VIT,
        "--weights",
        weights[VIT],
        "--shards",
        shards.pattern,
        "--cache",
        tmp_path,
        *flags,
    ]
    done = CliRunner().invoke(cli.main, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0
    assert "worker 2 of 2 (SLURM array): 1 of 3 units are this worker's" in done.stderr
    assert f"extract: {VIT} on " in done.stderr
    assert "82 images x 1 views of 32 px (unic), batch 16" in done.stderr


def test_variables_that_change_results_are_said(monkeypatch, capsys):
    for name in RESULTS:
        monkeypatch.delenv(name, raising=False)
    say_surroundings()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    monkeypatch.setenv("TIMM_FUSED_ATTN", "0")
    say_surroundings()
    line = "set in the environment, and affecting the results: ONEDNN_DEFAULT_FPMATH_MODE=BF16, TIMM_FUSED_ATTN=0"
    assert capsys.readouterr().err.splitlines() == [line]


def test_recoding_says_its_share(environment, tmp_path, cache_folder):
    words = ["recode", cache_folder, tmp_path / "b", "--codec", "int8", "--worker-index", 3, "--num-workers", 4]
    done = CliRunner().invoke(cli.main, [str(word) for word in words], catch_exceptions=False)
    assert "worker 4 of 4 (--worker-index 3): 0 of 18 units are this worker's" in done.stderr


def test_a_share_is_what_extract_takes(settings, tmp_path):
    done = extract.run(settings(tmp_path / "cache", views=2, worker_index=0, num_workers=4))
    assert done.units == 2
