"""Reusable memory: reused, never while it is referenced, and bounded."""

import mmap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import count_memory
from unic_cache.buffers import Ring


def place(piece: np.ndarray) -> int:
    return piece.ctypes.data


def test_a_piece_begins_at_a_page_and_has_the_size_asked():
    ring = Ring(spare=2)
    for size in (1, 4096, 100_000, 3 * 2**20 + 1):
        piece = ring.take(size)
        assert (piece.shape, piece.dtype) == ((size,), np.uint8)
        assert place(piece) % mmap.PAGESIZE == 0


def test_what_nobody_looks_at_is_used_again():
    ring = Ring(spare=2)
    first = place(ring.take(10_000))
    assert place(ring.take(10_000)) == first
    assert place(ring.take(5)) == first


def test_a_view_of_any_kind_keeps_a_piece():
    for view in (
        lambda piece: piece[5:],
        lambda piece: piece[:96].view(np.float16).reshape(2, -1)[1],
        lambda piece: piece.data[7:],
        torch.from_numpy,
        lambda piece: torch.from_numpy(piece)[4:].view(torch.float16)[10:12],
    ):
        ring = Ring(spare=2)
        piece = ring.take(100)
        kept, was = view(piece), place(piece)
        del piece
        assert place(ring.take(100)) != was
        del kept
        assert was in {place(a) for a in (ring.take(100), ring.take(100))}


def test_no_more_is_kept_than_was_said(monkeypatch):
    made = count_memory(monkeypatch)
    ring = Ring(spare=2)
    held = [ring.take(10) for _ in range(5)]
    assert len(made) == 5
    del held
    again = [ring.take(10) for _ in range(5)]
    assert len(made) == 5 + 3
    assert len(again) == 5


def test_pieces_grow_to_the_largest(monkeypatch):
    made = count_memory(monkeypatch)
    ring = Ring(spare=2)
    for size in (10, 9000, 10, 20_000, 9000, 20_000, 10):
        ring.take(size)
    assert made == [4096, 12288, 20480]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9000)), max_size=40))
@settings(deadline=None, max_examples=50)
def test_pieces_in_use_never_overlap(steps):
    ring, held = Ring(spare=2), {}
    for slot, size in steps:
        held[slot] = ring.take(size)
        held[slot][:] = slot
        assert all((piece == number).all() for number, piece in held.items())


def test_threads_never_share_a_piece():
    ring = Ring(spare=3)

    def use(number: int) -> bool:
        piece = ring.take(5000)
        piece[:] = number % 256
        return bool((piece == number % 256).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(2000)))
