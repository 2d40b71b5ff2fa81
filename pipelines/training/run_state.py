"""A run's files: settings, and checkpoint and exported encoder, which are written together, also on an error."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipelines.command.failures import advice_on
from pipelines.command.progress import say
from pipelines.command.run_folder import FREE_ON_RESUME
from pipelines.extracting.specs import versions
from pipelines.training.divergence import diverged
from pipelines.training.processes import check_agreed, on_main
from pipelines.training.remote_run import RemoteRun
from pipelines.training.training_set import TrainingSet, target_rules
from unic_cache.config import DistillConfig
from unic_cache.errors import UnicCacheError
from unic_cache.files.local import LocalFolder
from unic_cache.student.backbone import EncoderSpec, build_encoder
from unic_cache.student.checkpoint import mend_checkpoint, save_checkpoint, state_tensors
from unic_cache.student.export import licences_of, save_encoder
from unic_cache.student.projectors import Student
from unic_cache.student.run_files import CHECKPOINT, CONFIG, ENCODER
from unic_cache.student.timm_layout import config_bytes, lay_out_run

ORIGINS = ("from", "init")  # in the provenance and the checkpoint: what the first weights were taken from
FAILURES = (OSError, UnicCacheError, MemoryError, RuntimeError)  # the last one also if another process has died
TOLD = {"weights_sha256", "version"}  # of a teacher's spec, in the encoder's provenance


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
    average: AveragedModel | None = None  # of `model` over the steps; its encoder is then the one exported
    keep: int = 1  # checkpoints
    sharded: bool = False  # whether each process has a part of the model
    remote: RemoteRun | None = None  # where checkpoints are sent, if OUT is a URL
    told: bool = False  # that the folder is no layout for timm

    @property
    def exported(self) -> nn.Module:
        """The encoder that is exported: the moving average, if there is one."""
        student: Any = self.model if self.average is None else self.average.module
        encoder: nn.Module = student.encoder
        return encoder

    def update_average(self) -> None:
        """Take the weights after a step into the moving average, if there is one."""
        if self.average is not None:
            self.average.update_parameters(self.model)

    def save(self, steps: int) -> None:
        """Write checkpoint and encoder from the main process; all call it. Notes on errors name the last checkpoint."""
        if not self.sharded and not self._is_finite():
            raise diverged(f"weights are not finite after step {steps}")  # which the loss before the step did not tell
        with self._naming_checkpoint():
            self._write(steps)
        self.accelerator.wait_for_everyone()
        self.saved = steps  # in every process, whose messages name it

    @contextlib.contextmanager
    def saved_on_error(self, steps: int) -> Iterator[None]:
        """Inside, the state is that after `steps` steps; an error that ends the run there saves it first, if whole."""
        with self._naming_checkpoint():
            try:
                yield
            except FAILURES as error:
                with contextlib.suppress(*FAILURES):  # the first error is the one to tell
                    if steps > self.saved and self._is_whole(error):
                        self._write(steps)
                raise

    def _is_whole(self, error: BaseException) -> bool:
        """Whether this process alone can save the weights, and knows that they are those of whole steps.

        It has a part of them with --shard-student. GPUs tell late that an exchange has failed: the gradients of an
        earlier step may then be those of some processes alone.
        """
        exchanged = isinstance(error, RuntimeError) and self.accelerator.num_processes > 1
        if self.sharded or (exchanged and self.accelerator.device.type != "cpu"):
            return False
        return self._is_finite()

    def _is_finite(self) -> bool:
        return all(bool(x.isfinite().all()) for x in self.model.parameters())

    def _write(self, steps: int) -> None:
        average: Any = None if self.average is None else self.average.module
        main = self.accelerator.is_main_process
        given = state_tensors(self.model, self.adamw.optimizer, average) if main or self.sharded else ()
        tensors = {name: value for name, value in given if main}
        if not main:
            return
        scaler = self.accelerator.scaler
        origin = {key: self.provenance[key] for key in ORIGINS if key in self.provenance}
        state = None if scaler is None else scaler.state_dict()
        header = {"scaler": state, "processes": self.accelerator.num_processes, **origin}
        save_checkpoint(self.out, steps, tensors, header, self.keep)
        self.saved = steps if self.remote is None else self.saved  # a store has it once it is sent
        encoder = self._gathered(tensors) if self.sharded else self.exported
        why_not = lay_out_run(self.out, encoder, self.spec, licences_of(self.provenance).values())
        save_encoder(self.out / ENCODER, encoder, self.spec, {**self.provenance, "steps": steps})
        if self.remote is not None:
            self.remote.send()
        self.saved = steps
        if why_not and not self.told:
            where = self.out if self.remote is None else self.remote.url
            say(f"timm cannot load {where} as a folder: {why_not}; `unic-cache export` makes one that it can")
            self.told = True

    def _gathered(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The whole encoder, on the CPU, of a model that processes hold in parts."""
        encoder = build_encoder(self.spec, 0)
        prefix = "model.encoder."
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        encoder.load_state_dict(own)
        return encoder

    @contextlib.contextmanager
    def _naming_checkpoint(self) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            advice = advice_on(error)
            error.add_note(
                f"{self.out} has the checkpoint of step {self.saved}; {advice} and continue with --resume"
                if self.saved
                else f"{self.out} has no checkpoint yet; {advice} and run the same command again"
            )
            raise


