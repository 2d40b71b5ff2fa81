"""One curve from any number of processes, and the rows that each of them reads."""

import dataclasses
import time
from functools import lru_cache
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from pipelines import distill
from pipelines.training.learner import Learner
from tests.conftest import log_of, tree
from tests.launching import kill, started
from unic_cache.ahead import thread_pool
from unic_cache.config import DistillConfig, Views
from unic_cache.stream import batches as reading
from unic_cache.stream.address import Address
from unic_cache.stream.batches import Stream
from unic_cache.stream.order import Order
from unic_cache.stream.pixels import ShardPixels
from unic_cache.stream.rows import usable_rows
from unic_cache.student.run_files import CHECKPOINT
from unic_cache.views.shards import describe


@pytest.mark.parametrize("processes", [2, 4])
def test_a_process_reads_its_own_rows_alone_and_all_read_the_batches(processes, training, cache, shards, monkeypatch):
    """What is read of features and of pixels, counted where the readers are asked for it."""
    asked: list[Address] = []
    honest, views = reading.pieces, Views("unic", 32, 0)
    monkeypatch.setattr(reading, "pieces", lambda items: asked.extend(items) or honest(items))
    teachers = tuple(cache.teachers.values())
    rows, _ = usable_rows(cache, teachers, views, (0, 1), list(cache.shards()))
    order, config = Order(rows, (0, 1), 0), training(accumulate=2)
    entries = describe([str(path) for path in sorted(shards.folder.glob("*.tar"))])
    tars = {cache.place(one.name, one.keys): (str(shards.folder / f"{one.name}.tar"), one) for one in entries}
    read: list[list[Address]] = []
    with thread_pool(1) as pool:
        for process in range(processes):
            asked.clear()
            source = Counted(views, tars, pool)
            on = SimpleNamespace(num_processes=processes, process_index=process)
            learner = Learner(torch.nn.Identity(), None, teachers, None, config, on)
            batches = [*Stream(cache, teachers, views, source, pool).batches(learner.batches(order, range(3)))]
            read.append([item for batch in batches for item in batch.wanted])
            assert asked == source.asked == read[-1]
    share = 8 // processes
    assert [len(own) for own in read] == [3 * share] * processes
    together = [item for step in range(3) for own in read for item in own[step * share : (step + 1) * share]]
    assert together == order.samples(0, 24)


class Counted(ShardPixels):
    """Decodes views, and remembers which."""

    def group(self, batches, views_NHWC):
        self.asked = [*getattr(self, "asked", []), *chain(*batches)]
        return super().group(batches, views_NHWC)


def lines(out: Path) -> int:
    """How many steps a run has logged."""
    log = out / "log.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache_folder, shards):
    config = DistillConfig(
        cache=str(cache_folder), shards=shards.pattern, student="test_vit", img_size=32, patch_size=16, steps=50,
        batch_size=8, lr=3e-4, drop_path=0.1, log_every=1, save_every=5, tracker="none", threads=1, clip_grad=0.5,
        resume_if_any=True, val_shards=str(shards.folder / "000002.tar"), eval_every=20,
    )  # fmt: skip
    return config, tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(runs):
    """The run of one process at once, by its --loss-group."""
    config, folder = runs

    @lru_cache
    def run(group: int | None) -> Path:
        out = folder / f"whole-{group}"
        process = started(dataclasses.replace(config, loss_group=group, out=str(out)), 1)
        _, said = process.communicate()
        assert process.returncode == 0, said[-3000:]
        return out

    return run


@pytest.mark.slow
class TestCurve:
    """50 steps with dropped teachers and dropped paths, against one process at once."""

    def compare(self, out, whole):
        ours, theirs = log_of(out), log_of(whole)
        assert [line["step"] for line in theirs if line["kind"] == "train"] == list(range(1, 51))
        for one, other in zip(ours, theirs, strict=True):
            assert (one["kind"], one["step"]) == (other["kind"], other["step"])
            assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
            assert one.get("grad_norm") == pytest.approx(other.get("grad_norm"), abs=1e-4)
        tensors, others = load_file(out / CHECKPOINT), load_file(whole / CHECKPOINT)
        assert tensors.keys() == others.keys()
        for name in tensors:
            if name.startswith("model."):
                torch.testing.assert_close(tensors[name], others[name], atol=1e-4, rtol=0, msg=name)

    @pytest.mark.parametrize(
        ("processes", "changes"),
        [(2, {}), (4, {}), (1, {"accumulate": 4}), (2, {"shard_student": True}), (4, {"loss_group": 4}),
         (2, {"loss_group": 4, "accumulate": 4}), (2, {"shard_student": True, "accumulate": 2})],
    )  # fmt: skip
    def test_of_many_processes_and_parts_is_that_of_one(self, runs, whole, processes, changes):
        config, folder = runs
        out = folder / f"{processes}-{'-'.join(changes)}"
        process = started(dataclasses.replace(config, out=str(out), **changes), processes)
        _, said = process.communicate()
        assert process.returncode == 0, said[-3000:]
        self.compare(out, whole(changes.get("loss_group")))

    @pytest.mark.parametrize("sharded", [False, True])
    def test_of_four_processes_then_two_then_one_killed_between_is_that_of_one(self, runs, whole, sharded):
        config, folder = runs
        config = dataclasses.replace(config, out=str(folder / f"killed-{sharded}"), keep_checkpoints=3, loss_group=4)
        for processes, least in ((4, 12), (2, 30)):
            process = started(dataclasses.replace(config, shard_student=sharded), processes)
            while process.poll() is None and lines(folder / f"killed-{sharded}") < least:
                time.sleep(0.05)
            assert process.poll() is None, process.communicate()[1][-3000:]
            kill(process)
        distill.run(config)
        self.compare(folder / f"killed-{sharded}", whole(4))

    def test_of_a_finished_run_is_left_alone_by_any_number(self, runs, whole):
        config, _ = runs
        before = tree(whole(None))
        process = started(dataclasses.replace(config, out=str(whole(None))), 2)
        _, said = process.communicate()
        assert process.returncode == 0, said[-3000:]
        assert said.count("this run is finished, after step 50") == 1
        assert tree(whole(None)) == before
