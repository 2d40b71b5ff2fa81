"""Runs that are stopped from outside, and go on: signals, exit codes, checkpoints that are kept, one command line."""

import dataclasses
import json
import signal
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import cli
from pipelines import distill
from pipelines.command import signals
from pipelines.command.failures import clear_errors
from pipelines.command.run_folder import check_run
from pipelines.command.signals import SIGNALS, Stopped, stop_on_signal
from pipelines.training.processes import Meetings
from tests.conftest import log_of, losses_of
from tests.launching import flags_of
from tests.test_distill import StopAfter
from unic_cache.config import DistillConfig
from unic_cache.errors import ConfigError
from unic_cache.student.checkpoint import (
    checkpoint_steps,
    load_checkpoint,
    mend_checkpoint,
    save_checkpoint,
    state_tensors,
    trained_weights,
)
from unic_cache.student.run_files import CHECKPOINT, CONFIG


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_the_exit_code_tells_the_signal(number, code):
    with pytest.raises(SystemExit) as ended, clear_errors():
        raise Stopped("stopped after step 3", number)
    assert ended.value.code == code
    with pytest.raises(SystemExit) as ended, clear_errors():
        raise KeyboardInterrupt
    assert ended.value.code == 130


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_a_launcher_repeats_does_not_stop_the_step(number, monkeypatch):
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: 0.0))
    with stop_on_signal() as stop:
        assert not stop.made
        for one in (number, number, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(one)
        assert (stop.made, stop.number) == (True, number)


def test_a_second_ctrl_c_stops_at_once(monkeypatch):
    now = iter([10.0, 10.5, 11.0])
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: next(now)))
    with stop_on_signal():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("stopped", [True, False])
def test_a_signal_while_the_threads_end_does_not_replace_what_ended_the_run(training, monkeypatch, stopped):
    """As from torchrun, which sends SIGTERM to every process once one has failed or stopped."""

    class Signalled(ThreadPoolExecutor):
        def __exit__(self, *error):
            signal.raise_signal(signal.SIGTERM)
            return super().__exit__(*error)

    def fail(*arguments):
        raise RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:4711")

    monkeypatch.setattr(distill, "thread_pool", Signalled)
    if stopped:
        StopAfter(monkeypatch, 1, signal.SIGUSR1)
    else:
        monkeypatch.setattr(distill, "learn", fail)
    ended = CliRunner().invoke(cli.main, ["distill", *flags_of(training(steps=2))])
    code, said = (138, "stopped after step 1 of 2") if stopped else (1, "Connection closed by peer")
    assert (ended.exit_code, ended.stderr.count(said)) == (code, 1)


class TestMeetings:
    """Four processes, simulated: at a meeting each adds what it says, and gets the mean."""

    def meet(self, monkeypatch, seconds: float, steps: int, asked: dict[int, int]) -> tuple[list[int], int]:
        """(the steps after which they met, the signal of the last one), steps of `seconds` long."""
        clock, met, said = SimpleNamespace(now=0.0), [], []
        monkeypatch.setattr("pipelines.training.processes.time", SimpleNamespace(monotonic=lambda: clock.now))

        def reduce(own: torch.Tensor, how: str) -> torch.Tensor:
            assert how == "mean"
            said.append(own)
            return own if len(said) % 4 else torch.stack(said[-4:]).mean(dim=0)

        accelerator = SimpleNamespace(num_processes=4, device=torch.device("cpu"), reduce=reduce)
        ranks = [Meetings(accelerator, 100) for _ in range(4)]
        for done in range(101, 101 + steps):
            clock.now += seconds
            before = len(said)
            last = [one.agreed(asked.get(rank, 0), done) for rank, one in reversed([*enumerate(ranks)])][-1]
            met += [done] if len(said) > before else []
            for one in ranks:  # those that spoke first have heard only themselves
                one._next, one._last, one._since = ranks[0]._next, ranks[0]._last, ranks[0]._since
            if last:
                return met, last
        return met, 0

    def test_are_seconds_apart_whatever_a_step_takes(self, monkeypatch):
        assert self.meet(monkeypatch, 6.0, 5, {})[0] == [101, 102, 103, 104, 105]
        met, _ = self.meet(monkeypatch, 0.05, 1000, {})
        assert met[:4] == [101, 103, 107, 115]
        assert {after - before for before, after in pairwise(met[6:])} <= {99, 100, 101}

    def test_one_process_that_is_asked_stops_all(self, monkeypatch):
        assert self.meet(monkeypatch, 0.5, 50, {2: signal.SIGUSR1}) == ([101], signal.SIGUSR1)
        assert self.meet(monkeypatch, 0.5, 50, {1: signal.SIGUSR1, 3: signal.SIGTERM})[1] == signal.SIGUSR1


