"""Stages on a Ray cluster of this machine: the bytes, words and numbers of one process."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import extract, recode, verify
from pipelines.command.progress import Progress
from tests.conftest import VIT, make_shards, tree, write_tar
from unic_cache.config import RecodeConfig, VerifyConfig
from unic_cache.errors import ImageError

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


def actors() -> list[int]:
    """The process of every worker of this stage, which Ray names after its class, by its own number."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (folder / "cmdline").exists():
            try:
                if (folder / "cmdline").read_bytes().startswith(b"ray::Shell"):
                    found.append(int(folder.name))
            except OSError:
                continue  # it has ended
    return found


def test_any_worker_makes_the_bytes_of_one_process_also_after_one_is_killed(
    cluster, settings, tmp_path, monkeypatch, capsys
):
    shards = make_shards(tmp_path / "shards", (20, 4, 17))
    write_tar(shards.folder / "000001.tar", [("good", b"no image", 0), *[(f"b{n}", b"none", 1) for n in range(3)]])
    chosen = {"shards": shards.pattern, "views": 3, "threads": 1}
    one = extract.run(settings(tmp_path / "one", **chosen))
    honest, killed = Progress.advance, []

    def advance(self, count):
        honest(self, count)
        if not killed and self.label == "extract":
            killed.extend(actors())
            for process in killed:
                os.kill(process, signal.SIGKILL)

    monkeypatch.setattr(Progress, "advance", advance)
    capsys.readouterr()
    two = extract.run(settings(tmp_path / "two", **chosen, ray=cluster))
    assert killed
    assert one == two
    assert (two.units, len(two.bad)) == (9, 4)
    assert tree(tmp_path / "one") == {
        name: data for name, data in tree(tmp_path / "two").items() if ".tmp-" not in name
    }
    said = capsys.readouterr().err
    assert f"extract: {VIT}, " in said
    assert "Traceback" not in said
    with pytest.raises(ImageError, match=r"000001, row 0: good.* Without --strict it is skipped and counted$"):
        extract.run(settings(tmp_path / "two", **{**chosen, "views": 4}, ray=cluster, strict=True))


def test_recode_and_verify_on_ray_say_what_they_say_alone(cluster, settings, tmp_path):
    extract.run(settings(tmp_path / "cache", keep_views=True))
    found = [
        recode.run(RecodeConfig(str(tmp_path / "cache"), str(tmp_path / name), codec="int8", threads=1, ray=ray))
        for name, ray in (("alone", None), ("shared", cluster))
    ]
    assert found[0] == found[1]
    assert tree(tmp_path / "alone") == tree(tmp_path / "shared")
    objects = sorted((tmp_path / "shared").glob("*/features.zarr/*/*/patch/c.*"))
    for path in objects[::3]:
        data = bytearray(path.read_bytes())
        data[7] ^= 1
        path.write_bytes(bytes(data))
    reports = [verify.run(VerifyConfig(str(tmp_path / "shared"), threads=1, ray=ray)) for ray in (None, cluster)]
    assert reports[0].broken
    alone, shared = ([str(finding) for finding in report.broken] for report in reports)
    assert alone == shared
    numbers = [(report.units, report.rows, report.bytes, report.state) for report in reports]
    assert numbers[0] == numbers[1]


def test_an_array_and_ray_fill_one_cache_together(cluster, settings, tmp_path):
    """Both do all units of task 0 of 2, at once: what both make is stored once."""
    from multiprocessing import get_context

    one = extract.run(settings(tmp_path / "one", threads=1))
    task = get_context("spawn").Process(
        target=extract.run, args=(settings(tmp_path / "both", threads=1, worker_index=0, num_workers=2),)
    )
    task.start()
    by_ray = extract.run(settings(tmp_path / "both", threads=1, ray=cluster))
    task.join()
    assert task.exitcode == 0
    assert by_ray.units + by_ray.skipped == one.units
    assert tree(tmp_path / "one") == tree(tmp_path / "both")
    assert verify.run(VerifyConfig(str(tmp_path / "both"), threads=1)).state == "whole"


def test_the_command_starts_ray_and_stops_it_again(settings, cache_folder, tmp_path):
    config = settings(tmp_path / "cache")
    words = [word for name, path in config.weights for word in ("--teacher", name, "--weights", f"{name}={path}")]
    for name in ("shards", "cache", "views", "size", "codec", "batch_size", "calibration_images", "device"):
        words += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
    command = [sys.executable, "-m", "cli", "extract", *words, "--threads", "1", "--ray", "local"]
    before = started()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {name: data for name, data in tree(cache_folder).items() if "center-32-0" not in name} == tree(
        tmp_path / "cache"
    )
    assert started() == before
    wrong = subprocess.run([*command, "--views", "100000000"], capture_output=True, text=True, check=False, timeout=300)
    assert wrong.returncode in {1, 2}
    assert "Traceback" not in wrong.stderr


def started() -> int:
    """How many of Ray's daemons run."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            found += b"raylet" in path.read_bytes()
    return found
