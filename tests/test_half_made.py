"""A cache whose extraction ended before its calibration was made: nobody stumbles over it, and the next run goes on."""

import pytest
from click.testing import CliRunner

import cli
from pipelines import extract, inspect, repair, verify
from pipelines.extracting import calibrating
from tests.conftest import CNN, VIT, tree
from unic_cache.cache import open_cache
from unic_cache.config import InspectConfig, RepairConfig, VerifyConfig
from unic_cache.errors import CacheError


@pytest.fixture
def half_made(tmp_path, settings, monkeypatch):
    """What an extraction leaves that is stopped while the calibration of the second of two teachers is made."""

    made: list[int] = []
    honest = calibrating.check_calibration

    def stopped(cache, member, crc):
        made.append(crc)
        if len(made) == 2:
            raise KeyboardInterrupt
        honest(cache, member, crc)

    with monkeypatch.context() as patch:
        patch.setattr(calibrating, "check_calibration", stopped)
        with pytest.raises(KeyboardInterrupt):
            extract.run(settings(tmp_path / "cache", codec="klt", views=1))
    assert [VIT.replace(":", ".") in name for name in tree(tmp_path / "cache") if "calibration.npz" in name] == [True]
    return tmp_path / "cache"


def test_it_is_finished_by_the_next_run_as_if_never_stopped(tmp_path, settings, half_made):
    before = {name: data for name, data in tree(half_made).items() if "/.tmp-calibration-" not in name}
    done = extract.run(settings(half_made, codec=None, views=1))
    assert (done.units, done.skipped) == (3, 0)
    assert {name: tree(half_made)[name] for name in before} == before
    extract.run(settings(tmp_path / "never-stopped", codec="klt", views=1))
    assert tree(half_made) == tree(tmp_path / "never-stopped")


def test_it_is_incomplete_and_nothing_of_it_is_broken(half_made):
    before = tree(half_made)
    report = verify.run(VerifyConfig(str(half_made), threads=1))
    assert (report.state, report.exit_code, report.broken, report.foreign) == ("incomplete", 3, [], [])
    assert report.lines()[-1] == f"{half_made} is incomplete: the same `unic-cache extract` completes it"
    assert repair.run(RepairConfig(str(half_made), threads=1)).lines(dry_run=False) == ["nothing is broken"]
    assert tree(half_made) == before


def test_readers_find_the_teacher_that_is_calibrated_and_are_told_how_to_make_the_other(half_made):
    cache = open_cache(half_made)
    assert list(cache.teachers) == [VIT]
    assert cache.teachers[VIT].record(cache.unit(0, 0, "unic-32-0-000")) is None
    message = rf"has no teacher '{CNN}'; it has {VIT}\. Make it with `unic-cache extract --teacher {CNN} --cache"
    with pytest.raises(CacheError, match=message):
        cache.teacher(CNN)
    report = inspect.run(InspectConfig(str(half_made)))
    assert report["teachers"].keys() == {VIT}
    assert (report["teachers"][VIT]["codec"], report["teachers"][VIT]["views"]) == ("klt", {})
    assert report["uncalibrated"] == {CNN: {}}


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        ((), f"no cached views of {VIT} match recipe unic, size any, seed any; the cache has none."),
        ((CNN,), f"has no teacher '{CNN}'; it has {VIT}. Make it with `unic-cache extract"),
    ],
)
def test_the_command_line_says_so_in_one_line(tmp_path, shards, half_made, teachers, message):
    words = ["distill", "--cache", half_made, "--shards", shards.pattern, "--out", tmp_path / "run", "--steps", 1]
    words += [word for name in teachers for word in ("--teacher", name)]
    done = CliRunner().invoke(cli.main, [str(word) for word in (*words, "--student", "test_vit")])
    assert done.exit_code == 1
    assert "Traceback" not in done.output
    assert message in done.output
    shown = CliRunner().invoke(cli.main, ["inspect", str(half_made)])
    assert shown.exit_code == 0
    assert f"{CNN}\n  no calibration (yet, or it is lost); the same `unic-cache extract` makes it" in shown.output
