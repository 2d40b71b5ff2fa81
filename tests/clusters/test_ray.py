"""Stages on a Ray cluster: one session of two cores on this machine, for all tests of this file."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import extract, recode, verify
from pipelines.clusters import node, ray_session
from pipelines.command import preflight
from pipelines.command.progress import Progress
from tests.conftest import VIT, make_shards, tree, write_tar
from unic_cache.config import ExtractConfig, RecodeConfig, VerifyConfig
from unic_cache.errors import CacheError, ConfigError, ImageError

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of the session; one that this process has begun before is used."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = not ray.is_initialized()
    if own:
        ray.init("local", num_cpus=2, object_store_memory=10**8, include_dashboard=False, log_to_driver=False)
    yield "auto"
    if own:
        ray.shutdown()


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("nodes", "device", "threads", "asked", "room"),
    [
        ([{"CPU": 16, "GPU": 4}], "auto", 0, (4, 1), 4),
        ([{"CPU": 16, "GPU": 4}, {"CPU": 32}], "auto", 0, (4, 1), 4),
        ([{"CPU": 16, "GPU": 4}, {"CPU": 6, "GPU": 2}], "cuda", 0, (3, 1), 6),
        ([{"CPU": 16, "GPU": 4}], "cpu", 0, (16, 0), 1),
        ([{"CPU": 16}, {"CPU": 8}], "auto", 0, (8, 0), 3),
        ([{"CPU": 16}, {"CPU": 8}], "auto", 2, (2, 0), 12),
        ([{"CPU": 0}], "cuda", 0, (1, 1), 0),
        ([{}], "auto", 0, (1, 0), 0),
    ],
)
def test_what_a_worker_asks_and_how_many_have_room(monkeypatch, nodes, device, threads, asked, room):
    monkeypatch.setattr(ray_session, "nodes", lambda: nodes)
    found = ray_session.needs(device, threads)
    assert (found.cores, found.gpus) == asked
    assert ray_session.room(found) == room


def place(config: ExtractConfig, **changes) -> dict:
    told = {
        "worker": "pipelines.extracting.filler:Filler",
        "config": config.to_json(),
        "number": 0,
        "package": node.package_mark(),
        "files": node.marks(config),
    }
    return {**told, **changes}


def test_a_node_with_another_package_or_other_files_is_told(cache_folder, settings, tmp_path, monkeypatch):
    config = settings(cache_folder)
    listeners = []
    monkeypatch.setattr(node, "listen", listeners.append)
    node.Node(place(config))
    with pytest.raises(
        ConfigError, match=r"another unic-cache \(0.1.0, .*\) than the driver \(0.0.9\); install the same"
    ):
        node.Node(place(config, package="0.0.9"))
    seen = node.marks(config)
    index = f"{cache_folder}/index/000000.json"
    assert {index, config.shards, *(file for _, file in config.weights)} == set(seen)
    for path in seen:
        with pytest.raises(CacheError, match="is another file on a worker's node"):
            node.Node(place(config, files={**seen, path: seen[path] + 1}))
    elsewhere = settings(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match=f"^{index} is not there on a worker's node.*a file system that all share"):
        node.check_same(seen, node.marks(elsewhere), "a worker's node", "the driver's")


def test_a_missing_ray_is_told_before_all_else(monkeypatch):
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'unic-cache\[ray\]'"):
        preflight.look(ExtractConfig(teachers=("dinoo",), ray="local"))


def test_ray_is_not_for_torchrun_nor_for_a_client(monkeypatch):
    with pytest.raises(ConfigError, match="run the command on a node"), ray_session.session("ray://head:10001"):
        pass
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="start one process"), ray_session.session("local"):
        pass
