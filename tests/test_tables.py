"""Choices are the keys of the tables that serve them."""

from unic_cache import config
from unic_cache.store.codecs.codec import CODECS
from unic_cache.store.codecs.pixel_codec import PIXEL_CODECS
from unic_cache.store.standardize import STANDARDIZATIONS
from unic_cache.teachers import positions, spec, tokens


def test_codecs():
    assert tuple(CODECS) == config.CODECS


def test_pixel_codecs():
    assert tuple(PIXEL_CODECS) == config.PIXEL_CODECS


def test_standardizations():
    assert tuple(STANDARDIZATIONS) == config.STANDARDIZATIONS


def test_rules_of_a_teacher():
    assert tuple(tokens.SUMMARY_RULES) == spec.SUMMARY_RULES
    assert tuple(tokens.GRID_RULES) == spec.GRID_RULES
    assert tuple(positions.RULES) == spec.POSITION_RULES
