"""The settings of `export`."""

import re
from dataclasses import dataclass

from unic_cache.config.choices import EXPORTS
from unic_cache.config.options import CACHE, About, option
from unic_cache.config.stage import Stage
from unic_cache.errors import ConfigError

NAMED = re.compile(r"(hf-hub|local-dir):")  # before a name in timm
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class ExportConfig(Stage):
    """`unic-cache export`: a run's student to a folder that other software loads."""

    run: str
    out: str
    format: str = option(
        "timm",
        "timm's folder, which `local-dir:` and `hf-hub:` load; the same for transformers too; ONNX; or timm's folder "
        "with the projectors, which guess each teacher's tokens.",
        choices=EXPORTS,
    )
    cache: str | None = option(
        None, About("The cache that the run learned from (heads only).", CACHE.metavar, unset="where it was then")
    )
    results: str | None = option(None, "A file of `evaluate --out`, for the model card.", "FILE")
    push: str | None = option(None, "Also upload OUT to the Hugging Face hub as this model.", "ORG/NAME")
    private: bool = option(False, "Upload to a private model alone; if --push makes it, it is private.")
    allow_unfinished: bool = option(False, "Also export a student whose run has not done all its steps.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for place in (self.run, self.out):
            if NAMED.match(place):
                raise ConfigError(f"{place}: RUN and OUT are plain paths; --push ORG/NAME publishes on the hub")
        if self.push is not None and not REPOSITORY.fullmatch(self.push):
            raise ConfigError(f"--push {self.push}: the hub's models are called ORG/NAME, as in my-group/my-student")
        if self.private and self.push is None:
            raise ConfigError("--private is of a model that --push makes; add --push ORG/NAME, or leave it out")
        if self.cache is not None and self.format != "heads":
            raise ConfigError("--cache is for --format heads: no other format needs the teachers' statistics")
