"""Choices of options are the tables that dispatch on them: each is spelled in config and has all its keys, in order."""

import pytest
import torch
from accelerate.utils import LoggerType

import cli
from pipelines import export
from pipelines.exporting import loading
from pipelines.planning.step_costs import AUTOCAST
from unic_cache import config
from unic_cache.evaluate import linear, tasks
from unic_cache.store import coders, sampling, standardize, writer
from unic_cache.store.codecs import codec, packing, pixel_codec
from unic_cache.student import loss, projectors
from unic_cache.teachers import positions, spec
from unic_cache.teachers import token_rules as tokens
from unic_cache.views import augment


@pytest.mark.parametrize(
    ("choices", "table"),
    [
        (config.RECIPES, augment._RECIPES),
        (config.RECIPES, augment._FRAMES),
        (config.CODECS, codec.CODECS),
        (config.SAMPLINGS, sampling.RULES),
        (config.CODERS, coders.CODERS),
        (config.CODERS, packing.PACKINGS),
        (config.PIXEL_CODECS, pixel_codec.PIXEL_CODECS),
        (config.STANDARDIZATIONS, standardize.STANDARDIZATIONS),
        (config.PROJECTORS, projectors.PROJECTORS),
        (config.LOSSES, loss.LOSSES),
        (config.BALANCINGS, loss.BALANCE),
        (config.PRECISIONS, AUTOCAST),
        (config.DTYPES, writer.ADOPT_DISTANCE),
        (config.EVALUATION_TASKS, tasks.TASKS),
        (config.EXPORTS, export.FORMATS),
        (config.EXPORTS, loading.SNIPPETS),
        (config.SOLVERS, linear.SOLVERS),
        (spec.SUMMARY_RULES, tokens.SUMMARY_RULES),
        (spec.GRID_RULES, tokens.GRID_RULES),
        (spec.POSITION_RULES, positions.RULES),
    ],
)
def test_choices_are_the_keys_of_their_table(choices, table):
    assert choices == tuple(table)


def test_names_that_libraries_dispatch_on_are_known_to_them():
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in config.DTYPES)
    assert {*config.TRACKERS, "all"} == {tracker.value for tracker in LoggerType} | {"none"}


def test_the_help_of_positions_names_every_rule():
    (flag,) = [flag for flag in cli.extract.params if flag.name == "positions"]
    assert all(rule in flag.help for rule in spec.POSITION_RULES)
