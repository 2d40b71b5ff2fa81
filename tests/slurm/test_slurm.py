"""The two batch scripts of examples/slurm, run by SLURM itself on two nodes."""

import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipelines import distill
from tests.conftest import losses_of, tree
from tests.slurm.cluster import Cluster
from unic_cache.cache import open_cache
from unic_cache.config import DistillConfig

SCRIPTS = Path("examples/slurm")


def flags(**values: object) -> list[str]:
    """As a command line."""
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def test_an_array_fills_one_cache(slurm: Cluster, shards, weights, settings, cache_folder, tmp_path):
    """Three tasks on two nodes share six units; one task is killed and requeued; the bytes are those of one process."""
    own = tmp_path / "cache"
    config = settings(own)
    teachers = [word for name in config.teachers for word in ("--teacher", name)]
    files = [word for name, path in weights.items() for word in ("--weights", f"{name}={path}")]
    rest = flags(
        shards=shards.pattern, cache=own, views=2, size=32, codec="f16", batch_size=16, calibration_images=60,
        device="cpu", threads=2,
    )  # fmt: skip
    job = slurm.submit(
        SCRIPTS / "extract.sbatch", *teachers, *files, *rest,
        options=["--array=0-2", "--cpus-per-task=2"], output=tmp_path / "array-%a.txt",
    )  # fmt: skip
    wait_for((tmp_path / "array-1.txt").exists)
    slurm.run("scontrol", "requeue", f"{job}_1")
    assert slurm.ended(job) == ["COMPLETED"] * 3
    said = [(tmp_path / f"array-{task}.txt").read_text() for task in range(3)]
    for task, text in enumerate(said):
        assert f"worker {task + 1} of 3 (SLURM array): 2 of 6 units are this worker's" in text
    whole = {name: data for name, data in tree(cache_folder).items() if "center-32-0" not in name}
    assert tree(own) == whole
    assert all(len(open_cache(own).units(teacher.member)) == 6 for teacher in open_cache(own).teachers.values())


def test_a_run_on_two_nodes_goes_on_after_it_is_told_to_stop(slurm: Cluster, training, tmp_path):
    """Four processes on two nodes; SIGUSR1 stops them with a checkpoint, the job requeues itself, and ends as one."""
    config: DistillConfig = training(steps=60, batch_size=8, log_every=1, drop_path=0.1)
    alone = tmp_path / "alone"
    distill.run(training(steps=60, batch_size=8, log_every=1, drop_path=0.1, out=str(alone)))
    job = slurm.submit(
        SCRIPTS / "distill.sbatch",
        *flags(
            cache=config.cache, shards=config.shards, out=config.out, student=config.student, img_size=32,
            patch_size=16, steps=60, batch_size=8, lr=1e-3, log_every=1, save_every=100, drop_path=0.1,
            tracker="none", threads=1,
        ),
        options=["--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1"], output=tmp_path / "run.txt",
    )  # fmt: skip
    log = Path(config.out) / "log.jsonl"
    wait_for(lambda: log.exists() and len(losses_of(Path(config.out))) > 5)
    slurm.run("scancel", "--signal=USR1", job)
    assert slurm.ended(job) == ["COMPLETED"], (tmp_path / "run.txt").read_text()
    assert slurm.restarts(job) == 1
    found, wanted = losses_of(Path(config.out)), losses_of(alone)
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in wanted], abs=1e-5)
    one, four = (load_file(folder / "encoder.safetensors") for folder in (alone, Path(config.out)))
    assert max(float((one[name] - four[name]).abs().max()) for name in one) < 1e-4


def wait_for(ready) -> None:
    end = time.monotonic() + 300
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.1)
