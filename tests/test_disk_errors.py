"""Every command on a disk that fails: one line, exit code 1, nothing lost, and the same command succeeds afterwards."""

import errno
import json
import shutil
from itertools import cycle
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import cli
from pipelines.planning import step_costs
from tests.conftest import VIT, make_shards, picture
from tests.failing_disk import FailingDisk, Site
from unic_cache.files.durable import NO_FOLDER_SYNC
from unic_cache.student.backbone import build_encoder, encoder_spec
from unic_cache.student.export import save_encoder

ERRORS = [
    errno.ENOSPC,
    errno.EIO,
    errno.EACCES,
    errno.EMFILE,
    errno.EROFS,
    errno.ESTALE,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
]
HARMLESS = ("fsync", "stat", "link", "scandir")  # calls whose refusal a command may know how to do without
STUDENT = ["--student", "test_vit", "--img-size", "32", "--patch-size", "16", "--threads", "1"]
QUICK = ["--size", "32", "--batch-size", "16", "--device", "cpu", "--threads", "1"]


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.main, [str(word) for word in words])


@pytest.fixture(scope="module")
def made(tmp_path_factory, weights) -> Path:
    """The inputs of all commands: images, tars, weights, a cache, a student."""
    folder = tmp_path_factory.mktemp("made")
    for number in range(6):
        (folder / f"images/class{number % 2}").mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / f"images/class{number % 2}/{number}.png")
    make_shards(folder / "shards", (8, 7))
    shutil.copy(weights[VIT], folder / "w.safetensors")
    for views in (["--recipe", "center", "--keep-views"], []):
        done = run(*extract(folder), *views)
        assert done.exit_code == 0, done.output
    spec = encoder_spec("test_vit", 32, 16)
    (folder / "run").mkdir()
    save_encoder(folder / "run/encoder.safetensors", build_encoder(spec, 0), spec, {"teachers": {}})
    return folder


def extract(at: Path, cache: str = "cache") -> list[object]:
    named = ["--teacher", VIT, "--weights", at / "w.safetensors", "--shards", at / "shards/*.tar"]
    few = ["--views", 1, "--calibration-images", 10, "--codec", "f16"]
    return ["extract", *named, "--cache", at / cache, *few, *QUICK]


def distill(at: Path) -> list[object]:
    sources = ["--cache", at / "cache", "--shards", at / "shards/*.tar", "--out", at / "out"]
    return ["distill", *sources, *STUDENT, "--batch-size", 4, "--steps", 3, "--save-every", 2, "--log-every", 1]


def plan(at: Path) -> list[object]:
    named = ["--teacher", VIT, "--weights", at / "w.safetensors", "--shards", at / "shards/*.tar"]
    return ["plan", *named, "--cache", at / "new", "--images", 10, "--codec", "f16", *QUICK, *STUDENT[:-2]]


COMMANDS = {
    "plan": plan,
    "shard": lambda at: ["shard", at / "images", at / "new", "--per-shard", 4],
    "extract": lambda at: [*extract(at, "new"), "--keep-views"],
    "distill": distill,
    "evaluate": lambda at: [
        "evaluate",
        "--encoder",
        at / "run",
        "--shards",
        at / "shards/*.tar",
        "--cache",
        at / "cache",
    ],
    "inspect": lambda at: ["inspect", at / "cache"],
    "verify": lambda at: ["verify", at / "cache", "--shards", at / "shards/*.tar", "--threads", 1],
    "repair": lambda at: ["repair", at / "cache", "--threads", 1],
    "recode": lambda at: ["recode", at / "cache", at / "new", "--codec", "int8", "--threads", 1, "--device", "cpu"],
}
MOST = {
    "plan": 6, "shard": 10, "extract": 7, "distill": 5, "evaluate": 3, "inspect": 8, "verify": 12, "repair": 10,
    "recode": 12,
}  # fmt: skip


