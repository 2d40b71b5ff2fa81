"""One frozen dataclass per command, checked when made and saved as JSON beside what the command makes.

A field is an option: `option(default, help)` is all that the command line says of it. The bounds of numbers are in
`bounds`, choices in `choices`.
"""

from unic_cache.config.bounds import default_cls_quality
from unic_cache.config.caching import (
    ExtractConfig,
    InspectConfig,
    PlanConfig,
    RecodeConfig,
    RepairConfig,
    ShardConfig,
    StatusConfig,
    VerifyConfig,
)
from unic_cache.config.choices import (
    BALANCINGS,
    CENTER,
    CODECS,
    CODERS,
    DEFAULT_QUALITY,
    DEFAULT_VIEWS,
    DTYPES,
    EVALUATION_TASKS,
    EXACT,
    EXPORTS,
    FITTED,
    FITTED_SETTINGS,
    LATTICE,
    LOSSES,
    PIXEL_CODECS,
    PRECISIONS,
    PROJECTORS,
    RANDOM,
    RECIPES,
    SAMPLINGS,
    SOLVERS,
    STANDARDIZATIONS,
    TRACKERS,
)
from unic_cache.config.evaluating import EvaluateConfig
from unic_cache.config.exporting import ExportConfig
from unic_cache.config.reporting import ReportConfig
from unic_cache.config.training import DistillConfig
from unic_cache.config.views import Views

__all__ = [
    "BALANCINGS",
    "CENTER",
    "CODECS",
    "CODERS",
    "DEFAULT_QUALITY",
    "DEFAULT_VIEWS",
    "DTYPES",
    "EVALUATION_TASKS",
    "EXACT",
    "EXPORTS",
    "FITTED",
    "FITTED_SETTINGS",
    "LATTICE",
    "LOSSES",
    "PIXEL_CODECS",
    "PRECISIONS",
    "PROJECTORS",
    "RANDOM",
    "RECIPES",
    "SAMPLINGS",
    "SOLVERS",
    "STANDARDIZATIONS",
    "TRACKERS",
    "DistillConfig",
    "EvaluateConfig",
    "ExportConfig",
    "ExtractConfig",
    "InspectConfig",
    "PlanConfig",
    "RecodeConfig",
    "RepairConfig",
    "ReportConfig",
    "ShardConfig",
    "StatusConfig",
    "VerifyConfig",
    "Views",
    "default_cls_quality",
]
