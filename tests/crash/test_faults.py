"""Each call of the store fails once in turn: the run says so, nothing wrong stands, and the next run completes it.

A call that fails may have taken effect all the same, its answer lost on the way: so each is tried both ways.
"""

import dataclasses
from collections.abc import Set

import pytest
import torch

from pipelines import extract as pipeline
from pipelines.extracting import opening
from tests.conftest import CNN, VIT, make_shards
from tests.crash.memory import Files, MemoryFolder, Watch
from tests.crash.units import check_readers, extract, units

WORK = units(5, 40, 70)
CALLS = frozenset({"read", "read_range", "size", "create", "replace", "delete", "names", "folders"})
CPU = torch.device("cpu")


class Fault(Watch):
    """Call `number`, counted from 0, raises: before it takes effect, or after, as if its answer were lost."""

    def __init__(self, number: int, counted: Set[str], answer_lost: bool) -> None:
        self.number = number
        self.counted = counted
        self.answer_lost = answer_lost
        self.calls = 0
        self.failed = ""

    def before(self, call: str, name: str) -> None:
        self.calls += call in self.counted
        if not self.answer_lost:
            self._fail(call, name)

    def after(self, call: str, name: str, answer: object) -> None:
        if self.answer_lost:
            self._fail(call, name)

    def _fail(self, call: str, name: str) -> None:
        if call in self.counted and self.calls - 1 == self.number and not self.failed:
            self.failed = f"{call} {name}"
            raise OSError(f"ordered: {self.failed}")


def fail_each_call_once(run, check, answer_lost: bool) -> list[str]:
    """`run(files, watch)` with each of its calls failing in turn, until none is left; the calls that failed.

    To lose the answer of a call that changes nothing is to refuse it, so that is left out.
    """
    whole: Files = {}
    run(whole, Watch())
    failed: list[str] = []
    while True:
        files: Files = {}
        fault = Fault(len(failed), {"create"} if answer_lost else CALLS, answer_lost)
        try:
            run(files, fault)
        except OSError as error:
            told = str(error)
        else:
            assert not fault.failed
            assert files == whole
            print(f"{len(failed)} faults")
            return failed
        assert told == f"ordered: {fault.failed}"
        failed.append(fault.failed)
        assert files.items() <= whole.items()
        check(files)
        run(files, Watch())
        assert files == whole, fault.failed


@pytest.mark.usefixtures("quick_zarr")
@pytest.mark.parametrize("answer_lost", [False, True], ids=["refused", "answer-lost"])
def test_units_survive_a_failure_of_any_call(answer_lost):
    failed = fail_each_call_once(
        lambda files, watch: extract(MemoryFolder(files, watch), WORK),
        lambda files: check_readers(MemoryFolder(files), WORK),
        answer_lost,
    )
    assert len(failed) > len(WORK) * 4


@pytest.mark.usefixtures("quick_zarr")
@pytest.mark.parametrize("answer_lost", [False, True], ids=["refused", "answer-lost"])
@pytest.mark.slow
def test_a_whole_extraction_survives_a_failure_of_any_call(tmp_path, settings, weights, monkeypatch, answer_lost):
    """One teacher sees views from the tars, which are kept; another one, later, sees those."""
    shards = make_shards(tmp_path, (6, 4))
    small = {"threads": 1, "views": 1, "calibration_images": 10}
    first, later = (
        settings(tmp_path / "cache", teachers=(name,), weights=((name, str(weights[name])),), **small)
        for name in (VIT, CNN)
    )
    first = dataclasses.replace(first, shards=shards.pattern, keep_views=True)
    later = dataclasses.replace(later, shards=None)
    teachers = {name: opening.load_teachers(config, CPU)[name] for name, config in ((VIT, first), (CNN, later))}
    monkeypatch.setattr(opening, "load_teachers", lambda asked, _: {name: teachers[name] for name in asked.teachers})

    def run(files: Files, watch: Watch) -> None:
        for module in (pipeline, opening):
            monkeypatch.setattr(module, "open_location", lambda *_: MemoryFolder(files, watch))
        pipeline.run(first)
        pipeline.run(later)

    failed = fail_each_call_once(run, lambda files: None, answer_lost)
    assert {call.split()[0] for call in failed} == ({"create"} if answer_lost else CALLS - {"replace", "delete"})