def damage(path: Path) -> None:
    """Flip a bit of the last tensor, in another file under that name."""
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (damage, "{}: damaged, its bytes are not as they were written; going on from the one before, after step 2"),
        (Path.unlink, "has no checkpoint.safetensors, which holds the projectors and AdamW's state; going on from the"),
    ],
)
def test_one_command_line_begins_goes_on_and_ends(training, tmp_path, shards, fault, said):
    """Stopped where it validates, stopped again, its newest checkpoint damaged or lost: as if nothing had happened."""
    out, held_out = tmp_path / "run", str(shards.folder / "000002.tar")
    config = training(
        steps=4, log_every=1, eval_every=2, save_every=1, val_shards=held_out, keep_checkpoints=2, resume_if_any=True
    )
    for steps, number, code, done in ((2, signal.SIGUSR1, 138, 2), (1, signal.SIGTERM, 143, 3)):
        with pytest.MonkeyPatch.context() as patch:
            StopAfter(patch, steps, number)
            stopped = CliRunner().invoke(cli.main, ["distill", *flags_of(config)])
        assert (stopped.exit_code, stopped.stderr.count(f"stopped after step {done} of 4")) == (code, 1)
    assert [record["kind"] for record in log_of(out)] == ["train", "train", "val", "train"]
    fault(out / CHECKPOINT)
    ended = CliRunner().invoke(cli.main, ["distill", *flags_of(config)])
    assert ended.exit_code == 0, ended.output
    assert said.format(out / CHECKPOINT) in ended.stderr
    with pytest.raises(ConfigError, match="already holds a run; continue it with --resume"):
        distill.run(dataclasses.replace(config, resume_if_any=False))

    distill.run(dataclasses.replace(config, out=str(tmp_path / "whole")))
    assert losses_of(out) == losses_of(tmp_path / "whole")
    one, other = (load_file(tmp_path / name / CHECKPOINT) for name in ("run", "whole"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_step_is_saved_before_its_validation(training, tmp_path, shards, monkeypatch):
    """A validation takes long, and a process may be killed in it."""
    held_out = str(shards.folder / "000002.tar")
    config = training(steps=4, log_every=1, eval_every=2, save_every=2, val_shards=held_out, resume_if_any=True)
    saved = []

    def killed(*_):
        saved.append(checkpoint_steps(tmp_path / "run"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(distill, "validate", killed)
        with pytest.raises(KeyboardInterrupt):
            distill.run(config)
    assert saved == [2]
    distill.run(config)
    assert [(record["kind"], record["step"]) for record in log_of(tmp_path / "run") if record["kind"] == "val"] == [
        ("val", 2),
        ("val", 4),
    ]


class TestKept:
    """Checkpoints of a layer whose weights are all the number of steps."""

    def save(self, out: Path, steps: int, keep: int) -> None:
        layer = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(layer.weight, steps)
        adamw = torch.optim.AdamW(layer.parameters())
        save_checkpoint(out, steps, dict(state_tensors(layer, adamw)), {}, keep)

    def load(self, out: Path) -> tuple[int, float]:
        layer = torch.nn.Linear(2, 2)
        steps, _ = load_checkpoint(out, layer, torch.optim.AdamW(layer.parameters()))
        return steps, layer.weight[0, 0].item()

    def names(self, out: Path) -> list[str]:
        assert not list(out.glob(".tmp*"))
        return sorted(path.name for path in out.iterdir())

    def test_are_the_newest(self, tmp_path):
        for steps in (1, 2, 3, 4):
            self.save(tmp_path, steps, 3)
        older = ["checkpoint-000002.safetensors", "checkpoint-000003.safetensors"]
        assert self.names(tmp_path) == [*older, CHECKPOINT]
        assert self.load(tmp_path) == (4, 4)
        self.save(tmp_path, 4, 3)  # again, as when a run has ended
        assert self.names(tmp_path) == [*older, CHECKPOINT]
        self.save(tmp_path, 5, 1)
        assert self.names(tmp_path) == [CHECKPOINT]

    @pytest.mark.parametrize("fault", [damage, lambda path: path.write_bytes(path.read_bytes()[:-4]), Path.unlink])
    def test_a_damaged_one_is_replaced_by_the_newest_sound_one(self, tmp_path, fault):
        for steps in (1, 2, 3, 4):
            self.save(tmp_path, steps, 4)
        assert mend_checkpoint(tmp_path) is None
        damage(tmp_path / "checkpoint-000003.safetensors")
        fault(tmp_path / CHECKPOINT)
        assert mend_checkpoint(tmp_path).endswith("; going on from the one before, after step 2")
        assert self.load(tmp_path) == (2, 2)
        self.save(tmp_path, 3, 3)
        assert self.names(tmp_path) == ["checkpoint-000001.safetensors", "checkpoint-000002.safetensors", CHECKPOINT]
        assert self.load(tmp_path) == (3, 3)

    def test_the_older_ones_alone_are_a_run(self, tmp_path):
        """Which a new one would overwrite."""
        config = DistillConfig(keep_checkpoints=2)
        (tmp_path / CONFIG).write_text(json.dumps(config.to_json()))
        assert not check_run(config, tmp_path)
        for steps in (1, 2):
            self.save(tmp_path, steps, 2)
        (tmp_path / CHECKPOINT).unlink()
        with pytest.raises(ConfigError, match="already holds a run; continue it with --resume"):
            check_run(config, tmp_path)
        assert check_run(dataclasses.replace(config, resume=True), tmp_path)
        assert check_run(dataclasses.replace(config, resume_if_any=True), tmp_path)
        with pytest.raises(ConfigError, match=r"restore it, or continue the run with --resume, .*-000001\.safetensors"):
            trained_weights(tmp_path)
        damage(tmp_path / "checkpoint-000001.safetensors")
        with pytest.raises(ConfigError, match="no older checkpoint there is sound; restore a copy of one"):
            mend_checkpoint(tmp_path)

    def test_a_damaged_one_without_another_is_refused(self, tmp_path):
        self.save(tmp_path, 1, 1)
        damage(tmp_path / CHECKPOINT)
        assert mend_checkpoint(tmp_path) is None
        message = r"checkpoint\.safetensors: damaged, its bytes are not as they were written; restore a copy"
        with pytest.raises(ConfigError, match=message):
            self.load(tmp_path)

    def test_where_there_are_no_links_they_are_copies(self, tmp_path, monkeypatch):
        def refused(*_: object) -> None:
            raise PermissionError

        self.save(tmp_path, 1, 2)
        monkeypatch.setattr("os.link", refused)
        monkeypatch.setattr("unic_cache.files.local.give_name", lambda temporary, target: True)
        self.save(tmp_path, 2, 2)
        assert self.names(tmp_path) == ["checkpoint-000001.safetensors", CHECKPOINT]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema": 0.5}, "--ema does not work with --shard-student: each process has a part of the weights"),
        ({"compile": True}, "--compile does not work with --shard-student"),
        ({"precision": "fp16"}, "--precision fp16 does not work with --shard-student: use bf16"),
        ({"knn_shards": "a.tar"}, "--knn-shards does not work with --shard-student: .*use `evaluate`"),
    ],
)
def test_what_needs_a_whole_student_is_refused_with_parts_of_it(training, changes, message):
    with pytest.raises(ConfigError, match=message):
        training(shard_student=True, **changes)


def test_parts_of_a_student_need_several_processes(training):
    with pytest.raises(ConfigError, match="--shard-student gives each process a part, but there is one process"):
        distill.run(training(shard_student=True))
