"""Work done behind the caller: in order, no more of it waiting than agreed, and its errors are not lost."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from unic_cache.ahead import behind


def fail():
    raise OSError("disk")


def test_all_is_done_in_order_when_the_block_ends():
    done = []
    with behind("test", 2) as later:
        for number in range(9):
            later(partial(done.append, number))
    assert done == list(range(9))


def test_more_than_agreed_waits_for_the_oldest():
    gate = threading.Event()
    with behind("test", 2) as later:
        later(gate.wait)
        later(int)
        third = threading.Thread(target=later, args=(int,))
        third.start()
        assert third.is_alive()
        gate.set()
        third.join(60)
        assert not third.is_alive()


@pytest.mark.parametrize("calls", [1, 2], ids=["at-the-end", "at-a-later-call"])
def test_an_error_is_raised_and_what_was_not_begun_is_dropped(calls):
    done = []

    def run() -> None:
        with behind("test", 1) as later:
            later(fail)
            if calls > 1:
                later(partial(done.append, "next"))
                done.append("never")

    with pytest.raises(OSError, match="disk"):
        run()
    assert done == []


def test_an_error_of_the_caller_drops_what_was_not_begun(monkeypatch):
    begun, gate, done = threading.Event(), threading.Event(), []

    class Gated(ThreadPoolExecutor):
        """Lets the work in hand end once what was not begun is dropped."""

        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            gate.set()
            super().shutdown(wait=wait)

    monkeypatch.setattr("unic_cache.ahead.ThreadPoolExecutor", Gated)

    def run() -> None:
        with behind("test", 2) as later:
            later(lambda: begun.set() or gate.wait())
            later(partial(done.append, "dropped"))
            begun.wait()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert done == []
