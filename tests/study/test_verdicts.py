"""What an interval says, what a results file may hold, and what is skipped."""

import dataclasses

import pytest

from benchmarks.study.results import Line, append_line, finished, read_lines
from benchmarks.study.runs import ONLINE, plan
from benchmarks.study.scales import SCALES
from benchmarks.study.verdicts import (
    BETTER,
    DECIDING,
    HELD,
    MARGINS,
    UNKNOWN,
    WORSE,
    margin,
    outcome,
    outcome_of_seeds,
    overall,
    verdict,
)
from tests.study.made_up import interval, line_of
from unic_cache.errors import ConfigError

SMALL = SCALES["small"]


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (-0.9, 0.9, HELD),
        (-0.9, 1.1, UNKNOWN),  # it contains 0, which proves nothing
        (-3.0, 3.0, UNKNOWN),
        (-1.1, 0.5, UNKNOWN),
        (-1.5, -0.5, UNKNOWN),  # surely below the reference, but perhaps within the margin
        (-2.0, -1.1, WORSE),
        (-0.9, -0.1, HELD),  # surely below the reference, and surely within the margin
        (0.1, 0.9, HELD),
        (0.1, 1.1, BETTER),
        (1.1, 2.0, BETTER),
        (-1.0, 0.0, UNKNOWN),
    ],
)
def test_an_interval_held_only_if_all_of_it_lies_within_the_margin(low, high, found):
    assert verdict({"value": (low + high) / 2, "low": low, "high": high}, 1.0) == found


def test_one_worse_measure_is_enough_and_one_unknown_spoils_the_rest():
    assert overall([HELD, BETTER, WORSE, UNKNOWN]) == WORSE
    assert overall([HELD, UNKNOWN]) == UNKNOWN
    assert overall([HELD, BETTER]) == HELD
    assert overall([BETTER, BETTER]) == BETTER
    assert overall([]) == UNKNOWN


def test_every_measure_that_decides_has_a_margin():
    assert {margin(name) for name in DECIDING} <= set(MARGINS.values())
    assert margin("loss-views/mean") == MARGINS["loss"]


def test_a_second_seed_can_spoil_a_setting():
    run = next(run for run in plan(SMALL) if run.name == "cache/10-views-f16")
    good, bad = line_of(run), dataclasses.replace(line_of(run, -5.0), seed=1)
    assert outcome(good, ONLINE) == outcome_of_seeds([good], ONLINE) == HELD
    assert outcome_of_seeds([good, bad], ONLINE) == WORSE


def test_measures_without_a_vote_change_nothing():
    run = next(run for run in plan(SMALL) if run.name == "cache/10-views-f16")
    line = line_of(run)
    line.figures["differences"][ONLINE]["knn/food"] = interval(-9.0)
    assert outcome(line, ONLINE) == HELD


def test_a_line_is_read_as_it_was_written(tmp_path):
    lines = [line_of(run) for run in plan(SMALL)[:3]]
    for line in lines:
        append_line(tmp_path / "results.jsonl", line)
    assert read_lines(tmp_path / "results.jsonl") == lines
    assert read_lines(tmp_path / "absent.jsonl") == []


def test_a_run_is_skipped_only_with_equal_settings():
    run, other = plan(SMALL)[:2]
    lines, key = [line_of(run)], (SMALL.name, run.name, run.seed)
    assert finished(lines, key, run.settings) is lines[0]
    assert finished(lines, (SMALL.name, other.name, 0), other.settings) is None
    assert finished(lines, ("full", run.name, 0), run.settings) is None
    with pytest.raises(
        ConfigError, match=r"has teachers/\S+ of seed 0 with other settings \(teacher\): .* then, x now"
    ):
        finished(lines, key, {**run.settings, "teacher": "x"})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "line 1: not a run's result"),
        ("[]", "line 1: not a run's result"),
        ('{"run": "a"}', "it has the keys run, not figures, run, seconds, seed, settings"),
        ('{"run": "a", "seed": 0, "settings": {}, "figures": {}, "seconds": 1}', "'scale'"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, text, why):
    path = tmp_path / "results.jsonl"
    path.write_text(f"{text}\n")
    with pytest.raises(ConfigError) as caught:
        read_lines(path)
    assert why in str(caught.value)


def test_a_run_with_two_lines_is_refused(tmp_path):
    line: Line = line_of(plan(SMALL)[0])
    for _ in range(2):
        append_line(tmp_path / "results.jsonl", line)
    with pytest.raises(ConfigError, match=r"line 2: .* of seed 0 again"):
        read_lines(tmp_path / "results.jsonl")
