"""What is checked before a stage begins on Ray: nodes, packages and files. No cluster is started here."""

import pytest

from pipelines.clusters import node, ray_session
from pipelines.command import preflight
from unic_cache.config import ExtractConfig
from unic_cache.errors import CacheError, ConfigError


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
