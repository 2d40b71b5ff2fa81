"""Workers that were given the same unit by mistake, at every interleaving of their store calls.

At every moment a reader finds the right unit or none; a worker may die at every moment; at the end there is one good
copy, and the record fits it.
"""

import itertools
from collections.abc import Sequence
from functools import cache as memoize
from functools import partial
from types import MappingProxyType

import numpy as np
import pytest

from tests.crash.memory import Files, MemoryFolder
from tests.crash.schedules import Graph, Run, Work, explore
from tests.crash.units import CLS_ALONE, FOLDER, SPEC, TILES_ALONE, check_readers, extract, units
from unic_cache.errors import CacheError
from unic_cache.store.layout import object_name
from unic_cache.store.member import Member
from unic_cache.store.writer import UnitWriter

pytestmark = pytest.mark.usefixtures("quick_zarr")
ONE = units(40)
SPECS = {"one-array": CLS_ALONE, "three-arrays": SPEC, "one-tiled-array": TILES_ALONE}


@memoize
def finished(array_count: str) -> MappingProxyType[str, bytes]:
    """What one worker alone makes of an empty store."""
    files: Files = {}
    extract(MemoryFolder(files), ONE, SPECS[array_count])
    return MappingProxyType(files)


def prepared(array_count: str) -> Files:
    """A store with all but the unit's objects and record."""
    whole = finished(array_count)
    return {name: data for name, data in whole.items() if "/c." not in name and "/commits/" not in name}


def first_object(files: Files) -> str:
    member = Member(MemoryFolder(files), FOLDER, CLS_ALONE)
    return object_name(FOLDER, 0, ONE[0].view, member.arrays[0], 0, 0)


def workers(array_count: str, *machines: int) -> list[Work]:
    return [partial(extract, work=ONE, spec=SPECS[array_count], machine=machine) for machine in machines]


def check_end(run: Run, array_count: str, survivors: Sequence[int]) -> None:
    """There is one good copy and nothing else, and each worker that lived was told of the record that stands."""
    assert check_readers(MemoryFolder(run.files), ONE) == 1
    assert set(run.files) == set(finished(array_count))
    standing = Member(MemoryFolder(run.files), FOLDER, SPECS[array_count]).record(ONE[0])
    for number in survivors:
        records = run.workers[number].result
        assert not isinstance(records, BaseException), records
        assert [record.to_bytes() for record in records] in ([], [standing.to_bytes()])


def explore_and_check(files: Files, works: Sequence[Work], array_count: str) -> Graph:
    def look(run: Run) -> None:
        check_readers(MemoryFolder(run.files), ONE)
        if not run.runnable():
            check_end(run, array_count, range(len(works)))

    return explore(files, works, look)


def deaths_survived(graph: Graph, files: Files, works: Sequence[Work], array_count: str) -> int:
    """From every state: one worker dies, the others finish, then the dead one is started again. How many deaths."""
    deaths = 0
    for schedule in graph.schedules.values():
        for victim in range(len(works)):
            run = Run(files, works, schedule)
            if victim in run.runnable():
                deaths += 1
                run.workers[victim].kill()
                run.finish()
                check_end(run, array_count, [number for number in range(len(works)) if number != victim])
                before = dict(run.files)
                again = Run(run.files, [works[victim]])
                again.finish()
                check_end(again, array_count, [0])
                assert again.files == before
            run.kill()
    return deaths


@pytest.mark.parametrize(
    ("array_count", "machines"),
    [*itertools.product(("one-array", "three-arrays"), ((0, 0), (0, 1))), ("one-tiled-array", (0, 1))],
    ids=lambda value: value if isinstance(value, str) else ("equal-bytes", "almost-equal-bytes")[value[1]],
)
@pytest.mark.slow
def test_two_workers_end_with_one_good_copy_even_if_one_dies(array_count, machines):
    files, works = prepared(array_count), workers(array_count, *machines)
    graph = explore_and_check(files, works, array_count)
    deaths = deaths_survived(graph, files, works, array_count)
    print(f"{graph.paths():,} interleavings through {len(graph.schedules)} states, {deaths} deaths")
    assert graph.paths() > 100_000
    assert deaths > 200


@pytest.mark.slow
def test_three_workers_end_with_one_good_copy():
    graph = explore_and_check(prepared("one-array"), workers("one-array", 0, 1, 2), "one-array")
    print(f"{graph.paths():,} interleavings through {len(graph.schedules)} states")
    assert graph.paths() > 10**9


