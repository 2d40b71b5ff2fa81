"""Processes that train together, and those that think they do: joined, refused or told."""

import dataclasses
import os
import re
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from pipelines import distill
from pipelines.command.device import pick_device
from pipelines.training.processes import LAUNCHED, MPI_RANK, MPI_SIZE, check_agreed, make_accelerator, on_main
from tests.conftest import log_of
from tests.launching import started
from unic_cache.config import DistillConfig
from unic_cache.errors import ConfigError, ShardError

NAMES = ["RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", *LAUNCHED, *MPI_RANK, *MPI_SIZE]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in [*NAMES, *(name for name in os.environ if name.startswith("ACCELERATE_"))]:
        monkeypatch.delenv(name, raising=False)


def made(tmp_path: Path, **changes):
    return make_accelerator(DistillConfig(tracker="none", **changes), tmp_path)


@pytest.mark.parametrize("variables", [{}, {"LOCAL_RANK": "0"}, {"LOCAL_RANK": "1", "MASTER_ADDR": "localhost"}])
def test_processes_that_nobody_would_join_are_refused(training, tmp_path, monkeypatch, variables):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is 2 .* none would join .*torchrun --nproc_per_node 2 -m cli"):
        distill.run(training())
    assert not (tmp_path / "run").exists()


def test_processes_that_accelerate_does_not_join_are_refused(tmp_path, monkeypatch):
    """As with ranks beside a GPU that no launcher has given a local rank, or an MPI that accelerate leaves alone."""
    monkeypatch.setattr("pipelines.training.processes.world_size", lambda: 2)
    monkeypatch.setattr("pipelines.training.processes.check_launched", lambda world: None)
    monkeypatch.setattr("accelerate.state.PartialState._prepare_backend", lambda *a: (None, "NO"))
    with pytest.raises(ConfigError, match=r"says 2 processes .* joins 1, and each would train alone"):
        made(tmp_path)


