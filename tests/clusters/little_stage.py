"""A stage for child processes, without torch, which takes seconds to import."""

import os
import signal

from pipelines.command.progress import Progress, say, tell
from unic_cache.config import ExtractConfig
from unic_cache.errors import CacheError


def works(config: ExtractConfig) -> str:
    """A stage in a child process; the second tells what goes wrong there, by the cache's name."""
    say("to all")
    say(f"by {config.worker_index}")
    tell("opened")
    with Progress("work", 5, "images") as progress:
        progress.advance(3)
        if config.worker_index == 1 and config.cache == "fails":
            raise CacheError("row 7 is broken")
        if config.worker_index == 1 and config.cache == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        progress.advance(2)
    return f"{config.device}, {config.worker_index} of {config.num_workers}"
