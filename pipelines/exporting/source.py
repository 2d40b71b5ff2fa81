"""What is exported: a run's folder, or an encoder's file alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from pipelines.command.progress import say
from unic_cache.config import ExportConfig
from unic_cache.errors import ConfigError
from unic_cache.student.backbone import EncoderSpec
from unic_cache.student.export import encoder_bytes, licences_of, load_encoder
from unic_cache.student.run_files import CONFIG

PATHS = ("init", "from_run", "weights", "val_shards")  # settings that may name places on the machine of the run


@dataclass(frozen=True)
class Source:
    """A student as it was exported by `distill`."""

    path: Path
    encoder: nn.Module  # in evaluation mode; the moving average, if the run kept one
    spec: EncoderSpec
    provenance: Mapping[str, Any]  # how it was made, without places on the machine of the run

    @property
    def folder(self) -> Path | None:
        """The run's folder; None for a file alone."""
        return self.path if (self.path / CONFIG).is_file() else None

    @property
    def name(self) -> str:
        """What it is called: the folder's name, or the file's unless that is every student's."""
        path = self.path.resolve()
        return path.parent.name if path.is_file() and path.stem in {"encoder", "model"} else path.stem

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
    source = Source(Path(config.run), encoder, spec, placeless(provenance))
    if source.unfinished:
        done = f"{config.run}: its run has done {source.steps:,} of {source.total:,} steps"
        if not config.allow_unfinished:
            raise ConfigError(f"{done}; finish it with `unic-cache distill --resume`, or add --allow-unfinished")
        say(f"{done}; the export says so")
    return source


def placeless(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance with the names of files alone, without the folders that they were in."""
    found = dict(provenance)
    if isinstance(found.get("config"), Mapping):
        settings = dict(found["config"])
        found["config"] = settings | {key: _names(settings[key]) for key in PATHS if key in settings}
    if isinstance(found.get("from"), Mapping):
        found["from"] = placeless(found["from"])
    return found


def _names(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_names(one) for one in value]
    return value.rstrip("/").rpartition("/")[2] if isinstance(value, str) else value
