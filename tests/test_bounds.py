"""Every number of every command has bounds: what is outside ends with exit code 2 and one line, and nothing is done."""

import dataclasses
import math

import click
import pytest
from click.testing import CliRunner

import cli
from unic_cache import config
from unic_cache.config import DistillConfig, EvaluateConfig, ExtractConfig, ShardConfig, Views
from unic_cache.config.bounds import RANGES
from unic_cache.errors import ConfigError

STAGES = [found for found in vars(config).values() if dataclasses.is_dataclass(found)]
NUMBERS = (click.types.IntParamType, click.types.FloatParamType)
OPTIONS = [
    (name, option)
    for name, command in cli.main.commands.items()
    for option in command.params
    if isinstance(option, click.Option) and isinstance(option.type, NUMBERS)
]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", str(-(10**30)), str(10**30)])
@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=lambda part: getattr(part, "name", part))
def test_what_is_outside_is_refused_in_one_line(tmp_path, monkeypatch, command, option, value):
    monkeypatch.chdir(tmp_path)
    arguments = [p.name for p in cli.main.commands[command].params if isinstance(p, click.Argument)]
    needed = {"evaluate": ["--encoder", "x", "--shards", "x"], "extract": ["--teacher", "dino"]}.get(command, [])
    pair = {"worker_index": ["--num-workers", "4"], "num_workers": ["--worker-index", "0"]}.get(option.name, [])
    done = CliRunner().invoke(cli.main, [command, *arguments, *needed, *pair, f"{option.opts[0]}={value}"])
    assert done.exit_code == 2, (done.output, done.exception)
    assert option.opts[0].removeprefix("--") in done.output.splitlines()[-1]
    assert "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


def test_the_walk_finds_the_options():
    assert {("shard", "seed"), ("distill", "lr"), ("repair", "threads")} <= {(c, option.name) for c, option in OPTIONS}
    assert len(OPTIONS) > 40


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_every_number_of_every_stage_has_a_row(stage):
    for field in dataclasses.fields(stage):
        if any(kind in str(field.type) for kind in ("int", "float")):
            assert field.name in RANGES, field.name


@pytest.mark.parametrize("name", sorted(RANGES))
def test_a_row_takes_its_ends_and_nothing_beyond(name):
    found = RANGES[name]
    for end, left_out in ((found.least, found.above), (found.most, found.below)):
        if not left_out:
            found.check(name, end)
        beyond = end if left_out else end + (1 if end == found.most else -1) * max(1, abs(end) * 1e-3)
        with pytest.raises(ConfigError, match=f"^{name} .* is out of bounds; choose "):
            found.check(name, beyond)
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ConfigError, match="out of bounds"):
            found.check(name, value)


@pytest.mark.parametrize("size", [1, 7])
def test_fields_without_a_flag_are_checked_too(size):
    with pytest.raises(ConfigError, match="size"):
        Views("unic", size)
    with pytest.raises(ConfigError, match="neighbours"):
        EvaluateConfig(("x",), shards="x", neighbours=(10, 0))
    with pytest.raises(ConfigError, match="temperature nan"):
        EvaluateConfig(("x",), shards="x", temperature=math.nan)


def test_the_rate_never_rises_to_its_end():
    with pytest.raises(ConfigError, match=r"min-lr 0\.01 is above the peak learning rate 0\.001"):
        DistillConfig(lr=1e-3, min_lr=1e-2)
    with pytest.raises(ConfigError, match="min-lr"):
        DistillConfig(batch_size=1, min_lr=1e-4)
    assert DistillConfig(lr=1e-3, min_lr=1e-3).min_lr == 1e-3


def test_messages_name_the_end_that_was_missed():
    with pytest.raises(ConfigError, match=r"per-shard 0 is out of bounds; choose 1 or more$"):
        ShardConfig("x", "y", per_shard=0)
    with pytest.raises(ConfigError, match=r"threads 100000 is out of bounds; choose 0 to 1,024$"):
        ExtractConfig(("dino",), threads=100_000)
    with pytest.raises(ConfigError, match=r"batch-size 1000000000000 is out of bounds; choose at most 65,536$"):
        ExtractConfig(("dino",), batch_size=10**12)
    with pytest.raises(ConfigError, match=r"epochs nan is out of bounds; choose more than 0 to 1,000,000$"):
        DistillConfig(epochs=math.nan)
    with pytest.raises(ConfigError, match=r"seed 9223372036854775808 is out of bounds; choose at most 2\*\*63 - 1$"):
        ShardConfig("x", "y", seed=2**63)
