"""Kept views, raw and compact, are the very pixels."""

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipelines import distill, extract
from tests.conftest import losses_of, tree, views_of
from tests.verify.damage import check
from unic_cache.ahead import thread_pool
from unic_cache.cache import open_cache
from unic_cache.config import Views
from unic_cache.errors import CacheError
from unic_cache.store.codecs.pixel_codec import from_differences, to_differences
from unic_cache.stream.address import Address
from unic_cache.stream.pixels import KeptPixels

PIXELS = arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.just(3)))


@given(PIXELS)
@settings(deadline=None, max_examples=80)
def test_differences_lose_nothing(views):
    kept = to_differences(torch.from_numpy(views)).reshape(views.shape)
    from_differences(kept)
    assert np.array_equal(kept.numpy(), views)


def test_differences_are_the_naive_loop():
    view = np.random.default_rng(0).integers(0, 256, (4, 5, 3))
    colours = view - view[..., 1:2] * np.array([1, 0, 1])
    padded = np.pad(colours, ((1, 0), (1, 0), (0, 0)))
    expected = (padded[1:, 1:] - padded[:-1, 1:] - padded[1:, :-1] + padded[:-1, :-1]) % 256
    found = to_differences(torch.from_numpy(view.astype(np.uint8))[None])
    assert np.array_equal(found.reshape(4, 5, 3).numpy(), expected)


@pytest.fixture(scope="module")
def compact(tmp_path_factory, settings):
    folder = tmp_path_factory.mktemp("compact") / "cache"
    extract.run(settings(folder, keep_views=True, pixel_codec="compact"))
    return folder


class TestCompact:
    def test_gives_the_views_and_their_checksums(self, compact, shards):
        cache = open_cache(compact)
        wanted = [Address(0, 1, row, 1) for row in (39, 0, 17, 17, 5)]
        with thread_pool(2) as pool:
            found = KeptPixels(Views("unic", 32, 0), cache, pool).start(wanted, 7)()
        exact = views_of(shards, 1, 1)
        assert np.array_equal(found.views_BHWC[:5], exact[[39, 0, 17, 17, 5]])
        assert not found.views_BHWC[5:].any()
        record = cache.pixel_record(cache.unit(0, 1, "unic-32-0-001"))
        assert found.crcs.tolist() == record.pixels[[39, 0, 17, 17, 5]].tolist()

    def test_is_smaller_and_stock_zarr_with_two_running_sums_reads_it(self, compact, shards):
        kept = zarr.open(compact / "views/features.zarr/000000/unic-32-0-001/rgb", mode="r")[1, 0, 0]
        views = kept.reshape(32, 32, 32, 3)
        views = np.cumsum(np.cumsum(views, axis=1, dtype=np.uint8), axis=2, dtype=np.uint8)
        views[..., [0, 2]] += views[..., [1]]
        assert np.array_equal(views, views_of(shards, 1, 1)[:32])
        record = open_cache(compact).pixel_record(open_cache(compact).unit(0, 1, "unic-32-0-001"))
        assert record.bytes_kept < 0.8 * 64 * 32 * 32 * 3

    def test_trains_as_the_tars_do(self, compact, training, tmp_path):
        distill.run(training(out=str(tmp_path / "tars")))
        distill.run(training(cache=str(compact), out=str(tmp_path / "kept"), shards=None))
        assert losses_of(tmp_path / "tars") == losses_of(tmp_path / "kept")

    def test_is_read_by_the_public_reader(self, compact, shards):
        cache = open_cache(compact)
        found = np.zeros((2, 32, 32, 3), np.uint8)
        cache.read_pixels(cache.pixel_record(cache.unit(0, 1, "unic-32-0-001")), [3, 38], found)
        assert np.array_equal(found, views_of(shards, 1, 1)[[3, 38]])

    def test_is_verified(self, compact):
        assert check(compact).exit_code == 0

    def test_stays_what_it_was_where_nothing_is_said(self, compact, settings, tmp_path):
        before = tree(compact)
        extract.run(settings(compact, keep_views=True))
        assert tree(compact) == before
        with pytest.raises(CacheError, match='was made with codec "compact", not "raw"'):
            extract.run(settings(compact, keep_views=True, pixel_codec="raw"))
