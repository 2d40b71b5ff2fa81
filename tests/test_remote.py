"""Every command with cache and shards on an object store writes the same bytes as on disk."""

from pathlib import Path

import pytest

from pipelines import distill, evaluate, extract, inspect
from tests.conftest import VIT, tree
from tests.object_server import ObjectServer
from unic_cache.config import DistillConfig, EvaluateConfig, InspectConfig
from unic_cache.errors import ShardError
from unic_cache.views.shards import describe, expand, scan


@pytest.fixture
def server(monkeypatch, shards):
    """A small S3 server with the tars in it."""
    with ObjectServer() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        for path in sorted(shards.folder.glob("*.tar")):
            running.objects[f"tars/{path.name}"] = path.read_bytes()
        yield running


def test_patterns_and_headers_are_read_from_the_store(server, shards):
    here = expand(shards.pattern)
    for pattern in ("s3://bucket/tars/*.tar", "s3://bucket/tars/{000000..000002}.tar"):
        there = expand(pattern)
        assert [Path(path).name for path in there] == [Path(path).name for path in here]
        assert describe(there) == describe(here)
    assert scan(there[0]) == scan(here[0])
    with pytest.raises(ShardError, match=r"no shard at s3://bucket/tars/000003\.tar"):
        expand("s3://bucket/tars/{000002..000003}.tar")
    with pytest.raises(ShardError, match="no shard matches"):
        expand("s3://bucket/empty/*.tar")
    with pytest.raises(ShardError, match="only the last part may be a glob"):
        expand("s3://bucket/*/000000.tar")


def test_both_stages_give_the_same_bytes_as_on_a_disk(server, settings, cache_folder, shards, tmp_path):
    tars = "s3://bucket/tars/*.tar"
    done = extract.run(settings("s3://bucket/cache", shards=tars))
    assert done.units == 6
    extract.run(settings("s3://bucket/cache", shards=tars, recipe="center", views=1))
    kept = {name.removeprefix("cache/"): data for name, data in server.objects.items() if name.startswith("cache/")}
    assert kept == tree(cache_folder)
    assert extract.run(settings("s3://bucket/cache", shards=tars)).skipped == 6
    runs = {}
    for where, pattern in (("s3://bucket/cache", tars), (str(cache_folder), shards.pattern)):
        runs[where] = distill.run(
            DistillConfig(
                cache=where, shards=pattern, out=str(tmp_path / str(len(runs))), student="test_vit", img_size=32,
                patch_size=16, steps=3, batch_size=8, tracker="none", threads=2,
            )
        )  # fmt: skip
    here, there = (run.encoder.read_bytes() for run in runs.values())
    assert here == there
    result = evaluate.run(EvaluateConfig((str(tmp_path / "0"),), shards=tars, cache="s3://bucket/cache"))
    assert result.images == 82
    report = inspect.run(InspectConfig("s3://bucket/cache"))
    assert report["teachers"][VIT]["views"]["unic-32-0-001"]["done"] == 3


def test_a_store_that_fails_now_and_then_changes_nothing(server, settings, cache_folder):
    """Repeated faults of every kind: refused, or dropped before or after the work."""
    server.faults.extend([503, "", "", "drop", "", "", "lose", "", "", 500, "", ""] * 10)
    extract.run(settings("s3://bucket/cache", shards="s3://bucket/tars/*.tar"))
    extract.run(settings("s3://bucket/cache", shards="s3://bucket/tars/*.tar", recipe="center", views=1))
    kept = {name.removeprefix("cache/"): data for name, data in server.objects.items() if name.startswith("cache/")}
    assert kept == tree(cache_folder)