def restore(accelerator: Accelerator, header: Mapping[str, Any], begins_with: Mapping[str, Any]) -> None:
    """Restore the fp16 scaler's state. ConfigError unless all processes begin with the same data."""
    check_agreed(accelerator, begins_with)
    if accelerator.scaler is not None and header.get("scaler") is not None:
        accelerator.scaler.load_state_dict(header["scaler"])


def settle(out: Path, remote: RemoteRun | None, accelerator: Accelerator) -> None:
    """Before anything is read: make the run the one that writes to a store, and mend its newest checkpoint.

    A damaged one is replaced by the one before, which a line says. Copies of a store are each process's own.
    """
    if remote is not None:
        on_main(accelerator, remote.take)
    done = on_main(accelerator, partial(mend_checkpoint, out)) if remote is None else mend_checkpoint(out)
    if done is not None and accelerator.is_main_process:
        say(done if remote is None else remote.told(done))


def save_settings(
    config: DistillConfig, out: Path, data: TrainingSet, accelerator: Accelerator, remote: RemoteRun | None
) -> None:
    """Write OUT's config and snapshot when the run begins."""
    if accelerator.is_main_process and not (out / CHECKPOINT).exists():
        settings = config.to_json()
        if data.difference is not None:
            settings["pixel_difference"] = dataclasses.asdict(data.difference)
        LocalFolder(out).replace(CONFIG, config_bytes(settings))
        data.snapshot.save(out)
        if remote is not None:
            remote.send()


def describe(config: DistillConfig, data: TrainingSet, tf32: bool, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The student's provenance, for the exported encoder; `origin` is what it has under ORIGINS."""
    return {
        "method": "UNIC, arXiv 2408.05088",
        "teachers": {
            teacher.name: {
                **{key: value for key, value in teacher.spec["teacher"].items() if key in TOLD},
                "codec": teacher.spec["codec"],
                "rules": target_rules(teacher),
                **teacher.spec["provenance"],
            }
            for teacher in data.teachers
        },
        "views": {**dataclasses.asdict(data.snapshot.views), "numbers": list(data.snapshot.numbers)},
        "images": len(data.train),
        **({"missing": dict(data.train.lacking)} if data.train.lacking else {}),  # teacher -> (image, view) pairs
        "config": {key: value for key, value in config.to_json().items() if key not in FREE_ON_RESUME},
        "float32_products": "tf32" if tf32 else "float32",
        "versions": versions(),
        **origin,
    }
