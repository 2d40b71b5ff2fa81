"""What is exported: a run's folder, or an encoder's file alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from pipelines.command.progress import say
from pipelines.exporting.places import Places, placeless, places_in
from unic_cache.config import ExportConfig
from unic_cache.errors import ConfigError
from unic_cache.student.backbone import EncoderSpec
from unic_cache.student.export import encoder_bytes, licences_of, load_encoder
from unic_cache.student.run_files import CONFIG


@dataclass(frozen=True)
class Source:
    """A student as it was exported by `distill`."""

    path: Path
    encoder: nn.Module  # in evaluation mode; the moving average, if the run kept one
    spec: EncoderSpec
    made: Mapping[str, Any]  # its provenance, as the file has it

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """How it was made, without places on the machine of the run."""
        return placeless(self.made)

    @cached_property
    def places(self) -> Places:
        """The places that its provenance names."""
        return places_in(self.made)

    @property
    def folder(self) -> Path | None:
        """The run's folder; None for a file alone."""
        return self.path if (self.path / CONFIG).is_file() else None

    @property
    def name(self) -> str:
        """What it is called: the folder's name, or the file's unless that is every student's."""
        path = self.path.resolve()
        if path.is_dir():
            return path.name
        return path.parent.name if path.stem in {"encoder", "model"} else path.stem

    @property
    def settings(self) -> Mapping[str, Any]:
        """The run's settings as its provenance has them."""
        found = self.provenance.get("config")
        return found if isinstance(found, Mapping) else {}

    @property
    def licences(self) -> dict[str, str]:
        """{teacher: licence}, also of the runs that it started from."""
        return licences_of(self.provenance)

    @property
    def steps(self) -> int | None:
        """Steps done; None if the file does not say."""
        found = self.provenance.get("steps")
        return found if isinstance(found, int) else None

    @property
    def total(self) -> int | None:
        """Steps that the run was to do; None if the file does not say."""
        settings = self.settings
        if settings.get("steps"):
            return int(settings["steps"])
        images = self.provenance.get("images")
        if not images or not {"epochs", "batch_size"} <= settings.keys():
            return None
        return max(1, round(float(settings["epochs"] * images / settings["batch_size"])))

    @property
    def unfinished(self) -> bool:
        """Whether the run was to go on."""
        return self.steps is not None and self.total is not None and self.steps < self.total

    @cached_property
    def model(self) -> bytes:
        """`model.safetensors`: the encoder, its spec and its provenance, as `distill` writes them."""
        return encoder_bytes(self.encoder, self.spec, self.provenance)


def open_source(config: ExportConfig) -> Source:
    """The student in RUN. ConfigError if there is none, or if its run was to go on and that was not allowed."""
    encoder, spec, provenance = load_encoder(config.run)
    source = Source(Path(config.run), encoder, spec, provenance)
    if source.unfinished:
        done = f"{config.run}: its run has done {source.steps:,} of {source.total:,} steps"
        if not config.allow_unfinished:
            raise ConfigError(f"{done}; finish it with `unic-cache distill --resume`, or add --allow-unfinished")
        say(f"{done}; the export says so")
    return source
