"""Several devices of one machine: what is refused, and that their shares make what one process makes."""

import os
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

import cli
from pipelines import extract, recode
from pipelines.clusters.each_device import on_each, shares
from pipelines.command.device import devices_of, pick_device
from pipelines.command.shares import check_flags, local_rank
from tests.clusters.little_stage import works
from tests.conftest import tree
from unic_cache.config import DistillConfig, EvaluateConfig, ExtractConfig, PlanConfig, RecodeConfig, VerifyConfig
from unic_cache.config.devices import device_names
from unic_cache.errors import CacheError, ConfigError, UnicCacheError

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")
ARRAY = tuple(f"SLURM_ARRAY_TASK_{part}" for part in ("ID", "MIN", "COUNT", "STEP"))


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """An environment with these variables and no others of their kind."""

    def make(**variables: str) -> None:
        for name in (*RANKS, *ARRAY):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    make()
    return make


@pytest.fixture
def gpus(monkeypatch):
    """A machine that seems to have so many GPUs."""

    def make(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch, "empty", lambda *a, device=None: device)

    return make


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("auto", ("auto",)),
        ("cuda", ("cuda",)),
        ("all", ("all",)),
        ("cuda:0,cuda:1", ("cuda:0", "cuda:1")),
        (" cuda:2, cpu ", ("cuda:2", "cpu")),
        ("cpu,cpu", ("cpu", "cpu")),
    ],
)
def test_a_list_names_devices(text, names):
    assert device_names(text) == names


@pytest.mark.parametrize("text", ["cuda:0,cuda:0", "cuda,cuda:0", "cuda:0,", "auto,cuda:1", "all,cpu", ","])
def test_a_list_with_a_device_twice_or_a_word_is_refused(text):
    with pytest.raises(ConfigError, match=r"device .*(name|names) each device once"):
        ExtractConfig(teachers=("dino",), device=text)


@pytest.mark.parametrize("text", ["cuda:0,cuda:1", "all"])
def test_only_commands_that_share_their_work_take_several(text):
    assert ExtractConfig(teachers=("dino",), device=text).device == text
    assert RecodeConfig("a", "b", device=text).device == text
    for make in (PlanConfig, VerifyConfig, EvaluateConfig):
        given = {"teachers": ("dino",)} if make is PlanConfig else {"cache": "cache"}
        given |= {"encoder": ("timm:resnet50",), "shards": "x.tar"} if make is EvaluateConfig else {}
        with pytest.raises(ConfigError, match=f"{make.stage} runs on one device"):
            make(**given, device=text)
    assert not hasattr(DistillConfig, "device")


@pytest.mark.parametrize("text", ["cuda:0", "cpu,cpu", "all"])
def test_with_ray_no_device_has_a_number(text):
    with pytest.raises(ConfigError, match="Ray chooses each worker's device"):
        ExtractConfig(teachers=("dino",), device=text, ray="local")


def test_all_means_every_gpu(gpus):
    gpus(3)
    assert devices_of("all") == ("cuda:0", "cuda:1", "cuda:2")
    gpus(0)
    with pytest.raises(ConfigError, match="torch finds none"):
        devices_of("all")


def test_one_of_several_gpus_is_told(gpus, capsys):
    gpus(8)
    assert devices_of("auto") == ("auto",)
    line = "this machine has 8 GPUs, and --device auto uses the first; --device all uses all\n"
    assert capsys.readouterr().err == line
    assert devices_of("cuda:0") == ("cuda:0",)
    assert devices_of("cpu") == ("cpu",)
    gpus(1)
    assert devices_of("auto") == ("auto",)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("count", "text", "why"),
    [
        (2, "cuda:0,cuda:2", "device 'cuda:2' cannot be used: this machine has GPUs cuda:0 to cuda:1"),
        (1, "cuda:0,cuda:1", "device 'cuda:1' cannot be used: this machine has one GPU, cuda:0"),
        (0, "cuda:0,cuda:1", "device 'cuda:0' cannot be used: this machine has no GPU"),
        (2, "cuda:0,gpu:1", "device 'gpu:1' cannot be used"),
    ],
)
def test_a_device_of_a_list_that_is_not_there_is_told(gpus, count, text, why):
    gpus(count)
    with pytest.raises(ConfigError, match=why):
        devices_of(text)


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
        {"LOCAL_RANK": "1"},
        {"SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "2"},
    ],
)
def test_a_list_beside_a_launcher_is_refused(environment, gpus, variables):
    gpus(2)
    environment(**variables)
    with pytest.raises(ConfigError, match="a process for each was started already"):
        devices_of("all")


def test_a_list_on_each_node_of_a_launcher_is_fine(environment, gpus):
    gpus(2)
    for variables in (
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        {"SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2"},
    ):
        environment(**variables)
        assert devices_of("all") == ("cuda:0", "cuda:1")


def test_each_process_of_a_launcher_takes_its_own_gpu_or_is_told(environment, gpus):
    gpus(4)
    for variables in ({"LOCAL_RANK": "3"}, {"SLURM_LOCALID": "3", "SLURM_STEP_NUM_TASKS": "8"}):
        environment(**variables)
        assert str(pick_device("auto")) == str(pick_device("cuda")) == "cuda:3"
        assert devices_of("auto") == ("auto",)
    environment(LOCAL_RANK="4", SLURM_LOCALID="0", SLURM_STEP_NUM_TASKS="2")  # torchrun's inside srun counts
    with pytest.raises(ConfigError, match=r"LOCAL_RANK is 4 .* 4 GPUs, 0 to 3; start at most 4"):
        pick_device("auto")
    gpus(1)  # each process sees its own
    assert str(pick_device("auto")) == "cuda"
    environment(LOCAL_RANK="x")
    with pytest.raises(ConfigError, match="LOCAL_RANK is 'x'"):
        local_rank()


