"""What a run gives back: the exported encoder and how to load it, also if there was nothing left to do."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pipelines.command.progress import say
from pipelines.training.processes import check_agreed
from pipelines.training.remote_run import RemoteRun
from pipelines.training.training_set import Snapshot
from unic_cache.config import DistillConfig
from unic_cache.evaluate.run_log import KNN, TRAIN, VAL, read_records
from unic_cache.student.backbone import EncoderSpec
from unic_cache.student.checkpoint import checkpoint_steps
from unic_cache.student.export import licences_of, provenance_of_export, spec_of_export, timm_line
from unic_cache.student.run_files import ENCODER, LOG, MODEL
from unic_cache.student.timm_layout import folder_line


@dataclass(frozen=True)
class Trained:
    """The result of a run."""

    encoder: Path
    timm_line: str  # Python that loads the file
    steps: int
    loss: float  # of the last logged steps
    licences: dict[str, str]  # of teachers and first weights, by name, also of the runs that it started from
    left_out: int  # images never used, since their records are broken or missing; 0 if the run had ended before
    broken: int  # times an image was skipped, since its stored data is broken
    main_process: bool  # whether this process is the one that reports
    url: str | None = None  # of the run's folder, if it is in a store: the local copy is gone then

    @property
    def folder_line(self) -> str:
        """Python that loads the run's folder, or the file if timm cannot read the folder."""
        folder = self.encoder.parent
        return folder_line(folder) if (folder / MODEL).exists() else self.timm_line


def loading_line(spec: EncoderSpec, out: Path, remote: RemoteRun | None) -> str:
    """Python that loads the encoder from OUT, or from where the user copies it to."""
    return timm_line(spec, ENCODER if remote else out / ENCODER)


def ended_before(
    config: DistillConfig, out: Path, remote: RemoteRun | None, accelerator: Accelerator
) -> Trained | None:
    """The result of a run that has nothing left to do, which a line says; None if it has. Nothing is written.

    All processes meet here. ConfigError unless they find the same.
    """
    made = made_whole(config, out)
    check_agreed(accelerator, {"ended": made})
    spec = None if made is None else spec_of_export(out / ENCODER)
    if made is None or spec is None:
        return None
    accelerator.end_training()
    if accelerator.is_main_process:
        say(
            f"{config.out}: this run is finished, after step {made['steps']:,}; to train its student further, start "
            f"another run with --from {config.out}"
        )
    losses = [record["loss"] for record in read_records(out / LOG) if record["kind"] == TRAIN]
    loss, licences = losses[-1] if losses else math.nan, licences_of(made)
    line, url = loading_line(spec, out, remote), None if remote is None else remote.url
    return Trained(out / ENCODER, line, made["steps"], loss, licences, 0, 0, accelerator.is_main_process, url)


def made_whole(config: DistillConfig, out: Path) -> Mapping[str, Any] | None:
    """The provenance of OUT's encoder, if checkpoint and encoder are of the last step, and all is logged; else None."""
    made = provenance_of_export(out / ENCODER)
    if made is None or not {"steps", "images"} <= made.keys() or not (out / LOG).exists():
        return None
    total = config.total_steps(made["images"])
    if not made["steps"] == checkpoint_steps(out) == total:
        return None
    due = {kind for kind, asked in ((VAL, Snapshot.load(out).val), (KNN, config.knn_shards)) if asked}
    logged = {record["kind"] for record in read_records(out / LOG) if record["step"] == total}
    return made if due <= logged else None
