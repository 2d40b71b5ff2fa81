"""A run's checkpoint and its exported encoder, written together, also when an error ends the run."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pipelines.command.failures import ADVICE_HERE
from unic_cache.errors import UnicCacheError
from unic_cache.student.backbone import EncoderSpec
from unic_cache.student.checkpoint import save_checkpoint
from unic_cache.student.export import save_encoder
from unic_cache.student.ladder import Student
from unic_cache.student.run_files import ENCODER


@dataclass
class RunState:
    """Everything that a checkpoint and an export are made of."""

    out: Path
    model: Student
    adamw: Any  # as accelerate wraps it
    accelerator: Accelerator
    spec: EncoderSpec
    provenance: Mapping[str, Any]
    saved: int  # steps of the last checkpoint; 0 for none

    def save(self, steps: int) -> None:
        """Write checkpoint and encoder from the main process. A note on any error names the last checkpoint."""
        with self._naming_checkpoint():
            self._write(steps)
        self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def saved_on_error(self, steps: int) -> Iterator[None]:
        """Inside, the state is that after `steps` steps; if an error ends the run there, save it first."""
        with self._naming_checkpoint():
            try:
                yield
            except (OSError, UnicCacheError):
                if steps > self.saved and all(bool(x.isfinite().all()) for x in self.model.parameters()):
                    with contextlib.suppress(OSError):
                        self._write(steps)
                raise

    def _write(self, steps: int) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = None if scaler is None else scaler.state_dict()
            header = {"scaler": state, "processes": self.accelerator.num_processes}
            save_checkpoint(self.out, steps, self.model, self.adamw.optimizer, header)
            self.saved = steps
            save_encoder(self.out / ENCODER, self.model.encoder, self.spec, {**self.provenance, "steps": steps})

    @contextlib.contextmanager
    def _naming_checkpoint(self) -> Iterator[None]:
        try:
            yield
        except (OSError, UnicCacheError, MemoryError, RuntimeError) as error:
            error.add_note(
                f"{self.out} has the checkpoint of step {self.saved}; {ADVICE_HERE} and continue with --resume"
                if self.saved
                else f"{self.out} has no checkpoint yet; {ADVICE_HERE} and run the same command again"
            )
            raise
