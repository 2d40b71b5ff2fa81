"""A run's checkpoint and its exported encoder: written together, and what an error elsewhere leaves of the run."""

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
    """What a checkpoint and an export are made of."""

    out: Path
    model: Student
    adamw: Any  # as accelerate wraps it
    accelerator: Accelerator
    spec: EncoderSpec
    provenance: Mapping[str, Any]
    saved: int  # steps of the checkpoint that stands; 0 for none

    def save(self, steps: int) -> None:
        """Write checkpoint and encoder, by the main process. An error says which checkpoint stands."""
        with self._saying_what_stands():
            self._write(steps)
        self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def saved_on_error(self, steps: int) -> Iterator[None]:
        """Inside, the state is that after `steps` steps: when an error ends the run here, none of them is lost."""
        with self._saying_what_stands():
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
    def _saying_what_stands(self) -> Iterator[None]:
        try:
            yield
        except (OSError, UnicCacheError, MemoryError, RuntimeError) as error:
            error.add_note(
                f"The checkpoint of step {self.saved} stands in {self.out}; {ADVICE_HERE} and go on with --resume"
                if self.saved
                else f"{self.out} has no checkpoint yet; {ADVICE_HERE} and run the same command again"
            )
            raise
