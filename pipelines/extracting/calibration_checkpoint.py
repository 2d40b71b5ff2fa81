"""A stopped calibration: the calibrator's state, kept beside the teacher's spec until the calibration goes on.

The file has a temporary name with the worker's number, so nobody else reads it, and is deleted once the calibration is
made. It is valid only for the same teacher, settings, views and versions; otherwise the calibration starts anew. Only a
local cache has it: an object store would receive it whole each time.
"""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple

import numpy as np
import torch
from crc32c import crc32c

from pipelines.command.failures import reason
from pipelines.command.progress import say
from pipelines.extracting.opening_options import OpeningOptions
from pipelines.extracting.specs import versions
from unic_cache.errors import CacheError
from unic_cache.files.local import LocalFolder
from unic_cache.store.calibrate import Calibrator
from unic_cache.store.member import Member
from unic_cache.store.npz import load_npz, save_npz
from unic_cache.stream.address import Address

KEEP_EVERY = 300.0  # seconds; some hundred whole images, a few hundred MB at most


class HalfCalibrated:
    """One teacher's stopped calibration, of one worker."""

    def __init__(
        self, options: OpeningOptions, member: Member, wanted: Sequence[Address], device: torch.device
    ) -> None:
        assert member.features is not None
        self._features = member.features
        self._location = member.location
        self._name = file_name(options, member)
        same = {
            "spec": dict(member.spec),
            "views": list(astuple(options.kind)),
            "wanted": [list(item) for item in wanted],
            "batches": [options.batch_size, options.dtype, device.type, versions()],
        }
        self._same = crc32c(json.dumps(same, sort_keys=True).encode())
        self._kept_at = time.monotonic()

    def load(self) -> tuple[Calibrator, int]:
        """The calibrator as it was stopped and the number of batches it has counted; a new one and 0 without a file."""
        data = self._location.read(self._name) if isinstance(self._location, LocalFolder) else None
        with suppress(CacheError, KeyError, ValueError, TypeError):
            state = {} if data is None else load_npz(data, self._name, limit=2**32)
            if state and int(np.asarray(state.pop("same"))) == self._same:
                done, calibrator = int(np.asarray(state.pop("done"))), Calibrator(self._features)
                calibrator.restore(state)
                return calibrator, done
        return Calibrator(self._features), 0

    def keep(self, calibrator: Calibrator, done: int, at_once: bool) -> None:
        """Write it, now or once some minutes have passed. A full disk only means to start anew later."""
        late = time.monotonic() - self._kept_at >= KEEP_EVERY
        if not isinstance(self._location, LocalFolder) or not (late or at_once):
            return
        self._kept_at = time.monotonic()
        try:
            own = {"same": np.asarray(self._same), "done": np.asarray(done)}
            self._location.replace(self._name, save_npz({**calibrator.state(), **own}))
        except (OSError, MemoryError) as error:
            say(f"the calibration so far cannot be kept: {reason(error)}")


def file_name(options: OpeningOptions, member: Member) -> str:
    """The file in the cache."""
    return f"{member.folder}/.tmp-calibration-{options.worker_index}"


def forget(options: OpeningOptions, member: Member) -> None:
    """Delete the file: the calibration is made."""
    if isinstance(member.location, LocalFolder):
        member.location.delete(file_name(options, member))