def chosen(name: str, sites: dict[Site, int]) -> list[Site]:
    """A selection of the calls, of all functions and all over the files; for distill, those in its folder."""
    wanted = [site for site in sites if name != "distill" or site.kind.startswith("/out")]
    wanted = [site for site in wanted if site.call not in HARMLESS and "/images/" not in site.kind]
    every = max(len(wanted) // MOST[name], 1)
    return wanted[::every]


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_call_that_fails_costs_one_line_and_nothing_that_was_made(name, made, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr(step_costs, "FILE_BYTES", step_costs.PIECE_BYTES)
    monkeypatch.setattr(step_costs, "LAST_BATCH", step_costs.FIRST_BATCH)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "counted"))
    counted = FailingDisk(scene(made, tmp_path / "counted"))
    with counted.watch():
        whole = run(*COMMANDS[name](tmp_path / "counted"))
    assert whole.exit_code == 0, whole.output
    for number, (site, error) in enumerate(zip(chosen(name, counted.sites), cycle(ERRORS), strict=False)):
        at = scene(made, tmp_path / f"try{number}")
        disk = FailingDisk(at)
        disk.fail(site, 0, error)
        monkeypatch.setattr("tempfile.tempdir", str(at))
        with disk.watch():
            failed = run(*COMMANDS[name](at))
        where = f"{errno.errorcode[error]} of {site}: {failed.output}"
        assert disk.failed, where
        assert failed.exception is None or isinstance(failed.exception, SystemExit), where
        if site.call == "open" and (at / site.kind.lstrip("/")).is_dir() and error in NO_FOLDER_SYNC:
            assert failed.exit_code == 0, where  # a folder that may not be opened is not synced
            continue
        if site in {Site("unlink", "/new/.claim"), Site("unlink", "/out/.claim")}:
            assert failed.exit_code == 0, where  # all is done, and a claim without its lock claims nothing
            continue
        check_told(name, site, failed, where)
        again = run(*COMMANDS[name](at), *(["--resume"] if (at / "out/checkpoint.safetensors").exists() else []))
        assert again.exit_code == 0 or (name == "shard" and failed.exit_code == 0), f"{where}\nthen {again.output}"
        assert not [path for path in at.rglob(".tmp-*") if site.call != "unlink"], where


def check_told(name: str, site: Site, failed: Result, where: str) -> None:
    """One line reports the error; `verify` reports it as broken; the picture of the losses may fail."""
    errors = [line for line in failed.stderr.splitlines() if line.startswith("Error: ")]
    if name in {"verify", "repair"} and not errors:
        assert "broken" in failed.output or "un-committed" in failed.output, where
    elif "loss.png" in failed.stderr or "the tracker cannot write" in failed.stderr:
        assert failed.exit_code == 0, where
    else:
        assert failed.exit_code == 1, where
        assert len(errors) == 1, where
        assert failed.stderr.splitlines()[-1] == errors[0], where


def scene(made: Path, at: Path) -> Path:
    shutil.copytree(made, at, copy_function=shutil.copy)
    return at


class TestDistill:
    """The state after a run that a disk error ended."""

    @pytest.fixture
    def at(self, made, tmp_path) -> Path:
        return scene(made, tmp_path / "at")

    def fails(self, at: Path, site: Site, number: int, *more: object) -> Result:
        disk = FailingDisk(at)
        disk.fail(site, number, errno.ENOSPC)
        with disk.watch():
            done = run(*distill(at), *more)
        assert disk.failed, disk.sites
        return done

    def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(self, at):
        done = self.fails(at, Site("rename", "/out/.tmp-#-#"), 5)
        assert done.exit_code == 1
        assert (
            f"{at / 'out'} has the checkpoint of step 2; free some space there and continue with --resume"
            in done.stderr
        )
        resumed = run(*distill(at), "--resume")
        assert resumed.exit_code == 0, resumed.output
        whole = run(*[at / "whole" if word == at / "out" else word for word in distill(at)])
        assert whole.exit_code == 0
        name = "checkpoint.safetensors"
        assert (at / "out" / name).read_bytes() == (at / "whole" / name).read_bytes()

    def test_a_log_that_cannot_be_written_costs_no_step(self, at):
        done = self.fails(at, Site("write", "/out/log.jsonl"), 0, "--save-every", 100)
        assert done.exit_code == 1
        assert "No space left on device" in done.stderr
        assert f"{at / 'out'} has the checkpoint of step 1" in done.stderr
        assert run(*distill(at), "--save-every", 100, "--resume").exit_code == 0
        steps = [json.loads(line)["step"] for line in (at / "out/log.jsonl").read_text().splitlines()]
        assert steps == [1, 2, 3] or steps == [2, 3]

    def test_a_tracker_that_cannot_write_ends_nothing(self, at, capsys):
        disk = FailingDisk(at)
        with disk.watch():
            assert run(*distill(at)).exit_code == 0
        events = next(site for site in disk.sites if site.call == "write" and "events" in site.kind)
        shutil.rmtree(at / "out")
        done = self.fails(at, events, 4)
        assert done.exit_code == 0, done.output
        assert "the tracker cannot write (No space left on device" in done.stderr
        assert "Traceback" not in capsys.readouterr().err
        assert len((at / "out/log.jsonl").read_text().splitlines()) == 3

    def test_a_run_that_ended_before_its_encoder_writes_it_on_resume(self, at):
        assert run(*distill(at)).exit_code == 0
        encoder = at / "out/encoder.safetensors"
        whole = encoder.read_bytes()
        encoder.unlink()
        assert run(*distill(at), "--resume").exit_code == 0
        assert encoder.read_bytes() == whole