def test_a_port_where_nobody_can_meet_is_refused(tmp_path, monkeypatch):
    meeting = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in meeting.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="MASTER_PORT is 0"):
        made(tmp_path)


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("x", "2"), ("0", "many")])
def test_ranks_that_make_no_sense_are_refused(tmp_path, monkeypatch, rank, size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(ConfigError, match="in the environment"):
        made(tmp_path)


@pytest.mark.parametrize("what", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_what_would_change_the_run_altogether_is_refused(tmp_path, monkeypatch, what):
    monkeypatch.setenv(f"ACCELERATE_USE_{what}", "true")
    with pytest.raises(ConfigError, match=rf"accelerate is configured for .* \(ACCELERATE_USE_{what}\)"):
        made(tmp_path)


def test_what_would_change_the_student_is_set_and_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    accelerator = made(tmp_path)
    assert accelerator.gradient_accumulation_steps == 1
    assert accelerator.state.dynamo_plugin.backend.value == "NO"
    assert accelerator.mixed_precision == "no"
    said = capsys.readouterr().err
    for line in ("gradient accumulation 4", "dynamo backend INDUCTOR", "mixed precision bf16 has no effect"):
        assert line in said


def test_what_accelerate_launch_sets_by_itself_is_not_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    made(tmp_path, precision="bf16")
    assert capsys.readouterr().err == ""


def test_float16_is_refused_where_it_would_be_float32(tmp_path):
    with pytest.raises(ConfigError, match="--precision fp16 on a CPU: accelerate would train in float32; use bf16"):
        made(tmp_path, precision="fp16")
    made(tmp_path)  # accelerate has kept nothing of it


def test_one_python_process_trains_in_one_precision(tmp_path):
    made(tmp_path, precision="bf16")
    made(tmp_path, precision="bf16")
    with pytest.raises(ConfigError, match=r"trained in precision bf16, .*; train in precision no in another process"):
        made(tmp_path)


def test_one_process_where_more_were_asked_for_is_told(tmp_path, monkeypatch, capsys):
    """`accelerate launch --cpu --num_processes 2` sets these, and starts one."""
    for name, value in {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert made(tmp_path).num_processes == 1
    assert "one process: on CPUs `accelerate launch` needs MPI to start more" in capsys.readouterr().err


def test_a_device_of_the_environment_that_is_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "tpu")
    with pytest.raises(ConfigError, match="ACCELERATE_TORCH_DEVICE is 'tpu'"):
        made(tmp_path)


def test_the_gradients_do_not_depend_on_accelerates_settings(training, tmp_path, monkeypatch):
    plain = distill.run(training(steps=2, out=str(tmp_path / "plain")))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8")
    other = distill.run(training(steps=2, out=str(tmp_path / "other")))
    assert plain.encoder.read_bytes() == other.encoder.read_bytes()


def test_what_the_main_process_alone_finds_wrong_stops_the_others_too(tmp_path, monkeypatch):
    accelerator = made(tmp_path)
    with pytest.raises(ShardError, match="no labels"):
        on_main(accelerator, lambda: refuse(ShardError("no labels")))
    monkeypatch.setattr(type(accelerator), "is_main_process", False)
    monkeypatch.setattr(type(accelerator), "num_processes", 2)
    monkeypatch.setattr(accelerator, "reduce", lambda flag, how: flag + 1)  # the main process's
    with pytest.raises(ConfigError, match="the main process could not go on; its message says why"):
        on_main(accelerator, lambda: refuse(AssertionError("not mine to do")))
    monkeypatch.setattr(accelerator, "reduce", lambda flag, how: flag)
    assert on_main(accelerator, lambda: 7) is None


def test_processes_that_begin_with_other_things_all_stop(tmp_path, monkeypatch):
    accelerator = made(tmp_path)
    check_agreed(accelerator, {"steps": 4})
    monkeypatch.setattr(type(accelerator), "num_processes", 2)
    monkeypatch.setattr(accelerator, "gather", lambda own: torch.cat([own, own]))
    check_agreed(accelerator, {"steps": 4})
    monkeypatch.setattr(accelerator, "gather", lambda own: torch.cat([own, own + 1]))
    with pytest.raises(ConfigError, match="the processes do not begin alike: another checkpoint"):
        check_agreed(accelerator, {"steps": 4})


def test_parts_of_a_group_are_refused_where_each_part_is_summed_over_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr("pipelines.training.processes.world_size", lambda: 2)
    monkeypatch.setattr("pipelines.training.processes.check_launched", lambda world: None)
    sharded = {"shard_student": True, "accumulate": 4, "batch_size": 512}
    made(tmp_path, **sharded)
    made(tmp_path, **sharded, loss_group=64)
    with pytest.raises(ConfigError, match=r"a part is no whole groups of --loss-group 128; lower --accumulate"):
        made(tmp_path, **sharded, loss_group=128)


def refuse(error: Exception) -> None:
    raise error


def test_ranks_train_together_and_stop_together_and_one_process_goes_on(training, tmp_path, shards):
    """Two processes on CPUs, of which one gets a signal, and then one: the curve of one that never stopped.

    They take the samples, views and draws of one batch, in parts; the batch's loss is over both.
    """
    common = {"steps": 5, "log_every": 1, "threads": 1, "eval_every": 3, "clip_grad": 0.5}
    common |= {"val_shards": str(shards.folder / "000002.tar"), "knn_shards": str(shards.folder / "000001.tar")}
    config = training(out=str(tmp_path / "two"), accumulate=2, resume_if_any=True, **common)
    process = started(config, 2, "tests.launching")
    _, said = process.communicate()
    assert process.returncode == 1, said[-3000:]  # torchrun's own
    assert said.count("stopped: stopped after step 3 of 5; continue with --resume") == 2, said[-3000:]
    assert "exitcode  : 138" in said, said[-3000:]  # 128 + SIGUSR1, of the first to end
    assert "2 processes, precision no" in said
    assert said.count("k-NN on 40 images of 3 classes") == 1
    distill.run(config)
    distill.run(training(out=str(tmp_path / "one"), **common))

    for two, one in zip(log_of(tmp_path / "two"), log_of(tmp_path / "one"), strict=True):
        assert (two["kind"], two["step"]) == (one["kind"], one["step"])
        if two["kind"] == "knn":
            assert two["accuracy"] == pytest.approx(one["accuracy"], abs=2.01 / 40)  # rounding may turn two images
        else:
            assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
            for teacher, means in one["teachers"].items():
                assert two["teachers"][teacher] == pytest.approx(means, abs=1e-4)
            assert two.get("grad_norm") == pytest.approx(one.get("grad_norm"), abs=1e-4)
    kinds = ["train", "train", "train", "val", "knn", "train", "train", "val", "knn"]
    assert [record["kind"] for record in log_of(tmp_path / "two")] == kinds
    tensors, others = (load_file(tmp_path / name / "encoder.safetensors") for name in ("one", "two"))
    # AdamW moves a weight whose gradient is all rounding by its sign, so single ones differ by up to the rates' sum
    apart = torch.cat([(tensors[name] - others[name]).abs().flatten() for name in tensors])
    assert apart.mean() < 1e-2 * 4e-3


def test_where_a_process_dies_the_first_one_saves_its_last_whole_step(training, tmp_path, monkeypatch):
    """Rank 1 is killed in its third step: rank 0 has done two, saves them and says so, and one process goes on."""
    config = training(out=str(tmp_path / "two"), steps=5, log_every=1, threads=1, resume_if_any=True)
    monkeypatch.setenv("UNIC_TEST_SIGNAL", "SIGKILL")
    process = started(config, 2, "tests.launching")
    _, said = process.communicate()
    (line,) = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert re.search("another process of this run has ended or cannot be reached .*onnection", line), said[-3000:]
    assert f"{config.out} has the checkpoint of step 2; fix what it reports and continue with --resume" in line
    distill.run(config)
    distill.run(dataclasses.replace(config, out=str(tmp_path / "one")))
    for two, one in zip(log_of(tmp_path / "two"), log_of(tmp_path / "one"), strict=True):
        assert (two["step"], two["loss"]) == (one["step"], pytest.approx(one["loss"], abs=1e-5))


class TestDevices:
    @pytest.fixture(autouse=True)
    def two_cards(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch, "empty", lambda *a, device=None: device)

    @pytest.mark.parametrize(("rank", "device"), [("0", "cuda:0"), ("1", "cuda:1")])
    def test_a_rank_takes_its_own_card(self, monkeypatch, rank, device):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert str(pick_device("auto")) == device
        assert str(pick_device("cuda")) == device
        assert str(pick_device("cuda:0")) == "cuda:0"
        assert str(pick_device("cpu")) == "cpu"

    def test_alone_the_first(self, monkeypatch):
        assert str(pick_device("auto")) == "cuda"


@pytest.mark.parametrize("name", ["cuda:77", "cudda", "cuda:x", "", "meta:"])
def test_a_device_that_is_not_there_is_told(name):
    with pytest.raises(ConfigError, match=r"device .* cannot be used: .*try --device cpu"):
        pick_device(name)
