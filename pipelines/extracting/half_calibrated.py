"""A calibration that was stopped: what its calibrator had counted, kept beside the teacher's spec until it goes on.

The file has a temporary name with the worker's number, so nobody else reads it, and it goes when the calibration is
made. It counts only for the same teacher, settings, views and versions; anything else begins anew. It is kept in a
local cache alone: to an object store it would be sent whole each time.
"""

import json
import time
from collections.abc import Sequence

import numpy as np
import torch
from crc32c import crc32c

from pipelines.command.failures import reason
from pipelines.command.progress import say
from pipelines.extracting.specs import versions
from unic_cache.config import ExtractConfig
from unic_cache.errors import CacheError
from unic_cache.files.local import LocalFolder
from unic_cache.store.calibrate import Calibrator, load_npz, save_npz
from unic_cache.store.member import Member
from unic_cache.stream.address import Address

KEEP_EVERY = 300.0  # seconds: it holds some hundred images whole, so a few hundred MB at most


class HalfCalibrated:
    """One teacher's, of one worker."""

    def __init__(self, config: ExtractConfig, member: Member, wanted: Sequence[Address], device: torch.device) -> None:
        assert member.features is not None
        self._features = member.features
        self._location = member.location
        self._name = file_name(config, member)
        same = {
            "spec": dict(member.spec),
            "views": [config.kind.recipe, config.kind.size, config.kind.seed],
            "wanted": [list(item) for item in wanted],
            "batches": [config.batch_size, config.dtype, device.type, versions()],
        }
        self._same = crc32c(json.dumps(same, sort_keys=True).encode())
        self._kept_at = time.monotonic()

    def load(self) -> tuple[Calibrator, int]:
        """A calibrator with what was counted, and the batches that it has seen: none where no such file is kept."""
        data = self._location.read(self._name) if isinstance(self._location, LocalFolder) else None
        if data is None:
            return Calibrator(self._features), 0
        try:
            state = load_npz(data, self._name, limit=2**32)
            if int(np.asarray(state.pop("same"))) == self._same:
                done, calibrator = int(np.asarray(state.pop("done"))), Calibrator(self._features)
                calibrator.restore(state)
                return calibrator, done
        except (CacheError, KeyError, ValueError, TypeError):
            pass
        return Calibrator(self._features), 0

    def keep(self, calibrator: Calibrator, done: int, at_once: bool) -> None:
        """Write it now, or where some minutes have gone by. A disk without room only means to begin anew later."""
        late = time.monotonic() - self._kept_at >= KEEP_EVERY
        if not isinstance(self._location, LocalFolder) or not (late or at_once):
            return
        self._kept_at = time.monotonic()
        try:
            own = {"same": np.asarray(self._same), "done": np.asarray(done)}
            self._location.replace(self._name, save_npz({**calibrator.state(), **own}))
        except (OSError, MemoryError) as error:
            say(f"the calibration so far cannot be kept: {reason(error)}")


def file_name(config: ExtractConfig, member: Member) -> str:
    """Where it lies in the cache."""
    return f"{member.folder}/.tmp-calibration-{config.worker_index}"


def forget(config: ExtractConfig, member: Member) -> None:
    """The calibration is made: what was counted for it goes."""
    if isinstance(member.location, LocalFolder):
        member.location.delete(file_name(config, member))
