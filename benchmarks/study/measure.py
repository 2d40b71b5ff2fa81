"""What one encoder is worth: sums per test image of every measure, from which all intervals and differences come.

The sums are kept, so that two runs are compared on the same resampled images long after either ran.

Letters: N test images, F summed numbers, n teachers, B images.
"""

import lzma
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.study.sets import LabelledSet
from pipelines.command.progress import Progress
from pipelines.evaluating.encoders import Encoder
from pipelines.evaluating.features import features
from pipelines.evaluating.labelled import Usable, labelled
from pipelines.evaluating.measuring import ASKED, NEEDS, DenseLabels, allowed, measure
from unic_cache.ahead import thread_pool
from unic_cache.config import CENTER, EvaluateConfig, Views
from unic_cache.errors import CacheError, ConfigError
from unic_cache.evaluate.bootstrap import Interval, Resampled, difference, gain, interval, resample
from unic_cache.evaluate.task import Metric, Numbers, mean, mean_iou, per_image
from unic_cache.files.local import LocalFolder
from unic_cache.store.npz import load_npz, save_npz
from unic_cache.stream.pixels import ShardPixels

SEED = 0  # of splits, heads and resamples: the same for all runs, since they are compared
STATISTICS: Mapping[str, Callable[[Numbers], Numbers]] = {
    "loss": mean,
    "knn": mean,
    "retrieval": mean,
    "linear": mean,
    "segmentation": mean_iou,
}
ALL_KNN = "knn/all"  # of the test images of all sets together
MEAN = "mean/tasks"  # of all tasks, one value per task and set
DIGITS = 6

Sums = Mapping[str, npt.NDArray[np.float64]]  # measure, such as "knn/food" or "loss-views/mean" -> (N, F)


class Sides(NamedTuple):
    """The tars of one measurement: one set asked leave-one-out or split, or training and test images."""

    shards: str | None
    train: str | None
    test: str | None


