"""Both stages on a real object store whose gateway dies in the middle of each."""

import threading
from pathlib import Path

import pytest

from pipelines import distill, evaluate, extract
from tests.conftest import tree
from unic_cache.config import DistillConfig, EvaluateConfig
from unic_cache.files.schemes import open_location

OUTAGE = 10.0  # seconds; the contract suite survives sixty


class Outage:
    """Kills the gateway when told, and starts it again after a while."""

    def __init__(self, gateway) -> None:
        self.gateway = gateway
        self.count = 0
        self._timer: threading.Timer | None = None

    def begin(self) -> None:
        self.gateway.kill()
        self.count += 1
        self._timer = threading.Timer(OUTAGE, self.gateway.restart)
        self._timer.start()

    def over(self) -> None:
        if self._timer is not None:
            self._timer.join()


@pytest.fixture
def tars(bucket, shards) -> str:
    folder = open_location(f"{bucket}/tars")
    for path in sorted(Path(shards.folder).glob("*.tar")):
        assert folder.create(path.name, path.read_bytes())
    return f"{bucket}/tars/*.tar"


def test_extraction_outlives_the_gateway_and_gives_the_same_bytes(
    gateway, bucket, tars, settings, cache_folder, monkeypatch
):
    outage = Outage(gateway)
    honest, calls = extract.UnitRows.commit, iter(range(100))

    def commit(rows):
        if next(calls) == 2:
            outage.begin()
        return honest(rows)

    monkeypatch.setattr(extract.UnitRows, "commit", commit)
    extract.run(settings(f"{bucket}/cache", shards=tars))
    outage.over()
    assert outage.count == 1
    extract.run(settings(f"{bucket}/cache", shards=tars, recipe="center", views=1))
    folder = open_location(f"{bucket}/cache")
    assert {name: folder.read(name) for name in folder.names()} == tree(cache_folder)


def test_distillation_outlives_the_gateway_and_trains_the_same_student(
    gateway, bucket, tars, settings, cache_folder, shards, tmp_path, monkeypatch
):
    extract.run(settings(f"{bucket}/cache", shards=tars))
    extract.run(settings(f"{bucket}/cache", shards=tars, recipe="center", views=1))

    def config(cache: str, pattern: str, out: str) -> DistillConfig:
        return DistillConfig(
            cache=cache, shards=pattern, out=str(tmp_path / out), student="test_vit", img_size=32, patch_size=16,
            steps=12, batch_size=8, tracker="none", threads=2,
        )  # fmt: skip

    outage = Outage(gateway)
    honest, calls = distill.set_rate, iter(range(100))

    def set_rate(*arguments):
        if next(calls) == 5:
            outage.begin()
        return honest(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(distill, "set_rate", set_rate)
        there = distill.run(config(f"{bucket}/cache", tars, "there"))
    outage.over()
    assert outage.count == 1
    here = distill.run(config(str(cache_folder), shards.pattern, "here"))
    assert there.encoder.read_bytes() == here.encoder.read_bytes()
    result = evaluate.run(EvaluateConfig((str(tmp_path / "there"),), shards=tars, cache=f"{bucket}/cache"))
    assert result.images == 82
