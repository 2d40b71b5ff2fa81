"""Two runs in one folder: the second is refused, and what a killed one left stands in nobody's way."""

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

from pipelines import distill, shard
from pipelines.command.claim import CLAIM, claimed
from tests.conftest import picture, tree
from unic_cache.config import ShardConfig
from unic_cache.errors import ConfigError
from unic_cache.views.shards import UNFINISHED


def test_the_second_is_refused_and_told_who_is_there(tmp_path):
    with claimed(tmp_path / "out"):
        held = tree(tmp_path)
        with (
            pytest.raises(ConfigError, match=rf"out: process {os.getpid()} on \S+ \(since .*\) is writing there"),
            claimed(tmp_path / "out"),
        ):
            pass
        assert tree(tmp_path) == held
    assert tree(tmp_path) == {}
    with claimed(tmp_path / "out"):
        pass


def test_an_error_inside_frees_the_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path):
        raise KeyboardInterrupt
    with claimed(tmp_path):
        pass


@pytest.mark.parametrize("left", [b"", b"{", b"[]", b'{"process": 1, "host": "elsewhere", "since": "then"}'])
def test_what_a_killed_run_left_is_taken_over(tmp_path, capsys, left):
    (tmp_path / CLAIM).write_bytes(left)
    with claimed(tmp_path):
        assert json.loads((tmp_path / CLAIM).read_bytes())["process"] == os.getpid()
    assert ("the run of process 1 on elsewhere (since then) did not end" in capsys.readouterr().err) == (b"1" in left)


def test_a_claim_that_its_holder_removed_meanwhile_is_no_claim(tmp_path, monkeypatch):
    """The file that was opened is gone from its name before it is locked: another one must be made."""
    honest, calls = fcntl.flock, []

    def slow(descriptor: int, how: int) -> None:
        honest(descriptor, how)
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / CLAIM).unlink()

    monkeypatch.setattr(fcntl, "flock", slow)
    with claimed(tmp_path):
        assert (tmp_path / CLAIM).exists()
    assert len(calls) == 2


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys, number):
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claimed(tmp_path), pytest.raises(ConfigError, match="is writing there"), claimed(tmp_path):
        pass
    assert capsys.readouterr().err.count("this file system has no locks") == 1


def test_a_file_in_the_way_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(ConfigError, match="is a file, or is below one"), claimed(folder):
            pass


def test_a_run_in_a_folder_that_is_held_changes_nothing(training, tmp_path):
    with claimed(tmp_path / "run"):
        before = tree(tmp_path)
        with pytest.raises(ConfigError, match="is writing there"):
            distill.run(training(steps=1, tracker="tensorboard"))
        assert tree(tmp_path) == before
    distill.run(training(steps=1)).encoder.unlink()  # else the run is finished, and asks for nothing
    with claimed(tmp_path / "run"), pytest.raises(ConfigError, match="is writing there"):
        distill.run(training(steps=1, resume=True))
    assert CLAIM not in tree(tmp_path / "run")


def test_two_that_shard_into_one_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(3):
        picture(number).save(tmp_path / f"images/{number}.png")
    config = ShardConfig(str(tmp_path / "images"), str(tmp_path / "out"))
    with claimed(tmp_path / "out"):
        (tmp_path / "out" / UNFINISHED).write_text(json.dumps(config.to_json(), sort_keys=True))
        with pytest.raises(ConfigError, match="is writing there"):
            shard.run(config)
    assert shard.run(config).images == 3
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"000000.tar", "index.json"}