def test_left_overs_of_a_dead_worker_on_another_machine_are_adopted_by_both():
    files = prepared("one-array")
    name = first_object(files)
    left: Files = {}
    extract(MemoryFolder(left), ONE, CLS_ALONE, machine=2)
    files[name] = left[name]
    ends = []

    def look(run: Run) -> None:
        check_readers(MemoryFolder(run.files), ONE)
        assert run.files[name] == left[name]
        if not run.runnable():
            check_end(run, "one-array", (0, 1))
            ends.append(run.files)

    explore(files, workers("one-array", 0, 1), look)
    assert all(end == left for end in ends)


@pytest.mark.parametrize(("dtype", "adopts"), [("float32", False), ("float16", True), ("bfloat16", True)])
def test_how_far_machines_may_be_apart_depends_on_the_arithmetic(dtype, adopts):
    spec = {**SPEC, "dtype": dtype}
    left: Files = {}
    extract(MemoryFolder(left), ONE, spec, machine=150)
    files = {name: data for name, data in left.items() if "/commits/" not in name}
    if adopts:
        extract(MemoryFolder(files), ONE, spec)
        assert files == left
    else:
        with pytest.raises(CacheError, match="what stands there is not what this machine makes"):
            extract(MemoryFolder(files), ONE, spec)


@pytest.mark.parametrize("spec", [{**SPEC, "codec": "f16"}, SPEC, TILES_ALONE], ids=["f16", "int8", "klt"])
def test_rows_of_another_machine_are_adopted_and_those_of_other_images_refused(spec):
    two = units(40, views=2)
    ours: Files = {}
    theirs: Files = {}
    extract(MemoryFolder(ours), two, spec)
    extract(MemoryFolder(theirs), two, spec, machine=1)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] != theirs[name]) == ("/c." in name) for name in ours if "/commits/" not in name)
    standing = {name: data for name, data in theirs.items() if "/commits/" not in name}
    extract(MemoryFolder(standing), two, spec)
    assert standing == theirs
    check_readers(MemoryFolder(standing), two)
    objects = {name: data for name, data in theirs.items() if "/c." in name}
    strangers = {name: objects[name.replace("-000/", "-001/")] for name in objects if "-000/" in name}
    before = {name: data for name, data in ours.items() if "/c." not in name and "/commits/" not in name} | strangers
    after = dict(before)
    with pytest.raises(CacheError, match="what stands there is not what this machine makes"):
        extract(MemoryFolder(after), two[:1], spec)
    assert after == before


GARBAGE = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "rows-of-others": lambda data: data[12 : 40 * 12] + data[:12] + data[40 * 12 :],
}


@pytest.mark.parametrize("spoil", GARBAGE.values(), ids=GARBAGE)
def test_garbage_in_the_way_is_reported_by_both_and_never_committed(spoil):
    files = prepared("one-array")
    files[first_object(files)] = spoil(finished("one-array")[first_object(files)])

    def look(run: Run) -> None:
        assert run.files == files
        for worker in run.workers:
            if worker.finished:
                assert isinstance(worker.result, CacheError)
                assert "has no commit record; stop all extraction" in str(worker.result)

    graph = explore(files, workers("one-array", 0, 1), look)
    assert graph.paths() > 1_000


class ReplacingWriter(UnitWriter):
    """A writer that puts its own bytes where it finds others, as seems natural."""

    def _settle(self, name, data):
        if not self.member.location.create(name, data):
            self.member.location.replace(name, data)
        return data


def test_a_writer_that_replaces_would_break_what_another_committed(monkeypatch):
    """Why nothing is ever replaced; and a proof that the search above finds such a fault."""
    monkeypatch.setattr("tests.crash.units.UnitWriter", ReplacingWriter)
    with pytest.raises(CacheError, match="their bytes are not as committed"):
        explore_and_check(prepared("one-array"), workers("one-array", 0, 1), "one-array")


@pytest.mark.parametrize("seed", range(3))
def test_random_interleavings_from_an_empty_store(seed):
    """Five workers, two of them killed somewhere, also race for the spec, the calibration and Zarr's metadata."""
    generator = np.random.default_rng(seed)
    for _ in range(20):
        works = workers("three-arrays", *generator.integers(0, 3, 5).tolist())
        run = Run({}, works)
        dying = {int(worker): int(generator.integers(0, 25)) for worker in generator.permutation(5)[:2]}
        while run.runnable():
            number = int(generator.choice(run.runnable()))
            if dying.get(number, -1) == len(run.workers[number].answers):
                run.workers[number].kill()
                continue
            run.workers[number].step()
            check_readers(MemoryFolder(run.files), ONE)
        check_end(run, "three-arrays", sorted(set(range(5)) - set(dying)))