def task_sums(
    encoder: Encoder,
    sets: Sequence[LabelledSet],
    evaluate: Mapping[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """TASK/SET -> (N, F) for all tasks of a run's settings. ConfigError if there is no such set, or it lacks a task."""
    by_name = {one.name: one for one in sets}
    wanted: dict[str, list[str]] = {}
    for task, names in evaluate["tasks"].items():
        for name in names:
            if name not in by_name or task not in by_name[name].tasks:
                raise ConfigError(f"the study asks for {task} on {name}, which no labelled set offers; see sets.py")
            wanted.setdefault(name, []).append(task)
    found = {}
    for name, tasks in wanted.items():
        for sides, own in grouped(by_name[name], tasks).items():
            config = EvaluateConfig(
                encoder=(encoder.name,),
                **sides._asdict(),
                task=tuple(own),
                head_steps=evaluate["head_steps"],
                seed=SEED,
            )
            for task, sums_NF in measured(encoder, config, evaluate["size"], device).items():
                found[f"{task}/{name}"] = sums_NF
    return found


def grouped(one: LabelledSet, tasks: Sequence[str]) -> dict[Sides, list[str]]:
    """The tasks by the tars they need: where nothing is fitted a whole set is asked leave-one-out, if there is one."""
    whole, parts = Sides(one.shards, None, None), Sides(None, one.train, one.test)
    found: dict[Sides, list[str]] = {}
    for task in tasks:
        first, second = (whole, parts) if task in ASKED else (parts, whole)
        found.setdefault(first if any(first) else second, []).append(task)
    return found


def measured(
    encoder: Encoder, config: EvaluateConfig, size: int, device: torch.device
) -> dict[str, npt.NDArray[np.float64]]:
    """Each task's own metric of one encoder, as (N, F) sums over center views of `size` px."""
    patterns = [config.train, config.test] if config.shards is None else [config.shards]
    sets = [labelled(str(pattern), None) for pattern in patterns]
    tasks = allowed(config.task, sets)
    dense = any(task in NEEDS for task in tasks)
    with thread_pool(config.threads) as pool, tempfile.TemporaryDirectory(prefix="unic-cache-study-") as name:
        folder = Path(name)
        usable = [Usable(one, {}, ShardPixels(Views(CENTER, size, 0), one.tars, pool)) for one in sets]
        kept = [
            features(one, [encoder], folder / f"set-{place}", dense, config.batch_size, device)[encoder.name]
            for place, one in enumerate(usable)
        ]
        found, labels = {}, DenseLabels(folder, pool)
        with Progress("measure", len(tasks), "tasks") as bar:
            for task in tasks:
                result = measure(task, config, usable, {encoder.name: kept}, [encoder], labels, device, bar)
                if result is None:
                    raise ConfigError(f"{task} of {encoder.name} on {' and '.join(map(str, patterns))}: not measured")
                metric = next(iter(result.metrics[encoder.name].values()))
                sums: Any = metric.sums_NF
                found[task] = np.asarray(sums.toarray() if hasattr(sums, "toarray") else sums, np.float64)
    return found


def loss_sums(
    kind: str, losses_nB: npt.NDArray[np.floating[Any]], teachers: Sequence[str], whole: bool
) -> dict[str, Any]:
    """KIND/TEACHER -> (N, 2) of each teacher, and KIND/mean if the run has all teachers (`whole`)."""
    found = {f"{kind}/{name}": per_image(losses_B) for name, losses_B in zip(teachers, losses_nB, strict=True)}
    return {**found, f"{kind}/mean": per_image(losses_nB.mean(axis=0))} if whole else found


def with_pooled(sums: Sums) -> dict[str, Any]:
    """Add k-NN over the test images of all sets together, whose interval is narrower than that of each."""
    knn = [sums_NF for name, sums_NF in sums.items() if name.startswith("knn/")]
    return {**sums, **({ALL_KNN: np.concatenate(knn)} if len(knn) > 1 else {})}


def statistic(measure: str) -> Callable[[Numbers], Numbers]:
    """Sums over images -> the measure's value."""
    return STATISTICS[re.split("[-/]", measure)[0]]


def compared(own: Sums, others: Mapping[str, Sums], resamples: int) -> dict[str, Any]:
    """{"scores": measure -> interval, "differences": other -> measure -> interval}, JSON-ready, better above 0.

    Scores and differences of tasks are in points of 100; a loss is as it is, and its difference in percent of the
    other's. All encoders are compared on the same resamples. ConfigError if two runs had other test images.
    """
    drawn: dict[str, dict[str, Resampled]] = {}  # measure -> "" for this run, or the other's name
    for name, sums_NF in own.items():
        sides = {"": sums_NF, **{other: sums[name] for other, sums in others.items() if name in sums}}
        metrics = {
            side: Metric(values, statistic(name), higher_is_better=not name.startswith("loss"))
            for side, values in sides.items()
        }
        try:
            drawn[name] = resample(metrics, SEED, resamples)
        except ConfigError as error:
            raise ConfigError(
                f"{name}: {error}; was a set of images made anew? Run the study in another --work"
            ) from error
    add_mean(drawn, others)
    scores = {name: json_of(interval(sides[""]), name) for name, sides in drawn.items()}
    differences = {
        other: {name: difference_of(sides[""], sides[other], name) for name, sides in drawn.items() if other in sides}
        for other in others
    }
    return {"scores": scores, "differences": differences}


def add_mean(drawn: dict[str, dict[str, Resampled]], others: Mapping[str, Sums]) -> None:
    """Add the mean over tasks and sets; that of another run only if it has them all."""
    tasks = [name for name in drawn if not name.startswith("loss") and name != ALL_KNN]
    if len(tasks) > 1:
        sides = ["", *(other for other in others if all(other in drawn[name] for name in tasks))]
        drawn[MEAN] = {
            side: Resampled(
                float(np.mean([drawn[name][side].value for name in tasks])),
                np.mean([drawn[name][side].values_R for name in tasks], axis=0),
            )
            for side in sides
        }


def difference_of(own: Resampled, other: Resampled, measure: str) -> dict[str, float]:
    """`own` against `other`, paired, above 0 if it is better. ConfigError if it is undefined."""
    if not measure.startswith("loss"):
        return json_of(difference(own, other), measure)
    found = gain(own, other)
    if found is None:
        raise ConfigError(f"{measure}: the reference's loss is 0, so there is no difference in percent")
    return json_of(found, "loss")


def json_of(found: Interval, measure: str) -> dict[str, float]:
    """An interval as JSON-ready data: in points of 100, but losses and what is already in percent as they are."""
    scale = 1.0 if measure.startswith("loss") else 100.0
    numbers = {"value": found.mean, "low": found.low, "high": found.high}
    return {name: float(f"{scale * number:.{DIGITS}g}") for name, number in numbers.items()}


def save_sums(path: Path, sums: Sums, keys: Mapping[str, npt.NDArray[Any]]) -> None:
    """Keep a run's sums, and the keys of the images of its losses: compressed, since they are committed."""
    arrays = {**{f"sums/{name}": values for name, values in sums.items()}, **{f"keys/{n}": k for n, k in keys.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    LocalFolder(path.parent).replace(path.name, lzma.compress(save_npz(arrays)))


def load_sums(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(sums, keys) as they were saved. CacheError without the file, or if it is damaged."""
    if not path.is_file():
        raise CacheError(
            f"{path}: the values per image of this reference run are not there, so nothing can be compared with it; "
            "put the file back, or remove its line and those of all runs compared with it, and run these again"
        )
    try:
        data = lzma.decompress(path.read_bytes())
    except (lzma.LZMAError, EOFError) as error:
        raise CacheError(f"{path}: damaged ({error}); put the committed file back") from error
    arrays = load_npz(data, str(path))
    return tuple(  # type: ignore[return-value]
        {name.removeprefix(kind): values for name, values in arrays.items() if name.startswith(kind)}
        for kind in ("sums/", "keys/")
    )
