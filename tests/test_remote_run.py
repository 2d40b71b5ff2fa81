"""OUT in an object store: the same files as in a folder, resumed from there; of two runs there the later goes on."""

import dataclasses
import json
import signal
import tempfile

import pytest
from click.testing import CliRunner
from obstore.store import MemoryStore

import cli
from pipelines import distill
from pipelines.command.signals import Stopped
from pipelines.training.remote_run import CLAIM, RemoteRun, folder_of
from tests.conftest import losses_of, tree
from tests.launching import flags_of
from tests.test_distill import StopAfter
from unic_cache.config import DistillConfig
from unic_cache.errors import ConfigError
from unic_cache.files.object_store import STORES, ObjectFolder

URL = "s3://bucket/runs/student"


@pytest.fixture
def there(monkeypatch, tmp_path) -> ObjectFolder:
    """The folder at URL, in memory; temporary folders are below `tmp_path`."""
    store = MemoryStore()
    monkeypatch.setitem(STORES, "s3", lambda url: store)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return ObjectFolder(URL, store)


def files(folder: ObjectFolder) -> dict[str, bytes | None]:
    return {name: folder.read(name) for name in folder.names()}


@pytest.mark.usefixtures("drawn")
def test_a_run_in_a_store_is_stopped_and_goes_on_as_one_in_a_folder(there, training, tmp_path):
    config = training(
        out=URL, steps=4, log_every=1, save_every=1, keep_checkpoints=2, resume_if_any=True, tracker="tensorboard"
    )
    with pytest.MonkeyPatch.context() as patch:
        StopAfter(patch, 2, signal.SIGTERM)
        stopped = CliRunner().invoke(cli.main, ["distill", *flags_of(config)])
    assert (stopped.exit_code, stopped.stderr.count("stopped after step 2 of 4")) == (143, 1)
    assert not list((tmp_path / "tmp").iterdir())
    assert f"into {URL}" in stopped.stderr
    kept = {"checkpoint.safetensors", "checkpoint-000001.safetensors", "config.json", "snapshot.json", "log.jsonl"}
    assert kept < set(files(there))
    with pytest.raises(ConfigError, match=f"^{URL} already holds a run; continue it with --resume"):
        distill.run(dataclasses.replace(config, resume_if_any=False))
    with pytest.raises(ConfigError, match=f"^{URL}: the run began with seed 0, not 1"):
        distill.run(dataclasses.replace(config, seed=1))
    there.delete("checkpoint.safetensors")
    ended = CliRunner().invoke(cli.main, ["distill", *flags_of(config)])
    assert ended.exit_code == 0, ended.output
    assert f"the encoder is {URL}/encoder.safetensors. Copy it here, and load it with\n  timm.create" in ended.stdout
    assert "checkpoint_path='encoder.safetensors'" in ended.stdout
    assert f"{URL} has no checkpoint.safetensors, " in ended.stderr
    found = files(there)
    again = CliRunner().invoke(cli.main, ["distill", *flags_of(config)])
    assert (again.exit_code, again.stdout) == (0, ended.stdout)
    assert f"{URL}: this run is finished, after step 4" in again.stderr
    assert files(there) == found

    distill.run(dataclasses.replace(config, out=str(tmp_path / "whole")))
    whole = tree(tmp_path / "whole")
    for name in ("encoder.safetensors", "checkpoint.safetensors", "checkpoint-000003.safetensors", "snapshot.json"):
        assert found[name] == whole[name], name
    assert {name for name in found if "tensorboard" not in name} == {
        name for name in whole if "tensorboard" not in name and name != "model.safetensors"
    }
    assert any("tensorboard" in name for name in found)
    assert json.loads(found["config.json"])["out"] == URL
    (tmp_path / "there").mkdir()
    (tmp_path / "there/log.jsonl").write_bytes(found["log.jsonl"])
    assert losses_of(tmp_path / "there") == losses_of(tmp_path / "whole")


def test_of_two_runs_the_later_goes_on_and_the_other_sends_nothing_more(there):
    with folder_of(URL, main=True) as (first, one):
        (first / "log.jsonl").write_text("first")
        one.take()
        one.send()
        with folder_of(URL, main=True) as (second, other):
            assert (second / "log.jsonl").read_text() == "first"
            other.take()
            (first / "log.jsonl").write_text("first, later")
            (second / "log.jsonl").write_text("second")
            other.send()
            with pytest.raises(ConfigError, match=rf"{URL}: another run has begun there \(process \d+ on"):
                one.send()
        assert there.read("log.jsonl") == b"second"
    assert CLAIM not in files(there)


def test_what_a_checkpoint_needs_is_sent_before_it_and_what_follows_after(there, monkeypatch):
    sent: list[str] = []
    monkeypatch.setattr(ObjectFolder, "replace", lambda self, name, data: sent.append(name))
    monkeypatch.setattr(RemoteRun, "_check_claim", lambda self: None)
    names = [
        "snapshot.json",
        "log.jsonl",
        "checkpoint-000100.safetensors",
        "checkpoint.safetensors",
        "encoder.safetensors",
    ]
    with folder_of(URL, main=True) as (folder, remote):
        for name in reversed(names):
            (folder / name).write_bytes(b"x")
        remote.send()
        assert sent == names
        remote.send()
        assert sent == names


@pytest.mark.parametrize("kind", [Stopped, RuntimeError])
def test_errors_name_the_store_and_not_the_copy(there, kind):
    def fail() -> None:
        with folder_of(URL, main=True) as (folder, _):
            error = kind(f"{folder} has it")
            error.add_note(f"look at {folder}")
            raise error

    with pytest.raises(kind) as stopped:
        fail()
    assert (str(stopped.value), stopped.value.__notes__) == (f"{URL} has it", [f"look at {URL}"])


def test_folders_that_cannot_be_written_or_must_be_local_are_refused():
    with pytest.raises(
        ConfigError, match="out https://host/run: web servers are read only; use a path, s3:// or gs://"
    ):
        DistillConfig(out="https://host/run")
    with pytest.raises(ConfigError, match="--online keeps the teachers' calibrations in --out, which must be a local"):
        DistillConfig(out=URL, online=True, teachers=("dino",))
