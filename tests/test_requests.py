"""How many requests an object store gets: docs/SCALE.md's prices are these, times the size."""

import os
from collections import Counter
from collections.abc import Iterator

import pytest

from benchmarks.scale import tables
from pipelines import distill, extract
from tests.object_server import ObjectServer
from tests.test_readme import ROOT
from unic_cache.config import DistillConfig

TARS, CHUNKS, ARRAYS = 3, 2 + 2 + 1, 2 + 2 + 1  # of 37, 40 and 5 rows; of two teachers and of the kept views


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with ObjectServer() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield running


def asked(server: ObjectServer) -> Counter[str]:
    """How often each method met a Zarr object or a commit record; the server's list starts anew."""
    kinds = {"/c.": "object", "/commits/": "record"}
    found = Counter(
        f"{line.partition(' ')[0]} {kind}"
        for line in server.asked
        for part, kind in kinds.items()
        if part in line and "prefix=" not in line
    )
    server.asked.clear()
    return found


def test_each_object_and_record_is_written_once_and_each_chunk_read_once(server, settings, tmp_path):
    for views in (1, 2):  # the second view finds a cache that has begun
        extract.run(settings("s3://bucket/c", views=views, keep_views=True))
        found = asked(server)
        assert found["PUT object"] == TARS * ARRAYS
        assert found["PUT record"] == TARS * 3
    assert found["GET object"] == found["HEAD object"] == 0
    distill.run(
        DistillConfig(
            cache="s3://bucket/c", out=str(tmp_path / "run"), student="test_vit", img_size=32, patch_size=16, views=1,
            epochs=1, batch_size=41, lr=1e-3, tracker="none", threads=1,
        )
    )  # fmt: skip
    found = asked(server)
    assert found["HEAD object"] <= TARS * ARRAYS
    assert found["GET object"] <= (CHUNKS + TARS) * ARRAYS
    assert "PUT object" not in found


def test_the_page_has_the_tables():
    text = (ROOT / "docs/SCALE.md").read_text()
    for one in tables():
        assert one in text, "docs/SCALE.md: put in what `python -m benchmarks.scale` prints"
