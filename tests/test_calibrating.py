"""Calibration is of no more views than there will be, goes on where it was stopped, and comes out as it was."""

import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines import extract
from pipelines.command import signals
from pipelines.command.signals import Stopped
from pipelines.extracting import calibrating, opening
from pipelines.extracting.calibration_checkpoint import HalfCalibrated
from tests.conftest import CNN, VIT, make_shards, tree
from unic_cache.cache import open_cache
from unic_cache.errors import CacheError

ROWS = 13


@pytest.fixture
def tars(tmp_path) -> str:
    return make_shards(tmp_path / "shards", (8, ROWS - 8)).pattern


@pytest.fixture
def small(settings, tars, tmp_path):
    """An extraction of 13 images with the default number of calibration images."""

    def make(name: str, **changes):
        common = {"shards": tars, "views": 2, "batch_size": 4, "calibration_images": 5120, "threads": 1}
        return settings(tmp_path / name, **{**common, **changes})

    return make


def told(cache, name=VIT) -> int:
    return int(open_cache(cache).teachers[name].spec["calibration_images"])


@pytest.mark.parametrize(("views", "asked", "expected"), [(1, 5120, 13), (3, 10, 10)])
def test_it_is_of_no_more_views_than_there_will_be(small, tmp_path, capsys, views, asked, expected):
    extract.run(small("cache", views=views, calibration_images=asked))
    assert f"calibrating {VIT}, {CNN} on {expected} views\n" in capsys.readouterr().err
    assert told(tmp_path / "cache") == expected


@pytest.mark.parametrize(("codec", "times"), [("klt", 1), ("f16", 0)])
def test_it_says_when_it_fits_a_codec(small, capsys, codec, times):
    """It takes minutes if tokens are wide and cores few, after the last view was counted."""
    extract.run(small("cache", codec=codec))
    assert capsys.readouterr().err.count(f"fitting codec klt to {VIT}, {CNN}\n") == times


def test_one_that_ends_in_an_error_ends_those_beside_it():
    """As Ctrl-C does: nobody waits for a fit of minutes."""
    waited = []

    class Interrupted:
        def calibration(self, check):
            raise KeyboardInterrupt

    class Long:
        def calibration(self, check):
            for _ in range(300):
                time.sleep(0.1)
                check()
            waited.append(self)

    with pytest.raises(KeyboardInterrupt):
        list(calibrating.made([Interrupted(), Long()], threads=2))
    assert not waited


def test_no_more_are_fitted_at_once_than_threads():
    """Each takes memory: with fewer --threads it is less."""
    running, most = [], []

    class Fit:
        def calibration(self, check):
            running.append(self)
            time.sleep(0.05)
            most.append(len(running))
            running.remove(self)
            return self

        def to_bytes(self):
            return b""

    assert list(calibrating.made([Fit(), Fit(), Fit()], threads=1)) == [b""] * 3
    assert max(most) == 1


def test_its_views_are_the_first_that_will_be_kept(small, tmp_path):
    extract.run(small("cache"))
    wanted = calibrating.calibration_images(open_cache(tmp_path / "cache"), 2 * ROWS)
    assert sorted(wanted) == sorted(
        (0, tar, row, n) for tar, rows in ((0, 8), (1, 5)) for row in range(rows) for n in (0, 1)
    )


