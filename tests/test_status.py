"""`unic-cache status`: how far an extraction is, by names and times alone."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import cli
from pipelines import status
from pipelines.reporting.units_done import rate_of, survey
from tests.conftest import CNN, VIT
from tests.test_seals import add_seals, member_folder, record_of
from unic_cache.cache import Cache, open_cache
from unic_cache.config import StatusConfig
from unic_cache.files.local import LocalFolder
from unic_cache.store import seal

ROWS = (37, 40, 5)
NOW = 1_800_000_000.0  # of the last record


class Unread(LocalFolder):
    """Refuses to read commit records."""

    def read_range(self, name, offset, size):
        assert "/commits/" not in name
        return super().read_range(name, offset, size)

    def read(self, name):
        assert "/commits/" not in name
        return super().read(name)


@pytest.fixture
def folder(cache_folder, tmp_path) -> Path:
    """A copy of the cache, whose records were written a minute apart, the last at NOW."""
    own = shutil.copytree(cache_folder, tmp_path / "cache")
    for at, path in enumerate(records(own)):
        os.utime(path, (NOW, NOW - 60 * (len(records(own)) - 1 - at)))
    return own


def records(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/commits/*/*/*.json"), key=lambda path: (path.name, path))


def look(folder: Path, monkeypatch, since: float = 1.0):
    """One report, `since` seconds after the last record."""
    monkeypatch.setattr(status.time, "time", lambda: NOW + since)
    (found,) = status.run(StatusConfig(str(folder)))
    return found


def test_a_whole_cache_is_complete(folder, monkeypatch):
    found = look(folder, monkeypatch)
    assert (found["state"], found["done"], found["missing"], found["left_s"]) == ("complete", 18, 0, 0)
    assert found["members"][VIT]["views"]["unic-32-0-001"] == {"done": 3, "missing": 0}
    assert found["units_per_hour"] == 60
    assert found["images_per_second"] == pytest.approx(sum(6 * rows for rows in ROWS) / (17 * 60), abs=0.1)
    assert found["workers_seen"] == []


def test_missing_units_rate_and_time_left_are_told(folder, monkeypatch):
    gone = [record_of(folder, CNN, 2, 0), record_of(folder, CNN, 2, 1), record_of(folder, VIT, 2, 1)]
    for path in gone:
        path.unlink()
    youngest = max(path.stat().st_mtime for path in records(folder))
    found = look(folder, monkeypatch, youngest - NOW + 30)
    assert (found["state"], found["done"], found["missing"]) == ("running", 15, 3)
    assert found["members"][CNN]["views"]["unic-32-0-000"] == {"done": 2, "missing": 1}
    assert (found["members"][CNN]["missing"], found["members"][CNN]["images_missing"]) == (2, 10)
    assert found["left_s"] == pytest.approx(3 * found["measured_over_s"] / 14, abs=1)
    idle = look(folder, monkeypatch, 3600)
    assert (idle["state"], idle["left_s"]) == ("idle", None)
    assert "nothing written since 2027-" in status.words(idle)


def test_a_view_that_a_teacher_never_began_is_not_missing(folder, monkeypatch):
    shutil.rmtree(folder / member_folder(CNN) / "commits/000000/unic-32-0-001")
    assert look(folder, monkeypatch)["state"] == "complete"


def test_workers_are_seen_by_their_temporary_files_while_they_write(folder, monkeypatch):
    record_of(folder, CNN, 2, 1).unlink()
    place = max(records(folder), key=lambda path: path.stat().st_mtime).parent
    arrays = Path(str(place).replace("commits", "features.zarr")) / "cls"
    for path, age in ((place / ".tmp-3-ab", 5), (arrays / ".tmp-11-cd", 5), (arrays / ".tmp-4-ef", 7200)):
        path.write_bytes(b"")
        os.utime(path, (NOW, NOW - age))
    assert look(folder, monkeypatch)["workers_seen"] == [3, 11]


def test_sealed_runs_are_not_listed_and_the_counts_are_the_same(folder, monkeypatch):
    for path in (record_of(folder, CNN, 2, 0), record_of(folder, VIT, 2, 1)):
        path.unlink()
    before = look(folder, monkeypatch)
    monkeypatch.setattr(seal, "RUN", 1)
    add_seals(folder)
    for path in folder.glob("*/seals/*/*/*.json"):
        os.utime(path, (NOW, record_time(path)))
    found = look(folder, monkeypatch)
    for key in ("done", "missing", "members", "state"):
        assert found[key] == before[key]
    cache = Cache(Unread(folder))
    views = survey(cache, {})
    assert all(len(one.times) <= 2 for one in views)  # the run sealed last, and the one that is not sealed
    assert rate_of(views).units == pytest.approx(1 / 60, rel=0.3)


def record_time(path: Path) -> float:
    """When the record of a run of one tar was written."""
    return Path(str(path).replace("/seals/", "/commits/")).stat().st_mtime + 0.5


def test_whole_views_are_not_listed_again(folder, monkeypatch):
    record_of(folder, CNN, 2, 1).unlink()
    whole = {}
    survey(open_cache(folder), whole)
    listed, before = [], LocalFolder.times_between
    monkeypatch.setattr(LocalFolder, "times_between", lambda *of: (listed.append(of[1]), before(*of))[1])
    survey(open_cache(folder), whole)
    assert listed == [f"{member_folder(CNN)}/commits/000000/unic-32-0-001"]


def test_watch_ends_when_nothing_is_missing(folder, monkeypatch):
    path = record_of(folder, CNN, 2, 1)
    data = path.read_bytes()
    path.unlink()
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            path.write_bytes(data)

    monkeypatch.setattr(status.time, "sleep", sleep)
    done = CliRunner().invoke(cli.main, ["status", str(folder), "--watch", "--every", "3", "--json"])
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["missing"] for one in found] == [1, 1, 0]
    assert waits == [3.0, 3.0]


def test_ctrl_c_ends_watching_with_success(folder, monkeypatch):
    record_of(folder, CNN, 2, 1).unlink()

    def sleep(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", sleep)
    done = CliRunner().invoke(cli.main, ["status", str(folder), "--watch"])
    assert done.exit_code == 0
    assert "17 units done, 1 missing" in done.stdout
    assert VIT in done.stdout


def test_a_cache_without_a_unit_is_empty_and_no_cache_is_an_error(folder, tmp_path, monkeypatch):
    for path in records(folder):
        path.unlink()
    assert look(folder, monkeypatch)["state"] == "empty"
    done = CliRunner().invoke(cli.main, ["status", str(tmp_path / "nothing")])
    assert done.exit_code == 1
    assert "no cache is here" in done.output
    assert time.time() > 0
