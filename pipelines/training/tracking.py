"""The experiment tracker of a run: any that accelerate knows, under a project's name and the run folder's name.

A tracker copies the log and may fail: a run that has begun goes on without it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pipelines.command.failures import reason
from pipelines.training.processes import on_main
from unic_cache.config import DistillConfig
from unic_cache.errors import ConfigError

NOT_IN_NAMES = re.compile(r"[^-/\w.]", re.ASCII)  # MLflow refuses "@", as in a teacher's timm:NAME@SIZE


def begin_tracking(config: DistillConfig, accelerator: Accelerator, out: Path) -> None:
    """Start the tracker with the run's settings; its files are in the folder `out`, whose name is the run's.

    ConfigError if it cannot start, for lack of a login for example.
    """

    def start() -> None:
        name, options = tracker_names(config.tracker, config.project, out.resolve())
        try:
            accelerator.init_trackers(name, tracked_settings(config), {config.tracker: options})
        except Exception as error:  # each vendor has its own
            if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
                raise  # a disk's, whose advice is better
            raise ConfigError(
                f"the tracker {config.tracker} cannot start: {reason(error)}. Set it up as its documentation says, or "
                "choose another --tracker"
            ) from error

    on_main(accelerator, start)


def tracker_names(tracker: str, project: str, out: Path) -> tuple[str, dict[str, str]]:
    """What accelerate calls the project's name, and the tracker's own options: the run's name, and a folder in OUT.

    TensorBoard and DVCLive have no projects; Comet draws the run's name itself, and MLflow's place is set by its own
    environment variables.
    """
    run, folder = out.name or "run", str(out)
    options = {
        "aim": {"experiment": project},
        "clearml": {"task_name": run},
        "dvclive": {"dir": f"{folder}/dvclive"},
        "mlflow": {"run_name": run},
        "swanlab": {"experiment_name": run, "logdir": f"{folder}/swanlab"},
        "trackio": {"name": run},
        "wandb": {"name": run, "dir": folder},
    }
    names = {"tensorboard": "tensorboard", "aim": run}  # the folder in OUT, and the run's name
    return names.get(tracker, project), options.get(tracker, {})


def tracked_settings(config: DistillConfig) -> dict[str, int | float | str | bool]:
    """The settings in the types that every tracker takes: lists as JSON, and none that is unset."""
    plain = {key: value for key, value in config.to_json().items() if value is not None}
    return {key: json.dumps(value) if isinstance(value, tuple | list) else value for key, value in plain.items()}


def tracked_values(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """A log line's numbers, flat: {"train/teachers/dino/cls": 0.4}, in letters that every tracker takes."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        place = f"{kind}/{NOT_IN_NAMES.sub('_', name)}"
        flat |= tracked_values(place, value) if isinstance(value, Mapping) else {place: value}
    return flat
