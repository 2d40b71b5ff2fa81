"""Real processes, really killed (see `tests.crash.driver`)."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from unic_cache.ahead import dropped

KILLS = int(os.environ.get("UNIC_CACHE_KILLS", "20"))  # 200 take about two minutes
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}


@pytest.fixture(scope="module")
def driver(tmp_path_factory, settings):
    """The process whose children extract; it waits for orders."""
    root = tmp_path_factory.mktemp("crash")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.crash.driver"],
        env={**os.environ, **ONE_THREAD},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    say(process, {"config": settings(root, threads=1, keep_views=True, codec="klt").to_json(), "root": str(root)})
    yield process
    process.stdin.close()
    assert process.wait() == 0
    process.stdout.close()


@pytest.fixture
def act(driver):
    """Have the driver play one of its acts; its report."""

    def play(name: str, seed: int = 0, **options) -> dict:
        say(driver, {"act": name, "seed": seed, "options": options})
        report = json.loads(driver.stdout.readline())
        assert "error" not in report, report["error"]
        print(report)
        return report

    return play


def say(process: subprocess.Popen, words: dict) -> None:
    process.stdin.write(json.dumps(words) + "\n")
    process.stdin.flush()


@pytest.mark.slow
def test_killed_again_and_again_it_ends_byte_for_byte_as_if_never_killed(act):
    report = act("kill_and_restart", kills=KILLS)
    assert report["kills"] >= KILLS
    assert KILLS < 200 or {"probe", "calibration", "commits"} <= report["stages"].keys()


@pytest.mark.parametrize("same_units", [False, True], ids=["each-its-share", "all-the-same-units"])
@pytest.mark.slow
def test_four_processes_at_once_end_as_one_would_though_some_are_killed(act, same_units):
    assert act("crowd", workers=4, kills=3, same_units=same_units)["kills"] >= 3


@pytest.mark.slow
def test_ctrl_c_and_sigterm_stop_it_soon_and_cleanly_whatever_it_does(act):
    assert act("interrupt", stops=6, sync_seconds=0.01)["slowest"] < 10


def test_what_waits_to_be_written_is_dropped_when_the_run_is_stopped():
    in_hand, may_end = threading.Event(), threading.Event()
    futures = []

    def run() -> None:
        with ThreadPoolExecutor(1) as writing, dropped(writing):
            futures.append(writing.submit(lambda: in_hand.set() or may_end.wait()))
            futures.append(writing.submit(pytest.fail))
            futures[1].add_done_callback(lambda _: may_end.set())
            in_hand.wait()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert futures[0].result()
    assert futures[1].cancelled()
