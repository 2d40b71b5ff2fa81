"""What libraries and machines answer with, as one line."""

import errno
import os
import re
import subprocess
import sys
import threading

import click
import pytest
import torch
from safetensors import SafetensorError

from pipelines.command.failures import advice_on, clear_errors, explain
from unic_cache.errors import CacheError, ConfigError


def caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/a/b"),
            "Disk quota exceeded: /a/b. .* free some of your quota",
        ),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/a/b"), "Too many open files: /a/b. .*ulimit -n 4096"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG), b"/a/\xff"), "File too large: /a/.*ulimit -f"),
        (OSError("encoder error -2 when writing image file"), "encoder error -2 when writing image file. All that"),
        (
            SafetensorError("Error while serializing: I/O error: No space (os error 28)"),
            "No space left on device .*free",
        ),
        (caused(RuntimeError("worker died"), OSError(errno.EROFS, "Read-only file system", "/x")), "Read-only .*: /x"),
        (MemoryError(), "memory is full. .*lower --batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory is full"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"),
            r"GPU memory is full .*--batch-size",
        ),
        (RuntimeError("can't start new thread"), "no more threads can be started. .*--threads"),
        (
            RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4711\nmore"),
            "another process of this run has ended .*closed by peer.*fix what it reports and run the same",
        ),
        (CacheError("two\n lines"), "two lines"),
    ],
)
def test_it_is_one_line_that_says_what_happened_and_what_to_do(error, said):
    line = explain(error)
    assert line is not None
    assert "\n" not in line
    assert re.search(said, line), line


@pytest.mark.parametrize(
    "error", [TypeError("no"), KeyError("x"), RuntimeError("size mismatch"), caused(TypeError(), KeyError())]
)
def test_a_mistake_of_ours_keeps_its_traceback(error):
    assert explain(error) is None
    with pytest.raises(type(error)), clear_errors():
        raise error


def test_notes_say_what_is_safe_in_place_of_what_all_stages_say():
    error = caused(RuntimeError("worker died"), OSError(errno.ENOSPC, "No space left on device", "/out/x"))
    error.add_note(f"/{{a,b}} has the checkpoint of step 4; {advice_on(error)} and continue with --resume")
    assert explain(error) == (
        "No space left on device: /out/x. /{a,b} has the checkpoint of step 4; free some space there and continue "
        "with --resume"
    )
    assert advice_on(CacheError("broken")) == advice_on(TypeError()) == "fix that"


def test_settings_are_usage_errors_and_data_are_not():
    with pytest.raises(click.UsageError, match="no teacher"), clear_errors():
        raise ConfigError("no teacher")
    with pytest.raises(click.ClickException) as caught, clear_errors():
        raise CacheError("broken")
    assert caught.value.exit_code == 1


def test_a_thread_that_a_disk_stopped_prints_no_traceback(capsys):
    def fail(error: Exception) -> None:
        raise error

    before = threading.excepthook
    with clear_errors():
        for error in (OSError(errno.ENOSPC, "full"), ValueError("a mistake")):
            thread = threading.Thread(target=fail, args=(error,))
            thread.start()
            thread.join()
    said = capsys.readouterr().err
    assert "full" not in said
    assert "ValueError: a mistake" in said
    assert threading.excepthook is before


def test_a_closed_pipe_ends_in_silence(cache_folder):
    """As `unic-cache inspect cache | head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "cli", "inspect", str(cache_folder)]
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, check=False, text=True)
    os.close(writing)
    said = [line for line in done.stderr.splitlines() if "still loading" not in line]  # on a slow machine
    assert (done.returncode, said) == (1, [])
