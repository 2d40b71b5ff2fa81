"""One frozen dataclass per command, checked when made and saved as JSON beside what the command makes.

A field is an option: `option(default, help)` is all that the command line says of it. The bounds of numbers are in
`bounds`, choices in `choices`.
"""

from unic_cache.config.check import InspectConfig, RepairConfig, VerifyConfig
from unic_cache.config.choices import (
    CENTER,
    CODECS,
    DTYPES,
    FITTED,
    NORMALIZATIONS,
    PIXEL_CODECS,
    PRECISIONS,
    RECIPES,
    STANDARDIZATIONS,
    TRACKERS,
)
from unic_cache.config.distill import DistillConfig
from unic_cache.config.evaluate import EvaluateConfig
from unic_cache.config.extract import ExtractConfig, PlanConfig
from unic_cache.config.recode import RecodeConfig
from unic_cache.config.shard import ShardConfig
from unic_cache.config.views import Views

__all__ = [
    "CENTER",
    "CODECS",
    "DTYPES",
    "FITTED",
    "NORMALIZATIONS",
    "PIXEL_CODECS",
    "PRECISIONS",
    "RECIPES",
    "STANDARDIZATIONS",
    "TRACKERS",
    "DistillConfig",
    "EvaluateConfig",
    "ExtractConfig",
    "InspectConfig",
    "PlanConfig",
    "RecodeConfig",
    "RepairConfig",
    "ShardConfig",
    "VerifyConfig",
    "Views",
]
