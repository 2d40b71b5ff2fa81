"""Randomness as an argument: every draw is a pure function of integers.

The raw Philox stream is stable across numpy versions and machines; numpy's *distributions* are not. So we take raw
words only and do the rest ourselves.
"""

from enum import IntEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Words: TypeAlias = npt.NDArray[np.uint64]


class Purpose(IntEnum):
    """The purpose of a stream of words; streams of different purposes never overlap."""

    VIEW = 1
    ORDER = 2
    DROP_TEACHER = 3
    TORCH = 4
    SHARD = 5
    BOOTSTRAP = 6
    TOKENS = 7
    SPLIT = 8
    HYPERPARAMETERS = 9
    HEAD_ORDER = 10
    PIXELS = 11
    COMPOSITION = 12
    HEAD_INIT = 13


def words(purpose: Purpose, seed: int, a: int, b: int, count: int, start: int = 0) -> Words:
    """Words [start, start + count) of the Philox4x64 stream with key (seed, a * 2**32 + b), counter (0, 0, 0, purpose).

    uint64. A place of the stream costs nothing to reach: the counter is that of four words. `seed` is below 2**64, `a`
    and `b` below 2**32; they are never added to one another.
    """
    key = np.array([seed, (a << 32) | b], dtype=np.uint64)
    block, skipped = divmod(start, 4)
    counter = np.array([block, 0, 0, purpose], dtype=np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(skipped + count)
    return np.asarray(raw, dtype=np.uint64)[skipped:]


def uniforms(raw: Words) -> npt.NDArray[np.float64]:
    """Words as float64 in [0, 1): the upper 53 bits, exactly."""
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(raw: Words) -> npt.NDArray[np.int64]:
    """The order that sorts the words: a random permutation of range(len(raw))."""
    return np.argsort(raw, kind="stable").astype(np.int64)
