"""Ray nodes on machines of their own, over a real object store: one node and the gateway go and return, one joins."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines import extract, verify
from tests.conftest import CNN, VIT, make_shards, tree
from tests.namespaces import Network, network
from tests.s3.radosgw import Gateway, radosgw
from unic_cache.config import VerifyConfig
from unic_cache.files.location import Location
from unic_cache.files.schemes import open_location
from unic_cache.store.layout import teacher_folder

ROOT = Path(__file__).parents[2]
OUTAGE = 30.0  # seconds without the gateway
PATIENCE = 900.0  # seconds for any one thing to happen
PORT = "26379"
AGAIN = 'until "$@"; do sleep 1; done'


@pytest.fixture
def lan() -> Iterator[Network]:
    with network() as made:
        yield made


@pytest.fixture
def store(lan, monkeypatch) -> Iterator[Gateway]:
    """A gateway that all machines reach, and this process."""
    with radosgw(lan.address) as gateway:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in gateway.environment().items():
            monkeypatch.setenv(name, value)
        yield gateway


@pytest.fixture
def node(lan, tmp_path) -> Iterator[Callable[[str], str]]:
    """Start a Ray node of two cores on a new machine; the first one is the head. Its variables have no credentials.

    As under a supervisor, the others start again when they end: Ray ends a node that does not reach the head.
    """
    hidden = {name: text for name, text in os.environ.items() if not name.startswith("AWS_")}
    ray = {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory(prefix="ur-", ignore_cleanup_errors=True) as session:  # sockets' paths are short

        def start(name: str) -> str:
            head = not lan.machines
            address = lan.add(name)
            first = next(iter(lan.machines.values()))
            words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address", address]
            words += ["--num-cpus", "2", "--object-store-memory", "100000000", "--disable-usage-stats"]
            if head:
                words += ["--head", "--port", PORT, "--include-dashboard=false", "--temp-dir", session]
            else:  # with a disk of its own where the head has its session
                words += ["--address", f"{first}:{PORT}"]
                own = tmp_path / f"{name} session"
                own.mkdir()
                words = ["unshare", "-m", "sh", "-c", f"mount --bind '{own}' {session} && {AGAIN}", "sh", *words]
            lan.start(name, words, {**hidden, **ray}, tmp_path / f"{name}.log")
            return address

        yield start


def until(happened: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.5)


def units(cache: Location, teacher: str) -> int:
    return sum(1 for _ in cache.names(f"{teacher_folder(teacher)}/commits"))


def test_nodes_and_the_gateway_come_and_go_and_the_bytes_are_those_of_one_process(
    lan, store, node, settings, weights, tmp_path
):
    shards = make_shards(tmp_path / "shards", (20,) * 8)
    extract.run(settings(tmp_path / "one", shards=shards.pattern, threads=1))
    store.make_bucket("cluster")
    url, cache = "s3://cluster/cache", open_location("s3://cluster/cache")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    head = f"{node('head')}:{PORT}"

    def start(machine: str, name: str, *words: object) -> Callable[[], str]:
        """Start a command; what is returned waits for its end and gives what it said."""
        log = tmp_path / f"{name}.log"
        process = lan.start(machine, [sys.executable, "-m", "cli", *map(str, words)], environment, log)

        def ended() -> str:
            assert process.wait(PATIENCE) == 0, log.read_text()
            return log.read_text()

        return ended

    def extraction(teacher: str, views: int) -> Callable[[], str]:
        flags = ["--shards", shards.pattern, "--cache", url, "--views", views, "--size", 32, "--codec", "f16"]
        flags += ["--batch-size", 16, "--calibration-images", 60, "--threads", 1, "--device", "cpu", "--ray", head]
        named = ["--teacher", teacher, "--weights", f"{teacher}={weights[teacher]}"]
        return start("head", f"{teacher_folder(teacher)}-{views}", "extract", *named, *flags)

    def alive() -> set[str]:
        code = f"import ray; ray.init('{head}', log_to_driver=False); "
        code += "print(*(node['NodeManagerAddress'] for node in ray.nodes() if node['Alive']))"
        words = ["ip", "netns", "exec", "unic-head", sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        return set(done.stdout.split())

    until(lambda: len(alive()) == 1, "the head's start")
    node("second")
    third = node("third")
    until(lambda: len(alive()) == 3, "a cluster of three nodes")

    # Two teachers at once; in the middle a node is cut off, another joins, and the gateway dies for a while.
    both = extraction(VIT, 2), extraction(CNN, 1)
    until(lambda: units(cache, VIT) + units(cache, CNN) >= 3, "the first units")
    lan.cut_off("third")
    node("fourth")
    store.kill()
    time.sleep(OUTAGE)
    store.restart()
    assert "16 units extracted" in both[0]()
    assert "8 units extracted" in both[1]()
    until(lambda: third not in alive(), "the end of the node that was cut off")
    lan.plug_in("third")
    until(lambda: third in alive(), "the return of the node that was cut off")
    assert len(alive()) == 4

    # A machine of its own distills while the second teacher is half done, and goes on.
    rest = extraction(CNN, 2)
    lan.add("student")
    small = ["--student", "test_vit", "--img-size", 32, "--patch-size", 16, "--steps", 4, "--batch-size", 8]
    data = ["--cache", url, "--shards", shards.pattern, "--allow-missing", "--tracker", "none"]
    trained = start("student", "student", "distill", "--out", tmp_path / "run", *data, *small)
    assert "4 steps, loss" in trained()
    assert "8 units extracted" in rest()
    assert {name: cache.read(name) for name in cache.names()} == tree(tmp_path / "one")
    assert verify.run(VerifyConfig(url, threads=4)).state == "whole"
