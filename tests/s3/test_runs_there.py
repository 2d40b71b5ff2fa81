"""A run whose OUT is in a bucket of a real store: it outlives the gateway, is stopped, and goes on from there."""

import signal
from pathlib import Path

import pytest

from pipelines import distill
from pipelines.command.signals import Stopped
from pipelines.training.remote_run import RemoteRun
from tests.conftest import tree
from tests.s3.test_stages import Outage
from tests.test_distill import StopAfter
from unic_cache.config import DistillConfig
from unic_cache.files import object_store
from unic_cache.files.schemes import open_location

SAME = ("encoder.safetensors", "checkpoint.safetensors", "checkpoint-000009.safetensors", "snapshot.json")
MIB = 2**20


def test_a_run_outlives_the_gateway_and_is_resumed_from_the_bucket(
    gateway, bucket, settings, cache_folder, shards, tmp_path, monkeypatch
):
    """The gateway dies as a checkpoint is sent; a later signal stops the run; the next one knows only the URL."""

    def config(out: str) -> DistillConfig:
        return DistillConfig(
            cache=str(cache_folder), shards=shards.pattern, out=out, student="test_vit", img_size=32, patch_size=16,
            steps=12, batch_size=8, tracker="none", threads=2, save_every=3, keep_checkpoints=2, resume_if_any=True,
        )  # fmt: skip

    there, outage = f"{bucket}/runs/student", Outage(gateway)
    honest, calls = RemoteRun.send, iter(range(100))

    def send(remote: RemoteRun) -> None:
        if next(calls) == 1:
            outage.begin()
        honest(remote)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteRun, "send", send)
        StopAfter(patch, 8, signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped after step 8 of 12"):
            distill.run(config(there))
    outage.over()
    assert outage.count == 1
    resumed, whole = distill.run(config(there)), distill.run(config(str(tmp_path / "whole")))
    assert resumed.loss == whole.loss
    found, files = open_location(there), tree(tmp_path / "whole")
    assert [found.read(name) for name in SAME] == [files[name] for name in SAME]
    assert not [name for name in found.names() if Path(name).name.startswith(".")]


def test_a_large_checkpoint_is_sent_in_parts_and_appears_whole(bucket, monkeypatch):
    """As one above a GiB would be; 5 MiB is the least part that servers take."""
    monkeypatch.setattr(object_store, "LARGE", 11 * MIB)
    monkeypatch.setattr(object_store, "PART", 5 * MIB)
    folder, data = open_location(f"{bucket}/runs"), bytes(range(256)) * (48 * 1024)
    sent: list[bool] = []
    honest = object_store.obstore.put

    def put(*arguments, **options):
        sent.append(options["use_multipart"])
        return honest(*arguments, **options)

    monkeypatch.setattr(object_store.obstore, "put", put)
    folder.replace("checkpoint.safetensors", data)
    assert sent == [True]
    assert folder.read("checkpoint.safetensors") == data
    assert folder.read_range("checkpoint.safetensors", 5 * MIB - 3, 6) == data[5 * MIB - 3 : 5 * MIB + 3]