def array(task: int, count: int) -> dict[str, str]:
    return {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(count), "SLURM_ARRAY_TASK_MIN": "0"}


@pytest.mark.parametrize(
    ("variables", "flags"),
    [
        ({}, (3, 8)),
        (array(2, 4), (2, 4)),
        (array(2, 4), (5, 8)),  # two processes in each task, numbered task by task
        (array(2, 4), (6, 8)),  # or process by process
        (array(7, 12), (3, 4)),  # three teachers in four shares each
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"RANK": "x", "WORLD_SIZE": "2"}, (0, 5)),  # unclear, so the flags say it
        (array(2, 4) | {"RANK": "1", "WORLD_SIZE": "2"}, (0, 5)),
    ],
)
def test_flags_that_fit_the_environment_are_taken(environment, variables, flags):
    environment(**variables)
    check_flags(*flags)


@pytest.mark.parametrize(
    ("variables", "flags", "remedy"),
    [
        (array(2, 4), (0, 4), "compute them from SLURM_ARRAY_TASK_ID, or unset it"),
        (array(2, 4), (1, 8), "SLURM_ARRAY_TASK_ID"),
        (array(2, 4), (2, 5), "SLURM_ARRAY_TASK_ID"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (0, 2), "compute them from RANK and WORLD_SIZE, or unset both"),
    ],
)
def test_flags_that_would_give_two_workers_one_share_are_refused(environment, variables, flags, remedy):
    environment(**variables)
    words = ["extract", "--teacher", "dino", f"--worker-index={flags[0]}", f"--num-workers={flags[1]}"]
    done = CliRunner().invoke(cli.main, words)
    assert done.exit_code == 2
    assert "others would do the same share" in done.output
    assert remedy in done.output


def test_each_device_has_a_share_of_the_share_and_of_the_cores():
    config = ExtractConfig(teachers=("dino",), device="cuda:0,cuda:1", worker_index=2, num_workers=3)
    found = shares(("cuda:0", "cuda:1"), config)
    assert [(one.device, one.worker_index, one.num_workers) for one in found] == [("cuda:0", 2, 6), ("cuda:1", 5, 6)]
    assert {one.threads for one in found} == {max(len(os.sched_getaffinity(0)) // 2, 1)}


def test_machines_of_unlike_numbers_of_devices_do_each_unit_once():
    machines = [("cuda:0", "cuda:1", "cuda:2", "cuda:3"), ("cuda:0",), ("cuda:0", "cuda:1")]
    configs = [
        one
        for at, devices in enumerate(machines)
        for one in shares(devices, ExtractConfig(teachers=("dino",), worker_index=at, num_workers=3))
    ]
    done = [unit for one in configs for unit in range(48)[one.worker_index :: one.num_workers]]
    assert sorted(done) == list(range(48))


def test_processes_speak_as_one_and_the_first_failure_ends_all(capfd):
    devices = "cuda:0", "cuda:1"
    fine, fails, dies = (ExtractConfig(teachers=("dino",), cache=name) for name in ("fine", "fails", "dies"))
    assert on_each(devices, works, fine) == ["cuda:0, 0 of 2", "cuda:1, 1 of 2"]
    said = capfd.readouterr().err.splitlines()
    assert [said.count(line) for line in ("to all", "by 0", "by 1")] == [1, 1, 1]
    with pytest.raises(CacheError, match=r"^row 7 is broken$"):
        on_each(devices, works, fails)
    with pytest.raises(UnicCacheError, match=r"process of cuda:1 was stopped \(exit code -9\)"):
        on_each(devices, works, dies)


@pytest.mark.parametrize("how", [{"device": "cpu,cpu"}, {"ray": "local"}])
@pytest.mark.parametrize("stage", [extract, recode])
def test_processes_of_a_launcher_that_would_each_do_all_say_so_before_they_start_others(
    environment, monkeypatch, capsys, stage, how
):
    started: list[str] = []
    for name, found in (("on_each", []), ("over_ray", stage.Summary()), ("seal_done", None), ("seal_target", None)):
        monkeypatch.setattr(stage, name, lambda *_, found=found: (started.append("child"), found)[1], raising=False)
    one_a_node = {"SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    environment(**one_a_node, SLURM_PROCID="1")
    make = {extract: {"teachers": ("dino",)}, recode: {"source": "a", "target": "b"}}[stage]
    config = {extract: ExtractConfig, recode: RecodeConfig}[stage](**make, **how)
    stage.run(config)
    assert started
    assert capsys.readouterr().err == (
        "srun started 2 processes, and this one does all units; to share them, give --worker-index $SLURM_PROCID "
        "--num-workers $SLURM_STEP_NUM_TASKS\n"
    )
    stage.run(replace(config, worker_index=1, num_workers=2))
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_two_processes_make_the_bytes_of_one(settings, tmp_path, cache_folder):
    one, two = (extract.run(settings(tmp_path / name, device=name, keep_views=True)) for name in ("cpu", "cpu,cpu"))
    assert one == two
    assert tree(tmp_path / "cpu") == tree(tmp_path / "cpu,cpu")
    again = extract.run(settings(tmp_path / "cpu,cpu", device="cpu,cpu", keep_views=True))
    assert (again.units, again.skipped) == (0, 6)
    whole, halves = (
        recode.run(RecodeConfig(str(tmp_path / "cpu"), str(tmp_path / f"int8 {name}"), codec="int8", device=name))
        for name in ("cpu", "cpu,cpu")
    )
    assert whole == halves
    assert tree(tmp_path / "int8 cpu") == tree(tmp_path / "int8 cpu,cpu")
