"""The log of a writer's calls, cut off after each: what a kill or a power cut leaves is valid and can be finished.

The first half cuts between calls of the store, each of which is atomic and durable. The second cuts between the calls
of the operating system below them, and a power cut then drops all that was not synced (see `tests.disk`).
"""

import json
import os
from concurrent.futures import Executor, Future

import pytest

from pipelines import extract as pipeline
from tests.crash.memory import Files, MemoryFolder, Watch
from tests.crash.units import SPEC, check_readers, extract, units
from tests.disk import Disk, lay_out, tree
from unic_cache.files.local import LocalFolder

WORK = units(5, 40, 70, views=4)
LONG = units(5, 1100, views=2)  # the second tar takes two objects of each array
FINISHED = 12  # of the whole extraction's prefixes are finished by the real teachers; all are looked at
SPECS = {codec: {**SPEC, "codec": codec} for codec in ("int8", "klt")}


class Log(Watch):
    """The files as they stood before each call."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.instants: list[Files] = []

    def before(self, call: str, name: str) -> None:
        self.instants.append(dict(self.files))


@pytest.fixture
def no_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk below the tests is not cut off; thousands of syncs would take minutes."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.usefixtures("quick_zarr")
@pytest.mark.parametrize("work", [WORK, LONG], ids=["short", "long"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_store_cut_off_before_any_call_is_valid_and_can_be_finished(spec, work):
    files: Files = {}
    log = Log(files)
    extract(MemoryFolder(files, log), work, spec)
    assert len(log.instants) > len(files)
    for instant in log.instants:
        check_readers(MemoryFolder(instant), work)
        elsewhere = dict(instant)
        extract(MemoryFolder(instant), work, spec)
        assert instant == files
        extract(MemoryFolder(elsewhere), work, spec, machine=1)
        assert check_readers(MemoryFolder(elsewhere), work) == len(work)
        assert elsewhere.keys() == files.keys()
    print(f"{len(log.instants)} prefixes of the store's log")


@pytest.mark.usefixtures("quick_zarr", "no_syncs")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.slow
def test_a_disk_cut_off_after_any_system_call_is_valid_and_can_be_finished(tmp_path, spec):
    disk = Disk(tmp_path / "disk")
    with disk.watch():
        extract(LocalFolder(disk.root / "cache"), WORK, spec)
    whole = tree(disk.root / "cache")
    sound: set[frozenset[str]] = set()
    left = [files for instant in disk.instants for files in (instant.killed, instant.cut)]
    for number, files in enumerate(left):
        root = tmp_path / str(number)
        lay_out(files, root)
        LocalFolder(root / "cache").remove_leftovers()
        standing = tree(root / "cache")
        assert standing.items() <= whole.items()
        if frozenset(standing) not in sound:
            check_readers(MemoryFolder(standing), WORK)
            extract(LocalFolder(root / "cache"), WORK, spec)
            assert tree(root) == tree(disk.root)
            sound.add(frozenset(standing))
    assert disk.instants[-1].cut == tree(disk.root)
    print(f"{len(left)} prefixes of the system's log, which left {len(sound)} different stores")
    assert len(left) > 1000


class AtOnce(Executor):
    """Runs each task where it is submitted, so that the calls of a run have one order."""

    def submit(self, task, /, *arguments, **options):
        future: Future = Future()
        future.set_result(task(*arguments, **options))
        return future


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "thread_pool", lambda threads: AtOnce())
    monkeypatch.setattr("unic_cache.ahead.ThreadPoolExecutor", lambda *names: AtOnce())


@pytest.mark.usefixtures("no_syncs", "one_thread")
@pytest.mark.slow
def test_a_whole_extraction_cut_off_anywhere_is_finished_by_the_next(tmp_path, settings):
    disk = Disk(tmp_path / "disk")
    config = settings(disk.root / "cache", keep_views=True)
    with disk.watch():
        pipeline.run(config)
    whole = tree(disk.root)
    left = [files for instant in disk.instants for files in (instant.killed, instant.cut)]
    for files in left:
        standing = {name: data for name, data in files.items() if "/.tmp-" not in name}
        assert standing.items() <= whole.items()
        assert vouched_for(standing) <= standing.keys()
    for number, files in enumerate(left[5 :: len(left) // FINISHED]):
        lay_out(files, tmp_path / str(number))
        pipeline.run(settings(tmp_path / str(number) / "cache", keep_views=True))
        assert tree(tmp_path / str(number)) == whole
    print(f"{len(left)} prefixes of a whole extraction's log")
    assert len(left) > 600


def vouched_for(files: Files) -> set[str]:
    """The objects that the records among the files name."""
    records = [json.loads(data) for name, data in files.items() if "/commits/" in name]
    return {f"cache/{name}" for record in records for name in record["objects"]}
