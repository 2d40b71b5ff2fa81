"""Files of other programs with our names, and our own files truncated: one line, and nothing is overwritten."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from pipelines import distill, extract
from tests.conftest import tree
from unic_cache.errors import ConfigError


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shards, cache_folder):
    """A run of three steps."""
    out = tmp_path_factory.mktemp("finished") / "run"
    distill.run(config(out, shards, cache_folder))
    return out


def config(out, shards, cache, **changes):
    common = {"img_size": 32, "patch_size": 16, "steps": 3, "batch_size": 8, "log_every": 1, "lr": 1e-3, "threads": 1}
    named = {"cache": str(cache), "shards": shards.pattern, "out": str(out), "student": "test_vit", "tracker": "none"}
    return distill.DistillConfig(**{**named, **common, **changes})


@pytest.fixture
def resume(finished, tmp_path, shards, cache_folder):
    """A copy of the run, changed and resumed."""

    def again(change):
        shutil.copytree(finished, tmp_path / "run")
        change(tmp_path / "run")
        return distill.run(config(tmp_path / "run", shards, cache_folder, resume=True))

    return again


def foreign(**metadata):
    return lambda out: save_file({"w": torch.zeros(2)}, out / "checkpoint.safetensors", metadata or None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (foreign(), "checkpoint.safetensors: not a checkpoint of `unic-cache distill`"),
        (foreign(unic_cache="[1]"), "not a checkpoint of `unic-cache distill`"),
        (foreign(unic_cache='{"format": 1, "steps": 2}'), "from another student or other teachers"),
        (foreign(unic_cache='{"format": 2, "steps": 2}'), "format 2, but this release resumes from format 1"),
        (lambda out: shutil.copy(out / "encoder.safetensors", out / "checkpoint.safetensors"), "not a checkpoint"),
        (lambda out: (out / "checkpoint.safetensors").write_bytes(b""), "cannot resume from it"),
        (lambda out: (out / "config.json").write_text("[1]"), "config.json is not of a run of `unic-cache distill`"),
        (lambda out: (out / "config.json").write_text('{"architectures": []}'), "is not of a run of `unic-cache"),
        (lambda out: (out / "config.json").write_bytes(b"\xff\xfe{"), "config.json: cannot be resumed from"),
        (lambda out: (out / "config.json").unlink(), "config.json: cannot be resumed from .*; restore it"),
        (lambda out: (out / "snapshot.json").write_text("[1]"), "snapshot.json: cannot resume from it"),
    ],
)
def test_a_run_that_is_not_whole_is_not_resumed(resume, change, message):
    with pytest.raises(ConfigError, match=message):
        resume(change)


@pytest.mark.parametrize(
    "log",
    [b"\xff\xfe junk\n", b'[1]\n3\nnull\n{"kind": [], "step": 1}\n', b'{"kind": "train", "step": 1, "loss": nu'],
)
def test_a_log_of_something_else_costs_no_run(resume, log, tmp_path):
    def change(out):
        (out / "encoder.safetensors").unlink()  # else the run is finished
        (out / "log.jsonl").write_bytes(log)

    assert resume(change).steps == 3


def test_a_log_that_is_ahead_of_the_checkpoint_has_each_step_once(finished, tmp_path, shards, cache_folder):
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill.RunState, "save", stop_at(2))
        with pytest.raises(KeyboardInterrupt):
            distill.run(config(out, shards, cache_folder, save_every=1))
    with open(out / "log.jsonl", "a") as log:
        log.write('{"kind": "train", "step": 3, "loss": 9.0}\n{"kind": "tr')
    distill.run(config(out, shards, cache_folder, resume=True))
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[2]["loss"] != 9.0
    assert (out / "checkpoint.safetensors").read_bytes() == (finished / "checkpoint.safetensors").read_bytes()


def stop_at(step):
    honest = distill.RunState.save

    def save(state, steps):
        honest(state, steps)
        if steps == step:
            raise KeyboardInterrupt

    return save


@pytest.mark.parametrize("name", ["config.json", "encoder.safetensors"])
def test_a_new_run_overwrites_nothing_of_others(tmp_path, shards, cache_folder, name):
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match=rf"{name}.* choose another --out"):
        distill.run(config(tmp_path, shards, cache_folder))
    assert tree(tmp_path) == {name: b'{"mine": 1}'}


@pytest.mark.parametrize("name", ["000000.tar", "index.json", "checkpoint.safetensors"])
def test_a_cache_is_made_in_a_folder_of_its_own(tmp_path, settings, name):
    (tmp_path / name).write_text("others'")
    with pytest.raises(ConfigError, match=rf"holds {name} and no cache; choose a folder of its own with --cache"):
        extract.run(settings(tmp_path))
    assert tree(tmp_path) == {name: b"others'"}
