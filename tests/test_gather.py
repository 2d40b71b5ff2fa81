"""Which batches are read together, what is read of which chunk, and the stream that is made of it.

Letters: B images of a batch.
"""

import dataclasses
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import extract
from tests.conftest import count_memory
from unic_cache.ahead import thread_pool
from unic_cache.cache import READS_AT_ONCE, Cache
from unic_cache.config import Views
from unic_cache.errors import BrokenError
from unic_cache.files.local import LocalFolder
from unic_cache.files.open_file import DIRECT_PIECE
from unic_cache.store.layout import CHUNK_ROWS
from unic_cache.stream import batches as streams
from unic_cache.stream import gather
from unic_cache.stream.address import Address
from unic_cache.stream.batches import Stream
from unic_cache.stream.gather import GROUP_ROWS, WINDOW_ROWS, grouped, pieces
from unic_cache.stream.order import Order
from unic_cache.stream.pixels import KeptPixels, Pixels, ShardPixels
from unic_cache.stream.rows import Rows, usable_rows
from unic_cache.views.shards import describe

VIEWS = Views("unic", 32, 0)
NUMBERS = (0, 1)


def batches_of(sizes: list[int], shards: int = 1) -> list[list[Address]]:
    """Batches of neighbouring rows of tars of 5,000."""
    every = iter(
        Address(0, number // 5000 % shards, number % 5000, number // 5000 // shards) for number in range(10**6)
    )
    return [[next(every) for _ in range(size)] for size in sizes]


@given(st.lists(st.integers(1, 90), max_size=30), st.integers(1, 300))
@settings(deadline=None)
def test_groups_are_the_batches_in_order_and_no_larger_than_was_said(sizes, most):
    batches = batches_of(sizes)
    groups = list(grouped(batches, most))
    assert [batch for group in groups for batch in group] == batches
    assert all(groups)
    for group, after in zip(groups, [*groups[1:], None], strict=False):
        rows = sum(len(batch) for batch in group)
        assert rows <= most or len(group) == 1
        assert after is None or rows + len(after[0]) > most


def test_a_group_ends_where_its_chunks_are_mixed_to_the_end():
    counts = [1000 - 7 * shard for shard in range(30)]
    rows = Rows(np.zeros(30, np.int64), np.arange(30), np.array(counts))
    order = Order(rows, (0,), seed=0)
    batches = [order.samples(start, start + 128) for start in range(0, len(rows) - 128, 128)]
    groups = list(grouped(batches, 10**6))
    assert all(WINDOW_ROWS <= sum(len(batch) for batch in group) <= GROUP_ROWS for group in groups[:-1])
    touched = [{(*i.unit, i.row // CHUNK_ROWS) for batch in group for i in batch} for group in groups]
    read = sum(len(chunks) for chunks in touched)
    assert read < 1.6 * len(set().union(*touched))  # half of a batch belongs to the next mixture, at worst
    blind = [batches[start : start + 16] for start in range(0, len(batches), 16)]
    assert read < 0.9 * sum(len({(*i.unit, i.row // CHUNK_ROWS) for b in group for i in b}) for group in blind)


def test_pieces_are_by_tar_view_and_chunk_in_row_order():
    wanted = [Address(0, 1, 5, 0), Address(0, 0, 9, 0), Address(0, 1, 2, 0), Address(0, 1, 5, 1), Address(0, 1, 40, 0)]
    found = pieces(wanted)
    assert [piece.places for piece in found] == [[1], [2, 0, 4], [3]]
    assert [[pick.rows for pick in piece.picks] for piece in found] == [[[9]], [[2, 5], [40]], [[5]]]


@given(st.lists(st.builds(Address, *[st.integers(0, 2)] * 2, st.integers(0, 1200), st.integers(0, 1)), max_size=60))
@settings(deadline=None)
def test_pieces_hold_every_place_once(wanted):
    seen = {}
    for piece in pieces(wanted):
        assert len({pick.chunk for pick in piece.picks}) <= gather.TASK_CHUNKS
        for row, place in piece.pairs():
            assert (wanted[place].unit, wanted[place].row) == (piece.first.unit, row)
            seen[place] = row
        assert sorted(place for p in piece.picks for place in (*p.places, *(to for _, to in p.copies))) == sorted(
            piece.places
        )
    assert sorted(seen) == list(range(len(wanted)))


@pytest.fixture(scope="module", params=["f16", "klt"])
def kept(request, tmp_path_factory, settings) -> Path:
    """A cache of two teachers and their views in one codec, read-only."""
    folder = tmp_path_factory.mktemp(request.param) / "cache"
    extract.run(settings(folder, codec=request.param, keep_views=True))
    return folder


@pytest.fixture(scope="module")
def decoded(kept, tmp_path_factory) -> Path:
    """The same without its views."""
    folder = tmp_path_factory.mktemp("decoded") / "cache"
    shutil.copytree(kept, folder)
    shutil.rmtree(folder / "views")
    return folder


@dataclasses.dataclass
class Reading:
    """A stream over a folder, and its parts."""

    cache: Cache
    rows: Rows
    stream: Stream

    def batches(self, count: int, size: int = 8) -> Iterator[list[Address]]:
        order = Order(self.rows, NUMBERS, seed=5)
        return (order.samples(number * size, (number + 1) * size) for number in range(count))


def reading(folder: Path, shards, pool: Executor, page_cache: int | None = None) -> Reading:
    cache = Cache(LocalFolder(folder, page_cache=page_cache))
    teachers = list(cache.teachers.values())
    rows, _ = usable_rows(cache, teachers, VIEWS, NUMBERS, list(cache.shards()))
    paths = sorted(str(path) for path in shards.folder.glob("*.tar"))
    tars = {cache.place(e.name, e.keys): (path, e) for path, e in zip(paths, describe(paths), strict=True)}
    pixels = Pixels(KeptPixels(VIEWS, cache, pool), ShardPixels(VIEWS, tars, pool))
    return Reading(cache, rows, Stream(cache, teachers, VIEWS, pixels, pool))


def equal(one, other) -> bool:
    return (
        torch.equal(one.views_BHWC, other.views_BHWC)
        and torch.equal(one.good_B, other.good_B)
        and all(torch.equal(one.parts[t][name], other.parts[t][name]) for t in one.parts for name in one.parts[t])
        and one.parts.keys() == other.parts.keys()
    )


def test_batches_are_what_the_public_reader_gives_row_by_row(kept, shards):
    with thread_pool(2) as pool:
        found = reading(kept, shards, pool)
        for wanted, batch in zip(found.batches(25), found.stream.batches(found.batches(25)), strict=True):
            assert batch.good_B.all()
            for place, item in enumerate(wanted):
                unit = found.cache.unit(item.segment, item.shard, VIEWS.name(item.number))
                for name, teacher in found.cache.teachers.items():
                    for array, values in teacher.parts(teacher.record(unit), [item.row]).items():
                        assert np.array_equal(batch.parts[name][array][place].numpy(), values[0])
                view = np.empty((1, 32, 32, 3), np.uint8)
                found.cache.read_pixels(found.cache.pixel_record(unit), [item.row], view)
                assert np.array_equal(batch.views_BHWC[place].numpy(), view[0])


@pytest.mark.parametrize("folder", ["kept", "decoded"])
@pytest.mark.parametrize(("group_bytes", "threads"), [(1, 1), (1, 3), (300_000, 2), (2**30, 1), (2**30, 5)])
def test_nothing_depends_on_groups_threads_or_where_pixels_come_from(
    request, folder, group_bytes, threads, kept, shards, monkeypatch
):
    with thread_pool(2) as pool:
        found = reading(kept, shards, pool)
        expected = list(found.stream.batches(found.batches(31)))
    monkeypatch.setattr(streams, "GROUP_BYTES", group_bytes)
    with thread_pool(threads) as pool:
        found = reading(request.getfixturevalue(folder), shards, pool)
        batches = list(found.stream.batches(found.batches(31)))  # all are kept while the stream goes on
    assert len(batches) == len(expected) == 31
    assert all(equal(one, other) for one, other in zip(batches, expected, strict=True))


def test_a_store_that_does_not_fit_in_memory_gives_the_same_by_threads_of_its_own(kept, shards, monkeypatch):
    monkeypatch.setattr(streams, "GROUP_BYTES", 300_000)
    busy: set[str] = set()
    honest = gather._read
    monkeypatch.setattr(gather, "_read", lambda *a: busy.add(threading.current_thread().name) or honest(*a))
    with thread_pool(2) as pool:
        here, past_cache = (reading(kept, shards, pool, page_cache) for page_cache in (None, 0))
        expected = list(here.stream.batches(here.batches(31)))
        assert busy
        assert all(name.startswith("unic-cache_") for name in busy)
        list(past_cache.stream.batches(past_cache.batches(1)))  # by now it knows that it does not fit
        busy.clear()
        batches = list(past_cache.stream.batches(past_cache.batches(31)))
    assert all(equal(one, other) for one, other in zip(batches, expected, strict=True))
    assert {name.rpartition("_")[0] for name in busy} == {"unic-cache-read"}
    assert len(busy) <= READS_AT_ONCE


@pytest.mark.parametrize(("batches_a_group", "pieces_of_memory"), [(1, 3), (2, 2), (5, 2)])
def test_memory_is_that_of_two_groups_however_long_the_run(
    kept, shards, monkeypatch, batches_a_group, pieces_of_memory
):
    """Work is done as it is asked for: a thread may be slow to let go of the memory that it has filled."""
    found = reading(kept, shards, Idle(10**9))
    monkeypatch.setattr(streams, "GROUP_BYTES", 8 * batches_a_group * found.stream.image_bytes)
    made = count_memory(monkeypatch)
    stream, count, batch = found.stream.batches(found.batches(60)), 0, None
    while True:
        batch = next(stream, None)
        if batch is None:
            break
        count += 1
    assert count == 60
    least = 8 * batches_a_group * found.stream.image_bytes
    large = [size for size in made if least <= size < DIRECT_PIECE]  # others are the readers' own
    assert len(large) == pieces_of_memory


def test_a_broken_row_costs_its_batch_and_none_before(kept, shards, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(kept, folder)
    with thread_pool(2) as pool:
        found = reading(folder, shards, pool)
        item = list(found.batches(3))[2][4]
        path = next(folder.glob(f"views/features.zarr/000000/{VIEWS.name(item.number)}/rgb/c.{item.shard}.0*"))
        data = bytearray(path.read_bytes())
        data[item.row * 32 * 32 * 3 + 7] ^= 1
        path.write_bytes(bytes(data))
        batches = found.stream.batches(found.batches(3))
        assert [len(next(batches).good_B) for _ in range(2)] == [8, 8]
        with pytest.raises(BrokenError, match=rf"rgb, rows {item.row}: their bytes are not"):
            next(batches)


class Idle(Executor):
    """Runs at most so many tasks at once."""

    def __init__(self, works: int) -> None:
        self.works = works
        self.waiting: list[Future] = []

    def submit(self, task, /, *args, **kwargs) -> Future:
        future: Future = Future()
        self.works -= 1
        if self.works >= 0:
            future.set_result(task(*args, **kwargs))
        else:
            self.waiting.append(future)
        return future


def test_a_stream_that_is_left_begins_nothing_more(kept, shards, monkeypatch):
    sized = reading(kept, shards, Idle(0))
    monkeypatch.setattr(streams, "GROUP_BYTES", 16 * sized.stream.image_bytes)
    tasks = 3 * len(pieces([item for batch in sized.batches(2) for item in batch]))
    pool = Idle(tasks)
    found = reading(kept, shards, pool)
    batches = found.stream.batches(found.batches(60))
    next(batches), next(batches)
    assert pool.waiting
    assert not any(future.cancelled() for future in pool.waiting)
    batches.close()
    assert all(future.cancelled() for future in pool.waiting)