class TestStopped:
    """As by Ctrl-C, after each of the batches."""

    @pytest.fixture
    def stop_after(self, monkeypatch):
        """Let the calibration stop after so many of its batches."""
        honest = HalfCalibrated.keep

        def make(batches: int) -> None:
            def keep(half, calibrator, done, at_once):
                honest(half, calibrator, done, at_once or done == batches)
                if done == batches and "efficientnet" in half._name:
                    raise KeyboardInterrupt

            monkeypatch.setattr(HalfCalibrated, "keep", keep)

        return make

    @pytest.fixture
    def shown(self, monkeypatch) -> list[int]:
        """The batches that the teachers were shown for the calibration."""
        found: list[int] = []
        honest = calibrating.Calibrating.update

        def update(one, *rest):
            found.append(one.done)
            honest(one, *rest)

        monkeypatch.setattr(calibrating.Calibrating, "update", update)
        return found

    @pytest.mark.parametrize(
        ("changes", "stops"), [({"codec": "klt", "tokens": 2}, (1, 7)), ({"codec": "klt"}, (5,)), ({}, (3,))]
    )
    def test_it_goes_on_and_ends_with_the_same_bytes(self, small, tmp_path, stop_after, shown, changes, stops):
        extract.run(small("never-stopped", **changes))
        for batches in stops:
            shown.clear()
            stop_after(batches)
            with pytest.raises(KeyboardInterrupt):
                extract.run(small(f"cache-{batches}", **changes))
            assert any(".tmp-calibration-0" in name for name in tree(tmp_path / f"cache-{batches}"))
            stop_after(-1)
            extract.run(small(f"cache-{batches}", **changes))
            assert sorted(shown) == sorted(2 * list(range(7)))
            assert tree(tmp_path / f"cache-{batches}") == tree(tmp_path / "never-stopped")

    @pytest.mark.parametrize("beside", [False, True])
    @pytest.mark.parametrize(("updates", "done"), [(7, 16), (14, 26)])
    def test_a_signal_stops_it_once_all_that_was_shown_is_counted_and_kept(
        self, small, tmp_path, shown, monkeypatch, beside, updates, done
    ):
        """Also in the last batch, if the signal comes twice, and where sums are made in threads, as beside a GPU."""
        extract.run(small("never-stopped", codec="klt"))
        shown.clear()
        counting, update, keep = calibrating.counting, calibrating.Calibrating.update, HalfCalibrated.keep

        def signalled(one, *rest):
            update(one, *rest)
            if len(shown) == updates:
                os.kill(os.getpid(), signal.SIGINT)

        def signalled_again(half, calibrator, done, at_once):
            if at_once:
                os.kill(os.getpid(), signal.SIGINT)
            keep(half, calibrator, done, at_once)

        monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: 0.0))  # twice within a second
        monkeypatch.setattr(calibrating.Calibrating, "update", signalled)
        monkeypatch.setattr(HalfCalibrated, "keep", signalled_again)
        if beside:
            monkeypatch.setattr(calibrating, "counting", lambda name, device: counting(name, torch.device("cuda")))
        said = rf"^{done} of 26 views of the calibration are done; go on with the same command"
        with pytest.raises(Stopped, match=said):
            extract.run(small("cache", codec="klt"))
        assert len(list((tmp_path / "cache").rglob(".tmp-calibration-0"))) == 2
        extract.run(small("cache", codec="klt"))
        assert sorted(shown) == sorted(2 * list(range(7)))
        assert tree(tmp_path / "cache") == tree(tmp_path / "never-stopped")

    def test_a_signal_during_the_fits_keeps_what_was_counted(self, small, tmp_path, shown, monkeypatch):
        extract.run(small("never-stopped", codec="klt"))
        shown.clear()
        honest = calibrating.made

        def made(*given):
            yield next(honest(*given))
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(calibrating, "made", made)
            with pytest.raises(KeyboardInterrupt):
                extract.run(small("cache", codec="klt"))
        assert len(shown) == 14
        assert len(list((tmp_path / "cache").rglob(".tmp-calibration-0"))) == 1
        extract.run(small("cache", codec="klt"))
        assert len(shown) == 14
        assert tree(tmp_path / "cache") == tree(tmp_path / "never-stopped")

    @pytest.mark.parametrize("changes", [{"batch_size": 5}, {"views": 1}])
    def test_other_settings_begin_anew(self, small, tmp_path, stop_after, shown, changes):
        extract.run(small("never-stopped", **changes))
        stop_after(2)
        with pytest.raises(KeyboardInterrupt):
            extract.run(small("cache"))
        stop_after(-1)
        shown.clear()
        extract.run(small("cache", **changes))
        assert shown.count(0) == 2
        name = f"{VIT.replace(':', '.')}/calibration.npz"
        assert tree(tmp_path / "cache")[name] == tree(tmp_path / "never-stopped")[name]

    def test_a_file_that_is_half_or_another_begins_anew(self, small, tmp_path, stop_after):
        extract.run(small("never-stopped"))
        stop_after(2)
        with pytest.raises(KeyboardInterrupt):
            extract.run(small("cache"))
        stop_after(-1)
        halves = sorted((tmp_path / "cache").rglob(".tmp-calibration-0"))
        halves[0].write_bytes(halves[0].read_bytes()[:1000])
        halves[1].write_bytes(halves[1].read_bytes().replace(b"images", b"imager"))
        extract.run(small("cache"))
        assert tree(tmp_path / "cache") == tree(tmp_path / "never-stopped")


class TestLost:
    """A calibration that is lost while features that were made with it stand."""

    def lose(self, cache) -> dict[str, bytes]:
        whole = tree(cache)
        for path in cache.rglob("calibration.npz"):
            path.unlink()
        return whole

    @pytest.mark.parametrize("changes", [{"views": 1}, {"calibration_images": 10}])
    def test_it_is_made_again_of_as_many_views_as_before(self, small, tmp_path, changes):
        extract.run(small("cache"))
        whole = self.lose(tmp_path / "cache")
        extract.run(small("cache", **changes))
        assert tree(tmp_path / "cache") == whole

    def test_one_of_more_views_than_there_are_too(self, small, tmp_path, monkeypatch):
        """As an earlier release made them."""
        with monkeypatch.context() as patch:
            for module in (opening, calibrating):
                patch.setattr(module, "views_to_calibrate", lambda config, shards: 40)
            extract.run(small("cache", views=1))
        assert told(tmp_path / "cache") == 40
        whole = self.lose(tmp_path / "cache")
        extract.run(small("cache", views=1))
        assert tree(tmp_path / "cache") == whole


@pytest.mark.parametrize(("images", "views", "codec"), [(5, 1, "klt"), (1, 1, "klt"), (2, 1, "f16")])
def test_a_handful_of_images_is_shown_in_ten_views(settings, tmp_path, images, views, codec):
    tars = make_shards(tmp_path / "shards", (images,)).pattern
    done = extract.run(settings(tmp_path / "cache", shards=tars, views=views, codec=codec, threads=1))
    assert done.images == images * views
    for teacher in open_cache(tmp_path / "cache").teachers.values():
        assert teacher.spec["calibration_images"] == 10
        assert all(np.isfinite(value) and value > 0.9 for value in teacher.calibration.fidelity.values())


def test_fewer_than_five_are_refused(settings, tmp_path):
    """Kept views alone cannot be made more."""
    tars = make_shards(tmp_path / "shards", (3,)).pattern
    kept = settings(tmp_path / "cache", shards=tars, views=1, teachers=(), weights=(), keep_views=True, threads=1)
    extract.run(kept)
    with pytest.raises(CacheError, match=r"3 views are too few for a calibration: at least 5 are needed; .* with more"):
        extract.run(settings(tmp_path / "cache", shards=None, views=1, threads=1))
