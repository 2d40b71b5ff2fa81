"""What a report is made from: run folders and files of `evaluate --json`, each under a label of its own."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.command.run_folder import run_settings
from unic_cache.config import DistillConfig
from unic_cache.errors import ConfigError
from unic_cache.evaluate.curves import Training
from unic_cache.evaluate.results import Evaluation, read_evaluation, shown
from unic_cache.evaluate.run_log import Cost, cost, read_records
from unic_cache.student.run_files import LOG


@dataclass(frozen=True)
class Run:
    """A run's folder: its settings, its log, and what it cost."""

    folder: Path
    settings: DistillConfig
    training: Training
    cost: Cost | None

    @property
    def label(self) -> str:
        """Its name in figures."""
        return self.training.label


def sorted_inputs(paths: Sequence[str]) -> tuple[list[Run], list[Evaluation]]:
    """The runs and the evaluations, in the order given. ConfigError for anything else, or for a path given twice."""
    found = [Path(path) for path in paths]
    twice = [path for path, count in Counter(path.resolve() for path in found).items() if count > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is given twice; give it once")
    names = labels(found)
    runs = [read_run(path, name) for path, name in zip(found, names, strict=True) if path.is_dir()]
    files = [read_evaluation(path, name) for path, name in zip(found, names, strict=True) if not path.is_dir()]
    return runs, files


def labels(paths: Sequence[Path]) -> list[str]:
    """The name of each folder, and of each file without its suffix; the whole path where two share a name."""
    names = [path.resolve().name if path.is_dir() else path.stem for path in paths]
    count = Counter(names)
    return [shown(name if count[name] == 1 else str(path)) for path, name in zip(paths, names, strict=True)]


def read_run(folder: Path, label: str) -> Run:
    """The run in a folder. ConfigError if there is none, or if it has logged nothing."""
    settings = run_settings(folder)
    records = read_records(folder / LOG)
    if not records:
        raise ConfigError(
            f"{folder / LOG}: no training or validation records in it yet; wait for some, or leave it out"
        )
    training = Training(label, records, 0.0 if settings.balancing == "none" else settings.drop_teacher)
    return Run(folder, settings, training, cost(records, settings.batch_size))
