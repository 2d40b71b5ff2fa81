"""Two workers that were given the same unit by mistake, at every interleaving of their store calls.

At every moment a reader finds the right unit or none; a worker may die at every moment; at the end there is one good
copy, and the record fits it.
"""

from functools import partial

import numpy as np
import pytest

from tests.crash.memory import Files, MemoryFolder
from tests.crash.schedules import Graph, Run, explore
from tests.crash.units import CLS_ALONE, FOLDER, SPEC, check_readers, extract, units
from unic_cache.errors import CacheError
from unic_cache.store.commit import CommitRecord
from unic_cache.store.layout import object_name
from unic_cache.store.member import Member


ONE = units(40)
(UNIT,) = ONE


def prepared(spec: dict) -> Files:
    """A store with all but the unit's objects and record."""
    files: Files = {}
    extract(MemoryFolder(files), ONE, spec)
    return {name: data for name, data in files.items() if "/c." not in name and "/commits/" not in name}


def finished(spec: dict) -> Files:
    files: Files = {}
    extract(MemoryFolder(files), ONE, spec)
    return files


def objects(spec: dict) -> list[str]:
    arrays = Member(MemoryFolder({}), FOLDER, spec).arrays
    return [object_name(FOLDER, 0, UNIT.view, array, 0, 0) for array in arrays]


def check_now(run: Run) -> None:
    check_readers(MemoryFolder(run.files), ONE)


def check_end(files: Files, results: list, spec: dict) -> None:
    """Every worker that lived got the record that stands, and it vouches for what is there."""
    assert check_readers(MemoryFolder(files), ONE) == 1
    assert set(files) == set(finished(spec))
    standing = Member(MemoryFolder(files), FOLDER, spec).record(UNIT)
    for result in results:
        assert all(isinstance(record, CommitRecord) for record in result), result
        assert [record.to_bytes() for record in result] in ([], [standing.to_bytes()])


def check_crashes(graph: Graph, files: Files, works: list, spec: dict) -> int:
    """From every state: each worker dies, the others finish, the dead one is started again. How many deaths."""
    deaths = 0
    for schedule in graph.schedules.values():
        for victim in range(len(works)):
            run = Run(files, works, schedule)
            if not run.workers[victim].finished:
                deaths += 1
                run.workers[victim].kill()
                check_end_of_survivors(run, victim, spec)
                again = Run(run.files, [works[victim]])
                check_end(again.files, again.finish(), spec)
            run.kill()
    return deaths


def check_end_of_survivors(run: Run, victim: int, spec: dict) -> None:
    results = run.finish()
    del results[victim]
    check_end(run.files, results, spec)


@pytest.mark.parametrize("machines", [(0, 0), (0, 1)], ids=["equal", "almost-equal"])
@pytest.mark.parametrize("spec", [CLS_ALONE, SPEC], ids=["one-array", "three-arrays"])
@pytest.mark.usefixtures("quick_zarr")
def test_two_workers_on_one_unit_end_with_one_good_copy(spec, machines):
    files = prepared(spec)
    works = [partial(extract, work=ONE, spec=spec, machine=machine) for machine in machines]

    def look(run: Run) -> None:
        check_now(run)
        if not run.runnable():
            check_end(run.files, [worker.result for worker in run.workers], spec)

    graph = explore(files, works, look)
    deaths = check_crashes(graph, files, works, spec)
    print(f"{graph.paths():,} interleavings through {len(graph.schedules)} states, {deaths} deaths")
