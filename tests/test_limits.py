"""A process that may open few files, or write small ones only: it works, or says in one line what to raise."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import VIT, make_shards

SCRIPT = """
import resource, sys
import torch, timm, cli
from click.testing import CliRunner
folder, weights, limit = sys.argv[1:]
words = f"--cache {folder}/cache --shards {folder}/shards/*.tar --threads 4".split()
extract = f"extract --teacher %s --weights {weights} --size 32 --views 1 --batch-size 8 --codec f16 --keep-views"
distill = f"distill --student test_vit --img-size 32 --patch-size 16 --batch-size 40 --steps 4 --out {folder}/out"
for line in (extract % sys.argv[0], distill, f"verify {folder}/cache --shards {folder}/shards/*.tar --threads 4"):
    kind, most = getattr(resource, limit.split("=")[0]), int(limit.split("=")[1])
    resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))
    command = line.split()
    done = CliRunner().invoke(cli.main, command if command[0] == "verify" else [*command, *words])
    print(command[0], done.exit_code, type(done.exception).__name__, done.stderr.splitlines()[-1:] or "")
"""


@pytest.fixture
def run(tmp_path, weights):
    """Three stages in a process with a limit: (stage, exit code, exception, last line on stderr) of each."""
    make_shards(tmp_path / "shards", (2,) * 40)

    def stages(limit: str) -> list[str]:
        script = SCRIPT.replace("sys.argv[0]", repr(VIT))
        words = [sys.executable, "-c", script, str(tmp_path), str(weights[VIT]), limit]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
        assert done.stdout.count("\n") == 3, done.stderr
        return done.stdout.splitlines()

    return stages


@pytest.mark.slow
def test_64_open_files_are_enough_for_40_tars_and_their_objects(run):
    for line in run("RLIMIT_NOFILE=64"):
        assert line.split(maxsplit=2)[1] == "0", line
